"""From clues to probabilities: naive Bayes with grouped clues and an explicit "unknown".

How it works. Every rule starts with the same prior; a clue multiplies its odds by a likelihood ratio. Clues of one
group see one fact, so of each group only the strongest for and the strongest against count. "Unknown" has no evidence
and a fixed prior, so a cause must earn its place against it. What could not be looked at adds nothing, and lowers the
ceiling of the probability that the best cause can reach: the mass goes to "unknown".

The probabilities order causes and say how far the evidence carries; they are not calibrated on a fleet of services.
"""

import math
from collections.abc import Sequence

import msgspec

from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Clue, LoadedRule, Outcome, load_rules, remedies_for
from pinchpoint.model import Evidence, Finding, NotEvaluable, Validity

FIRES_LOG_ODDS = math.log(3)
"""A rule fires when its clues speak for it three to one."""
CLUE_CAP = math.log(200)
"""No single reading may claim more than 200 to 1."""
UNKNOWN_PRIOR = 3.0
"""Prior of "something else" relative to each rule: the catalogue of causes is much longer than the rules here."""
CEILING_BLIND = 0.7
CEILING_FULL = 0.97
"""Highest probability with none and with all of the rule's telemetry."""
LISTED_MIN = 0.01
GENERATOR_CODE = "GEN001"
HEALTHY_CODE = "OK001"
STREAM_CODE = "NET001"


class Ranking(msgspec.Struct, frozen=True):
    findings: tuple[Finding, ...]
    rejected: tuple[Finding, ...]
    not_evaluable: tuple[NotEvaluable, ...]


class _Scored(msgspec.Struct, frozen=True):
    loaded: LoadedRule
    outcome: Outcome
    score: float
    fires: bool


def score_of(clues: Sequence[Clue]) -> float:
    """Sum over groups of the strongest clue for plus the strongest against, in natural-log odds."""
    groups: dict[str, list[float]] = {}
    for entry in clues:
        groups.setdefault(entry.group, []).append(max(-CLUE_CAP, min(CLUE_CAP, entry.evidence.strength)))
    return sum(max(max(values), 0.0) + min(min(values), 0.0) for values in groups.values())


def rank(features: Features, validity: Validity, rules: Sequence[LoadedRule] | None = None) -> Ranking:
    """Findings likely first, with rejected rules and those that could not look.

    Nothing failed: only the rules about health, streams and the generator may fire. An INVALID measurement accuses
    the load generator alone.
    """
    scored: list[_Scored] = []
    blind: list[NotEvaluable] = []
    for loaded in rules if rules is not None else load_rules():
        code = loaded.rule.code
        if validity == "INVALID" and code != GENERATOR_CODE:
            blind.append(NotEvaluable(code, loaded.rule.name, (), "the measurement is invalid, so nothing can be said"))
            continue
        outcome = loaded.evaluate(features)
        if outcome.not_evaluable:
            blind.append(NotEvaluable(code, loaded.rule.name, outcome.missing, outcome.not_evaluable))
            continue
        score = score_of(outcome.clues)
        damage = bool(features.failing) or code in (GENERATOR_CODE, HEALTHY_CODE, STREAM_CODE)
        fires = damage and not outcome.veto and score >= FIRES_LOG_ODDS
        scored.append(_Scored(loaded, outcome, score, fires))
    fired = sorted((s for s in scored if s.fires), key=lambda s: -s.score)
    ceiling = _ceiling(features, fired[0]) if fired else CEILING_FULL
    highest = max([s.score for s in scored if not s.outcome.veto], default=0.0)
    weights = {s.loaded.rule.code: 0.0 if s.outcome.veto else math.exp(s.score - highest) for s in scored}
    total = sum(weights.values()) + UNKNOWN_PRIOR * math.exp(-highest)
    share = {code: min(weight / total, 1.0) * ceiling for code, weight in weights.items()}
    findings = [_finding(features, s, share, listed=True) for s in fired if share[s.loaded.rule.code] >= LISTED_MIN]
    unknown = max(1 - sum(share.values()), 0.0)
    if not findings or unknown > findings[0].probability:
        findings.append(_unknown(features, unknown, list(fired)))
    faint = {s.loaded.rule.code for s in fired} - {f.rule for f in findings}
    rejected = [_finding(features, s, share) for s in scored if not s.fires or s.loaded.rule.code in faint]
    return Ranking(
        tuple(sorted(findings, key=lambda f: -f.probability)),
        tuple(sorted(rejected, key=lambda f: -f.probability)),
        tuple(blind),
    )


def _ceiling(features: Features, top: _Scored) -> float:
    needs = top.loaded.rule.needs
    if not needs:
        return CEILING_FULL
    present = sum(features.view.has(name) or features.view.has(f"{name}_sum") for name in needs) / len(needs)
    return CEILING_BLIND + (CEILING_FULL - CEILING_BLIND) * present


def _finding(features: Features, scored: _Scored, share: dict[str, float], *, listed: bool = False) -> Finding:
    rule, outcome = scored.loaded.rule, scored.outcome
    evidence = [c.evidence for c in outcome.clues]
    against = [e for e in evidence if e.strength < 0]
    if outcome.veto:
        against.insert(0, Evidence(outcome.veto, -CLUE_CAP))
    return Finding(
        rule=rule.code,
        name=rule.name,
        title=outcome.title or rule.title,
        layer=rule.layer,
        kind=rule.kind,
        probability=round(share[rule.code], 4),
        explains_ratio=features.explained_ratio(rule.explains) if listed and rule.explains else None,
        evidence=tuple(sorted((e for e in evidence if e.strength >= 0), key=lambda e: -e.strength)),
        against=tuple(sorted(against, key=lambda e: e.strength)),
        remedies=remedies_for(rule, features.engine, outcome.values) if listed else (),
        confirm=rule.confirm if listed else "",
    )


def _unknown(features: Features, probability: float, fired: list[_Scored]) -> Finding:
    named = ", ".join(s.loaded.rule.code for s in fired)
    confirm = (
        "Repeat the run with the engine's metrics and the server's host visible, then compare light load with overload."
    )
    return Finding(
        rule="UNKNOWN",
        name="unknown",
        title="unknown cause" if not named else f"unknown cause (evidence for {named} is too weak)",
        layer="none",
        kind="unknown",
        probability=round(probability, 4),
        explains_ratio=None,
        evidence=(),
        against=(),
        confirm=confirm,
    )
