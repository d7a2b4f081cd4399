"""vLLM's metrics page: the V1 engine of 2026, and the V0 engine of 2024 with its older names.

Families, types, labels and bounds are those of real pages. Left out, since the lab has nothing to say there: the
`python_*` families, `process_virtual_memory_bytes`, `*_created` samples (as with PROMETHEUS_DISABLE_CREATED_SERIES),
`vllm:nixl_num_descriptors` and `nixl_post_time_seconds`, and the two throughput gauges of V0.
Always 0, as on a server that does not use the feature: estimated FLOPs and bytes, sleep states, tiers of offloaded
cache. Sizes of streamed answers are 0 as on real pages: they have no Content-Length. Sizes are counted over HTTP only.
"""

from collections.abc import Sequence

from pinchpoint.lab import bounds
from pinchpoint.lab.api import adapter_name
from pinchpoint.lab.metrics import EngineState, Histogram, merged
from pinchpoint.lab.pages.text import PYTHON, Labels, Page, also, labelled
from pinchpoint.lab.readings import ProcessReading

FINISHED_V0 = ("stop", "length", "abort")


def page(engines: Sequence[EngineState], process: ProcessReading | None, epoch_unix_s: float, now_s: float) -> str:
    """The V1 page of the engines behind one API server.

    process: the API process; None leaves its families out, as with several API processes.
    """
    out = Page(PYTHON)
    if process is not None:
        _process(out, process, epoch_unix_s)
    _state(out, engines)
    _cache(out, engines)
    _work(out, engines)
    _speculation(out, engines)
    _lengths(out, engines)
    _times(out, engines)
    if any(state.params.disaggregation is not None for state in engines):
        _transfers(out, engines)
    out.family("vllm:cache_config_info", "gauge", "Cache configuration of the engine", _config(engines))
    _adapters(out, engines, epoch_unix_s + now_s)
    _http(out, engines)
    return out.text()


def _base(state: EngineState) -> Labels:
    return labelled(engine=state.index, model_name=state.params.model)


def _process(out: Page, process: ProcessReading, epoch_unix_s: float) -> None:
    out.family("process_resident_memory_bytes", "gauge", "Resident memory in bytes.", [((), process.rss_bytes)])
    out.family(
        "process_start_time_seconds",
        "gauge",
        "Start of the process, Unix time.",
        [((), epoch_unix_s + process.started_s)],
    )
    out.family("process_cpu_seconds_total", "counter", "CPU time, user and system.", [((), process.cpu_s_total)])
    out.family("process_open_fds", "gauge", "Open file descriptors.", [((), process.open_fds)])
    out.family("process_max_fds", "gauge", "Limit of open file descriptors.", [((), process.max_fds)])


def _state(out: Page, engines: Sequence[EngineState]) -> None:
    for what in ("flops", "read_bytes", "write_bytes"):
        name = f"vllm:estimated_{what}_per_gpu_total"
        out.family(name, "counter", "Estimate per GPU, with --enable-mfu-metrics.", [(_base(s), 0) for s in engines])
    out.family(
        "vllm:num_requests_running", "gauge", "Requests in the execution batch.",
        [(_base(s), s.gauges.requests_running) for s in engines],
    )  # fmt: skip
    out.family(
        "vllm:num_requests_waiting", "gauge", "Requests that wait to be processed.",
        [(_base(s), s.gauges.requests_waiting) for s in engines],
    )  # fmt: skip
    by_reason: list[tuple[Labels, float]] = []
    for state in engines:
        gauges = state.gauges
        capacity = gauges.waiting_capacity
        if capacity is None:
            capacity = gauges.requests_waiting - gauges.waiting_deferred
        by_reason.append((also(_base(state), reason="capacity"), capacity))
        by_reason.append((also(_base(state), reason="deferred"), gauges.waiting_deferred))
    out.family(
        "vllm:num_requests_waiting_by_reason", "gauge",
        "Waiting requests by reason: room, or something transient (adapter slot, remote KV, grammar).", by_reason,
    )  # fmt: skip
    out.family(
        "vllm:engine_sleep_state", "gauge", "1 for the state the engine is in.",
        [
            (also(_base(s), sleep_state=sleep), awake)
            for s in engines
            for sleep, awake in (("awake", 1), ("weights_offloaded", 0), ("discard_all", 0))
        ],
    )  # fmt: skip
    out.family(
        "vllm:kv_cache_usage_perc", "gauge", "Share of the KV cache in use, 1 is all.",
        [(_base(s), s.gauges.kv_used_ratio) for s in engines],
    )  # fmt: skip


