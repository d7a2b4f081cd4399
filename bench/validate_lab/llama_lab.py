"""llama.cpp's measured curves against the lab with constants fitted to four of its levels.

The lab has no CPU among its accelerators, so the constants are efficiencies of an A100's peak rates, tiny ones: what
counts is that four constants give all curves.
"""

from collections import defaultdict
from statistics import median

import msgspec

from pinchpoint.lab.params import LabParams

from .closed_loop import Loop, Outcome, run_loop, step_seconds
from .fitting import Observation, fit
from .points import LlamaRequest, read

STARTS = {
    "compute_efficiency_ratio": (1e-4, 1e-6, 0.1),
    "kv_bandwidth_efficiency_ratio": (1e-2, 1e-5, 1.0),
    "step_overhead_s": (10e-3, 1e-4, 1.0),
    "sequence_overhead_s": (5e-3, 1e-5, 0.1),
}
BASE = {"gpu": "A100", "model": "smollm2-135m", "max_num_batched_tokens": 2048, "cuda_graphs": False}
"""2048 tokens a step are the server's default; its slots are max_num_seqs."""
TUNING = ((1, 1, 128), (4, 1, 128), (4, 2, 128), (4, 4, 128))
"""Levels (slots, users, prompt tokens) that the constants are fitted to."""
SHAPE_LIMIT = 0.15
DISTURBED_RATIO, MIN_ROWS = 2.0, 4
"""Other work on the cores slows some requests of a level and not others: where the slowest time per token is more than
twice the fastest, the level is left out."""


class Level(msgspec.Struct):
    """Medians; tokens_per_s: of answers, over the whole level."""

    slots: int
    users: int
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    lab: Outcome | None = None

    @property
    def tuned(self) -> bool:
        return (self.slots, self.users, self.prompt_tokens) in TUNING

    @property
    def answer_s(self) -> float:
        return self.ttft_s + (self.output_tokens - 1) * self.tpot_s

    @property
    def lab_answer_s(self) -> float:
        assert self.lab is not None
        return self.lab.ttft_s + (self.output_tokens - 1) * self.lab.tpot_s

    @property
    def lab_tokens_per_s(self) -> float:
        return self.users * self.output_tokens / self.lab_answer_s


class Shape(msgspec.Struct):
    """One feature of the curves."""

    what: str
    measured: float
    lab: float

    @property
    def error_ratio(self) -> float:
        return self.lab / self.measured - 1

    @property
    def met(self) -> bool:
        return abs(self.error_ratio) <= SHAPE_LIMIT


def shapes(found: list[Level]) -> list[Shape]:
    """How tokens per second rise with users up to the slots, how flat they are beyond, and how long users then wait."""
    by = {(level.slots, level.users): level for level in found if level.prompt_tokens == CHAT_TOKENS}
    features = []
    for slots in sorted({slots for slots, _ in by}):
        one = by[slots, 1]
        for users in sorted(users for of, users in by if of == slots and users > 1):
            level = by[slots, users]
            assert level.lab is not None and one.lab is not None
            what = f"{slots} slots, {users} users: tokens per second over those of one user"
            features.append(
                Shape(what, level.tokens_per_s / one.tokens_per_s, level.lab_tokens_per_s / one.lab_tokens_per_s)
            )
            what = f"{slots} slots, {users} users: whole time of an answer over that of one user"
            features.append(Shape(what, level.answer_s / one.answer_s, level.lab_answer_s / one.lab_answer_s))
    return features


CHAT_TOKENS = 128


def levels() -> tuple[dict[str, float], list[Level]]:
    """The fitted constants, and every level with what the lab says about it."""
    rows: defaultdict[tuple[int, int, int, int], list[LlamaRequest]] = defaultdict(list)
    for row in read(LlamaRequest, "llama_cpp.csv"):
        rows[row.slots, row.concurrency, row.prompt_tokens, row.output_tokens].append(row)
    found = [_level(*key, of) for key, of in rows.items() if not _disturbed(of)]
    observations = []
    for level in (one for one in found if one.tuned):
        users, prompts = level.users, float(level.users * level.computed_tokens)
        held = users * (level.prompt_tokens + level.output_tokens / 2)
        observations.append(_observation(level, level.tpot_s, decoding=users, held=held))
        observations.append(_observation(level, level.ttft_s, prompt=prompts, of=float(level.computed_tokens)))
    values = fit(observations, starts=STARTS)
    for level in found:
        level.lab = run_loop(_params(level).changed(values), _loop(level))
    return values, found


def _observation(level: Level, measured_s: float, **work: float) -> Observation:
    """A step that computes the prompts of all users together, or one token for each: equal answers keep them in
    step."""
    return Observation(_params(level), lambda tuned: step_seconds(tuned)(**work), measured_s)  # pyright: ignore


def _disturbed(rows: list[LlamaRequest]) -> bool:
    tpots = [row.tpot_s for row in rows]
    return len(rows) < MIN_ROWS or max(tpots) > DISTURBED_RATIO * min(tpots)


def _level(slots: int, users: int, prompt_tokens: int, output_tokens: int, rows: list[LlamaRequest]) -> Level:
    span_s = max(row.sent_s + row.latency_s for row in rows)
    return Level(
        slots,
        users,
        prompt_tokens,
        output_tokens,
        round(prompt_tokens - median(row.cached_tokens for row in rows)),
        median(row.ttft_s for row in rows),
        median(row.tpot_s for row in rows),
        sum(row.output_tokens for row in rows) / span_s,
    )


def _params(level: Level) -> LabParams:
    return LabParams().changed({**BASE, "max_num_seqs": level.slots})


def _loop(level: Level) -> Loop:
    return Loop(level.users, level.computed_tokens, level.output_tokens, in_step=True)
