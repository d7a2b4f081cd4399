"""Continuous batching, sans IO: which request computes how many tokens in each step (vLLM V1 scheduling rules).

No clock: the caller says when a step starts (`start_step`) and ends (`end_step`), and between the two no batch
changes. Not here: HTTP, the API process, limits in front of the engine.

How it works. Running requests come first, in order, one token each while decoding or what is left of the prompt while
prefilling (chunked by the step's token budget). A running request that finds no free KV block evicts the last of the
running ones, itself if need be; the evicted request loses its blocks, goes to the head of the waiting line and
computes prompt and output again. Then waiting requests are admitted first come first served, up to max_num_seqs, and
the line stops at the first one that does not fit, even if a shorter one behind it would. In a step that evicted,
nobody is admitted.
"""

import random
from collections import deque

import msgspec

from pinchpoint.lab.cost import CostModel, StepWork
from pinchpoint.lab.kv import BlockPool
from pinchpoint.lab.metrics import Gauges, LabMetrics
from pinchpoint.lab.params import LabParams

FASTEST_STEP_RATIO = 0.5
"""Noise never makes a step shorter than this share of its mean, so a step always takes time."""


class Sequence:
    """One request inside the engine. `known_tokens` (prompt plus output so far) is what must be computed before the
    next token; `computed_tokens` of them have their KV in blocks."""

    __slots__ = (
        "aborted",
        "arrival_s",
        "blocks",
        "capacity_tokens",
        "computed_tokens",
        "finish_reason",
        "first_token_s",
        "known_tokens",
        "last_token_s",
        "max_output_tokens",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
        "queued_s",
        "request_id",
        "scheduled_s",
    )

    def __init__(
        self,
        request_id: int,
        prompt_tokens: int,
        max_output_tokens: int,
        arrival_s: float,
        queued_s: float,
        finish_reason: str,
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.arrival_s = arrival_s
        self.queued_s = queued_s
        self.finish_reason = finish_reason
        self.output_tokens = 0
        self.known_tokens = prompt_tokens
        self.computed_tokens = 0
        self.blocks = 0
        self.capacity_tokens = 0
        self.preemptions = 0
        self.scheduled_s: float | None = None
        self.first_token_s = 0.0
        self.last_token_s = 0.0
        self.aborted = False

    @property
    def finished(self) -> bool:
        return self.output_tokens >= self.max_output_tokens


class Step(msgspec.Struct, gc=False):
    """What a step that has started will do. duration_s includes noise."""

    started_s: float
    duration_s: float
    sequences: int
    tokens: int
    preempted: int


class Engine:
    """The scheduler with its KV pool. Deterministic for a seed and a sequence of calls."""

    def __init__(self, params: LabParams, seed: int, metrics: LabMetrics | None = None) -> None:
        params.validate()
        self.params = params
        self.metrics = metrics or LabMetrics(params)
        self.pool = BlockPool(params.num_kv_blocks(), params.block_size_tokens)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._by_id: dict[int, Sequence] = {}
        self._cost = CostModel(params)
        self._random = random.Random(seed)
        self._scheduled: list[tuple[Sequence, int]] = []
        self._stepping = False
        self._aborted: list[Sequence] = []
        self._last_end_s = -1.0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def gauges(self) -> Gauges:
        return Gauges(len(self.running), len(self.waiting), self.pool.used_ratio)

    def submit(
        self,
        now_s: float,
        request_id: int,
        prompt_tokens: int,
        max_output_tokens: int,
        *,
        arrival_s: float | None = None,
        finish_reason: str = "length",
    ) -> None:
        """Puts a request at the end of the waiting line. arrival_s: when the API process first saw it, default now.

        Raises ValueError for a request that could never finish; the API in front answers 400 before that.
        """
        if prompt_tokens < 1 or max_output_tokens < 1:
            raise ValueError(f"request {request_id} needs at least one prompt and one output token")
        if prompt_tokens + max_output_tokens > self.params.max_model_len_tokens():
            raise ValueError(f"request {request_id} is longer than the model's context or the whole KV pool")
        if request_id in self._by_id:
            raise ValueError(f"request {request_id} is already in the engine")
        arrival_s = now_s if arrival_s is None else arrival_s
        sequence = Sequence(request_id, prompt_tokens, max_output_tokens, arrival_s, now_s, finish_reason)
        self._by_id[request_id] = sequence
        self.waiting.append(sequence)

    def abort(self, request_id: int) -> bool:
        """Withdraws a request; False if it is not here. One that is being computed leaves when its step ends."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return False
        sequence.aborted = True
        self.metrics.finished["abort"] += 1
        if sequence.blocks == 0:
            self.waiting.remove(sequence)
        elif self._stepping:
            self._aborted.append(sequence)
        else:
            self._release(sequence)
            self.running.remove(sequence)
        return True

    def start_step(self, now_s: float) -> Step | None:
        """Chooses the batch and says how long it takes; None when nothing can be computed."""
        if self._stepping:
            raise RuntimeError("start_step was called before the step under way had ended")
        scheduled = self._scheduled
        scheduled.clear()
        budget = self.params.max_num_batched_tokens
        work = StepWork()
        preempted, budget = self._schedule_running(budget, work)
        if not preempted and self.waiting:
            self._admit(now_s, budget, work)
        if not scheduled:
            return None
        self._stepping = True
        noise = max(FASTEST_STEP_RATIO, self._random.gauss(1.0, self.params.step_noise_ratio))
        return Step(
            started_s=now_s,
            duration_s=self._cost.step_s(work) * noise,
            sequences=work.sequences,
            tokens=work.tokens,
            preempted=preempted,
        )

    def _schedule_running(self, budget: int, work: StepWork) -> tuple[int, int]:
        """Returns (requests evicted, budget left)."""
        running, scheduled = self.running, self._scheduled
        preempted = index = kv_tokens = 0
        pairs = 0.0
        while index < len(running) and budget > 0:
            sequence = running[index]
            past = sequence.computed_tokens
            n = sequence.known_tokens - past
            if n > budget:
                n = budget
            if past + n > sequence.capacity_tokens:
                need = self.pool.blocks_for(past + n) - sequence.blocks
                while not self.pool.take(need):
                    victim = running.pop()
                    self._preempt(victim)
                    preempted += 1
                    if victim is sequence:
                        break
                if sequence.blocks == 0:  # it evicted itself, and it was the last one
                    break
                sequence.blocks += need
                sequence.capacity_tokens = sequence.blocks * self.pool.block_size_tokens
            scheduled.append((sequence, n))
            budget -= n
            kv_tokens += past + n
            pairs += n * (past + n / 2)
            index += 1
        work.sequences += len(scheduled)
        work.tokens += self.params.max_num_batched_tokens - budget
        work.kv_tokens += kv_tokens
        work.attention_pairs += pairs
        return preempted, budget

    def _admit(self, now_s: float, budget: int, work: StepWork) -> None:
        reserve_full = self.params.admission == "reserve_full"
        while self.waiting and budget > 0 and len(self.running) < self.params.max_num_seqs:
            sequence = self.waiting[0]
            n = min(sequence.known_tokens, budget)
            reserve_tokens = sequence.prompt_tokens + sequence.max_output_tokens if reserve_full else n
            need = self.pool.blocks_for(reserve_tokens)
            if not self.pool.take(need):
                break
            self.waiting.popleft()
            sequence.blocks = need
            sequence.capacity_tokens = need * self.pool.block_size_tokens
            if sequence.scheduled_s is None:
                sequence.scheduled_s = now_s
            self.running.append(sequence)
            self._scheduled.append((sequence, n))
            budget -= n
            work.sequences += 1
            work.tokens += n
            work.kv_tokens += n
            work.attention_pairs += n * n / 2

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.computed_tokens = 0
        sequence.preemptions += 1
        self.metrics.preemptions += 1
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.give(sequence.blocks)
        sequence.blocks = 0
        sequence.capacity_tokens = 0

    def end_step(self, now_s: float) -> list[Sequence]:
        """The requests that got a token, in batch order; those with `finished` set got their last.

        now_s is when the step ended. Requests aborted meanwhile are not among them.
        """
        if not self._stepping:
            raise RuntimeError("end_step was called without a step under way")
        self._stepping = False
        metrics = self.metrics
        tokens: list[Sequence] = []
        gap_s = now_s - self._last_end_s
        steady = prompts_done = 0
        leaving = bool(self._aborted)
        for sequence in self._aborted:
            self._release(sequence)
        self._aborted.clear()
        for sequence, n in self._scheduled:
            if sequence.aborted:
                continue
            sequence.computed_tokens += n
            if sequence.computed_tokens < sequence.known_tokens:
                continue  # more of the prompt to come
            sequence.known_tokens += 1
            sequence.output_tokens += 1
            if sequence.output_tokens == 1:
                sequence.first_token_s = now_s
                metrics.ttft_s.observe(now_s - sequence.arrival_s)
                prompts_done += sequence.prompt_tokens
            elif sequence.last_token_s == self._last_end_s:
                steady += 1
            else:
                metrics.itl_s.observe(now_s - sequence.last_token_s)
            sequence.last_token_s = now_s
            tokens.append(sequence)
            if sequence.output_tokens >= sequence.max_output_tokens:
                self._finish(sequence, now_s)
                leaving = True
        if steady:
            metrics.itl_s.observe(gap_s, steady)
        if leaving:
            self.running = [s for s in self.running if not s.aborted and not s.finished]
        metrics.prompt_tokens += prompts_done
        metrics.generation_tokens += len(tokens)
        metrics.iteration_tokens.observe(float(prompts_done + len(tokens)))
        self._last_end_s = now_s
        return tokens

    def _finish(self, sequence: Sequence, now_s: float) -> None:
        self._release(sequence)
        del self._by_id[sequence.request_id]
        metrics = self.metrics
        scheduled_s = now_s if sequence.scheduled_s is None else sequence.scheduled_s
        decode_s = now_s - sequence.first_token_s
        metrics.finished[sequence.finish_reason] += 1
        metrics.request_prompt_tokens.observe(float(sequence.prompt_tokens))
        metrics.request_generation_tokens.observe(float(sequence.output_tokens))
        metrics.request_max_num_generation_tokens.observe(float(sequence.max_output_tokens))
        metrics.request_params_max_tokens.observe(float(sequence.max_output_tokens))
        metrics.request_prefill_kv_computed_tokens.observe(float(sequence.prompt_tokens))
        metrics.request_num_preemptions.observe(float(sequence.preemptions))
        metrics.e2e_s.observe(now_s - sequence.arrival_s)
        metrics.queue_s.observe(scheduled_s - sequence.queued_s)
        metrics.inference_s.observe(now_s - scheduled_s)
        metrics.prefill_s.observe(sequence.first_token_s - scheduled_s)
        metrics.decode_s.observe(decode_s)
        if sequence.output_tokens > 1:
            metrics.tpot_s.observe(decode_s / (sequence.output_tokens - 1))
