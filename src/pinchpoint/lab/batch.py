"""What a batch computes: the sums over its sequences that the cost of a step depends on.

Every sequence has `scheduled_tokens` for the step. Not here: who is in the batch (engine.py), what it costs (cost.py).
"""

from collections.abc import Iterable

from pinchpoint.lab.sequence import Sequence
from pinchpoint.lab.work import StepWork


def sum_plain(work: StepWork, running: list[Sequence]) -> None:
    """One token for each, none of a prompt: the short way for most steps. Adds nothing else to `work`."""
    n = len(running)
    kv_tokens = n
    for sequence in running:
        kv_tokens += sequence.computed_tokens
    work.sequences = work.tokens = work.sampled_rows = n
    work.kv_tokens = kv_tokens
    work.attention_pairs = kv_tokens - n / 2


def sum_mixed(work: StepWork, scheduled: Iterable[Sequence]) -> int:
    """Prompts, recomputed tokens and drafts among them. Returns how many tokens are computed again after an
    eviction."""
    sequences = tokens = kv_tokens = prefill_tokens = sampled_rows = draft_tokens = recomputed_tokens = 0
    pairs = 0.0
    for sequence in scheduled:
        n, past = sequence.scheduled_tokens, sequence.computed_tokens
        sequences += 1
        tokens += n
        kv_tokens += past + n
        pairs += n * (past + n / 2)
        left = sequence.prompt_tokens + sequence.output_tokens - past - n
        if sequence.output_tokens and left == 1 - n:  # decoding, with n - 1 draft tokens
            sampled_rows += n
            draft_tokens += n - 1
            continue
        prefill_tokens += n
        sampled_rows += left <= 0
        if past < sequence.highest_computed_tokens:
            recomputed_tokens += min(past + n, sequence.highest_computed_tokens) - past
    work.sequences = sequences
    work.tokens = tokens
    work.kv_tokens = kv_tokens
    work.attention_pairs = pairs
    work.prefill_tokens = prefill_tokens
    work.sampled_rows = sampled_rows
    work.draft_tokens = draft_tokens
    return recomputed_tokens
