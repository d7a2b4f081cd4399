"""A service that misbehaves: each bad answer is named rightly, ends in time, and disturbs no other stream.

Every case runs two kinds of requests on one load loop: a good stream, and bad ones while it lasts.
"""

import gzip
import itertools
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pinchpoint.fetch import tls_context
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.messages import Timeouts
from tests.conformance.client import Driver, driver, receive
from tests.support.evil_server import Act, EvilServer
from tests.support.scripted_server import END, STREAM_HEAD, chunk, event
from tests.support.tls import Authority

TIMEOUTS = Timeouts(connect_s=0.5, first_token_s=1.0, between_tokens_s=0.5, total_s=2.0)
PAUSE_S = 0.05
TRICKLE_S = 0.2
"""Between tokens: shorter than the timeout for that, so that only the one for the whole answer can end it."""
SENT_MAX_BYTES = 4 << 20
"""What an endless sender sends at most."""
MEGABYTE = 1 << 20

Script = tuple[Act, ...] | Callable[[], Iterable[Act]]


@dataclass(frozen=True)
class Case:
    """What the service does, and what the record of the request has to say.

    phase: those that are right, where it is a race; None: the outcome has none. tokens: pieces of text that had
    arrived; -1: any. requests: how many bad ones are sent, one after the other and `apart_s` after the last one's end;
    each must end as told.
    """

    name: str
    script: Script
    status: str
    phase: str | None = None
    http_status: int | None = None
    error: str = ""
    tokens: int = 0
    requests: int = 1
    apart_s: float = 0.0
    listens: Literal["accept", "refuse", "full"] = "accept"
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None


R: Act = "request"
A = chunk(event("a"))
STOP = chunk(event(finish="stop"))
USAGE = chunk(event(usage={"prompt_tokens": 5, "completion_tokens": 2}))
LAST = chunk(b"data: [DONE]\n\n") + END
GOOD = STREAM_HEAD + A + A + STOP + USAGE + LAST
PLAIN_STREAM = event("a") * 2 + event(finish="stop") + b"data: [DONE]\n\n"
WHOLE = (
    b'{"choices":[{"message":{"content":"hello"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":2}}'
)


def head(status: str = "200 OK", *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"HTTP/{version} {status}", *lines, "", ""]).encode()


def answer(status: str, body: bytes, *lines: str) -> bytes:
    return head(status, f"Content-Length: {len(body)}", *lines) + body


def one_byte_at_a_time(data: bytes) -> tuple[Act, ...]:
    return (R, *(data[i : i + 1] for i in range(len(data))))


