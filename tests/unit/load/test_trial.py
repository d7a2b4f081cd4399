"""Short loads on the null server: they count what happened, compare stamps with the truth and leave nothing behind."""

import socket
from collections.abc import Iterator

import pytest

from pinchpoint.load.trial import (
    NullTarget,
    StampTarget,
    Trial,
    burst_costs,
    null_service,
    run_trial,
    timer_lateness_s,
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with null_service() as url:
        yield url


def run_until_tokens_came(url: str, target: NullTarget, *, tokens: int, concurrency: int) -> Trial:
    """The first of ever longer trials that a busy host had time for."""
    for duration_s in (0.2, 1.0, 5.0):
        trial = run_trial(url, target, duration_s=duration_s, tokens=tokens, concurrency=concurrency)
        if trial.tokens:
            return trial
    return run_trial(url, target, duration_s=20.0, tokens=tokens, concurrency=concurrency)


def test_a_closed_loop_keeps_its_users_busy(url: str) -> None:
    trial = run_until_tokens_came(url, NullTarget(stream=True, first_ms=1, gap_ms=1), tokens=5, concurrency=4)
    assert trial.failures == {}
    assert trial.requests >= 4
    assert 0 < trial.tokens <= 5 * trial.requests
    assert trial.cpu_s > 0
    assert len(trial.arrival_error_s) == 0


def test_an_open_loop_sends_what_is_due(url: str) -> None:
    trial = run_trial(url, NullTarget(stream=True, first_ms=1, gap_ms=0), duration_s=0.2, tokens=1, rate_rps=100)
    assert trial.requests == 20
    assert len(trial.send_lag_s) == 20
    assert (trial.send_lag_s >= 0).all()


def test_whole_answers_count_their_tokens(url: str) -> None:
    trial = run_until_tokens_came(url, NullTarget(stream=False, first_ms=0, gap_ms=0), tokens=3, concurrency=2)
    assert trial.failures == {}
    assert trial.tokens >= 3


def test_stamps_of_each_request_are_compared_with_its_own(url: str) -> None:
    trial = run_until_tokens_came(url, StampTarget(first_ms=1, gap_ms=5), tokens=20, concurrency=8)
    assert len(trial.arrival_error_s) == trial.tokens > 0
    # Mixed up with another stream's they would be whole gaps early; clocks differ by microseconds.
    assert trial.arrival_error_s.min() > -0.001


def test_the_server_ends_with_the_block_whatever_happened() -> None:
    with pytest.raises(KeyboardInterrupt), null_service() as url:
        port = int(url.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), 5.0).close()
        raise KeyboardInterrupt
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5.0)


def test_a_burst_yields_costs_of_tokens_and_requests() -> None:
    costs = burst_costs(streams=5, rounds=20, answers=2)
    assert 0 < costs.per_token_s < 0.01
    assert 0 <= costs.per_request_s < 0.1


def test_timers_are_never_early() -> None:
    late_s = timer_lateness_s(5, 0.001)
    assert late_s.shape == (5,)
    assert (late_s >= 0).all()
