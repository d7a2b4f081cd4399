"""Was the load what the plan declared, and is there enough of it? The second half of `check`.

A service that answers shorter than asked, or from its prefix cache, is measured on an easier job than the one named in
the report; a stage that still drifts, or is too short, gives a capacity that the next run will not repeat.
"""

from collections.abc import Callable

import numpy as np

from pinchpoint.diagnose.features import Features
from pinchpoint.model import ValidityReason
from pinchpoint.stats import is_stationary

OUTPUT_REPORTED_RATIO = 0.02
OUTPUT_SUSPECT_RATIO = 0.1
"""Lengths within 2 % of the plan are the same workload; a tenth fewer tokens is a tenth less decoding."""
INPUT_SUSPECT_RATIO = 0.25
"""A chat template that nobody could count is a few dozen tokens, a fifth of a short prompt. More is
another workload."""
CACHED_REPORTED_RATIO = 0.02
CACHED_SUSPECT_RATIO = 0.1
"""A chat template shared by all prompts explains a few per cent of cached tokens; more means repeated prompts."""
COALESCED_SUSPECT_RATIO = 0.2
EXPECTED_BEYOND_QUANTILE = 2


def steady_state(features: Features) -> ValidityReason:
    """Whether the highest stage that passed had settled. A failing stage may drift: its queue grows."""
    stage = features.last_pass
    if stage is None:
        return ValidityReason("steady-state", "unknown", "no stage passed, so there is none to be steady")
    r = features.view.requests
    latency_s = r.ttft_s if np.isfinite(r.ttft_s).any() else r.e2e_s
    values = latency_s[features.requests_in(stage)]
    values = values[np.isfinite(values)]
    name = f"the stage at {stage.offered_rps:.3g} req/s that carries the capacity"
    if len(values) < 6:  # is_stationary needs three in each half
        return ValidityReason("steady-state", "unknown", f"{name} has too few answers to tell whether it was steady")
    if is_stationary(values.tolist()):
        return ValidityReason("steady-state", "ok", f"{name} was steady: its second half looks like its first")
    return ValidityReason(
        "steady-state", "suspect", f"latency still drifted in {name}; a longer stage (--budget) may lower the capacity"
    )


def sample_size(features: Features) -> ValidityReason:
    """Requests in the stages at the ends of the capacity interval, against what the SLOs' percentiles need."""
    ends = [s for s in (features.last_pass, features.first_fail) if s is not None]
    # An error SLO is a share, not a percentile: the capacity's own test says how sure it is.
    ratios = [slo.attainment_ratio for slo in features.slos if slo.metric != "errors"]
    if not ends or not ratios:
        return ValidityReason("sample-size", "unknown", "no stage or no SLO to count requests for")
    needed = int(np.ceil(EXPECTED_BEYOND_QUANTILE / (1 - max(ratios)) - 1e-9))
    passing = features.last_pass
    if passing is None:
        return ValidityReason("sample-size", "ok", f"{ends[0].requests} requests in the lowest stage that failed")
    rate_rps = passing.stage.rate_rps
    # Stages at one rate are judged together, so they count together.
    counted = sum(s.requests for s in features.tested if s is passing or (rate_rps and s.stage.rate_rps == rate_rps))
    level = "suspect" if counted < needed else "ok"
    text = f"{counted} requests at the highest rate that passed"
    text += f"; its percentile needs {needed} to mean anything" if level == "suspect" else f", {needed} needed"
    return ValidityReason("sample-size", level, text, float(counted), float(needed), "requests")


def coalesced(features: Features) -> ValidityReason:
    """Events that shared a read with a later one have an upper bound as their stamp; only gaps between tokens mind."""
    r = features.view.requests
    events = float(np.nansum(r.chunks))
    if not events:
        return ValidityReason("coalesced", "unknown", "no text-carrying event was received")
    share = float(np.nansum(r.coalesced_count)) / events
    itl = any(slo.metric == "itl" for slo in features.slos)
    suspect = share > COALESCED_SUSPECT_RATIO and itl
    text = f"{share:.1%} of {events:.0f} events arrived together with a later one"
    text += "; gaps between tokens are blurred" if suspect else ""
    return ValidityReason(
        "coalesced", "suspect" if suspect else "ok", text, share, COALESCED_SUSPECT_RATIO if itl else None, "ratio"
    )


