"""Schedules: which request is due when. Rows have the columns of model.SCHEDULE_COLUMNS."""

from collections.abc import Iterator

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.workload.lengths import Lengths, draw_lengths


class ScheduledRequest(msgspec.Struct, frozen=True):
    request_id: int
    stage: int
    session_id: int
    turn: int
    offset_ns: int | None
    think_ns: int
    input_tokens: int
    max_output_tokens: int

    def row(self) -> tuple[int | None, ...]:
        return (
            self.request_id,
            self.stage,
            self.session_id,
            self.turn,
            self.offset_ns,
            self.think_ns,
            self.input_tokens,
            self.max_output_tokens,
            None,
        )


def poisson_offsets_s(rate_rps: float, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Arrival instants of a Poisson process on [0, duration): independent exponential gaps, nothing rescaled."""
    expected = rate_rps * duration_s
    offsets = np.empty(0)
    while not len(offsets) or offsets[-1] < duration_s:
        gaps = rng.exponential(1 / rate_rps, int(expected + 5 * np.sqrt(expected) + 10))
        offsets = np.concatenate([offsets, (offsets[-1] if len(offsets) else 0.0) + np.cumsum(gaps)])
    return offsets[offsets < duration_s]


class Scheduler:
    """Makes the schedule of one stage after another; request ids never repeat within a run."""

    def __init__(self, seed: int, lengths: Lengths) -> None:
        self._seed = seed
        self._lengths = lengths
        self._next_id = 0

    def open_loop(self, stage: int, rate_rps: float, duration_s: float) -> list[ScheduledRequest]:
        arrivals_rng = np.random.default_rng((self._seed, 1, stage))
        offsets_s = poisson_offsets_s(rate_rps, duration_s, arrivals_rng)
        return [
            ScheduledRequest(request_id, stage, request_id, 0, round(offset_s * NS_PER_S), 0, inputs, outputs)
            for (request_id, inputs, outputs), offset_s in zip(
                self._requests(len(offsets_s)), offsets_s.tolist(), strict=True
            )
        ]

    def closed_loop(self, stage: int, concurrency: int, turns: int, think_s: float = 0.0) -> list[ScheduledRequest]:
        """`turns` requests for each of `concurrency` users, each due `think_s` after the last one of its user ended."""
        think_ns = round(think_s * NS_PER_S)
        return [
            ScheduledRequest(
                request_id, stage, position % concurrency, position // concurrency, None, think_ns, inputs, outputs
            )
            for position, (request_id, inputs, outputs) in enumerate(self._requests(concurrency * turns))
        ]

    def _requests(self, count: int) -> Iterator[tuple[int, int, int]]:
        inputs = draw_lengths(self._lengths.input_tokens, count, np.random.default_rng((self._seed, 2)))
        outputs = draw_lengths(self._lengths.output_tokens, count, np.random.default_rng((self._seed, 3)))
        first, self._next_id = self._next_id, self._next_id + count
        return zip(range(first, first + count), inputs.tolist(), outputs.tolist(), strict=True)
