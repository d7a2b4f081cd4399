"""A loopback service that misbehaves on purpose, below HTTP if need be.

The first connection is served well: a stream of tokens that ends when `finish` is set. Every later connection gets the
evil script. So one client can carry a good stream and a bad one at the same time, from the same address.
"""

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal

from tests.support.scripted_server import END, STREAM_HEAD, chunk, event

Act = bytes | float | Literal["request", "fin", "close", "reset", "hold"]
"""bytes are sent as they are, floats are pauses in seconds; request: read one whole request; fin: close our direction
only; close: close at once; reset: close with a RST; hold: say nothing more until the client goes away."""
EvilScript = Callable[[int], Iterable[Act]]
"""Number of the evil connection, from 0 -> acts. At the end of the acts the connection closes."""

WELL_GAP_S = 0.005
WELL_MAX_S = 1.5
"""The good stream ends after so long in any case."""
HOLD_MAX_S = 10.0
ACCEPT_QUEUE_MAX = 64
RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on with no time: close() sends a RST."""


class EvilServer:
    """Context manager; `url` while it runs. Ends with its block: nothing outlives it by more than HOLD_MAX_S.

    listens: what happens to connections after the first. "accept": they are accepted and get the script. "refuse":
    nothing listens any more. "full": the queue of the listener is full and nobody accepts, so they never complete.
    contexts: TLS for the first connection and for the later ones; None: plain.
    """

    def __init__(
        self,
        script: EvilScript,
        *,
        listens: Literal["accept", "refuse", "full"] = "accept",
        contexts: tuple[ssl.SSLContext, ssl.SSLContext | None] | None = None,
    ) -> None:
        self._script = script
        self._listens = listens
        self._contexts = contexts
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0 if listens == "full" else 128)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if contexts else 'http'}://127.0.0.1:{self.port}"
        self.connections = 0
        self.ready = threading.Event()
        """The first connection was accepted, and what `listens` says is so."""
        self.finish = threading.Event()
        """Set it to end the good stream."""
        self.well_tokens = 0
        """Tokens of the good stream so far."""
        self._open: list[socket.socket] = []
        self._fillers: list[socket.socket] = []
        self._stopped = threading.Event()

    def __enter__(self) -> "EvilServer":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.finish.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in [*self._open, *self._fillers]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = self.connections
            self.connections += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock, number), daemon=True).start()
            if number == 0:
                if self._listens == "refuse":
                    self._listener.close()
                elif self._listens == "full":
                    self._fill_queue()
            self.ready.set()
            if self._listens != "accept":
                return

    def _fill_queue(self) -> None:
        """Connects to the own listener until the kernel lets no more in (Linux then drops what knocks)."""
        for _ in range(ACCEPT_QUEUE_MAX):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(filler)
            if not select.select([], [filler], [], 0.05)[1]:
                return

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            context = self._contexts[min(number, 1)] if self._contexts else None
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            if number == 0:
                self._perform(sock, self._well())
            else:
                self._perform(sock, self._script(number - 1))

    def _well(self) -> Iterable[Act]:
        yield "request"
        yield STREAM_HEAD
        ends_s = time.monotonic() + WELL_MAX_S
        while not self.finish.wait(WELL_GAP_S) and time.monotonic() < ends_s:
            self.well_tokens += 1
            yield chunk(event("a"))
        yield chunk(event(finish="stop"))
        yield chunk(event(usage={"prompt_tokens": 5, "completion_tokens": self.well_tokens}))
        yield chunk(b"data: [DONE]\n\n") + END
        yield "hold"

    def _perform(self, sock: socket.socket, acts: Iterable[Act]) -> None:
        with sock:
            for act in acts:
                if isinstance(act, bytes):
                    sock.sendall(act)
                elif isinstance(act, float):
                    time.sleep(act)
                elif act == "request":
                    if not _read_request(sock):
                        return
                elif act == "fin":
                    sock.shutdown(socket.SHUT_WR)
                elif act == "hold":
                    sock.settimeout(HOLD_MAX_S)
                    while sock.recv(65536):
                        pass
                elif act == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    return
                else:
                    return
                if self._stopped.is_set():
                    return


def _read_request(sock: socket.socket) -> bytes:
    """One whole request; b"" when the client went away."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        more = sock.recv(65536)
        if not more:
            return b""
        body += more
    return head
