"""Single exchanges with the target, and sentences for everything that can go wrong in one.

Not for load: one connection per exchange, nothing is timed. Every wait, the whole exchange and every body are
bounded (pinchpoint.fetch), so a target that sends a byte a minute, or for ever, costs one timeout.
"""

import json
import ssl
from collections.abc import Mapping
from typing import Any

import msgspec

from pinchpoint import fetch
from pinchpoint.probe.address import Address
from pinchpoint.probe.text import clean

MAX_BODY_BYTES = 1 << 20
MAX_METRICS_BYTES = 8 << 20
HTTP_OK = 200


class Unanswered(Exception):
    """No HTTP answer came. `kind` is a reason of fetch.FetchError; the text is a sentence."""

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
    """Talks to one address with one key. `tls` None: the system's authorities."""

    def __init__(
        self, address: Address, api_key: str | None, timeout_s: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.address = address
        self.has_key = api_key is not None
        self._authorization = fetch.bearer(api_key)
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._tls = tls

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
        return self.post_body(path, json.dumps(payload).encode(), timeout_s)

    def post_body(
        self,
        path: str,
        body: bytes,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        key_header: str = "",
    ) -> Page:
        """POST prefix + path with a body of JSON that a target made, with its headers. Raises Unanswered."""
        further = dict(headers or {})
        if key_header and self._api_key is not None:
            further[key_header] = self._api_key
        wait_s = timeout_s or self._timeout_s
        return self._send("POST", self.address.prefix + path, body, wait_s, MAX_BODY_BYTES, None, further)

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout_s: float,
        max_bytes: int,
        port: int | None,
        further: Mapping[str, str] | None = None,
    ) -> Page:
        headers = {} if body is None else {"Content-Type": "application/json"}
        headers |= further or {}
        if port is None:  # another port may be another service
            headers |= self._authorization
        try:
            answer = fetch.exchange(
                method,
                self.address.origin(port) + path,
                headers=headers,
                timeout_s=timeout_s,
                max_bytes=max_bytes,
                body=body,
                tls=self._tls,
            )
        except fetch.FetchError as error:
            raise Unanswered(error.reason, self._sentence(error, timeout_s, port)) from None
        return Page(path, answer.status, answer.headers, answer.body, answer.complete)

    def _sentence(self, error: fetch.FetchError, timeout_s: float, port: int | None) -> str:
        host = self.address.host
        place = f"{host}:{port or self.address.port}"
        detail = clean(error.detail)
        sentences = {
            "timeout": f"{place} did not answer within {timeout_s:g} s; check that the service is up and no firewall "
            "drops it",
            "dns": f"host name {host} has no address ({detail}); check its spelling",
            "refused": f"nothing listens on {place} (connection refused); start the service or check the port",
            "certificate": f"the TLS certificate of {place} is not trusted ({detail}); if a private authority signed "
            "it, give that authority's certificate with --ca-file FILE",
            "wrong_name": f"the TLS certificate of {place} is for another name ({detail}); give the URL with a name "
            "that it holds, which --ca-file cannot change",
            "tls": f"TLS with {place} failed ({detail}); if it speaks plain HTTP, use http://",
            "reset": f"{place} closed the connection without an answer; check the port, and http:// against https://",
            "truncated": f"the answer of {place} was cut off; look for a proxy that ends connections early",
            "not_http": f"{place} answers, but not in HTTP; check the port",
            "unreachable": f"no route to {host} ({detail}); check the network",
        }
        return sentences.get(error.reason, f"talking to {place} failed ({detail}); check the address")
