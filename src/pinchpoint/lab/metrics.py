"""The Prometheus page of the simulated engine, under vLLM's names.

Counters and histograms are bumped where the event happens; gauges are passed in when the page is made. Bucket bounds
are vLLM's, because what they cannot show (nothing below 0.3 s for queue and prefill time) is part of the job of
whoever reads them. As in vLLM, a step's `iteration_tokens` counts a prompt in the step that completes it, so a
recomputed prompt or a chunk in between does not show there.
"""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from pinchpoint.lab.params import LabParams

# fmt: off
REQUEST_S_BOUNDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                    480.0, 960.0, 1920.0, 7680.0)
TTFT_S_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                 40.0, 80.0, 160.0, 640.0, 2560.0)
ITL_S_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0)
STEP_TOKENS_BOUNDS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
PREEMPTIONS_BOUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
HTTP_S_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5,
                 10.0, 30.0, 60.0)
# fmt: on
STEP_S_BOUNDS = tuple(1e-4 * 1.5**power for power in range(1, 36))
"""TGI's for all its times."""
BATCH_BOUNDS = tuple(float(size) for size in range(1, 1025))
"""TGI's for the size of the next batch."""
DECODE_LOG_STEPS = 40
"""SGLang's decode_log_interval."""


def _one_two_five(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to the context length, as vLLM buckets token counts."""
    bounds: list[float] = []
    decade = 1
    while decade <= limit:
        bounds.extend(float(step * decade) for step in (1, 2, 5) if step * decade <= limit)
        decade *= 10
    return tuple(bounds)


class Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)


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
    batch_max_tokens: int = 0
    """What the running requests may grow to, prompts and whole outputs."""


class LabMetrics:
    """All counters of one engine and its API process, since its start. A restart begins with a new one.

    Engine and service bump the attributes where things happen; pages read them. Bucket bounds are those of the dialect.
    """

    def __init__(self, params: LabParams) -> None:
        self._params = params
        tokens_bounds = _one_two_five(params.max_model_len_tokens())
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
        """Content length of requests by handler. Answers of unknown length, such as streams, count as 0 and so are not
        kept."""

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
        self.prefill_step_s = Histogram(STEP_S_BOUNDS)
        self.decode_step_s = Histogram(STEP_S_BOUNDS)
        self.prefill_batches = Histogram(BATCH_BOUNDS)
        """Sequences in steps with prompt tokens."""
        self.generation_rate_tokens_per_s = 0.0
        """Over the last DECODE_LOG_STEPS decode steps, as SGLang logs it."""
        self._rate_from_s = 0.0
        self._rate_from_tokens = 0

        # Rest of the engine.
        self.prompt_busy_s = 0.0
        """Sum over requests from their first step to their first token, bumped there."""
        self.kv_transfers = 0
        self.kv_transfer_bytes = 0
        self.kv_transfer_s = 0.0
        self.grammar_compiles = 0
        self.grammar_compile_s = 0.0
        self.grammar_hits = 0
        """Requests whose grammar was there already."""
        self.encoder_tokens = 0
        self.mm_queries = 0
        self.mm_hits = 0
        """Images looked up in the processor's cache, and found."""
        self.adapter_loads = 0

        # Before the engine.
        self.validation_s = Histogram(STEP_S_BOUNDS)
        """Tokenising and checking, per request; observed by the API process."""
        self.engine_requests = 0
        """Requests that reached the model's API, refused or not."""
        self.request_prompt_tokens = Histogram(tokens_bounds)
        self.request_generation_tokens = Histogram(tokens_bounds)
        self.iteration_tokens = Histogram(STEP_TOKENS_BOUNDS)
        self.request_max_num_generation_tokens = Histogram(tokens_bounds)
        self.request_params_max_tokens = Histogram(tokens_bounds)
        self.request_prefill_kv_computed_tokens = Histogram(tokens_bounds)
        self.request_num_preemptions = Histogram(PREEMPTIONS_BOUNDS)
        self.ttft_s = Histogram(TTFT_S_BOUNDS)
        self.itl_s = Histogram(ITL_S_BOUNDS)
        self.tpot_s = Histogram(ITL_S_BOUNDS)
        self.e2e_s = Histogram(REQUEST_S_BOUNDS)
        self.queue_s = Histogram(REQUEST_S_BOUNDS)
        self.inference_s = Histogram(REQUEST_S_BOUNDS)
        self.prefill_s = Histogram(REQUEST_S_BOUNDS)
        self.decode_s = Histogram(REQUEST_S_BOUNDS)

    def count_http(
        self, handler: str, method: str, status: int, duration_s: float | None = None, request_bytes: int = 0
    ) -> None:
        """An answer has ended. duration_s: from the request's arrival to there; None: not known, and not observed."""
        key = (handler, method, f"{status // 100}xx")
        self.http_requests[key] = self.http_requests.get(key, 0) + 1
        if duration_s is not None:
            if (handler, method) not in self.http_duration_s:
                self.http_duration_s[handler, method] = Histogram(HTTP_S_BOUNDS)
            self.http_duration_s[handler, method].observe(duration_s)
            self.http_request_bytes[handler] = self.http_request_bytes.get(handler, 0) + request_bytes

    def count_step(self, now_s: float, duration_s: float, sequences: int, prefill: bool, graphed: bool) -> None:
        """A step of the engine has ended at now_s; call it after generation_tokens was bumped.

        prefill: it held prompt tokens, or recomputed ones.
        """
        self.steps += 1
        self.step_sequences += sequences
        if prefill:
            self.prefill_step_s.observe(duration_s)
            self.prefill_batches.observe(sequences)
            return
        self.decode_steps += 1
        self.decode_step_s.observe(duration_s)
        self.graphed_decode_steps += graphed
        self.last_decode_graphed = graphed
        if self.decode_steps % DECODE_LOG_STEPS == 0:
            gap_s = now_s - self._rate_from_s
            if gap_s > 0:
                self.generation_rate_tokens_per_s = (self.generation_tokens - self._rate_from_tokens) / gap_s
            self._rate_from_s, self._rate_from_tokens = now_s, self.generation_tokens

    def page(self, gauges: Gauges) -> str:
        """Text exposition format, without `_created` lines."""
        base = f'engine="0",model_name="{self._params.model}"'
        out: list[str] = []

        def family(name: str, kind: str, help_text: str, samples: Sequence[tuple[str, float]]) -> None:
            sample_name = f"{name}_total" if kind == "counter" else name
            out.append(f"# HELP {sample_name} {help_text}\n# TYPE {sample_name} {kind}\n")
            out.extend(f"{sample_name}{{{labels}}} {float(value)!r}\n" for labels, value in samples)

        waiting = gauges.requests_waiting
        family("vllm:num_requests_running", "gauge", "Requests in the batch.", [(base, gauges.requests_running)])
        family("vllm:num_requests_waiting", "gauge", "Requests waiting.", [(base, waiting)])
        family(
            "vllm:num_requests_waiting_by_reason", "gauge", "Requests waiting, by reason.",
            [(f'{base},reason="capacity"', waiting), (f'{base},reason="deferred"', 0)],
        )  # fmt: skip
        family("vllm:kv_cache_usage_perc", "gauge", "KV blocks used, 0 to 1.", [(base, gauges.kv_used_ratio)])
        family("vllm:prefix_cache_queries", "counter", "Prefix cache queries, tokens.", [(base, 0)])
        family("vllm:prefix_cache_hits", "counter", "Prefix cache hits, tokens.", [(base, 0)])
        family("vllm:num_preemptions", "counter", "Preemptions.", [(base, self.preemptions)])
        family("vllm:prompt_tokens", "counter", "Prompt tokens processed.", [(base, self.prompt_tokens)])
        family(
            "vllm:prompt_tokens_by_source", "counter", "Prompt tokens by source of their KV.",
            [
                (f'{base},source="local_compute"', self.prompt_tokens),
                (f'{base},source="local_cache_hit"', 0),
                (f'{base},source="external_kv_transfer"', 0),
            ],
        )  # fmt: skip
        family("vllm:prompt_tokens_cached", "counter", "Prompt tokens found cached.", [(base, 0)])
        family("vllm:generation_tokens", "counter", "Tokens generated.", [(base, self.generation_tokens)])
        family(
            "vllm:request_success", "counter", "Requests finished, by reason.",
            [(f'engine="0",finished_reason="{r}",model_name="{self._params.model}"', n)
             for r, n in self.finished.items()],
        )  # fmt: skip
        family(
            "vllm:admission_rejections", "counter", "Requests refused by a queue limit.",
            [(f'model_name="{self._params.model}",reason="max_num_queued_reqs"', self.rejected_requests)],
        )  # fmt: skip
        for name, help_text, histogram in self._histograms():
            out.append(f"# HELP vllm:{name} {help_text}\n# TYPE vllm:{name} histogram\n")
            total = 0
            for bound, count in zip((*map(repr, histogram.bounds), "+Inf"), histogram.counts, strict=True):
                total += count
                out.append(
                    f'vllm:{name}_bucket{{engine="0",le="{bound}",model_name="{self._params.model}"}} {total}.0\n'
                )
            out.append(f"vllm:{name}_count{{{base}}} {total}.0\nvllm:{name}_sum{{{base}}} {histogram.sum!r}\n")
        family("vllm:cache_config_info", "gauge", "Configuration of the KV cache.", [(self._cache_labels(), 1)])
        if self.http_requests:
            family(
                "http_requests", "counter", "Requests by method, status and handler.",
                [(f'handler="{h}",method="{m}",status="{s}"', n) for (h, m, s), n in self.http_requests.items()],
            )  # fmt: skip
        return "".join(out)

    def _cache_labels(self) -> str:
        blocks, block_size = self._params.num_kv_blocks(), self._params.block_size_tokens
        override = "None" if self._params.kv_blocks is None else str(blocks)
        return (
            f'block_size="{block_size}",cache_dtype="auto",enable_prefix_caching="False",engine="0",'
            f'gpu_memory_utilization="{self._params.gpu_memory_utilization_ratio}",'
            f'kv_cache_size_tokens="{blocks * block_size}",num_cpu_blocks="None",num_gpu_blocks="{blocks}",'
            f'num_gpu_blocks_override="{override}"'
        )

    def _histograms(self) -> list[tuple[str, str, Histogram]]:
        return [
            ("request_prompt_tokens", "Prompt tokens per request.", self.request_prompt_tokens),
            ("request_generation_tokens", "Generated tokens per request.", self.request_generation_tokens),
            ("iteration_tokens_total", "Tokens per engine step.", self.iteration_tokens),
            (
                "request_max_num_generation_tokens",
                "Most tokens a request may generate.",
                self.request_max_num_generation_tokens,
            ),
            ("request_params_max_tokens", "The max_tokens parameter.", self.request_params_max_tokens),
            (
                "request_prefill_kv_computed_tokens",
                "Prompt tokens computed, not found cached.",
                self.request_prefill_kv_computed_tokens,
            ),
            ("request_num_preemptions", "Preemptions per request.", self.request_num_preemptions),
            ("time_to_first_token_seconds", "Arrival to first token.", self.ttft_s),
            ("inter_token_latency_seconds", "Between tokens of a request.", self.itl_s),
            ("request_time_per_output_token_seconds", "Mean per request after its first token.", self.tpot_s),
            ("e2e_request_latency_seconds", "Arrival to last token.", self.e2e_s),
            ("request_queue_time_seconds", "Queued to first scheduled.", self.queue_s),
            ("request_inference_time_seconds", "First scheduled to last token.", self.inference_s),
            ("request_prefill_time_seconds", "First scheduled to first token.", self.prefill_s),
            ("request_decode_time_seconds", "First token to last token.", self.decode_s),
        ]


class EngineState(msgspec.Struct):
    """What a page is made from: one engine at one instant."""

    params: LabParams
    metrics: LabMetrics
    gauges: Gauges
    index: int = 0
    """Among the engines behind one API server (data parallel rank)."""
