"""What the service says of itself beside its metrics: the pages by which clients tell one engine from another.

Members that clients and Pinchpoint's probe read have the imitated engine's names and meanings; the version is the
lab's own, and the server header says pinchpoint-lab whatever is imitated.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from pinchpoint import __version__
from pinchpoint.lab.api import adapter_names
from pinchpoint.lab.params import LabParams

VERSION = f"pinchpoint-lab {__version__}"
OWNERS = {"vllm": "vllm", "sglang": "sglang", "tgi": "text-generation-inference", "llama.cpp": "llamacpp"}
"""owned_by of a model card. TGI puts the model's own name there (tgi's get_model_info), which models() does."""

Page = Callable[[], Any]
"""The object of a page, or b"" for an empty body."""


def pages(params: LabParams, created_s: int) -> dict[str, Page]:
    """GET paths of the imitated engine -> what they answer, for the service as it is now."""
    makers: dict[str, Callable[[LabParams], dict[str, Page]]] = {
        "vllm": _vllm,
        "sglang": _sglang,
        "tgi": _tgi,
        "llama.cpp": _llamacpp,
    }
    return {"/v1/models": lambda: models(params, created_s), **makers[params.dialect](params)}


def encode(page: Page) -> bytes:
    content = page()
    return content if isinstance(content, bytes) else msgspec.json.encode(content)


def models(params: LabParams, created_s: int) -> dict[str, Any]:
    """The base model first, then its adapters."""
    context_tokens = params.max_model_len_tokens()
    owner = params.model if params.dialect == "tgi" else OWNERS[params.dialect]
    cards = []
    for name in (params.model, *adapter_names(params)):
        card: dict[str, Any] = {"id": name, "object": "model", "created": created_s, "owned_by": owner}
        if params.dialect == "llama.cpp":
            card["meta"] = {"n_ctx": context_tokens, "n_params": int(params.model_shape.parameters)}
        elif params.dialect != "tgi":
            card |= {"root": name, "parent": None if name == params.model else params.model}
            card["max_model_len"] = context_tokens
        cards.append(card)
    return {"object": "list", "data": cards}


def kv_tokens(params: LabParams) -> int:
    """Of one engine's pool."""
    return params.num_kv_blocks() * params.block_size_tokens


def _vllm(_params: LabParams) -> dict[str, Page]:
    return {"/health": lambda: b"", "/ping": lambda: b"", "/version": lambda: {"version": VERSION}}


def _sglang(params: LabParams) -> dict[str, Page]:
    def model_info() -> dict[str, Any]:
        return {
            "model_path": params.model,
            "tokenizer_path": params.model,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": "default",
        }

    def server_info() -> dict[str, Any]:
        tokens = kv_tokens(params)
        return {
            "model_path": params.model,
            "served_model_name": params.model,
            "tp_size": params.tensor_parallel,
            "pp_size": params.pipeline_parallel,
            "dp_size": params.data_parallel,
            "context_length": params.max_model_len_tokens(),
            "chunked_prefill_size": params.max_num_batched_tokens if params.chunked_prefill else -1,
            "max_running_requests": params.max_num_seqs,
            "max_total_num_tokens": tokens,
            "page_size": params.block_size_tokens,
            "schedule_policy": params.scheduling,
            "disable_radix_cache": not params.prefix_caching,
            "disable_cuda_graph": not params.cuda_graphs,
            "enable_metrics": True,
            "version": VERSION,
            "internal_states": [
                {
                    "effective_max_running_requests_per_dp": params.max_num_seqs,
                    "memory_usage": {"token_capacity": tokens},
                }
            ],
        }

    return {
        "/health": lambda: b"",
        "/health_generate": lambda: b"",
        "/get_model_info": model_info,
        "/model_info": model_info,
        "/get_server_info": server_info,
        "/server_info": server_info,
    }


def _tgi(params: LabParams) -> dict[str, Page]:
    def info() -> dict[str, Any]:
        context_tokens = params.max_model_len_tokens()
        return {
            "model_id": params.model,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": params.in_flight_limit or 1_000_000,
            "max_best_of": 1,
            "max_stop_sequences": 4,
            "max_input_tokens": context_tokens - 1,
            "max_total_tokens": context_tokens,
            "max_batch_total_tokens": kv_tokens(params),
            "max_batch_prefill_tokens": params.max_num_batched_tokens,
            "max_batch_size": params.max_num_seqs,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": VERSION,
        }

    return {"/health": lambda: b"", "/info": info}


def _llamacpp(params: LabParams) -> dict[str, Page]:
    def props() -> dict[str, Any]:
        # A slot has its own share of the context there; what the pool holds is slots x n_ctx.
        slots = params.max_num_seqs
        return {
            "default_generation_settings": {"n_ctx": min(params.max_model_len_tokens(), kv_tokens(params) // slots)},
            "total_slots": slots,
            "model_alias": params.model,
            "model_path": params.model,
            "build_info": VERSION,
        }

    return {"/health": lambda: {"status": "ok"}, "/props": props}
