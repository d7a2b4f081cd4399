"""Runs an Issuer in the test's own thread until its requests have ended."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Content, Habits, Timeouts
from pinchpoint.load.rpc import Rpc
from pinchpoint.load.trial import NumberContent
from pinchpoint.load.wire import Endpoint, resolve
from pinchpoint.prompt import Prompt
from pinchpoint.schedule import AFTER, NEVER, Schedule, ScheduledRequest, Slots
from pinchpoint.targets.openai import CHAT_PATH, OpenAITarget
from pinchpoint.targets.target import Target

PATIENCE_S = 10.0
TURN_NS = 20_000_000


def ns(duration_s: float) -> int:
    return round(duration_s * NS_PER_S)


def request(
    number: int,
    at_s: float | None = 0.0,
    *,
    session: int | None = None,
    turn: int = 0,
    think_s: float = 0.0,
    patience_s: float | None = None,
    stage: int = 0,
) -> ScheduledRequest:
    """at_s: from the beginning of its step; None: after an answer, or when a slot is free."""
    return ScheduledRequest(
        request_id=number,
        stage=stage,
        session_id=number if session is None else session,
        turn=turn,
        offset_ns=AFTER if at_s is None else ns(at_s),
        think_ns=ns(think_s),
        input_tokens=5,
        max_output_tokens=4,
        patience_ns=NEVER if patience_s is None else ns(patience_s),
    )


def pool(count: int, *, first: int = 0, think_s: float = 0.0, stage: int = 0) -> list[ScheduledRequest]:
    """Requests of a closed loop, each a session of its own."""
    return [request(number, None, think_s=think_s, stage=stage) for number in range(first, first + count)]


def schedule_of(rows: Sequence[ScheduledRequest], stage: int = 0) -> Schedule:
    def column(name: str, kind: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], kind)

    return Schedule(
        stage=rows[0].stage if rows else stage,
        request_id=column("request_id", "uint64"),
        session_id=column("session_id", "uint32"),
        turn=column("turn", "uint16"),
        offset_ns=column("offset_ns", "int64"),
        think_ns=column("think_ns", "int64"),
        input_tokens=column("input_tokens", "int32"),
        max_output_tokens=column("max_output_tokens", "int32"),
        patience_ns=column("patience_ns", "int64"),
    )


class NumberTarget(OpenAITarget):
    """Bodies say the number of their request, or what `bodies` holds for it. `long_way`: no event is a template."""

    def __init__(self, *, long_way: bool = False) -> None:
        super().__init__(CHAT_PATH, "m", "vllm")
        self.bodies: dict[int, bytes] = {}
        self._long_way = long_way

    def build(self, prompt: Prompt) -> bytes:
        number = prompt.text.encode()
        return self.bodies.get(int(number)) or b'{"n":%s,"max_tokens":%d}' % (number, prompt.max_output_tokens)

    def template(self, event: bytes) -> tuple[bytes, bytes] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None if self._long_way else super().template(event)


TARGET = NumberTarget()


class Driven:
    """`done` holds the exchanges in the order in which the requests ended. `habits`: fields of Habits. targets,
    content: in place of those that say the number of the request."""

    def __init__(
        self,
        *places: str | Endpoint,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        tls: ssl.SSLContext | None = None,
        targets: Sequence[Target] = (),
        content: Content | None = None,
        rpc: Rpc | None = None,
        **habits: Any,
    ) -> None:
        self.done: list[Exchange] = []
        self.target = NumberTarget()
        self.issuer = Issuer(
            [place if isinstance(place, Endpoint) else resolve(place) for place in places],
            targets or [self.target],
            content or NumberContent(),
            self.done.append,
            habits=Habits(timeouts=timeouts, **habits),
            tls=tls,
            rpc=rpc,
        )
        self.t0_ns = 0
        self._stage = 0

    def start(
        self,
        *rows: ScheduledRequest,
        lead_s: float = 0.0,
        slots: Slots | int | None = None,
        duration_s: float | None = None,
    ) -> None:
        """slots: users of a closed loop, or how many of them begin at once."""
        self.t0_ns = monotonic_ns() + ns(lead_s)
        slots = Slots.constant(slots) if isinstance(slots, int) else slots
        self.issuer.start(self.t0_ns, schedule_of(rows), slots, None if duration_s is None else ns(duration_s))

    def until(self, count: int) -> list[Exchange]:
        """The exchanges that ended; fails when fewer than `count` have after PATIENCE_S."""
        deadline_ns = monotonic_ns() + ns(PATIENCE_S)
        while len(self.done) < count:
            now_ns = monotonic_ns()
            assert now_ns < deadline_ns, f"{len(self.done)} of {count} requests ended"
            self.issuer.run_once(now_ns + TURN_NS)
        return self.done

    def run_for(self, duration_s: float) -> None:
        deadline_ns = monotonic_ns() + ns(duration_s)
        while (now_ns := monotonic_ns()) < deadline_ns:
            self.issuer.run_once(min(now_ns + TURN_NS, deadline_ns))

    def one(self, number: int = 0, body: bytes | None = None, *, patience_s: float | None = None) -> Exchange:
        """Sends one request, in a step of its own, and returns it ended."""
        if body is not None:
            self.target.bodies[number] = body
        self._stage += 1
        self.start(request(number, patience_s=patience_s, stage=1000 + self._stage))
        return self.until(len(self.done) + 1)[-1]

    def in_order(self) -> list[Exchange]:
        """By number."""
        return sorted(self.done, key=lambda exchange: exchange.row.request_id)


@contextmanager
def driven(*places: str | Endpoint, **options: Any) -> Iterator[Driven]:
    driver = Driven(*places, **options)
    try:
        yield driver
    finally:
        driver.issuer.close()
