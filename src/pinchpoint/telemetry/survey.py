"""Looks at everything that can be seen of a service for a while: pages, this host, its processes, its accelerators.

One thread per source, each on its own grid, as in the collector; nothing is written anywhere. Saved pages and saved
outputs of vendors' tools are looked at once.
"""

import gzip
import ssl
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import psutil

from pinchpoint.catalog import Catalog
from pinchpoint.clock import monotonic_ns
from pinchpoint.coverage import survey as page_coverage
from pinchpoint.errors import PinchpointError, UsageError
from pinchpoint.seen import LAYERS, Absent, Layer, SeenPage, Survey, Watcher
from pinchpoint.telemetry.collect import Pacer
from pinchpoint.telemetry.config import Source
from pinchpoint.telemetry.discovery import Discovery, FoundPage
from pinchpoint.telemetry.host import Host
from pinchpoint.telemetry.null_request import NULL_PERIOD_S, NullRequest
from pinchpoint.telemetry.nvml import find_nvml
from pinchpoint.telemetry.page import MAX_PAGE_BYTES, Page, what_instead
from pinchpoint.telemetry.process import Server
from pinchpoint.telemetry.smi import SMI_PERIOD_S, find_smi, recognise

JOIN_TIMEOUT_S = 1.0
"""A source that hangs at the end is left behind."""
GZIP_MAGIC = b"\x1f\x8b"
NOT_A_PAGE = {
    "html": "is a page for people (HTML)",
    "json": "is JSON",
    "binary": "is a binary file",
    "no_samples": "holds no samples",
}
HARDWARE_EXPORTERS = ("dcgm", "amd", "ascend", "gaudi", "tpu")


@runtime_checkable
class _Closing(Protocol):
    def close(self) -> None: ...


class Watch:
    """Reads sources until it is left. Use as a context manager; `watcher` tells what was seen so far."""

    def __init__(self, catalog: Catalog, sources: Iterable[tuple[Source, float]]) -> None:
        """sources: each with its period in seconds."""
        self.watcher = Watcher(catalog)
        self.problems: list[str] = []
        self._sources = list(sources)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(source, period_s), name=source.name, daemon=True)
            for source, period_s in self._sources
        ]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        for source, _ in self._sources:
            if isinstance(source, _Closing):
                source.close()

    def _run(self, source: Source, period_s: float) -> None:
        pacer = Pacer(monotonic_ns(), period_s)
        try:
            while not self._stop.wait(pacer.wait_s(monotonic_ns())):
                t_ns, readings = source.read()
                self.watcher.add(source.name, t_ns, readings)
                pacer.advance(monotonic_ns())
        except (OSError, PinchpointError, psutil.Error) as error:
            self.problems.append(f"source {source.name} stopped: {error}; its later readings are missing")


class Machine(msgspec.Struct, frozen=True):
    """What is known of the machine of a service before anything is read."""

    local: bool
    """Whether it is this one."""
    server_pids: tuple[int, ...] = ()
    null_urls: tuple[str, ...] = ()
    """Pages of the service that need no model."""


def local_sources(
    machine: Machine, period_s: float, api_key: str | None, tls: ssl.SSLContext | None, tell: Callable[[str], None]
) -> list[tuple[Source, float]]:
    """Sources that need no page: this host always; its accelerators and the service's processes when it is local.

    tell: gets sentences about what could be seen and is not.
    """
    sources: list[tuple[Source, float]] = [(Host(), period_s)]
    if machine.server_pids:
        sources.append((Server(machine.server_pids), period_s))
    if machine.null_urls:
        sources.append((NullRequest(machine.null_urls, api_key, tls), NULL_PERIOD_S))
    if machine.local:
        nvml = find_nvml(tell)
        if nvml is not None:
            sources.append((nvml, period_s))
        sources += [(smi, max(period_s, SMI_PERIOD_S)) for smi in find_smi(("nvidia",) if nvml is not None else ())]
    return sources


