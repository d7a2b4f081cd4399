"""A loopback HTTP server whose answers are scripts of raw bytes and pauses, for testing the wire client."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal

Piece = bytes | float | Literal["close", "reset"]
Script = Callable[[int, bytes], Iterable[Piece]]
"""(number of the request, its body) -> pieces: bytes are written, floats are pauses in seconds."""


class ScriptedServer:
    """Context manager; `url` while it runs. One thread per connection, keep-alive, requests numbered from 0."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests: list[bytes] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []

    def __enter__(self) -> "ScriptedServer":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); a blocked one would keep the port open
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        with connection, contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = connection.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                while len(buffer) < length:
                    buffer += connection.recv(65536)
                body, buffer = buffer[:length], buffer[length:]
                with self._lock:
                    number = len(self.requests)
                    self.requests.append(head + b"\r\n\r\n" + body)
                for piece in self._script(number, body):
                    if piece == "close":
                        return
                    if piece == "reset":
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                        return
                    if isinstance(piece, float):
                        time.sleep(piece)
                    elif isinstance(piece, bytes):
                        connection.sendall(piece)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def event(
    content: str | None = None, *, finish: str | None = None, usage: dict | None = None, end: str = "\n"
) -> bytes:
    """One chat chunk as an SSE event."""
    payload: dict = {"choices": [{"index": 0, "delta": {} if content is None else {"content": content}}]}
    payload["choices"][0]["finish_reason"] = finish
    if usage is not None:
        payload = {"choices": [], "usage": usage}
    return f"data: {json.dumps(payload)}{end}{end}".encode()


def stream(tokens: int, gap_s: float = 0.0, first_s: float = 0.0) -> Iterable[Piece]:
    """A well-behaved streamed answer."""
    yield STREAM_HEAD
    yield first_s
    for i in range(tokens):
        if i:
            yield gap_s
        yield chunk(event("a"))
    yield chunk(event(finish="length"))
    yield chunk(event(usage={"prompt_tokens": 5, "completion_tokens": tokens}))
    yield chunk(b"data: [DONE]\n\n") + END
