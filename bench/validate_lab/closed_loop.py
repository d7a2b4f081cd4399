"""What the lab says about a closed loop of users: by formula, which is quick, and by running its engine, which counts.

The formula is only for calibrating. Every figure that the page compares with a measurement comes from the engine.
"""

import random
from statistics import mean
from typing import Protocol

import msgspec

from pinchpoint.lab.cost import CostModel
from pinchpoint.lab.engine import Engine
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.sequence import EngineRequest, Sequence
from pinchpoint.lab.work import StepWork

LENGTH_SPREAD_RATIO = 0.1
"""Prompts and answers scatter evenly by so much around their mean. Without, all users of a closed loop would stay in
step for ever, which the measured times to first token exclude; how the publishers drew lengths is not known."""
STEADY_ROUNDS = 1.5
"""Requests per user that count, after each user's first, which is cut so that the loop begins as if it had run long."""
BURST_ROUNDS = 10
"""Requests per user when all users begin at once and every request counts, as benchmark scripts do it: the first round
queues, and its times to first token are in the published mean."""
IN_STEP_ROUNDS = 2
"""Enough where every round is like the first."""


class Loop(msgspec.Struct, frozen=True):
    """A closed loop: so many users, lengths in tokens. in_step: all begin at once and all lengths are equal; an engine
    that computes prompts apart then keeps them together for ever."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    in_step: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """Means over the requests that count. running: requests in the batch, mean over time. preemptions: of all."""

    ttft_s: float
    tpot_s: float
    running: float
    preemptions: int


def kv_share_ratio(params: LabParams, loop: Loop) -> float:
    """Of the KV pool that all users would hold together, each half way through its answer."""
    tokens = loop.concurrency * (loop.prompt_tokens + loop.output_tokens / 2)
    return tokens / (params.num_kv_blocks() * params.block_size_tokens)


def tpot_estimate_s(params: LabParams, loop: Loop) -> float:
    """Mean time per output token while no user waits for KV: decode steps, and the prompts of others among them.

    While a user gets its answer, in output_tokens steps, every other user begins once: so each step also computes
    concurrency x chunks / output_tokens chunks of prompts on average.
    """
    step_s = step_seconds(params)
    users, prompt, output = loop.concurrency, loop.prompt_tokens, loop.output_tokens
    held = users * (prompt + output / 2)
    chunks = -(-prompt // params.max_num_batched_tokens)
    chunk = prompt / chunks

    def step(chunks_now: float) -> float:
        return step_s(prompt=chunk * chunks_now, of=prompt, decoding=users, held=held)

    decode_s = step(0)
    per_step = users * chunks / output
    if not params.mixed_batches:
        # In step, the first of them waits for the prompts of all, the last for none.
        return decode_s + per_step * step_s(prompt=chunk, of=prompt) * (0.5 if loop.in_step else 1.0)
    if per_step >= 1:
        return step(per_step)
    return decode_s + per_step * (step(1) - decode_s)


class StepSeconds(Protocol):
    def __call__(self, *, prompt: float = 0.0, of: float = 0.0, decoding: int = 0, held: float = 0.0) -> float:
        """prompt: tokens of prompts, each `of` tokens long. decoding: sequences, with `held` KV tokens in all."""
        ...


def step_seconds(params: LabParams) -> StepSeconds:
    """How long a step takes."""
    step_s = CostModel(params).step_s

    def seconds(*, prompt: float = 0.0, of: float = 0.0, decoding: int = 0, held: float = 0.0) -> float:
        prompts = max(1, round(prompt / of)) if prompt else 0
        return step_s(
            StepWork(
                tokens=round(prompt) + decoding,
                sequences=prompts + decoding,
                attention_pairs=prompt * of / 2 + held,
                kv_tokens=round(prompt + held),
                prefill_tokens=round(prompt),
                sampled_rows=prompts + decoding,
            )
        )

    return seconds


def ttft_estimate_s(params: LabParams, loop: Loop) -> float:
    """Mean time to first token of a few users: latency outside the engine, the step under way, the prompt's own steps,
    and the first round's queue."""
    step_s = step_seconds(params)
    users, prompt = loop.concurrency, loop.prompt_tokens
    held = (users - 1) * (prompt + loop.output_tokens / 2)
    chunks = -(-prompt // params.max_num_batched_tokens)
    beside = {"decoding": users - 1, "held": held} if params.mixed_batches else {}
    prompt_s = chunks * step_s(prompt=prompt / chunks, of=prompt, **beside)
    decode_s = step_s(decoding=users, held=held)
    return params.path.rtt_s + decode_s / 2 + prompt_s * (1 + (users - 1) / 2 / BURST_ROUNDS)


def run_loop(params: LabParams, loop: Loop, *, burst: bool = False, seed: int = 0) -> Outcome:
    """The engine in virtual time, without noise. Of what lies outside it only path.rtt_s acts: a user's next request
    reaches the engine so long after its last token was made.

    burst: all users begin at once and all requests count; else the loop is steady from the start.
    """
    users = _Users(loop, burst or loop.in_step, seed)
    engine = Engine(params.changed({"step_noise_ratio": 0.0}), seed)
    rtt_s = params.path.rtt_s
    coming = [(0.0, users.first(user)) for user in range(loop.concurrency)]
    now_s = running_s = counted_s = 0.0
    while users.left > 0:
        while coming and coming[0][0] <= now_s:  # in order: requests come back as they ended
            due_s, (prompt_tokens, output_tokens, request_id) = coming.pop(0)
            engine.submit(now_s, EngineRequest(request_id, prompt_tokens, output_tokens, due_s))
        step = engine.start_step(now_s) if engine.has_work else None
        if step is None:
            now_s = coming[0][0]
            continue
        running = len(engine.running)
        now_s += step.duration_s
        if users.counting:
            running_s += running * step.duration_s
            counted_s += step.duration_s
        for sequence in engine.end_step(now_s):
            if sequence.finished:
                users.ended(sequence)
                coming.append((now_s + rtt_s, users.next()))
    return Outcome(
        ttft_s=rtt_s + mean(first_s for first_s, _ in users.counted),
        tpot_s=mean(tpot_s for _, tpot_s in users.counted if tpot_s > 0),
        running=running_s / counted_s,
        preemptions=engine.metrics.preemptions,
    )


class _Users:
    """Draws lengths and counts. A request: (prompt tokens, output tokens, id)."""

    def __init__(self, loop: Loop, burst: bool, seed: int) -> None:
        self._loop = loop
        self._burst = burst
        self._random = random.Random(seed)
        self._ids = 0
        self._uncounted = 0 if burst else loop.concurrency
        self.counted: list[tuple[float, float]] = []
        rounds = IN_STEP_ROUNDS if loop.in_step else BURST_ROUNDS
        self.left = loop.concurrency * rounds if burst else max(1, round(loop.concurrency * STEADY_ROUNDS))

    @property
    def counting(self) -> bool:
        return self._uncounted == 0

    def first(self, user: int) -> tuple[int, int, int]:
        share = 1.0 if self._burst else (user + 1) / self._loop.concurrency
        prompt_tokens, output_tokens, request_id = self.next()
        return prompt_tokens, max(1, round(output_tokens * share)), request_id

    def next(self) -> tuple[int, int, int]:
        self._ids += 1
        return self._draw(self._loop.prompt_tokens), self._draw(self._loop.output_tokens), self._ids - 1

    def ended(self, sequence: Sequence) -> None:
        if not self._burst and sequence.request_id < self._loop.concurrency:
            self._uncounted -= 1
        elif self.counting:
            output = sequence.output_tokens
            tpot_s = (sequence.last_token_s - sequence.first_token_s) / (output - 1) if output > 1 else 0.0
            self.counted.append((sequence.first_token_s - sequence.arrival_s, tpot_s))
            self.left -= 1

    def _draw(self, tokens: int) -> int:
        if self._loop.in_step:
            return tokens
        return max(1, round(tokens * self._random.uniform(1 - LENGTH_SPREAD_RATIO, 1 + LENGTH_SPREAD_RATIO)))
