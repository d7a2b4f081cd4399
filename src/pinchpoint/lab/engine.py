"""Continuous batching, sans IO: which request computes how many tokens in each step (vLLM V1 scheduling rules).

No clock: the caller says when a step starts (`start_step`) and ends (`end_step`), and between the two no batch
changes. Not here: HTTP, the API process, limits in front of the engine, several engines (group.py).

How it works. Running requests come first, in order, one token each while decoding (with speculation the draft too) or
what is left of the prompt while prefilling (chunked by the step's token budget). A running request that finds no free
KV block evicts the last of the running ones (by priority: the least urgent), itself if need be; the evicted request
loses its blocks, goes to the head of the waiting line and computes prompt and output again, but for what the prefix
cache still holds. Then waiting requests are admitted in order, up to max_num_seqs, and the line stops at the first one
that does not fit, even if a shorter one behind it would; those that wait for a grammar, an adapter slot or KV from
another engine are passed. In a step that evicted, nobody is admitted.

The surprising part: most steps of a loaded engine only decode, with the same requests as the step before. For these
`_plain` is set and both halves of a step have a short path.
"""

import random
from collections.abc import Callable
from typing import Protocol

from pinchpoint.lab.accounts import count_admission, count_draft, count_end, count_eviction, count_first_token
from pinchpoint.lab.adapters import AdapterSlots
from pinchpoint.lab.batch import sum_mixed, sum_plain
from pinchpoint.lab.cost import CostModel
from pinchpoint.lab.grammar import Cpu, Grammars
from pinchpoint.lab.kv import BlockPool
from pinchpoint.lab.metrics import Gauges, LabMetrics
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.sequence import EngineRequest, Sequence, Step
from pinchpoint.lab.speculation import accepted_tokens
from pinchpoint.lab.waiting import WaitingLine
from pinchpoint.lab.work import HEALTHY_STATE, AcceleratorState, StepCost, StepWork

__all__ = ["AcceleratorLike", "Engine", "EngineRequest", "Sequence", "Step"]

FASTEST_STEP_RATIO = 0.5
"""Noise never makes a step shorter than this share of its mean, so a step always takes time."""

LEAK_LOOK_S = 1.0
"""An engine that a memory leak has stopped looks again after this long."""


class AcceleratorLike(Protocol):
    """The GPUs of one engine: how fast they are now, and what they are told."""

    def clock_state(self, now_s: float) -> AcceleratorState: ...

    def on_step(self, start_s: float, duration_s: float, cost: StepCost) -> None: ...


