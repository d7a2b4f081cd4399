"""The numbers of a plain load, from its run directory alone. Pure: a view in, a LoadResult out.

What counts. A latency that ends with the first token counts for every request that got one, whatever became of it
later; all others count for completed requests only. `_s` latencies begin at the instant at which the request was due,
so that a load generator or a service that falls behind shows; `_from_send_s` begin when it went to the network.

    ttft_s, ttft_from_send_s   to the first token
    e2e_s, e2e_from_send_s     to the end of the answer
    tpot_s                     (last token - first token) / (output tokens - 1), one value for each request
    itl_s                      gaps between events that carried text, all gaps of all requests (see gaps.py)
    send_lag_s                 from due to sent
    output_tokens_per_s        pace of one answer: tokens after those of the first event / (last token - first token)

A percentile is None with fewer than two expected values beyond it, an interval where none of 95 % exists. Intervals
allow for requests, and tokens of one request, that share their fate.
"""

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.gaps import GapDigest, digest_gaps
from pinchpoint.model import ERROR_STATUSES, STATUSES, Stage
from pinchpoint.outcomes import LOAD_KINDS, Outcomes, read_outcomes
from pinchpoint.series import RunView
from pinchpoint.stats import MIN_COUNT_FOR_QUANTILE, dependent_quantile_intervals, mean_interval, quantile
from pinchpoint.units import counted

LEVELS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
FAILURES = (*ERROR_STATUSES, "timeout")
_FAILED = np.array([status in FAILURES for status in STATUSES])
ERROR_BOUND_LEVEL = 0.99
MULTI_TOKEN_RATIO = 1.05
"""With more tokens in an event than that on average, gaps between events are not gaps between tokens."""


class Metric(msgspec.Struct, frozen=True):
    """One quantity. Seconds, but for output_tokens_per_s."""

    n: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    min: float | None = None
    max: float | None = None
    mean_interval: tuple[float, float] | None = None
    intervals: dict[str, tuple[float, float] | None] = {}
    """p50 ... p999 -> 95 % interval."""
    error_bound: float | None = None
    """99 of 100 values are off by no more than this because of how instants were stamped; None: not known."""


class RetryAfter(msgspec.Struct, frozen=True):
    """What rejections said about when to come back, in seconds; n of them said something."""

    n: int
    min_s: float | None
    mean_s: float | None
    max_s: float | None


class Tokens(msgspec.Struct, frozen=True):
    """Sums over completed requests; None where no answer told. Rates are from the first due instant to the last end."""

    input: int | None
    output: int | None
    cached: int | None
    reasoning: int | None
    output_counted_by_service_ratio: float | None
    """Share of the completed requests whose output the service counted; the rest is events that were received."""
    input_tokens_per_s: float | None
    output_tokens_per_s: float | None


class Tally(msgspec.Struct, frozen=True):
    """Counts and metrics of one set of requests."""

    offered: int
    """Due, whether or not anything became of them."""
    issued: int
    completed: int
    errors: dict[str, int]
    """Kind -> requests: the status, and for a transport error or a timeout what it was waiting for."""
    rejected: int
    retry_after: RetryAfter
    attempts: int
    retries: int
    """Attempts beyond the first of each request."""
    dropped: int
    abandoned: int
    cancelled: int
    lost: int
    """Offered, without a record."""
    achieved_rate_rps: float | None
    """Sent per second, from the first due instant to the end of the stage, or to the last send when that is later."""
    completed_rate_rps: float | None
    """Completed per second, from the first due instant to the last end."""
    tokens: Tokens
    metrics: dict[str, Metric]

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


class StageLoad(msgspec.Struct, frozen=True):
    """One stage of the load."""

    index: int
    name: str
    kind: str
    rate_rps: float | None
    concurrency: int | None
    arrivals: str
    profile: str
    duration_s: float
    tally: Tally


class Attainment(msgspec.Struct, frozen=True):
    """How one SLO was kept: `met` of `counted` requests, of which a share of required_ratio must."""

    slo: str
    met: int
    counted: int
    required_ratio: float

    @property
    def kept(self) -> bool | None:
        """None: no request counts for it."""
        return self.met >= self.required_ratio * self.counted if self.counted else None


class ClassLoad(msgspec.Struct, frozen=True):
    """The requests of one class, of all stages."""

    name: str
    tally: Tally
    slos: tuple[Attainment, ...]
    """Those of this class alone."""


