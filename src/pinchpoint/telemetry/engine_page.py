"""Source `engine`: the service's own metrics page.

Every sample is kept under its exposed name; those the catalogue knows get their canonical series and unit as well.
A value that cannot be one of its series (negative: exporters say -1 for "failed"; NaN; Inf) stays raw only.
`*_created` samples are left out: they are creation times, and double the page.
"""

import math
import ssl
from typing import NamedTuple

from pinchpoint.catalog import Catalog, format_labels
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.fetch import FetchError, bearer, get
from pinchpoint.telemetry.config import Reading, event
from pinchpoint.telemetry.prometheus import MAX_HEADS, PrometheusParser

SCRAPE_TIMEOUT_S = 5.0
"""Half of Prometheus' default scrape_timeout: with a two-per-second schedule, later answers are of little use."""
MAX_PAGE_BYTES = 8 << 20
CREATED = "_created"
HTTP_OK = 200


class _Known(NamedTuple):
    series: str | None
    scale: float
    place: tuple[int, str]
    """Rank and group among the names of its series."""
    labels: str
    parsed: dict[str, str]
    """Held so that its id, the key of the cache, is not given to another dict."""


class EnginePage:
    name = "engine"

    def __init__(
        self, url: str, catalog: Catalog, api_key: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._url = url
        self._catalog = catalog
        self._tls = tls
        self._headers = bearer(api_key)
        self._parser = PrometheusParser()
        self._known: dict[tuple[str, int], _Known] = {}

    def read(self) -> tuple[int, list[Reading]]:
        """One scrape. Its instant is the middle between asking and having the answer, where the values were true."""
        asked_ns = monotonic_ns()
        try:
            response = get(self._url, self._headers, SCRAPE_TIMEOUT_S, MAX_PAGE_BYTES, self._tls)
        except FetchError as error:
            return monotonic_ns(), [event("scrape_failed", f"reason={error.reason}")]
        answered_ns = monotonic_ns()
        if response.status != HTTP_OK:
            return answered_ns, [event("scrape_failed", f"reason=http_{response.status}")]
        readings = self.read_page(response.body)
        if not readings:
            return answered_ns, [event("scrape_failed", "reason=no_samples")]
        readings.append(Reading("scrape_s", None, "", (answered_ns - asked_ns) / NS_PER_S))
        return (asked_ns + answered_ns) // 2, readings

    def read_page(self, page: bytes) -> list[Reading]:
        samples, malformed = self._parser.parse(page)
        rows: list[tuple[str, _Known, float]] = []
        best: dict[str, tuple[int, str]] = {}
        for name, labels, value in samples:
            if name.endswith(CREATED):
                continue
            known = self._lookup(name, labels)
            if known.series is not None:
                best[known.series] = min(known.place, best.get(known.series, known.place))
            rows.append((name, known, value))
        readings = [
            Reading(name, known.series, known.labels, value * known.scale)
            if known.series is not None and best[known.series] == known.place and math.isfinite(value) and value >= 0
            else Reading(name, None, known.labels, value)
            for name, known, value in rows
        ]
        if malformed:
            readings.append(Reading("scrape_malformed_lines", None, "", float(malformed)))
        return readings

    def _lookup(self, name: str, labels: dict[str, str]) -> _Known:
        # The parser hands out the same dict for a line head it remembers, so identity is enough and cheap.
        known = self._known.get((name, id(labels)))
        if known is None:
            match = self._catalog.match(name, labels)
            if match is None:
                known = _Known(None, 1.0, (0, name), format_labels(labels), labels)
            else:
                place = (match.rank, match.group)
                known = _Known(match.series, match.scale, place, format_labels(match.labels), labels)
            if len(self._known) >= MAX_HEADS:
                self._known.clear()
            self._known[name, id(labels)] = known
        return known
