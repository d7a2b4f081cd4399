"""The lab over real HTTP, in real time: `serve` inside an event loop, `run_server` as a blocking entry.

Opens the ports (the service's own, and those of exporters beside it), brings about the fault at its onset, and ends on
a signal. What is answered: face.py. With the extra `lab` the event loop is uvloop's, which carries more streams.
"""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.lab.exporters import EXPORTERS, Exporter
from pinchpoint.lab.face import LabFace
from pinchpoint.lab.http import Application, Connection
from pinchpoint.lab.lateness import LatenessSummary
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.scenario import Scenario, write_truth

LISTEN_BACKLOG_CONNECTIONS = 2048
"""uvicorn's default; the kernel may cap it."""

GC_THRESHOLDS = (5_000, 50, 100)
"""With 2,000 streams a collection of the youngest generation takes one or two milliseconds, of the next one twenty,
which is why that comes seldom."""

PORT_MAX = 65_535


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """Where the lab listens. Ports: 0 takes a free one; an exporter with None does not run.

    profile_dir: where /stop_profile puts traces; None: the service has no profiling routes, as engines have none unless
    told so.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    dcgm_port: int | None = None
    npu_port: int | None = None
    node_port: int | None = None
    profile_dir: Path | None = None


USUAL = Serving()


class Ports(msgspec.Struct, frozen=True):
    """What was opened."""

    port: int
    dcgm_port: int | None = None
    npu_port: int | None = None
    node_port: int | None = None


Ready = Callable[[Ports], None]
"""Called once connections are accepted."""


def _check(serving: Serving, params: LabParams) -> None:
    """Raises UsageError for an exporter of other makers' accelerators, and a directory that cannot be written."""
    ascend = params.gpu_spec.peer_link == "hccs"
    if serving.npu_port is not None and not ascend:
        raise UsageError(f"npu-exporter tells of Ascend NPUs, not of {params.gpu}; use --dcgm-port, or --gpu 910B2")
    if serving.dcgm_port is not None and ascend:
        raise UsageError(f"DCGM tells of NVIDIA's GPUs, not of {params.gpu}; use --npu-port, or --gpu H100")
    if serving.profile_dir is not None:
        try:
            serving.profile_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write traces to {serving.profile_dir} ({error.strerror}); name another one"
            ) from None
        if not os.access(serving.profile_dir, os.W_OK):
            raise UsageError(f"cannot write traces to {serving.profile_dir} (no permission); name another one")


async def serve(
    scenario: Scenario | LabParams, serving: Serving = USUAL, ready: Ready | None = None
) -> LatenessSummary:
    """Serves until SIGTERM or SIGINT, or until cancelled, and says how late it was.

    scenario: or parameters, for a service that stays as it is, with seed 0. Raises UsageError when a port cannot be
    opened or the parameters describe no possible service.
    """
    if isinstance(scenario, LabParams):
        scenario = Scenario(faults=(), severity="moderate", onset_s=0.0, before=scenario, after=scenario, seed=0)
    loop = asyncio.get_running_loop()
    face = LabFace(scenario.at_start(), scenario.seed, loop)
    _check(serving, face.params)
    if serving.profile_dir is not None:
        face.allow_profiles(serving.profile_dir)
    servers: list[asyncio.Server] = []
    ports: dict[str, int] = {}
    caught: list[signal.Signals] = []
    onset: asyncio.TimerHandle | None = None
    try:
        applications: list[tuple[str, int | None, Application]] = [("port", serving.port, face)]
        for name, page in EXPORTERS.items():
            applications.append((f"{name}_port", getattr(serving, f"{name}_port"), Exporter(face, page)))
        for name, port, application in applications:
            if port is not None:
                servers.append(await _listen(loop, application, serving.host, port))
                ports[name] = servers[-1].sockets[0].getsockname()[1]
        stop = asyncio.Event()
        caught = _catch_signals(loop, stop)
        if scenario.onset_s > 0:
            onset = loop.call_later(scenario.onset_s - face.now_ns() / NS_PER_S, face.change, scenario.after)
        if ready is not None:
            ready(Ports(**ports))
        await stop.wait()
    finally:
        if onset is not None:
            onset.cancel()
        for number in caught:
            loop.remove_signal_handler(number)
        for server in servers:
            server.close()
        face.close()
        await asyncio.sleep(0)  # lets the transports close
        for server in servers:
            await server.wait_closed()
    return face.lateness.summary()


async def _listen(loop: asyncio.AbstractEventLoop, application: Application, host: str, port: int) -> asyncio.Server:
    if not 0 <= port <= PORT_MAX:
        raise UsageError(f"port {port} does not exist; use 0 for a free one, or 1 to {PORT_MAX}")
    try:
        return await loop.create_server(
            lambda: Connection(application), host, port, backlog=LISTEN_BACKLOG_CONNECTIONS, family=socket.AF_UNSPEC
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}; choose another host or port") from error


def _catch_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> list[signal.Signals]:
    caught = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except (NotImplementedError, ValueError, RuntimeError):
            break  # not in the main thread, as in tests: whoever started us cancels instead
        caught.append(number)
    return caught


def run_server(
    scenario: Scenario, serving: Serving = USUAL, *, truth_file: Path | None = None, ready: Ready | None = None
) -> LatenessSummary:
    """Blocks until SIGTERM or SIGINT, and says how late the server was. Prints nothing.

    truth_file gets what is really wrong. Raises UsageError as `serve`, and when the file cannot be written.
    """
    if truth_file is not None:
        write_truth(truth_file, scenario)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(serve(scenario, serving, ready))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed; it is not required."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
