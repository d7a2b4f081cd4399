"""A service that does nothing but send tokens on time, each carrying the instant at which it was written.

    python -m pinchpoint.load.null_server --first-ms 50 --gap-ms 10 --tokens 200

What a client measures against it beyond the times it was told is the client's own doing, and the stamps inside the
tokens say so to the microsecond: both sides read the same monotonic clock. One thread, one epoll, one timer, no model.
The first line on standard output is the port.

It speaks enough of the OpenAI API to be probed and loaded: GET /health and /v1/models, POST /v1/chat/completions and
/v1/completions, streaming or not, with kept connections. A request may set its own times and length:

    {"max_tokens": 8, "stream": true, "timing": {"first_ms": 0, "gap_ms": 2, "tag": 17}}

The tag comes back in the id of every event, so that a client can tell whose token carried which instant.

How it works. All streams with one gap stand in one queue: the next token of a stream is due one gap after its last, so
a queue is always in order of its instants and costs the same however many streams there are. A stream whose client does
not read waits outside the queues until its socket has room.
"""

import argparse
import contextlib
import gc
import heapq
import re
import select
import socket
import sys
from collections import deque

import msgspec

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.timer import AbsoluteTimer

NS_PER_MS = 1_000_000
BACKLOG = 4096
READ_BYTES = 64 * 1024
REQUEST_BYTES_MAX = 64 << 20
SENDS_PER_TURN = 256
"""So many tokens are written before sockets are looked at again; with gaps of zero there is always a token due."""
QUEUES_MAX = 16
"""Queues that have run empty are cleared away beyond so many: each is looked at before every token."""
IDLE_NS = NS_PER_S
MODEL = "null"
STAMP = re.compile(rb'"content":"0*([0-9]+) "')
"""Finds the stamp (monotonic ns) in a stream event of this server."""
TAGGED_STAMP = re.compile(rb'"id":"null-([0-9]+)".*"content":"0*([0-9]+) "')
"""Tag and stamp."""

_EVENT = (
    b'data: {"id":"null-%d","object":"chat.completion.chunk","created":0,"model":"null",'
    b'"choices":[{"index":0,"delta":{"content":"%%020d "},"finish_reason":null}]}\n\n'
)
_TEXT_EVENT = (
    b'data: {"id":"null-%d","object":"text_completion","created":0,"model":"null",'
    b'"choices":[{"index":0,"text":"%%020d ","finish_reason":null}]}\n\n'
)
_LAST = {
    _EVENT: b'data: {"id":"null","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n',
    _TEXT_EVENT: b'data: {"id":"null","choices":[{"index":0,"text":"","finish_reason":"length"}]}\n\n',
}
_USAGE = b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}'
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model","owned_by":"pinchpoint"}]}'
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)


class _Timing(msgspec.Struct):
    first_ms: float | None = None
    gap_ms: float | None = None
    tag: int = 0


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    timing: _Timing | None = None


