"""Exporters beside the service, each with a port of its own: what DCGM, Ascend's npu-exporter and node_exporter show.

In reality they are processes of their own; here they share the lab's loop, so an answer waits while the loop is busy,
but costs the simulated service nothing. They show replica 0, as an exporter shows its own machine.
"""

from collections.abc import Callable

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.events import ReplicaState
from pinchpoint.lab.face import HTTP_OK, NOT_FOUND, PROMETHEUS_TEXT, LabFace
from pinchpoint.lab.http import Connection, Request
from pinchpoint.lab.pages import dcgm, node, npu
from pinchpoint.lab.params import LabParams

Render = Callable[[ReplicaState, LabParams, float, float], str]
"""(state, parameters, the lab's instant, wall clock at its instant 0) -> page."""

EXPORTERS: dict[str, Render] = {
    "dcgm": lambda state, params, _now_s, _epoch_unix_s: dcgm.page(state.gpus, params.gpu),
    "npu": lambda state, params, now_s, epoch_unix_s: npu.page(state.gpus, params.gpu, epoch_unix_s + now_s),
    "node": lambda state, _params, now_s, epoch_unix_s: node.page(state.host, now_s=now_s, epoch_unix_s=epoch_unix_s),
}
"""By the names of their ports in `Serving`."""


class Exporter:
    """An http.Application with one page."""

    def __init__(self, face: LabFace, render: Render) -> None:
        self._face = face
        self._render = render

    def on_opened(self, connection: Connection) -> None:
        self._face.on_opened(connection)

    def on_closed(self, connection: Connection) -> None:
        self._face.on_closed(connection)

    def on_request(self, connection: Connection, request: Request) -> None:
        if request.path != "/metrics" or request.method not in ("GET", "HEAD"):
            connection.reply(NOT_FOUND, b"404 page not found\n", "text/plain; charset=utf-8")
            return
        face = self._face
        now_ns = face.now_ns()
        state = face.service.state(now_ns)
        text = self._render(state.replicas[0], face.params, now_ns / NS_PER_S, float(face.started_unix_s))
        connection.reply(HTTP_OK, text.encode(), PROMETHEUS_TEXT)