class WorkerShare(msgspec.Struct, frozen=True):
    """What one load process did."""

    worker: int
    issued: int
    completed: int
    send_lag_p50_s: float | None
    send_lag_p99_s: float | None


class LoadResult(msgspec.Struct, frozen=True):
    total: Tally
    stages: tuple[StageLoad, ...]
    slos: tuple[Attainment, ...]
    """Those over all requests."""
    classes: tuple[ClassLoad, ...]
    """In the order of the plan; empty where there is one class."""
    backends: dict[str, Tally]
    """Number of the base URL, in the order of the plan -> its requests; empty with a single one. A request that was
    never sent belongs to none."""
    workers: tuple[WorkerShare, ...]
    error_samples: dict[str, tuple[str, ...]]
    """Kind -> up to three distinct texts. They may come from the service: print them through report.literal."""
    duration_s: float
    """Of the issue of requests, all stages together."""
    notes: tuple[str, ...]


def measure(view: RunView, outcomes: Outcomes | None = None) -> LoadResult:
    """outcomes: those of `read_outcomes(view)`, when the caller has them. Raises RunFormatError for a damaged run."""
    o = read_outcomes(view) if outcomes is None else outcomes
    numbers = {stage.index: i for i, stage in enumerate(o.stages)}
    ok = o.ok
    group = np.array([numbers[index] for index in o.stage[ok].tolist()], int)
    gaps = digest_gaps(view.run, o.request_id[ok], group, len(o.stages), tuple(LEVELS.values()))
    everything = np.ones(len(o), bool)
    total = _tally(o, view, everything, o.stages, len(o.lost_stage), gaps[-1])
    stages = tuple(
        StageLoad(
            index=stage.index,
            name=stage.name,
            kind=stage.kind,
            rate_rps=stage.rate_rps,
            concurrency=stage.concurrency,
            arrivals=stage.arrivals,
            profile=stage.profile,
            duration_s=(stage.t1_ns - stage.t0_ns) / NS_PER_S,
            tally=_tally(o, view, o.stage == stage.index, (stage,), int((o.lost_stage == stage.index).sum()), gaps[i])
            if len(o.stages) > 1
            else total,
        )
        for i, stage in enumerate(o.stages)
    )
    return LoadResult(
        total=total,
        stages=stages,
        slos=_attainments(view, None),
        classes=_classes(o, view),
        backends=_backends(o, view),
        workers=tuple(_worker(o, int(worker)) for worker in np.unique(o.worker)),
        error_samples={kind: o.error_samples[kind] for kind in total.errors if kind in o.error_samples},
        duration_s=sum(stage.t1_ns - stage.t0_ns for stage in o.stages) / NS_PER_S,
        notes=_notes(o, view, total),
    )


def _tally(
    o: Outcomes, view: RunView, mask: np.ndarray, stages: tuple[Stage, ...], lost: int, gaps: GapDigest
) -> Tally:
    sent = mask & np.isfinite(o.sent_s)
    ok = mask & o.ok
    by_kind = np.bincount(o.kind[mask & _FAILED[o.status]], minlength=len(o.kinds))
    retry_after_s = o.retry_after_s[mask & (o.status == STATUSES.index("rejected")) & np.isfinite(o.retry_after_s)]
    attempts = int(np.nan_to_num(o.attempts[sent], nan=1.0).sum())

    def count(status: str) -> int:
        return int((mask & (o.status == STATUSES.index(status))).sum())

    def span_s(of: np.ndarray, instants_s: np.ndarray, *, at_least_s: bool) -> float:
        """From the first due instant of each stage to its last such event, summed over stages; gaps between stages
        belong to none."""
        total_s = 0.0
        for stage in stages:
            mine = of & (o.stage == stage.index) & np.isfinite(instants_s)
            start_s = (stage.t0_ns - view.t0_ns) / NS_PER_S
            end_s = max(float(instants_s[mine].max()) if mine.any() else start_s, start_s)
            total_s += max(end_s, (stage.t1_ns - view.t0_ns) / NS_PER_S if at_least_s else end_s) - start_s
        return total_s

    issue_s = span_s(sent, o.sent_s, at_least_s=True)
    answer_s = span_s(ok, o.end_s, at_least_s=False)
    issued, completed = int(sent.sum()), int(ok.sum())
    return Tally(
        offered=int(mask.sum()) + lost,
        issued=issued,
        completed=completed,
        errors={o.kinds[i]: int(n) for i, n in sorted(enumerate(by_kind), key=lambda item: -item[1]) if n},
        rejected=count("rejected"),
        retry_after=RetryAfter(len(retry_after_s), *_extent(retry_after_s)),
        attempts=attempts,
        retries=max(0, attempts - issued),
        dropped=count("dropped"),
        abandoned=count("abandoned"),
        cancelled=count("cancelled"),
        lost=lost,
        achieved_rate_rps=issued / issue_s if issue_s > 0 else None,
        completed_rate_rps=completed / answer_s if answer_s > 0 else None,
        tokens=_tokens(o, ok, answer_s),
        metrics=_metrics(o, mask, gaps),
    )


