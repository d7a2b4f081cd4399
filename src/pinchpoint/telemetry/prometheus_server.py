"""What a Prometheus server saw of a service during a run, fetched when the load is over.

For production set-ups whose pages cannot be reached, but whose Prometheus can. Of the names under the user's selector
those that the catalogue knows are fetched, and become rows of telemetry like those of any other source. A gap stays a
gap. Whatever the server does, nothing is raised: what came is kept, what did not is an event and a sentence.

Each target (job and instance) is a source of its own, `prometheus:INSTANCE`, where there are several: targets are
scraped at instants of their own, and readers add up sources by holding each one's last value.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinchpoint.catalog import format_labels
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.parts import PartWriter, arrow_schema, part_batches
from pinchpoint.telemetry.config import Reading, event
from pinchpoint.telemetry.prometheus_api import (
    DEFAULT_INTERVAL_S,
    SHOWN_CHARS,
    PrometheusError,
    PrometheusServer,
    ServerClock,
    Stored,
    groups,
    target_of,
)

SOURCE = "prometheus"
PART = "telemetry-prometheus.arrows"
REMOTE_LAYERS = ("host", "gpu")
"""Readings of these belong to a machine, which the label `host` names."""
MACHINE_LABELS = ("node", "nodename", "Hostname", "hostname", "kubernetes_node")
"""Names under which targets say what machine they are on: of Kubernetes' scrape configurations and of dcgm-exporter."""
GIVES_UP_AFTER = 3
"""Questions in a row that get no answer."""


def collect(server: PrometheusServer, run_path: Path, start_ns: int, end_ns: int) -> tuple[str, ...]:
    """Writes what the server has between two instants of our axis to the run's parts, before it is sealed.

    Returns what there is to say about it, for people; the first sentence says how much came. Series that another source
    of the run has read get no second reading, but for those of hosts, which a label tells apart: their rows have the
    exposed name only. Raises OSError when the part cannot be written, nothing for what the server does.
    """
    parts = run_path / "parts"
    collection = _Collection(server, _series_of(parts))
    writer = PartWriter(parts / PART, SAMPLE_COLUMNS)
    try:
        return collection.run(writer, start_ns, end_ns)
    finally:
        writer.close()


