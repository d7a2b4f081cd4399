"""The catalogue of canonical series: what each is, and under which names engines and exporters expose it.

For collectors (exposed name -> canonical series, scale and labels) and for readers (unit, kind and role of a series).
Not for values: nothing here reads a metric. The entries are data, in catalog.toml beside this file.

The surprising thing: one exposed name can feed two series, told apart by a label (vLLM's waiting requests by
reason, Triton's failures by reason). The filtered alias wins, and the plain one takes what is left over.
"""

import math
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from pinchpoint.errors import UsageError

Kind = Literal["gauge", "counter", "histogram", "info"]
SeriesLayer = Literal["engine", "gateway", "host", "server", "client", "probe", "gpu", "network", "source"]
Role = Literal["utilisation", "saturation", "errors", "throughput", "latency", "config"]

CATALOG_PATH = Path(__file__).with_name("catalog.toml")
TOTAL = "_total"
BUCKET = "_bucket"
HISTOGRAM_MEMBERS = ("_sum", "_count", BUCKET)
INTENSIVE_UNITS = ("ratio", "degC", "Hz", "V", "lanes", "1")
"""Units of gauges of which two do not make more than one: shares, levels, states and codes."""
BOUND = "le"
"""The label that holds a bucket's upper bound."""
BOUND_DIGITS = 9
"""Of a bound that was scaled: enough for every bound seen, and few enough to drop what the multiplication added."""


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name as exposed. The sample must carry `labels`; exposed value * `scale` is in the series' unit."""

    name: str
    labels: dict[str, str] = {}
    scale: float = 1.0
    rename: dict[str, str] = {}
    """Label as exposed -> label of the series."""
    add: dict[str, str] = {}
    """Labels of the series that the exposed name says instead of a label. Names with `add` are parts of one series:
    all of them feed it, while of other names only the preferred one does."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One canonical series. A histogram stands for its three members NAME_sum, NAME_count and NAME_bucket."""

    name: str
    unit: str
    kind: Kind
    layer: SeriesLayer
    role: Role
    description: str
    aliases: dict[str, tuple[str | Alias, ...]] = {}
    combine: Literal["sum", "max"] | None = None
    """How readings of one instant that differ in labels become one; None: `adds_up` decides by the unit."""

    @property
    def adds_up(self) -> bool:
        """Whether readings that differ in labels are summed; else the largest stands for all of them.

        Two GPUs draw the sum of their powers, but are not the sum of their temperatures hot.
        """
        if self.combine is not None:
            return self.combine == "sum"
        return self.kind in ("counter", "histogram") or self.unit not in INTENSIVE_UNITS


class Exporter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who exposes a page of metrics: an engine, a router, or an exporter of hardware."""

    name: str
    """As in the aliases."""
    title: str
    layer: SeriesLayer
    enable: str
    """How its page is had, in a sentence."""
    prefixes: tuple[str, ...] = ()
    """What names of its own begin with; empty where its names tell nothing."""
    ports: tuple[int, ...] = ()
    """Where its page usually is."""
    path: str = "/metrics"
    companion: bool = False
    """Its names stand on the pages of others, and never make a page its own."""
    device_label: str | None = None
    """Label that numbers accelerators; in series it is called `gpu`."""
    device_kind: str | None = None
    """Value of the label `kind` of its accelerators."""
    left_out: tuple[str, ...] = ()
    """Exposed names, without the endings of counters and histograms, that are known and lead to no series; with `*`."""
    hints: dict[str, str] = {}
    """Series -> how to get it, where the page does not show it by itself."""


class Match(NamedTuple):
    """Where one exposed sample goes."""

    series: str
    scale: float
    """Exposed value * scale is in the series' unit."""
    rank: int
    """Place among the names of its series; 0 is preferred."""
    group: str
    """Of several names of one series on one page, only those of the least (rank, group) feed it: see `Catalog.rank`."""
    labels: Mapping[str, str]
    """As they belong to the series: renamed where the exporter has a word of its own, bounds of buckets in its unit."""


