"""What real services sent in other APIs than OpenAI's chat, read by the load client and by a second reading."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinchpoint.load.exchange import Exchange
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import Target, TargetSpec
from tests.conformance.framing import chunked, cut, until_close, with_length
from tests.conformance.oracle_apis import READERS, Facts

HERE = Path(__file__).parent
FOLDER = HERE / "recorded_apis"
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((HERE / "recorded_apis.toml").read_text())
ANSWERS = [json.loads(text) for text in (HERE / "recorded_answers.jsonl").read_text().splitlines()]
TOKEN_KINDS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
APIS = {"triton": "triton-generate"}
"""Folder -> target, where they are not the same."""
GAP_NS = 10
law = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def body_of(name: str) -> bytes:
    return next(FOLDER.glob(f"{name}.*")).read_bytes()


def reader_of(name: str) -> Target:
    folder = name.partition("/")[0]
    api = "ollama-generate" if name.startswith("ollama/") and "generate" in name else APIS.get(folder, folder)
    return make_target(TargetSpec(api, "m")).reader()


def content_type(name: str) -> str:
    return "application/x-ndjson" if name.startswith("ollama/") else "text/event-stream"


def pieces_of(name: str) -> list[bytes]:
    """As the service writes: one event or line at a time."""
    end = b"\n" if name.startswith("ollama/") else b"\n\n"
    body = body_of(name)
    pieces = [piece + end for piece in body.split(end)]
    return [*pieces[:-1], body.rsplit(end, 1)[-1]]


def receive(name: str, reads: list[bytes], *, close: bool = False) -> Exchange:
    one = Exchange(ScheduledRequest(1, 0, 1, 0, 0, 0, 5, 4), 0, reader_of(name), keep_text=True)
    now_ns = 0
    for data in reads:
        now_ns += GAP_NS
        if data and one.take(data, now_ns):
            break
    one.catch_up()
    if close:
        one.closed(now_ns)
    return one


def facts_of(one: Exchange) -> tuple[Any, ...]:
    usage = [getattr(one.usage, kind, None) for kind in TOKEN_KINDS]
    return one.status, len(one.chunk_ns), one.finish_reason, usage, one.text


def wanted(facts: Facts) -> tuple[Any, ...]:
    return "ok", facts.text_events, facts.finish_reason, [getattr(facts, kind) for kind in TOKEN_KINDS], facts.text


def second_reading(name: str) -> Facts:
    return READERS[name.partition("/")[0]](body_of(name))


def test_every_recorded_stream_is_in_the_table() -> None:
    found = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*"))
    assert found == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_second_reading_agrees_with_the_table(name: str) -> None:
    facts, expected = second_reading(name), EXPECTED[name]
    assert (facts.text_events, facts.finish_reason) == (expected["text_events"], expected.get("finish_reason"))
    assert [getattr(facts, kind) for kind in TOKEN_KINDS] == [expected.get(kind) for kind in TOKEN_KINDS]
    for kind in ("text", "reasoning", "calls"):
        assert hashlib.sha1(getattr(facts, kind).encode()).hexdigest().startswith(expected[f"{kind}_sha1"])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_reads_as_the_second_reading_says_in_every_framing(name: str) -> None:
    body, facts = body_of(name), wanted(second_reading(name))
    by_event = chunked(pieces_of(name), content_type(name)).raw
    assert facts_of(receive(name, [by_event])) == facts
    assert facts_of(receive(name, [with_length(body, content_type(name)).raw])) == facts
    assert facts_of(receive(name, [until_close(body, content_type(name)).raw], close=True)) == facts


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_that_comes_chunk_by_chunk_means_the_same(name: str) -> None:
    """Where the short way is open, it is taken here."""
    raw = chunked(pieces_of(name), content_type(name)).raw
    head_end = raw.index(b"\r\n\r\n") + 4
    cuts = [head_end]
    for piece in filter(None, pieces_of(name)):
        cuts.append(cuts[-1] + len(piece) + len(b"%x" % len(piece)) + 4)
    assert facts_of(receive(name, cut(raw, cuts))) == wanted(second_reading(name))


@law
@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_a_stream_cut_into_any_reads_means_the_same(name: str, data: st.DataObject) -> None:
    raw = chunked(pieces_of(name), content_type(name)).raw
    places = data.draw(st.lists(st.integers(0, len(raw)), max_size=40))
    assert facts_of(receive(name, cut(raw, places))) == wanted(second_reading(name))


@law
@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_a_stream_that_breaks_off_anywhere_is_truncated(name: str, data: st.DataObject) -> None:
    raw = chunked(pieces_of(name), content_type(name)).raw
    head_end = raw.index(b"\r\n\r\n") + 4
    end = data.draw(st.integers(head_end, len(raw) - len(b"0\r\n\r\n")))
    assert receive(name, [raw[:end]], close=True).status == "truncated"


@law
@given(st.sampled_from([name for name in sorted(EXPECTED) if second_reading(name).ended]), st.data())
def test_a_stream_that_ends_before_its_end_is_truncated_however_it_is_framed(name: str, data: st.DataObject) -> None:
    """Even where HTTP says that all is well."""
    pieces = pieces_of(name)
    last = max(i for i, piece in enumerate(pieces) if b"message_delta" in piece or b"completed" in piece or i == 0)
    if name.startswith(("ollama/", "vllm-tokens/")):
        last = next(i for i, piece in enumerate(pieces) if b'"done":true' in piece or b'"finish_reason":"' in piece)
    kept = pieces[: data.draw(st.integers(0, last))]
    assert receive(name, [chunked(kept, content_type(name)).raw]).status == "truncated"


@pytest.mark.parametrize("rubbish", [b"rubbish", b"[1]", b'"a"', b"{", b"<html>", b"17", b'{"a":1}', b"null"])
@pytest.mark.parametrize("name", ["responses/vllm", "messages/vllm", "ollama/llama3-chat", "triton/decoupled"])
def test_an_event_that_is_none_of_the_api_makes_an_answer_malformed(name: str, rubbish: bytes) -> None:
    pieces = pieces_of(name)
    one = rubbish + b"\n" if name.startswith("ollama/") else b"data: " + rubbish + b"\n\n"
    exchange = receive(name, [chunked([*pieces[:2], one, *pieces[2:]], content_type(name)).raw])
    assert exchange.status == "malformed", exchange.error


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["name"])
def test_a_whole_answer_reads_as_the_table_says(answer: dict[str, Any]) -> None:
    target = make_target(TargetSpec(answer["api"], "m", stream=False, options=answer["options"])).reader()
    chunk = target.parse_answer(answer["body"].encode())
    expected = answer["expected"]
    assert (chunk.error or "").startswith(expected.get("error", "")) and (chunk.error is None) == (
        "error" not in expected
    )
    assert (chunk.text, chunk.tool, chunk.finish_reason) == (
        expected.get("text", ""),
        expected.get("tool", False),
        expected.get("finish_reason"),
    )
    assert [getattr(chunk.usage, kind, None) for kind in TOKEN_KINDS] == [expected.get(kind) for kind in TOKEN_KINDS]
    assert chunk.has_text == ("error" not in expected)
