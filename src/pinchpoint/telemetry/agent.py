"""The agent: this host's readings, and those of a service's processes, over HTTP for a collector on another machine.

One page, `/metrics`, read when it is asked for, so it costs nothing when nobody asks. Whoever asks must bring the
token, when there is one; beyond loopback there must be one. Nothing is logged, no header is repeated, no request has a
body, and what one asker may take is bounded: a head of 16 KiB, five seconds, eight at once.

The surprising thing: shares (CPU) cover the time since the page was read before, whoever read it. A second asker
within 0.1 s gets the same readings, and the clock of his own answer.
"""

import contextlib
import hmac
import ipaddress
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import httptools
import psutil

from pinchpoint.catalog import load_catalog
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.telemetry.config import Reading, Source, own
from pinchpoint.telemetry.exposition import CONTENT_TYPE, exposition
from pinchpoint.telemetry.host import Host
from pinchpoint.telemetry.process import Server

PATH = b"/metrics"
CACHE_S = 0.1
FIND_AGAIN_S = 5.0
"""How often the processes of a port are looked for while there are none."""
MAX_HEAD_BYTES = 16 << 10
MAX_SECONDS = 5.0
"""For one exchange, TLS included."""
MAX_AT_ONCE = 8
BACKLOG = 16
MIN_TOKEN_CHARS = 16
"""Against guessing; `openssl rand -hex 16` gives twice as many."""
SCHEME = b"Bearer "


class AgentPage:
    """The page. For use from several threads."""

    def __init__(
        self,
        name: str,
        find_server: Callable[[], tuple[int, ...]] | None = None,
        accelerators: Source | None = None,
    ) -> None:
        """name: the host as it is told apart from others. find_server: the service's listening processes.
        accelerators: what reads those of this host (nvml.find_nvml); None: none are read."""
        self._labels = {"host": name}
        self._host = Host()
        self._accelerators = accelerators
        self._find = find_server
        self._server: Server | None = None
        self._found_ns: int | None = None
        self._catalog = load_catalog()
        self._lock = threading.Lock()
        self._page = b""
        self._read_ns: int | None = None

    def read(self) -> bytes:
        with self._lock:
            now_ns = monotonic_ns()
            if self._read_ns is None or now_ns - self._read_ns >= CACHE_S * NS_PER_S:
                readings = self._host.read()[1] + self._server_readings(now_ns)
                if self._accelerators is not None:
                    readings += [one for one in self._accelerators.read()[1] if one.series is not None]
                self._page = self._text(readings)
                self._read_ns = now_ns
            # Of this answer, and not of the readings: whoever asks compares it with when he asked.
            return self._page + self._text([own("host.clock_unix_s", time.time())])

    def _text(self, readings: list[Reading]) -> bytes:
        return exposition(readings, self._catalog, self._labels).encode()

    def _server_readings(self, now_ns: int) -> list[Reading]:
        if self._find is None:
            return []
        readings = self._server.read()[1] if self._server is not None else []
        alive = any(reading.series == "server.processes" for reading in readings)
        if not alive and (self._found_ns is None or now_ns - self._found_ns >= FIND_AGAIN_S * NS_PER_S):
            self._found_ns = now_ns
            pids = self._find()
            self._server = Server(pids) if pids else None
            readings += self._server.read()[1] if self._server is not None else []
        return readings


def listening_pids(port: int) -> tuple[int, ...]:
    """Processes that listen on the port, as far as this user may see."""
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.Error:
        return ()
    listening = [entry for entry in sockets if entry.status == psutil.CONN_LISTEN]
    return tuple(sorted({e.pid for e in listening if e.laddr and e.laddr.port == port and e.pid is not None}))


