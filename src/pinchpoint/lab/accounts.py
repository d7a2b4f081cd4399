"""What the engine counts, at the instants where vLLM counts it: admission, first token, verified draft, last token."""

from pinchpoint.lab.metrics import LabMetrics
from pinchpoint.lab.sequence import Sequence


def count_admission(metrics: LabMetrics, sequence: Sequence, image_tokens: int, caching: bool) -> None:
    """image_tokens: those that the encoder computes for it. A request is looked up once, however often it is evicted
    later."""
    metrics.encoder_tokens += image_tokens
    if sequence.preemptions:
        return
    if caching:
        metrics.prefix_queries_tokens += sequence.prompt_tokens
        metrics.prefix_hit_tokens += sequence.cached_tokens
    if sequence.request.image_tokens:
        metrics.mm_queries += 1
        metrics.mm_hits += image_tokens == 0


def count_eviction(metrics: LabMetrics, sequence: Sequence) -> None:
    """It has lost its blocks; what it has said so far stays said."""
    metrics.preemptions += 1
    metrics.preempted_prompt_tokens += sequence.prompt_tokens
    metrics.preempted_output_tokens += sequence.output_tokens


def count_draft(metrics: LabMetrics, draft_tokens: int, accepted: int) -> None:
    """A draft was verified; accepted ones count whether or not the request still wants them."""
    metrics.drafts += 1
    metrics.draft_tokens += draft_tokens
    metrics.accepted_tokens += accepted
    per_position = metrics.accepted_per_position
    while len(per_position) < draft_tokens:
        per_position.append(0)
    for position in range(accepted):
        per_position[position] += 1


def count_first_token(metrics: LabMetrics, sequence: Sequence, now_s: float) -> None:
    """A prompt counts here, whole and once, wherever its KV came from."""
    metrics.ttft_s.observe(now_s - sequence.arrival_s)
    metrics.prompt_tokens += sequence.prompt_tokens
    metrics.cached_prompt_tokens += sequence.cached_tokens
    metrics.external_prompt_tokens += sequence.external_tokens
    if sequence.scheduled_s is not None:
        metrics.prompt_busy_s += now_s - sequence.scheduled_s


def count_end(metrics: LabMetrics, sequence: Sequence, now_s: float) -> None:
    """It got its last token."""
    scheduled_s = now_s if sequence.scheduled_s is None else sequence.scheduled_s
    decode_s = now_s - sequence.first_token_s
    computed_tokens = sequence.prompt_tokens - sequence.cached_tokens - sequence.external_tokens
    metrics.finished[sequence.finish_reason] += 1
    metrics.longest_sequence_tokens = max(metrics.longest_sequence_tokens, sequence.known_tokens)
    metrics.request_prompt_tokens.observe(float(sequence.prompt_tokens))
    metrics.request_generation_tokens.observe(float(sequence.output_tokens))
    metrics.request_max_num_generation_tokens.observe(float(sequence.max_output_tokens))
    metrics.request_params_max_tokens.observe(float(sequence.max_output_tokens))
    metrics.request_prefill_kv_computed_tokens.observe(float(computed_tokens))
    metrics.request_num_preemptions.observe(float(sequence.preemptions))
    metrics.e2e_s.observe(now_s - sequence.arrival_s)
    metrics.queue_s.observe(scheduled_s - sequence.queued_s)
    metrics.inference_s.observe(now_s - scheduled_s)
    metrics.prefill_s.observe(sequence.first_token_s - scheduled_s)
    metrics.decode_s.observe(decode_s)
    metrics.mean_token_s.observe((now_s - scheduled_s) / sequence.output_tokens)
    if sequence.output_tokens > 1:
        metrics.tpot_s.observe(decode_s / (sequence.output_tokens - 1))
