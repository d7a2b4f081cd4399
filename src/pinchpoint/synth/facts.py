"""What the probe would find out about the lab's service over HTTP, and no more."""

from pinchpoint.lab.params import LabParams
from pinchpoint.model import Limits, TargetFacts
from pinchpoint.plan import Plan
from pinchpoint.synth.degrade import ENGINE, Degrader

EPOCH_WALL = "2026-06-01T00:00:00Z"
"""Wall clock at the lab's instant 0, as its pages have it, so that the same run is the same files."""
VERSION = "pinchpoint-lab, virtual time"
EVIDENCE = {
    "vllm": "vllm: metric names",
    "sglang": "sglang: metric names",
    "tgi": "tgi: metric names",
    "llama.cpp": "llama.cpp: metric names",
}


def facts_of(plan: Plan, params: LabParams, degrader: Degrader) -> TargetFacts:
    limits, sources, unknown = _limits(params)
    seen = degrader.sees(ENGINE)
    if not seen and params.dialect == "vllm":  # what vLLM tells of its cache stands on the metrics page
        limits = Limits(context_tokens=limits.context_tokens)
        sources = {"context_tokens": sources["context_tokens"]}
    return TargetFacts(
        url=plan.url,
        engine=params.dialect,
        engine_version=VERSION,
        engine_evidence=(EVIDENCE[params.dialect],) if seen else (),
        api="/v1/chat/completions",
        models=(params.model,),
        model=params.model,
        streaming=True,
        usage_in_stream=True,
        limits=limits,
        limit_sources=sources,
        health_path="/health",
        unknown=unknown,
    )


def _limits(params: LabParams) -> tuple[Limits, dict[str, str], tuple[str, ...]]:
    """As probe.limits reads them from what each engine tells."""
    kv_tokens = params.num_kv_blocks() * params.block_size_tokens
    context_tokens = params.max_model_len_tokens()
    if params.dialect == "vllm":
        return (
            Limits(kv_tokens=kv_tokens, context_tokens=context_tokens),
            {"kv_tokens": "cache_config_info", "context_tokens": "/v1/models max_model_len"},
            ("max sequences: vLLM does not expose --max-num-seqs",),
        )
    if params.dialect == "sglang":
        page = "/get_server_info"
        return (
            Limits(params.max_num_seqs, kv_tokens, context_tokens, params.max_num_batched_tokens),
            dict.fromkeys(("max_sequences", "kv_tokens", "context_tokens", "max_batched_tokens"), page),
            (),
        )
    if params.dialect == "tgi":
        return (
            Limits(params.max_num_seqs, kv_tokens, context_tokens, params.max_num_batched_tokens),
            dict.fromkeys(("max_sequences", "kv_tokens", "context_tokens", "max_batched_tokens"), "/info"),
            (),
        )
    return (
        Limits(max_sequences=params.max_num_seqs, kv_tokens=kv_tokens, context_tokens=context_tokens),
        dict.fromkeys(("max_sequences", "kv_tokens", "context_tokens"), "/props"),
        ("max batched tokens: llama.cpp does not tell",),
    )
