"""Runs an Issuer in the test's own thread until its requests have ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Intent
from pinchpoint.load.wire import resolve
from pinchpoint.targets.openai import OpenAITarget

PATIENCE_S = 10.0
TURN_NS = 20_000_000
TARGET = OpenAITarget("/v1/chat/completions", "m", "vllm")


class Driven:
    """`done` holds (exchange, stage) in the order in which the requests ended."""

    def __init__(self, url: str, **options: Any) -> None:
        self.done: list[tuple[Exchange, int]] = []
        self.issuer = Issuer(resolve(url), TARGET, lambda *ended: self.done.append(ended), **options)

    def start(self, *intents: Intent, stage: int = 0) -> None:
        self.issuer.start(stage, monotonic_ns(), list(intents))

    def until(self, count: int) -> list[Exchange]:
        """The exchanges that ended; fails when fewer than `count` have after PATIENCE_S."""
        deadline_ns = monotonic_ns() + int(PATIENCE_S * NS_PER_S)
        while len(self.done) < count:
            now_ns = monotonic_ns()
            assert now_ns < deadline_ns, f"{len(self.done)} of {count} requests ended"
            self.issuer.run_once(now_ns + TURN_NS)
        return [exchange for exchange, _ in self.done]

    def run_for(self, duration_s: float) -> None:
        deadline_ns = monotonic_ns() + int(duration_s * NS_PER_S)
        while (now_ns := monotonic_ns()) < deadline_ns:
            self.issuer.run_once(min(now_ns + TURN_NS, deadline_ns))

    def one(self, number: int = 0, body: bytes = b"{}") -> Exchange:
        """Sends one request and returns it ended."""
        self.start(open_intent(number, body=body))
        return self.until(len(self.done) + 1)[-1]


@contextmanager
def driven(url: str, **options: Any) -> Iterator[Driven]:
    driver = Driven(url, **options)
    try:
        yield driver
    finally:
        driver.issuer.close()


def open_intent(number: int, at_s: float = 0.0, body: bytes = b"{}") -> Intent:
    return Intent(number, number, int(at_s * NS_PER_S), 0, 5, 4, body)


def closed_intent(number: int, session: int, think_s: float = 0.0) -> Intent:
    return Intent(number, session, None, int(think_s * NS_PER_S), 5, 4, b"{}")
