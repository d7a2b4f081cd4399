"""Laws that hold whatever the constants are, counted on runs of the engine."""

import random
from itertools import pairwise

import msgspec

from pinchpoint.lab.params import LabParams

from .replay import Arrival, replay

REQUESTS = 3000
MEAN_PROMPT, MEAN_OUTPUT = 600, 150
LITTLE_LIMIT = 0.01
LIMITS = {
    "max_num_seqs": (8, 16, 32, 64, 128, 256),
    "kv_blocks": (600, 1200, 2500, 5000, 27_000),
    "max_num_batched_tokens": (512, 1024, 2048, 8192),
    "gpu_memory_utilization_ratio": (0.35, 0.5, 0.7, 0.9),
}
"""Each limit from tight to wide; a wider one must not make the run longer by more than NOISE_RATIO."""
NOISE_RATIO = 0.02


class Laws(msgspec.Struct):
    """little: (requests in flight by counting, by rate x time). span_s: until the last answer, for each limit."""

    rate_rps: float
    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    little: tuple[float, float]
    blocks_used_at_end: float
    span_s: dict[str, list[float]]

    @property
    def little_error_ratio(self) -> float:
        return self.little[1] / self.little[0] - 1

    @property
    def little_met(self) -> bool:
        return abs(self.little_error_ratio) <= LITTLE_LIMIT

    @property
    def tokens_kept(self) -> bool:
        return self.prompt_tokens[0] == self.prompt_tokens[1] and self.output_tokens[0] == self.output_tokens[1]

    @property
    def monotonic(self) -> dict[str, bool]:
        return {
            name: all(after <= before * (1 + NOISE_RATIO) for before, after in pairwise(spans))
            for name, spans in self.span_s.items()
        }


def laws(rate_rps: float = 12.0, seed: int = 7) -> Laws:
    """Random lengths at a rate that the default service carries; then in a hurry under each limit."""
    arrivals = _arrivals(rate_rps, seed, REQUESTS)
    run = replay(LabParams(), arrivals)
    rate, mean_s = len(run.answers) / run.end_s, sum(a.last_token_s for a in run.answers) / len(run.answers)
    crowd = _arrivals(1000.0, seed, 300)
    return Laws(
        rate_rps,
        (sum(a.prompt_tokens for a in arrivals), sum(a.prompt_tokens for a in run.answers)),
        (sum(a.output_tokens for a in arrivals), sum(a.output_tokens for a in run.answers)),
        (run.in_engine_s / run.end_s, rate * mean_s),
        run.kv_used_ratio_at_end,
        {
            name: [replay(LabParams().changed(_with(name, value)), crowd).end_s for value in values]
            for name, values in LIMITS.items()
        },
    )


def _with(name: str, value: float) -> dict[str, float]:
    values: dict[str, float] = {name: value}
    if name == "max_num_batched_tokens":
        values["max_num_seqs"] = min(256, int(value))
    return values


def _arrivals(rate_rps: float, seed: int, requests: int) -> list[Arrival]:
    draw = random.Random(seed)
    t_s = 0.0
    arrivals = []
    for _ in range(requests):
        t_s += draw.expovariate(rate_rps)
        prompt, output = (max(1, round(draw.expovariate(1 / mean))) for mean in (MEAN_PROMPT, MEAN_OUTPUT))
        arrivals.append(Arrival(t_s, min(prompt, 6000), min(output, 2000)))
    return arrivals