def _counter(out: Page, engines: Sequence[EngineState], name: str, help_text: str, values: Sequence[float]) -> None:
    samples = [(_base(state), value) for state, value in zip(engines, values, strict=True)]
    out.family(f"vllm:{name}_total", "counter", help_text, samples)


def _cache(out: Page, engines: Sequence[EngineState]) -> None:
    metrics = [state.metrics for state in engines]
    for name, help_text, values in (
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.",
         [m.prefix_queries_tokens for m in metrics]),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", [m.prefix_hit_tokens for m in metrics]),
        ("external_prefix_cache_queries", "Prompt tokens looked up through the KV connector.",
         [m.external_prompt_tokens for m in metrics]),
        ("external_prefix_cache_hits", "Prompt tokens that came through the KV connector.",
         [m.external_prompt_tokens for m in metrics]),
        ("mm_cache_queries", "Items looked up in the multimodal cache.", [m.mm_queries for m in metrics]),
        ("mm_cache_hits", "Items found in the multimodal cache.", [m.mm_hits for m in metrics]),
        ("num_preemptions", "Preemptions so far.", [m.preemptions for m in metrics]),
    ):  # fmt: skip
        _counter(out, engines, name, help_text, values)


def _work(out: Page, engines: Sequence[EngineState]) -> None:
    metrics = [state.metrics for state in engines]
    _counter(out, engines, "prompt_tokens", "Prefill tokens processed.", [m.prompt_tokens for m in metrics])
    sources: list[tuple[Labels, float]] = []
    tiers: list[tuple[Labels, float]] = []
    for state, m in zip(engines, metrics, strict=True):
        cached = {
            "local_compute": m.prompt_tokens - m.cached_prompt_tokens - m.external_prompt_tokens,
            "local_cache_hit": m.cached_prompt_tokens,
            "external_kv_transfer": m.external_prompt_tokens,
        }
        sources += [(also(_base(state), source=source), tokens) for source, tokens in cached.items()]
        found = {"device": m.prefix_hit_tokens, "host": 0, "p2p": m.external_prompt_tokens, "disk": 0}
        found["external_unspecified"] = 0
        tiers += [(also(_base(state), source=source), tokens) for source, tokens in found.items()]
    out.family("vllm:prompt_tokens_by_source_total", "counter", "Prompt tokens by where their KV came from.", sources)
    _counter(
        out, engines, "prompt_tokens_cached", "Prompt tokens from a cache, local or external.",
        [m.cached_prompt_tokens + m.external_prompt_tokens for m in metrics],
    )  # fmt: skip
    out.family(
        "vllm:prompt_tokens_cached_by_source_total", "counter", "Found prompt tokens by the tier that held them.", tiers
    )
    _counter(out, engines, "generation_tokens", "Tokens generated.", [m.generation_tokens for m in metrics])
    out.family(
        "vllm:request_success_total", "counter", "Requests that ended, by reason.",
        [(also(_base(s), finished_reason=r), n) for s in engines for r, n in s.metrics.finished.items()],
    )  # fmt: skip
    model = engines[0].params.model
    rejected = {"max_num_queued_reqs": sum(m.rejected_requests for m in metrics), "max_num_queued_tokens": 0}
    out.family(
        "vllm:admission_rejections_total", "counter", "Admissions refused by a limit of the queue, by reason.",
        [(labelled(model_name=model, reason=reason), n) for reason, n in rejected.items()],
    )  # fmt: skip


def _speculation(out: Page, engines: Sequence[EngineState]) -> None:
    if all(state.params.speculation is None for state in engines):
        return
    metrics = [state.metrics for state in engines]
    for name, help_text, values in (
        ("num_drafts", "Drafts verified.", [m.drafts for m in metrics]),
        ("num_draft_tokens", "Tokens drafted.", [m.draft_tokens for m in metrics]),
        ("num_accepted_tokens", "Drafted tokens accepted.", [m.accepted_tokens for m in metrics]),
    ):
        _counter(out, engines, f"spec_decode_{name}", help_text, values)
    per_position: list[tuple[Labels, float]] = []
    for state in engines:
        counts = state.metrics.accepted_per_position
        positions = len(counts)
        if state.params.speculation is not None:
            positions = max(positions, state.params.speculation.num_speculative_tokens)
        for position in range(positions):
            count = counts[position] if position < len(counts) else 0
            per_position.append((also(_base(state), position=position), count))
    out.family(
        "vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter", "Accepted tokens by place in the draft.",
        per_position,
    )  # fmt: skip


