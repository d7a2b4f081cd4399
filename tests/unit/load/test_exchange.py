"""One answer, from bytes with stamps to a status: every way it can end, in any split of the bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.load.exchange import Exchange
from tests.support.scripted_server import END, STREAM_HEAD, chunk, event
from tests.unit.load.drive import TARGET, request


def answer(*reads: bytes, close: bool = False, gap_ns: int = 10) -> Exchange:
    """An exchange that received these reads, stamped gap_ns apart."""
    exchange = Exchange(request(1), 0, TARGET)
    for i, data in enumerate(reads):
        exchange.take(data, (i + 1) * gap_ns)
    exchange.catch_up()
    if close:
        exchange.closed(len(reads) * gap_ns)
    return exchange


def whole(status: str, body: bytes, kind: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


GOOD = [
    STREAM_HEAD,
    chunk(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'),
    chunk(event("Hello")),
    chunk(event(" world")),
    chunk(event(finish="stop")),
    chunk(event(usage={"prompt_tokens": 5, "completion_tokens": 2})),
    chunk(b"data: [DONE]\n\n") + END,
]


def test_a_good_stream_is_ok_and_its_first_token_is_not_the_role_chunk() -> None:
    exchange = answer(*GOOD)
    assert exchange.complete and exchange.status == "ok" and exchange.keep_alive
    assert exchange.first_byte_ns == 20
    assert exchange.first_token_ns == 30
    assert list(exchange.chunk_ns) == [30, 40]
    assert exchange.end_ns == 70
    assert exchange.usage is not None and exchange.usage.output_tokens == 2
    assert exchange.coalesced_count == 0


@given(st.data())
def test_any_split_gives_the_same_meaning(data: st.DataObject) -> None:
    raw = b"".join(GOOD)
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=12, unique=True)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    exchange = answer(*pieces)
    assert (exchange.status, exchange.finish_reason, len(exchange.chunk_ns)) == ("ok", "stop", 2)
    assert list(exchange.chunk_ns) == sorted(exchange.chunk_ns)


def test_events_that_share_a_read_are_counted_and_their_error_bounded() -> None:
    exchange = answer(STREAM_HEAD, chunk(event("a")), chunk(event("b")) + chunk(event("c")) + chunk(event("d")))
    assert list(exchange.chunk_ns) == [20, 30, 30, 30]
    assert exchange.coalesced_count == 2
    assert exchange.coalesced_error_ns == 10
    assert exchange.first_token_error_ns == 0


def test_a_first_token_that_shares_its_read_has_an_uncertain_latency() -> None:
    exchange = answer(STREAM_HEAD, chunk(event("a")) + chunk(event("b")), chunk(event("c")))
    assert exchange.first_token_ns == 20
    assert exchange.first_token_error_ns == 10


def test_crlf_events_count_like_lf_events() -> None:
    crlf = answer(STREAM_HEAD, chunk(event("a", end="\r\n")), chunk(event(finish="stop", end="\r\n")) + END)
    assert crlf.status == "ok" and len(crlf.chunk_ns) == 1


def test_a_stream_without_done_is_ok_when_it_had_a_finish_reason() -> None:
    assert answer(STREAM_HEAD, chunk(event("a")), chunk(event(finish="length")) + END).status == "ok"


def test_a_stream_with_neither_is_truncated() -> None:
    assert answer(STREAM_HEAD, chunk(event("a")) + END).status == "truncated"
    assert answer(STREAM_HEAD, chunk(b"data: [DONE]\n\n") + END).status == "truncated"


def test_a_connection_closed_in_the_middle_is_truncated_even_with_http_200() -> None:
    exchange = answer(STREAM_HEAD, chunk(event("a")), close=True)
    assert exchange.status == "truncated" and not exchange.keep_alive
    assert exchange.first_token_ns == 20


def test_a_close_ends_a_body_without_length() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    exchange = answer(head, event("a"), event(finish="stop"), close=True)
    assert exchange.status == "ok"


def test_a_close_before_any_answer_is_a_transport_error() -> None:
    assert answer(close=True).status == "transport_error"


def test_an_error_inside_a_200_stream_is_never_ok() -> None:
    exchange = answer(STREAM_HEAD, chunk(event("a")), chunk(b'data: {"error":{"message":"oom\\u001b[31m"}}\n\n') + END)
    assert exchange.status == "stream_error"
    assert exchange.error == "oom [31m"


@pytest.mark.parametrize(
    ("status", "expected"),
    [("429 Too Many", "rejected"), ("503 Busy", "rejected"), ("500 Oops", "http_error"), ("404 No", "http_error")],
)
def test_http_errors_are_sorted(status: str, expected: str) -> None:
    body = json.dumps({"error": {"message": "no"}}).encode()
    exchange = answer(whole(status, body, extra="Retry-After: 3\r\n"))
    assert exchange.status == expected
    assert exchange.error is not None and exchange.error.endswith("no")
    assert exchange.retry_after_s == 3


def test_a_plain_answer_is_ok_without_a_first_token() -> None:
    body = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": 4}}).encode()
    exchange = answer(whole("200 OK", body))
    assert exchange.status == "ok" and exchange.first_token_ns is None
    assert exchange.usage is not None and exchange.usage.output_tokens == 4


def test_html_with_status_200_is_not_an_answer() -> None:
    assert answer(whole("200 OK", b"<html>hello</html>", "text/html")).status == "malformed"


def test_an_error_as_a_whole_answer_with_status_200_is_the_services_error() -> None:
    assert answer(whole("200 OK", b'{"error":{"message":"no GPU"}}')).status == "stream_error"


def test_bytes_that_are_not_http_are_malformed() -> None:
    assert answer(b"SSH-2.0-OpenSSH_9.2\r\n").status == "malformed"


def test_a_hundred_continue_is_passed_over() -> None:
    body = json.dumps({"choices": [{"message": {"content": "x"}}]}).encode()
    assert answer(b"HTTP/1.1 100 Continue\r\n\r\n" + whole("200 OK", body)).status == "ok"


def test_a_body_shorter_than_its_length_is_truncated() -> None:
    exchange = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", close=True)
    assert exchange.status == "truncated"


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_a_second_answer_behind_the_first_changes_nothing(status: str) -> None:
    late = whole("408 Request Timeout", b"late")
    exchange = answer(b"".join(GOOD) + late) if status == "200 OK" else answer(whole(status, b"{}") + late)
    assert (exchange.status, exchange.http_status) == (("ok", 200) if status == "200 OK" else ("http_error", 404))
    assert not exchange.keep_alive


def test_headers_without_end_are_malformed_and_not_kept() -> None:
    exchange = answer(b"HTTP/1.1 200 OK\r\n", *[b"X-Filler: " + b"y" * 8000 + b"\r\n"] * 10)
    assert exchange.status == "malformed" and exchange.error is not None and "64 KiB" in exchange.error


def test_an_answer_that_was_compressed_without_being_asked_is_malformed() -> None:
    exchange = answer(whole("200 OK", b"\x1f\x8b", extra="Content-Encoding: gzip\r\n"))
    assert exchange.status == "malformed" and exchange.error is not None and "gzip" in exchange.error


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3.0), ("0.5", 0.5), ("-1", None), ("inf", None), ("nan", None), ("Wed, 21 Oct", None)]
)
def test_only_a_number_of_seconds_is_a_retry_after(value: str, seconds: float | None) -> None:
    assert answer(whole("429 No", b"{}", extra=f"Retry-After: {value}\r\n")).retry_after_s == seconds


def test_reasoning_is_a_first_token_and_no_first_content() -> None:
    thought = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
    exchange = answer(STREAM_HEAD, chunk(thought), chunk(thought), chunk(event("so")), chunk(event(finish="stop")))
    assert (exchange.first_token_ns, exchange.first_content_ns) == (20, 40)


def test_what_comes_behind_done_counts_for_nothing() -> None:
    exchange = answer(*GOOD[:-1], chunk(b"data: [DONE]\n\n"), chunk(event("more")) * 3 + END)
    assert exchange.status == "ok" and len(exchange.chunk_ns) == 2


def test_the_first_failure_is_the_one_that_is_told() -> None:
    exchange = answer(STREAM_HEAD)
    exchange.fail("timeout", "first", "total")
    exchange.fail("transport_error", "second", "headers")
    exchange.closed(99)
    assert (exchange.status, exchange.error, exchange.phase) == ("timeout", "first", "total")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200))
def test_stamps_never_go_back_when_the_clocks_offset_is_measured_anew(stamps_ns: list[int]) -> None:
    exchange = Exchange(request(1), 0, TARGET)
    exchange.take(STREAM_HEAD, 500)
    for stamp_ns in stamps_ns:
        exchange.take(chunk(event("a")), stamp_ns)
    exchange.catch_up()
    assert len(exchange.chunk_ns) == len(stamps_ns)
    assert list(exchange.chunk_ns) == sorted(exchange.chunk_ns)
    assert exchange.chunk_ns[0] >= 500
