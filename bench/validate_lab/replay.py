"""The lab's engine under recorded arrivals and under batches that start together, in virtual time and without noise."""

from collections.abc import Sequence

import msgspec

from pinchpoint.lab.engine import Engine
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.sequence import EngineRequest

from .closed_loop import step_seconds


class Arrival(msgspec.Struct, frozen=True):
    t_s: float
    prompt_tokens: int
    output_tokens: int
    block_keys: tuple[int, ...] = ()


class Answer(msgspec.Struct):
    """Times since the request's arrival."""

    prompt_tokens: int
    output_tokens: int
    arrival_s: float
    wait_s: float
    first_token_s: float
    last_token_s: float

    @property
    def tpot_s(self) -> float:
        return (self.last_token_s - self.first_token_s) / max(1, self.output_tokens - 1)


class State(msgspec.Struct):
    """Once a second, as the recorded runs have it. generated: tokens in the second before."""

    t_s: float
    running: int
    waiting: int
    kv_used_ratio: float
    generated_tokens: int


class Replay(msgspec.Struct):
    """first_preemption: when, and which share of the pool was taken in the step before; None: there was none.
    in_engine_s: requests running and waiting by the engine's own count at each step, summed over time."""

    answers: list[Answer]
    states: list[State]
    end_s: float
    preemptions: int
    first_preemption: tuple[float, float] | None
    in_engine_s: float
    kv_used_ratio_at_end: float


def replay(params: LabParams, arrivals: Sequence[Arrival], every_s: float = 1.0) -> Replay:
    """All answers, in the order in which they ended."""
    engine = Engine(params.changed({"step_noise_ratio": 0.0}), 0)
    coming = sorted(arrivals, key=lambda arrival: arrival.t_s)
    now_s = used_before = in_engine_s = 0.0
    next_state_s, generated, index = every_s, 0, 0
    answers: list[Answer] = []
    states: list[State] = []
    first_preemption: tuple[float, float] | None = None
    while index < len(coming) or engine.has_work:
        if not engine.has_work:
            now_s = max(now_s, coming[index].t_s)
        while index < len(coming) and coming[index].t_s <= now_s:
            one = coming[index]
            engine.submit(
                now_s,
                EngineRequest(
                    request_id=index,
                    prompt_tokens=one.prompt_tokens,
                    max_output_tokens=one.output_tokens,
                    arrival_s=one.t_s,
                    block_keys=one.block_keys,
                ),
            )
            in_engine_s += now_s - one.t_s  # a request that comes during a step is in the line at once
            index += 1
        step = engine.start_step(now_s)
        if step is None:
            raise RuntimeError("the engine stands still with requests in it")
        if step.preempted and first_preemption is None:
            first_preemption = (now_s, used_before)
        used_before = engine.pool.used_ratio
        in_engine_s += (len(engine.running) + len(engine.waiting)) * step.duration_s
        now_s += step.duration_s
        for sequence in engine.end_step(now_s):
            generated += sequence.new_tokens
            if sequence.finished:
                answers.append(
                    Answer(
                        sequence.prompt_tokens,
                        sequence.output_tokens,
                        sequence.arrival_s,
                        (sequence.scheduled_s or now_s) - sequence.arrival_s,
                        sequence.first_token_s - sequence.arrival_s,
                        now_s - sequence.arrival_s,
                    )
                )
        if now_s >= next_state_s:
            states.append(State(now_s, len(engine.running), len(engine.waiting), used_before, generated))
            generated = 0
            next_state_s += every_s * ((now_s - next_state_s) // every_s + 1)
    return Replay(
        answers, states, now_s, engine.metrics.preemptions, first_preemption, in_engine_s, engine.pool.used_ratio
    )


def batch_latency_s(params: LabParams, batch: int, prompt_tokens: int, output_tokens: int) -> float:
    """Until the last of `batch` requests that arrive together has its last token."""
    return replay(params, [Arrival(0.0, prompt_tokens, output_tokens)] * batch).end_s


def batch_estimate_s(params: LabParams, batch: int, prompt_tokens: int, output_tokens: int) -> float:
    """The same by formula: all prompts, then every decode step as long as the one half way. For fits only."""
    step_s = step_seconds(params)
    chunk = min(params.max_num_batched_tokens, batch * prompt_tokens)
    prefill_s = batch * prompt_tokens / chunk * step_s(prompt=chunk, of=prompt_tokens)
    held = batch * (prompt_tokens + output_tokens / 2)
    return prefill_s + (output_tokens - 1) * step_s(decoding=batch, held=held)
