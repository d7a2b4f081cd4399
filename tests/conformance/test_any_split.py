"""The network cuts an answer where it likes; a server puts what it likes into a chunk. Neither changes its meaning.

These laws go through everything that reads an answer: HTTP framing, event stream, JSON, and the short way that knows an
event by its beginning and end.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conformance.client import GAP_NS, Reading, read, reading, receive
from tests.conformance.framing import Framed, by_events, chunked, cut, until_close, with_length
from tests.conformance.handmade import ALL, DONE, STOP, USAGE, Handmade, chat, line
from tests.conformance.oracle import read_stream

RECORDED = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "recorded").glob("*.sse"))}
SMALL = [stream for stream in ALL if stream.splittable]
FRAMINGS: tuple[Callable[..., Framed], ...] = (
    lambda body, *rest: chunked(by_events(body), *rest),
    with_length,
    until_close,
)
CUTS_MAX = 40
SEGMENT_BYTES = 1448
"""Of a TCP segment in an Ethernet frame."""
law = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cuts_of(data: st.DataObject, length: int) -> list[int]:
    return data.draw(st.lists(st.integers(0, length), max_size=CUTS_MAX))


def whole(framed: Framed) -> Reading:
    return read([framed.raw], close=framed.close)


@law
@given(st.sampled_from(SMALL), st.sampled_from(FRAMINGS), st.data())
def test_reads_cut_anywhere_mean_the_same(stream: Handmade, frame: Callable[..., Framed], data: st.DataObject) -> None:
    framed = frame(stream.body, stream.content_type, stream.extra_head)
    assert read(cut(framed.raw, cuts_of(data, len(framed.raw))), close=framed.close) == whole(framed)


@law
@given(st.sampled_from(SMALL), st.data())
def test_chunks_cut_anywhere_mean_the_same(stream: Handmade, data: st.DataObject) -> None:
    framed = chunked(cut(stream.body, cuts_of(data, len(stream.body))), stream.content_type, stream.extra_head)
    reads = cut(framed.raw, cuts_of(data, len(framed.raw)))
    assert read(reads) == whole(chunked([stream.body], stream.content_type, stream.extra_head))


@law
@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_recorded_streams_mean_the_same_in_any_chunks_and_reads(name: str, data: st.DataObject) -> None:
    body = RECORDED[name]
    framed = chunked(cut(body, cuts_of(data, len(body))))
    assert read(cut(framed.raw, cuts_of(data, len(framed.raw)))) == whole(chunked([body]))
    by_event = chunked(by_events(body))
    assert read(cut(by_event.raw, cuts_of(data, len(by_event.raw)))) == whole(chunked([body]))


# -- streams of tokens: events that are all alike -------------------------------------------------------------------

letters = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
quotes = ['"', "\\", '\\"', "}", '"}', '"},"finish_reason":"stop"', '","content":"', "\\u0041", "{"]
marks = ["[DONE]", "data: ", "\n\n", "\r\n", "0\r\n\r\n", "\x00", "\x7f"]
scripts = ["é", "中", "😀", "\u2028", "\u0085", "\ufeff", "ÿ" * 300]
awkward = st.sampled_from(["", "x" * 5000, *quotes, *marks, *scripts])
contents = st.lists(st.one_of(letters, anything, awkward), min_size=1, max_size=30)
members = st.sampled_from(["content", "reasoning_content", "reasoning", "refusal", "text"])
spacings = st.sampled_from([(",", ":"), (", ", ": ")])
line_ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
beginnings = st.sampled_from([b"", b"event: message\n", b"id: 7\n", b": comment\n", b"event: chunk\nid: 1\n"])


def token_event(member: str, text: str, spacing: tuple[str, str], ascii_only: bool, end: bytes, before: bytes) -> bytes:
    inner = {"index": 0, "text": text} if member == "text" else {"index": 0, "delta": {member: text}}
    payload = {
        "id": "c-1",
        "model": "m",
        "choices": [{**inner, "logprobs": None, "finish_reason": None}],
        "usage": None,
    }
    text_of = json.dumps(payload, separators=spacing, ensure_ascii=ascii_only)
    return before + b"data: " + text_of.encode() + end + end


@law
@given(contents, members, spacings, st.booleans(), line_ends, beginnings, st.data())
@example(["a", "b", "", "c"], "content", (",", ":"), False, b"\n", b"", None)
def test_token_streams_count_every_piece_of_text(
    texts: list[str],
    member: str,
    spacing: tuple[str, str],
    ascii_only: bool,
    end: bytes,
    before: bytes,
    data: st.DataObject | None,
) -> None:
    events = [token_event(member, text, spacing, ascii_only, end, before) for text in texts]
    framed = chunked([chat(role="assistant", content=""), *events, STOP, USAGE, DONE])
    expected = sum(bool(text) for text in texts)
    assert read_stream(b"".join([*events, STOP, DONE])).text_events == expected
    ways = [[framed.raw], event_by_event(framed)]
    if data is not None:
        ways.append(cut(framed.raw, cuts_of(data, len(framed.raw))))
    for reads in ways:
        result = read(reads)
        assert (result.status, result.text_events, result.finish_reason) == ("ok", expected, "stop")
        assert result.done and result.complete and result.keep_alive and result.usage is not None


@law
@given(st.lists(st.tuples(members, st.one_of(letters, awkward)), max_size=30), st.lists(st.integers(0, 8)))
def test_streams_that_change_their_pattern_count_every_piece_of_text(
    parts: list[tuple[str, str]], groups: list[int]
) -> None:
    events = [token_event(member, text, (",", ":"), True, b"\n", b"") for member, text in parts]
    grouped, rest = [], events
    for size in groups:  # several events share a chunk, or none does
        grouped.append(b"".join(rest[:size]))
        rest = rest[size:]
    framed = chunked([*grouped, *rest, STOP, DONE])
    result = read(event_by_event(framed))
    assert (result.status, result.text_events) == ("ok", sum(bool(text) for _, text in parts))
    assert result == whole(framed)


@law
@given(st.lists(st.binary(max_size=6), min_size=1, max_size=20))
def test_bytes_in_a_string_are_valid_in_the_short_way_exactly_when_they_are_in_the_long_one(texts: list[bytes]) -> None:
    texts = [text.replace(b"\n", b"").replace(b"\r", b"") for text in texts]
    events = [
        b'data: {"choices":[{"index":0,"delta":{"content":"' + text + b'"}}]}\n\n' for text in [b"a", b"b", *texts]
    ]
    framed = chunked([*events, STOP, DONE])
    result = read(event_by_event(framed))
    expected, clean = 0, True
    for event in events:
        try:
            expected += read_stream(event.decode().encode()).text_events
        except ValueError:
            clean = False
    assert result.text_events == expected
    assert (result.status == "ok") == clean
    assert result == whole(framed)


@law
@given(st.integers(1, 60), st.data())
def test_an_event_in_each_read_has_that_reads_stamp(count: int, data: st.DataObject) -> None:
    framed = chunked([*(chat(content="x" * (1 + i % 7)) for i in range(count)), STOP, DONE])
    one = receive(event_by_event(framed))
    assert list(one.chunk_ns) == [GAP_NS * (i + 2) for i in range(count)]  # the head came with the first read
    assert one.first_token_ns == one.chunk_ns[0]
    assert one.coalesced_count == 0


@law
@given(
    st.lists(st.sampled_from(["content", "reasoning"]), min_size=1, max_size=12),
    st.lists(st.integers(1, 4), max_size=8),
)
def test_events_that_share_a_read_share_its_stamp_and_are_counted(kinds: list[str], groups: list[int]) -> None:
    pieces = event_by_event(chunked([chat(**{kind: "ab"}) for kind in kinds]))[:-1]
    head, rest = pieces[0], pieces[1:]
    reads, stamps = [head], []
    for size in [*groups, len(rest)]:
        if rest[:size]:
            reads.append(b"".join(rest[:size]))
            stamps += [GAP_NS * len(reads)] * len(rest[:size])
            rest = rest[size:]
    one = receive(reads)
    assert list(one.chunk_ns) == stamps
    assert one.coalesced_count == len(stamps) - len(set(stamps))
    assert one.first_content_ns == next((s for s, kind in zip(stamps, kinds, strict=True) if kind == "content"), None)


@law
@given(st.binary(max_size=400), st.data())
def test_no_bytes_break_the_reading(noise: bytes, data: st.DataObject) -> None:
    raw = chunked([chat(content="a"), chat(content="b"), chat(content="c"), STOP, DONE]).raw
    place = data.draw(st.integers(0, len(raw)))
    spoilt = raw[:place] + noise + raw[place:]
    one = receive(cut(spoilt, cuts_of(data, len(spoilt))), close=True)
    assert one.status is not None
    assert (one.error is None) == (one.status == "ok")
    assert reading(one).text_events == len(one.chunk_ns)


@law
@given(st.sampled_from(sorted(RECORDED)), st.data())
def test_a_stream_cut_off_anywhere_is_never_ok_unless_it_had_ended(name: str, data: st.DataObject) -> None:
    raw = chunked(by_events(RECORDED[name])).raw
    place = data.draw(st.integers(0, len(raw) - 1))
    result = read(cut(raw[:place], cuts_of(data, place)), close=True)
    assert result.status != "ok"
    assert not result.keep_alive


def event_by_event(framed: Framed) -> list[bytes]:
    """The head, then each chunk in a read of its own; the end of the body is the last."""
    position = framed.raw.index(b"\r\n\r\n") + 4
    reads = [framed.raw[:position]]
    while position < len(framed.raw):
        size_end = framed.raw.index(b"\r\n", position)
        size = int(framed.raw[position:size_end], 16)
        end = size_end + 2 + size + 2
        reads.append(framed.raw[position:end])
        position = end
    return reads


def test_a_long_stream_takes_the_short_way_and_means_the_same() -> None:
    texts = [f"{zlib.crc32(b'%d' % i):x}"[: 1 + i % 8] for i in range(2000)]
    framed = chunked(
        [line({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n" for text in texts] + [STOP, DONE]
    )
    one = receive(event_by_event(framed))
    assert (one.status, len(one.chunk_ns)) == ("ok", len(texts))
    assert one.reads < len(texts) // 10, "most events should not have to be decoded"


def test_a_long_event_in_the_smallest_of_reads_is_one_piece_of_text() -> None:
    # Four megabytes in segments of a network: reading them again and again would take minutes.
    framed = chunked([chat(content="a"), chat(content="x" * (4 << 20)), STOP, DONE])
    segments = cut(framed.raw, range(0, len(framed.raw), SEGMENT_BYTES))
    assert read(segments) == whole(framed)
    assert whole(framed).text_events == 2
