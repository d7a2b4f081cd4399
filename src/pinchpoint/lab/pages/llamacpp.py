"""The metrics page of llama.cpp's server: of 2026, and of 2024 with the KV gauges that were removed since.

No labels. The server has one set of figures, so several engines are added up. As on a real page, generated tokens and
their time are counted when a request ends, times are sums over requests (parallel slots exceed the wall clock), the two
rates are averages since the page was read last, and busy slots per decode are a mean over the server's lifetime.
Left out: `spec_decode_num_accepted_tokens_per_pos_total`, which only builds with drafts expose.
"""

from collections.abc import Sequence

from pinchpoint.lab.metrics import EngineState, LabMetrics
from pinchpoint.lab.pages.text import STREAM, Page


def page(engines: Sequence[EngineState]) -> str:
    """Reading it begins a new average for the two rates."""
    out = Page(STREAM)
    metrics = [state.metrics for state in engines]
    tokens, seconds, generated, decode_s = _work(metrics)
    cached = sum(m.cached_prompt_tokens + m.external_prompt_tokens for m in metrics)
    for name, help_text, value in (
        ("prompt_tokens_total", "Prompt tokens computed", tokens),
        ("prompt_tokens_cached_total", "Prompt tokens taken from the cache", cached),
        ("prompt_seconds_total", "Time spent on prompts", seconds),
        ("tokens_predicted_total", "Tokens generated", generated),
        ("tokens_predicted_seconds_total", "Time spent on generating", decode_s),
        ("n_decode_total", "Calls of llama_decode()", sum(m.steps for m in metrics)),
        ("n_tokens_max", "Longest sequence seen", max(m.longest_sequence_tokens for m in metrics)),
        ("spec_decode_num_draft_tokens_total", "Drafted tokens", sum(m.draft_tokens for m in metrics)),
        ("spec_decode_num_accepted_tokens_total", "Accepted tokens", sum(m.accepted_tokens for m in metrics)),
        ("spec_decode_num_drafts_total", "Verifications", sum(m.drafts for m in metrics)),
    ):
        out.family(f"llamacpp:{name}", "counter", help_text, [((), value)])
    _gauges(out, engines, ())
    return out.text()


def old_page(engines: Sequence[EngineState]) -> str:
    """Without cache and draft counters, with occupation of the KV cache."""
    out = Page(STREAM)
    metrics = [state.metrics for state in engines]
    tokens, seconds, generated, decode_s = _work(metrics)
    for name, help_text, value in (
        ("prompt_tokens_total", "Prompt tokens processed", tokens),
        ("prompt_seconds_total", "Prompt process time", seconds),
        ("tokens_predicted_total", "Tokens generated", generated),
        ("tokens_predicted_seconds_total", "Predict process time", decode_s),
        ("n_decode_total", "Calls of llama_decode()", sum(m.steps for m in metrics)),
    ):
        out.family(f"llamacpp:{name}", "counter", help_text, [((), value)])
    gauges = [state.gauges for state in engines]
    used = (
        ("kv_cache_usage_ratio", "KV cache usage, 1 is all", sum(g.kv_used_ratio for g in gauges) / len(gauges)),
        ("kv_cache_tokens", "Tokens in the KV cache", sum(g.kv_tokens_used for g in gauges)),
    )
    _gauges(out, engines, used)
    return out.text()


def _work(metrics: Sequence[LabMetrics]) -> tuple[int, float, int, float]:
    """Prompt tokens computed, their seconds, tokens generated, their seconds."""
    computed = sum(m.prompt_tokens - m.cached_prompt_tokens - m.external_prompt_tokens for m in metrics)
    generated = int(sum(m.request_generation_tokens.sum for m in metrics))
    return computed, sum(m.prompt_busy_s for m in metrics), generated, sum(m.decode_s.sum for m in metrics)


def _gauges(out: Page, engines: Sequence[EngineState], more: Sequence[tuple[str, str, float]]) -> None:
    metrics = [state.metrics for state in engines]
    work = _work(metrics)
    before = metrics[0].page_read
    metrics[0].page_read = work
    tokens, seconds, generated, decode_s = (now - then for now, then in zip(work, before, strict=True))
    steps, busy = sum(m.steps for m in metrics), sum(m.step_sequences for m in metrics)
    for name, help_text, value in (
        ("prompt_tokens_seconds", "Mean prompt throughput, tokens/s", tokens / seconds if seconds > 0 else 0),
        (
            "predicted_tokens_seconds",
            "Mean generation throughput, tokens/s",
            generated / decode_s if decode_s > 0 else 0,
        ),
        *more,
        ("requests_processing", "Requests processing", sum(s.gauges.requests_running for s in engines)),
        ("requests_deferred", "Requests deferred", sum(s.gauges.requests_waiting for s in engines)),
        ("n_busy_slots_per_decode", "Mean busy slots per call of llama_decode()", busy / steps if steps else 0),
    ):
        out.family(f"llamacpp:{name}", "gauge", help_text, [((), value)])
