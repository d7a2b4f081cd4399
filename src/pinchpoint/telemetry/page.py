"""A page of metrics of any exporter: an engine's, a router's, a GPU exporter's, a node-exporter's.

Every sample is kept under its exposed name; those the catalogue knows get their canonical series and unit as well.
A value that cannot be one of its series (negative: exporters say -1 for "failed"; NaN; Inf) stays raw only.
`*_created` samples are left out: they are creation times, and double the page.

The page is a stranger's. One that is too large, endless, cut off, compressed or no page of metrics at all is refused as
a whole, because half a page read as a whole one would say that counters vanished; the refusal is an event with its
reason, and what the page said before stays as it was. What is odd about a page that can be read (samples given twice,
names that changed, counters that fell, another process behind it) is an event beside its readings.
"""

import math
import ssl
import zlib
from collections.abc import Mapping
from typing import Literal
from urllib.parse import SplitResult, urljoin, urlsplit

from pinchpoint.catalog import Catalog, format_labels
from pinchpoint.clock import NS_PER_S, monotonic_ns, realtime_offset_ns
from pinchpoint.fetch import Answer, FetchError, bearer, get
from pinchpoint.telemetry.clock_offset import ClockOffset, date_bounds_ns
from pinchpoint.telemetry.config import Reading, event
from pinchpoint.telemetry.node_page import NodeShares
from pinchpoint.telemetry.prometheus import MAX_HEADS, PrometheusParser, RawSample

SCRAPE_TIMEOUT_S = 5.0
"""Half of Prometheus' default scrape_timeout: with a two-per-second schedule, later answers are of little use."""
MAX_PAGE_BYTES = 8 << 20
"""Our bound, ten times the largest page seen (node-exporter with every collector: 0.4 MB; a Ray node: 0.8 MB)."""
TOO_LARGE_PAUSE_S = 30.0
"""A page that was refused for its size is asked for again after this: eight megabytes a second would be load."""
MAX_REDIRECTS = 3
CREATED = "_created"
HTTP_OK = 200
REDIRECTS = (301, 302, 303, 307, 308)
DEFAULT_PORTS = {"http": 80, "https": 443}
ACCEPT = "text/plain;version=0.0.4;q=1,*/*;q=0.1"
"""The plain format before OpenMetrics, which would add exemplars and creation times."""
TEXT_TYPES = ("text/plain", "application/openmetrics-text")
OPENMETRICS = "application/openmetrics-text"
OPENMETRICS_END = b"# EOF"
HEAD_BYTES = 4096
"""Of a page that holds no samples, as much is looked at to say what it is."""
ZLIB_ANY_HEADER = 32 + zlib.MAX_WBITS
"""zlib finds out by itself whether it is gzip or zlib."""
COUNTER_ENDINGS = ("_total", "_count", "_bucket")
START_NAMES = ("process_start_time_seconds",)
CLOCK_SERIES = "host.clock_unix_s"
MACHINE_LAYERS = ("host", "gpu", "server")
"""Layers whose readings say which machine they are of, when it is not this one."""

Refused = Literal["no_samples", "html", "json", "binary"]


class _Known:
    """What is known of one sample: where it goes, and its value on the page before."""

    __slots__ = ("before", "counter", "exposed", "feeds", "labels", "name", "place", "scale", "series", "skip", "turn")

    def __init__(self, name: str) -> None:
        self.name = name
        self.exposed: list[dict[str, str]] = []
        """One for each spelling of its labels. Held so that their ids, the keys of the cache, are not given away."""
        self.skip = name.endswith(CREATED)
        self.series: str | None = None
        self.scale = 1.0
        self.place: tuple[int, str] = (0, name)
        """Rank and group among the names of its series."""
        self.labels = ""
        self.counter = name.endswith(COUNTER_ENDINGS)
        self.feeds = False
        """Whether it feeds its series on the present page, where several names may."""
        self.before = -math.inf
        self.turn = 0
        """Number of the page it was on last."""


