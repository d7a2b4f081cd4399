"""What can be seen of a service, and what cannot: from readings to a table of canonical series by layer.

For `pinchpoint telemetry`, before a run. A run itself reads `series.RunView`; here only the last few readings are kept.
"""

import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import msgspec

from pinchpoint.catalog import HISTOGRAM_MEMBERS, Catalog, Entry, parse_labels
from pinchpoint.clock import NS_PER_S
from pinchpoint.coverage import PageCoverage

SNAPSHOTS_KEPT = 11
"""Of each series: at one reading a second, rates are of the last ten seconds."""
Layer = Literal["engine", "gateway", "accelerator", "host", "server", "client", "network", "source"]
LAYERS: tuple[Layer, ...] = ("engine", "gateway", "accelerator", "host", "server", "client", "network", "source")
LAYER_OF = {"gpu": "accelerator", "probe": "network"}
"""Layers of the catalogue that are shown under another name."""
How = Literal["now", "per second", "mean", "mean since start", "total"]
"""What a row's value is: a gauge as it is now; a counter's rate, or what it stands at where only one reading is there;
the mean of what a histogram observed between the readings, or since the server's start."""


class Read(Protocol):
    """One reading; see telemetry.config.Reading."""

    @property
    def raw(self) -> str: ...
    @property
    def series(self) -> str | None: ...
    @property
    def labels(self) -> str: ...
    @property
    def value(self) -> float: ...


class Row(msgspec.Struct, frozen=True):
    """One canonical series as one source shows it."""

    layer: Layer
    series: str
    unit: str
    """Of `value`; of a rate the unit of what is counted."""
    how: How
    value: float | None
    """Over label sets their sum, or the largest where a sum means nothing (Entry.adds_up). None: read, but no number,
    or one that says nothing beside its labels."""
    observations_per_s: float | None
    """Of a histogram; None for other kinds, and before there are two readings."""
    label_sets: int
    source: str
    role: str
    description: str


class Trouble(msgspec.Struct, frozen=True):
    """Something odd that a source noted, how often, and in which words it was noted last."""

    source: str
    what: str
    labels: dict[str, str]
    count: int


class SeenPage(msgspec.Struct, frozen=True):
    """A page of metrics, or a file of readings, and what it shows of what it could."""

    place: str
    """URL or path."""
    source: str
    title: str
    coverage: PageCoverage | None
    """None: not a page of metrics, such as the output of a vendor's tool."""


class Absent(msgspec.Struct, frozen=True):
    """A layer of which nothing is seen, and how to see it."""

    layer: Layer
    how: str


class Survey(msgspec.Struct, frozen=True):
    """All that was seen, to be shown."""

    rows: tuple[Row, ...]
    pages: tuple[SeenPage, ...]
    absent: tuple[Absent, ...]
    troubles: tuple[Trouble, ...]
    notes: tuple[str, ...]
    """Sentences that a person can act on."""
    span_s: float
    """From the first reading to the last; 0 for files."""


class _Snapshot(NamedTuple):
    t_ns: int
    values: dict[str, float]


