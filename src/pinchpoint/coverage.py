"""What a page of metrics shows of what the catalogue knows: whose page it is, which series it has, which it lacks.

For the survey of a service (`pinchpoint telemetry`) and for the table of coverage in the documentation. Works on names
and labels; values do not matter, and nothing is fetched here.

The surprising thing: a page can be of several exporters at once. vLLM's shows the engine, its HTTP framework and its
process; a runtime that passes an engine's page on shows names of both.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Protocol

import msgspec

from pinchpoint.catalog import HISTOGRAM_MEMBERS, TOTAL, Catalog

CREATED = "_created"
"""Creation times of counters and histograms, which prometheus_client exposes beside them."""


class Named(Protocol):
    """A sample of a page, such as the parser's: what it is called, not what it is worth."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...


class Evidence(msgspec.Struct, frozen=True):
    """Why a page is held to be of an exporter."""

    exporter: str
    known: tuple[str, ...]
    """Names that lead to a series under this exporter."""
    alike: tuple[str, ...]
    """Names that only begin like its others, and that the catalogue does not know: it is older than the page."""
    left_out: tuple[str, ...]
    """Names that the catalogue knows to be of no use to a diagnosis."""

    @property
    def names(self) -> int:
        return len(self.known) + len(self.alike) + len(self.left_out)


class Missing(msgspec.Struct, frozen=True):
    """A series that the exporter could show and this page does not."""

    series: str
    hint: str | None
    """How to get it; None where the page should show it by itself, or nobody has written down how."""


class Coverage(msgspec.Struct, frozen=True):
    """What a page shows of one exporter."""

    exporter: str
    title: str
    found: tuple[str, ...]
    missing: tuple[Missing, ...]
    names: int
    """Exposed names that are this exporter's: histograms and counters count once, whatever their endings."""
    unknown: tuple[str, ...]
    """Of these, those that the catalogue does not know."""
    left_out: tuple[str, ...]
    """Of these, those that it knows to say nothing to a diagnosis."""

    @property
    def share(self) -> float:
        """Series found over all that the catalogue has under this exporter; names of older versions count."""
        return len(self.found) / max(1, len(self.found) + len(self.missing))

    @property
    def unexplained(self) -> tuple[str, ...]:
        """Missing series without a hint: the page should show them, or its version is another."""
        return tuple(each.series for each in self.missing if each.hint is None)

    @property
    def share_expected(self) -> float:
        """`share` without the missing series that have a hint, which are off or not in use."""
        return len(self.found) / max(1, len(self.found) + len(self.unexplained))


class PageCoverage(msgspec.Struct, frozen=True):
    """What a page shows, by exporter, the one with the most names first and companions last."""

    exporters: tuple[Coverage, ...]
    strangers: tuple[str, ...]
    """Names that belong to no exporter of the catalogue."""


def family(name: str) -> str:
    """A sample's name without the endings of histograms, counters and creation times."""
    stem = name.removesuffix(CREATED)
    for member in HISTOGRAM_MEMBERS:
        if stem.endswith(member) and len(stem) > len(member):
            stem = stem.removesuffix(member)
            break
    return stem.removesuffix(TOTAL)


def which_exporter(catalog: Catalog, samples: Iterable[Named]) -> list[Evidence]:
    """Exporters that a page is of, most names first and companions last; none of them on a page of strangers."""
    return [evidence for evidence, _ in _claims(catalog, samples)[0]]


def survey(catalog: Catalog, samples: Iterable[Named]) -> PageCoverage:
    """Coverage of every exporter that a page is of."""
    claims, strangers = _claims(catalog, samples)
    return PageCoverage(tuple(_coverage(catalog, evidence, series) for evidence, series in claims), strangers)


def coverage(catalog: Catalog, exporter: str, samples: Iterable[Named]) -> Coverage:
    """What a page shows of one exporter, also where it shows nothing. Raises KeyError for an unknown exporter."""
    for evidence, series in _claims(catalog, samples)[0]:
        if evidence.exporter == exporter:
            return _coverage(catalog, evidence, series)
    return _coverage(catalog, Evidence(catalog.exporters[exporter].name, (), (), ()), set())


def series_of(catalog: Catalog, exporter: str) -> tuple[str, ...]:
    """Series that an exporter may show, in the order of the catalogue; a histogram is one."""
    return tuple(entry.name for entry in catalog.entries.values() if exporter in entry.aliases)


def _claims(catalog: Catalog, samples: Iterable[Named]) -> tuple[list[tuple[Evidence, set[str]]], tuple[str, ...]]:
    """By exporter the evidence and the series it shows (members of histograms as such); then the names of nobody."""
    known: dict[str, set[str]] = {}
    series: dict[str, set[str]] = {}
    seen: dict[str, bool] = {}
    for sample in samples:
        name, labels = sample.name, sample.labels
        if name.endswith(CREATED):
            continue
        owner = catalog.exposer(name, labels)
        stem = family(name)
        seen[stem] = seen.get(stem, False) or owner is not None
        if owner is not None:
            known.setdefault(owner, set()).add(stem)
            found, _ = catalog.resolve(name, labels)
            series.setdefault(owner, set()).add(found or "")
    alike: dict[str, set[str]] = {}
    left_out: dict[str, set[str]] = {}
    strangers: list[str] = []
    for stem, claimed in seen.items():
        if claimed:
            continue
        owner = _owner_by_prefix(catalog, stem)
        if owner is None:
            strangers.append(stem)
        else:
            useless = any(fnmatchcase(stem, pattern) for pattern in catalog.left_out(owner))
            (left_out if useless else alike).setdefault(owner, set()).add(stem)
    evidence = [
        Evidence(name, *(tuple(sorted(of.get(name, ()))) for of in (known, alike, left_out)))
        for name in catalog.exporters
        if name in known or (not catalog.exporters[name].companion and (name in alike or name in left_out))
    ]
    evidence.sort(key=lambda each: (catalog.exporters[each.exporter].companion, -each.names))
    return [(each, series.get(each.exporter, set())) for each in evidence], tuple(sorted(strangers))


def _owner_by_prefix(catalog: Catalog, stem: str) -> str | None:
    """The exporter with the longest prefix that fits: `ray_serve_x` is Ray Serve's, not Ray's."""
    fits = [
        (len(prefix), exporter.name)
        for exporter in catalog.exporters.values()
        for prefix in exporter.prefixes
        if stem.startswith(prefix)
    ]
    return max(fits)[1] if fits else None


def _coverage(catalog: Catalog, evidence: Evidence, series: set[str]) -> Coverage:
    exporter = catalog.exporters[evidence.exporter]
    found: list[str] = []
    missing: list[Missing] = []
    for name in series_of(catalog, exporter.name):
        members = {name, *(name + member for member in HISTOGRAM_MEMBERS)}
        if members & series:
            found.append(name)
        else:
            missing.append(Missing(name, exporter.hints.get(name)))
    return Coverage(
        exporter.name,
        exporter.title,
        tuple(found),
        tuple(missing),
        evidence.names,
        evidence.alike,
        evidence.left_out,
    )
