"""One bounded HTTP exchange on a new connection, and the TLS settings that every connection of ours uses.

Not for load: nothing here scales. Not a general client: no redirects, no compression, and a connection is reused only
by who asks for that (`Kept`). The surprising thing: the connection is new every time on purpose. A watcher that keeps
its connection would not notice a full accept queue, and could be pinned to the one idle worker process of several.
"""

import contextlib
import errno
import heapq
import http.client
import itertools
import os
import socket
import ssl
import threading
import time
from urllib.parse import quote, urlsplit

import msgspec

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError

READ_BYTES = 65_536
EVENT_STREAM = "text/event-stream"
DONE_MARK = b"data: [DONE]"
"""End of an OpenAI stream; some servers keep the connection open behind it."""
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
NAME_MISMATCHES = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL's x509_vfy.h."""
URL_CHARACTERS = "/%:@!$&'()*+,;=~?"
"""Left as they are in a request target (RFC 3986, section 3.3, and "?"); the rest is percent-encoded."""


class FetchError(Exception):
    """No whole answer. `reason` is one word for a label, `detail` the system's words; neither holds a header.

    Reasons: dns, refused, timeout, certificate, wrong_name (the certificate is for another host), tls, reset, not_http,
    unreachable, network, too_large, truncated (the body ended before the length that its head gave).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Answer(msgspec.Struct, frozen=True):
    """`body` is cut at the cap, and then `complete` is False.

    A body that ends early is no answer where its head or its chunks say so; one that ends with the connection may be
    cut anywhere, and `framed` is False.
    """

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    complete: bool
    connect_s: float
    """Name look-up, TCP connect and TLS handshake."""
    total_s: float
    """From the start of connecting to the last byte of the body."""
    framed: bool = True
    """Whether the body's end was announced: by a length or by chunks."""


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Certificates are verified, always; `ca_file` (PEM) adds a private authority to the system's.

    Raises UsageError when the file is missing or holds no certificate.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is None:
        return context
    try:
        context.load_verify_locations(cafile=os.path.expanduser(ca_file))  # noqa: PTH111 - OpenSSL wants a text
    except ssl.SSLError:
        raise UsageError(f"the CA file {ca_file} holds no certificate; give the authority's in PEM form") from None
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or "not a path"
        raise UsageError(f"cannot read the CA file {ca_file}: {cause}; check --ca-file") from None
    return context


def bearer(api_key: str | None) -> dict[str, str]:
    """The header that carries the key. Raises UsageError, without the key, when it cannot stand in a header."""
    if api_key is None:
        return {}
    if not (api_key and api_key.isascii() and api_key.isprintable()):
        raise UsageError("the API key holds characters that no HTTP header may carry; check where it is read from")
    return {"Authorization": f"Bearer {api_key}"}


def get(
    url: str, headers: dict[str, str], timeout_s: float, max_bytes: int, tls: ssl.SSLContext | None = None
) -> Answer:
    """GET of a page that is of use only when it is whole. Raises as `exchange` does, and FetchError too_large."""
    answer = exchange("GET", url, headers=headers, timeout_s=timeout_s, max_bytes=max_bytes, tls=tls)
    if not answer.complete:
        raise FetchError("too_large", f"more than {max_bytes} bytes")
    return answer


