"""SGLang's metrics page: of 2026, and of early 2025 with fewer families, other bounds and no rank labels.

As on a real server: tokens and requests are counted when a request ends; throughput and acceptance are those of the
last 40 decode steps, and stand still between; families without samples are absent, since prometheus_client merges the
files of several processes. The other gauges are of the instant here; SGLang refreshes them with each prefill and with
every 40th decode step. Always 0, as for a model that has no such layers: the sliding-window and Mamba gauges.
Left out: `per_stage_req_latency_seconds`, `forward_execution_seconds_total`, `realtime_tokens_total` of DP cooperation,
`fwd_occupancy`, `utilization`, `new_token_ratio`, start-up times and memory in GB, the EPLB, HiCache, prefill-delayer
and routing-key families, sizes of grammars, `func_latency_seconds`, the evictor's families.
"""

from collections.abc import Sequence

from pinchpoint.lab import bounds
from pinchpoint.lab.metrics import EngineState, Histogram, LabMetrics, merged
from pinchpoint.lab.pages.text import PYTHON_MULTIPROCESS, Labels, Page, also, labelled

SCHEDULER_PID = 187
"""Gauges of the scheduler that name no merge mode carry their process id."""
GEN_LABEL = {"is_streaming": "true"}


def page(engines: Sequence[EngineState]) -> str:
    """The current page. Several engines are data-parallel ranks of one server, told apart by dp_rank."""
    out = Page(PYTHON_MULTIPROCESS)
    several = len(engines) > 1
    ranks = [_rank(state, several) for state in engines]
    _scheduler(out, engines, ranks)
    _adapters(out, engines, ranks)
    _grammar(out, engines, ranks)
    _disaggregation(out, engines, ranks)
    _requests(out, engines)
    return out.text()


def _rank(state: EngineState, several: bool) -> Labels:
    labels = labelled(
        engine_type=state.role, model_name=state.params.model, moe_ep_rank=0, pp_rank=0, tp_rank=0
    )  # rank 0 alone keeps statistics
    return also(labels, dp_rank=state.index) if several else labels


def _capacity_tokens(state: EngineState) -> int:
    return state.params.num_kv_blocks() * state.params.block_size_tokens