class Page:
    """One page, scraped again and again by one thread: never more than one scrape is in flight.

    name: of the source. host: the machine that the page is of, when it is not this one; a label of its readings.
    """

    def __init__(
        self,
        url: str,
        name: str,
        catalog: Catalog,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        host: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """timeout_s: for one scrape; None: SCRAPE_TIMEOUT_S."""
        self.name = name
        self.url = url
        """As it was last redirected within its own server."""
        self.clock = ClockOffset()
        """Of the clock behind the page, against the wall clock as it was when this object was made."""
        self._catalog = catalog
        self._tls = tls
        self._host = host
        self._timeout_s = timeout_s
        self._headers = {"Accept": ACCEPT, **bearer(api_key), **(headers or {})}
        self._parser = PrometheusParser()
        self._known: dict[tuple[str, int], _Known] = {}
        self._by_text: dict[tuple[str, str], _Known] = {}
        self._layout: list[_Known] = []
        self._names: set[str] = set()
        self._started: float | None = None
        self._content_type: str | None = None
        self._turn = 0
        self._quiet_until_ns = 0
        self._wall_offset_ns, _ = realtime_offset_ns()
        self._own_labels = format_labels({"source": name})
        self._shares = NodeShares(format_labels({"host": host}) if host is not None else "")

    @property
    def samples(self) -> list[RawSample]:
        """Each sample on the page that was read last, as exposed; its value is not kept."""
        return [RawSample(known.name, known.exposed[0], math.nan) for known in self._layout]

    @property
    def names(self) -> frozenset[str]:
        """Of the samples on the page that was read last."""
        return frozenset(self._names)

    def rename(self, name: str) -> None:
        """Another name for the source, once it is known what the page is of."""
        self.name = name
        self._own_labels = format_labels({"source": name})

    def read(self) -> tuple[int, list[Reading]]:
        """One scrape. Its instant is the middle between asking and having the answer, where the values were true."""
        asked_ns = monotonic_ns()
        if asked_ns < self._quiet_until_ns:
            return asked_ns, [event("scrape_skipped", "reason=too_large")]
        try:
            answer, asked_ns = self._get()
            answered_ns = monotonic_ns()
            page = self._text(answer)
            if what_instead(page) == "html":
                raise FetchError("html", "a page for people")
        except FetchError as error:
            if error.reason == "too_large":
                self._quiet_until_ns = monotonic_ns() + int(TOO_LARGE_PAUSE_S * NS_PER_S)
            return monotonic_ns(), [event("scrape_failed", _reason(error))]
        readings = self.read_page(page)
        if not self._layout:
            return answered_ns, [event("scrape_failed", f"reason={what_instead(page)}")]
        readings += self._shares.read(readings)
        readings += self._content(answer) + self._offset(answer, readings, asked_ns, answered_ns)
        readings.append(Reading("scrape_s", "source.scrape_s", self._own_labels, (answered_ns - asked_ns) / NS_PER_S))
        readings.append(Reading("scrape_bytes", "source.page_bytes", self._own_labels, float(len(page))))
        return (asked_ns + answered_ns) // 2, readings

    def read_page(self, page: bytes) -> list[Reading]:
        """Readings and events of one page that is whole; none but events where it holds no samples."""
        samples, malformed = self._parser.parse(page)
        self._turn += 1
        turn = self._turn
        found: list[_Known] = []
        values: list[float] = []
        duplicates = 0
        fallen: list[_Known] = []
        known_by_head = self._known
        for name, labels, value in samples:
            # The parser hands out the same dict for a line head it remembers, so identity is enough and cheap.
            known = known_by_head.get((name, id(labels)))
            if known is None:
                known = self._learn(name, labels)
            if known.skip:
                continue
            if known.turn == turn:
                duplicates += 1  # the first one stands
                continue
            known.turn = turn
            if known.counter:
                if value < known.before:
                    fallen.append(known)
                known.before = value
            found.append(known)
            values.append(value)
        readings: list[Reading] = []
        if found != self._layout:
            readings += self._lay_out(found)
        unusable = 0
        for known, value in zip(found, values, strict=True):
            if not known.feeds:
                readings.append(Reading(known.name, None, known.labels, value))
            elif 0 <= value < math.inf:
                readings.append(Reading(known.name, known.series, known.labels, value * known.scale))
            else:
                unusable += 1
                readings.append(Reading(known.name, None, known.labels, value))
        readings += self._restarts(found, values, fallen)
        for raw, count in (
            ("scrape_malformed_lines", malformed),
            ("scrape_duplicate_samples", duplicates),
            ("scrape_unusable_values", unusable),
        ):
            if count:
                readings.append(Reading(raw, None, "", float(count)))
        return readings

    # -- samples -----------------------------------------------------------------------------------------------------

    def _learn(self, name: str, labels: dict[str, str]) -> _Known:
        """Where a sample goes. Two spellings of the same labels are one sample."""
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
            self._by_text.clear()
        match = self._catalog.match(name, labels)
        # Not the series' labels: of two exposed samples that become one there, both are kept.
        text = (name, format_labels(labels))
        known = self._by_text.get(text)
        if known is None:
            known = self._by_text[text] = _Known(name)
            known.labels = text[1]
            if match is not None:
                entry = self._catalog.entry(match.series)
                known.series, known.scale, known.place = match.series, match.scale, (match.rank, match.group)
                known.counter = entry is not None and entry.kind == "counter"
                own = match.labels
                if self._host is not None and entry is not None and entry.layer in MACHINE_LAYERS:
                    own = {**own, "host": self._host}
                known.labels = format_labels(own)
        self._known[name, id(labels)] = known
        known.exposed.append(labels)
        return known

    def _lay_out(self, found: list[_Known]) -> list[Reading]:
        """Decides which name feeds each series, and tells which names came and went."""
        best: dict[str, tuple[int, str]] = {}
        for known in found:
            if known.series is not None:
                best[known.series] = min(known.place, best.get(known.series, known.place))
        for known in found:
            known.feeds = known.series is not None and best[known.series] == known.place
        names = {known.name for known in found}
        gone, new = self._names - names, names - self._names
        first = not self._layout
        self._layout, self._names = found, names
        if first or not found or not (gone or new):
            return []
        if not gone:  # the first request of its kind brings names along
            return [event("page_names_added", format_labels({"count": str(len(new)), "example": min(new)}))]
        told = {"gone": str(len(gone)), "new": str(len(new)), "example": min(gone)}
        return [event("page_names_changed", format_labels(told))]

    def _restarts(self, found: list[_Known], values: list[float], fallen: list[_Known]) -> list[Reading]:
        events: list[Reading] = []
        started = next((v for k, v in zip(found, values, strict=True) if k.name in START_NAMES), None)
        if started is not None:
            if self._started is not None and started != self._started:
                events.append(event("exporter_restarted", "reason=start_time"))
            self._started = started
        if fallen:
            told = {"count": str(len(fallen)), "example": fallen[0].series or fallen[0].name}
            events.append(event("counter_reset", format_labels(told)))
        return events

    # -- exchange ----------------------------------------------------------------------------------------------------

    def _get(self) -> tuple[Answer, int]:
        """The answer with status 200, and when it was asked for. Follows redirects within the same server."""
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            asked_ns = monotonic_ns()
            answer = get(url, self._headers, self._timeout_s or SCRAPE_TIMEOUT_S, MAX_PAGE_BYTES, self._tls)
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                if answer.status != HTTP_OK:
                    raise FetchError(f"http_{answer.status}")
                self.url = url
                return answer, asked_ns
            url = _within(url, answer.headers["location"])
        raise FetchError("redirects", f"more than {MAX_REDIRECTS} in a row")

    def _text(self, answer: Answer) -> bytes:
        """The page, decompressed. Raises FetchError when it is cut off."""
        page = _decompressed(answer.body, answer.headers.get("content-encoding", "").strip().lower())
        if _media_type(answer) == OPENMETRICS:
            whole = page.rstrip().endswith(OPENMETRICS_END)
        else:
            # The format ends each line. One that is cut between two lines of a page without length cannot be told.
            whole = answer.framed or page.endswith(b"\n") or not page
        if not whole:
            raise FetchError("truncated", "the page ends in the middle")
        return page

    def _content(self, answer: Answer) -> list[Reading]:
        """An event when a page of metrics says that it is something else; once, until it says otherwise."""
        media_type = _media_type(answer)
        if media_type == self._content_type:
            return []
        self._content_type = media_type
        if media_type in TEXT_TYPES:
            return []
        return [event("page_content_type", format_labels({"type": media_type or "none"}))]

    def _offset(self, answer: Answer, readings: list[Reading], asked_ns: int, answered_ns: int) -> list[Reading]:
        """What this exchange told about the clock behind the page."""
        asked_ns, answered_ns = asked_ns + self._wall_offset_ns, answered_ns + self._wall_offset_ns
        before = self.clock.contradictions
        exact_s = next((reading.value for reading in readings if reading.series == CLOCK_SERIES), None)
        if exact_s is not None:
            stamp_ns = int(exact_s * NS_PER_S)
            self.clock.observe(stamp_ns, stamp_ns, asked_ns, answered_ns)
        elif "age" not in answer.headers:  # else a cache's copy
            told = date_bounds_ns(answer.headers.get("date", ""), answer.headers.get("server", ""))
            if told is not None:
                self.clock.observe(*told, asked_ns, answered_ns)
        estimate = self.clock.estimate_s(answered_ns)
        if estimate is None:
            return []
        told_s = zip(("source.clock_offset_s", "source.clock_offset_error_s"), estimate, strict=True)
        events = [event("clock_set", self._own_labels)] if self.clock.contradictions > before else []
        return [*(Reading(name, name, self._own_labels, value) for name, value in told_s), *events]


def what_instead(page: bytes) -> Refused:
    """What an answer without samples seems to be."""
    head = page[:HEAD_BYTES].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "html"
    if head.startswith((b"{", b"[")):
        return "json"
    return "binary" if b"\x00" in page[:HEAD_BYTES] else "no_samples"


def _reason(error: FetchError) -> str:
    return format_labels({"reason": error.reason})


def _media_type(answer: Answer) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _within(url: str, location: str) -> str:
    """Where a redirect leads, when that is the same server: another one was not asked for, and gets no key."""
    try:
        target = urljoin(url, location)
        here, there = urlsplit(url), urlsplit(target)
        same = _server(here) == _server(there)
    except ValueError:
        raise FetchError("redirected", "to an address that is none") from None
    if not same:
        raise FetchError("redirected", "to another server")
    return target


def _server(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)


def _decompressed(body: bytes, encoding: str) -> bytes:
    """No more than MAX_PAGE_BYTES, however small the body: a kilobyte can stand for a gigabyte."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchError("encoding", "compressed in a way that was not asked for")
    unpacker = zlib.decompressobj(ZLIB_ANY_HEADER)
    try:
        page = unpacker.decompress(body, MAX_PAGE_BYTES + 1)
    except zlib.error:
        raise FetchError("encoding", "is not compressed as it says") from None
    if len(page) > MAX_PAGE_BYTES:
        raise FetchError("too_large", f"more than {MAX_PAGE_BYTES} bytes")
    if not unpacker.eof:
        raise FetchError("truncated", "the compressed page ends in the middle")
    return page
