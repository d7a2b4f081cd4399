"""The three ways in which HTTP/1.1 carries a body, and cuts at any place."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.conformance.handmade import EVENT_STREAM


@dataclass(frozen=True)
class Framed:
    """A whole answer. close: its end is the end of the connection."""

    raw: bytes
    close: bool


def head(content_type: str = EVENT_STREAM, extra: bytes = b"", status: str = "200 OK") -> bytes:
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    return f"HTTP/1.1 {status}\r\n{kind}".encode() + extra


def chunked(pieces: Iterable[bytes], content_type: str = EVENT_STREAM, extra: bytes = b"") -> Framed:
    """Each piece is one chunk."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return Framed(head(content_type, extra) + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n", False)


def with_length(body: bytes, content_type: str = EVENT_STREAM, extra: bytes = b"", status: str = "200 OK") -> Framed:
    return Framed(head(content_type, extra, status) + b"Content-Length: %d\r\n\r\n" % len(body) + body, False)


def until_close(body: bytes, content_type: str = EVENT_STREAM, extra: bytes = b"") -> Framed:
    return Framed(head(content_type, extra) + b"Connection: close\r\n\r\n" + body, True)


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *cuts})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def by_events(body: bytes) -> Sequence[bytes]:
    """As servers write: one event at a time."""
    return [piece + b"\n\n" for piece in body.split(b"\n\n")[:-1]] + [body.rsplit(b"\n\n", 1)[-1]]
