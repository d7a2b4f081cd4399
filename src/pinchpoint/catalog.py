"""The catalogue of canonical series: what each is, and under which names engines expose it.

For collectors (exposed name -> canonical series and scale) and for readers (unit, kind and role of a series).
Not for values: nothing here reads a metric. The entries are data, in catalog.toml beside this file.

The surprising thing: one exposed name can feed two series, told apart by a label (vLLM's waiting requests by
reason, Triton's failures by reason). The filtered alias wins, and the plain one takes what is left over.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from pinchpoint.errors import UsageError

Kind = Literal["gauge", "counter", "histogram", "info"]
SeriesLayer = Literal["engine", "host", "server", "client", "probe", "gpu"]
Role = Literal["utilisation", "saturation", "errors", "throughput", "latency", "config"]

CATALOG_PATH = Path(__file__).with_name("catalog.toml")
TOTAL = "_total"
HISTOGRAM_MEMBERS = ("_sum", "_count", "_bucket")


class Alias(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name as exposed. The sample must carry `labels`; exposed value * `scale` is in the series' unit."""

    name: str
    labels: dict[str, str] = {}
    scale: float = 1.0


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One canonical series. A histogram stands for its three members NAME_sum, NAME_count and NAME_bucket."""

    name: str
    unit: str
    kind: Kind
    layer: SeriesLayer
    role: Role
    description: str
    aliases: dict[str, tuple[str | Alias, ...]] = {}


class _Respelling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from", "targets": "to"}):
    engine: str
    source: str
    targets: tuple[str, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    series: tuple[Entry, ...]
    respelling: tuple[_Respelling, ...] = ()


class _Target(msgspec.Struct, frozen=True):
    """Where samples of one exposed name go, when they carry the labels."""

    labels: dict[str, str]
    series: str
    scale: float
    rank: int


class Catalog:
    """Lookup in both directions. Built once by `load_catalog`; do not build your own outside tests."""

    def __init__(self, entries: tuple[Entry, ...], respellings: tuple[_Respelling, ...] = ()) -> None:
        self._entries: dict[str, Entry] = {}
        self._targets: dict[str, list[_Target]] = {}
        for entry in entries:
            self._add_entry(entry)
            for engine, aliases in entry.aliases.items():
                spellings = [spelling for spelling in respellings if spelling.engine == engine]
                for rank, alias in enumerate(aliases):
                    self._add_alias(entry, Alias(alias) if isinstance(alias, str) else alias, rank, spellings)
        for targets in self._targets.values():
            targets.sort(key=lambda target: -len(target.labels))

    def _add_entry(self, entry: Entry) -> None:
        if entry.name in self._entries:
            raise UsageError(f"catalogue: series {entry.name} is defined twice; keep one of them")
        self._entries[entry.name] = entry
        self._register(entry.name, _Target({}, entry.name, 1.0, 0))
        if entry.kind == "histogram":
            for member in HISTOGRAM_MEMBERS:
                name = entry.name + member
                unit = entry.unit if member == "_sum" else "observations"
                self._entries[name] = msgspec.structs.replace(entry, name=name, unit=unit, kind="counter", aliases={})
                self._register(name, _Target({}, name, 1.0, 0))

    def _add_alias(self, entry: Entry, alias: Alias, rank: int, respellings: list[_Respelling]) -> None:
        names = [alias.name]
        for respelling in respellings:
            if alias.name.startswith(respelling.source):
                stem = alias.name.removeprefix(respelling.source)
                names += [target + stem for target in respelling.targets]
        for name in names:
            if entry.kind == "histogram":
                self._register(name + "_sum", _Target(alias.labels, entry.name + "_sum", alias.scale, rank))
                self._register(name + "_count", _Target(alias.labels, entry.name + "_count", 1.0, rank))
                if alias.scale == 1.0:  # a scaled bucket would carry its `le` bound in the exposed unit
                    self._register(name + "_bucket", _Target(alias.labels, entry.name + "_bucket", 1.0, rank))
            else:
                target = _Target(alias.labels, entry.name, alias.scale, rank)
                self._register(name, target)
                if entry.kind == "counter":
                    stem = name.removesuffix(TOTAL)
                    self._register(stem if stem != name else name + TOTAL, target)

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

    def entry(self, series: str) -> Entry | None:
        """What a canonical series is; None when the catalogue does not have it."""
        return self._entries.get(series)

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

    def _find(self, raw_name: str, labels: Mapping[str, str]) -> _Target | None:
        for target in self._targets.get(raw_name, ()):
            if all(labels.get(key) == value for key, value in target.labels.items()):
                return target
        return None


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
    return Catalog(content.series, content.respelling)


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
