"""HTTP/1.1 for the lab's server: bytes to requests, answers to bytes, one connection per Protocol object.

Knows no route and no engine; the application gets `on_request` and `on_closed`. One request is answered at a time:
pipelined ones wait. An application answers with `reply`, or it sends `stream_head()`, any number of framed events and
`stream_tail()`, and then calls `finish`.
"""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol, cast

import httptools

MAX_BODY_BYTES = 16 << 20
"""A prompt of a million tokens is below this."""
MAX_PIPELINED_REQUESTS = 64

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Payload Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
SESSION_HEADER = b"x-session-id"

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: pinchpoint-lab\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
)
_HEX_BYTES = 4096
_HEX = tuple(f"{size:x}\r\n".encode() for size in range(_HEX_BYTES))


class Request:
    __slots__ = ("body", "keep_alive", "method", "path", "session", "version")

    def __init__(
        self, method: str, path: str, version: str, keep_alive: bool, body: bytes, session: str | None = None
    ) -> None:
        self.method = method
        self.path = path
        self.version = version
        self.keep_alive = keep_alive
        self.body = body
        self.session = session
        """What the header x-session-id says."""


class Application(Protocol):
    """on_request is called for one request at a time per connection; on_closed once, whatever was under way."""

    def on_opened(self, connection: "Connection") -> None: ...
    def on_request(self, connection: "Connection", request: Request) -> None: ...
    def on_closed(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """One client connection. `state` belongs to the application."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._url = b""
        self._expect_continue = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._chunked = False
        self._fd = -1
        self._session: str | None = None
        self.state: Any = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its type
        self._fd = transport.get_extra_info("socket").fileno()
        self._parser = httptools.HttpRequestParser(self)
        self._application.on_opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._parser = None  # it refers to this object
        self._fd = -1
        self._queue.clear()
        self._application.on_closed(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the request itself was dispatched; we speak HTTP/1.1 only and ignore the wish to upgrade
        except httptools.HttpParserError:
            self._refuse(400, b'{"detail":"this is not HTTP/1.1"}')

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._url = b""
        self._expect_continue = False
        self._session = None
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expect_continue = True
        elif name == SESSION_HEADER:
            self._session = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._expect_continue:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes <= MAX_BODY_BYTES:
            self._body.append(body)
        else:
            self._refuse(413, b'{"detail":"the request body is larger than this server reads"}')

    def on_message_complete(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        path = self._url.split(b"?", 1)[0].decode("latin-1")
        parser = self._parser
        version = parser.get_http_version()
        keep_alive = parser.should_keep_alive() and version != "1.0"
        method = parser.get_method().decode("latin-1")
        request = Request(method, path, version, keep_alive, b"".join(self._body), self._session)
        if self._current is not None:
            if len(self._queue) >= MAX_PIPELINED_REQUESTS:
                self.close()
                return
            self._queue.append(request)
            return
        self._current = request
        self._application.on_request(self, request)

    # For the application

    def reply(
        self, status: int, body: bytes, content_type: str = "application/json", retry_after_s: float | None = None
    ) -> None:
        """A whole answer with its length."""
        retry = "" if retry_after_s is None else f"retry-after: {retry_after_s:.0f}\r\n"
        head = (
            f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}\r\nserver: pinchpoint-lab\r\n"
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n{retry}{self._connection_header()}\r\n"
        ).encode("latin-1")
        self._write(head if self._current is not None and self._current.method == "HEAD" else head + body)
        self._done()

    def stream_head(self) -> bytes:
        """Head of a streamed answer; HTTP/1.0 clients get one that ends with the connection."""
        assert self._current is not None
        self._chunked = self._current.version != "1.0"
        if not self._chunked:
            self._current.keep_alive = False
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        return STREAM_HEAD + framing + self._connection_header().encode() + b"\r\n"

    def frame(self, event: bytes) -> bytes:
        """One event as one HTTP chunk, as ASGI servers send it."""
        if not self._chunked:
            return event
        size = len(event)
        hexadecimal = _HEX[size] if size < _HEX_BYTES else f"{size:x}\r\n".encode()
        return hexadecimal + event + b"\r\n"

    def frames(self, events: Iterable[bytes]) -> bytes:
        return b"".join(self.frame(event) for event in events)

    def stream_tail(self) -> bytes:
        return b"0\r\n\r\n" if self._chunked else b""

    def send(self, data: bytes) -> None:
        """Nothing happens when the client has gone.

        Written at once: an event loop's own write may wait for the loop's next turn, and one turn can be long here.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() == 0:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the client has gone; the loop is about to say so
                return
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

    @property
    def chunked(self) -> bool:
        """Whether events of the stream are framed as HTTP chunks."""
        return self._chunked

    def finish(self) -> None:
        """The streamed answer is complete."""
        self._done()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Ends the connection at once, in the middle of whatever was being sent, with a TCP reset where the system
        allows."""
        if self._transport is not None:
            linger = struct.pack("ii", 1, 0)  # on, 0 s
            with socket.socket(fileno=os.dup(self._fd)) as same:  # uvloop's own has no setsockopt
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()

    # Inside

    _write = send

    def _connection_header(self) -> str:
        return "" if self._current is None or self._current.keep_alive else "connection: close\r\n"

    def _refuse(self, status: int, body: bytes) -> None:
        """An answer to what could not be read as a request; afterwards the byte stream makes no sense."""
        if self._transport is None or self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nserver: pinchpoint-lab\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        ).encode("latin-1")
        self._write(head + body)
        self.close()

    def _done(self) -> None:
        current, self._current = self._current, None
        if current is not None and not current.keep_alive:
            self.close()
            return
        if self._queue and self._transport is not None:
            # Not called from here: a client that pipelines a thousand requests must not recurse a thousand deep.
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._current is None and self._queue and self._transport is not None:
            self._current = self._queue.popleft()
            self._application.on_request(self, self._current)