def exchange(
    method: str,
    url: str,
    *,
    headers: dict[str, str],
    timeout_s: float,
    max_bytes: int,
    body: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request and its answer. `timeout_s` bounds all of it but the name look-up, also against a trickle of bytes.

    An event stream is read to its end mark. `tls` None: the system's authorities. Raises FetchError when no answer
    came; UsageError for a URL that is none.
    """
    connection, path, tls = _prepare(url, tls)
    started_ns = monotonic_ns()
    deadline = _Deadline(timeout_s)
    try:
        _connect(connection, tls, deadline)
        connected_ns = monotonic_ns()
        connection.request(method, path, body, {"Connection": "close", "Accept": "*/*", **headers})
        return _answer(connection, max_bytes, deadline, started_ns, connected_ns)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise _explain(TimeoutError() if deadline.passed else error) from None
    finally:
        deadline.lift()
        connection.close()


class Kept:
    """GET of one page again and again on one connection, as a client does that keeps its connections.

    The connection is opened by the request that finds none, or one that the service closed meanwhile.
    """

    def __init__(self, url: str, headers: dict[str, str], tls: ssl.SSLContext | None = None) -> None:
        self._connection, self._path, self._tls = _prepare(url, tls)
        self._headers = {"Accept": "*/*", **headers}

    def get(self, timeout_s: float, max_bytes: int) -> Answer:
        """connect_s is 0 when the connection was there. Raises as `get` does; the connection is then closed."""
        try:
            answer = self._once(timeout_s, max_bytes)
        except _ClosedMeanwhileError:
            answer = self._once(timeout_s, max_bytes)
        if not answer.complete:
            self.close()
            raise FetchError("too_large", f"more than {max_bytes} bytes")
        return answer

    def close(self) -> None:
        self._connection.close()

    def _once(self, timeout_s: float, max_bytes: int) -> Answer:
        connection = self._connection
        fresh = connection.sock is None
        started_ns = connected_ns = monotonic_ns()
        deadline = _Deadline(timeout_s)
        try:
            if fresh:
                _connect(connection, self._tls, deadline)
                connected_ns = monotonic_ns()
            else:
                connection.sock.settimeout(timeout_s)
                deadline.watch(connection.sock)
            connection.request("GET", self._path, None, self._headers)
            return _answer(connection, max_bytes, deadline, started_ns, connected_ns)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            connection.close()
            if not fresh and not deadline.passed and isinstance(error, CLOSED_MEANWHILE):
                raise _ClosedMeanwhileError from None
            raise _explain(TimeoutError() if deadline.passed else error) from None
        finally:
            deadline.lift()


class _ClosedMeanwhileError(Exception):
    """The service closed a kept connection before it had the request, which is its right."""


CLOSED_MEANWHILE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


def _prepare(url: str, tls: ssl.SSLContext | None) -> tuple[http.client.HTTPConnection, str, ssl.SSLContext | None]:
    """(connection not yet opened, path of the request line, TLS settings; None for http)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no http or https URL; give one like http://127.0.0.1:8000/metrics")
    if parts.scheme == "https":
        tls = tls or tls_context()
        connection = http.client.HTTPSConnection(parts.hostname, port or http.client.HTTPS_PORT, context=tls)
    else:
        tls = None
        connection = http.client.HTTPConnection(parts.hostname, port or http.client.HTTP_PORT)
    path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=URL_CHARACTERS)
    return connection, path, tls


def _answer(
    connection: http.client.HTTPConnection, max_bytes: int, deadline: "_Deadline", started_ns: int, connected_ns: int
) -> Answer:
    response = connection.getresponse()
    framed = response.length is not None or response.chunked
    received, complete = _read(response, max_bytes)
    ended_ns = monotonic_ns()
    deadline.check()
    if complete:
        response.close()  # http.client takes the next request only then, and read1 leaves it to us
    return Answer(
        response.status,
        {name.lower(): value for name, value in response.getheaders()},
        received,
        complete,
        (connected_ns - started_ns) / NS_PER_S,
        (ended_ns - started_ns) / NS_PER_S,
        framed,
    )


def open_socket(host: str, port: int, deadline_s: float) -> socket.socket:
    """A TCP connection to the first of the host's addresses that accepts one before `deadline_s` (time.monotonic).

    Raises OSError of the last address tried (gaierror when there is none), UnicodeError for a text that is no name.
    """
    failure: OSError = TimeoutError()
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        try:
            opened = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this host lacks
            failure = error
            continue
        try:
            opened.settimeout(left_s)
            opened.connect(address)
        except OSError as error:
            opened.close()
            failure = error
            continue
        return opened
    raise failure


