"""Explicit limit: something in front of the engine refuses requests (HTTP 429 or 503).

What it means      A rate limit or an admission limit does what it was told. The engine behind it may have room.
How it shows       Refusals break the error SLO while the latency of accepted requests stays as it was.
Kinds              A limit on concurrency refuses whenever the same number of accepted requests is in flight; a
                   limit on rate accepts the same number per second, whatever is in flight.
Confused with      A service that collapses: there the latency of the successes grows too, and errors are
                   timeouts, resets and other statuses.
What to do         Raise the limit if the engine has room; otherwise it protects the service and should stay.
Sources            RFC 6585 section 4 (429), RFC 9110 sections 15.6.4 (503) and 10.2.3 (Retry-After).
"""

import numpy as np

from pinchpoint.diagnose.clues import SHARED
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.fits import ActiveCount
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp
from pinchpoint.diagnose.stage_features import StageFeatures
from pinchpoint.slo import NOT_ANSWERED_STATUSES

RULE = Rule(
    code="LIM001",
    name="explicit-limit",
    title="an explicit limit (requests are refused)",
    layer="application",
    kind="fault",
    needs=(),
    explains=("rejected",),
    params={
        "share_none": Param(0.001, "ratio", "a stray refusal"),
        "share_clear": Param(0.02, "ratio", "twice the usual error allowance of one per cent"),
        "of_errors": Param(0.5, "ratio", "most failures are refusals"),
        "flat": SHARED["flat"],
        "steady_cv": Param(0.1, "ratio", "coefficient of variation of a count that a limit holds"),
        "loose_cv": Param(0.25, "ratio", "of a count that nothing holds"),
        "min_refusals": Param(5, "requests", "fewer do not show a pattern"),
        "odds_refused": odds(100, "starting value for any 429; judgement"),
        "odds_none": odds(200),
        "odds_flat": odds(3),
        "odds_grew": odds(2),
        "odds_other_errors": odds(10),
        "odds_misses": odds(10),
    },
    remedies=(
        RemedySpec(
            "raise the {shape} limit ({observed}) in the gateway or server that answers {status}; {headroom}",
            {"tgi": "--max-concurrent-requests N"},
        ),
        RemedySpec("let clients honour Retry-After and spread their retries"),
        RemedySpec("if the engine has no room, keep the limit and add replicas"),
    ),
    confirm="Raise the limit twofold and repeat: the accepted rate follows it until the engine itself gives way.",
)


def evaluate(f: Features) -> Outcome:
    stages = [s for s in (*f.failing, f.stressed) if s is not None]
    if not stages:
        return Outcome(not_evaluable="no load stage was recorded")
    worst = max(stages, key=lambda s: s.status_share.get("rejected", 0.0))
    share = worst.status_share.get("rejected", 0.0)
    errors = 1 - sum(worst.status_share.get(k, 0.0) for k in ("ok", *NOT_ANSWERED_STATUSES))
    low, high = RULE["share_none"], RULE["share_clear"]
    clues: list[Clue] = [
        clue(
            "refusals",
            ramp(share, low, high, -RULE.ln("odds_none"), RULE.ln("odds_refused")),
            f"{share:.1%} of the requests were refused with {_statuses(f) or '429 or 503'}"
            if share
            else "no request was refused (429 or 503)",
            observed=share,
            reference=high,
            unit="ratio",
            source=RULE.source("share_clear"),
            window=worst.stage.name,
        )
    ]
    if share <= low:
        return Outcome(tuple(clues))
    if errors > 0 and share / errors < RULE["of_errors"]:
        text = f"refusals are only {share / errors:.0%} of the failed requests"
        clues.append(clue("other errors", -RULE.ln("odds_other_errors"), text, observed=share / errors))
    explained = f.explained_ratio(("rejected",))
    if explained is not None:
        clues.append(
            clue(
                "misses",
                ramp(explained, 0.0, RULE["of_errors"], -RULE.ln("odds_misses"), RULE.ln("odds_flat")),
                f"refusals are {explained:.0%} of all missed promises",
                observed=explained,
                unit="ratio",
            )
        )
    growth = _latency_growth(f, worst)
    if growth is not None:
        strength = RULE.ln("odds_flat") if growth <= RULE["flat"] else -RULE.ln("odds_grew")
        clues.append(
            clue(
                "latency",
                strength,
                f"median latency of the accepted requests grew {growth:.2f}x",
                observed=growth,
                reference=RULE["flat"],
                unit="ratio",
                source=RULE.source("flat"),
            )
        )
    shape, observed, shape_clues = _shape(f, worst)
    clues += shape_clues
    values = {"shape": shape, "observed": observed, "status": _statuses(f), "headroom": _headroom(worst)}
    return Outcome(tuple(clues), values=values, title=f"an explicit {shape} limit ({observed}, {_statuses(f)})")


