"""Figures and phrases that the screen and the page share, so that both say the same thing."""

import re
from collections.abc import Sequence

from pinchpoint.capacity import leans_pass
from pinchpoint.model import Capacity, Evidence, Finding, Slo, StageResult, ValidityReason, Verdict
from pinchpoint.report.literal import visible
from pinchpoint.slo import WITHDRAWN_STATUSES
from pinchpoint.units import MISSING, format_duration, format_ratio, significant

CERTAIN_RATIO = 0.99
"""Probabilities beyond this are printed as "> 99 %": more nines would claim what no model of causes supports."""
TEN = 10.0
HUNDRED = 100.0


def rate(value_rps: float | None) -> str:
    """Requests per second without the unit: one decimal below 10, for columns that line up."""
    if value_rps is None:
        return MISSING
    if value_rps >= HUNDRED:
        return f"{value_rps:.0f}"
    return f"{value_rps:.1f}" if value_rps >= 1 else significant(value_rps, 2)


def offered(value_rps: float | None) -> str:
    """An offered rate to three significant digits, as the headline and the capacity name it."""
    return MISSING if value_rps is None else significant(value_rps)


def stage_label(name: str, rate_rps: float | None) -> str:
    """Name of a step with its rate, unless the name already holds a figure."""
    shown = visible(name, STAGE_LABEL_LENGTH_MAX)
    return shown if rate_rps is None or FIGURE.search(shown) else f"{shown} {offered(rate_rps)} req/s"


STAGE_LABEL_LENGTH_MAX = 60
LOADED_KINDS = ("search", "overload", "load")
"""Stages that carry load; warm-up and recovery are one user at a time."""


def decision_of(stage: StageResult, slos: Sequence[Slo]) -> str:
    """What became of a step: pass, fail, leans-pass, leans-fail or none.

    An undecided step is placed by its point estimate, as the capacity interval does. An overload step is none: it is
    run to look at the failure, not to judge the rate.
    """
    if stage.kind not in ("search", "load"):
        return "none"
    if stage.decision == "undecided":
        return "leans-pass" if leans_pass(stage.attainment, slos) else "leans-fail"
    return stage.decision


DECISION_WORDS = {
    "pass": "pass",
    "fail": "fail",
    "leans-pass": "leans pass",
    "leans-fail": "leans fail",
    "none": MISSING,
}