def _scheduler(out: Page, engines: Sequence[EngineState], ranks: Sequence[Labels]) -> None:
    def gauge(name: str, help_text: str, values: Sequence[float]) -> None:
        out.family(f"sglang:{name}", "gauge", help_text, zip(ranks, values, strict=True))

    gauges = [state.gauges for state in engines]
    metrics = [state.metrics for state in engines]
    zeros = [0.0] * len(engines)
    gauge("num_running_reqs", "Running requests.", [g.requests_running for g in gauges])
    gauge("num_queue_reqs", "Requests in the waiting queue.", [_queued(state) for state in engines])
    gauge("num_grammar_queue_reqs", "Requests that wait for a grammar.", [g.grammar_queue for g in gauges])
    gauge("gen_throughput", "Generation throughput, token/s.", [m.generation_rate_tokens_per_s for m in metrics])
    gauge("cache_hit_rate", "Prefix cache hit rate.", [m.prefix_hit_ratio for m in metrics])
    gauge("decode_sum_seq_lens", "Sum of sequence lengths in decode.", [g.kv_tokens_used for g in gauges])
    gauge("token_usage", "Token usage.", [g.kv_used_ratio for g in gauges])
    gauge("full_token_usage", "Token usage of full-attention layers.", [g.kv_used_ratio for g in gauges])
    for name in ("swa_token_usage", "mamba_usage"):
        gauge(name, "Usage of another kind of layer.", zeros)
    gauge("num_used_tokens", "Used tokens.", [g.kv_tokens_used for g in gauges])
    free = [_capacity_tokens(s) - s.gauges.kv_tokens_used - s.gauges.kv_tokens_cached for s in engines]
    gauge("kv_available_tokens", "Free token slots of the KV pool.", [max(0, tokens) for tokens in free])
    gauge("kv_evictable_tokens", "Cached token slots that may be evicted.", [g.kv_tokens_cached for g in gauges])
    gauge("kv_used_tokens", "Token slots in use.", [g.kv_tokens_used for g in gauges])
    for kind in ("swa", "mamba"):
        for state in ("available", "evictable", "used"):
            gauge(f"{kind}_{state}_tokens", "Slots of another kind of pool.", zeros)
    gauge("spec_accept_length", "Mean tokens per verification.", [m.accepted_length_tokens for m in metrics])
    gauge("spec_accept_rate", "Accepted over drafted tokens.", [m.accepted_ratio for m in metrics])
    for name in ("spec_cap_length", "spec_block_accept_length"):
        gauge(name, "Of a scheduled draft length.", zeros)
    drafted = [0 if (spec := state.params.speculation) is None else spec.num_speculative_tokens for state in engines]
    gauge("spec_num_steps", "Draft steps.", drafted)
    gauge("spec_num_draft_tokens", "Draft tokens per verification.", [n + 1 if n else 0 for n in drafted])
    with_pid = [also(rank, pid=SCHEDULER_PID + index) for index, rank in enumerate(ranks)]
    for name, help_text in (
        ("num_retracted_reqs", "Requests retracted in the step."),
        ("num_paused_reqs", "Requests paused by a weight update."),
    ):
        out.family(f"sglang:{name}", "gauge", help_text, [(labels, 0) for labels in with_pid])
    for name, help_text, values in (
        ("num_retracted_requests", "Requests retracted.", [m.preemptions for m in metrics]),
        ("num_retracted_input_tokens", "Input tokens retracted.", [m.preempted_prompt_tokens for m in metrics]),
        ("num_retracted_output_tokens", "Output tokens retracted.", [m.preempted_output_tokens for m in metrics]),
    ):
        _counter(out, f"{name}_total", help_text, ranks, values)
    gauge("is_cuda_graph", "The batch uses a CUDA graph.", [m.last_decode_graphed for m in metrics])
    out.family(
        "sglang:cuda_graph_passes_total", "counter", "Forward passes by use of CUDA graphs.",
        [sample for rank, m in zip(ranks, metrics, strict=True) for sample in _passes(rank, m)],
    )  # fmt: skip
    _histogram(out, "queue_time_seconds", "Queueing time.", ranks, [m.queue_s for m in metrics], bounds.SGLANG_QUEUE_S)
    out.family(
        "sglang:realtime_tokens_total", "counter", "Tokens processed, by mode.",
        [sample for rank, m in zip(ranks, metrics, strict=True) for sample in _realtime(rank, m)],
    )  # fmt: skip
    gauge("max_total_num_tokens", "Tokens that the KV pool holds.", [_capacity_tokens(s) for s in engines])
    gauge("page_size", "Tokens per page of the KV pool.", [s.params.block_size_tokens for s in engines])
    gauge("num_pages", "Pages of the KV pool.", [s.params.num_kv_blocks() for s in engines])
    gauge("context_len", "Longest context.", [m.max_model_len_tokens for m in metrics])


def _queued(state: EngineState) -> int:
    """Requests whose grammar is compiled, or whose KV is on its way, stand in queues of their own."""
    gauges = state.gauges
    return gauges.requests_waiting - gauges.grammar_queue - gauges.transfer_queue


def _passes(rank: Labels, metrics: LabMetrics) -> list[tuple[Labels, float]]:
    counts = {
        "decode_cuda_graph": metrics.graphed_decode_steps,
        "decode_none": metrics.decode_steps - metrics.graphed_decode_steps,
        "prefill_none": metrics.steps - metrics.decode_steps,
    }
    return [(also(rank, mode=mode), count) for mode, count in counts.items() if count]


def _realtime(rank: Labels, metrics: LabMetrics) -> list[tuple[Labels, float]]:
    cached = metrics.cached_prompt_tokens + metrics.external_prompt_tokens
    counts = {
        "prefill_compute": metrics.prompt_tokens - cached + metrics.recomputed_tokens,
        "prefill_cache": cached,
        "decode": metrics.generation_tokens,
    }
    return [(also(rank, mode=mode), count) for mode, count in counts.items() if count]


