"""Where the time of a request went, told by the spans that the service sent: network, gateway, dependency, engine.

A pure function of a run. Spans are joined to requests by their trace id. Each span is put into a stage (patterns.toml
says by which attributes and names); an instant of a request belongs to the innermost span that covers it, and what no
span covers, between sending and the end of the answer, is `network`: the client's time minus the server's. So the
stages of a request add up to its time exactly, also where calls overlap.

Clocks. Spans bear the sender's wall clock, which may be off ours. One offset is estimated for each clock, such that
what must be so is so: a span begins no earlier than what called it, an answer's first byte comes after its span began,
and nothing was received before it ended. Where no offset is needed none is applied. The bounds are kept, and where
there is no such offset (a clock that drifts or steps), each span is moved into its caller alone, and that is said.

Stages: `network` client span minus server span, also between gateway and engine. `gateway` what stands before the
engine. `dependency` a call of something that is no model. `engine` the engine outside the following: reading the
request, tokenising, handing out. `queue`, `prefill`, `decode` inside the engine, as it tells.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import Stage
from pinchpoint.series import RunView
from pinchpoint.spans.clocks import SenderClock, set_clocks
from pinchpoint.spans.stages import STAGES, classify, spent_between, stretches, tells
from pinchpoint.spans.trace import MAX_REQUESTS, Request, Trace, answered, join

if TYPE_CHECKING:
    import pyarrow as pa

NAMED_DEPENDENCIES = 8


class StageTime(msgspec.Struct, frozen=True):
    """One stage over all traced requests. share_ratio: of the requests' whole time. first_token_*: of the time until
    the first token alone; None where no request streamed."""

    name: str
    median_s: float
    p95_s: float
    mean_s: float
    share_ratio: float
    first_token_median_s: float | None
    first_token_share_ratio: float | None


class Dependency(msgspec.Struct, frozen=True):
    """Calls of one name. requests: traced requests that made one. median_s, p95_s: of a call."""

    name: str
    calls: int
    requests: int
    median_s: float
    p95_s: float


class Breakdown(msgspec.Struct, frozen=True):
    """requests: answered ones of the stretch looked at. traced: those among them with spans. foreign_spans: of no
    request of this run. notes: sentences for people."""

    requests: int
    traced: int
    spans: int
    foreign_spans: int
    total_median_s: float | None
    first_token_median_s: float | None
    stages: tuple[StageTime, ...]
    clocks: tuple[SenderClock, ...]
    dependencies: tuple[Dependency, ...]
    notes: tuple[str, ...]


class RequestTimes(NamedTuple):
    """Per traced request, shape (n,): seconds in each stage of STAGES, in all and until the first token (NaN: none)."""

    request_id: np.ndarray
    total_s: np.ndarray
    first_token_s: np.ndarray
    stage_s: dict[str, np.ndarray]
    first_token_stage_s: dict[str, np.ndarray]


def breakdown(view: RunView, stage: Stage | None = None, spans: "pa.Table | None" = None) -> Breakdown | None:
    """Of the answered requests of a stage's steady part, or of the whole run; None where the run has no spans.

    spans: in place of those of the run, with the columns of model.SPAN_COLUMNS.
    """
    table = view.run.spans if spans is None else spans
    if not table.num_rows:
        return None
    requests = answered(view, stage)
    foreign = int(table.column("request_id").null_count)
    traces, clocks = _placed(table, requests)
    times = _request_times(traces)
    return Breakdown(
        requests=len(requests),
        traced=len(traces),
        spans=sum(len(trace.spans) for trace in traces),
        foreign_spans=foreign,
        total_median_s=_median(times.total_s),
        first_token_median_s=_median(times.first_token_s[np.isfinite(times.first_token_s)]),
        stages=_stage_times(times),
        clocks=clocks,
        dependencies=_dependencies(traces),
        notes=_notes(len(requests), traces, foreign, clocks),
    )


def request_times(view: RunView, spans: "pa.Table | None" = None) -> RequestTimes:
    """Of every traced request that was answered, in the order of their numbers; at most MAX_REQUESTS."""
    traces, _ = _placed(view.run.spans if spans is None else spans, answered(view, None))
    return _request_times(traces)


def _placed(table: "pa.Table", requests: Mapping[int, Request]) -> tuple[list[Trace], tuple[SenderClock, ...]]:
    """Traces whose spans have their stage and stand on our axis."""
    traces = join(table, requests)
    for trace in traces:
        classify(trace.spans)
    return traces, set_clocks(traces)


def _request_times(traces: Sequence[Trace]) -> RequestTimes:
    shape = len(traces)
    stage_s = {name: np.zeros(shape) for name in STAGES}
    first_s = {name: np.full(shape, np.nan) for name in STAGES}
    until_s = np.full(shape, np.nan)
    for i, trace in enumerate(traces):
        request = trace.request
        found = stretches(trace)
        for name, spent_ns in spent_between(found, request.sent_ns, request.end_ns).items():
            stage_s[name][i] = spent_ns / NS_PER_S
        if request.first_token_ns is not None:
            until_s[i] = (request.first_token_ns - request.sent_ns) / NS_PER_S
            spent = spent_between(found, request.sent_ns, request.first_token_ns)
            for name in STAGES:
                first_s[name][i] = spent.get(name, 0) / NS_PER_S
    numbers = np.array([trace.request.number for trace in traces], np.uint64)
    total_s = np.array([(t.request.end_ns - t.request.sent_ns) / NS_PER_S for t in traces], float)
    return RequestTimes(numbers, total_s, until_s, stage_s, first_s)


def _stage_times(times: RequestTimes) -> tuple[StageTime, ...]:
    """Stages in which some time was spent, in the order of STAGES."""
    told: list[StageTime] = []
    streamed = np.isfinite(times.first_token_s)
    whole_s, until_s = float(times.total_s.sum()), float(times.first_token_s[streamed].sum())
    for name in STAGES:
        spent, first = times.stage_s[name], times.first_token_stage_s[name][streamed]
        if not spent.any():
            continue
        told.append(
            StageTime(
                name=name,
                median_s=float(np.median(spent)),
                p95_s=float(np.quantile(spent, 0.95)),
                mean_s=float(spent.mean()),
                share_ratio=float(spent.sum()) / whole_s if whole_s else 0.0,
                first_token_median_s=float(np.median(first)) if len(first) else None,
                first_token_share_ratio=float(first.sum()) / until_s if until_s else None,
            )
        )
    return tuple(told)


def _dependencies(traces: Sequence[Trace]) -> tuple[Dependency, ...]:
    """The outermost calls, those that took longest in all first."""
    calls: dict[str, list[tuple[int, float]]] = {}
    for trace in traces:
        for span in trace.spans:
            if span.stage == "dependency" and (span.parent is None or span.parent.stage != "dependency"):
                length_s = (span.end - span.start) / NS_PER_S
                calls.setdefault(span.name, []).append((trace.request.number, length_s))
    told = [
        Dependency(
            name=name,
            calls=len(each),
            requests=len({number for number, _ in each}),
            median_s=float(np.median([length_s for _, length_s in each])),
            p95_s=float(np.quantile([length_s for _, length_s in each], 0.95)),
        )
        for name, each in calls.items()
    ]
    return tuple(sorted(told, key=lambda one: -one.calls * one.median_s)[:NAMED_DEPENDENCIES])


def _notes(answered: int, traces: Sequence[Trace], foreign: int, clocks: Sequence[SenderClock]) -> tuple[str, ...]:
    notes: list[str] = []
    if not traces:
        notes.append(
            f"{foreign} spans were received and none is of a request of this run; let requests carry a traceparent "
            "(--trace-requests), and whatever stands before the engine hand it on"
        )
    elif len(traces) < min(answered, MAX_REQUESTS):
        notes.append(
            f"{answered - len(traces)} of {answered} answered requests have no spans; the service samples or lost them"
        )
    notes += [
        f"the clock of {_called(one)} cannot be brought to agree with ours; its spans were moved into their callers "
        "one by one, so what lies between them is not exact"
        for one in clocks
        if one.offset_s is None
    ]
    stages = {span.stage for trace in traces for span in trace.spans}
    if traces and not stages & {"queue", "prefill", "decode"} and not any(map(_told_by_engine, traces)):
        notes.append(
            "no engine tells its queue, prefill and decode; turn on its own traces (vLLM: --otlp-traces-endpoint)"
        )
    return tuple(notes)


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _called(clock: SenderClock) -> str:
    return " on ".join(filter(None, (clock.service, clock.instance))) or "a sender without a name"


def _told_by_engine(trace: Trace) -> bool:
    return any(tells(span, "queue", "prefill", "decode") for span in trace.spans)
