"""Exporters beside the service, each with a port of its own: what DCGM, Ascend's npu-exporter and node_exporter show.

In reality they are processes of their own; here they share the lab's loop, so an answer waits while the loop is busy,
but costs the simulated service nothing. They show replica 0, as an exporter shows its own machine.
"""

import time
from collections.abc import Callable

from pinchpoint.lab.events import ReplicaState
from pinchpoint.lab.face import HTTP_OK, NOT_FOUND, PROMETHEUS_TEXT, LabFace
from pinchpoint.lab.http import Connection, Request
from pinchpoint.lab.pages import dcgm, node, npu
from pinchpoint.lab.params import LabParams

Render = Callable[[ReplicaState, LabParams], str]

EXPORTERS: dict[str, Render] = {
    "dcgm": lambda state, params: dcgm.page(state.gpus, params.gpu),
    "npu": lambda state, params: npu.page(state.gpus, params.gpu, time.time()),
    "node": lambda state, _params: node.page(state.host),
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
        state = face.service.state(face.now_ns())
        connection.reply(HTTP_OK, self._render(state.replicas[0], face.params).encode(), PROMETHEUS_TEXT)
