"""Counters, histograms and gauges of the simulated engine and its API process, under no engine's names.

Counters and histograms are bumped where the event happens; gauges are read when a page is made (pages/). Histograms
hold the bounds of all dialects; a page prints its own of them, because what they cannot show (vLLM: nothing below
0.3 s for queue and prefill time) is part of the job of whoever reads them. As in vLLM, a step's `iteration_tokens`
counts a prompt in the step that completes it, so a recomputed prompt or a chunk in between does not show there.
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import msgspec

from pinchpoint.lab import bounds
from pinchpoint.lab.params import LabParams

HANDING_RATIO, JOIN_RATIO = 0.3, 0.5
"""Of the process's time per step. A recorded page of TGI has 0.2 ms per step for handing out and 1.4 ms per join; the
lab has 0.8 ms for all of it."""
DECODE_LOG_STEPS = 40
"""SGLang's decode_log_interval."""


class Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, upper_bounds: tuple[float, ...]) -> None:
        self.bounds = upper_bounds
        self.counts = [0] * (len(upper_bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)

    def below(self, upper_bounds: tuple[float, ...]) -> list[int]:
        """Observations up to each bound, and all as the last. Raises ValueError for a bound it does not have."""
        totals = list(accumulate(self.counts))
        return [totals[place] for place in _places(self.bounds, upper_bounds)]


@lru_cache(maxsize=256)
def _places(held: tuple[float, ...], wanted: tuple[float, ...]) -> tuple[int, ...]:
    return (*(held.index(bound) for bound in wanted), len(held))


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """Their sum; all must have the same bounds, and there must be one."""
    first, *others = histograms
    total = Histogram(first.bounds)
    total.counts = first.counts.copy()
    total.sum = first.sum
    for other in others:
        if other.bounds != total.bounds:
            raise ValueError("histograms with different bounds cannot be added")
        total.counts = [a + b for a, b in zip(total.counts, other.counts, strict=True)]
        total.sum += other.sum
    return total


class Gauges(msgspec.Struct, gc=False):
    """One engine at one instant."""

    requests_running: int
    requests_waiting: int
    """All that wait, whatever for: waiting_capacity + waiting_deferred where those are told."""
    kv_used_ratio: float
    waiting_capacity: int | None = None
    """Waiting for room in batch or pool; None: all but the deferred."""
    waiting_deferred: int = 0
    """Waiting for an adapter slot, a grammar or KV from another engine."""
    swapped: int = 0
    """With KV in host memory; no engine of today does that."""
    grammar_queue: int = 0
    """Of the deferred, those whose grammar is being compiled."""
    transfer_queue: int = 0
    """Of the deferred, those whose KV is on its way."""
    running_adapters: tuple[int, ...] = ()
    waiting_adapters: tuple[int, ...] = ()
    max_loras: int = 0
    """Adapter slots; 0: the engine serves no adapters, and its page says nothing about them."""
    kv_blocks_used: int = 0
    kv_tokens_used: int = 0
    """Tokens with KV in the pool that running requests hold; cached blocks that nobody holds are free."""
    kv_tokens_cached: int = 0
    """Tokens with KV in blocks that nobody holds: free, and of use until someone takes them."""
    batch_max_tokens: int = 0
    """What the running requests may grow to, prompts and whole outputs."""


class LabMetrics:
    """All counters of one engine and its API process, since its start. A restart begins with a new one.

    Engine and service bump the attributes where things happen; pages read them.
    """

    def __init__(self, params: LabParams) -> None:
        self._params = params
        self.max_model_len_tokens = params.max_model_len_tokens()
        """At the start: bounds of token counts follow it, whatever the limit is later."""
        tokens_bounds = bounds.prompt_tokens(self.max_model_len_tokens)
        self.preemptions = 0
        self.prompt_tokens = 0
        """Of prompts whose first token is out, each prompt once, cached ones included."""
        self.generation_tokens = 0
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.rejected_requests = 0
        """Refused by a limit on waiting or running requests: 429 or 503."""
        self.invalid_requests = 0
        """Refused for what they are: 400."""
        self.http_requests: dict[tuple[str, str, str], int] = {}
        self.http_duration_s: dict[tuple[str, str], Histogram] = {}
        """By handler and method, over all answers there."""
        self.http_request_bytes: dict[str, int] = {}
        """Content length of requests by handler."""
        self.http_response_bytes: dict[str, int] = {}
        """Content length of answers by handler; streams have none and count as 0. Only the HTTP face knows it."""

        # Prompts and cache. At each admission prefix_queries_tokens counts the looked-up tokens and prefix_hit_tokens
        # those found; the other two count with prompt_tokens.
        self.prefix_queries_tokens = 0
        self.prefix_hit_tokens = 0
        self.cached_prompt_tokens = 0
        """Of prompt_tokens, those that came from this engine's prefix cache."""
        self.external_prompt_tokens = 0
        """Of prompt_tokens, those whose KV came from another engine."""
        self.recomputed_tokens = 0
        """Computed again after a preemption, prompt and output."""
        self.preempted_prompt_tokens = 0
        self.preempted_output_tokens = 0
        """Of preempted requests, counted when they lose their blocks."""
        self.evicted_tokens = 0
        """In cached blocks that were given to someone else."""
        self.longest_sequence_tokens = 0

        # Speculation.
        self.drafts = 0
        self.draft_tokens = 0
        self.accepted_tokens = 0
        self.accepted_per_position: list[int] = []

        # Steps; count_step bumps them.
        self.steps = 0
        self.step_sequences = 0
        """Sum over steps of the sequences in the batch."""
        self.decode_steps = 0
        """Steps without prompt tokens."""
        self.graphed_decode_steps = 0
        self.last_decode_graphed = False
        self.prefill_step_s = Histogram(bounds.TGI_S)
        self.decode_step_s = Histogram(bounds.TGI_S)
        self.prefill_selection_s = Histogram(bounds.TGI_S)
        self.decode_selection_s = Histogram(bounds.TGI_S)
        """Of a step, choosing its tokens."""
        self.prefill_handing_s = Histogram(bounds.TGI_S)
        self.decode_handing_s = Histogram(bounds.TGI_S)
        """Of a step, handing out its tokens and dropping what has ended."""
        self.joins = {"backpressure": 0, "chunking": 0}
        """Steps in which prompts joined a running batch, by why those were computed then: there was room, or one had
        filled the step before and went on."""
        self.join_s = Histogram(bounds.TGI_S)
        self.prefill_batches = Histogram(bounds.TGI_BATCH)
        """Sequences in steps with prompt tokens."""
        self.generation_rate_tokens_per_s = 0.0
        self.accepted_length_tokens = 0.0
        """Tokens per draft, the one that is always right included."""
        self.accepted_ratio = 0.0
        """These three over the last DECODE_LOG_STEPS decode steps, as SGLang logs them."""
        self.prefix_hit_ratio = 0.0
        """Of the look-ups since the step with prompt tokens before."""
        self._logged_s = 0.0
        self._logged_tokens = self._logged_drafts = self._logged_draft_tokens = self._logged_accepted = 0
        self._logged_queries = self._logged_hits = 0

        # Rest of the engine.
        self.prompt_busy_s = 0.0
        """Sum over requests from their first step to their first token, bumped there."""
        self.kv_transfers = 0
        self.kv_transfer_bytes = 0
        self.kv_transfer_s = 0.0
        """count_transfer bumps these three."""
        self.transfer_duration_s = Histogram(bounds.TRANSFER_S)
        self.transfer_size_bytes = Histogram(bounds.TRANSFER_BYTES)
        self.transfer_rate_bytes_per_s = Histogram(bounds.SGLANG_TRANSFER_BYTES_PER_S)
        self.grammar_compiles = 0
        self.grammar_compile_s = 0.0
        """count_grammar bumps these two."""
        self.grammar_duration_s = Histogram(bounds.SGLANG_GRAMMAR_S)
        self.grammar_hits = 0
        """Requests whose grammar was there already."""
        self.page_read: tuple[float, float, float, float] = (0, 0.0, 0, 0.0)
        """Work counted when llama.cpp's page was read last; that page averages since then."""
        self.encoder_tokens = 0
        self.mm_queries = 0
        self.mm_hits = 0
        """Images looked up in the processor's cache, and found."""
        self.adapter_loads = 0

        # Before the engine.
        self.validation_s = Histogram(bounds.TGI_S)
        """Tokenising and checking, per request; observed by the API process."""
        self.engine_requests = 0
        """Requests that reached the model's API, refused or not."""
        self.request_prompt_tokens = Histogram(tokens_bounds)
        self.request_generation_tokens = Histogram(tokens_bounds)
        self.iteration_tokens = Histogram(bounds.VLLM_STEP_TOKENS)
        self.request_max_num_generation_tokens = Histogram(tokens_bounds)
        self.request_params_max_tokens = Histogram(tokens_bounds)
        self.request_prefill_kv_computed_tokens = Histogram(tokens_bounds)
        self.request_num_preemptions = Histogram(bounds.VLLM_PREEMPTIONS)
        self.ttft_s = Histogram(bounds.TTFT_S)
        self.itl_s = Histogram(bounds.ITL_S)
        self.tpot_s = Histogram(bounds.TPOT_S)
        self.mean_token_s = Histogram(bounds.TPOT_S)
        """Inference time over output tokens of a finished request, the first token's included."""
        self.e2e_s = Histogram(bounds.REQUEST_S)
        self.queue_s = Histogram(bounds.REQUEST_S)
        self.inference_s = Histogram(bounds.REQUEST_S)
        self.prefill_s = Histogram(bounds.REQUEST_S)
        self.decode_s = Histogram(bounds.REQUEST_S)

    def count_http(
        self, handler: str, method: str, status: int, duration_s: float, request_bytes: int = 0, response_bytes: int = 0
    ) -> None:
        """An answer has ended, whatever its status. duration_s: from the request's arrival to there."""
        key = (handler, method, f"{status // 100}xx")
        self.http_requests[key] = self.http_requests.get(key, 0) + 1
        if (handler, method) not in self.http_duration_s:
            self.http_duration_s[handler, method] = Histogram(bounds.VLLM_HTTP_S)
        self.http_duration_s[handler, method].observe(duration_s)
        self.http_request_bytes[handler] = self.http_request_bytes.get(handler, 0) + request_bytes
        self.count_response_bytes(handler, response_bytes)

    def count_response_bytes(self, handler: str, size_bytes: int) -> None:
        """An answer of known length has been written; count_http has counted it or is about to."""
        self.http_response_bytes[handler] = self.http_response_bytes.get(handler, 0) + size_bytes

    def count_step(
        self,
        now_s: float,
        duration_s: float,
        sequences: int,
        prefill: bool,
        graphed: bool,
        *,
        selection_s: float = 0.0,
        host_s: float = 0.0,
        joined: str | None = None,
    ) -> None:
        """A step of the engine has ended at now_s; call it after generation_tokens was bumped.

        prefill: it held prompt tokens, or recomputed ones. selection_s, host_s: its parts that are sampling, and the
        engine's process. joined: a key of `joins` for prompts beside sequences that decode.
        """
        self.steps += 1
        self.step_sequences += sequences
        if prefill:
            self.prefill_step_s.observe(duration_s)
            self.prefill_selection_s.observe(selection_s)
            self.prefill_handing_s.observe(HANDING_RATIO * host_s)
            if joined is not None:
                self.joins[joined] += 1
                self.join_s.observe(JOIN_RATIO * host_s)
            self.prefill_batches.observe(sequences)
            queries = self.prefix_queries_tokens - self._logged_queries
            if queries:
                self.prefix_hit_ratio = (self.prefix_hit_tokens - self._logged_hits) / queries
                self._logged_queries, self._logged_hits = self.prefix_queries_tokens, self.prefix_hit_tokens
            return
        self.decode_steps += 1
        self.decode_step_s.observe(duration_s)
        self.decode_selection_s.observe(selection_s)
        self.decode_handing_s.observe(HANDING_RATIO * host_s)
        self.graphed_decode_steps += graphed
        self.last_decode_graphed = graphed
        if self.decode_steps % DECODE_LOG_STEPS == 0:
            self._log(now_s)

    def _log(self, now_s: float) -> None:
        gap_s = now_s - self._logged_s
        if gap_s > 0:
            self.generation_rate_tokens_per_s = (self.generation_tokens - self._logged_tokens) / gap_s
        self._logged_s, self._logged_tokens = now_s, self.generation_tokens
        drafts = self.drafts - self._logged_drafts
        if drafts:
            accepted = self.accepted_tokens - self._logged_accepted
            self.accepted_length_tokens = 1 + accepted / drafts
            self.accepted_ratio = accepted / max(1, self.draft_tokens - self._logged_draft_tokens)
        self._logged_drafts, self._logged_draft_tokens = self.drafts, self.draft_tokens
        self._logged_accepted = self.accepted_tokens

    def count_transfer(self, duration_s: float, size_bytes: float) -> None:
        """KV of one request has arrived from another engine."""
        self.kv_transfers += 1
        self.kv_transfer_bytes += int(size_bytes)
        self.kv_transfer_s += duration_s
        self.transfer_duration_s.observe(duration_s)
        self.transfer_size_bytes.observe(size_bytes)
        if duration_s > 0:
            self.transfer_rate_bytes_per_s.observe(size_bytes / duration_s)

    def count_grammar(self, compile_s: float) -> None:
        """A grammar has been compiled, and took so long."""
        self.grammar_compiles += 1
        self.grammar_compile_s += compile_s
        self.grammar_duration_s.observe(compile_s)


class EngineState(msgspec.Struct):
    """What a page is made from: one engine at one instant."""

    params: LabParams
    metrics: LabMetrics
    gauges: Gauges
    index: int = 0
    """Among the engines behind one API server (data parallel rank)."""
    role: Literal["unified", "prefill", "decode"] = "unified"
