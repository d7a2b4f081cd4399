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
from dataclasses import dataclass
from urllib.parse import urlsplit

from pinchpoint.clock import NS_PER_S, monotonic_ns, realtime_offset_ns
from pinchpoint.errors import TargetError, UsageError

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)
SCM_TIMESTAMPNS = SO_TIMESTAMPNS
_TIMESPEC = struct.Struct("qq")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
READ_BYTES = 256 * 1024
_IN_PROGRESS = (0, errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)


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
    """Raises UsageError for a URL that cannot be used, TargetError when its name does not resolve."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is not an http or https URL; write for example http://127.0.0.1:8000")
    tls = parts.scheme == "https"
    try:
        port = parts.port or (443 if tls else 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except ValueError:
        raise UsageError(f"{url!r} has no usable port; write a number from 1 to 65535") from None
    except OSError as error:
        raise TargetError(f"cannot resolve {parts.hostname}: {error.strerror}; check the host name") from None
    family, _, _, _, sockaddr = found[0]
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Address(family, sockaddr, parts.netloc.rpartition("@")[2], parts.hostname, tls, prefix)


class WallOffset:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, measured again by `refresh`."""

    def __init__(self) -> None:
        self.offset_ns, self.error_ns = realtime_offset_ns()
        self.first_offset_ns = self.offset_ns

    def refresh(self) -> None:
        self.offset_ns, self.error_ns = realtime_offset_ns(samples=3)


class Connection:
    """One client connection. Nothing blocks; methods raise OSError (incl. ssl.SSLError) when it breaks.

    state: connecting -> (handshake ->) open. `exchange` is set by the loop while a request is in flight.
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
        self.exchange = None
        self.connected_ns: int | None = None
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
        """Decrypted bytes; None when the record is not whole yet; b"" when TLS was closed."""
        assert self._tls is not None
        parts: list[bytes] = []
        while True:
            try:
                part = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                return b"".join(parts)
            if not part:
                return b"".join(parts)
            parts.append(part)
        return b"".join(parts) if parts else None

    def close(self) -> None:
        self._sock.close()
        self.state = "closed"


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Certificates are verified, always; `ca_file` adds a private authority."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot use the CA file {ca_file}: {error}") from None


def explain(error: OSError) -> str:
    """A short cause for a broken connection, the same words on every platform."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted: {error.verify_message}"
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
    }
    return causes.get(error.errno or 0, str(error))