class Watcher:
    """Takes the readings of several sources, from a thread each, and tells what they show by now."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._order = {name: place for place, name in enumerate(catalog.entries)}
        self._lock = threading.Lock()
        self._snapshots: dict[tuple[str, str], deque[_Snapshot]] = {}
        self._troubles: Counter[tuple[str, str]] = Counter()
        self._last: dict[tuple[str, str], dict[str, str]] = {}
        self._first_ns: int | None = None
        self._last_ns = 0

    def add(self, source: str, t_ns: int, readings: Iterable[Read]) -> None:
        """One reading of one source."""
        by_series: dict[str, dict[str, float]] = {}
        events: list[Read] = []
        for reading in readings:
            if reading.series is not None:
                by_series.setdefault(reading.series, {})[reading.labels] = reading.value
            elif reading.raw in EVENTS:
                events.append(reading)
        with self._lock:
            self._first_ns = t_ns if self._first_ns is None else min(self._first_ns, t_ns)
            self._last_ns = max(self._last_ns, t_ns)
            for series, values in by_series.items():
                kept = self._snapshots.setdefault((source, series), deque(maxlen=SNAPSHOTS_KEPT))
                kept.append(_Snapshot(t_ns, values))
            for reading in events:
                key = (source, reading.raw)
                self._troubles[key] += 1
                self._last[key] = parse_labels(reading.labels)

    @property
    def span_s(self) -> float:
        with self._lock:
            return 0.0 if self._first_ns is None else (self._last_ns - self._first_ns) / NS_PER_S

    def troubles(self) -> tuple[Trouble, ...]:
        with self._lock:
            return tuple(
                Trouble(source, what, self._last[source, what], count)
                for (source, what), count in sorted(self._troubles.items())
            )

    def rows(self) -> tuple[Row, ...]:
        """By layer, then as in the catalogue, then by source. The members of a histogram are one row."""
        with self._lock:
            kept = {key: list(snapshots) for key, snapshots in self._snapshots.items()}
        rows: list[Row] = []
        histograms: set[tuple[str, str]] = set()
        for (source, series), snapshots in kept.items():
            entry = self._catalog.entry(series)
            if entry is None:
                continue
            stem = _stem(series)
            whole = self._catalog.entry(stem) if stem != series else None
            if whole is None or whole.kind != "histogram":
                rows.append(_row(entry, source, snapshots))
            elif (source, stem) not in histograms:
                histograms.add((source, stem))
                members = {end: kept.get((source, stem + end), []) for end in ("_sum", "_count")}
                rows.append(_histogram_row(whole, source, members["_sum"], members["_count"]))
        rows.sort(key=lambda row: (LAYERS.index(row.layer), self._order.get(row.series, 0), row.source))
        return tuple(rows)


EVENTS: Mapping[str, str] = {
    "scrape_failed": "could not be read",
    "scrape_skipped": "was too large and is asked for less often",
    "scrape_malformed_lines": "has lines that are no samples",
    "scrape_duplicate_samples": "gives samples twice; the first one counts",
    "scrape_unusable_values": "has values that no quantity can have, such as NaN or -1",
    "page_names_changed": "changed the names of its metrics",
    "page_content_type": "says that it is no page of metrics, and is one",
    "counter_reset": "has counters that fell: they began again",
    "exporter_restarted": "is of another process than before: it was restarted",
    "clock_set": "is of a machine whose clock was set",
    "process_gone": "watches a process that ended",
    "null_request_failed": "had no answer to a request that needs no model",
    "gpu_lost": "lost a GPU",
    "gpu_back": "has a GPU back",
}
"""Events of sources that are told, in words that follow the source's name."""


def layer_of(entry: Entry) -> Layer:
    """The layer under which a series is shown."""
    return LAYER_OF.get(entry.layer, entry.layer)  # pyright: ignore[reportReturnType]


def _stem(series: str) -> str:
    for member in HISTOGRAM_MEMBERS:
        if series.endswith(member):
            return series.removesuffix(member)
    return series


def _row(entry: Entry, source: str, snapshots: list[_Snapshot]) -> Row:
    latest = snapshots[-1].values
    how: How = "now"
    value: float | None
    if entry.kind == "counter":
        value, how = _rate(snapshots), "per second"
        if value is None:
            value, how = sum(latest.values()), "total"
    elif entry.kind == "info":  # what it says stands in its labels
        value = None
    else:
        value = sum(latest.values()) if entry.adds_up else max(latest.values())
    return Row(
        layer=layer_of(entry),
        series=entry.name,
        unit=entry.unit,
        how=how,
        value=value if value is not None and math.isfinite(value) else None,
        observations_per_s=None,
        label_sets=len(latest),
        source=source,
        role=entry.role,
        description=entry.description,
    )


def _histogram_row(entry: Entry, source: str, sums: list[_Snapshot], counts: list[_Snapshot]) -> Row:
    total, count, how = _growth(sums), _growth(counts), "mean"
    per_s = _rate(counts)
    if not count or total is None:
        total = sum(sums[-1].values.values()) if sums else None
        count = sum(counts[-1].values.values()) if counts else None
        how = "mean since start"
    return Row(
        layer=layer_of(entry),
        series=entry.name,
        unit=entry.unit,
        how=how,
        value=total / count if total is not None and count else None,
        observations_per_s=per_s,
        label_sets=len(counts[-1].values) if counts else 0,
        source=source,
        role=entry.role,
        description=entry.description,
    )


def _growth(snapshots: list[_Snapshot]) -> float | None:
    """Increase between first and last snapshot, label set by label set; one that fell began again at zero."""
    if len(snapshots) < 2:
        return None
    grown = 0.0
    for before, after in pairwise(snapshots):
        for labels, value in after.values.items():
            if labels in before.values:
                grown += value - before.values[labels] if value >= before.values[labels] else value
    return grown


def _rate(snapshots: list[_Snapshot]) -> float | None:
    grown = _growth(snapshots)
    if grown is None or snapshots[-1].t_ns <= snapshots[0].t_ns:
        return None
    return grown / ((snapshots[-1].t_ns - snapshots[0].t_ns) / NS_PER_S)
