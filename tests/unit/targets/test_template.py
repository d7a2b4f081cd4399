"""The short way of a token never changes the meaning: it is compared with the long way, which decodes everything."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.load.exchange import Exchange
from pinchpoint.targets.openai import OpenAITarget
from pinchpoint.targets.template import is_plain
from tests.support.scripted_server import END, STREAM_HEAD, chunk, event
from tests.unit.load.drive import NumberTarget, request

COMPARED = (
    "status",
    "error",
    "phase",
    "http_status",
    "finish_reason",
    "usage",
    "saw_done",
    "complete",
    "keep_alive",
    "bytes_in",
    "first_byte_ns",
    "first_token_ns",
    "first_content_ns",
    "headers_ns",
    "end_ns",
    "chunk_ns",
    "coalesced_count",
    "coalesced_error_ns",
    "first_token_error_ns",
    "text",
)
GAP_NS = 1000


def told(reads: list[bytes], *, long_way: bool, close: bool) -> dict[str, object]:
    exchange = Exchange(request(1), 0, NumberTarget(long_way=long_way), keep_text=True)
    now_ns = 0
    for data in reads:
        now_ns += GAP_NS
        if exchange.take(data, now_ns):
            break
    exchange.catch_up()
    if close:
        exchange.closed(now_ns + 1)
    return {name: getattr(exchange, name) for name in COMPARED}


def payload(delta: dict, **more: object) -> bytes:
    return json.dumps({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more}).encode()


def compact(text: bytes, key: bytes = b"content") -> bytes:
    return b'data: {"id":"x","choices":[{"delta":{"%s":"%s"},"finish_reason":null}]}\n\n' % (key, text)


TEXTS = st.sampled_from(
    [
        b"a",
        b"the",
        b" x ",
        b"",
        b"\\n",
        b"\\u00e9",
        b"\\ud83d",
        b'\\"',
        "é😀".encode(),
        b"\xc3",
        b'"',
        b"\\",
        b"\t",
        b"}",
    ]
)
COMMON = st.one_of(
    TEXTS.map(compact),
    TEXTS.map(lambda text: compact(text, b"reasoning_content")),
    st.text(min_size=1, max_size=5).map(event),
)
ODD = st.sampled_from(
    [
        b"data: " + payload({"role": "assistant", "content": ""}) + b"\n\n",
        b"data: " + payload({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 9}) + b"\n\n",
        b"data: " + payload({"tool_calls": [{"function": {"arguments": "{"}}]}) + b"\n\n",
        b"data: " + payload({"content": "a", "reasoning_content": "b"}) + b"\n\n",
        b"data: " + payload({"content": "a"}) + b"\r\n\r\n",
        b"data: " + payload({"content": "a"}) + b"\n",
        b"\n",
        b"id: 7\ndata: " + payload({"content": "a"}) + b"\n\n",
        b"event: error\ndata: " + payload({"content": "a"}) + b"\n\n",
        b"event: error\n",
        b": keep-alive\n\n",
        b'data: {"error":{"message":"oom"}}\n\n',
        b"data: rubbish\n\n",
        event(finish="stop"),
        event("a", finish="length"),
        event(usage={"prompt_tokens": 5, "completion_tokens": 2}),
        b"data: [DONE]\n\n",
    ]
)
EVENTS = st.one_of(COMMON, COMMON, COMMON, ODD)


@st.composite
def framed(draw: st.DrawFn) -> bytes:
    """One chunk, nearly always as servers write it, with one event, nearly always."""
    data = b"".join(draw(st.one_of(st.lists(EVENTS, min_size=1, max_size=1), st.lists(EVENTS, max_size=3))))
    if not data:
        return b""
    form = draw(st.sampled_from(["", "", "", "", "upper", "zeros", "extension", "halves"]))
    if form == "upper":
        return b"%X\r\n%s\r\n" % (len(data), data)
    if form == "zeros":
        return b"00%x\r\n%s\r\n" % (len(data), data)
    if form == "extension":
        return b"%x;a=b\r\n%s\r\n" % (len(data), data)
    if form == "halves":
        middle = len(data) // 2
        return chunk(data[:middle]) + chunk(data[middle:]) if middle else chunk(data)
    return chunk(data)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Reads of a stream: mostly a chunk each, some several, some cut anywhere."""
    reads = [b"".join(group) for group in draw(st.lists(st.lists(framed(), min_size=1, max_size=3), max_size=12))]
    if draw(st.booleans()):
        reads.append(chunk(event(finish="stop")) + chunk(b"data: [DONE]\n\n") + END)
    if draw(st.integers(0, 2)) == 0:
        position = draw(st.integers(0, len(reads)))
        reads.insert(position, draw(st.sampled_from([b"zz\r\n", b"\r\n", b"0\r\n", b"HTTP/1.1 200 OK\r\n", b"5"])))
    if reads and draw(st.integers(0, 2)) == 0:
        place = draw(st.integers(0, len(reads) - 1))
        cut = draw(st.integers(0, len(reads[place])))
        reads[place : place + 1] = [reads[place][:cut], reads[place][cut:]]
    if draw(st.booleans()):
        return [STREAM_HEAD, *filter(None, reads)]
    first = reads[0] if reads else b""
    return [STREAM_HEAD + first, *filter(None, reads[1:])]


@settings(max_examples=400, deadline=None)
@given(streams(), st.booleans())
def test_the_short_way_tells_the_same_as_the_long_way(reads: list[bytes], close: bool) -> None:
    assert told(reads, long_way=False, close=close) == told(reads, long_way=True, close=close)


@given(st.lists(TEXTS, min_size=30, max_size=60))
def test_a_long_stream_of_one_pattern_tells_the_same_either_way(texts: list[bytes]) -> None:
    reads = [STREAM_HEAD, *(chunk(compact(text)) for text in texts)]
    assert told(reads, long_way=False, close=True) == told(reads, long_way=True, close=True)


def test_most_tokens_take_the_short_way() -> None:
    exchange = Exchange(request(1), 0, OpenAITarget("/v1/chat/completions", "m", "vllm"))
    exchange.take(STREAM_HEAD, 1)
    for i in range(100):
        exchange.take(chunk(compact(b"word %d" % i)), 10 * i)
    exchange.catch_up()
    assert len(exchange.chunk_ns) == 100
    assert exchange.reads <= 3


@pytest.mark.parametrize(
    "one",
    [
        event(finish="stop"),
        event("a", finish="stop"),
        compact(b"a") * 2,
        compact(b"a")[:-1],
        b'data: {"error":{"message":"x"},"choices":[{"delta":{"content":"a"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a","reasoning_content":"b"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a","tool_calls":[{"function":{"name":"f"}}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}\n\n',
        b'event: error\ndata: {"choices":[{"delta":{"content":"a"}}]}\n\n',
        b"data: [DONE]\n\n",
        b"rubbish",
        b"",
    ],
)
def test_an_event_that_says_more_than_text_is_no_template(one: bytes) -> None:
    assert OpenAITarget("/v1/chat/completions", "m", "unknown").template(one) is None


@given(st.binary(max_size=12))
def test_plain_is_what_a_decoder_takes_inside_a_string(text: bytes) -> None:
    if is_plain(text):
        assert isinstance(json.loads(b'"%s"' % text), str)
