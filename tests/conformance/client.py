"""How the tests drive the load client's reading of one answer. The only place that knows its calls."""

from collections.abc import Iterable
from dataclasses import dataclass

from pinchpoint.load.exchange import Exchange
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.targets.openai import OpenAITarget

CHAT = OpenAITarget("/v1/chat/completions", "m", "vllm")
GAP_NS = 10


@dataclass(frozen=True)
class Reading:
    """What the client made of an answer. Stamps are left out: they depend on the reads."""

    status: str | None
    http_status: int | None
    finish_reason: str | None
    usage: object
    text_events: int
    done: bool
    error: str | None
    complete: bool
    keep_alive: bool


def exchange(request_id: int = 1) -> Exchange:
    return Exchange(ScheduledRequest(request_id, 0, request_id, 0, 0, 0, 5, 4), 0, CHAT)


def receive(reads: Iterable[bytes], *, close: bool = False) -> Exchange:
    """An exchange that received these reads, stamped GAP_NS apart, and then perhaps the end of the connection."""
    one = exchange()
    now_ns = 0
    for data in reads:
        now_ns += GAP_NS
        if data and one.take(data, now_ns):
            break
    if close:
        one.closed(now_ns)
    return one


def reading(one: Exchange) -> Reading:
    return Reading(
        one.status,
        one.http_status,
        one.finish_reason,
        one.usage,
        len(one.chunk_ns),
        one.saw_done,
        one.error,
        one.complete,
        one.keep_alive,
    )


def read(reads: Iterable[bytes], *, close: bool = False) -> Reading:
    return reading(receive(reads, close=close))
