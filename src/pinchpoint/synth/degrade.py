"""Telemetry as it is in the field: missing, with holes, under other names, from another clock.

What is spoilt here is the collecting; the service and what it really does are the same with and without. Requests and
the load generator's own readings are never touched.
"""

import random
from collections.abc import Iterable, Sequence

from pinchpoint.catalog import HISTOGRAM_MEMBERS, TOTAL, Catalog
from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.telemetry.config import Reading

DEGRADATIONS: dict[str, str] = {
    "no-gpu": "no exporter tells about the GPUs",
    "no-engine": "the engine's metrics page is not to be had",
    "no-host": "the service's machine cannot be seen: neither the host nor the service's processes",
    "client-only": "nothing of the service's side is to be had; what clients see is all",
    "scrape-loss": "30 % of all scrapes of the service's side fail",
    "old-names": "the engine is a version or two older and has other metric names",
    "counter-resets": "the engine's counters begin anew, about once a minute",
    "clock-skew": "readings of the service's side are stamped by a clock that is 200 ms off",
}
"""Name -> what is wrong with the telemetry. They can be had together."""
ENGINE, GPU, HOST, NODE, SERVER = "engine", "gpu", "host", "node", "server"
_MISSING: dict[str, frozenset[str]] = {
    "no-gpu": frozenset({GPU}),
    "no-engine": frozenset({ENGINE}),
    "no-host": frozenset({HOST, NODE, SERVER}),
    "client-only": frozenset({ENGINE, GPU, HOST, NODE, SERVER}),
}
LOSS_RATIO = 0.3
SKEW_NS = NS_PER_S // 5
RESET_MEAN_S = 60.0


class Degrader:
    """Fixed by the seed and by the order of calls. names: of DEGRADATIONS; none: telemetry as it should be."""

    def __init__(self, names: Iterable[str], seed: int) -> None:
        self._names = frozenset(names)
        for name in self._names:
            if name not in DEGRADATIONS:
                raise UsageError(f"telemetry cannot be degraded by {name!r}; choose from {', '.join(DEGRADATIONS)}")
        self._missing = frozenset[str]().union(*(_MISSING.get(name, ()) for name in self._names))
        self._random = random.Random(f"degraded {seed}")
        self._skew_ns = (SKEW_NS if self._random.random() < 1 / 2 else -SKEW_NS) if "clock-skew" in self._names else 0
        self._resets: dict[str, _Resets] = {}

    @property
    def old_names(self) -> bool:
        return "old-names" in self._names

    def sees(self, source: str) -> bool:
        """Whether there is such a source at all."""
        return source not in self._missing

    @property
    def blind(self) -> bool:
        """Whether nothing of the service's side is seen."""
        return self._missing >= _MISSING["client-only"]

    def loses(self) -> bool:
        """Whether this scrape fails."""
        return "scrape-loss" in self._names and self._random.random() < LOSS_RATIO

    def stamped_ns(self, t_ns: int) -> int:
        """The instant that a reading of the service's side carries; never below 0."""
        return max(0, t_ns + self._skew_ns)

    def counters(self, page: str, t_ns: int, readings: Sequence[Reading], catalog: Catalog) -> Sequence[Reading]:
        """Readings of one page of the engine, with counters that have begun anew. page: which of several it is."""
        if "counter-resets" not in self._names:
            return readings
        if page not in self._resets:
            self._resets[page] = _Resets(random.Random(self._random.random()))
        return self._resets[page].applied(t_ns, readings, catalog)


class _Resets:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._next_ns = self._gap_ns()
        self._from: dict[tuple[str, str], float] = {}

    def _gap_ns(self) -> int:
        return round(self._chance.expovariate(1 / RESET_MEAN_S) * NS_PER_S)

    def applied(self, t_ns: int, readings: Sequence[Reading], catalog: Catalog) -> Sequence[Reading]:
        if t_ns >= self._next_ns:
            self._next_ns = t_ns + self._gap_ns()
            self._from = {(r.raw, r.labels): r.value for r in readings if _counts(r, catalog)}
        if not self._from:
            return readings
        return [r._replace(value=max(0.0, r.value - self._from.get((r.raw, r.labels), 0.0))) for r in readings]


def _counts(reading: Reading, catalog: Catalog) -> bool:
    """Whether it only grows. Names outside the catalogue are told by their ending."""
    if reading.series is not None:
        entry = catalog.entry(reading.series)
        return entry is not None and entry.kind == "counter"
    return reading.raw.endswith((TOTAL, *HISTOGRAM_MEMBERS))
