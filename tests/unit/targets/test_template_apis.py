"""The short way of a token in other APIs: taken where events are alike, and never with another meaning."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.load.exchange import Exchange
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import Target, TargetSpec
from tests.support.scripted_server import END, STREAM_HEAD, chunk
from tests.unit.load.drive import request
from tests.unit.targets.test_template import COMPARED, GAP_NS

ESCAPES = ["a", "the", " x ", "\n", "é", "😀", '"', "\\", "\t", "}", "\u2028"]
TEXTS = st.one_of(st.sampled_from(ESCAPES), st.text(max_size=5))
KINDS = {
    "messages": ("text_delta", "thinking_delta", "input_json_delta", "signature_delta"),
    "triton-generate": ("text_output",),
}
MEMBERS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def event(api: str, kind: str, text: str, *, padding: int = 0) -> bytes:
    if api == "triton-generate":
        return b"data: %s\n\n" % json.dumps({"model_name": "m", "model_version": "1", kind: text}).encode()
    delta = {"type": kind, MEMBERS.get(kind, "signature"): text}
    data = json.dumps({"type": "content_block_delta", "index": 0, "delta": delta}, separators=(",", ":"))
    return b"event: content_block_delta\ndata: %s%s}\n\n" % (data[:-1].encode(), b" " * padding)


LAST = {
    "messages": b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":'
    b'{"input_tokens":3,"output_tokens":9}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
    "triton-generate": b"",
}


class LongWay:
    """A target of which no event is a template."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __getattr__(self, name: str) -> object:
        return getattr(self._target, name)

    def template(self, event: bytes) -> None:
        return None


def told(api: str, reads: list[bytes], *, long_way: bool) -> dict[str, object]:
    target = make_target(TargetSpec(api, "m")).reader()
    exchange = Exchange(request(1), 0, LongWay(target) if long_way else target, keep_text=True)  # pyright: ignore
    for i, data in enumerate(reads):
        if exchange.take(data, GAP_NS * (i + 1)):
            break
    exchange.catch_up()
    return {name: getattr(exchange, name) for name in (*COMPARED, "text")}


@pytest.mark.parametrize("api", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_short_way_tells_the_same_as_the_long_way(api: str, data: st.DataObject) -> None:
    kinds = st.sampled_from(KINDS[api])
    runs = data.draw(st.lists(st.tuples(kinds, st.lists(TEXTS, min_size=1, max_size=15)), max_size=4))
    padding = data.draw(st.sampled_from([0, 0, 3]))
    events = [event(api, kind, text, padding=padding) for kind, texts in runs for text in texts]
    reads = [STREAM_HEAD, *(chunk(one) for one in events), *([chunk(LAST[api])] if LAST[api] else []), END]
    assert told(api, reads, long_way=False) == told(api, reads, long_way=True)


@pytest.mark.parametrize("api", KINDS)
def test_most_tokens_take_the_short_way(api: str) -> None:
    exchange = Exchange(request(1), 0, make_target(TargetSpec(api, "m")).reader())
    exchange.take(STREAM_HEAD, 1)
    for i in range(100):
        exchange.take(chunk(event(api, KINDS[api][0], f"word {i}")), 10 * i)
    exchange.catch_up()
    assert len(exchange.chunk_ns) == 100
    assert exchange.reads <= 3