class Agent(socketserver.ThreadingTCPServer):
    """Listens from the start; `serve_forever` answers, `server_close` ends it. `url` is where.

    Raises UsageError for an address that cannot be had, and for one beyond loopback without a token.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG

    def __init__(
        self, host: str, port: int, page: AgentPage, token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        check_token(token)
        self.address_family, address = resolve(host, port)
        if token is None and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            raise UsageError(
                f"{host} can be reached from other machines; name a variable that holds a token with --token-env, or "
                "listen on 127.0.0.1"
            )
        self.page = page
        self.token = token
        self.tls = tls
        self._room = threading.BoundedSemaphore(MAX_AT_ONCE)
        try:
            super().__init__((address[0], address[1]), _Exchange)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen"
            ) from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if self.address_family == socket.AF_INET6 else str(host)
        return f"{'https' if self.tls else 'http'}://{shown}:{port}{PATH.decode()}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The asker went away in the middle: not worth a word."""


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Raises UsageError for a name without an address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise UsageError(f"{host!r} is no address of this machine; give one with --listen ADDRESS:PORT") from None
    return family, (str(address[0]), int(address[1]))


def check_token(token: str | None) -> None:
    """Raises UsageError, without the token, when it is too short or cannot stand in a header."""
    if token is None:
        return
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token holds characters that no HTTP header may carry; use letters and digits")
    if len(token) < MIN_TOKEN_CHARS:
        raise UsageError(
            f"the token has {len(token)} characters; use {MIN_TOKEN_CHARS} or more, as `openssl rand -hex 16` makes"
        )


def server_tls(cert: str, key: str) -> ssl.SSLContext:
    """Raises UsageError when the files are no certificate (PEM, with its chain) and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise UsageError(
            f"{cert} and {key} are no certificate and its key ({error.reason}); check --cert, --key"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {cert} or {key}: {error.strerror}; check --cert and --key") from None
    return context


class _Head:
    """What one asker wants. Callbacks of httptools."""

    def __init__(self) -> None:
        self.target = b""
        self.authorization = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self.authorization = value

    def on_headers_complete(self) -> None:
        self.complete = True


class _Exchange(socketserver.BaseRequestHandler):
    server: Agent  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        self._deadline_s = time.monotonic() + MAX_SECONDS
        with contextlib.suppress(OSError, httptools.HttpParserError):
            connection = self._secured()
            status, headers, body = self._answer(connection)
            head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
            self._within(connection)
            connection.sendall("\r\n".join(head).encode() + body)

    def finish(self) -> None:
        self.request.close()  # of TLS: the server knows the bare connection only

    def _secured(self) -> socket.socket:
        if self.server.tls is None:
            return self.request
        # Here and not where connections are accepted: an asker who is slow to greet must not hold up others.
        self._within(self.request)
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        return self.request

    def _within(self, connection: socket.socket) -> None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)

    def _answer(self, connection: socket.socket) -> tuple[str, list[str], bytes]:
        head = _Head()
        parser = httptools.HttpRequestParser(head)
        received = 0
        while not head.complete:
            self._within(connection)
            block = connection.recv(MAX_HEAD_BYTES)
            received += len(block)
            if not block:
                raise ConnectionResetError
            if received > MAX_HEAD_BYTES:
                return "431 Request Header Fields Too Large", [], b""
            parser.feed_data(block)
        if self.server.token is not None and not _allowed(head.authorization, self.server.token.encode()):
            return "401 Unauthorized", ["WWW-Authenticate: Bearer"], b""
        if parser.get_method() != b"GET":
            return "405 Method Not Allowed", ["Allow: GET"], b""
        if head.target.partition(b"?")[0] != PATH:
            return "404 Not Found", [], b""
        return "200 OK", [f"Content-Type: {CONTENT_TYPE}"], self.server.page.read()


def _allowed(authorization: bytes, token: bytes) -> bool:
    """In a time that tells nothing of how much of the token was right."""
    scheme, given = authorization[: len(SCHEME)], authorization[len(SCHEME) :]
    return hmac.compare_digest(given, token) and scheme.lower() == SCHEME.lower()