def _lengths(out: Page, engines: Sequence[EngineState]) -> None:
    tokens = bounds.one_two_five(engines[0].metrics.max_model_len_tokens)
    metrics = [state.metrics for state in engines]
    for name, help_text, histograms, upper in (
        ("request_prompt_tokens", "Prompt tokens per request.", [m.request_prompt_tokens for m in metrics], tokens),
        ("request_generation_tokens", "Generated tokens per request.",
         [m.request_generation_tokens for m in metrics], tokens),
        ("iteration_tokens_total", "Tokens per step of the engine.", [m.iteration_tokens for m in metrics],
         bounds.VLLM_STEP_TOKENS),
        ("request_max_num_generation_tokens", "Most tokens a request may generate.",
         [m.request_max_num_generation_tokens for m in metrics], tokens),
        ("request_params_n", "Parameter n of requests.", [_all_one(m.request_prompt_tokens) for m in metrics],
         bounds.VLLM_N),
        ("request_params_max_tokens", "Parameter max_tokens of requests.",
         [m.request_params_max_tokens for m in metrics], tokens),
    ):  # fmt: skip
        _histogram(out, engines, name, help_text, histograms, upper)


def _all_one(requests: Histogram) -> Histogram:
    """As many ones as there are requests: each asks for one answer."""
    ones = Histogram(bounds.VLLM_N)
    ones.observe(1.0, requests.count)
    return ones


def _times(out: Page, engines: Sequence[EngineState]) -> None:
    metrics = [state.metrics for state in engines]
    request, itl = bounds.VLLM_REQUEST_S, bounds.VLLM_ITL_S
    for name, help_text, histograms, upper in (
        ("time_to_first_token_seconds", "Arrival to first token.", [m.ttft_s for m in metrics], bounds.VLLM_TTFT_S),
        ("inter_token_latency_seconds", "Between tokens of a request.", [m.itl_s for m in metrics], itl),
        ("request_time_per_output_token_seconds", "Mean time per output token of a request.",
         [m.tpot_s for m in metrics], itl),
        ("e2e_request_latency_seconds", "Arrival to last token.", [m.e2e_s for m in metrics], request),
        ("request_queue_time_seconds", "Time waiting.", [m.queue_s for m in metrics], request),
        ("request_inference_time_seconds", "Time running.", [m.inference_s for m in metrics], request),
        ("request_prefill_time_seconds", "Time in prefill.", [m.prefill_s for m in metrics], request),
        ("request_decode_time_seconds", "Time in decode.", [m.decode_s for m in metrics], request),
        ("request_num_preemptions", "Preemptions of a request.", [m.request_num_preemptions for m in metrics],
         bounds.VLLM_PREEMPTIONS),
        ("request_prefill_kv_computed_tokens", "Prompt tokens computed, not found cached.",
         [m.request_prefill_kv_computed_tokens for m in metrics],
         bounds.one_two_five(engines[0].metrics.max_model_len_tokens)),
    ):  # fmt: skip
        _histogram(out, engines, name, help_text, histograms, upper)


def _histogram(
    out: Page,
    engines: Sequence[EngineState],
    name: str,
    help_text: str,
    histograms: Sequence[Histogram],
    upper: tuple[float, ...],
) -> None:
    out.histogram(f"vllm:{name}", help_text, zip(map(_base, engines), histograms, strict=True), upper)


def _transfers(out: Page, engines: Sequence[EngineState]) -> None:
    metrics = [state.metrics for state in engines]
    for name, help_text, histograms, upper in (
        ("nixl_xfer_time_seconds", "Duration of KV transfers.", [m.transfer_duration_s for m in metrics],
         bounds.VLLM_TRANSFER_S),
        ("nixl_bytes_transferred", "Bytes per KV transfer.", [m.transfer_size_bytes for m in metrics],
         bounds.VLLM_TRANSFER_BYTES),
    ):  # fmt: skip
        _histogram(out, engines, name, help_text, histograms, upper)
    _counter(out, engines, "nixl_num_failed_transfers", "KV transfers that failed.", [0.0] * len(engines))