class _Collection:
    def __init__(self, server: PrometheusServer, taken: frozenset[str]) -> None:
        self._server = server
        self._catalog = server.catalog
        self._taken = taken
        self._left: set[str] = set()
        self._samples = 0
        self._notes: list[str] = []
        self._places: dict[tuple[tuple[str, str], str], tuple[int, str]] = {}
        """Target and series -> the (rank, group) of the names that feed it."""
        self._sources: dict[tuple[str, str], str] = {}

    def run(self, writer: PartWriter, start_ns: int, end_ns: int) -> tuple[str, ...]:
        server, names = self._server, ()
        try:
            clock = server.clock()
            writer.append(self._clock_rows(clock))
            start_s, end_s = ((at_ns + clock.offset_ns) / NS_PER_S for at_ns in (start_ns, end_ns))
            sets = server.label_sets(start_s, end_s)
            names = tuple(sorted({one["__name__"] for one in sets}))
            self._choose(sets)
        except PrometheusError as error:
            self._failed(writer, error)
        else:
            self._fetch(writer, names, start_s, end_s, self._step_s(sets, start_s, end_s), clock.offset_ns)
        return self._told(writer, names)

    def _step_s(self, sets: Sequence[Mapping[str, str]], start_s: float, end_s: float) -> float:
        """The scrape interval. It matters only where samples cannot be had as they are stored."""
        if not sets:
            return DEFAULT_INTERVAL_S
        try:
            return self._server.interval_s(sets, start_s, end_s) or DEFAULT_INTERVAL_S
        except PrometheusError:
            return DEFAULT_INTERVAL_S

    def _fetch(
        self, writer: PartWriter, names: Sequence[str], start_s: float, end_s: float, step_s: float, offset_ns: int
    ) -> None:
        """A question that fails costs its own names, and those behind it only when nothing is answered any more."""
        failures = 0
        for group in groups(names):
            try:
                for stored in self._server.samples(group, start_s, end_s, step_s):
                    writer.append(self._rows(stored, offset_ns))
                    self._samples += len(stored.samples)
                failures = 0
            except PrometheusError as error:
                self._failed(writer, error)
                failures += 1
                if failures == GIVES_UP_AFTER:
                    return

    def _failed(self, writer: PartWriter, error: PrometheusError) -> None:
        if str(error) not in self._notes:
            self._notes.append(str(error))
        labels = format_labels({"reason": error.reason})
        writer.append([_row(monotonic_ns(), SOURCE, event("prometheus_failed", labels))])

    def _told(self, writer: PartWriter, names: Sequence[str]) -> tuple[str, ...]:
        server, notes = self._server, self._notes
        targets = f"{len(self._sources)} target" + ("s" if len(self._sources) != 1 else "")
        first = f"{self._samples} samples of {len(names)} metrics from {targets} were fetched from {server.url}"
        if not self._samples and not notes:
            notes.append(f"it stored nothing under {{{server.matchers}}} during the run; is the target scraped?")
        if self._samples and not server.exact:
            notes.append("it refuses range selectors, so a value may be one scrape interval older than its instant")
        if self._left:
            notes.append(f"{len(self._left)} series were read from the service as well, and are taken from there")
        for warning in server.warnings:
            notes.append(f"it warns: {warning}")
            says = format_labels({"says": warning})
            writer.append([_row(monotonic_ns(), SOURCE, event("prometheus_warning", says))])
        return (first, *notes)

    def _clock_rows(self, clock: ServerClock) -> list[tuple[Any, ...]]:
        """So that a reader knows how far the axis of these rows may be off."""
        told = (("source.clock_offset_s", clock.ahead_s), ("source.clock_offset_error_s", clock.error_ns / NS_PER_S))
        return [
            _row(
                monotonic_ns(),
                SOURCE,
                Reading(name, name if self._catalog.entry(name) else None, f"source={SOURCE}", value),
            )
            for name, value in told
        ]

    def _choose(self, sets: Sequence[Mapping[str, str]]) -> None:
        """Of several names of one series on one target, which feed it; and what each target is called."""
        targets = sorted({target_of(labels) for labels in sets})
        ambiguous = len({instance for _, instance in targets}) < len(targets)
        for job, instance in targets:
            called = f"{job}/{instance}" if ambiguous else instance or job
            self._sources[job, instance] = SOURCE if len(targets) == 1 else f"{SOURCE}:{called[:SHOWN_CHARS]}"
        for labels in sets:
            match = self._catalog.match(labels["__name__"], labels)
            if match is not None:
                key, place = (target_of(labels), match.series), (match.rank, match.group)
                self._places[key] = min(place, self._places.get(key, place))

    def _rows(self, stored: Stored, offset_ns: int) -> Iterator[tuple[Any, ...]]:
        metric, target = stored.metric, target_of(stored.metric)
        name, source = metric.get("__name__", ""), self._sources.get(target, SOURCE)
        labels: Mapping[str, str] = {key: value for key, value in metric.items() if key != "__name__"}
        match = self._catalog.match(name, labels)
        series, scale = None, 1.0
        if match is not None and self._places.get((target, match.series)) == (match.rank, match.group):
            entry = self._catalog.entry(match.series)
            layer = entry.layer if entry is not None else ""
            if match.series in self._taken and layer != "host":
                self._left.add(match.series)
            else:
                series, scale, labels = match.series, match.scale, match.labels
                if layer in REMOTE_LAYERS:
                    labels = {"host": _machine(metric), **labels}
        text = format_labels(labels)
        for at_s, value in stored.samples:
            known = series is not None and math.isfinite(value) and value >= 0
            reading = Reading(name, series if known else None, text, value * scale if known else value)
            yield _row(round(at_s * NS_PER_S) - offset_ns, source, reading)


def _row(t_ns: int, source: str, reading: Reading) -> tuple[Any, ...]:
    """In the order of model.SAMPLE_COLUMNS. How late a scrape was is known to Prometheus alone."""
    return (t_ns, 0, source, reading.raw, reading.series, reading.labels, reading.value)


def _series_of(parts: Path) -> frozenset[str]:
    """Canonical series that the run has readings of."""
    schema = arrow_schema({"series": SAMPLE_COLUMNS["series"]})
    found: set[str | None] = set()
    for part in parts.glob("telemetry-*.arrows"):
        if part.name != PART:
            for batch in part_batches(part, schema):
                found.update(batch.column(0).unique().to_pylist())
    return frozenset(name for name in found if name is not None)


def _machine(labels: Mapping[str, str]) -> str:
    """Name of the machine that a sample is of: as its target says, else its address without the port."""
    for key in MACHINE_LABELS:
        if labels.get(key):
            return labels[key]
    instance = labels.get("instance", "")
    host, colon, port = instance.rpartition(":")
    return host if colon and port.isdigit() else instance
