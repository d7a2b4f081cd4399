"""About how many requests per second a service carries, from its step cost alone: for choosing loads, not for judging.

No queue, no chance, mean lengths. Faults outside the engine are not in it.
"""

from pinchpoint.lab.cost import CostModel
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.work import StepWork

SLOWDOWN_MAX = 2.5
"""Time per token at the rough capacity over that of a single request: what users are commonly promised."""
KV_USED_RATIO_MAX = 0.9


def lone_token_s(params: LabParams, input_tokens: float, output_tokens: float) -> float:
    """Time per token of a request that has the service for itself."""
    context = input_tokens + output_tokens / 2
    work = StepWork(tokens=1, sequences=1, attention_pairs=context, kv_tokens=round(context), sampled_rows=1)
    return CostModel(params).step_s(work)


def rough_capacity_rps(params: LabParams, input_tokens: float, output_tokens: float) -> float:
    """Requests per second at the largest batch that keeps each token within SLOWDOWN_MAX times its unloaded time.

    While b sequences decode, a request takes output_tokens / b decode steps and its own prompt's share of a step; X is
    the inverse. Prompts take the share X * prompt_s of the time, which stretches the time per token.
    """
    cost = CostModel(params)
    context = input_tokens + output_tokens / 2
    prompt = StepWork(
        tokens=round(input_tokens),
        sequences=1,
        attention_pairs=input_tokens**2 / 2,
        kv_tokens=round(input_tokens),
        prefill_tokens=round(input_tokens),
        sampled_rows=1,
    )
    idle = cost.step_s(StepWork())
    prompt_s = max(cost.step_s(prompt) - idle, idle / 100)
    pool_tokens = params.num_kv_blocks() * params.block_size_tokens
    single_s = best_rps = 0.0
    batch = 1
    while batch <= params.max_num_seqs and batch * context <= max(context, KV_USED_RATIO_MAX * pool_tokens):
        decode_s = cost.step_s(
            StepWork(
                tokens=batch,
                sequences=batch,
                attention_pairs=batch * context,
                kv_tokens=round(batch * context),
                sampled_rows=batch,
            )
        )
        single_s = single_s or decode_s
        rate_rps = 1 / (max(output_tokens, 1) * decode_s / batch + prompt_s)
        token_s = decode_s / (1 - min(rate_rps * prompt_s, 0.99))
        if token_s > SLOWDOWN_MAX * single_s and best_rps:
            break
        best_rps = max(best_rps, rate_rps)
        batch = batch + 1 if batch < 8 else batch + batch // 8
    engines = params.data_parallel * params.front.replicas
    api_s = params.api_request_s + output_tokens * params.api_chunk_s
    ceiling_rps = params.front.api_processes * params.front.replicas / api_s
    return min(best_rps * engines, ceiling_rps)