def _adapters(out: Page, engines: Sequence[EngineState], unix_s: float) -> None:
    """One engine only, as in vLLM, whose gauge has no label for the engine."""
    if len(engines) != 1 or not engines[0].gauges.max_loras:
        return
    gauges, model = engines[0].gauges, engines[0].params.model
    labels = labelled(
        max_lora=gauges.max_loras,
        running_lora_adapters=",".join(adapter_name(model, one) for one in gauges.running_adapters),
        waiting_lora_adapters=",".join(adapter_name(model, one) for one in gauges.waiting_adapters),
    )
    out.family("vllm:lora_requests_info", "gauge", "State of adapters, in the labels.", [(labels, unix_s)])


def _config(engines: Sequence[EngineState]) -> list[tuple[Labels, float]]:
    samples: list[tuple[Labels, float]] = []
    for state in engines:
        params = state.params
        blocks, size = params.num_kv_blocks(), params.block_size_tokens
        labels = labelled(
            _block_size_resolved=True,
            block_size=size,
            cache_dtype="auto" if params.kv_precision == "bf16" else "fp8",
            cache_hit_alignment_tokens=None,
            effective_attention_block_size=size,
            enable_mamba_shared_prefix_checkpoint=False,
            enable_prefix_caching=params.prefix_caching,
            engine=state.index,
            gpu_memory_utilization=params.gpu_memory_utilization_ratio,
            hash_block_size=None,
            is_attention_free=False,
            kv_cache_dtype_skip_layers="[]",
            kv_cache_layout=None,
            kv_cache_max_concurrency=blocks * size / state.metrics.max_model_len_tokens,
            kv_cache_memory_bytes=None,
            kv_cache_size_tokens=blocks * size,
            kv_offloading_backend="native",
            kv_offloading_size=None,
            kv_sharing_fast_prefill=False,
            mamba_block_size=None,
            mamba_cache_dtype="auto",
            mamba_cache_mode="none",
            mamba_page_size_padded=None,
            mamba_ssm_cache_dtype="auto",
            num_cpu_blocks=None,
            num_gpu_blocks=blocks,
            num_gpu_blocks_override=params.kv_blocks,
            prefix_cache_retention_interval=0,
            prefix_caching_hash_algo="sha256",
            prefix_match_unit=None,
            replayssm_buffer_len=16,
            skip_page_size_padded=None,
            sliding_window=None,
            swa_bounded_replay=True,
            use_kda_recoverssm=False,
            use_replayssm=False,
            user_specified_block_size=False,
        )
        samples.append((labels, 1))
    return samples


def _http(out: Page, engines: Sequence[EngineState]) -> None:
    requests: dict[tuple[str, str, str], int] = {}
    sizes: dict[str, int] = {}
    answers: dict[str, int] = {}
    durations: dict[tuple[str, str], Histogram] = {}
    for metrics in (state.metrics for state in engines):
        for key, count in metrics.http_requests.items():
            requests[key] = requests.get(key, 0) + count
        for handler, size in metrics.http_request_bytes.items():
            sizes[handler] = sizes.get(handler, 0) + size
        for handler, size in metrics.http_response_bytes.items():
            answers[handler] = answers.get(handler, 0) + size
        for pair, histogram in metrics.http_duration_s.items():
            durations[pair] = merged([durations[pair], histogram]) if pair in durations else histogram
    counts = {handler: sum(n for (h, _, _), n in requests.items() if h == handler) for handler in sizes}
    out.family(
        "http_requests_total", "counter", "Requests by method, status and handler.",
        [(labelled(handler=h, method=m, status=s), n) for (h, m, s), n in requests.items()],
    )  # fmt: skip
    out.summary(
        "http_request_size_bytes", "Content-Length of requests by handler.",
        [(labelled(handler=handler), counts[handler], size) for handler, size in sizes.items()],
    )  # fmt: skip
    out.summary(
        "http_response_size_bytes", "Content-Length of answers by handler.",
        [(labelled(handler=handler), count, answers.get(handler, 0)) for handler, count in counts.items()],
    )  # fmt: skip
    everything = merged([Histogram(bounds.VLLM_HTTP_S), *durations.values()])
    out.histogram(
        "http_request_duration_highr_seconds", "Time per request, many buckets.", [((), everything)], bounds.VLLM_HTTP_S
    )
    out.histogram(
        "http_request_duration_seconds", "Time per request by handler, few buckets.",
        [(labelled(handler=handler, method=method), found) for (handler, method), found in durations.items()],
        bounds.VLLM_HTTP_FEW_S,
    )  # fmt: skip


