"""Spans of one request, joined to it and linked to their callers."""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import Stage
from pinchpoint.series import RunView

if TYPE_CHECKING:
    import pyarrow as pa

MAX_REQUESTS = 20_000
"""Evenly spaced among those that were traced: their times are as good as all, and take a few seconds."""
MAX_SPANS_OF_REQUEST = 300


class Request(NamedTuple):
    """Instants in ns of our axis. first_token_ns, first_byte_ns: None where there is none."""

    number: int
    sent_ns: int
    first_byte_ns: int | None
    first_token_ns: int | None
    end_ns: int


class Span:
    """One span of a request; start and end move with its clock."""

    __slots__ = (
        "attributes",
        "clock",
        "end",
        "kind",
        "name",
        "parent",
        "parent_id",
        "received",
        "span_id",
        "stage",
        "start",
    )

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.span_id: str = row["span_id"]
        self.parent_id: str | None = row["parent_id"]
        self.name: str = row["name"]
        self.kind: str = row["kind"]
        self.clock: tuple[str, str] = (row["service"], row["instance"])
        self.start: int = row["start_ns"]
        self.end: int = row["end_ns"]
        self.received: int | None = row["received_ns"]
        self.attributes = _attributes(row["attributes_json"])
        self.parent: Span | None = None
        self.stage = ""


class Trace(NamedTuple):
    request: Request
    spans: list[Span]
    """Callers before what they called."""


def answered(view: RunView, stage: Stage | None) -> dict[int, Request]:
    """Answered requests by number: of the steady part of a stage, or of the run."""
    r = view.requests
    mask = (r.status == "ok") & np.isfinite(r.sent_s) & np.isfinite(r.end_s)
    if stage is not None:
        mask &= view.select(stage)

    def instant(seconds: float) -> int | None:
        return view.t0_ns + round(seconds * NS_PER_S) if math.isfinite(seconds) else None

    found: dict[int, Request] = {}
    for i in np.flatnonzero(mask):
        sent_ns, end_ns = instant(r.sent_s[i]), instant(r.end_s[i])
        assert sent_ns is not None and end_ns is not None
        number = int(r.request_id[i])
        found[number] = Request(number, sent_ns, instant(r.first_byte_s[i]), instant(r.first_token_s[i]), end_ns)
    return found


def join(table: "pa.Table", requests: Mapping[int, Request]) -> list[Trace]:
    """Spans of these requests, by request; others are left out. table: with the columns of model.SPAN_COLUMNS."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ours = table.filter(pc.is_in(table.column("request_id"), pa.array(list(requests), pa.uint64())))  # pyright: ignore
    traced = sorted(set(ours.column("request_id").to_pylist()))
    if len(traced) > MAX_REQUESTS:
        traced = [traced[round(place)] for place in np.linspace(0, len(traced) - 1, MAX_REQUESTS)]
        ours = ours.filter(pc.is_in(ours.column("request_id"), pa.array(traced, pa.uint64())))  # pyright: ignore
    spans: dict[int, dict[str, Span]] = {number: {} for number in traced}
    for batch in ours.to_batches():
        for row in batch.to_pylist():
            known = spans[row["request_id"]]
            if len(known) < MAX_SPANS_OF_REQUEST:  # an export that was sent again counts once
                known.setdefault(row["span_id"], Span(row))
    return [Trace(requests[number], linked(list(known.values()))) for number, known in spans.items()]


def linked(spans: list[Span]) -> list[Span]:
    """Each span with its parent, parents first. Spans whose parents go in a circle have none."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        span.parent = by_id.get(span.parent_id or "")
    depths: dict[str, int] = {}
    for span in spans:
        path = []
        at: Span | None = span
        while at is not None and at.span_id not in depths and at.span_id not in path:
            path.append(at.span_id)
            at = at.parent
        if at is not None and at.span_id in path:
            by_id[path[-1]].parent = None
            at = None
        depth = depths[at.span_id] + 1 if at is not None else 0
        for place, each in enumerate(reversed(path)):
            depths[each] = depth + place
    return sorted(spans, key=lambda span: (depths[span.span_id], span.start))


def _attributes(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
