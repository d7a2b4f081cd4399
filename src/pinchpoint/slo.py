"""The SLO language: `ttft p99 < 500ms`, `tpot p95 < 50ms`, `errors < 1%`; `chat: ttft p99 < 500ms` for one class.

An SLO is a share of requests that must satisfy a limit, because only that can be tested request by request while the
load runs. "p99 < 500ms" therefore reads: at least 99 % of the requests stay below 500 ms. Percentiles of means or
averages over time are not in the language.

A request that failed counts in `errors`; latency SLOs are judged over the requests that did not fail, except that a
timeout misses them too. Requests withdrawn by us before their limit had passed count nowhere.
"""

import re

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.model import ERROR_STATUSES, Slo
from pinchpoint.units import format_duration, parse_duration_s, parse_ratio, significant

LATENCY_METRICS = ("ttft", "tpot", "itl", "e2e")
_LATENCY = re.compile(r"(ttft|tpot|itl|e2e)\s+p([0-9]{1,2}(?:\.[0-9]+)?)\s*<=?\s*(\S.*)", re.IGNORECASE)
_ERRORS = re.compile(r"errors?\s*<=?\s*(\S.*)", re.IGNORECASE)
_SCOPED = re.compile(r"([^:<]+):\s*(\S.*)")
_HELP = "write for example 'ttft p99 < 500ms', 'tpot p95 < 50ms', 'e2e p95 < 8s' or 'errors < 1%'"


def latency_slo(metric: str, percentile: float, limit_s: float) -> Slo:
    text = f"{metric} p{significant(percentile, 4)} < {format_duration(limit_s).replace(' ', '')}"
    return Slo(metric, percentile / 100, limit_s, text)  # pyright: ignore[reportArgumentType]


def error_slo(limit_ratio: float) -> Slo:
    return Slo("errors", 1 - limit_ratio, limit_ratio, f"errors < {significant(limit_ratio * 100)}%")


def parse_slo(text: str) -> Slo:
    """One SLO. Raises UsageError saying what is wrong with it."""
    stripped = text.strip()
    if match := _SCOPED.fullmatch(stripped):
        return scoped(parse_slo(match[2]), match[1].strip())
    if match := _LATENCY.fullmatch(stripped):
        percentile = float(match[2])
        if not 0 < percentile < 100:
            raise UsageError(f"SLO {text!r}: p{match[2]} is not a percentile; use p50 to p99.9")
        try:
            limit_s = parse_duration_s(match[3])
        except UsageError as error:
            raise UsageError(f"SLO {text!r}: {error}") from None
        if limit_s <= 0:
            raise UsageError(f"SLO {text!r}: the limit must be above 0")
        return latency_slo(match[1].lower(), percentile, limit_s)
    if match := _ERRORS.fullmatch(stripped):
        try:
            ratio = parse_ratio(match[1])
        except UsageError as error:
            raise UsageError(f"SLO {text!r}: {error}") from None
        if not 0 < ratio < 1:
            raise UsageError(f"SLO {text!r}: the share must be above 0 and below 100%")
        return error_slo(ratio)
    raise UsageError(f"{text!r} is not an SLO; {_HELP}")


def scoped(slo: Slo, scope: str) -> Slo:
    """The same promise for the requests of one class. Raises UsageError for one that has a class already."""
    if slo.scope is not None:
        raise UsageError(f"SLO {slo.text!r} names a class of its own; leave out the class {scope!r} or {slo.scope!r}")
    return msgspec.structs.replace(slo, scope=scope, text=f"{scope}: {slo.text}")


def parse_slos(texts: list[str] | tuple[str, ...]) -> tuple[Slo, ...]:
    """All SLOs, with `errors < 1%` added when none speaks of the errors of all requests: a failed answer is never a
    success."""
    return with_errors(tuple(parse_slo(text) for text in texts))


def with_errors(slos: tuple[Slo, ...]) -> tuple[Slo, ...]:
    """Raises UsageError for two SLOs that speak of the same; adds `errors < 1%` where it is missing."""
    seen: set[str] = set()
    for slo in slos:
        key = f"{slo.scope or ''}: {slo.metric} {slo.attainment_ratio if slo.metric != 'errors' else ''}"
        if key in seen:
            raise UsageError(f"two SLOs for the same percentile ({slo.text}); keep one")
        seen.add(key)
    if slos and not any(slo.metric == "errors" and slo.scope is None for slo in slos):
        slos += (error_slo(DEFAULT_ERROR_LIMIT_RATIO),)
    return slos


