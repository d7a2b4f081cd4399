"""Non-blocking sockets with kernel receive stamps: plain, TLS, through an HTTP proxy, over a Unix socket.

SO_TIMESTAMPNS makes the kernel stamp each segment when it arrives; `recvmsg` hands the stamp of the newest segment
read. The stamp is CLOCK_REALTIME and is converted with an offset that the loop measures again and again, so stepping
the wall clock does not move an instant. Without kernel stamps (other systems, Unix sockets) the instant of the read is
taken and marked as such.
"""

import base64
import contextlib
import errno
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pinchpoint.clock import NS_PER_S, monotonic_ns, realtime_offset_ns
from pinchpoint.errors import TargetError, UsageError
from pinchpoint.fetch import URL_CHARACTERS, open_socket
from pinchpoint.model import NO_PORT_ERROR

if TYPE_CHECKING:
    from pinchpoint.load.exchange import Exchange

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)
SCM_TIMESTAMPNS = SO_TIMESTAMPNS
TIMESPEC = struct.Struct("qq")
unpack_timespec = TIMESPEC.unpack_from
ANCILLARY_BYTES = socket.CMSG_SPACE(TIMESPEC.size)
READ_BYTES = 16 * 1024
"""Per read: a TLS record, or a hundred events. Python allocates so much before it knows how much there is; from 128 KiB
on, glibc maps fresh pages for that, and a read takes four times as long."""
_IN_PROGRESS = (0, errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)
OURS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
"""Errors of connecting that say something of this host and nothing of the service."""
TCP_INFO = getattr(socket, "TCP_INFO", None)
"""None on a system without it."""
TCP_INFO_BYTES = 256
"""Above what is read of it; a kernel copies no more than it is asked for."""
CHOOSE_TIMEOUT_S = 5.0
"""For finding out which of a name's addresses the service listens on."""
STEP_NS = 1_000_000
"""The wall clock was stepped when its offset differs by so much: slewing moves it 50 us in a tenth of a second."""
PROXY_ANSWER_BYTES_MAX = 16 * 1024


TLS_SCHEMES = ("https", "grpcs")
SCHEMES = ("http", "grpc", *TLS_SCHEMES)


@dataclass(frozen=True)
class Endpoint:
    """Where to connect, resolved once before the load starts, so that DNS is not part of any latency.

    path_prefix goes before the API's path in the request line; through an HTTP proxy it is a whole URL. tunnel: the
    CONNECT request that a proxy must accept before TLS begins. extra_head: header lines for the proxy, each with its
    line end. dns_s: what the look-up took; None when the host is an address or a path.
    """

    family: int
    sockaddr: tuple | str
    host_header: str
    server_name: str
    tls: bool
    path_prefix: str
    tunnel: bytes = b""
    extra_head: str = ""
    dns_s: float | None = None
    weight: float = 1.0


def resolve(url: str, *, proxy: str | None = None, unix_socket: str | None = None, weight: float = 1.0) -> Endpoint:
    """Raises UsageError for a URL that cannot be used, TargetError when its name does not resolve.

    Of a name with several addresses (localhost is often ::1 and 127.0.0.1) the first that accepts a connection is
    taken, the first of all when none does. proxy: URL of an HTTP proxy, with user and password if it wants them.
    """
    parts = _split(url)
    tls = parts.scheme in TLS_SCHEMES
    host, port = _host(parts), _port(parts)
    prefix = quote(parts.path.rstrip("/").removesuffix("/v1"), safe=URL_CHARACTERS)
    bracketed = f"[{host}]" if ":" in host else host
    host_header = bracketed if parts.port is None else f"{bracketed}:{port}"
    if proxy is not None and unix_socket is not None:
        raise UsageError("a proxy and a Unix socket exclude each other; give one of the two")
    if unix_socket is not None:
        if not hasattr(socket, "AF_UNIX"):
            raise UsageError("this system has no Unix sockets; give the service's URL alone")
        path = os.path.expanduser(unix_socket)  # noqa: PTH111 - the socket module wants a text
        return Endpoint(socket.AF_UNIX, path, host_header, host, tls, prefix, weight=weight)
    if proxy is None:
        family, sockaddr, dns_s = _look_up(host, port)
        return Endpoint(family, sockaddr, host_header, host, tls, prefix, dns_s=dns_s, weight=weight)
    proxy_parts = _split(proxy)
    if proxy_parts.scheme != "http":
        raise UsageError("only http:// proxies are supported; the way to an https service is tunnelled through them")
    family, sockaddr, dns_s = _look_up(_host(proxy_parts), _port(proxy_parts))
    credentials = _proxy_credentials(proxy_parts)
    if not tls:
        whole = f"http://{host_header}{prefix}"
        return Endpoint(
            family, sockaddr, host_header, host, tls, whole, extra_head=credentials, dns_s=dns_s, weight=weight
        )
    authority = f"{bracketed}:{port}"
    tunnel = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{credentials}\r\n".encode("latin-1")
    return Endpoint(family, sockaddr, host_header, host, tls, prefix, tunnel=tunnel, dns_s=dns_s, weight=weight)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!r} cannot be read ({error}); write for example http://127.0.0.1:8000") from None
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise UsageError(f"{url!r} is not an http or https URL; write for example http://127.0.0.1:8000")
    return parts


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or (443 if parts.scheme in TLS_SCHEMES else 80)
    except ValueError:
        raise UsageError(f"{parts.geturl()!r} has no usable port; write a number from 1 to 65535") from None


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise UsageError(f"{host!r} is not a host name; check its spelling") from None


