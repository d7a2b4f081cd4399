"""What real services sent, read by the load client, by a second reading, and by hand."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.client import Reading, read
from tests.conformance.framing import by_events, chunked, cut, until_close, with_length
from tests.conformance.oracle import read_stream

HERE = Path(__file__).parent
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((HERE / "recorded.toml").read_text())
HTTP_ERRORS = [json.loads(text) for text in (HERE / "http_errors.jsonl").read_text().splitlines()]
TOKEN_KINDS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
REJECTED = (429, 503)


def body_of(name: str) -> bytes:
    return (HERE / "recorded" / f"{name}.sse").read_bytes()


def check(reading: Reading, expected: dict[str, Any]) -> None:
    usage = [getattr(reading.usage, kind, None) for kind in TOKEN_KINDS]
    assert (reading.status, reading.text_events) == (expected["status"], expected["text_events"]), reading.error
    assert reading.finish_reason == expected.get("finish_reason")
    assert usage == [expected.get(kind) for kind in TOKEN_KINDS]
    assert reading.done == expected["done"]


def test_every_recorded_stream_is_in_the_table() -> None:
    assert sorted(path.stem for path in (HERE / "recorded").glob("*.sse")) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_second_reading_agrees_with_the_table(name: str) -> None:
    facts, expected = read_stream(body_of(name)), EXPECTED[name]
    assert (facts.text_events, facts.finish_reason) == (expected["text_events"], expected.get("finish_reason"))
    assert [getattr(facts, kind) for kind in TOKEN_KINDS] == [expected.get(kind) for kind in TOKEN_KINDS]
    assert facts.done == expected["done"]
    assert hashlib.sha1(facts.content.encode()).hexdigest().startswith(expected["content_sha1"])
    assert hashlib.sha1(facts.reasoning.encode()).hexdigest().startswith(expected["reasoning_sha1"])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_written_event_by_event_reads_as_the_table_says(name: str) -> None:
    framed = chunked(by_events(body_of(name)))
    check(read([framed.raw]), EXPECTED[name])
    pieces = [piece for piece in by_events(body_of(name)) if piece]
    head_end = framed.raw.index(b"\r\n\r\n") + 4
    cuts = [head_end]
    for piece in pieces:
        cuts.append(cuts[-1] + len(piece) + len(b"%x" % len(piece)) + 4)
    check(read(cut(framed.raw, cuts)), EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_the_framing_does_not_change_what_is_read(name: str) -> None:
    body = body_of(name)
    check(read([with_length(body).raw]), EXPECTED[name])
    check(read([until_close(body).raw], close=True), EXPECTED[name])
    check(read([chunked(cut(body, range(0, len(body), 1000))).raw]), EXPECTED[name])


@pytest.mark.parametrize("answer", HTTP_ERRORS, ids=lambda answer: f"{answer['status']} {answer['host']}")
def test_an_error_answer_keeps_its_status_and_says_its_reason(answer: dict[str, Any]) -> None:
    framed = with_length(answer["body"].encode(), answer["content_type"] or "", status=f"{answer['status']} Whatever")
    reading = read([framed.raw])
    assert reading.status == ("rejected" if answer["status"] in REJECTED else "http_error")
    assert (reading.http_status, reading.complete, reading.text_events) == (answer["status"], True, 0)
    assert reading.error is not None and reading.error.startswith(f"HTTP {answer['status']}: ")
    assert len(reading.error) > len("HTTP 400: ") and reading.error.isprintable()