def endless(first: bytes, repeated: bytes, pause_s: float = 0.0) -> Callable[[], Iterable[Act]]:
    def acts() -> Iterable[Act]:
        yield R
        yield first
        for _ in range(SENT_MAX_BYTES // len(repeated)):
            yield repeated
            if pause_s:
                yield pause_s
        yield "hold"

    return acts


OK: dict[str, Any] = {"status": "ok", "http_status": 200, "finish_reason": "stop"}
OK_2: dict[str, Any] = {**OK, "tokens": 2}
SSE = "Content-Type: text/event-stream"
CHUNKED = "Transfer-Encoding: chunked"

SLOW = [
    Case("headers that never end in time", (R, b"HTTP/1.1 200 OK\r\n", "hold"), "timeout", "first-token"),
    Case(
        "slow but timely headers",
        (R, *itertools.chain(*((bytes([b]), 0.002) for b in STREAM_HEAD)), GOOD[len(STREAM_HEAD) :]),
        **OK_2,
        usage=(5, 2),
    ),
    Case("one byte at a time", one_byte_at_a_time(GOOD), **OK_2, usage=(5, 2)),
    Case("no answer at all", (R, "hold"), "timeout", "first-token"),
    Case("does not even read", ("hold",), "timeout", "first-token"),
    Case("headers and then nothing", (R, STREAM_HEAD, "hold"), "timeout", "first-token", 200),
    Case("only a role, then nothing", (R, STREAM_HEAD + chunk(event("")), "hold"), "timeout", "first-token", 200),
    Case(
        "a stall between tokens", (R, STREAM_HEAD + A, PAUSE_S, A, "hold"), "timeout", "between-tokens", 200, tokens=2
    ),
    Case(
        "keep-alive comments instead of tokens",
        endless(STREAM_HEAD, chunk(b": keep-alive\n\n"), PAUSE_S),
        "timeout",
        "first-token",
        200,
    ),
    Case(
        "keep-alive comments between tokens",
        endless(STREAM_HEAD + A, chunk(b": keep-alive\n\n"), PAUSE_S),
        "timeout",
        "between-tokens",
        200,
        tokens=1,
    ),
    Case("tokens without end", endless(STREAM_HEAD, A, TRICKLE_S), "timeout", "total", 200, tokens=-1),
    Case(
        "a plain answer that never ends",
        (R, head("200 OK", "Content-Length: 100") + b"{", "hold"),
        "timeout",
        "first-token",
        200,
    ),
    Case(
        "an error text that never ends",
        (R, head("500 Oops", "Content-Length: 100") + b"{", "hold"),
        "timeout",
        "first-token",
        500,
    ),
    Case("100 Continue without end", (R, head("100 Continue"), "hold"), "timeout", "first-token"),
]

CUT_OFF = [
    Case("accept, then reset", ("reset",), "transport_error", "connect send headers"),
    Case("reset after the request", (R, "reset"), "transport_error", "headers", error="reset"),
    Case("closed before an answer", (R, "close"), "transport_error", "headers", error="closed"),
    Case("closed inside the headers", (R, STREAM_HEAD[:-10], "close"), "transport_error", "headers"),
    Case("our direction closed, nothing said", (R, "fin", "hold"), "transport_error", "headers"),
    Case("closed after the headers", (R, STREAM_HEAD, "close"), "truncated", None, 200),
    Case("closed inside a chunk", (R, STREAM_HEAD + A + A[:-20], "close"), "truncated", None, 200, tokens=1),
    Case("closed between chunks", (R, STREAM_HEAD + A + A, "close"), "truncated", None, 200, tokens=2),
    Case(
        "closed before the last chunk, all was said",
        (R, STREAM_HEAD + A + STOP + chunk(b"data: [DONE]\n\n"), "close"),
        "truncated",
        None,
        200,
        tokens=1,
        finish_reason="stop",
    ),
    Case(
        "reset inside a chunk",
        (R, STREAM_HEAD + A, PAUSE_S, A[:-20], PAUSE_S, "reset"),
        "truncated",
        None,
        200,
        tokens=1,
    ),
    Case("half-closed in the middle", (R, STREAM_HEAD + A, "fin", "hold"), "truncated", None, 200, tokens=1),
    Case("half-closed after a whole answer", (R, GOOD, "fin", "hold"), **OK_2, usage=(5, 2)),
    Case("ended without a finish reason", (R, STREAM_HEAD + A + END, "hold"), "truncated", None, 200, tokens=1),
    Case("an empty stream", (R, STREAM_HEAD + END, "hold"), "truncated", None, 200),
    Case(
        "a body shorter than its length",
        (R, head("200 OK", SSE, "Content-Length: 9999") + PLAIN_STREAM, "close"),
        "truncated",
        None,
        200,
        tokens=2,
        finish_reason="stop",
    ),
    Case(
        "a plain body shorter than its length",
        (R, head("200 OK", "Content-Length: 9999") + WHOLE, "close"),
        "truncated",
        None,
        200,
    ),
    Case(
        "a body longer than its length",
        (R, head("200 OK", SSE, f"Content-Length: {len(event('a')) + 5}") + PLAIN_STREAM, "hold"),
        "truncated",
        None,
        200,
        tokens=1,
    ),
]

NOT_HTTP = [
    Case("a bad chunk size", (R, STREAM_HEAD + A + b"zz\r\n" + A, "hold"), "malformed", None, 200, "HTTP", tokens=1),
    Case(
        "a chunk longer than its size",
        (R, STREAM_HEAD + A + b"5\r\n" + event("b") + b"\r\n", "hold"),
        "malformed",
        None,
        200,
        "HTTP",
        tokens=1,
    ),
    Case(
        "a chunk size beyond all bounds",
        (R, STREAM_HEAD + A + b"f" * 40 + b"\r\n", "hold"),
        "malformed",
        None,
        200,
        "HTTP",
        tokens=1,
    ),
    Case("another protocol", (R, b"SSH-2.0-OpenSSH_9.6\r\n", "hold"), "malformed", None, None, "HTTP"),
    Case("noise", (R, bytes(range(256)), "hold"), "malformed", None, None, "HTTP"),
    Case(
        "HTTP/2 frames",
        (R, b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18), "hold"),
        "malformed",
        None,
        None,
        "HTTP",
    ),
    Case("TLS where none was asked for", (R, b"\x15\x03\x01\x00\x02\x02\x46", "hold"), "malformed", None, None, "HTTP"),
    Case(
        "headers without end",
        endless(b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"x" * 1014 + b"\r\n"),
        "malformed",
        None,
        None,
        "headers",
    ),
    Case(
        "one header without end",
        endless(b"HTTP/1.1 200 OK\r\nX-Filler: ", b"x" * 1024),
        "malformed",
        None,
        None,
        "headers",
    ),
    Case("a status line without end", endless(b"HTTP/1.1 200 ", b"x" * 1024), "malformed", None, None, "headers"),
    Case(
        "interim answers without end",
        endless(b"", head("103 Early Hints", "Link: </>")),
        "malformed",
        None,
        None,
        "headers",
    ),
    Case(
        "trailers without end",
        endless(STREAM_HEAD + A + STOP + b"0\r\nX-Filler: ", b"x" * 1024),
        "malformed",
        None,
        200,
        "headers",
        tokens=1,
        finish_reason="stop",
    ),
    Case(
        "a chunk extension without end",
        endless(STREAM_HEAD + A + b"5;x=", b"x" * 1024),
        "malformed",
        None,
        200,
        "headers",
        tokens=1,
    ),
    Case(
        "two different lengths",
        (R, head("200 OK", SSE, "Content-Length: 5", "Content-Length: 6") + PLAIN_STREAM, "hold"),
        "malformed",
        None,
        None,
        "HTTP",
    ),
    Case(
        "both a length and chunks",
        (R, head("200 OK", SSE, CHUNKED, "Content-Length: 5") + A, "hold"),
        "malformed",
        None,
        None,
        "HTTP",
    ),
    Case(
        "a negative length",
        (R, head("200 OK", SSE, "Content-Length: -5") + PLAIN_STREAM, "hold"),
        "malformed",
        None,
        None,
        "HTTP",
    ),
    Case(
        "switching protocols",
        (R, head("101 Switching Protocols", "Upgrade: h2c", "Connection: Upgrade") + b"\x00\x00", "hold"),
        "malformed",
        None,
        101,
    ),
    Case("a status below all statuses", (R, answer("007 Bond", b""), "hold"), "http_error", None, 7),
    Case("a status that is no number", (R, head("abc OK") + b"x", "hold"), "malformed", None, None, "HTTP"),
]