def _latency_growth(f: Features, worst: StageFeatures) -> float | None:
    """TTFT where it exists, else e2e, of the stage with most refusals over light load."""
    if f.base is None or f.base is worst:
        return None
    for field in ("ttft_s", "e2e_s"):
        before, now = getattr(f.base, field), getattr(worst, field)
        if before and now:
            return now / before
    return None


def _statuses(f: Features) -> str:
    r = f.view.requests
    refused = r.http_status[(r.status == "rejected") & np.isfinite(r.http_status)]
    codes = sorted({int(code) for code in refused})
    text = " and ".join(f"HTTP {code}" for code in codes)
    retry_s = r.retry_after_s[(r.status == "rejected") & np.isfinite(r.retry_after_s)]
    return f"{text} (Retry-After {np.median(retry_s):.3g} s)" if len(retry_s) and text else text


def _headroom(s: StageFeatures) -> str:
    if s.waiting_mean is None or s.running_mean is None:
        return "whether the engine has room is not known without its metrics"
    if s.waiting_mean < SHARED["queue_min"].value:
        return f"the engine has room: {s.running_mean:.0f} requests running on average and none waiting"
    return f"the engine has little room: {s.waiting_mean:.1f} requests wait in it"


def _shape(f: Features, worst: StageFeatures) -> tuple[str, str, list[Clue]]:
    """What the limit holds constant, from what was in flight at each refusal and from accepted rates across stages."""
    r = f.view.requests
    accepted = ~np.isin(r.status.astype(str), ("rejected", "dropped"))
    end_s = np.where(np.isfinite(r.end_s), r.end_s, np.inf)
    in_flight = ActiveCount(r.sent_s[accepted], np.minimum(end_s[accepted], worst.window_s[1] + 1e6))
    refused = f.requests_in(worst) & (r.status == "rejected") & np.isfinite(r.sent_s)
    if refused.sum() < RULE["min_refusals"]:
        return "request", "too few refusals to tell its kind", []
    at_refusal = in_flight.at(r.sent_s[refused]).astype(float)
    cv = float(at_refusal.std() / at_refusal.mean()) if at_refusal.mean() > 0 else np.inf
    rate = worst.accepted_rps
    failing = [s for s in f.tested if s.status_share.get("rejected", 0.0) > RULE["share_clear"]]
    rates = np.array([s.accepted_rps for s in failing])
    text = f"{at_refusal.mean():.0f} accepted requests were in flight at a refusal (variation {cv:.0%})"
    if cv <= RULE["steady_cv"]:
        kind, observed = "concurrency", f"{np.median(at_refusal):.0f} in flight"
    elif len(rates) > 1 and rates.std() / rates.mean() <= RULE["steady_cv"]:
        kind, observed = "rate", f"{rates.mean():.2g} req/s"
        text += f"; {rates.mean():.2f} req/s were accepted at every offered rate"
    elif cv >= RULE["loose_cv"]:
        kind, observed = "rate", f"{rate:.2g} req/s"
    else:
        kind, observed = "request", f"{rate:.2g} req/s accepted, its kind cannot be told"
    return kind, observed, [clue("kind", 0.0, text, observed=cv, reference=RULE["steady_cv"], unit="ratio")]
