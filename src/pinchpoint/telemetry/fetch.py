"""One bounded GET on a new connection, for sources that watch a service.

Not for load: nothing here scales. Not a general client: no redirects, no compression, no reuse of connections.
The surprising thing: the connection is new every time on purpose. A watcher that keeps its connection would not
notice a full accept queue, and could be pinned to the one idle worker process of several.
"""

import http.client
import socket
import ssl
from urllib.parse import urlsplit

import msgspec

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError

READ_BYTES = 65_536


class FetchError(Exception):
    """No answer. `reason` is one word for a label; the message never holds a header."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def bearer(api_key: str | None) -> dict[str, str]:
    """The header that carries the key. Raises UsageError, without the key, when it cannot stand in a header."""
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable():
        raise UsageError("the API key holds characters that no HTTP header may carry; check where it is read from")
    return {"Authorization": f"Bearer {api_key}"}


class Response(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    connect_s: float
    total_s: float
    """From the start of connecting to the last byte of the body."""


def get(url: str, headers: dict[str, str], timeout_s: float, max_bytes: int) -> Response:
    """GET. `timeout_s` bounds connecting, each wait for bytes, and the whole body.

    Raises FetchError with reason refused, timeout, dns, tls, reset, not_http, too_large or network; UsageError for a
    URL that is none.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise UsageError(f"{url!r} is no http or https URL; give one like http://127.0.0.1:8000/metrics")
    connection_type = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connection_type(parts.hostname, port, timeout=timeout_s)
    started_ns = monotonic_ns()
    deadline_ns = started_ns + int(timeout_s * NS_PER_S)
    try:
        connection.connect()
        connected_ns = monotonic_ns()
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Connection": "close", **headers})
        response = connection.getresponse()
        body = _read_body(response, deadline_ns, max_bytes)
        ended_ns = monotonic_ns()
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(_reason(error)) from error
    finally:
        connection.close()
    return Response(response.status, body, (connected_ns - started_ns) / NS_PER_S, (ended_ns - started_ns) / NS_PER_S)


def _read_body(response: http.client.HTTPResponse, deadline_ns: int, max_bytes: int) -> bytes:
    body = bytearray()
    while block := response.read1(READ_BYTES):
        body += block
        if len(body) > max_bytes:
            raise FetchError("too_large")
        if monotonic_ns() > deadline_ns:
            raise FetchError("timeout")
    return bytes(body)


def _reason(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, socket.gaierror):
        return "dns"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, ConnectionError):
        return "reset"
    return "not_http" if isinstance(error, http.client.HTTPException) else "network"
