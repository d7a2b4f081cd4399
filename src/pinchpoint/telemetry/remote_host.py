"""Source `host-NAME`: another machine, read from the agent that runs there, or from its node-exporter.

The readings have the same series as those of this host, with the label `host`, whichever of the two they are read
from. The machine's clock is compared with ours on every page.
"""

import re
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

from pinchpoint.catalog import Catalog
from pinchpoint.errors import UsageError
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.page import Page

DEFAULT_PATH = "/metrics"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What may name a host: it becomes part of a file's name."""
MAX_NAME_CHARS = 64


class RemoteAddress(NamedTuple):
    name: str
    url: str


def parse_remote_host(text: str) -> RemoteAddress:
    """`NAME=URL`, or a URL, whose host is the name then. Without a path it is /metrics. Raises UsageError."""
    name, equals, url = text.partition("=")
    if not equals or "/" in name:
        name, url = "", text
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise UsageError(f"{text!r} is no remote host; give NAME=URL, such as gpu-1=http://10.0.0.5:9500")
    name = name or host.replace(":", "-").strip("-")
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
        raise UsageError(
            f"{name!r} cannot name a host; use letters, digits, '.', '_' and '-', at most {MAX_NAME_CHARS}"
        )
    return RemoteAddress(name, url if parts.path not in ("", "/") else parts._replace(path=DEFAULT_PATH).geturl())


class RemoteHost:
    def __init__(
        self, address: RemoteAddress, catalog: Catalog, token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """token: what the agent asks for; never in a reading or a message."""
        self.name = f"host-{address.name}"
        self._page = Page(address.url, self.name, catalog, api_key=token, tls=tls, host=address.name)

    def read(self) -> tuple[int, list[Reading]]:
        return self._page.read()
