"""What is read beside a load: which sources a plan and a service have, begun before the load and ended after it.

Whatever is wrong with what the plan asks for is told before the run begins. What a source does later costs only its own
readings.
"""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.clock import monotonic_ns, realtime_offset_ns
from pinchpoint.errors import PinchpointError, UnsupportedMeasurementError, UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.model import TargetFacts
from pinchpoint.plan import OtlpSpec, Plan
from pinchpoint.probe.address import parse_address
from pinchpoint.probe.local import listening_pids
from pinchpoint.recorder import Recorder
from pinchpoint.report.telemetry_text import REASONS
from pinchpoint.telemetry.config import CollectorConfig, OtlpAt, PageAt, Reading, Source
from pinchpoint.telemetry.discovery import discover
from pinchpoint.telemetry.handle import CollectorHandle, start_collector
from pinchpoint.telemetry.inventory import describe_host
from pinchpoint.telemetry.page import Page
from pinchpoint.telemetry.prometheus_api import PrometheusServer, auth_headers
from pinchpoint.telemetry.remote_host import RemoteHost, parse_remote_host
from pinchpoint.telemetry.stacks import StackSampling, find_py_spy
from pinchpoint.traceids import salt_of

EXPORT_MARGIN_S = 1.0
"""Spans come so much later than their sender's delay."""
STACKS_MAX_S = 20.0
"""Of a window of stacks: enough to tell where the time goes; sampling slows a process a little."""
STACKS_TOLD = 3
MODELS_PATH = "/v1/models"


