"""The metrics page of Hugging Face's Text Generation Inference (router in Rust, metrics-exporter-prometheus).

The page has one set of figures for all shards, so several engines are added up. As on a real page, prompt and output
tokens are known only when a request ends, and queue, inference and per-token times are those of successful requests.
A step with prompt tokens is a prefill batch here, and one that also decodes is a concatenation; TGI itself never mixes
the two. The forward pass is all of a step but choosing tokens and handing them out.
"""

from collections.abc import Sequence

from pinchpoint.lab import bounds
from pinchpoint.lab.metrics import EngineState, Histogram, LabMetrics, merged
from pinchpoint.lab.pages.text import RUST, Labels, Page

PREFILL: Labels = (("method", "prefill"),)
DECODE: Labels = (("method", "decode"),)
QUANTILES = ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")
SUCCESSES = ("stop", "length")


def page(engines: Sequence[EngineState]) -> str:
    out = Page(RUST)
    metrics = [state.metrics for state in engines]
    _counts(out, metrics)
    _gauges(out, engines)
    limit = metrics[0].max_model_len_tokens
    lengths, outputs = bounds.hundredths(limit - 1), bounds.hundredths(limit)

    def together(pick: str) -> Histogram:
        return merged([getattr(m, pick) for m in metrics])

    def one(name: str, help_text: str, pick: str, upper: tuple[float, ...]) -> None:
        found = together(pick)
        out.histogram(f"tgi_{name}", help_text, [((), found)] if found.count else [], upper)

    def two(name: str, help_text: str, part: str = "step") -> None:
        both = ((PREFILL, together(f"prefill_{part}_s")), (DECODE, together(f"decode_{part}_s")))
        out.histogram(f"tgi_{name}", help_text, [pair for pair in both if pair[1].count], bounds.TGI_S)

    one("request_input_length", "Input tokens of a request", "request_prompt_tokens", lengths)
    one("request_max_new_tokens", "Most new tokens of a request", "request_max_num_generation_tokens", outputs)
    one("request_inference_duration", "Inference time of a request", "inference_s", bounds.TGI_S)
    _skipped(out, metrics)
    two("batch_forward_duration", "Forward time of a batch per method")
    one("request_duration", "Time of a request", "e2e_s", bounds.TGI_S)
    one("request_validation_duration", "Validation time of a request", "validation_s", bounds.TGI_S)
    one("request_queue_duration", "Queue time of a request", "queue_s", bounds.TGI_S)
    two("batch_filter_duration", "Filtering a batch and handing out its tokens, per method", "handing")
    two("batch_inference_duration", "Inference time of a batch")
    one("request_mean_time_per_token_duration", "Mean time per token of a request", "mean_token_s", bounds.TGI_S)
    joins = together("join_s")
    out.histogram("tgi_batch_concat_duration", None, [(DECODE, joins)] if joins.count else [], bounds.TGI_S)
    one("request_generated_tokens", "Generated tokens of a request", "request_generation_tokens", outputs)
    two("batch_decode_duration", "Choosing the tokens of a batch, per method", "selection")
    one("batch_next_size", "Size of the next batch", "prefill_batches", bounds.TGI_BATCH)
    return out.text()


def _counts(out: Page, metrics: Sequence[LabMetrics]) -> None:
    def counter(name: str, help_text: str | None, samples: Sequence[tuple[Labels, float]]) -> None:
        """A counter appears when it counts for the first time."""
        out.family(f"tgi_{name}", "counter", help_text, [(labels, n) for labels, n in samples if n])

    successes = sum(m.finished[reason] for m in metrics for reason in SUCCESSES)
    invalid, overloaded = sum(m.invalid_requests for m in metrics), sum(m.rejected_requests for m in metrics)
    counter(
        "batch_concat", None, [((("reason", why),), sum(m.joins[why] for m in metrics)) for why in metrics[0].joins]
    )
    counter("request_success", "Successful requests", [((), successes)])
    counter("request_count", "Requests in all", [((), sum(m.engine_requests for m in metrics))])
    failures: list[tuple[Labels, float]] = [((("err", "validation"),), invalid), ((("err", "overloaded"),), overloaded)]
    counter("request_failure", None, failures)
    decodes = sum(m.decode_steps for m in metrics)
    steps = [(PREFILL, sum(m.steps for m in metrics) - decodes), (DECODE, decodes)]
    counter("batch_inference_success", "Successful inference calls per method", steps)
    counter("batch_inference_count", "Inference calls per method", steps)


def _gauges(out: Page, engines: Sequence[EngineState]) -> None:
    gauges = [state.gauges for state in engines]
    for name, help_text, value in (
        ("queue_size", "Requests in the queue", sum(g.requests_waiting for g in gauges)),
        ("batch_current_max_tokens", "Most tokens of the current batch", sum(g.batch_max_tokens for g in gauges)),
        ("batch_current_size", "Size of the current batch", sum(g.requests_running for g in gauges)),
    ):
        out.family(f"tgi_{name}", "gauge", help_text, [((), value)])


def _skipped(out: Page, metrics: Sequence[LabMetrics]) -> None:
    """Speculated tokens per verification; one observation of 0 per token where nothing is drafted."""
    generated, accepted = sum(m.generation_tokens for m in metrics), sum(m.accepted_tokens for m in metrics)
    drafts = sum(m.drafts for m in metrics)
    longest = max(len(m.accepted_per_position) for m in metrics)
    beyond = [
        sum(m.accepted_per_position[place] for m in metrics if place < len(m.accepted_per_position)) / max(1, drafts)
        for place in range(longest)
    ]  # share of drafts of which more than `place` tokens were accepted
    samples: list[tuple[Labels, float]] = []
    for quantile in QUANTILES:
        skipped = sum(1 for share in beyond if share > 1 - float(quantile))
        samples.append(((("quantile", quantile),), skipped))
    if generated:
        out.quantiles("tgi_request_skipped_tokens", "Speculated tokens", samples, generated - accepted, accepted)
