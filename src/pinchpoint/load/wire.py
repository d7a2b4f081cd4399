"""Non-blocking sockets with kernel receive stamps, plain and TLS.

SO_TIMESTAMPNS makes the kernel stamp each segment when it arrives; `recvmsg` hands the stamp of the newest segment
read. The stamp is CLOCK_REALTIME and is converted with an offset that the loop measures again and again, so stepping
the wall clock does not move an instant. Without kernel stamps (other systems, Unix sockets) the instant of the read is
taken and marked as such.
"""

import contextlib
import errno
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from pinchpoint.clock import NS_PER_S, monotonic_ns, realtime_offset_ns
from pinchpoint.errors import TargetError, UsageError
from pinchpoint.fetch import URL_CHARACTERS, open_socket

if TYPE_CHECKING:
    from pinchpoint.load.exchange import Exchange

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)
SCM_TIMESTAMPNS = SO_TIMESTAMPNS
_TIMESPEC = struct.Struct("qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
READ_BYTES = 256 * 1024
_IN_PROGRESS = (0, errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)
OURS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
"""Errors of connecting that say something of this host and nothing of the service."""
CHOOSE_TIMEOUT_S = 5.0
"""For finding out which of a name's addresses the service listens on; the probe has just talked to one."""
STEP_NS = 1_000_000
"""The wall clock was stepped when its offset differs by so much: slewing moves it 50 us in a tenth of a second."""


@dataclass(frozen=True)
class Address:
    """Where to connect, resolved once before the load starts, so that DNS is not part of any latency."""

    family: int
    sockaddr: tuple
    host_header: str
    server_name: str
    tls: bool
    path_prefix: str


def resolve(url: str) -> Address:
    """Raises UsageError for a URL that cannot be used, TargetError when its name does not resolve.

    Of a name with several addresses (localhost is often ::1 and 127.0.0.1) the first that accepts a connection is
    taken, the first of all when none does.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!r} cannot be read ({error}); write for example http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is not an http or https URL; write for example http://127.0.0.1:8000")
    tls = parts.scheme == "https"
    try:
        port = parts.port or (443 if tls else 80)
    except ValueError:
        raise UsageError(f"{url!r} has no usable port; write a number from 1 to 65535") from None
    try:
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise UsageError(f"{parts.hostname!r} is not a host name; check its spelling") from None
    except OSError as error:
        raise TargetError(f"cannot resolve {parts.hostname}: {error.strerror}; check the host name") from None
    family, _, _, _, sockaddr = found[0]
    if len(found) > 1:
        with contextlib.suppress(OSError), open_socket(host, port, time.monotonic() + CHOOSE_TIMEOUT_S) as accepted:
            family, sockaddr = accepted.family, accepted.getpeername()
    prefix = quote(parts.path.rstrip("/").removesuffix("/v1"), safe=URL_CHARACTERS)
    bracketed = f"[{host}]" if ":" in host else host
    host_header = bracketed if parts.port is None else f"{bracketed}:{parts.port}"
    return Address(family, sockaddr, host_header, host, tls, prefix)


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


class Connection:
    """One client connection. Nothing blocks; methods raise OSError (incl. ssl.SSLError) when it breaks.

    state: connecting -> (handshake ->) open -> closed. `exchange` is set by the loop while a request is in flight.
    `peer_closed`: TLS said that nothing more will come; the TCP connection may outlive that by tens of seconds.
    """

    __slots__ = (
        "_incoming",
        "_outgoing",
        "_pending",
        "_sock",
        "_tls",
        "connected_ns",
        "exchange",
        "fd",
        "number",
        "opened_ns",
        "peer_closed",
        "requests",
        "state",
    )

    def __init__(self, address: Address, number: int, tls_context: ssl.SSLContext | None) -> None:
        self._sock = socket.socket(address.family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # without kernel stamps, reads are marked as user-space
            self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.fd = self._sock.fileno()
        self.number = number
        self.requests = 0
        self.exchange: Exchange | None = None
        self.opened_ns = monotonic_ns()
        self.connected_ns: int | None = None
        self.peer_closed = False
        self.state = "connecting"
        self._pending = b""
        self._tls: ssl.SSLObject | None = None
        if tls_context is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls_context.wrap_bio(self._incoming, self._outgoing, server_hostname=address.server_name)
        code = self._sock.connect_ex(address.sockaddr)
        if code not in _IN_PROGRESS:
            self._sock.close()
            raise OSError(code, errno.errorcode.get(code, "connect failed"))

    def on_writable(self) -> None:
        """Completes the connect, then flushes what could not be sent at once."""
        if self.state == "connecting":
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, errno.errorcode.get(code, "connect failed"))
            if self._tls is None:
                self._opened()
            else:
                self.state = "handshake"
                self._handshake()
        if self._pending:
            self._flush()

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
        self._pending = self._pending[sent:]

    @property
    def wants_write(self) -> bool:
        return self.state == "connecting" or bool(self._pending)

    def read(self, wall: WallOffset) -> tuple[bytes, int, bool] | None:
        """(data, stamp_ns, kernel) of one read; None when there is nothing to hand on; data b"" = peer closed."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES)
        except BlockingIOError:
            return None
        if ancillary and ancillary[0][1] == SCM_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2][: _TIMESPEC.size])
            stamp_ns, kernel = seconds * NS_PER_S + nanoseconds - wall.offset_ns, True
        else:
            stamp_ns, kernel = monotonic_ns(), False
        if self._tls is None or not data:
            return data, stamp_ns, kernel
        self._incoming.write(data)
        if self.state == "handshake":
            self._handshake()
            if self.state != "open":
                return None
        plain = self._decrypt()
        return (plain, stamp_ns, kernel) if plain is not None else None

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

    def close(self) -> None:
        self._sock.close()
        self.state = "closed"


def explain(error: OSError) -> str:
    """A short cause for a broken connection, the same words on every platform."""
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
        errno.EADDRNOTAVAIL: "no free local port",
        errno.EMFILE: "too many open files on this host",
        errno.ENFILE: "too many open files on this host",
        errno.ENOBUFS: "no memory for sockets on this host",
        errno.ENOMEM: "no memory for sockets on this host",
    }
    return causes.get(error.errno or 0, str(error))
