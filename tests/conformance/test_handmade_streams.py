"""Streams that no service should send, in every framing and event by event."""

import pytest

from tests.conformance.client import Reading, read
from tests.conformance.framing import by_events, chunked, cut, until_close, with_length
from tests.conformance.handmade import ALL, Handmade


def check(reading: Reading, stream: Handmade) -> None:
    assert (reading.status, reading.text_events) == (stream.status, stream.text_events), reading.error
    assert reading.finish_reason == stream.finish_reason
    usage = reading.usage
    counts = None if usage is None else (usage.input_tokens, usage.output_tokens)  # pyright: ignore
    assert counts == stream.usage
    assert stream.error in (reading.error or "")
    assert (reading.error is None) == (stream.status == "ok")
    assert reading.error is None or reading.error.isprintable()


@pytest.mark.parametrize("stream", ALL, ids=lambda stream: stream.name)
def test_a_chunked_stream_is_read_as_written_by_hand(stream: Handmade) -> None:
    check(read([chunked([stream.body], stream.content_type, stream.extra_head).raw]), stream)


@pytest.mark.parametrize("stream", ALL, ids=lambda stream: stream.name)
def test_one_event_in_each_chunk_and_each_read_reads_the_same(stream: Handmade) -> None:
    head, *events = by_chunk(stream)
    check(read([head, *events]), stream)


@pytest.mark.parametrize("stream", ALL, ids=lambda stream: stream.name)
def test_a_stream_with_a_length_reads_the_same(stream: Handmade) -> None:
    check(read([with_length(stream.body, stream.content_type, stream.extra_head).raw]), stream)


@pytest.mark.parametrize("stream", ALL, ids=lambda stream: stream.name)
def test_a_stream_that_ends_with_its_connection_reads_the_same(stream: Handmade) -> None:
    check(read([until_close(stream.body, stream.content_type, stream.extra_head).raw], close=True), stream)


@pytest.mark.parametrize("stream", [s for s in ALL if s.splittable], ids=lambda stream: stream.name)
def test_a_stream_that_comes_byte_by_byte_reads_the_same(stream: Handmade) -> None:
    raw = chunked(by_events(stream.body), stream.content_type, stream.extra_head).raw
    check(read(cut(raw, range(len(raw)))), stream)


def by_chunk(stream: Handmade) -> list[bytes]:
    """The head, then each event as a chunk of its own, the end of the body with the last."""
    raw = chunked(by_events(stream.body), stream.content_type, stream.extra_head).raw
    head_end = raw.index(b"\r\n\r\n") + 4
    reads, position = [raw[:head_end]], head_end
    for piece in by_events(stream.body):
        if piece:
            size = len(piece) + len(b"%x" % len(piece)) + 4
            reads.append(raw[position : position + size])
            position += size
    return [*reads, raw[position:]]
