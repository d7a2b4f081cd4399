"""Single bounded HTTP exchanges with the target, and sentences for everything that can go wrong in one.

Not for load: one connection per exchange, nothing is timed. Every wait, the whole exchange and every body are
bounded, so a target that sends a byte a minute, or for ever, costs one timeout.
"""

import contextlib
import errno
import http.client
import json
import socket
import ssl
import threading
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.probe.address import Address
from pinchpoint.probe.text import clean

MAX_BODY_BYTES = 1 << 20
MAX_METRICS_BYTES = 8 << 20
READ_BYTES = 65_536
HTTP_OK = 200
DONE_MARK = b"data: [DONE]"
"""End of an OpenAI stream; some servers keep the connection open behind it."""
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


class Unanswered(Exception):
    """No HTTP answer came. `kind` is dns, refused, timeout, tls, not_http, reset or network; the text is a sentence."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Page(msgspec.Struct, frozen=True):
    """One HTTP answer. `body` is cut at the cap, and then `complete` is False."""

    path: str
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    complete: bool

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    def json(self) -> Any:
        """The decoded body, or None when it is no (complete) JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def object(self) -> dict[str, Any]:
        """The decoded body when it is a JSON object, else an empty one."""
        value = self.json()
        return value if isinstance(value, dict) else {}


class Exchange:
    """Talks to one address with one key."""

    def __init__(self, address: Address, api_key: str | None, timeout_s: float) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
            raise UsageError("the API key holds characters that no HTTP header may carry; check where it is read from")
        self.address = address
        self.has_key = api_key is not None
        self._api_key = api_key
        self._timeout_s = timeout_s

    def clean(self, text: str) -> str:
        """`text` of the target made fit to be shown; a server may echo the key in its complaint."""
        return clean(text, self._api_key)

    def get(
        self, path: str, *, port: int | None = None, at_root: bool = False, max_bytes: int = MAX_BODY_BYTES
    ) -> Page:
        """GET prefix + path, or path alone with `at_root` or another `port`. Raises Unanswered."""
        prefix = "" if at_root or port else self.address.prefix
        return self._send("GET", prefix + path, None, self._timeout_s, max_bytes, port)

    def post(self, path: str, payload: dict[str, Any], timeout_s: float | None = None) -> Page:
        """POST prefix + path with a JSON body. A stream is read to its end mark. Raises Unanswered."""
        body = json.dumps(payload).encode()
        return self._send("POST", self.address.prefix + path, body, timeout_s or self._timeout_s, MAX_BODY_BYTES, None)

    def _send(
        self, method: str, path: str, body: bytes | None, timeout_s: float, max_bytes: int, port: int | None
    ) -> Page:
        connection = self._connection(timeout_s, port)
        headers = {"Connection": "close", "Accept": "*/*"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._api_key is not None and port is None:  # another port may be another service
            headers["Authorization"] = f"Bearer {self._api_key}"
        overdue = threading.Event()
        watchdog = threading.Timer(timeout_s, _hang_up, (connection, overdue))
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            received, complete = _read(response, max_bytes)
            names = {name.lower(): value for name, value in response.getheaders()}
            if overdue.is_set():
                raise TimeoutError
            return Page(path, response.status, names, received, complete)
        except (OSError, http.client.HTTPException) as error:
            cause = TimeoutError() if overdue.is_set() else error
            raise self._unanswered(cause, timeout_s, port) from None
        finally:
            watchdog.cancel()
            connection.close()

    def _connection(self, timeout_s: float, port: int | None) -> http.client.HTTPConnection:
        address = self.address
        if address.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(address.host, port or address.port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(address.host, port or address.port, timeout=timeout_s)

    def _unanswered(self, error: Exception, timeout_s: float, port: int | None) -> Unanswered:
        place = f"{self.address.host}:{port or self.address.port}"
        if isinstance(error, TimeoutError):
            return Unanswered(
                "timeout",
                f"{place} did not answer within {timeout_s:g} s; check that the service is up and no firewall drops it",
            )
        if isinstance(error, socket.gaierror):
            reason = clean(error.strerror or "no address")
            return Unanswered("dns", f"host name {self.address.host} has no address ({reason}); check its spelling")
        if isinstance(error, ConnectionRefusedError):
            return Unanswered(
                "refused", f"nothing listens on {place} (connection refused); start the service or check the port"
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return Unanswered(
                "tls",
                f"the TLS certificate of {place} is not trusted ({clean(error.verify_message)}); point "
                "SSL_CERT_FILE at the authority that signed it",
            )
        if isinstance(error, ssl.SSLError):
            reason = clean(error.reason or "handshake failed")
            return Unanswered("tls", f"TLS with {place} failed ({reason}); if it speaks plain HTTP, use http://")
        if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
            return Unanswered(
                "reset",
                f"{place} closed the connection without an answer; check the port, and http:// against https://",
            )
        if isinstance(error, http.client.HTTPException):
            return Unanswered("not_http", f"{place} answers, but not in HTTP; check the port")
        if isinstance(error, OSError) and error.errno in UNREACHABLE:
            return Unanswered("network", f"no route to {self.address.host} ({error.strerror}); check the network")
        return Unanswered("network", f"talking to {place} failed ({clean(str(error))}); check the address")


def _hang_up(connection: http.client.HTTPConnection, overdue: threading.Event) -> None:
    """Wakes a read that is kept alive by a trickle of bytes."""
    overdue.set()
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, max_bytes: int) -> tuple[bytes, bool]:
    """The body up to the cap or the end mark of a stream, and whether that was all of it."""
    streaming = response.headers.get_content_type() == "text/event-stream"
    body = bytearray()
    while len(body) < max_bytes:
        block = response.read1(min(READ_BYTES, max_bytes - len(body)))
        if not block:
            return bytes(body), True
        body += block
        if streaming and DONE_MARK in body[-len(block) - len(DONE_MARK) :]:
            return bytes(body), True
    return bytes(body), False