def _look_up(host: str, port: int) -> tuple[int, tuple, float | None]:
    started_ns = monotonic_ns()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise UsageError(f"{host!r} is not a host name; check its spelling") from None
    except OSError as error:
        raise TargetError(f"cannot resolve {host}: {error.strerror}; check the host name") from None
    named = not any(sockaddr[0] == host for _, _, _, _, sockaddr in found)
    dns_s = (monotonic_ns() - started_ns) / NS_PER_S if named else None
    family, _, _, _, sockaddr = found[0]
    if len(found) > 1:
        with contextlib.suppress(OSError), open_socket(host, port, time.monotonic() + CHOOSE_TIMEOUT_S) as accepted:
            family, sockaddr = accepted.family, accepted.getpeername()
    return family, sockaddr, dns_s


def _proxy_credentials(parts: SplitResult) -> str:
    if parts.username is None:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"


class WallOffset:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, measured again by `refresh`."""

    def __init__(self) -> None:
        self.offset_ns, self.error_ns = realtime_offset_ns()
        self.first_offset_ns = self.offset_ns

    def refresh(self) -> None:
        self.offset_ns, self.error_ns = realtime_offset_ns(samples=3)

    def notice_step(self) -> None:
        """Cheap enough to call before every batch of reads, so that a step spoils the stamps of one batch at most."""
        if abs(time.time_ns() - time.monotonic_ns() - self.offset_ns) > STEP_NS:
            self.refresh()


def stamping_socket() -> socket.socket:
    """Held open, it keeps the kernel stamping: that begins with the first socket that asks, a few packets late."""
    guard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        guard.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return guard
    time.sleep(0.01)  # the kernel flips its stamping switch in a deferred work item
    return guard


class ProxyError(OSError):
    """The proxy refused the tunnel."""


class Connection:
    """One client connection. Nothing blocks; methods raise OSError (incl. ssl.SSLError) when it breaks.

    state: connecting -> (tunnel ->) (tls ->) open -> closed. `exchange` is set by the loop while a request is in
    flight. `peer_closed`: TLS said that nothing more will come; the TCP connection may outlive that by tens of seconds.
    `recvmsg` is the socket's own, for the loop's fast path; `plain` says that its bytes need no decryption.
    """

    __slots__ = (
        "_incoming",
        "_outgoing",
        "_pending",
        "_sock",
        "_tls",
        "_tunnel",
        "_tunnel_answer",
        "backend",
        "connected_ns",
        "exchange",
        "fd",
        "number",
        "opened_ns",
        "peer_closed",
        "plain",
        "recvmsg",
        "requests",
        "session",
        "state",
        "tls_ns",
        "wants_write_events",
    )

    def __init__(self, endpoint: Endpoint, number: int, tls_context: ssl.SSLContext | None, backend: int = 0) -> None:
        self._sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        if endpoint.family != socket.AF_UNIX:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # without kernel stamps, reads are marked as user-space
            self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.fd = self._sock.fileno()
        self.recvmsg = self._sock.recvmsg
        self.number = number
        self.backend = backend
        self.requests = 0
        self.session: int | None = None
        """The session that this connection is kept for, if any."""
        self.exchange: Exchange | None = None
        self.opened_ns = monotonic_ns()
        self.tls_ns: int | None = None
        self.connected_ns: int | None = None
        self.peer_closed = False
        self.plain = False
        self.state = "connecting"
        self.wants_write_events = True
        """What the loop registered; kept here so that it asks epoll only for changes."""
        self._pending = b""
        self._tunnel = endpoint.tunnel
        self._tunnel_answer = b""
        self._tls: ssl.SSLObject | None = None
        if tls_context is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls_context.wrap_bio(self._incoming, self._outgoing, server_hostname=endpoint.server_name)
        try:
            code = self._sock.connect_ex(endpoint.sockaddr)
        except OSError:  # such as a path that is too long for a Unix socket
            self._sock.close()
            raise
        if code not in _IN_PROGRESS:
            self._sock.close()
            raise OSError(code, errno.errorcode.get(code, "connect failed"))

    def on_writable(self) -> None:
        """Completes the connect, then flushes what could not be sent at once."""
        if self.state == "connecting":
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, errno.errorcode.get(code, "connect failed"))
            if self._tunnel:
                self.state = "tunnel"
                self._pending = self._tunnel
            else:
                self._begin()
        if self._pending:
            self._flush()

    def _begin(self) -> None:
        """TCP is there, to the service or through the tunnel."""
        if self._tls is None:
            self.plain = True
            self._opened()
        else:
            self.state = "tls"
            self.tls_ns = monotonic_ns()
            self._handshake()

    def _opened(self) -> None:
        self.state = "open"
        self.connected_ns = monotonic_ns()

    def _handshake(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            with contextlib.suppress(OSError):  # the alert tells the service why; our own error says it here
                self._sock.send(self._outgoing.read())
            raise
        else:
            self._opened()
        self._pending += self._outgoing.read()
        self._flush()

    def send(self, data: bytes) -> None:
        if self.plain and not self._pending:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._pending = data[sent:]
            return
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        self._pending = self._pending + data if self._pending else data
        self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        try:
            sent = self._sock.send(self._pending)
        except BlockingIOError:
            return
        self._pending = self._pending[sent:] if sent < len(self._pending) else b""

    @property
    def wants_write(self) -> bool:
        return self.state == "connecting" or bool(self._pending)

    def read(self, wall: WallOffset) -> tuple[bytes, int, bool] | None:
        """(data, stamp_ns, kernel) of one read; None when there is nothing to hand on; data b"" = peer closed."""
        try:
            data, ancillary, _, _ = self.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        if ancillary and ancillary[0][1] == SCM_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2][: TIMESPEC.size])
            stamp_ns, kernel = seconds * NS_PER_S + nanoseconds - wall.offset_ns, True
        else:
            stamp_ns, kernel = monotonic_ns(), False
        if self.state == "tunnel":
            self._read_tunnel(data)
            return None
        if self._tls is None or not data:
            return data, stamp_ns, kernel
        self._incoming.write(data)
        if self.state == "tls":
            self._handshake()
            if self.state != "open":
                return None
        plain = self._decrypt()
        return (plain, stamp_ns, kernel) if plain is not None else None

    def _read_tunnel(self, data: bytes) -> None:
        """The proxy's answer to CONNECT. Nothing follows it before we speak: TLS begins with the client."""
        if not data:
            raise ProxyError(errno.ECONNRESET, "the proxy closed the connection")
        self._tunnel_answer += data
        head, found, _ = self._tunnel_answer.partition(b"\r\n\r\n")
        if not found:
            if len(self._tunnel_answer) > PROXY_ANSWER_BYTES_MAX:
                raise ProxyError(errno.EPROTO, "the proxy's answer is not HTTP")
            return
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] != ["200"]:
            raise ProxyError(errno.EPROTO, f"the proxy refused the tunnel ({status[:60]})")
        self._begin()

    def _decrypt(self) -> bytes | None:
        """Decrypted bytes; None when the record is not whole yet; b"" when TLS was closed and nothing came before."""
        assert self._tls is not None
        parts: list[bytes] = []
        while not self.peer_closed:
            try:
                part = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                return b"".join(parts) if parts else None
            except ssl.SSLZeroReturnError:
                part = b""
            self.peer_closed = not part
            parts.append(part)
        return b"".join(parts)

    def tcp_info(self) -> bytes | None:
        """The kernel's struct tcp_info, of which TLS is no concern; None where there is none: a Unix socket, a closed
        one, another system."""
        if TCP_INFO is None:
            return None
        try:
            return self._sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, TCP_INFO_BYTES)
        except OSError:
            return None

    def close(self) -> None:
        self._sock.close()
        self.state = "closed"
        self.plain = False


def explain(error: OSError) -> str:
    """A short cause for a broken connection, the same words on every platform."""
    if isinstance(error, ProxyError):
        return str(error.strerror)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted ({error.verify_message}); a private authority is given with --ca-file"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    causes = {
        errno.ECONNREFUSED: "connection refused",
        errno.ECONNRESET: "connection reset by the service",
        errno.EPIPE: "connection closed by the service",
        errno.ETIMEDOUT: "connect timed out",
        errno.EHOSTUNREACH: "no route to host",
        errno.ENETUNREACH: "network unreachable",
        errno.ENOENT: "there is no such Unix socket",
        errno.EACCES: "no permission to use the Unix socket",
        errno.EADDRNOTAVAIL: NO_PORT_ERROR,
        errno.EMFILE: "too many open files on this host",
        errno.ENFILE: "too many open files on this host",
        errno.ENOBUFS: "no memory for sockets on this host",
        errno.ENOMEM: "no memory for sockets on this host",
    }
    return causes.get(error.errno or 0, str(error))