_decoder = msgspec.json.Decoder(_Body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _framed(event: bytes, tag: int) -> bytes:
    """The event as one HTTP chunk with the stamp still to be filled in; its length does not depend on the stamp."""
    tagged = event % tag
    return b"%x\r\n%s\r\n" % (len(tagged % 0), tagged)


def _answer(status: bytes, body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (status, kind, len(body), body)


class _Stream:
    """An answer being sent. `left` tokens are still to come."""

    __slots__ = (
        "blocked",
        "client",
        "due_ns",
        "framed",
        "gap_ns",
        "last",
        "left",
        "prompt_tokens",
        "started",
        "tokens",
    )

    def __init__(
        self, client: "_Client", event: bytes, tag: int, tokens: int, gap_ns: int, prompt_tokens: int | None
    ) -> None:
        self.client = client
        self.framed = _framed(event, tag)
        self.last = _LAST[event]
        self.tokens = self.left = tokens
        self.gap_ns = gap_ns
        self.prompt_tokens = prompt_tokens
        self.started = False
        self.blocked = False
        """It stands in no queue until its socket has room."""
        self.due_ns = 0


class _Client:
    """One connection. `unsent` is what its socket had no room for."""

    __slots__ = ("fd", "incoming", "sock", "stream", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.incoming = b""
        self.unsent = b""
        self.stream: _Stream | None = None


class NullServer:
    """Serves until `stop_fd` (standard input, for instance) says that its other end has closed.

    tokens, first_ns and gap_ns hold for requests that do not say otherwise. Raises OSError when the address is taken.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, tokens: int = 200, first_ns: int = 0, gap_ns: int = 0
    ) -> None:
        self._listener = socket.create_server((host, port), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._tokens = tokens
        self._first_ns = first_ns
        self._gap_ns = gap_ns
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._timer = AbsoluteTimer()
        if self._timer.fd is not None:
            self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._clients: dict[int, _Client] = {}
        self._firsts: dict[int, deque[_Stream]] = {}
        """Delay of the first token -> streams that wait for it, in order of their instants."""
        self._gaps: dict[int, deque[_Stream]] = {}
        """Gap -> streams that wait for a later token, in order of their instants."""
        self._plain: list[tuple[int, int, _Client, bytes]] = []
        """Heap of (instant, number, connection, whole answer)."""
        self._numbers = 0

    def serve(self, stop_fd: int | None = None) -> None:
        if stop_fd is not None:
            self._epoll.register(stop_fd, select.EPOLLIN | select.EPOLLHUP)
        while True:
            due_ns = self._send_due()
            for fd, mask in self._wait(due_ns):
                if fd == stop_fd:
                    return
                if fd == self._timer.fd:
                    self._timer.clear()
                elif fd == self._listener.fileno():
                    self._accept()
                elif (client := self._clients.get(fd)) is not None:
                    self._handle(client, mask)

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)
        self._epoll.close()
        self._timer.close()
        self._listener.close()

    # -- time ------------------------------------------------------------------------------------------------------

    def _wait(self, due_ns: int | None) -> list[tuple[int, int]]:
        now_ns = monotonic_ns()
        wake_ns = now_ns + IDLE_NS if due_ns is None else due_ns
        if wake_ns <= now_ns:
            return self._epoll.poll(0)
        if self._timer.fd is not None:
            self._timer.arm(wake_ns)
            return self._epoll.poll(IDLE_NS / NS_PER_S)
        return self._epoll.poll((wake_ns - now_ns) / NS_PER_S)

    def _send_due(self) -> int | None:
        """Writes what is due, at most SENDS_PER_TURN tokens, and returns the next instant; None when nothing waits."""
        now_ns = monotonic_ns()
        while self._plain and self._plain[0][0] <= now_ns:
            _, _, client, answer = heapq.heappop(self._plain)
            if self._clients.get(client.fd) is client:
                self._write(client, answer)
        for _ in range(SENDS_PER_TURN):
            queue = self._earliest()
            if queue is None:
                break
            if queue[0].due_ns > now_ns:
                now_ns = monotonic_ns()
                if queue[0].due_ns > now_ns:
                    break
            self._send_token(queue.popleft())
        queue = self._earliest()
        instants = [queue[0].due_ns] if queue is not None else []
        if self._plain:
            instants.append(self._plain[0][0])
        return min(instants, default=None)

    def _earliest(self) -> deque[_Stream] | None:
        best: deque[_Stream] | None = None
        for queues in (self._firsts, self._gaps):
            for queue in queues.values():
                if queue and (best is None or queue[0].due_ns < best[0].due_ns):
                    best = queue
        return best

    def _send_token(self, stream: _Stream) -> None:
        client = stream.client
        if client.stream is not stream:
            return  # the client hung up
        stream.left -= 1
        data = stream.framed % monotonic_ns()
        if not stream.started:
            data = _STREAM_HEAD + data
        stream.started = True
        if stream.left == 0:
            client.stream = None
            data += self._ending(stream)
        self._write(client, data)
        if stream.left == 0:
            self._read_requests(client)  # one may have come early
        elif client.unsent:
            stream.blocked = True
        else:
            self._queue(self._gaps, stream.gap_ns, stream, stream.due_ns + stream.gap_ns)

    @staticmethod
    def _queue(queues: dict[int, deque[_Stream]], delay_ns: int, stream: _Stream, due_ns: int) -> None:
        stream.due_ns = due_ns
        queue = queues.get(delay_ns)
        if queue is None:
            if len(queues) >= QUEUES_MAX:
                for empty in [key for key, other in queues.items() if not other]:
                    del queues[empty]
            queue = queues[delay_ns] = deque()
        queue.append(stream)

    @staticmethod
    def _ending(stream: _Stream) -> bytes:
        parts = [stream.last]
        if stream.prompt_tokens is not None:
            usage = _USAGE % (stream.prompt_tokens, stream.tokens, stream.prompt_tokens + stream.tokens)
            parts.append(b'data: {"id":"null","choices":[],' + usage + b"}\n\n")
        parts.append(b"data: [DONE]\n\n")
        return b"".join(_chunk(part) for part in parts) + b"0\r\n\r\n"

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # nobody else waits, or no descriptor is left for who does
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients[sock.fileno()] = _Client(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.fd, None)
        client.stream = None
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(client.fd)
        client.sock.close()

    def _write(self, client: _Client, data: bytes) -> None:
        if client.unsent:
            client.unsent += data
            return
        try:
            sent = client.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        if sent < len(data):
            client.unsent = data[sent:]
            self._epoll.modify(client.fd, select.EPOLLIN | select.EPOLLOUT)

    def _handle(self, client: _Client, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT and client.unsent:
                client.unsent = client.unsent[client.sock.send(client.unsent) :]
                if not client.unsent:
                    self._epoll.modify(client.fd, select.EPOLLIN)
                    if (stream := client.stream) is not None and stream.blocked:
                        stream.blocked = False
                        self._queue(self._gaps, stream.gap_ns, stream, monotonic_ns())
            if mask & ~select.EPOLLOUT:
                data = client.sock.recv(READ_BYTES)
                if not data:
                    self._drop(client)
                    return
                client.incoming += data
                self._read_requests(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    # -- requests --------------------------------------------------------------------------------------------------

    def _read_requests(self, client: _Client) -> None:
        while client.stream is None and client.fd in self._clients:
            end = client.incoming.find(b"\r\n\r\n")
            if end < 0:
                if len(client.incoming) > READ_BYTES:
                    self._drop(client)
                return
            length = _LENGTH.search(client.incoming, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if total > REQUEST_BYTES_MAX:
                self._drop(client)
                return
            if len(client.incoming) < total:
                return
            line = client.incoming[: client.incoming.index(b"\r\n")].split()
            body, client.incoming = client.incoming[end + 4 : total], client.incoming[total:]
            if len(line) < 2:
                self._drop(client)
                return
            self._respond(client, line[0], line[1].partition(b"?")[0], body)

    def _respond(self, client: _Client, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"POST" and path.endswith(b"/chat/completions"):
            self._complete(client, body, _EVENT)
        elif method == b"POST" and path.endswith(b"/completions"):
            self._complete(client, body, _TEXT_EVENT)
        elif method == b"GET" and path.endswith(b"/models"):
            self._write(client, _answer(b"200 OK", _MODELS))
        elif method == b"GET" and path in (b"/health", b"/"):
            self._write(client, _answer(b"200 OK", b"ok", b"text/plain"))
        else:
            self._write(client, _answer(b"404 Not Found", b'{"error":{"message":"no such path"}}'))

    def _complete(self, client: _Client, body: bytes, event: bytes) -> None:
        try:
            asked = _decoder.decode(body)
        except msgspec.MsgspecError:
            self._write(client, _answer(b"400 Bad Request", b'{"error":{"message":"the body is not a request"}}'))
            return
        tokens = max(asked.max_tokens or asked.max_completion_tokens or self._tokens, 1)
        first_ns, gap_ns, tag = self._first_ns, self._gap_ns, 0
        if asked.timing is not None:
            tag = asked.timing.tag
            first_ns = first_ns if asked.timing.first_ms is None else round(asked.timing.first_ms * NS_PER_MS)
            gap_ns = gap_ns if asked.timing.gap_ms is None else round(asked.timing.gap_ms * NS_PER_MS)
        prompt_tokens = body.count(b" ") + 1  # words of a body that is written without other spaces, one token each
        if not asked.stream:
            self._answer_whole(client, event, tokens, prompt_tokens, first_ns + gap_ns * (tokens - 1))
            return
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        stream = client.stream = _Stream(client, event, tag, tokens, gap_ns, prompt_tokens if usage else None)
        self._queue(self._firsts, first_ns, stream, monotonic_ns() + first_ns)

    def _answer_whole(self, client: _Client, event: bytes, tokens: int, prompt_tokens: int, after_ns: int) -> None:
        text = b'"message":{"role":"assistant","content":"%s"}' if event is _EVENT else b'"text":"%s"'
        answer = _answer(
            b"200 OK",
            b'{"id":"null","object":"chat.completion","created":0,"model":"null","choices":[{"index":0,'
            + text % (b"word " * tokens)
            + b',"finish_reason":"length"}],'
            + _USAGE % (prompt_tokens, tokens, prompt_tokens + tokens)
            + b"}",
        )
        if after_ns <= 0:
            self._write(client, answer)
            return
        self._numbers += 1
        heapq.heappush(self._plain, (monotonic_ns() + after_ns, self._numbers, client, answer))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pinchpoint.load.null_server", description="A service that only sends tokens on time."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the first line printed says which")
    parser.add_argument("--tokens", type=int, default=200, help="of answers to requests without max_tokens")
    parser.add_argument("--first-ms", type=float, default=50.0, help="from the request to the first token")
    parser.add_argument(
        "--gap-ms", type=float, default=10.0, help="between tokens; 0 sends as fast as the client reads"
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started it")
    arguments = parser.parse_args()
    try:
        server = NullServer(
            host=arguments.host,
            port=arguments.port,
            tokens=arguments.tokens,
            first_ns=round(arguments.first_ms * NS_PER_MS),
            gap_ns=round(arguments.gap_ms * NS_PER_MS),
        )
    except OSError as error:
        sys.exit(f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror}; give another --port")
    print(server.port, flush=True)
    gc.freeze()
    gc.disable()  # nothing here makes cycles that outlive an answer
    with contextlib.suppress(KeyboardInterrupt):
        server.serve(sys.stdin.fileno() if arguments.until_stdin_closes else None)
    server.close()


if __name__ == "__main__":
    main()
