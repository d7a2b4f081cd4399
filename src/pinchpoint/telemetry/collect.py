"""The collector process: one thread per source, each with its own file.

A slow metrics page therefore never delays the host's readings, and a kill loses nothing but the reading under way:
every reading is flushed as one record batch. The process ends when its standard input closes, on SIGTERM, when the
stop file appears or when its parent is gone. SIGINT is ignored: whoever presses Ctrl-C means the parent, who decides
when measuring ends.

Pacing is absolute: reading n is planned for start + n * period whatever the ones before it took. A reading that
overruns makes the planned ones it covers fall out; none is made up. Each row says how late its reading began.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from pinchpoint.catalog import load_catalog
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import EXIT_OK, EXIT_USAGE, PinchpointError, UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.rundir import PartWriter
from pinchpoint.telemetry.config import CollectorConfig, Reading, Source
from pinchpoint.telemetry.host import Host
from pinchpoint.telemetry.null_request import NULL_PERIOD_S, NullRequest
from pinchpoint.telemetry.nvml import find_nvml
from pinchpoint.telemetry.otlp import OtlpReceiver, listen
from pinchpoint.telemetry.page import Page
from pinchpoint.telemetry.process import Client, Server
from pinchpoint.telemetry.remote_host import RemoteHost, parse_remote_host
from pinchpoint.telemetry.smi import SMI_PERIOD_S, find_smi
from pinchpoint.traceids import salt_of

NS_PER_US = 1_000
MAX_LATE_US = 2**31 - 1
"""late_us is an int32 column."""
WATCH_PERIOD_S = 0.25
"""How often the parent and the stop file are looked at; a closed standard input is noticed at once."""
JOIN_TIMEOUT_S = 1.0
"""A source that hangs in a request at the end is left behind: its rows are already in its file."""
MIN_PERIOD_S = 0.05
EXIT_WRITE_FAILED = 1

Row = tuple[int, int, str, str, str | None, str, float]


def rows(source: str, t_ns: int, late_us: int, readings: list[Reading]) -> list[Row]:
    """Readings as rows in the order of model.SAMPLE_COLUMNS."""
    return [(t_ns, late_us, source, r.raw, r.series, r.labels, r.value) for r in readings]


class Pacer:
    """Instants start + n * period. Pure: the caller brings the clock."""

    def __init__(self, start_ns: int, period_s: float) -> None:
        self._period_ns = int(period_s * NS_PER_S)
        self.planned_ns = start_ns

    def wait_s(self, now_ns: int) -> float:
        return max(0, self.planned_ns - now_ns) / NS_PER_S

    def late_us(self, now_ns: int) -> int:
        return min(max(0, now_ns - self.planned_ns) // NS_PER_US, MAX_LATE_US)

    def advance(self, now_ns: int) -> int:
        """To the next planned instant that is not past. Returns how many were passed over."""
        behind = max(0, now_ns - self.planned_ns) // self._period_ns
        self.planned_ns += (behind + 1) * self._period_ns
        return behind


def collect_source(source: Source, writer: PartWriter, stop: threading.Event, period_s: float) -> None:
    """Reads one source on its grid until `stop`, and writes each reading out at once."""
    pacer = Pacer(monotonic_ns(), period_s)
    while not stop.wait(pacer.wait_s(monotonic_ns())):
        late_us = pacer.late_us(monotonic_ns())
        t_ns, readings = source.read()
        writer.append(rows(source.name, t_ns, late_us, readings))
        writer.flush()
        pacer.advance(monotonic_ns())
    writer.close()


def sources(config: CollectorConfig, api_key: str | None, tell: Callable[[str], None]) -> list[tuple[Source, float]]:
    """What the configuration asks for, each with its period. `tell` gets a sentence for what should be read and cannot
    be."""
    tls, catalog, period_s = tls_context(config.ca_file), load_catalog(), config.period_s
    chosen: list[Source] = [Host()]
    tools: list[Source] = []
    for page in config.pages:
        key = api_key if page.keyed else None
        chosen.append(Page(page.url, page.name, catalog, api_key=key, tls=tls, host=page.host))
    token = os.environ.get(config.host_token_env) if config.host_token_env else None
    chosen += [RemoteHost(parse_remote_host(each), catalog, token, tls) for each in config.hosts]
    if config.server_pids:
        chosen.append(Server(config.server_pids))
    if config.client_pids:
        chosen.append(Client(config.client_pids))
    if config.accelerators:
        nvml = find_nvml(tell)
        chosen += [nvml] if nvml is not None else []
        tools += find_smi(covered=("nvidia",) if nvml is not None else ())
    if config.otlp is not None:
        at = config.otlp
        salt = salt_of(at.run_id) if at.run_id is not None else None
        part = Path(config.out_dir) / "parts" / "spans-otlp.arrows"
        receiver = listen(part, salt, host=at.host, http_port=at.http_port, grpc_port=at.grpc_port)
        for note in receiver.notes:
            tell(note)
        chosen.append(receiver)
    timed = [(source, period_s) for source in chosen]
    timed += [(tool, max(period_s, SMI_PERIOD_S)) for tool in tools]
    if config.null_request_urls:
        timed.append((NullRequest(config.null_request_urls, api_key, tls), NULL_PERIOD_S))
    return timed


class _Collector:
    def __init__(self, config: CollectorConfig, api_key: str | None) -> None:
        self.stop = threading.Event()
        self.problems: list[str] = []
        self.notes: list[str] = []
        """What cannot be read and should, in words."""
        self._threads: list[threading.Thread] = []
        parts = Path(config.out_dir) / "parts"
        self._sources = sources(config, api_key, self.notes.append)
        for source, period_s in self._sources:
            try:
                writer = PartWriter(parts / f"telemetry-{source.name}.arrows", SAMPLE_COLUMNS)
            except OSError as error:
                raise UsageError(f"cannot write {parts} ({error.strerror}); give a writable run directory") from error
            run = self._guarded(source, writer, period_s)
            self._threads.append(threading.Thread(target=run, name=source.name, daemon=True))

    def _guarded(self, source: Source, writer: PartWriter, period_s: float) -> Callable[[], None]:
        def run() -> None:
            try:
                collect_source(source, writer, self.stop, period_s)
            except (OSError, PinchpointError) as error:
                self.problems.append(f"source {source.name} stopped early: {error}; its later samples are missing")

        return run

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> bool:
        """Stops all sources; False when one still hangs in a request."""
        self.stop.set()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        for source, _ in self._sources:
            if isinstance(source, OtlpReceiver):
                source.close()
        return not any(thread.is_alive() for thread in self._threads)


def _read_config() -> CollectorConfig:
    line = sys.stdin.buffer.readline()
    try:
        config = msgspec.json.decode(line, type=CollectorConfig)
    except msgspec.DecodeError as error:
        raise UsageError(f"collector configuration on standard input: {error}; send one line of JSON") from error
    if config.period_s < MIN_PERIOD_S:
        raise UsageError(f"collector period {config.period_s} s is below {MIN_PERIOD_S} s; choose a longer one")
    return config


def _watch(config: CollectorConfig, stop: threading.Event) -> None:
    """Returns when it is time to end."""
    stop_path = Path(config.stop_path) if config.stop_path else None
    while not stop.is_set():
        readable, _, _ = select.select([sys.stdin], [], [], WATCH_PERIOD_S)
        if readable and not os.read(sys.stdin.fileno(), 1):
            return
        if stop_path is not None and stop_path.exists():
            return
        if config.parent_pid is not None and os.getppid() != config.parent_pid:
            return


def main() -> int:
    """Entry of `python -m pinchpoint.telemetry`. Returns the exit code; problems go to standard error, one a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        config = _read_config()
        api_key = os.environ.get(config.headers_env) if config.headers_env else None
        collector = _Collector(config, api_key)
    except PinchpointError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    collector.start()
    _watch(config, stop)
    finished = collector.finish()
    for problem in collector.notes + collector.problems:
        print(problem, file=sys.stderr)
    code = EXIT_WRITE_FAILED if collector.problems else EXIT_OK
    if not finished:  # a daemon thread in a socket call; an ordinary exit could wait for its file's lock
        sys.stderr.flush()
        os._exit(code)
    return code
