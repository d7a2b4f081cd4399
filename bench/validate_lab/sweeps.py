"""Knees and the onset of preemption: rate sweeps and runs on real vLLM, replayed by the lab's engine.

The constants are those of one calibrated group (CONSTANTS_OF), of another model and, for two runs, other GPUs; nothing
is fitted here.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

import msgspec

from pinchpoint.lab.params import LabParams

from .closed_loop import step_seconds
from .points import RateStage, RunRequest, RunState, read
from .replay import Arrival, Replay, replay

CONSTANTS_OF = "vllm-qwen3-32b-bf16-h100"
KNEE_LIMIT, ONSET_LIMIT, PREDICTED_LIMIT = 0.15, 0.10, 0.20

# The sweeps name neither GPU nor limits. 7.0 ms per token of an 8B model in bf16 is an H100; the running requests at
# overload, by Little's law throughput x (latency - time to first token), are 131 and 193. Prompts and prefixes are of
# the published load configuration.
SWEEP_LIMITS = {"vllm": 128, "vllm+batch_size": 192}
SWEEP_BASE = {"gpu": "H100", "model": "llama-3.1-8b", "max_num_batched_tokens": 8192}
SYSTEM_PROMPTS, USERS_PER_PROMPT = 10, 10
SYSTEM_BLOCKS, PROMPT_BLOCKS = 8, 12
"""Of 16 tokens: 128 of the system prompt, 192 of a prompt of 204."""
STAGE_S = 60.0
SETTLED_S = 15.0
"""Until an overloaded engine is full; its rate is counted after."""
DOUBLED = 2.0

RUNS = {
    "RTX 4090": (
        "rtx4090",
        {
            "gpu": "RTX4090",
            "model": "llama-3.1-8b",
            "max_num_seqs": 256,
            "max_num_batched_tokens": 2048,
            "kv_blocks": 2588,
        },
    ),
    "RTX PRO 6000": (
        "rtxpro6000",
        {"gpu": "RTXPRO6000", "model": "llama-3.1-8b", "max_num_seqs": 128, "max_num_batched_tokens": 2048},
    ),
}
"""Limits and the size of the pool are published with the runs."""


class Compared(msgspec.Struct, frozen=True):
    """One number of a sweep or run, published and by the lab. limit None: shown, not judged."""

    what: str
    published: float
    lab: float
    unit: str
    limit: float | None = None

    @property
    def error_ratio(self) -> float:
        return self.lab / self.published - 1

    @property
    def met(self) -> bool:
        return self.limit is None or abs(self.error_ratio) <= self.limit


def rate_sweep(configuration: str, values: Mapping[str, float]) -> list[Compared]:
    """Capacity, and the rate at which the median latency has doubled."""
    stages = [s for s in read(RateStage, "rate_sweeps.csv") if s.configuration == configuration]
    params = LabParams().changed({**SWEEP_BASE, **values, "max_num_seqs": SWEEP_LIMITS[configuration]})
    calm = [s for s in stages if s.finished_rps > 0.95 * s.requested_rps]
    latencies = [median(a.last_token_s for a in _stage(params, s, s.requested_rps).answers) for s in calm]
    over = [s for s in stages if s not in calm]
    first_over = over[0]
    overload = _stage(params, first_over, first_over.requested_rps)
    latencies.append(median(a.last_token_s for a in overload.answers))
    upto = [*calm, first_over]
    rates = [s.requested_rps for s in upto]
    # While its client is at its cap of requests in flight, what is sent is what has finished.
    published_rps = median(s.sent_rps for s in over)
    return [
        Compared("requests per second when overloaded", published_rps, _settled_rps(overload), "/s", KNEE_LIMIT),
        Compared(
            "rate at which the median latency is twice the unloaded one",
            _crossing(rates, [s.latency_median_s for s in upto]),
            _crossing(rates, latencies),
            "/s",
            KNEE_LIMIT,
        ),
        *(
            Compared(f"median latency at {s.requested_rps:.0f} per second", s.latency_median_s, latency, "s")
            for s, latency in zip(calm, latencies, strict=False)
        ),
    ]


def _stage(params: LabParams, stage: RateStage, rate_rps: float) -> Replay:
    draw = random.Random(stage.stage)
    arrivals = []
    for index in range(round(rate_rps * STAGE_S)):
        system, user = draw.randrange(SYSTEM_PROMPTS), draw.randrange(USERS_PER_PROMPT)
        keys = [hash(("system", system, block)) for block in range(SYSTEM_BLOCKS)]
        keys += [hash(("user", system, user, block)) for block in range(SYSTEM_BLOCKS, PROMPT_BLOCKS)]
        lengths = round(stage.prompt_tokens), round(stage.output_tokens)
        arrivals.append(Arrival(index / rate_rps, *lengths, tuple(keys)))
    return replay(params, arrivals)


def _settled_rps(run: Replay) -> float:
    ends = sorted(answer.arrival_s + answer.last_token_s for answer in run.answers)
    return sum(SETTLED_S <= end < STAGE_S for end in ends) / (STAGE_S - SETTLED_S)


def _crossing(rates: Sequence[float], latencies: Sequence[float]) -> float:
    """Between two stages, along a straight line."""
    target = DOUBLED * latencies[0]
    for i in range(1, len(rates)):
        if latencies[i] >= target:
            share = (target - latencies[i - 1]) / (latencies[i] - latencies[i - 1])
            return rates[i - 1] + share * (rates[i] - rates[i - 1])
    return rates[-1]


def recorded_run(name: str, values: Mapping[str, float]) -> tuple[list[Compared], Replay]:
    """One of RUNS."""
    file, base = RUNS[name]
    requests = read(RunRequest, f"vllm_run_{file}_requests.csv")
    states = read(RunState, f"vllm_run_{file}_states.csv")
    params = LabParams().changed({**values, **base})
    run = replay(
        params,
        [Arrival(r.queued_s, r.prompt_tokens, r.output_tokens) for r in requests],
    )
    real_tpots = [(r.last_token_s - r.first_token_s) / (r.output_tokens - 1) for r in requests if r.output_tokens > 1]
    lab_tpots = [a.tpot_s for a in run.answers if a.output_tokens > 1]
    real_end_s = max(r.queued_s + r.last_token_s for r in requests)
    calm_s = min(s.t for s in states if s.waiting > 0 and s.t > CALM_FROM_S) - 1
    calm = [r for r in requests if r.queued_s < calm_s]
    chunk = float(params.max_num_batched_tokens)
    prompt_s_per_token = step_seconds(params)(prompt=chunk, of=chunk) / chunk
    busy_ratio = sum(r.prompt_tokens for r in calm) / calm_s * prompt_s_per_token
    real_first = [r.first_token_s for r in calm if r.wait_s < NO_WAIT_S]
    lab_first = [a.first_token_s for a in run.answers if a.arrival_s < calm_s and a.wait_s < NO_WAIT_S]
    compared = [
        Compared(
            "median time per output token", 1e3 * median(real_tpots), 1e3 * median(lab_tpots), "ms", PREDICTED_LIMIT
        ),
        Compared("output tokens per second", *_rates(requests, real_end_s, run), "/s", KNEE_LIMIT),
        Compared(
            f"median time to first token, prompts keeping the GPU busy for {min(1.0, busy_ratio):.0%} of the time",
            1e3 * median(real_first),
            1e3 * median(lab_first),
            "ms",
            PREDICTED_LIMIT,
        ),
        Compared(
            "most requests running", max(s.running for s in states), max(s.running for s in run.states), "", KNEE_LIMIT
        ),
    ]
    return compared, run


CALM_FROM_S = 2.0
"""A request that waits in one sample of the first seconds waits for a step, not for a place."""
NO_WAIT_S = 0.1


def _rates(requests: Sequence[RunRequest], real_end_s: float, run: Replay) -> tuple[float, float]:
    tokens = sum(r.output_tokens for r in requests)
    return tokens / real_end_s, tokens / run.end_s


def preemption_onset(run: Replay) -> list[Compared]:
    """Of the RTX 4090 run, whose pool is small. Published: the sample before the first in which the number of running
    requests fell although none had ended."""
    requests = read(RunRequest, "vllm_run_rtx4090_requests.csv")
    states = read(RunState, "vllm_run_rtx4090_states.csv")
    ends = sorted(r.queued_s + r.last_token_s for r in requests)
    for before, after in pairwise(states):
        ended = sum(before.t < end <= after.t for end in ends)
        if after.running < before.running - ended:
            break
    else:
        raise RuntimeError("no preemption in the published run")
    if run.first_preemption is None:
        raise RuntimeError("the lab's run preempted nothing")
    lab_s, lab_used_ratio = run.first_preemption
    lab_running = next(state.running for state in run.states if state.t_s >= lab_s - 1)
    return [
        Compared(
            "KV in use at the first preemption",
            before.kv_cache_pct,
            100 * lab_used_ratio,
            "% of 41,408 tokens",
            ONSET_LIMIT,
        ),
        Compared("requests running then", before.running, lab_running, "", ONSET_LIMIT),
        Compared("when", (before.t + after.t) / 2, lab_s, "s"),
    ]