WITHDRAWN_STATUSES = ("cancelled", "abandoned")
"""Ended by us before the answer was: they count only once their limit had passed (surely_missed)."""
NOT_ANSWERED_STATUSES = (*WITHDRAWN_STATUSES, "dropped")
"""Ours, and no failures of the service."""
DEFAULT_ERROR_LIMIT_RATIO = 0.01
DEFAULT_PERCENTILE = 95.0
"""p95: 59 requests without a miss support it at 95 % confidence; p99 needs 299, beyond a few minutes at low rates."""
DEFAULT_TTFT_FACTOR = 4.0
DEFAULT_TTFT_FLOOR_S = 0.5
"""MLPerf's limit for an interactive 8B model (llama3.1-8b interactive: TTFT 500 ms)."""
DEFAULT_TPOT_FACTOR = 2.5
DEFAULT_TPOT_FLOOR_S = 0.03
"""MLPerf's limit for an interactive 8B model (TPOT 30 ms), several times reading speed."""
DEFAULT_E2E_FACTOR = 4.0


def derive_slos(ttft_s: float | None, tpot_s: float | None, e2e_s: float | None) -> tuple[Slo, ...]:
    """Defaults from the median latency of the unloaded service; None = not observed (service does not stream).

    A multiple of the unloaded latency, because that is what a user of the idle service got used to; the floors keep a
    very fast service from being failed for delays that nobody can see. The factors are conventions, printed with the
    SLOs they lead to, and `--slo` replaces them.
    """

    def neat_s(value_s: float) -> float:
        return float(significant(value_s, 2))

    slos: list[Slo] = []
    if ttft_s is not None:
        limit_s = neat_s(max(DEFAULT_TTFT_FLOOR_S, DEFAULT_TTFT_FACTOR * ttft_s))
        slos.append(latency_slo("ttft", DEFAULT_PERCENTILE, limit_s))
    if tpot_s is not None:
        limit_s = neat_s(max(DEFAULT_TPOT_FLOOR_S, DEFAULT_TPOT_FACTOR * tpot_s))
        slos.append(latency_slo("tpot", DEFAULT_PERCENTILE, limit_s))
    if not slos and e2e_s is not None:
        slos.append(latency_slo("e2e", DEFAULT_PERCENTILE, neat_s(DEFAULT_E2E_FACTOR * e2e_s)))
    slos.append(error_slo(DEFAULT_ERROR_LIMIT_RATIO))
    return tuple(slos)


def request_meets(
    slo: Slo, *, status: str, ttft_s: float | None, tpot_s: float | None, e2e_s: float | None, itl_max_s: float | None
) -> bool | None:
    """Whether one ended request meets one SLO; None when the request does not count for it.

    tpot and itl are None for answers of a single token and then do not count. An itl SLO holds for a request when its
    longest gap does.
    """
    if status in NOT_ANSWERED_STATUSES:
        return None
    if slo.metric == "errors":
        return status == "ok"
    if status in ERROR_STATUSES:
        return None
    if status == "timeout":
        return False
    value_s = {"ttft": ttft_s, "tpot": tpot_s, "e2e": e2e_s, "itl": itl_max_s}[slo.metric]
    return None if value_s is None else value_s < slo.limit


def surely_missed(
    slo: Slo,
    *,
    age_s: float,
    has_first_byte: bool,
    since_first_token_s: float | None,
    max_output_tokens: int,
) -> bool:
    """Whether a request that has not ended has already missed `slo`, whatever comes.

    Sound bounds only. TTFT: a first token that came after the limit is a miss, whatever became of the request later;
    no byte of the answer by the limit means no token either. TPOT: the last token is still to
    come and there are at most `max_output_tokens` of them, so the mean gap is at least the time since the first token
    divided by that many gaps.
    """
    if slo.metric == "ttft":
        if since_first_token_s is not None:
            return age_s - since_first_token_s >= slo.limit
        return not has_first_byte and age_s >= slo.limit
    if slo.metric == "tpot":
        gaps = max(max_output_tokens - 1, 1)
        return since_first_token_s is not None and since_first_token_s / gaps >= slo.limit
    if slo.metric == "e2e":
        return age_s >= slo.limit
    return False