def _adapters(out: Page, engines: Sequence[EngineState], ranks: Sequence[Labels]) -> None:
    if not any(state.gauges.max_loras for state in engines):
        return
    used = [len(state.gauges.running_adapters) for state in engines]
    slots = [state.gauges.max_loras for state in engines]
    shares = [u / max(1, s) for u, s in zip(used, slots, strict=True)]
    for name, help_text, values in (
        ("used", "Adapter slots in use.", used),
        ("total", "Adapter slots.", slots),
    ):
        out.family(f"sglang:lora_pool_slots_{name}", "gauge", help_text, zip(ranks, values, strict=True))
    help_text = "Used over all adapter slots."
    out.family("sglang:lora_pool_utilization", "gauge", help_text, zip(ranks, shares, strict=True))


def _grammar(out: Page, engines: Sequence[EngineState], ranks: Sequence[Labels]) -> None:
    metrics = [state.metrics for state in engines]
    if not any(m.grammar_compiles or m.grammar_hits for m in metrics):
        return
    _histogram(
        out, "grammar_compilation_time_seconds", "Grammar compilation time.", ranks,
        [m.grammar_duration_s for m in metrics], bounds.SGLANG_GRAMMAR_S,
    )  # fmt: skip
    _counter(out, "num_grammar_cache_hit_total", "Grammar cache hits.", ranks, [m.grammar_hits for m in metrics])
    totals = [m.grammar_hits + m.grammar_compiles for m in metrics]
    _counter(out, "num_grammar_total", "Grammar requests.", ranks, totals)


def _disaggregation(out: Page, engines: Sequence[EngineState], ranks: Sequence[Labels]) -> None:
    for name, role in (
        ("num_prefill_bootstrap_queue_reqs", None),
        ("num_prefill_inflight_queue_reqs", "prefill"),
        ("num_decode_prealloc_queue_reqs", None),
        ("num_decode_transfer_queue_reqs", "decode"),
    ):
        values = [state.gauges.transfer_queue if state.role == role else 0 for state in engines]
        out.family(f"sglang:{name}", "gauge", "Requests in this queue.", zip(ranks, values, strict=True))
    metrics = [state.metrics for state in engines]
    if not any(m.kv_transfers for m in metrics):
        return
    durations = [m.transfer_duration_s for m in metrics]
    sizes = [m.transfer_size_bytes for m in metrics]
    rates = [m.transfer_rate_bytes_per_s for m in metrics]
    out.histogram(
        "sglang:kv_transfer_speed_gb_s", "KV transfer speed in GB/s.", zip(ranks, rates, strict=True),
        bounds.SGLANG_TRANSFER_BYTES_PER_S, 1 / bounds.GB_BYTES,
    )  # fmt: skip
    out.histogram(
        "sglang:kv_transfer_latency_ms", "KV transfer latency in ms.", zip(ranks, durations, strict=True),
        bounds.SGLANG_TRANSFER_S, bounds.MS_PER_S,
    )  # fmt: skip
    out.histogram(
        "sglang:kv_transfer_total_mb", "KV transfer size in MB.", zip(ranks, sizes, strict=True),
        bounds.SGLANG_TRANSFER_BYTES, 1 / bounds.MB_BYTES,
    )  # fmt: skip