class _Deadline:
    """Hangs up when the time is over: a socket's own timeout starts again with every byte."""

    def __init__(self, timeout_s: float) -> None:
        self.at_s = time.monotonic() + timeout_s
        self.passed = False
        self.lifted = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        _watchdog.add(self)

    def watch(self, opened: socket.socket) -> None:
        self._socket = opened
        self.check()

    def check(self) -> None:
        if self.passed:
            raise TimeoutError

    def lift(self) -> None:
        with self._lock:  # so that nobody hangs up on a kept connection any more
            self.lifted = True
            self._socket = None

    def hang_up(self) -> None:
        with self._lock:
            if self.lifted:
                return
            self.passed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not SSLSocket.shutdown: that one drops the TLS state under a read in another thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Watchdog:
    """One thread for all deadlines. A thread for each exchange would cost more than the exchange, and be part of the
    time that it measures."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, _Deadline]] = []
        self._added = itertools.count()
        self._thread: threading.Thread | None = None

    def add(self, deadline: _Deadline) -> None:
        with self._changed:
            entry = (deadline.at_s, next(self._added), deadline)
            heapq.heappush(self._due, entry)
            if self._thread is None or not self._thread.is_alive():  # the first, or a forked process
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif self._due[0] is entry:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                passed = self._next_passed()
            passed.hang_up()

    def _next_passed(self) -> _Deadline:
        """Waits for it. Those lifted meanwhile are dropped, nearly all of them at once: they are seldom woken for."""
        while True:
            while self._due and self._due[0][2].lifted:
                heapq.heappop(self._due)
            if not self._due:
                self._changed.wait()
                continue
            left_s = self._due[0][0] - time.monotonic()
            if left_s <= 0:
                return heapq.heappop(self._due)[2]
            self._changed.wait(left_s)


_watchdog = _Watchdog()


def _connect(connection: http.client.HTTPConnection, tls: ssl.SSLContext | None, deadline: _Deadline) -> None:
    connection.sock = opened = open_socket(connection.host, connection.port, deadline.at_s)
    if tls is not None:
        connection.sock = opened = tls.wrap_socket(
            opened, server_hostname=connection.host, do_handshake_on_connect=False
        )
    deadline.watch(opened)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if isinstance(opened, ssl.SSLSocket):
        opened.do_handshake()


def _read(response: http.client.HTTPResponse, max_bytes: int) -> tuple[bytes, bool]:
    """The body up to the cap or the end mark of a stream, and whether that was all of it."""
    streaming = response.headers.get_content_type() == EVENT_STREAM
    body = bytearray()
    while len(body) <= max_bytes:
        block = response.read1(READ_BYTES)
        if not block:
            if response.length:  # http.client counts down what is still to come, and forgives when it does not
                raise http.client.IncompleteRead(b"", response.length)
            return bytes(body), True
        body += block
        if streaming and DONE_MARK in body[-len(block) - len(DONE_MARK) :]:
            return bytes(body[:max_bytes]), len(body) <= max_bytes
    return bytes(body[:max_bytes]), False


def _explain(error: OSError | http.client.HTTPException | UnicodeError) -> FetchError:
    if isinstance(error, TimeoutError):
        return FetchError("timeout")
    if isinstance(error, socket.gaierror):
        return FetchError("dns", error.strerror or "no address")
    if isinstance(error, UnicodeError):
        return FetchError("dns", "not a host name")
    if isinstance(error, ConnectionRefusedError):
        return FetchError("refused")
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = "wrong_name" if error.verify_code in NAME_MISMATCHES else "certificate"
        return FetchError(reason, error.verify_message)
    if isinstance(error, ssl.SSLError):
        return FetchError("tls", error.reason or "handshake failed")
    if isinstance(error, ConnectionError):  # http.client.RemoteDisconnected is one too
        return FetchError("reset")
    if isinstance(error, http.client.IncompleteRead):
        return FetchError("truncated", "the connection ended in the middle of the body")
    if isinstance(error, http.client.HTTPException):
        return FetchError("not_http")
    if error.errno in UNREACHABLE:
        return FetchError("unreachable", error.strerror or "")
    return FetchError("network", str(error))
