"""Another HTTP client reads the same answers from the same sockets, and another decoder makes sense of its bytes."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import pytest

from pinchpoint.load.messages import Timeouts
from tests.conformance.client import driver
from tests.conformance.framing import Framed, by_events, chunked, cut, until_close, with_length
from tests.conformance.handmade import ALL
from tests.conformance.oracle import read_stream
from tests.support.scripted_server import Piece, ScriptedServer

RECORDED = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "recorded").glob("*.sse"))}
CHANGED = ("a finish reason without end is cut", "a finish reason is harmless in a terminal")
"""What the client changes on purpose."""
HANDMADE = {one.name: one.body for one in ALL if one.status == "ok" and one.splittable and one.name not in CHANGED}
WRITE_BYTES = 997
"""Of one write of the server: a prime, so that writes end anywhere in events."""
TIMEOUTS = Timeouts(connect_s=5.0, total_s=10.0)


def framings(body: bytes) -> dict[str, Framed]:
    return {
        "by event": chunked(by_events(body)),
        "by size": chunked(cut(body, range(0, len(body), WRITE_BYTES))),
        "length": with_length(body),
        "close": until_close(body),
    }


def served(framed: Framed) -> Iterable[Piece]:
    yield from cut(framed.raw, range(0, len(framed.raw), WRITE_BYTES))
    if framed.close:
        yield "close"


async def bodies_by_another_client(url: str, count: int) -> list[bytes]:
    async with aiohttp.ClientSession() as session:
        bodies = []
        for _ in range(count):
            async with session.post(f"{url}/v1/chat/completions", data=b"{}") as response:
                bodies.append(await response.read())
        return bodies


@pytest.mark.parametrize("name", [*RECORDED, *HANDMADE])
def test_both_clients_read_the_same_from_sockets(name: str) -> None:
    body = RECORDED.get(name) or HANDMADE[name]
    ways = list(framings(body).values())
    with ScriptedServer(lambda number, _: served(ways[number % len(ways)])) as server:
        theirs = asyncio.run(bodies_by_another_client(server.url, len(ways)))
        with driver(server.url, TIMEOUTS) as loop:
            ours = [loop.result(loop.send()) for _ in ways]
    for other_body, one in zip(theirs, ours, strict=True):
        facts = read_stream(other_body)
        usage = one.usage
        assert len(one.chunk_ns) == facts.text_events, one.error
        assert (one.finish_reason, one.saw_done, one.status == "stream_error") == (
            facts.finish_reason,
            facts.done,
            facts.error,
        )
        assert one.bytes_in > len(other_body)
        if name in RECORDED and facts.output_tokens is not None:
            assert usage is not None
            assert (usage.input_tokens, usage.output_tokens) == (facts.input_tokens, facts.output_tokens)
            assert (usage.cached_tokens, usage.reasoning_tokens) == (facts.cached_tokens, facts.reasoning_tokens)
        else:
            assert name in HANDMADE or usage is None