def _requests(out: Page, engines: Sequence[EngineState]) -> None:
    """Of the tokenizer's process, over all ranks."""
    model = labelled(model_name=engines[0].params.model)
    streaming = also(model, **GEN_LABEL)
    metrics = [state.metrics for state in engines]

    def together(pick: str) -> Histogram:
        return merged([getattr(m, pick) for m in metrics])

    prompts, outputs = together("request_prompt_tokens"), together("request_generation_tokens")
    for name, help_text, value in (
        ("prompt_tokens", "Prefill tokens processed.", prompts.sum),
        ("generation_tokens", "Tokens generated.", outputs.sum),
    ):
        _counter(out, f"{name}_total", help_text, [streaming], [value])
    drafts = sum(m.drafts for m in metrics)
    if drafts:
        _counter(out, "spec_verify_calls_total", "Verifications.", [model], [drafts])
    computed = together("request_prefill_kv_computed_tokens")
    for name, help_text, histogram in (
        ("prompt_tokens_histogram", "Prompt length.", prompts),
        ("uncached_prompt_tokens_histogram", "Prompt tokens computed.", computed),
        ("generation_tokens_histogram", "Output length.", outputs),
    ):
        _histogram(out, name, help_text, [model], [histogram], bounds.SGLANG_TOKENS)
    cached = sum(m.cached_prompt_tokens for m in metrics)
    if cached:
        labels = also(model, cache_source="device")
        _counter(out, "cached_tokens_total", "Cached prompt tokens by source.", [labels], [cached])
    _counter(out, "num_requests_total", "Requests processed.", [streaming], [outputs.count])
    grammars = sum(m.grammar_hits + m.grammar_compiles for m in metrics)
    if grammars:
        _counter(out, "num_so_requests_total", "Structured-output requests.", [model], [grammars])
    aborted = sum(m.finished["abort"] for m in metrics)
    if aborted:
        _counter(out, "num_aborted_requests_total", "Requests aborted.", [model], [aborted])
    for name, help_text, labels, pick, upper in (
        ("time_to_first_token_seconds", "Time to first token.", streaming, "ttft_s", bounds.SGLANG_TTFT_S),
        ("inter_token_latency_seconds", "Inter-token latency.", model, "itl_s", bounds.SGLANG_ITL_S),
        ("e2e_request_latency_seconds", "End-to-end latency.", streaming, "e2e_s", bounds.SGLANG_E2E_S),
    ):
        _histogram(out, name, help_text, [labels], [together(pick)], upper)


def _counter(out: Page, name: str, help_text: str, labels: Sequence[Labels], values: Sequence[float]) -> None:
    out.family(f"sglang:{name}", "counter", help_text, zip(labels, values, strict=True))


def _histogram(
    out: Page,
    name: str,
    help_text: str,
    labels: Sequence[Labels],
    histograms: Sequence[Histogram],
    upper: tuple[float, ...],
) -> None:
    """A labelled histogram appears with its first observation."""
    seen = [(pairs, found) for pairs, found in zip(labels, histograms, strict=True) if found.count]
    out.histogram(f"sglang:{name}", help_text, seen, upper)


def old_page(engines: Sequence[EngineState]) -> str:
    """The page of early 2025. Several ranks overwrite each other's gauges there; here they are added up."""
    out = Page(PYTHON_MULTIPROCESS)
    model = labelled(model_name=engines[0].params.model)
    metrics = [state.metrics for state in engines]
    gauges = [state.gauges for state in engines]

    def gauge(name: str, help_text: str, value: float) -> None:
        out.family(f"sglang:{name}", "gauge", help_text, [(model, value)])

    prompts = sum(m.request_prompt_tokens.sum for m in metrics)
    outputs = sum(m.request_generation_tokens.sum for m in metrics)
    _counter(out, "prompt_tokens_total", "Prefill tokens processed.", [model], [prompts])
    _counter(out, "generation_tokens_total", "Tokens generated.", [model], [outputs])
    gauge("token_usage", "Token usage", sum(g.kv_used_ratio for g in gauges) / len(gauges))
    gauge("cache_hit_rate", "Cache hit rate", sum(m.prefix_hit_ratio for m in metrics) / len(metrics))
    for name, help_text, histograms, upper in (
        ("time_to_first_token_seconds", "Time to first token.", [m.ttft_s for m in metrics], bounds.SGLANG_OLD_TTFT_S),
        ("e2e_request_latency_seconds", "End-to-end latency.", [m.e2e_s for m in metrics], bounds.SGLANG_OLD_E2E_S),
        ("time_per_output_token_seconds", "Time per output token.", [m.itl_s for m in metrics],
         bounds.SGLANG_OLD_ITL_S),
    ):  # fmt: skip
        _histogram(out, name, help_text, [model], [merged(histograms)], upper)
    gauge("num_running_reqs", "Running requests", sum(g.requests_running for g in gauges))
    gauge("num_used_tokens", "Used tokens", sum(g.kv_tokens_used for g in gauges))
    gauge("gen_throughput", "Generation throughput (token/s)", sum(m.generation_rate_tokens_per_s for m in metrics))
    gauge("num_queue_reqs", "Requests in the waiting queue", sum(map(_queued, engines)))
    return out.text()