HTTP_FINE = [
    Case("100 Continue first", (R, head("100 Continue"), PAUSE_S, GOOD, "hold"), **OK_2, usage=(5, 2)),
    Case("100 Continue in the same read", (R, head("100 Continue") + GOOD, "hold"), **OK_2, usage=(5, 2)),
    Case(
        "early hints", (R, head("103 Early Hints", "Link: </s>; rel=preload") * 2 + GOOD, "hold"), **OK_2, usage=(5, 2)
    ),
    Case(
        "chunk extensions and trailers",
        (R, STREAM_HEAD + A + A.replace(b"\r\n", b";x=1\r\n", 1) + STOP + b"0;y\r\nX-T: 1\r\n\r\n", "hold"),
        **OK_2,
    ),
    Case(
        "chunk sizes with zeros and capitals",
        (R, STREAM_HEAD + b"000" + A + b"0" + A[:2].upper() + A[2:] + STOP + END, "hold"),
        **OK_2,
    ),
    Case("HTTP/1.0, ended by the close", (R, head("200 OK", SSE, version="1.0") + PLAIN_STREAM, "close"), **OK_2),
    Case(
        "Connection: close", (R, head("200 OK", SSE, "Connection: close") + PLAIN_STREAM, "close"), **OK_2, requests=2
    ),
    Case(
        "a stream with a length",
        (R, head("200 OK", SSE, f"Content-Length: {len(PLAIN_STREAM)}") + PLAIN_STREAM, "hold"),
        **OK_2,
    ),
    Case("kept alive, then closed", (R, GOOD, "close"), **OK_2, usage=(5, 2), requests=3),
    Case("kept alive, then reset", (R, GOOD, "reset"), **OK_2, usage=(5, 2), requests=3),
    Case("two answers for one request", (R, GOOD + GOOD.replace(A, A * 3), "hold"), **OK_2, usage=(5, 2), requests=2),
    Case(
        "a second answer later",
        (R, GOOD, PAUSE_S, GOOD.replace(A, A * 3), "hold"),
        **OK_2,
        usage=(5, 2),
        requests=2,
        apart_s=3 * PAUSE_S,
    ),
    Case("noise behind the answer", (R, GOOD + b"\x00\xffnoise", "hold"), **OK_2, usage=(5, 2), requests=2),
    Case("answered before it asked", (GOOD, "hold"), **OK_2, usage=(5, 2)),
    Case(
        "upgrade offered",
        (
            R,
            head("200 OK", SSE, CHUNKED, "Upgrade: h2c", "Connection: Upgrade, keep-alive") + GOOD[len(STREAM_HEAD) :],
            "hold",
        ),
        **OK_2,
        usage=(5, 2),
    ),
    Case(
        "odd letter case and spaces in headers",
        (
            R,
            b"HTTP/1.1 200 OK\r\ncontent-TYPE:text/event-stream;charset=utf-8\r\nTRANSFER-encoding:   Chunked\r\n\r\n"
            + GOOD[len(STREAM_HEAD) :],
            "hold",
        ),
        **OK_2,
        usage=(5, 2),
    ),
    Case("no reason phrase", (R, GOOD.replace(b"200 OK", b"200 ", 1), "hold"), **OK_2, usage=(5, 2)),
]