def make_survey(
    catalog: Catalog,
    watch: Watch,
    found: Sequence[FoundPage],
    discoveries: Iterable[Discovery],
    local: bool,
    notes: Iterable[str],
) -> Survey:
    """What the watch has seen by now."""
    rows = watch.watcher.rows()
    pages = tuple(
        SeenPage(each.page.url, each.page.name, each.title, page_coverage(catalog, each.page.samples)) for each in found
    )
    refused = [
        f"{each.url} wants a key: it answers HTTP {each.reason.removeprefix('http_')}"
        for discovery in discoveries
        for each in discovery.nothing
        if not each.given and each.reason in ("http_401", "http_403")
    ]
    return Survey(
        rows=rows,
        pages=pages,
        absent=absent(catalog, {row.layer for row in rows}, local),
        troubles=watch.watcher.troubles(),
        notes=(*notes, *watch.problems, *refused),
        span_s=watch.watcher.span_s,
    )


def absent(catalog: Catalog, seen: set[Layer], local: bool) -> tuple[Absent, ...]:
    """Layers of which nothing is seen, each with how to see it."""
    engines = [each for each in catalog.exporters.values() if each.layer == "engine" and not each.companion]
    gateways = [each.title for each in catalog.exporters.values() if each.layer == "gateway"]
    hardware = [catalog.exporters[name] for name in HARDWARE_EXPORTERS if name in catalog.exporters]
    ports = ", ".join(f"{each.title} (port {each.ports[0]})" for each in hardware if each.ports)
    how: dict[Layer, str] = {
        "engine": "turn on the engine's page of metrics. "
        + " ".join(f"{each.title}: {each.enable}" for each in engines),
        "gateway": f"where there is one, give the URL of its page too. Known: {', '.join(gateways)}.",
        "accelerator": f"run its exporter on the service's host: {ports}; "
        + (
            "for NVIDIA GPUs of this host install pinchpoint[gpu]."
            if local
            else "or `pinchpoint agent` there, and give its URL too."
        ),
        "host": "run `pinchpoint agent` or node-exporter (port 9100) on the service's host, and give its URL too.",
        "server": (
            "no process of this host was found to be the service's."
            if local
            else "processes are read where they run: start `pinchpoint agent` there, and give its URL too."
        ),
        "client": "the load generator tells of itself while it runs: pinchpoint run, pinchpoint load.",
        "network": "connections are measured under load: pinchpoint run, pinchpoint load.",
    }
    return tuple(Absent(layer, how[layer]) for layer in LAYERS if layer not in seen and layer in how)


def survey_files(catalog: Catalog, paths: Sequence[Path]) -> Survey:
    """Coverage and values of saved pages and of saved outputs of vendors' tools, gzipped or not.

    Raises UsageError for a file that is neither.
    """
    watcher = Watcher(catalog)
    pages: list[SeenPage] = []
    for path in paths:
        name = path.name
        data = _read(path)
        parser = recognise(data)
        if parser is not None:
            watcher.add(name, 0, parser(data))
            pages.append(SeenPage(str(path), name, f"output of {parser.name}", None))
            continue
        page = Page(str(path), name, catalog)
        readings = page.read_page(data)
        if not page.names:
            raise UsageError(
                f"{path} {NOT_A_PAGE[what_instead(data)]}, no page of metrics; save one with "
                "`curl http://HOST:PORT/metrics > FILE`, or give the output of nvidia-smi -q or rocm-smi --json"
            )
        if what_instead(data) == "html":
            raise UsageError(f"{path} {NOT_A_PAGE['html']}; save the page of metrics itself, not its rendering")
        watcher.add(name, 0, readings)
        covered = page_coverage(catalog, page.samples)
        main = [each.title for each in covered.exporters if not catalog.exporters[each.exporter].companion]
        title = main[0] if main else "a page that the catalogue does not know"
        pages.append(SeenPage(str(path), name, title, covered))
    return Survey(watcher.rows(), tuple(pages), (), watcher.troubles(), (), 0.0)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PAGE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give a file, or a URL that begins with http") from None
    if data.startswith(GZIP_MAGIC):
        try:
            with gzip.GzipFile(fileobj=BytesIO(data)) as packed:
                data = packed.read(MAX_PAGE_BYTES + 1)
        except (OSError, EOFError, zlib.error):
            raise UsageError(f"{path} is compressed and damaged; save it again") from None
    if len(data) > MAX_PAGE_BYTES:
        raise UsageError(f"{path} has more than {MAX_PAGE_BYTES >> 20} MB; no page of metrics is that large")
    return data