class Collecting:
    """The sources of one run. `start` once the load processes are there, `finish` whatever happened.

    Raises UsageError for what the plan asks for and cannot be had: pages that are none, a Prometheus server that does
    not answer, an empty variable of a token.
    """

    def __init__(self, plan: Plan, facts: TargetFacts, api_key: str | None, *, local: bool) -> None:
        """local: the service runs on this host."""
        spec = plan.telemetry
        if local and not facts.server_pids and plan.transport.unix_socket is None and plan.transport.proxy is None:
            pids, _ = listening_pids(parse_address(facts.url.replace("grpc", "http", 1)))
            facts = msgspec.structs.replace(facts, server_pids=pids)
        self._plan, self._facts, self._api_key, self._local = plan, facts, api_key, local
        self._tls = tls_context(plan.ca_file)
        self._pages = self._find_pages()
        self._hosts = spec.hosts
        self._check_hosts()
        self._prometheus: PrometheusServer | None = None
        self.notes: list[str] = []
        """What there is to say before the load begins."""
        if spec.prometheus is not None:
            asked = spec.prometheus
            self._prometheus = PrometheusServer(
                asked.url,
                asked.selector,
                load_catalog(),
                headers=auth_headers(asked.token_env, asked.login_env),
                tls=self._tls if asked.url.startswith("https://") else None,
            )
            self._prometheus.check()
        if spec.otlp is not None:
            _check_listening(spec.otlp)
            self.notes.append(
                f"spans are received at http://{spec.otlp.host}:{spec.otlp.http_port} (HTTP) and "
                f"{spec.otlp.host}:{spec.otlp.grpc_port} (gRPC)"
            )
        if spec.stacks and find_py_spy() is None:
            raise UsageError("--stacks needs py-spy; pip install 'pinchpoint[stacks]'")
        if spec.stacks and not facts.server_pids:
            self.notes.append("no stacks are sampled: the service has no processes that can be seen on this host")
        if spec.spans is not None and not Path(spec.spans).exists():
            raise UsageError(f"there is no {spec.spans}; give the file or the directory of the spans")
        self._collector: CollectorHandle | None = None
        self._stacks: StackSampling | None = None
        self._begun_ns, self._run_id = 0, ""

    def _find_pages(self) -> tuple[PageAt, ...]:
        """The engine's page first. Pages that are found are told apart from those of the plan by their URLs only."""
        spec, facts = self._plan.telemetry, self._facts
        machine = None if self._local else urlsplit(facts.url).hostname
        pages = [PageAt("engine", facts.metrics_url, keyed=True)] if facts.metrics_url is not None else []
        for place, text in enumerate(spec.pages):
            name, equals, url = text.partition("=")
            if not equals or "/" in name:
                name, url = f"page-{place + 1}", text
            _first_reading(Page(url, name, load_catalog(), tls=self._tls), url)
            if name == f"page-{place + 1}":
                pages.append(PageAt(name, url, host=None if _is_here(url) else urlsplit(url).hostname))
            else:
                pages.append(PageAt(name, url, host=name))
        if spec.discover and urlsplit(facts.url).scheme in ("http", "https"):
            known = {page.url.rstrip("/") for page in pages}
            found = discover(facts.url, load_catalog(), api_key=self._api_key, tls=self._tls, host=machine)
            for one in found.pages:
                keyed = _origin(one.page.url) == _origin(facts.url)
                taken = keyed and facts.metrics_url is not None
                if not taken and one.page.url.rstrip("/") not in known:
                    pages.append(PageAt(one.page.name, one.page.url, keyed=keyed, host=machine))
        return _with_own_names(pages)

    def _check_hosts(self) -> None:
        spec = self._plan.telemetry
        token = os.environ.get(spec.host_token_env, "").strip() if spec.host_token_env is not None else None
        if token == "":
            raise UsageError(f"the environment variable {spec.host_token_env} is empty; put the agents' token into it")
        for text in spec.hosts:
            address = parse_remote_host(text)
            readings = _first_reading(RemoteHost(address, load_catalog(), token, self._tls), address.url)
            if not any((reading.series or "").startswith("host.") for reading in readings):
                raise UsageError(
                    f"{address.url} tells nothing of a host; give a page of an engine or exporter as a page"
                )

    def start(self, run_path: Path, run_id: str, client_pids: Sequence[int], recorder: Recorder) -> None:
        """Raises UnsupportedMeasurementError when the collector cannot begin."""
        spec, facts = self._plan.telemetry, self._facts
        otlp = spec.otlp
        for note in self.notes:
            recorder.on_event("telemetry", message=note)
        for page in self._pages:
            recorder.on_event("telemetry", message=f"page {page.name} at {page.url}")
        for host in self._hosts:
            recorder.on_event("telemetry", message=f"host {host}")
        if self._local:
            recorder.on_host(msgspec.to_builtins(describe_host()))
        self._begun_ns, self._run_id = monotonic_ns(), run_id
        self._collector = start_collector(
            CollectorConfig(
                out_dir=str(run_path.resolve()),
                pages=self._pages,
                hosts=self._hosts,
                host_token_env=spec.host_token_env,
                otlp=OtlpAt(otlp.host, otlp.http_port, otlp.grpc_port, run_id if spec.traced else None)
                if otlp is not None
                else None,
                accelerators=self._local,
                server_pids=facts.server_pids,
                client_pids=tuple(client_pids),
                null_request_urls=_null_requests(facts),
                period_s=spec.period_s,
                ca_file=self._plan.ca_file,
            ),
            self._api_key,
        )

    def check(self) -> None:
        """Raises UnsupportedMeasurementError when the collector has ended by itself, as when a port is taken."""
        if self._collector is not None and not self._collector.alive():
            why = self._collector.complaint() or "it said nothing"
            raise UnsupportedMeasurementError(f"the telemetry collector ended before the load began: {why}")

    def sample_stacks(self, run_path: Path, duration_s: float | None) -> None:
        """Begins the one window in which stacks are sampled, where the plan asks for that; later calls do nothing.
        duration_s: of the load that is meant; None: nobody knows."""
        if self._plan.telemetry.stacks and self._facts.server_pids and self._stacks is None:
            window_s = min(duration_s or STACKS_MAX_S, STACKS_MAX_S)
            self._stacks = StackSampling(self._facts.server_pids, run_path, window_s)

    def finish(self, run_path: Path, recorder: Recorder) -> None:
        """Ends the collector and reads what others have stored. What goes wrong becomes an event."""
        if self._stacks is not None:
            self._stacks.stop()
            seen = self._stacks.finish()
            top = [f"{frame.name} {frame.own_ratio:.0%}" for frame in seen.frames[:STACKS_TOLD]]
            told = f"{seen.samples} stacks were sampled; innermost: {', '.join(top)}" if top else "no stack was sampled"
            recorder.on_event("stacks", message="; ".join((told, *seen.problems)))
        if self._collector is None:
            return
        if self._plan.telemetry.otlp is not None and self._collector.alive():
            from pinchpoint.telemetry.otlp import EXPORT_DELAY_S

            time.sleep(EXPORT_DELAY_S + EXPORT_MARGIN_S)
        code = self._collector.stop()
        if complaint := self._collector.complaint():
            recorder.on_event("collector", exit_code=code, message=complaint)
        self._collector = None
        if self._prometheus is not None:
            from pinchpoint.telemetry import prometheus_server

            try:
                notes = prometheus_server.collect(self._prometheus, run_path, self._begun_ns, monotonic_ns())
            except (OSError, PinchpointError) as error:
                notes = (f"nothing came from the Prometheus server: {error}",)
            for note in notes:
                recorder.on_event("prometheus", message=note)
        self._read_spans(run_path, recorder)

    def _read_spans(self, run_path: Path, recorder: Recorder) -> None:
        spec = self._plan.telemetry
        if spec.spans is None:
            return
        from pinchpoint.telemetry.span_files import import_spans

        try:
            taken = import_spans(
                Path(spec.spans),
                run_path,
                salt=salt_of(self._run_id),
                realtime_offset_ns=realtime_offset_ns()[0],
                start_ns=self._begun_ns,
                end_ns=monotonic_ns(),
            )
        except (OSError, PinchpointError) as error:
            recorder.on_event("spans", message=f"no spans were read: {error}")
            return
        for note in taken.notes:
            recorder.on_event("spans", message=note)