def _extent(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    return (float(values.min()), float(values.mean()), float(values.max())) if len(values) else (None, None, None)


def _tokens(o: Outcomes, ok: np.ndarray, answer_s: float) -> Tokens:
    def total(column: np.ndarray) -> int | None:
        known = column[ok & np.isfinite(column)]
        return int(known.sum()) if len(known) else None

    def rate(tokens: int | None) -> float | None:
        return tokens / answer_s if tokens is not None and answer_s > 0 else None

    prompt, output = total(o.input_tokens), total(o.output_tokens)
    return Tokens(
        input=prompt,
        output=output,
        cached=total(o.cached_tokens),
        reasoning=total(o.reasoning_tokens),
        output_counted_by_service_ratio=float(o.counted_by_service[ok].mean()) if ok.any() else None,
        input_tokens_per_s=rate(prompt),
        output_tokens_per_s=rate(output),
    )


def _metrics(o: Outcomes, mask: np.ndarray, gaps: GapDigest) -> dict[str, Metric]:
    ok = mask & o.ok
    stream_s = o.last_token_s - o.first_token_s
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot_s = np.where(o.output_tokens > 1, stream_s / (o.output_tokens - 1), np.nan)
        later = o.output_tokens - o.first_tokens
        pace = np.where((later >= 1) & (stream_s > 0), later / stream_s, np.nan)
        tpot_error_s = o.timestamp_error_s / (o.output_tokens - 1)
        pace_error = pace * o.timestamp_error_s / stream_s
    stamp_s = o.timestamp_error_s
    return {
        "ttft_s": _metric(o.first_token_s - o.scheduled_s, mask, stamp_s),
        "ttft_from_send_s": _metric(o.first_token_s - o.sent_s, mask, stamp_s),
        "tpot_s": _metric(tpot_s, ok, tpot_error_s),
        "itl_s": _gap_metric(gaps, _bound(o.chunk_error_s[ok])),
        "e2e_s": _metric(o.end_s - o.scheduled_s, ok, stamp_s),
        "e2e_from_send_s": _metric(o.end_s - o.sent_s, ok, stamp_s),
        "send_lag_s": _metric(o.sent_s - o.scheduled_s, mask, None),
        "output_tokens_per_s": _metric(pace, ok, pace_error),
    }


def _metric(values: np.ndarray, mask: np.ndarray, error: np.ndarray | None) -> Metric:
    """values in the order of the scheduled instants."""
    used = mask & np.isfinite(values)
    values = values[used]
    if not len(values):
        return Metric(0)
    quantiles = {name: quantile(values, q) for name, q in LEVELS.items()}
    intervals = dict(zip(LEVELS, dependent_quantile_intervals(values, tuple(LEVELS.values())), strict=True))
    return Metric(
        n=len(values),
        mean=float(values.mean()),
        **quantiles,
        min=float(values.min()),
        max=float(values.max()),
        mean_interval=_not_negative(mean_interval(values)),
        intervals={name: intervals[name] if quantiles[name] is not None else None for name in LEVELS},
        error_bound=None if error is None else _bound(error[used]),
    )


def _gap_metric(gaps: GapDigest, error_bound: float | None) -> Metric:
    histogram = gaps.histogram
    if not histogram.n:
        return Metric(0)
    quantiles = {
        name: histogram.quantile(q) if histogram.n >= MIN_COUNT_FOR_QUANTILE[q] else None for name, q in LEVELS.items()
    }
    return Metric(
        n=histogram.n,
        mean=histogram.mean,
        **quantiles,
        min=histogram.min,
        max=histogram.max,
        mean_interval=_not_negative(gaps.mean_interval),
        intervals={name: gaps.intervals.get(q) if quantiles[name] is not None else None for name, q in LEVELS.items()},
        error_bound=error_bound,
    )


def _not_negative(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """None of the quantities can be below 0, though the normal approximation of a mean may reach there."""
    return None if interval is None else (max(interval[0], 0.0), interval[1])


def _bound(error: np.ndarray) -> float | None:
    known = error[np.isfinite(error)]
    return float(np.quantile(known, ERROR_BOUND_LEVEL)) if len(known) else None


def _classes(o: Outcomes, view: RunView) -> tuple[ClassLoad, ...]:
    names = view.manifest.classes
    if len(names) < 2:
        return ()
    used = o.ok & np.isfinite(o.class_id)
    group = o.class_id[used].astype(int)
    gaps = digest_gaps(view.run, o.request_id[used], group, len(names), tuple(LEVELS.values()))
    lost = dict(zip(*(each.tolist() for each in np.unique(o.lost_class_id, return_counts=True)), strict=True))
    return tuple(
        ClassLoad(name, _tally(o, view, o.of_class(i), o.stages, lost.get(i, 0), gaps[i]), _attainments(view, name))
        for i, name in enumerate(names)
        if o.of_class(i).any() or lost.get(i)
    )


def _attainments(view: RunView, scope: str | None) -> tuple[Attainment, ...]:
    """Over the requests of the load stages. scope: None: of all requests, and where there is one class its own, too."""
    alone = len(view.manifest.classes) < 2
    slos = [slo for slo in view.manifest.slos if slo.scope == scope or alone]
    if not slos:
        return ()
    loaded = np.isin(view.requests.stage, [stage.index for stage in view.stages_of(*LOAD_KINDS)])
    found = []
    for slo in slos:
        met, counts = view.requests.outcomes(slo)
        found.append(
            Attainment(slo.text, int((met & counts & loaded).sum()), int((counts & loaded).sum()), slo.attainment_ratio)
        )
    return tuple(found)


def _backends(o: Outcomes, view: RunView) -> dict[str, Tally]:
    known = np.unique(o.backend[np.isfinite(o.backend)])
    if len(known) < 2:
        return {}
    group = np.searchsorted(known, o.backend)
    used = o.ok & np.isfinite(o.backend)
    gaps = digest_gaps(view.run, o.request_id[used], group[used], len(known), tuple(LEVELS.values()))
    return {
        str(int(backend)): _tally(o, view, o.backend == backend, o.stages, 0, gaps[i])
        for i, backend in enumerate(known)
    }


def _worker(o: Outcomes, worker: int) -> WorkerShare:
    mine = o.worker == worker
    lag_s = (o.sent_s - o.scheduled_s)[mine & np.isfinite(o.sent_s)]
    return WorkerShare(
        worker, len(lag_s), int((mine & o.ok).sum()), quantile(lag_s, LEVELS["p50"]), quantile(lag_s, LEVELS["p99"])
    )


def _notes(o: Outcomes, view: RunView, total: Tally) -> tuple[str, ...]:
    dead = [event for event in view.run.events() if event.get("kind") == "worker-lost"]
    notes = list(view.run.problems)
    if dead and any(stage.concurrency is not None for stage in o.stages):
        notes.append(f"load processes that died: {len(dead)}; what they held of a closed loop is not counted as lost")
    if view.manifest.status != "complete":
        notes.append(f"the run stopped early: {view.manifest.abort_reason or 'it was never sealed'}")
    if not o.stages:
        notes.append("the run has no load stage, so nothing was measured")
    if total.cancelled:
        notes.append(
            f"{counted(total.cancelled, 'request')} withdrawn at the end, before the answer was whole: long answers "
            "are missing from the end-to-end latencies"
        )
    if total.abandoned:
        notes.append(f"{counted(total.abandoned, 'user')} gave up: how long the answer would have taken is not known")
    timeouts = sum(n for kind, n in total.errors.items() if kind.startswith("timeout"))
    if timeouts:
        notes.append(f"{counted(timeouts, 'request')} ran into a timeout: with all requests the percentiles are higher")
    if total.completed and not total.metrics["ttft_s"].n:
        notes.append("answers came whole and not as a stream, so there is no time to the first token and no gap")
    events = total.metrics["itl_s"].n + int((o.ok & np.isfinite(o.first_token_s)).sum())
    if total.tokens.output and events and total.tokens.output > MULTI_TOKEN_RATIO * events:
        notes.append(
            f"{total.tokens.output / events:.1f} tokens were counted for each event that carried text: itl_s is the "
            "gap between events, tpot_s the time for each token"
        )
    return tuple(notes)
