"""A URL as people type it, turned into scheme, host, port and path prefix."""

from urllib.parse import urlsplit

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.probe.text import clean

DEFAULT_PORTS = {"http": 80, "https": 443}
API_TAILS = ("/chat/completions", "/completions", "/models")
EXAMPLE = "give one like http://127.0.0.1:8000"


class Address(msgspec.Struct, frozen=True):
    scheme: str
    host: str
    port: int
    prefix: str
    """Path in front of /v1, without a slash at the end; usually empty."""

    def origin(self, port: int | None = None) -> str:
        """`port` instead of the address's own, if given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = port or self.port
        return f"{self.scheme}://{host}" + ("" if port == DEFAULT_PORTS[self.scheme] else f":{port}")

    @property
    def url(self) -> str:
        """The base that API paths such as /v1/models are appended to."""
        return self.origin() + self.prefix

    @property
    def place(self) -> str:
        """host:port, for sentences."""
        return f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Accepts a base URL, with or without /v1 or a full API path behind it.

    Raises UsageError: no scheme, no host, bad port, credentials in the URL, query or fragment.
    """
    shown = clean(url)
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise UsageError(f"the target URL cannot be read ({clean(str(error))}); {EXAMPLE}") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError("the target URL holds credentials; leave them out and use --api-key-env NAME for a key")
    if parts.scheme not in DEFAULT_PORTS:
        raise UsageError(f"{shown} does not start with http:// or https://; {EXAMPLE}")
    if not parts.hostname:
        raise UsageError(f"{shown} names no host; {EXAMPLE}")
    if port == 0:
        raise UsageError(f"{shown} has port 0, where nothing can listen; {EXAMPLE}")
    if parts.query or parts.fragment:
        raise UsageError(
            f"{clean(url.partition('?')[0].partition('#')[0])} is followed by a query or fragment; drop it"
        )
    path = parts.path.rstrip("/")
    for tail in API_TAILS:
        if path.endswith("/v1" + tail):
            path = path.removesuffix(tail)
            break
    return Address(parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme], path.removesuffix("/v1"))
