"""Which pages of metrics a service's host offers: looked for where engines, routers and exporters usually put them.

Asked are the host of the given URL and no other, on the URL's own port and on the ports of the catalogue, each once,
all at the same time and each within PROBE_TIMEOUT_S. Nothing is scanned: a port that no exporter of the catalogue uses
is not touched. The API key goes to the given server only; what listens on another port may be somebody else's.

A page on another port counts when the catalogue knows whose it is: any Go program has a page of metrics.
"""

import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from pinchpoint.catalog import Catalog, parse_labels
from pinchpoint.coverage import which_exporter
from pinchpoint.errors import UsageError
from pinchpoint.telemetry.page import DEFAULT_PORTS, Page

PROBE_TIMEOUT_S = 2.0
"""For a page that is only looked for. One that was given gets the page's own time."""
PROBES_AT_ONCE = 32
FIRST_PATHS = ("/metrics", "/metrics/", "/prometheus/metrics", "/monitoring/prometheus/metrics", "/stats/prometheus")
"""On the given server, in this order of preference."""
SOURCE_NAMES = {"engine": "engine", "gateway": "gateway", "gpu": "gpu", "host": "host-node", "server": "containers"}
"""What a page's source is called by the layer of its exporter."""


class Place(NamedTuple):
    """Where a page might be."""

    url: str
    given: bool
    """On the server that was asked for; else only on its host."""


class FoundPage(msgspec.Struct, frozen=True):
    page: Page
    """Ready to be read again."""
    exporter: str | None
    """Whose it mostly is, by its name in the catalogue; None: nobody's that the catalogue knows."""
    title: str
    layer: str


class NotThere(msgspec.Struct, frozen=True):
    """A place without a page of metrics, and why. reason: as in the event `scrape_failed`."""

    url: str
    reason: str
    given: bool


class Discovery(msgspec.Struct, frozen=True):
    pages: tuple[FoundPage, ...]
    """Of the given server first."""
    nothing: tuple[NotThere, ...]

    @property
    def trouble(self) -> NotThere | None:
        """Why the given server has no page: the reason that says most; None when it has one."""
        given = [each for each in self.nothing if each.given]
        if not given or any(found.page.url.startswith(_origin(given[0].url) + "/") for found in self.pages):
            return None
        # A page that is missing says less than a server that wants a key, fails or is not there at all.
        return min(given, key=lambda each: each.reason in ("http_404", "http_405", "json", "html", "no_samples"))


def places(url: str, catalog: Catalog, elsewhere: bool = True) -> list[Place]:
    """Everywhere that is asked. elsewhere: also on the host's other ports. Raises UsageError for a URL that is none.

    A URL with a path other than / and /v1 is that page itself, and then nothing else is asked on its server.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or port is None:
        raise UsageError(f"{url!r} is no http or https URL; give one like http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise UsageError("the URL holds credentials; leave them out and use --api-key-env NAME for a key")
    path = parts.path.rstrip("/").removesuffix("/v1")
    origin = f"{parts.scheme}://{parts.netloc}"
    if path or parts.query:
        own = [url] if not path.startswith("/v1") else [origin + tail for tail in FIRST_PATHS]
    else:
        own = [origin + tail for tail in FIRST_PATHS]
    found = [Place(each, True) for each in own]
    if elsewhere:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        others = {(each, exporter.path): None for exporter in catalog.exporters.values() for each in exporter.ports}
        # Exporters of hardware speak plain HTTP unless someone took trouble.
        found += [Place(f"http://{host}:{each}{tail}", False) for each, tail in others if each != port]
    return found


def discover(
    url: str,
    catalog: Catalog,
    *,
    api_key: str | None = None,
    tls: ssl.SSLContext | None = None,
    host: str | None = None,
    elsewhere: bool = True,
) -> Discovery:
    """Looks for pages around a base URL. host: the label of its machine, None when it is this one.

    Takes PROBE_TIMEOUT_S and the time of one page at most. Never raises for what a server does.
    """
    asked = places(url, catalog, elsewhere)
    pages = [
        Page(
            place.url,
            "page",
            catalog,
            api_key=api_key if place.given else None,
            tls=tls,
            host=host,
            timeout_s=None if place.given else PROBE_TIMEOUT_S,
        )
        for place in asked
    ]
    with ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
        answers = list(pool.map(_probe, pages))
    found: list[FoundPage] = []
    nothing: list[NotThere] = []
    seen: set[tuple[str, frozenset[str]]] = set()
    for place, page, reason in zip(asked, pages, answers, strict=True):
        if reason is not None:
            nothing.append(NotThere(place.url, reason, place.given))
            continue
        identified = identify(page, catalog)
        if not place.given and identified.exporter is None:
            nothing.append(NotThere(place.url, "unknown_exporter", False))
            continue
        same = (_origin(page.url), page.names)  # one page under two paths
        if same not in seen:
            seen.add(same)
            found.append(identified)
    return Discovery(tuple(named(found)), tuple(nothing))


def identify(page: Page, catalog: Catalog) -> FoundPage:
    """Whose page it is, by the names that it showed last."""
    evidence = [
        each for each in which_exporter(catalog, page.samples) if not catalog.exporters[each.exporter].companion
    ]
    if evidence:
        exporter = catalog.exporters[evidence[0].exporter]
        return FoundPage(page, exporter.name, exporter.title, exporter.layer)
    own = [catalog.entry(name) for name in sorted(page.names)]
    layers = [entry.layer for entry in own if entry is not None]
    if layers:
        return FoundPage(page, None, "pinchpoint agent", layers[0])
    return FoundPage(page, None, "a page that the catalogue does not know", "engine")


def named(found: Iterable[FoundPage]) -> list[FoundPage]:
    """Gives each page's source a name of its own, also over several discoveries."""
    counts: dict[str, int] = {}
    named = list(found)
    for each in named:
        name = SOURCE_NAMES.get(each.layer, each.layer)
        counts[name] = counts.get(name, 0) + 1
        each.page.rename(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return named


def _probe(page: Page) -> str | None:
    """None when it is a page of metrics, else why not."""
    _, readings = page.read()
    for reading in readings:
        if reading.raw == "scrape_failed":
            return parse_labels(reading.labels).get("reason", "failed")
    return None


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