def output_tokens(features: Features) -> ValidityReason:
    r = features.view.requests
    known = (r.status == "ok") & np.isfinite(r.output_tokens) & (r.requested_output_tokens > 0)
    if not known.any():
        return ValidityReason("output-tokens", "unknown", "no answer says how many tokens it has")
    ratio = float(r.output_tokens[known].sum() / r.requested_output_tokens[known].sum())
    off = abs(ratio - 1)
    text = f"answers had {ratio:.1%} of the output tokens asked for"
    if off > OUTPUT_REPORTED_RATIO:
        text += " (early end of text); the capacity holds for the shorter answers" if ratio < 1 else ""
    level = "suspect" if off > OUTPUT_SUSPECT_RATIO else "ok"
    return ValidityReason("output-tokens", level, text, ratio, 1 - OUTPUT_SUSPECT_RATIO, "ratio")


def input_tokens(features: Features) -> ValidityReason:
    """Whether prompts had the length that was planned, by the service's own count."""
    r = features.view.requests
    known = (r.status == "ok") & np.isfinite(r.input_tokens) & (r.requested_input_tokens > 0)
    if not known.any():
        return ValidityReason("input-tokens", "unknown", "no answer says how many tokens its prompt had")
    ratio = float(r.input_tokens[known].sum() / r.requested_input_tokens[known].sum())
    level = "suspect" if abs(ratio - 1) > INPUT_SUSPECT_RATIO else "ok"
    text = f"prompts had {ratio:.1%} of the input tokens planned"
    if level == "suspect":
        text += ", by the service's count; the load is another than the one named"
    return ValidityReason("input-tokens", level, text, ratio, INPUT_SUSPECT_RATIO, "ratio")


def prefix_cache(features: Features) -> ValidityReason:
    """Share of prompt tokens that came from the engine's cache although they are meant to be unique.

    What requests share by design (template, system prompt, shared beginnings, history) is left out.
    """
    r = features.view.requests
    known = np.isfinite(r.cached_tokens) & np.isfinite(r.input_tokens) & (r.status == "ok")
    share: float | None = None
    if known.any() and r.input_tokens[known].sum() > 0:
        shared = np.maximum(r.shared_input_tokens[known], features.facts.prompt_overhead_tokens or 0.0)
        repeated = np.maximum(r.cached_tokens[known] - shared, 0.0)
        share = float(repeated.sum() / r.input_tokens[known].sum())
        where = "the usage of the answers"
        where += f", beyond {shared.mean():.0f} per request that are shared by design" if shared.any() else ""
    else:
        whole = (-np.inf, np.inf)
        hits = features.view.increase("engine.prefix_hit_tokens_total", whole)
        queries = features.view.increase("engine.prefix_query_tokens_total", whole)
        share = hits / queries if hits is not None and queries else None
        where = "the engine's prefix-cache counters"
    if share is None:
        return ValidityReason("prefix-cache", "unknown", "neither the answers nor the engine tell about cached tokens")
    text = f"{share:.1%} of the prompt tokens came from the prefix cache, by {where}"
    level = "suspect" if share > CACHED_SUSPECT_RATIO else "ok"
    if share > CACHED_REPORTED_RATIO:
        text += "; prompts that real users do not repeat will cost more prefill than was measured"
    return ValidityReason("prefix-cache", level, text, share, CACHED_SUSPECT_RATIO, "ratio")


WORKLOAD_CHECKS: tuple[Callable[[Features], ValidityReason], ...] = (
    steady_state,
    sample_size,
    coalesced,
    input_tokens,
    output_tokens,
    prefix_cache,
)
