"""The event-stream parser: any split of the bytes gives the same events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.targets import sse
from pinchpoint.targets.sse import SseOverflowError, SseParser


def parse(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data: a\r\n\r\n", [(b"", b"a")]),
        (b"data: a\r\rx", [(b"", b"a")]),
        (b"data: a\n\r\n", [(b"", b"a")]),
        (b"data: a\ndata: b\n\n", [(b"", b"a\nb")]),
        (b": keep-alive\n\ndata: a\n\n", [(b"", b"a")]),
        (b"event: error\ndata: {}\n\n", [(b"error", b"{}")]),
        (b"event: ping\n\ndata: a\n\n", [(b"", b"a")]),
        (b"id: 7\nretry: 5\ndata: a\n\n", [(b"", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b"data\n\n", [(b"", b"")]),
        (b"data: a\n", []),
        (b"", []),
        (b"\n\n\n", []),
    ],
)
def test_grammar(raw: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert parse(raw) == events


lines = st.sampled_from([b"data: x", b"data:", b"data: \xc3\xa9", b": c", b"event: e", b"", b"id: 1", b"junk"])
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(lines, ends), max_size=20), st.data())
def test_any_split_gives_the_same_events(parts: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    raw = b"".join(line + end for line, end in parts) + b"data: last\n\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert parse(*pieces) == parse(raw)
    assert parse(*(bytes([byte]) for byte in raw)) == parse(raw)


def test_an_unfinished_event_is_pending() -> None:
    parser = SseParser()
    parser.feed(b"data: a\n\ndata: b")
    assert parser.pending
    parser.feed(b"\n\n")
    assert not parser.pending


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    parser = SseParser()
    with pytest.raises(SseOverflowError):
        for _ in range(100):
            parser.feed(b"data: " + b"x" * 50 + b"\n")
