"""How the tests drive the load client. The only place that knows its calls."""

import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Habits, Timeouts
from pinchpoint.load.trial import NumberContent
from pinchpoint.load.wire import resolve
from pinchpoint.schedule import NEVER, Schedule, ScheduledRequest
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
    one.catch_up()
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


# -- over sockets ----------------------------------------------------------------------------------------------------

PATIENCE_S = 15.0
TURN_NS = 20_000_000


class Driver:
    """An Issuer in the test's own thread. `ended` holds the exchanges in the order in which they ended."""

    def __init__(
        self, url: str, timeouts: Timeouts, tls: ssl.SSLContext | None, proxy: str | None, **habits: Any
    ) -> None:
        self.ended: list[Exchange] = []
        self._sent = 0
        self.issuer = Issuer(
            [resolve(url, proxy=proxy)],
            [CHAT],
            NumberContent(),
            self.ended.append,
            habits=Habits(timeouts=timeouts, **habits),
            tls=tls,
        )

    def send(self) -> int:
        """Makes one request due now and returns its number. It leaves with the next turn of the loop."""
        self._sent += 1
        self.issuer.start(monotonic_ns(), one_request(self._sent))
        return self._sent

    def turn(self) -> None:
        self.issuer.run_once(monotonic_ns() + TURN_NS)

    def until(self, done: Callable[[], bool]) -> None:
        """Runs the loop until `done`; fails when that takes longer than any timeout allows."""
        deadline_ns = monotonic_ns() + int(PATIENCE_S * NS_PER_S)
        while not done():
            assert monotonic_ns() < deadline_ns, f"{len(self.ended)} of {self._sent} requests ended"
            self.turn()

    def run_for(self, duration_s: float) -> None:
        deadline_ns = monotonic_ns() + int(duration_s * NS_PER_S)
        while monotonic_ns() < deadline_ns:
            self.turn()

    def has_ended(self, number: int) -> bool:
        return any(one.row.request_id == number for one in self.ended)

    def tokens(self, number: int) -> int:
        """Pieces of text that came so far."""
        ones = [one for one in [*self.ended, *self.issuer.in_flight.values()] if one.row.request_id == number]
        return len(ones[0].chunk_ns) if ones else 0

    def result(self, number: int) -> Exchange:
        """Runs the loop until request `number` has ended; fails when it is told to have ended twice."""
        self.until(lambda: self.has_ended(number))
        (found,) = [one for one in self.ended if one.row.request_id == number]
        return found


@contextmanager
def driver(
    url: str, timeouts: Timeouts, tls: ssl.SSLContext | None = None, proxy: str | None = None, **habits: Any
) -> Iterator[Driver]:
    one = Driver(url, timeouts, tls, proxy, **habits)
    try:
        yield one
    finally:
        one.issuer.close()


def one_request(number: int) -> Schedule:
    """A step of one request that is due at once, a session of its own."""

    def column(value: int, kind: str) -> np.ndarray:
        return np.array([value], kind)

    return Schedule(
        number,
        column(number, "uint64"),
        column(number, "uint32"),
        column(0, "uint16"),
        column(0, "int64"),
        column(0, "int64"),
        column(5, "int32"),
        column(4, "int32"),
        column(NEVER, "int64"),
    )