class Engine:
    """The scheduler with its KV pool. Deterministic for a seed and a sequence of calls.

    metrics: the counters to bump; a restart (`fail`) begins with new ones. accelerator: told about every step. cpu: how
    long CPU time of the engine's process takes on its host; None: just that long. index: among the engines of a group.
    """

    def __init__(
        self,
        params: LabParams,
        seed: int,
        metrics: LabMetrics | None = None,
        accelerator: AcceleratorLike | None = None,
        cpu: Cpu | None = None,
        index: int = 0,
    ) -> None:
        params.validate()
        self.params = params
        self.index = index
        self.metrics = metrics or LabMetrics(params)
        self.pool = BlockPool(params.num_kv_blocks(), params.block_size_tokens)
        self.running: list[Sequence] = []
        self.wake_s: float | None = None
        """After `start_step` gave None though there is work: when to ask again; None: when something comes in."""
        self.out_of_memory = False
        """A leak has taken the last free block: the process dies, and whoever runs it calls `fail`."""
        self._accelerator = accelerator
        self.observer: Callable[[Step], None] | None = None
        """Told about every step that starts: a profiler."""
        self._cpu = cpu
        self._random = random.Random(f"{seed}/{index}")
        self._line = WaitingLine(params.scheduling == "priority")
        self._by_id: dict[int, Sequence] = {}
        self._held: dict[int, Sequence] = {}
        self._places = self._front_places = 0
        self._slots = AdapterSlots(params.lora.max_loras)
        self._slots_seen_left = 0
        self._grammars = Grammars()
        self._masked_running = 0
        self._cost = CostModel(params)
        self._longest_tokens = params.max_model_len_tokens()
        self._budget_tokens = _budget_tokens(params)
        self._acceptance_ratio = 0.0
        self._scheduled: list[Sequence] = []
        self._step: Step | None = None
        self._aborted: list[Sequence] = []
        self._last_end_s = -1.0
        self._plain = False
        """Every running request got a token in the latest step, and nothing has changed since."""
        self._plain_step = False
        self._leak_from_s = 0.0
        self._leaked_bytes = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self._line)

    @property
    def waiting(self) -> list[Sequence]:
        """In order, those that are passed included."""
        return list(self._line)

    @property
    def load(self) -> int:
        """For whoever spreads requests over engines: a waiting one counts four times, as vLLM's balancer has it."""
        return 4 * len(self._line) + len(self.running)

    def gauges(self, now_s: float = 0.0) -> Gauges:
        """What a page shows at now_s."""
        line, running, pool = self._line, self.running, self.pool
        parked, timed = line.parked, line.timed
        transfers = sum(s.fetched and s.blocks > 0 for s in timed)
        lora = self.params.lora
        waiting_adapters = {s.request.adapter for s in line if s.request.adapter is not None} if lora.adapters else ()
        return Gauges(
            requests_running=len(running),
            requests_waiting=len(line),
            kv_used_ratio=pool.used_ratio,
            waiting_capacity=len(line) - len(parked) - len(timed),
            waiting_deferred=len(parked) + len(timed),
            grammar_queue=len(timed) - transfers,
            transfer_queue=transfers,
            running_adapters=tuple(self._slots.running),
            waiting_adapters=tuple(sorted(waiting_adapters)),
            max_loras=lora.max_loras if lora.adapters else 0,
            kv_blocks_used=pool.used,
            kv_tokens_used=sum(s.computed_tokens for s in running),
            kv_tokens_cached=pool.cached_free * pool.block_size_tokens,
            batch_max_tokens=sum(s.prompt_tokens + s.max_output_tokens for s in running),
        )

    def submit(self, now_s: float, request: EngineRequest) -> None:
        """Puts a request at the end of the waiting line (by priority: at its place in it).

        Raises ValueError for a request that could never finish; the API in front answers 400 before that.
        """
        request_id = request.request_id
        if request.prompt_tokens < 1 or request.max_output_tokens < 1:
            raise ValueError(f"request {request_id} needs at least one prompt and one output token")
        if request.prompt_tokens + request.max_output_tokens > self._longest_tokens:
            raise ValueError(f"request {request_id} is longer than the model's context or the whole KV pool")
        if request_id in self._by_id:
            raise ValueError(f"request {request_id} is already in the engine")
        self._places += 1
        sequence = Sequence(request, now_s, self._places)
        self._by_id[request_id] = sequence
        self._line.add(sequence, self._grammar_ready_s(now_s, request.schema))

    def abort(self, request_id: int) -> bool:
        """Withdraws a request; False if it is not here. One that is being computed leaves when its step ends."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return False
        self.metrics.finished["abort"] += 1
        self._withdraw(sequence)
        return True

    def hold(self, request_id: int) -> None:
        """The request keeps its blocks after its end until `let_go`: another engine fetches its KV."""
        self._held[request_id] = self._by_id[request_id]

    def let_go(self, request_id: int) -> bool:
        """The blocks of a finished request that was held come free; False if there is none."""
        sequence = self._held.pop(request_id, None)
        if sequence is None or request_id in self._by_id:
            return False
        self._release(sequence)
        return True

    def change(self, now_s: float, params: LabParams) -> list[Sequence]:
        """New limits and costs, from the next step on. Returns the requests that are too long for the new ones: they
        have failed and are gone."""
        params.validate()
        self._leak(now_s)
        old, self.params = self.params, params
        if (params.num_kv_blocks(), params.accelerator) != (old.num_kv_blocks(), old.accelerator):
            self.pool.resize(max(1, params.num_kv_blocks() - self._leaked_blocks))
        if params.scheduling != old.scheduling:
            self._line.reorder(params.scheduling == "priority")
        self._slots.max_loras = params.lora.max_loras
        self._line.unpark()
        self._cost = CostModel(params)
        self._budget_tokens = _budget_tokens(params)
        self._plain = False
        self._longest_tokens = longest = params.max_model_len_tokens()
        failed = [s for s in self._by_id.values() if s.prompt_tokens + s.max_output_tokens > longest]
        for sequence in failed:
            self._give_up(sequence)
            self._withdraw(sequence)
        return failed

    def fail(self, now_s: float) -> list[Sequence]:
        """The engine's process ends and starts anew, empty and with counters at zero. Returns the requests that were
        here: they have failed."""
        lost = list(self._by_id.values())
        for sequence in lost:
            self._give_up(sequence)
        self.metrics = LabMetrics(self.params)
        self.pool = BlockPool(self.params.num_kv_blocks(), self.params.block_size_tokens)
        self.running = []
        self._line = WaitingLine(self.params.scheduling == "priority")
        self._by_id.clear()
        self._held.clear()
        self._slots = AdapterSlots(self.params.lora.max_loras)
        self._slots_seen_left = 0
        self._grammars = Grammars()
        self._masked_running = 0
        self._cost = CostModel(self.params)
        self._scheduled = []
        self._aborted = []
        self._step = None
        self._plain = False
        self.wake_s = None
        self.out_of_memory = False
        self._leaked_bytes, self._leak_from_s = 0.0, now_s
        return lost

    def start_step(self, now_s: float) -> Step | None:
        """Chooses the batch and says how long it takes; None when nothing can be computed (see wake_s)."""
        if self._step is not None:
            raise RuntimeError("start_step was called before the step under way had ended")
        self._leak(now_s)
        self.wake_s = None
        work = StepWork()
        preempted = evicted = 0
        line, running = self._line, self.running
        mixed = self.params.mixed_batches
        if not mixed:
            evicted, budget, preempted = self._schedule_some(prompts_only=True)
            if line and not evicted:
                self._admit(now_s, budget, work)
            if self._scheduled:
                self._plain_step = False
                return self._begin_mixed(now_s, work, preempted)
            evicted = 0
        # An abort, an eviction and an admission clear `_plain`; nothing else changes the batch.
        self._plain_step = plain = self._plain and self._schedule_plain()
        if plain:
            budget = self._budget_tokens - len(running)
            self._scheduled = running
        else:
            evicted, budget, before = self._schedule_some()
            preempted += before
        if line and not evicted and (mixed or not self._scheduled):
            before = len(running)
            if plain:
                self._scheduled = running[:]
            self._admit(now_s, budget, work)
            if plain and len(running) > before:
                self._plain_step = plain = False
                for sequence in running[:before]:
                    sequence.scheduled_tokens = 1
            elif plain:
                self._scheduled = running
        if not self._scheduled:
            self.wake_s = line.next_ready_s
            if self.wake_s is None and line and self.params.accelerator.memory_leak_bytes_per_s > 0:
                self.wake_s = now_s + LEAK_LOOK_S
            return None
        if not plain:
            return self._begin_mixed(now_s, work, preempted)
        sum_plain(work, running)
        return self._begin(now_s, work, preempted)

    def _begin_mixed(self, now_s: float, work: StepWork, preempted: int) -> Step:
        self.metrics.recomputed_tokens += sum_mixed(work, self._scheduled)
        return self._begin(now_s, work, preempted)

    def _begin(self, now_s: float, work: StepWork, preempted: int) -> Step:
        work.masked_sequences = self._masked_running
        work.adapters = self._slots.in_batch
        self._step = step = self._time_step(now_s, work, preempted)
        if self.observer is not None:
            self.observer(step)
        return step

    def _schedule_plain(self) -> bool:
        """One token for every running request; False, and nothing is done, if there is no room for that."""
        running, pool = self.running, self.pool
        if len(running) > self._budget_tokens:
            return False
        full = [s for s in running if s.computed_tokens >= s.capacity_tokens]
        if full:
            if not pool.take(len(full)):
                return False
            block_size = pool.block_size_tokens
            for sequence in full:
                sequence.blocks += 1
                sequence.capacity_tokens += block_size
                if sequence.keys:
                    self._register(sequence, sequence.computed_tokens)
        return True

    def _schedule_some(self, *, prompts_only: bool = False) -> tuple[int, int, int]:
        """Returns (requests evicted in this step, budget left, requests evicted in all).

        A step that evicts and computes nothing takes no time, and in the next one those that are left may run.
        """
        evicted_in_all = 0
        while True:
            self._scheduled = []
            evicted, budget = self._schedule_running(prompts_only)
            evicted_in_all += evicted
            if self._scheduled or not evicted:
                return evicted, budget, evicted_in_all

    def _schedule_running(self, prompts_only: bool) -> tuple[int, int]:
        """Returns (requests evicted, budget left). prompts_only: those that decode get nothing in this step."""
        running, scheduled, pool = self.running, self._scheduled, self.pool
        budget, threshold = self._budget_tokens, self.params.long_prefill_token_threshold
        speculation = self.params.speculation
        drafts = speculation.num_speculative_tokens if speculation is not None else 0
        self._acceptance_ratio = speculation.acceptance_ratio if speculation is not None else 0.0
        longest = self._longest_tokens
        preempted = index = 0
        while index < len(running) and budget > 0:
            sequence = running[index]
            past = sequence.computed_tokens
            n = sequence.prompt_tokens + sequence.output_tokens - past
            if prompts_only and n == 1 and sequence.output_tokens:
                index += 1
                continue
            if n == 1 and drafts and sequence.output_tokens:
                n = max(1, min(1 + drafts, longest - past))
            if 0 < threshold < n:
                n = threshold
            if n > budget:
                n = budget
            if past + n > sequence.capacity_tokens:
                if sequence.keys:
                    self._register(sequence, past)
                need = pool.blocks_for(past + n) - sequence.blocks
                while not pool.take(need):
                    victim_index = self._victim_index()
                    victim = running.pop(victim_index)
                    if victim_index < index:  # only by priority
                        index -= 1
                        if victim in scheduled:
                            scheduled.remove(victim)
                            budget += victim.scheduled_tokens
                    self._preempt(victim)
                    preempted += 1
                    if victim is sequence:
                        break
                if sequence.blocks == 0:  # it evicted itself
                    break
                sequence.blocks += need
                sequence.capacity_tokens = sequence.blocks * pool.block_size_tokens
            sequence.scheduled_tokens = n
            scheduled.append(sequence)
            budget -= n
            index += 1
        return preempted, budget

    def _victim_index(self) -> int:
        running = self.running
        if self.params.scheduling == "fcfs":
            return len(running) - 1
        return max(range(len(running)), key=lambda i: (running[i].request.priority, running[i].arrival_s))

    def _admit(self, now_s: float, budget: int, work: StepWork) -> None:
        params, line, pool = self.params, self._line, self.pool
        threshold = params.long_prefill_token_threshold
        reserve_full = params.admission == "reserve_full"
        encoder_budget = params.max_num_batched_tokens
        if self._slots.left != self._slots_seen_left:
            self._slots_seen_left = self._slots.left
            line.unpark()
        while budget > 0 and len(self.running) < params.max_num_seqs:
            sequence = line.head(now_s)
            if sequence is None:
                break
            request = sequence.request
            if request.adapter is not None and not self._slots.may_enter(request.adapter):
                line.park_head()
                continue
            known = sequence.prompt_tokens + sequence.output_tokens
            cached: tuple[object, ...] | list[object] = ()
            if sequence.blocks:  # its KV has come from another engine
                past = sequence.computed_tokens
            elif params.prefix_caching and sequence.keys:
                # At least one token is computed, or nothing would come out.
                found = pool.cached(sequence.keys, min(len(sequence.keys), (known - 1) // pool.block_size_tokens))
                cached = list(sequence.keys[:found])
                past = found * pool.block_size_tokens
            else:
                past = 0
            if request.fetch_kv is not None and not sequence.fetched:
                if not self._fetch(now_s, sequence, cached, past) and not self._reclaim(sequence):
                    break
                continue
            n = known - past
            if 0 < threshold < n:
                n = threshold
            if n > budget:
                if not params.chunked_prefill:
                    break
                n = budget
            image_tokens = request.image_tokens if past < request.image_tokens else 0
            if image_tokens > encoder_budget and encoder_budget < params.max_num_batched_tokens:
                break  # the encoder has had its share of this step; an image larger than all of it goes alone
            # Where prompts go first, one that gets its blocks piece by piece could give them up again for want of the
            # last, and keep those that decode from ever running.
            begun_tokens = past + n if params.mixed_batches else known
            reserve_tokens = sequence.prompt_tokens + sequence.max_output_tokens if reserve_full else begun_tokens
            need = pool.blocks_for(reserve_tokens) - len(cached) - sequence.blocks
            if not pool.claim(cached, max(0, need)):
                if self._reclaim(sequence):
                    continue
                break
            line.pop()
            if need > 0 or cached:
                sequence.blocks += need + len(cached)
                sequence.capacity_tokens = sequence.blocks * pool.block_size_tokens
            if cached:
                sequence.held_keys = list(cached)
                sequence.keys_seen = len(cached)
            sequence.computed_tokens = past
            sequence.scheduled_tokens = n
            if sequence.keys and params.prefix_caching:
                self._register(sequence, past + n)
            if sequence.scheduled_s is None:
                sequence.scheduled_s = now_s
                sequence.cached_tokens = past - sequence.external_tokens
            count_admission(self.metrics, sequence, image_tokens, params.prefix_caching)
            if request.adapter is not None and self._slots.enter(request.adapter):
                work.loaded_adapters += 1
                self.metrics.adapter_loads += 1
            if request.schema is not None:
                self._masked_running += 1
            encoder_budget -= image_tokens
            work.image_tokens += image_tokens
            self.running.append(sequence)
            self._scheduled.append(sequence)
            self._plain = False
            budget -= n

    def _fetch(self, now_s: float, sequence: Sequence, cached: tuple[object, ...] | list[object], past: int) -> bool:
        """Takes the blocks for a prompt whose KV another engine has, and sets the request aside until it is here."""
        prompt_tokens = sequence.prompt_tokens
        need = self.pool.blocks_for(prompt_tokens)
        if not self.pool.claim(cached, need - len(cached)):
            return False
        sequence.blocks = need
        sequence.capacity_tokens = need * self.pool.block_size_tokens
        sequence.held_keys = list(cached)
        sequence.keys_seen = len(cached)
        sequence.fetched = True
        # The last prompt token is computed here, for the first output token comes out of it.
        sequence.computed_tokens = max(past, prompt_tokens - 1)
        sequence.external_tokens = sequence.computed_tokens - past
        assert sequence.request.fetch_kv is not None
        self._line.defer_head(sequence.request.fetch_kv(now_s))
        return True

    def _reclaim(self, head: Sequence) -> bool:
        """With nothing running, nobody will free what the head lacks but those behind it whose KV has come: the last
        of them gives its blocks up and will compute its prompt here. False when that is not so, or nobody has any."""
        if self.running:
            return False
        away = {id(sequence) for sequence in self._line.timed}
        for sequence in reversed(list(self._line)):
            if sequence is not head and sequence.blocks and id(sequence) not in away:
                self._release(sequence)
                sequence.computed_tokens = sequence.external_tokens = 0
                return True
        return False

    def _time_step(self, now_s: float, work: StepWork, preempted: int) -> Step:
        noise = max(FASTEST_STEP_RATIO, self._random.gauss(1.0, self.params.step_noise_ratio))
        accelerator, cpu = self._accelerator, self._cpu
        cost = self._cost.step(work, HEALTHY_STATE if accelerator is None else accelerator.clock_state(now_s))
        duration_s = cost.total_s * noise
        if cpu is not None:
            duration_s += cpu(now_s, cost.host_s) - cost.host_s
        if accelerator is not None:
            accelerator.on_step(now_s, duration_s, cost)
        return Step(now_s, duration_s, work.sequences, work.tokens, preempted, work, cost)

    def _preempt(self, sequence: Sequence) -> None:
        """Already taken out of the running ones."""
        if self.params.prefix_caching and not sequence.keys:
            # Nobody else has its text, but it will look for it itself when it comes back.
            blocks = self.pool.blocks_for(sequence.prompt_tokens + sequence.max_output_tokens)
            sequence.keys = [(self.index, sequence.place, block) for block in range(blocks)]
        computed = sequence.computed_tokens
        self._leave(sequence)
        sequence.highest_computed_tokens = max(sequence.highest_computed_tokens, computed)
        sequence.computed_tokens = 0
        sequence.scheduled_tokens = 0
        sequence.preemptions += 1
        count_eviction(self.metrics, sequence)
        self._front_places -= 1
        sequence.place = self._front_places
        self._line.add(sequence)

    def _register(self, sequence: Sequence, computed_tokens: int) -> None:
        """Makes the full blocks of its first tokens known to the prefix cache."""
        if not self.params.prefix_caching:
            return
        keys = sequence.keys
        full = min(computed_tokens // self.pool.block_size_tokens, len(keys))
        for block in range(sequence.keys_seen, full):
            if self.pool.register(keys[block]):
                sequence.held_keys.append(keys[block])
        sequence.keys_seen = max(sequence.keys_seen, full)

    def _leave(self, sequence: Sequence) -> None:
        """A running request leaves the batch."""
        self._plain = False
        if sequence.request.adapter is not None:
            self._slots.leave(sequence.request.adapter)
        if sequence.request.schema is not None:
            self._masked_running -= 1
        if sequence.request_id not in self._held:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.keys:
            self._register(sequence, sequence.computed_tokens)
        self.pool.give(sequence.blocks - len(sequence.held_keys), sequence.held_keys)
        sequence.held_keys = []
        sequence.keys_seen = 0
        sequence.blocks = 0
        sequence.capacity_tokens = 0

    def _withdraw(self, sequence: Sequence) -> None:
        """Out of the engine, wherever it is; what is being computed stays until the step ends."""
        del self._by_id[sequence.request_id]
        self._held.pop(sequence.request_id, None)
        sequence.aborted = True
        if sequence not in self.running:
            self._line.drop(sequence)
            if sequence.blocks:  # KV on its way
                self._release(sequence)
        elif self._step is not None:
            self._aborted.append(sequence)
        else:
            self.running.remove(sequence)
            self._leave(sequence)

    def _give_up(self, sequence: Sequence) -> None:
        sequence.fail()
        self.metrics.finished["error"] += 1

    def end_step(self, now_s: float) -> list[Sequence]:
        """The requests that got tokens (`new_tokens` of them), in batch order; those `finished` got their last.

        now_s is when the step ended. Requests aborted meanwhile are not among them.
        """
        step = self._step
        if step is None:
            raise RuntimeError("end_step was called without a step under way")
        self._step = None
        metrics = self.metrics
        if self._plain_step and not self._aborted:
            tokens = self._end_plain(now_s)
        else:
            tokens = self._end_mixed(now_s)
        metrics.evicted_tokens = self.pool.evicted * self.pool.block_size_tokens
        prompt_tokens = step.work.prefill_tokens
        joined = None
        if 0 < prompt_tokens < step.tokens:
            joined = "chunking" if step.tokens >= self.params.max_num_batched_tokens else "backpressure"
        metrics.count_step(
            now_s,
            now_s - step.started_s,
            step.sequences,
            prompt_tokens > 0,
            step.cost.graphed,
            selection_s=step.cost.sampling_s,
            host_s=step.cost.host_s,
            joined=joined,
        )
        self._last_end_s = now_s
        return tokens

    def _end_plain(self, now_s: float) -> list[Sequence]:
        running = self.running
        done: list[Sequence] = []
        for sequence in running:
            sequence.computed_tokens += 1
            sequence.output_tokens = tokens = sequence.output_tokens + 1
            sequence.last_token_s = now_s
            if tokens >= sequence.max_output_tokens:
                done.append(sequence)
        metrics = self.metrics
        n = len(running)
        metrics.itl_s.observe(now_s - self._last_end_s, n)
        metrics.generation_tokens += n
        metrics.iteration_tokens.observe(float(n))
        if not done:
            return running[:]
        for sequence in done:
            self._finish(sequence, now_s)
        self.running = [s for s in running if not s.finished]
        self._plain = bool(self.running)
        return running

    def _end_mixed(self, now_s: float) -> list[Sequence]:
        metrics, aborted = self.metrics, self._aborted
        tokens: list[Sequence] = []
        if self._plain_step:
            for sequence in self._scheduled:
                sequence.scheduled_tokens = 1
        gap_s = now_s - self._last_end_s
        generated = steady = prompts_done = 0
        leaving = bool(aborted)
        for sequence in aborted:
            self._leave(sequence)
        aborted.clear()
        for sequence in self._scheduled:
            if sequence.aborted:
                continue
            n = sequence.scheduled_tokens
            sequence.scheduled_tokens = 0
            computed = sequence.computed_tokens + n
            known = sequence.prompt_tokens + sequence.output_tokens
            if computed < known:
                sequence.computed_tokens = computed
                continue  # more of the prompt to come
            new = 1
            if computed > known:
                accepted = accepted_tokens(self._random, computed - known, self._acceptance_ratio)
                count_draft(metrics, computed - known, accepted)
                new = min(1 + accepted, sequence.max_output_tokens - sequence.output_tokens)
            sequence.computed_tokens = known + new - 1
            sequence.output_tokens = output_tokens = sequence.output_tokens + new
            sequence.new_tokens = new
            generated += new
            if output_tokens == new:
                sequence.first_token_s = now_s
                if sequence.keys:
                    self._register(sequence, sequence.prompt_tokens)
                count_first_token(metrics, sequence, now_s)
                prompts_done += sequence.prompt_tokens
            elif sequence.last_token_s == self._last_end_s:
                steady += 1
            else:
                metrics.itl_s.observe(now_s - sequence.last_token_s)
            sequence.last_token_s = now_s
            tokens.append(sequence)
            if output_tokens >= sequence.max_output_tokens:
                self._finish(sequence, now_s)
                leaving = True
        if steady:
            metrics.itl_s.observe(gap_s, steady)
        if leaving:
            self.running = [s for s in self.running if not s.aborted and not s.finished]
        metrics.generation_tokens += generated
        metrics.iteration_tokens.observe(float(prompts_done + generated))
        # From here on every running request has one token to compute, if all of them got one now.
        running = self.running
        self._plain = (
            self.params.speculation is None
            and bool(running)
            and all(s.last_token_s == now_s and s.output_tokens for s in running)
        )
        return tokens

    def _finish(self, sequence: Sequence, now_s: float) -> None:
        sequence.finished = True
        self._leave(sequence)
        del self._by_id[sequence.request_id]
        count_end(self.metrics, sequence, now_s)

    def _grammar_ready_s(self, now_s: float, schema: int | None) -> float | None:
        """When a request with this schema may be admitted; None: at once. A schema seen first is compiled from now."""
        if schema is None:
            return None
        metrics, grammars = self.metrics, self._grammars
        if schema in grammars:
            metrics.grammar_hits += 1
        else:
            metrics.count_grammar(grammars.compile(now_s, schema, self.params.grammar.compile_s, self._cpu))
        ready_s = grammars.ready_s(schema)
        return ready_s if ready_s > now_s else None

    @property
    def _leaked_blocks(self) -> int:
        params = self.params
        return int(self._leaked_bytes // params.kv_block_bytes)

    def _leak(self, now_s: float) -> None:
        """Memory that something beside the engine has taken meanwhile comes out of the free blocks of the pool."""
        rate_bytes_per_s = self.params.accelerator.memory_leak_bytes_per_s
        since_s, self._leak_from_s = self._leak_from_s, now_s
        if rate_bytes_per_s <= 0 or now_s <= since_s:
            return
        before = self._leaked_blocks
        self._leaked_bytes += rate_bytes_per_s * (now_s - since_s)
        taken = self._leaked_blocks - before
        if taken >= self.pool.total or taken > self.pool.free:
            self.out_of_memory = True
        elif taken:
            self.pool.resize(self.pool.total - taken)


def _budget_tokens(params: LabParams) -> int:
    """Tokens per step. Without chunked prefill a whole prompt must fit, so the budget is at least the longest context,
    as vLLM sets it."""
    if params.chunked_prefill:
        return params.max_num_batched_tokens
    return max(params.max_num_batched_tokens, params.max_model_len_tokens())