def _check_listening(spec: OtlpSpec) -> None:
    """Raises UsageError for an address that cannot be listened on; the collector does so only later."""
    for port in (spec.http_port, spec.grpc_port):
        try:
            family, kind, _, _, address = socket.getaddrinfo(spec.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as listening:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind(address)
        except OSError as error:
            why = error.strerror or str(error)
            raise UsageError(
                f"no spans can be received at {spec.host}, port {port} ({why}); give --otlp another"
            ) from None


def _first_reading(source: Source, url: str) -> list[Reading]:
    """Raises UsageError when there is nothing to read: who named a source counts on it."""
    _, readings = source.read()
    for reading in readings:
        if reading.raw == "scrape_failed":
            reason = parse_labels(reading.labels).get("reason", "failed")
            words = REASONS.get(reason, reason.replace("http_", "HTTP "))
            hint = "; give its token with --host-token-env" if reason in ("http_401", "http_403") else ""
            raise UsageError(f"{url} cannot be read ({words}){hint or '; start it, mend the URL or leave it out'}")
    return readings


def _is_here(url: str) -> bool:
    """As far as the address tells: readings of this machine need no name."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _null_requests(facts: TargetFacts) -> tuple[str, ...]:
    base = facts.url.rstrip("/")
    paths = [facts.health_path] if facts.health_path is not None else []
    if facts.models and facts.health_path != MODELS_PATH:
        paths.append(MODELS_PATH)
    return tuple(base.removesuffix("/v1") + path if path == MODELS_PATH else base + path for path in paths)


def _with_own_names(pages: Sequence[PageAt]) -> tuple[PageAt, ...]:
    """Each source writes a file by its name."""
    taken: dict[str, int] = {}
    named = []
    for page in pages:
        taken[page.name] = count = taken.get(page.name, 0) + 1
        name = page.name if count == 1 else f"{page.name}-{count}"
        named.append(PageAt(name, page.url, page.keyed, page.host))
    return tuple(named)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