class _Respelling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "targets": "to"}):
    engine: str
    source: str
    targets: tuple[str, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    series: tuple[Entry, ...]
    respelling: tuple[_Respelling, ...] = ()
    exporter: tuple[Exporter, ...] = ()


class _Target(msgspec.Struct, frozen=True):
    """Where samples of one exposed name go, when they carry the labels."""

    labels: dict[str, str]
    series: str
    scale: float = 1.0
    rank: int = 0
    group: str = ""
    engine: str | None = None
    """None for a canonical name, which goes to itself."""
    rename: dict[str, str] = {}
    add: dict[str, str] = {}
    bound_scale: float = 1.0


class Catalog:
    """Lookup in both directions. Built once by `load_catalog`; do not build your own outside tests."""

    def __init__(
        self,
        entries: tuple[Entry, ...],
        respellings: tuple[_Respelling, ...] = (),
        exporters: tuple[Exporter, ...] = (),
    ) -> None:
        self._entries: dict[str, Entry] = {}
        self._targets: dict[str, list[_Target]] = {}
        self._exporters = {exporter.name: exporter for exporter in exporters}
        self._left_out = {
            exporter.name: tuple(
                spelling for name in exporter.left_out for spelling in _spellings(name, exporter.name, respellings)
            )
            for exporter in exporters
        }
        for entry in entries:
            self._add_entry(entry)
            for engine, aliases in entry.aliases.items():
                parts_rank = None
                for rank, alias in enumerate(aliases):
                    known = Alias(alias) if isinstance(alias, str) else alias
                    if known.add:
                        parts_rank = rank if parts_rank is None else parts_rank
                    place = parts_rank if known.add and parts_rank is not None else rank
                    self._add_alias(entry, engine, known, place, respellings)
        for targets in self._targets.values():
            targets.sort(key=lambda target: -len(target.labels))

    def _add_entry(self, entry: Entry) -> None:
        if entry.name in self._entries:
            raise UsageError(f"catalogue: series {entry.name} is defined twice; keep one of them")
        self._entries[entry.name] = entry
        self._register(entry.name, _Target({}, entry.name))
        if entry.kind == "histogram":
            for member in HISTOGRAM_MEMBERS:
                name = entry.name + member
                unit = entry.unit if member == "_sum" else "observations"
                self._entries[name] = msgspec.structs.replace(entry, name=name, unit=unit, kind="counter", aliases={})
                self._register(name, _Target({}, name))

    def _add_alias(
        self, entry: Entry, engine: str, alias: Alias, rank: int, respellings: tuple[_Respelling, ...]
    ) -> None:
        exporter = self._exporters.get(engine)
        rename, add = alias.rename, alias.add
        if entry.layer == "gpu" and exporter is not None:
            if exporter.device_label is not None:
                rename = {exporter.device_label: "gpu", **rename}
            if exporter.device_kind is not None:
                add = {"kind": exporter.device_kind, **add}
        for name in _spellings(alias.name, engine, respellings):
            plain = _Target(
                alias.labels, entry.name, alias.scale, rank, engine if alias.add else name, engine, rename, add
            )
            if entry.kind == "histogram":
                for member in HISTOGRAM_MEMBERS:
                    # The members of one histogram are chosen together, so they compete under its name.
                    target = msgspec.structs.replace(plain, series=entry.name + member)
                    if member != "_sum":
                        target = msgspec.structs.replace(target, scale=1.0)
                    if member == BUCKET:
                        target = msgspec.structs.replace(target, bound_scale=alias.scale)
                    self._register(name + member, target)
            else:
                self._register(name, plain)
                if entry.kind == "counter":
                    stem = name.removesuffix(TOTAL)
                    other = stem if stem != name else name + TOTAL
                    self._register(other, plain if alias.add else msgspec.structs.replace(plain, group=other))

    def _register(self, exposed: str, target: _Target) -> None:
        targets = self._targets.setdefault(exposed, [])
        for other in targets:
            if other.labels == target.labels:
                raise UsageError(
                    f"catalogue: {exposed} with labels {target.labels} leads to both {other.series} and "
                    f"{target.series}; keep one of them"
                )
        targets.append(target)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every canonical series by name, histogram members included."""
        return self._entries

    @property
    def exporters(self) -> Mapping[str, Exporter]:
        """Engines, routers and exporters of hardware that the catalogue has names of, by name."""
        return self._exporters

    def left_out(self, exporter: str) -> tuple[str, ...]:
        """Patterns of an exporter's names that lead to no series on purpose, in every spelling of its names."""
        return self._left_out[exporter]

    def entry(self, series: str) -> Entry | None:
        """What a canonical series is; None when the catalogue does not have it."""
        return self._entries.get(series)

    def match(self, raw_name: str, labels: Mapping[str, str]) -> Match | None:
        """Where an exposed sample goes; None when the catalogue does not know the name.

        A canonical name goes to itself. The labels of the result may be `labels` itself: read them, never change them.
        """
        target = self._find(raw_name, labels)
        if target is None:
            return None
        return Match(target.series, target.scale, target.rank, target.group or raw_name, _relabelled(labels, target))

    def resolve(self, raw_name: str, labels: Mapping[str, str]) -> tuple[str | None, float]:
        """Canonical series of an exposed sample, and the factor that turns its value into the series' unit.

        (None, 1.0) when the catalogue does not know the name. A canonical name resolves to itself.
        """
        target = self._find(raw_name, labels)
        return (target.series, target.scale) if target else (None, 1.0)

    def rank(self, raw_name: str, labels: Mapping[str, str]) -> int:
        """Place of an exposed name among the aliases of its series and engine; 0 is preferred.

        An engine that renames a metric exposes both names for a while. Readers add up a series over its labels, so
        of several exposed names on one page only the one with the lowest rank may feed the series.
        """
        target = self._find(raw_name, labels)
        return target.rank if target else 0

    def exposers(self, raw_name: str) -> Mapping[str, tuple[str, ...]]:
        """Exporters that expose a name, each with the series it may lead to (one, but for filters by label)."""
        found: dict[str, list[str]] = {}
        for target in self._targets.get(raw_name, ()):
            if target.engine is not None:
                found.setdefault(target.engine, []).append(target.series)
        return {engine: tuple(series) for engine, series in found.items()}

    def exposer(self, raw_name: str, labels: Mapping[str, str]) -> str | None:
        """Exporter whose alias takes a sample; None for canonical and for unknown names."""
        target = self._find(raw_name, labels)
        return target.engine if target else None

    def _find(self, raw_name: str, labels: Mapping[str, str]) -> _Target | None:
        for target in self._targets.get(raw_name, ()):
            if all(labels.get(key) == value for key, value in target.labels.items()):
                return target
        return None


def _spellings(name: str, engine: str, respellings: tuple[_Respelling, ...]) -> list[str]:
    names = [name]
    for respelling in respellings:
        if respelling.engine == engine and name.startswith(respelling.source):
            names += [target + name.removeprefix(respelling.source) for target in respelling.targets]
    return names


def _relabelled(labels: Mapping[str, str], target: _Target) -> Mapping[str, str]:
    if not target.rename and not target.add and target.bound_scale == 1.0:
        return labels
    renamed = {target.rename.get(key, key): value for key, value in labels.items()} | target.add
    if target.bound_scale != 1.0 and BOUND in renamed:
        renamed[BOUND] = scaled_bound(renamed[BOUND], target.bound_scale)
    return renamed


def scaled_bound(text: str, scale: float) -> str:
    """A bucket's bound in another unit: "1800" µs * 1e-6 is "0.0018". Infinity, and what is no number, stay as is."""
    try:
        bound = float(text)
    except ValueError:
        return text
    return f"{bound * scale:.{BOUND_DIGITS}g}" if math.isfinite(bound) else text


@cache
def load_catalog() -> Catalog:
    """The catalogue that ships with the package. Read once per process."""
    return read_catalog(CATALOG_PATH)


def read_catalog(path: Path) -> Catalog:
    """Catalogue from a TOML file. Raises UsageError when the file is not one."""
    try:
        content = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"catalogue {path} cannot be read ({error}); reinstall pinchpoint or mend the file") from error
    return Catalog(content.series, content.respelling, content.exporter)


_ESCAPES = str.maketrans({"%": "%25", ",": "%2C", "\n": "%0A", "\r": "%0D"})


def format_labels(labels: Mapping[str, str]) -> str:
    """Labels as `k=v` joined by commas, sorted by key. Comma, percent and line ends in values are percent-encoded."""
    return ",".join(f"{key}={labels[key].translate(_ESCAPES)}" for key in sorted(labels))


def parse_labels(text: str) -> dict[str, str]:
    """Inverse of `format_labels`."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return {key: _unescape(value) for key, _, value in pairs}


def _unescape(value: str) -> str:
    return value.replace("%0D", "\r").replace("%0A", "\n").replace("%2C", ",").replace("%25", "%")