def old_page(engines: Sequence[EngineState], process: ProcessReading | None, epoch_unix_s: float, now_s: float) -> str:
    """The V0 page: no engine label, names that V1 has dropped or renamed, no queue and phase times."""
    out = Page(PYTHON)
    if process is not None:
        _process(out, process, epoch_unix_s)
    state = engines[0]
    params, model = state.params, labelled(model_name=state.params.model)
    metrics = [engine.metrics for engine in engines]
    gauges = [engine.gauges for engine in engines]
    blocks = params.num_kv_blocks()
    config = labelled(
        block_size=params.block_size_tokens,
        cache_dtype="auto" if params.kv_precision == "bf16" else "fp8",
        cpu_kvcache_space_bytes=4 << 30,
        enable_prefix_caching=params.prefix_caching,
        gpu_memory_utilization=params.gpu_memory_utilization_ratio,
        num_cpu_blocks=0,
        num_gpu_blocks=blocks,
        num_gpu_blocks_override=params.kv_blocks,
        sliding_window=None,
        swap_space_bytes=4 << 30,
    )
    out.family("vllm:cache_config_info", "gauge", "cache configuration", [(config, 1)])
    for name, help_text, value in (
        ("num_requests_running", "Requests running on the GPU.", sum(g.requests_running for g in gauges)),
        ("num_requests_waiting", "Requests that wait.", sum(g.requests_waiting for g in gauges)),
        ("num_requests_swapped", "Requests swapped to the CPU.", sum(g.swapped for g in gauges)),
        ("gpu_cache_usage_perc", "Share of the GPU's KV cache in use, 1 is all.",
         sum(g.kv_used_ratio for g in gauges) / len(gauges)),
        ("cpu_cache_usage_perc", "Share of the CPU's KV cache in use, 1 is all.", 0.0),
    ):  # fmt: skip
        out.family(f"vllm:{name}", "gauge", help_text, [(model, value)])
    for name, help_text, value in (
        ("num_preemptions", "Preemptions so far.", sum(m.preemptions for m in metrics)),
        ("prompt_tokens", "Prefill tokens processed.", sum(m.prompt_tokens for m in metrics)),
        ("generation_tokens", "Tokens generated.", sum(m.generation_tokens for m in metrics)),
    ):
        out.family(f"vllm:{name}_total", "counter", help_text, [(model, value)])
    tokens = bounds.one_two_five(state.metrics.max_model_len_tokens)
    for name, help_text, histograms, upper in (
        ("time_to_first_token_seconds", "Arrival to first token.", [m.ttft_s for m in metrics], bounds.VLLM_V0_TTFT_S),
        ("time_per_output_token_seconds", "Between tokens of a request.", [m.itl_s for m in metrics],
         bounds.VLLM_V0_ITL_S),
        ("e2e_request_latency_seconds", "Arrival to last token.", [m.e2e_s for m in metrics], bounds.VLLM_V0_E2E_S),
        ("request_prompt_tokens", "Prompt tokens per request.", [m.request_prompt_tokens for m in metrics], tokens),
        ("request_generation_tokens", "Generated tokens per request.",
         [m.request_generation_tokens for m in metrics], tokens),
        ("request_params_best_of", "Parameter best_of of requests.",
         [_all_one(m.request_prompt_tokens) for m in metrics], bounds.VLLM_N),
        ("request_params_n", "Parameter n of requests.", [_all_one(m.request_prompt_tokens) for m in metrics],
         bounds.VLLM_N),
    ):  # fmt: skip
        out.histogram(f"vllm:{name}", help_text, [(model, merged(histograms))], upper)
    ended = {reason: sum(m.finished[reason] for m in metrics) for reason in FINISHED_V0}
    out.family(
        "vllm:request_success_total", "counter", "Requests that ended, by reason.",
        [(also(model, finished_reason=reason), count) for reason, count in ended.items() if count],
    )  # fmt: skip
    return out.text()
