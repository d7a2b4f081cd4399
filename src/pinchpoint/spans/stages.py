"""What a span stands for, and whose each moment of a request is.

Which attributes and names mean what is data, in patterns.toml.
"""

import math
import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.spans.trace import Span, Trace

STAGES = ("network", "gateway", "dependency", "engine", "queue", "prefill", "decode")
PATTERNS_PATH = Path(__file__).with_name("patterns.toml")
UNITS_S = {"ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}
DURATION = re.compile(r"([0-9.]+)(ns|µs|us|ms|s)")
TOLD_MORE_NS = 1_000_000
"""An engine's own account may be longer than its span by what lies between two looks at the clock."""


class _Names(msgspec.Struct, frozen=True):
    stage: str
    pattern: str


class _Patterns(msgspec.Struct, frozen=True):
    attributes: dict[str, tuple[str, ...]]
    operations: dict[str, frozenset[str]]
    names: tuple[_Names, ...]


@cache
def _patterns() -> _Patterns:
    return msgspec.convert(tomllib.loads(PATTERNS_PATH.read_text(encoding="utf-8")), _Patterns)


@cache
def _named(name: str) -> str:
    """Stage by the name alone; empty: the name says nothing."""
    return next((each.stage for each in _patterns().names if re.search(each.pattern, name, re.IGNORECASE)), "")


def classify(spans: Sequence[Span]) -> None:
    """spans: callers first."""
    engines: set[str] = set()
    for span in spans:
        if tells(span, "engine", "queue", "prefill", "decode") or _named(span.name) in ("engine", "queue", "prefill"):
            at: Span | None = span
            while at is not None and at.span_id not in engines:
                engines.add(at.span_id)
                at = at.parent
    for span in spans:
        span.stage = _stage_of(span, span.span_id in engines)


def _stage_of(span: Span, leads_to_engine: bool) -> str:
    parent = span.parent.stage if span.parent is not None else None
    if parent == "dependency":
        return parent
    if tells(span, "engine", "queue", "prefill", "decode"):
        return "engine"
    named, operation = _named(span.name), span.attributes.get("gen_ai.operation.name")
    entry = parent is None and span.kind in ("server", "consumer")
    if named and named != "dependency":
        return named
    if not entry and not leads_to_engine:
        known = _patterns().operations
        if named or tells(span, "dependency") or operation in known["dependency"]:
            return "dependency"
        if operation in known["model"]:
            return "engine"
        if span.kind in ("client", "producer"):
            return "dependency"
    if span.kind in ("client", "producer"):
        return "network"
    if span.kind == "internal" and parent not in (None, "network"):
        return parent or "gateway"
    return "gateway"


def tells(span: Span, *what: str) -> bool:
    return any(name in span.attributes for kind in what for name in _patterns().attributes[kind])


def _told_ns(span: Span, what: str) -> int | None:
    """A duration that an engine tells of itself; None where it tells none that can be."""
    for name in _patterns().attributes[what]:
        value = span.attributes.get(name)
        match = DURATION.fullmatch(value) if isinstance(value, str) else None
        try:
            seconds = float(match[1]) * UNITS_S[match[2]] if match else value
        except ValueError:
            continue
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds):
            duration_ns = round(seconds * NS_PER_S) if abs(seconds) < span.end else -1
            if 0 <= duration_ns <= span.end - span.start + TOLD_MORE_NS:
                return duration_ns
    return None


class Stretch(NamedTuple):
    start: int
    end: int
    depth: int
    stage: str


def _inside_engine(span: Span, depth: int) -> list[Stretch]:
    """Queue, prefill and decode as an engine tells them, laid out around the first token."""
    queue, prefill, decode = (_told_ns(span, what) for what in ("queue", "prefill", "decode"))
    first = _told_ns(span, "first_token")
    if first is None and queue is not None and prefill is not None:
        first = queue + prefill
    if first is None:
        return [] if queue is None else [Stretch(span.start, span.start + queue, depth, "queue")]
    if prefill is None:
        prefill = first - queue if queue is not None and queue <= first else 0
    at, found = span.start + first, []
    found.append(Stretch(at - prefill, at, depth, "prefill"))
    if queue is not None:
        found.append(Stretch(at - prefill - queue, at - prefill, depth, "queue"))
    if decode is not None:
        found.append(Stretch(at, at + decode, depth, "decode"))
    return [Stretch(max(s.start, span.start), min(s.end, span.end), s.depth, s.stage) for s in found]


def stretches(trace: Trace) -> list[Stretch]:
    depths: dict[str, int] = {}
    found: list[Stretch] = []
    for span in trace.spans:
        depth = depths[span.span_id] = depths[span.parent.span_id] + 2 if span.parent is not None else 1
        found.append(Stretch(span.start, span.end, depth, span.stage))
        if span.stage == "engine":
            found += _inside_engine(span, depth + 1)
    return found


def spent_between(stretches: Iterable[Stretch], begin: int, end: int) -> dict[str, int]:
    """Time in each stage between two instants: each moment is the innermost stretch's, of several the latest begun."""
    inside = [s for s in stretches if s.start < end and s.end > begin and s.end > s.start]
    edges = sorted({begin, end, *(min(max(at, begin), end) for s in inside for at in (s.start, s.end))})
    owner = ["network"] * (len(edges) - 1)
    for stretch in sorted(inside, key=lambda s: (s.depth, s.start)):
        first, last = bisect_left(edges, max(stretch.start, begin)), bisect_left(edges, min(stretch.end, end))
        owner[first:last] = [stretch.stage] * (last - first)
    spent: dict[str, int] = {}
    for place, stage in enumerate(owner):
        spent[stage] = spent.get(stage, 0) + edges[place + 1] - edges[place]
    return spent