REFUSED = [
    Case(
        "429, seconds",
        (R, answer("429 Too Many Requests", b"{}", "Retry-After: 2"), "hold"),
        "rejected",
        None,
        429,
        "429",
    ),
    Case(
        "429, a date",
        (R, answer("429 Too Many Requests", b"slow down", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"), "hold"),
        "rejected",
        None,
        429,
        "slow down",
    ),
    Case("429, nothing said", (R, answer("429 Too Many Requests", b""), "hold"), "rejected", None, 429, "429"),
    Case(
        "503",
        (R, answer("503 Service Unavailable", b'{"error":"overloaded"}'), "hold"),
        "rejected",
        None,
        503,
        "overloaded",
    ),
    Case(
        "503 inside an event stream",
        (R, head("503 Service Unavailable", SSE, CHUNKED) + A + END, "hold"),
        "rejected",
        None,
        503,
    ),
    Case(
        "500",
        (R, answer("500 Oops", b'{"error":{"message":"CUDA error"}}'), "hold"),
        "http_error",
        None,
        500,
        "CUDA error",
    ),
    Case(
        "500 cut off",
        (R, head("500 Oops", "Content-Length: 999") + b"CUDA error", "close"),
        "http_error",
        None,
        500,
        "CUDA error",
    ),
    Case(
        "404 in HTML",
        (R, answer("404 Not Found", b"<h1>Not Found</h1>", "Content-Type: text/html"), "hold"),
        "http_error",
        None,
        404,
        "Not Found",
    ),
    Case(
        "413 before the request was read",
        (answer("413 Too Large", b"too large", "Connection: close"), "close"),
        "http_error",
        None,
        413,
        "too large",
    ),
    *(
        Case(
            f"redirect {code}",
            (R, answer(f"{code} Moved", b"", "Location: http://127.0.0.1:1/elsewhere"), "hold"),
            "http_error",
            None,
            code,
            "redirect",
        )
        for code in (301, 302, 307, 308)
    ),
    Case("204 without a body", (R, head("204 No Content"), "hold"), "malformed", None, 204),
]

CONTENT = [
    Case(
        "an error object with 200",
        (R, answer("200 OK", b'{"error":{"message":"no GPU"}}', "Content-Type: application/json"), "hold"),
        "stream_error",
        None,
        200,
        "no GPU",
    ),
    Case(
        "an error inside the stream",
        (R, STREAM_HEAD + A + chunk(b'data: {"error":{"message":"no GPU"}}\n\n') + LAST, "hold"),
        "stream_error",
        None,
        200,
        "no GPU",
        tokens=1,
    ),
    Case(
        "a whole answer instead of a stream",
        (R, answer("200 OK", WHOLE, "Content-Type: application/json"), "hold"),
        "ok",
        None,
        200,
        finish_reason="stop",
        usage=(5, 2),
    ),
    Case(
        "HTML with 200",
        (R, answer("200 OK", b"<html>log in</html>", "Content-Type: text/html"), "hold"),
        "malformed",
        None,
        200,
    ),
    Case("an empty body with 200", (R, answer("200 OK", b""), "hold"), "malformed", None, 200),
    Case(
        "a stream declared as JSON",
        (R, head("200 OK", "Content-Type: application/json", CHUNKED) + GOOD[len(STREAM_HEAD) :], "hold"),
        **OK_2,
        usage=(5, 2),
    ),
    Case(
        "a compressed stream",
        (R, head("200 OK", SSE, "Content-Encoding: gzip", CHUNKED) + chunk(gzip.compress(PLAIN_STREAM)) + END, "hold"),
        "malformed",
        None,
        200,
        "gzip",
    ),
    Case(
        "bytes that are not UTF-8",
        (R, STREAM_HEAD + A + A.replace(b'"a"', b'"\xff"') + STOP + LAST, "hold"),
        "malformed",
        None,
        200,
        tokens=1,
        finish_reason="stop",
    ),
    Case(
        "NaN in the JSON",
        (R, STREAM_HEAD + A + chunk(b'data: {"choices":[{"delta":{},"logprobs":NaN}]}\n\n') + STOP + LAST, "hold"),
        "malformed",
        None,
        200,
        "JSON",
        tokens=1,
        finish_reason="stop",
    ),
    Case(
        "usage below zero",
        (
            R,
            STREAM_HEAD + A + A + STOP + chunk(event(usage={"prompt_tokens": 5, "completion_tokens": -1})) + LAST,
            "hold",
        ),
        **OK_2,
    ),
    Case("usage missing", (R, STREAM_HEAD + A + A + STOP + LAST, "hold"), **OK_2),
    Case("no [DONE]", (R, STREAM_HEAD + A + A + STOP + USAGE + END, "hold"), **OK_2, usage=(5, 2)),
    Case("two [DONE]", (R, STREAM_HEAD + A + A + STOP + chunk(b"data: [DONE]\n\n") + LAST, "hold"), **OK_2),
    Case(
        "comments and retry lines",
        (
            R,
            STREAM_HEAD + chunk(b": hello\n\nretry: 100\nid: 7\n\n") + A + chunk(b": ping\n\n") + A + STOP + LAST,
            "hold",
        ),
        **OK_2,
    ),
    Case("a megabyte in one event", (R, STREAM_HEAD + A + chunk(event("x" * MEGABYTE)) + STOP + LAST, "hold"), **OK_2),
    Case(
        "an event without end",
        endless(STREAM_HEAD + A + b"ffffffff\r\ndata: ", b"x" * 65536),
        "timeout",
        "between-tokens",
        200,
        tokens=1,
    ),
]

UNREACHABLE = [
    Case("connection refused", (), "transport_error", "connect", None, "refused", listens="refuse"),
    Case("a connection that never completes", (), "timeout", "connect", None, "0.5 s", listens="full"),
]

CASES = [*SLOW, *CUT_OFF, *NOT_HTTP, *HTTP_FINE, *REFUSED, *CONTENT, *UNREACHABLE]


def script_of(case: Case) -> Callable[[int], Iterable[Act]]:
    script = case.script
    return (lambda _: script()) if callable(script) else (lambda _: script)


def check(one: Exchange, case: Case) -> None:
    assert one.status == case.status, f"{one.status}: {one.error} (phase {one.phase})"
    assert one.phase in ((case.phase or "").split() or [None])
    assert one.http_status == case.http_status
    assert case.error in (one.error or "")
    assert (one.error is None) == (case.status == "ok")
    assert one.error is None or one.error.isprintable()
    assert case.tokens == -1 or len(one.chunk_ns) == case.tokens
    assert one.finish_reason == case.finish_reason
    assert (None if one.usage is None else (one.usage.input_tokens, one.usage.output_tokens)) == case.usage
    assert one.end_ns is not None and one.sent_ns is not None and one.end_ns >= one.sent_ns
    assert one.attempts >= 1


def run(server: EvilServer, loop: Driver, requests: int = 1, apart_s: float = 0.0) -> list[Exchange]:
    """The bad exchanges. A good stream that lasts as long as they do is checked."""
    good = loop.send()
    loop.until(lambda: server.ready.is_set() and loop.tokens(good) > 0)
    bad: list[Exchange] = []
    for _ in range(requests):
        if bad:
            loop.run_for(apart_s)
        bad.append(loop.result(loop.send()))
    server.finish.set()
    one = loop.result(good)
    assert (one.status, one.finish_reason, len(one.chunk_ns)) == ("ok", "stop", server.well_tokens), one.error
    assert one.usage is not None and one.usage.output_tokens == server.well_tokens
    return bad


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_misbehaving_service_is_named_rightly_and_disturbs_no_other_stream(case: Case) -> None:
    with EvilServer(script_of(case), listens=case.listens) as server, driver(server.url, TIMEOUTS) as loop:
        bad = run(server, loop, case.requests, case.apart_s)
    assert len(bad) == case.requests
    for one in bad:
        check(one, case)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    return tuple(Authority(tmp_path_factory.mktemp(name)) for name in ("known", "unknown"))  # pyright: ignore


TLS_CASES = [
    Case("a certificate of an unknown authority", (R, GOOD), "transport_error", "tls", None, "certificate"),
    Case("no TLS at all", (b"HTTP/1.1 400 Bad Request\r\n\r\n", "close"), "transport_error", "tls"),
    Case("a handshake that never ends", ("hold",), "timeout", "connect"),
    Case("closed inside the handshake", ("close",), "transport_error", "tls"),
    Case("reset inside the handshake", (PAUSE_S, "reset"), "transport_error", "tls"),
    Case("a good stream", (R, GOOD, "hold"), **OK_2, usage=(5, 2)),
    Case("closed in the middle of the stream", (R, STREAM_HEAD + A, "close"), "truncated", None, 200, tokens=1),
    Case("one byte in each record", one_byte_at_a_time(GOOD), **OK_2, usage=(5, 2)),
]
PLAIN_TLS_CASES = (
    "no TLS at all",
    "a handshake that never ends",
    "closed inside the handshake",
    "reset inside the handshake",
)


@pytest.mark.parametrize("case", TLS_CASES, ids=lambda case: case.name)
def test_bad_tls_is_named_rightly_and_disturbs_no_other_stream(
    case: Case, authorities: tuple[Authority, Authority]
) -> None:
    known, unknown = authorities
    later: ssl.SSLContext | None = known.server_context()
    if case.name in PLAIN_TLS_CASES:
        later = None
    elif "unknown" in case.name:
        later = unknown.server_context()
    client = tls_context(Path(known.ca_file))
    server = EvilServer(script_of(case), contexts=(known.server_context(), later))
    with server, driver(server.url, TIMEOUTS, tls=client) as loop:
        bad = run(server, loop, case.requests, case.apart_s)
    for one in bad:
        check(one, case)


LATER, DATE = "Wed, 21 Oct 2026 07:28:30 GMT", "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (("Retry-After: 2",), 2.0),
        (("Retry-After: 0.5",), 0.5),
        ((f"Date: {DATE}", f"Retry-After: {LATER}"), 30.0),
        ((f"Retry-After: {LATER}", f"Date: {DATE}"), 30.0),
        ((f"Retry-After: {DATE}", f"Date: {LATER}"), 0.0),
        ((f"Retry-After: {LATER}",), None),
        ((f"Date: {DATE}", "Retry-After: Wed, 21 Oct 2026 07:28:30 -0000"), None),
        (("Retry-After: soon", f"Date: {DATE}"), None),
        (("Retry-After: -1",), None),
        (("Retry-After: inf",), None),
        (("Retry-After:",), None),
        ((), None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_clock_of_the_service(
    lines: tuple[str, ...], seconds: float | None
) -> None:
    one = receive([answer("429 Too Many Requests", b"{}", *lines)])
    assert (one.status, one.retry_after_s) == ("rejected", seconds)


def test_a_rejected_request_is_sent_again_when_the_plan_allows_it() -> None:
    answers = [answer("429 Slow", b"{}", "Retry-After: 0"), answer("503 Busy", b"{}"), GOOD]

    def script(number: int) -> Iterable[Act]:
        for one in answers[number:]:
            yield R
            yield one
        yield "hold"

    with EvilServer(script) as server, driver(server.url, TIMEOUTS, retries=2) as loop:
        (bad,) = run(server, loop)
    assert (bad.status, bad.attempts, len(bad.chunk_ns)) == ("ok", 3, 2)


def test_a_request_is_not_sent_again_more_often_than_the_plan_allows() -> None:
    with EvilServer(lambda _: (R, "reset")) as server, driver(server.url, TIMEOUTS, retries=1) as loop:
        (bad,) = run(server, loop)
        assert server.connections == 1 + 2
    assert (bad.status, bad.attempts, bad.phase) == ("transport_error", 2, "headers")


def test_a_request_that_never_succeeds_ends_with_its_timeout_however_many_attempts_are_left() -> None:
    script = (R, answer("503 Busy", b"{}", "Retry-After: 30"), "hold")
    with EvilServer(lambda _: script) as server, driver(server.url, TIMEOUTS, retries=5) as loop:
        (bad,) = run(server, loop)
    assert (bad.status, bad.phase) == ("timeout", "first-token")


TOGETHER = [case for case in CASES if case.listens == "accept" and case.requests == 1]
LONGER = Timeouts(connect_s=2.0, first_token_s=2.0, between_tokens_s=1.0, total_s=4.0)


def test_all_bad_answers_at_once_are_named_rightly_and_disturb_no_other_stream() -> None:
    scripts = [script_of(case) for case in TOGETHER]
    # Each request has a connection of its own, so that the scripts meet the requests in their order.
    with (
        EvilServer(lambda number: scripts[number](number)) as server,
        driver(server.url, LONGER, new_connections=True) as loop,
    ):
        good = loop.send()
        loop.until(lambda: loop.tokens(good) > 0)
        numbers = [loop.send() for _ in TOGETHER]
        loop.until(lambda: all(loop.has_ended(number) for number in numbers))
        bad = [loop.result(number) for number in numbers]
        server.finish.set()
        one = loop.result(good)
    # Connections are accepted in the order in which they were opened, so the scripts go by that.
    opened = sorted(bad, key=lambda exchange: exchange.connect_ns or 0)
    wrong = [
        f"{case.name}: {exchange.status}, not {case.status} ({exchange.error})"
        for exchange, case in zip(opened, TOGETHER, strict=True)
        if exchange.status != case.status or (case.tokens >= 0 and len(exchange.chunk_ns) != case.tokens)
    ]
    assert wrong == []
    assert (one.status, len(one.chunk_ns)) == ("ok", server.well_tokens)
