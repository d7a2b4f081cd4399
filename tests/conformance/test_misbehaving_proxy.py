"""A proxy that misbehaves before the tunnel is there: what failed is the connecting, and the proxy is named."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from pinchpoint.load.messages import Timeouts
from tests.conformance.client import driver
from tests.support.scripted_server import Piece, ScriptedServer, stream

TIMEOUTS = Timeouts(connect_s=0.5, first_token_s=1.0, between_tokens_s=0.5, total_s=2.0)
FILLER = b"X-Filler: " + b"x" * 1014 + b"\r\n"
TOKENS = 4


@dataclass(frozen=True)
class Case:
    name: str
    pieces: tuple[Piece, ...]
    status: str
    phase: str
    error: str


CASES = [
    Case(
        "wants a password", (b"HTTP/1.1 407 Authentication Required\r\n\r\n", 0.1), "transport_error", "connect", "407"
    ),
    Case("forbids the way", (b"HTTP/1.1 403 Forbidden\r\n\r\n", 0.1), "transport_error", "connect", "403"),
    Case(
        "cannot reach the service", (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "close"), "transport_error", "connect", "502"
    ),
    Case("closes", ("close",), "transport_error", "connect", "proxy"),
    Case("resets", ("reset",), "transport_error", "connect", "reset"),
    Case("speaks another protocol", (b"SSH-2.0-x\r\n\r\n", 0.1), "transport_error", "connect", "proxy"),
    Case(
        "says headers without end", (b"HTTP/1.1 200 OK\r\n", *[FILLER] * 64, 0.1), "transport_error", "connect", "proxy"
    ),
    Case("never answers", (2.0,), "timeout", "connect", "0.5 s"),
    Case(
        "lets through what is no TLS",
        (b"HTTP/1.1 200 OK\r\n\r\n", 0.1, b"HTTP/1.1 200 OK\r\n\r\n", 0.1),
        "transport_error",
        "tls",
        "TLS",
    ),
    Case("closes inside the handshake", (b"HTTP/1.1 200 OK\r\n\r\n", 0.1, "close"), "transport_error", "tls", ""),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_tunnel_that_fails_is_a_failure_to_connect(case: Case) -> None:
    context = ssl.create_default_context()
    with (
        ScriptedServer(lambda number, body: case.pieces) as proxy,
        driver("https://127.0.0.1:9", TIMEOUTS, tls=context, proxy=proxy.url) as loop,
    ):
        one = loop.result(loop.send())
    assert (one.status, one.phase) == (case.status, case.phase), one.error
    assert case.error in (one.error or "")
    assert one.error is not None and one.error.isprintable()
    assert (one.http_status, len(one.chunk_ns)) == (None, 0)
    assert proxy.requests[0].startswith(b"CONNECT 127.0.0.1:9 HTTP/1.1\r\n")


def test_a_proxy_that_answers_in_pieces_carries_plain_http() -> None:
    def script(number: int, body: bytes) -> Iterable[Piece]:
        for piece in stream(TOKENS):
            yield from (piece[i : i + 7] for i in range(0, len(piece), 7)) if isinstance(piece, bytes) else (piece,)

    with ScriptedServer(script) as proxy, driver("http://192.0.2.1:9/base", TIMEOUTS, proxy=proxy.url) as loop:
        one = loop.result(loop.send())
    assert (one.status, len(one.chunk_ns)) == ("ok", TOKENS), one.error
    assert proxy.requests[0].startswith(b"POST http://192.0.2.1:9/base/v1/chat/completions HTTP/1.1\r\n")