def sentence(text: str) -> str:
    """First letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def clauses(text: str) -> tuple[str, str]:
    """A sentence split at its first semicolon: the part to print large and the rest, which may be empty."""
    first, _, rest = text.partition("; ")
    return first, rest


def capacity_figure(capacity: Capacity | None) -> str:
    """Capacity without its unit: "5.5 – 6", "at least 40", "below 1" or a dash."""
    if capacity is None or (capacity.lower_rps is None and capacity.upper_rps is None):
        return MISSING
    if capacity.lower_rps is None:
        return f"below {offered(capacity.upper_rps)}"
    if capacity.upper_rps is None:
        return f"at least {offered(capacity.lower_rps)}"
    return f"{offered(capacity.lower_rps)} – {offered(capacity.upper_rps)}"


def capacity_confidence(capacity: Capacity | None) -> str:
    if capacity is None:
        return "no step with a fixed rate was judged"
    if capacity.best_rps is not None:
        level = f"{capacity.confidence:.0%}".replace("%", " %")
        how = "which the sequential test alone proves" if capacity.proven else "an estimate from all steps together"
        return f"best {offered(capacity.best_rps)} req/s; {level} interval, {how}"
    if capacity.proven:
        ends = "decided" if capacity.lower_rps is None or capacity.upper_rps is None else "both ends decided"
        return f"{ends} at {capacity.confidence:.0%} confidence".replace("%", " %")
    return "a best estimate: an end rests on too few requests"


def probability(value: float) -> str:
    if value > CERTAIN_RATIO:
        return "> 99 %"
    return "< 1 %" if value < 1 - CERTAIN_RATIO else f"{value:.0%}".replace("%", " %")


def quantity(value: float | None, unit: str, *, factor: bool = False) -> str:
    """A measured value with its unit: seconds and ratios are scaled for reading, other units are appended.

    factor: print a ratio as a multiple (1.8×) in place of a share (180 %).
    """
    if value is None:
        return MISSING
    if unit == "s":
        return format_duration(value)
    if unit == "x" or (unit == "ratio" and factor):
        return f"{significant(value)}×"
    if unit == "ratio":
        return format_ratio(value)
    text = significant(value)
    return f"{text} {visible(unit)}" if unit and unit != "1" else text


def quantities(evidence: Evidence) -> tuple[str, str]:
    """Observed and reference. No share exceeds 1, so a ratio beyond it makes both multiples."""
    factor = max(evidence.observed or 0.0, evidence.reference or 0.0) > 1
    return (
        quantity(evidence.observed, evidence.unit, factor=factor),
        quantity(evidence.reference, evidence.unit, factor=factor),
    )


FIGURE = re.compile(r"(?<![A-Za-z0-9])[0-9]")
"""A number of its own; the digits of "p50" are none."""


def comparison(evidence: Evidence) -> str:
    """The numbers behind a statement, such as "8 sequences, reference 8 sequences".

    Empty when there are none and when the statement itself holds figures.
    """
    if FIGURE.search(evidence.statement):
        return ""
    observed, reference = quantities(evidence)
    parts = []
    if evidence.observed is not None:
        parts.append(observed)
    if evidence.reference is not None:
        parts.append(f"reference {reference}")
    return ", ".join(parts)


def top_finding(verdict: Verdict) -> Finding | None:
    return verdict.findings[0] if verdict.findings else None


def strongest(evidence: tuple[Evidence, ...], count: int | None = None) -> list[Evidence]:
    return sorted(evidence, key=lambda item: -abs(item.strength))[:count]


def reasons_that_matter(verdict: Verdict) -> list[ValidityReason]:
    """Checks that speak against the measurement, worst first."""
    order = {"invalid": 0, "suspect": 1}
    return sorted((r for r in verdict.validity_reasons if r.level in order), key=lambda r: order[r.level])


def failed_requests(stage: StageResult) -> int:
    """Requests that did not succeed, without those that were withdrawn by us."""
    return sum(count for status, count in stage.errors.items() if status not in WITHDRAWN_STATUSES)


def strength_word(strength: float) -> str:
    """Natural-log likelihood ratio in words; the steps are those of Kass & Raftery (1995), halved to ln units."""
    magnitude = abs(strength)
    if magnitude < NEUTRAL:
        return "neutral"
    for limit, word in STRENGTH_WORDS:
        if magnitude >= limit:
            return word
    return "slight"


NEUTRAL = 0.05
STRENGTH_WORDS = ((5.0, "very strong"), (3.0, "strong"), (1.0, "clear"))


def sign(strength: float) -> str:
    return "·" if abs(strength) < NEUTRAL else "+" if strength > 0 else "−"


def told_rivals(verdict: Verdict) -> list[Finding]:
    """Rejected causes with something to say against them: those of the answer's own layer first, as its look-alikes
    are found there, then by the strongest argument."""
    top = top_finding(verdict)
    told = [finding for finding in verdict.rejected if finding.against and finding.kind != "healthy"]

    def order(finding: Finding) -> tuple[bool, float]:
        return top is None or finding.layer != top.layer, min(item.strength for item in finding.against)

    return sorted(told, key=order)


def notes(verdict: Verdict) -> list[str]:
    """Notes that the capacity's own note does not repeat, and that note."""
    own = [verdict.capacity.note] if verdict.capacity and verdict.capacity.note else []
    return own + [note for note in verdict.notes if note not in own]
