"""The limits a service tells about itself, each with where it was read. What it does not tell stays None.

The surprising thing: none of these numbers is the effective capacity. They bound it: sequences by slots, tokens by
the KV cache; which bound bites first depends on the workload.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pinchpoint.model import Limits
from pinchpoint.probe.exchange import HTTP_OK, Page
from pinchpoint.probe.signatures import model_cards

_CACHE_CONFIG = re.compile(r"^(?:ray_)?vllm[:_]cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"\\]*(?:\\.[^"\\]*)*)"')


class Told(msgspec.Struct, frozen=True):
    """limits, and field of Limits -> where it was read."""

    limits: Limits
    sources: dict[str, str]


class Collected(msgspec.Struct, frozen=True):
    """What the probe has fetched so far."""

    pages: Mapping[str, Page]
    metrics: Page | None
    model: str | None


Found = dict[str, tuple[int, str]]


def read_limits(engine: str, collected: Collected) -> Told:
    """Limits of the engine as told by pages already fetched. Asks nothing."""
    found = _context_from_card(collected)
    reader = _READERS.get(engine)
    if reader is not None:
        found |= reader(collected)
    return Told(
        Limits(**{name: value for name, (value, _) in found.items()}),
        {name: source for name, (_, source) in found.items()},
    )


def _count(value: Any) -> int | None:
    """A positive whole number, also when it comes as text or float."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(float(value))
    except (ValueError, OverflowError):
        return None
    return number if number > 0 else None


def _object(collected: Collected, *paths: str) -> tuple[dict[str, Any], str]:
    for path in paths:
        page = collected.pages.get(path)
        if page is not None and page.status == HTTP_OK and page.object():
            return page.object(), path
    return {}, paths[0]


def _pick(content: dict[str, Any], path: str, wanted: dict[str, str]) -> Found:
    """field of Limits -> key in content."""
    found: Found = {}
    for field, key in wanted.items():
        value = _count(content.get(key))
        if value is not None:
            found[field] = (value, f"{key} of {path}")
    return found


def _context_from_card(collected: Collected) -> Found:
    for card in model_cards(collected.pages.get("/v1/models")):
        if collected.model is None or card.get("id") == collected.model:
            for key in ("max_model_len", "context_length", "context_window"):
                value = _count(card.get(key))
                if value is not None:
                    return {"context_tokens": (value, f"{key} of /v1/models")}
    return {}


def _vllm(collected: Collected) -> Found:
    text = collected.metrics.text if collected.metrics is not None else ""
    kv_tokens = 0
    for labels_text in _CACHE_CONFIG.findall(text):  # one line per data-parallel engine
        labels = dict(_LABEL.findall(labels_text))
        blocks, block_tokens = _count(labels.get("num_gpu_blocks")), _count(labels.get("block_size"))
        if blocks is None or block_tokens is None:
            return {}
        kv_tokens += blocks * block_tokens
    return {"kv_tokens": (kv_tokens, "num_gpu_blocks * block_size of vllm:cache_config_info")} if kv_tokens else {}


def _sglang(collected: Collected) -> Found:
    info, path = _object(collected, "/get_server_info", "/server_info")
    states = info.get("internal_states")
    state = states[0] if isinstance(states, list) and states and isinstance(states[0], dict) else {}
    memory = state.get("memory_usage")
    found = _pick(
        memory if isinstance(memory, dict) else {}, f"{path} internal_states", {"kv_tokens": "token_capacity"}
    )
    found |= _pick(state, f"{path} internal_states", {"max_sequences": "effective_max_running_requests_per_dp"})
    return found | _pick(
        info,
        path,
        {
            "max_sequences": "max_running_requests",
            "kv_tokens": "max_total_num_tokens",
            "context_tokens": "context_length",
            "max_batched_tokens": "chunked_prefill_size",
        },
    )


def _tgi(collected: Collected) -> Found:
    info, path = _object(collected, "/info")
    found = _pick(
        info,
        path,
        {
            "max_sequences": "max_batch_size",
            "context_tokens": "max_total_tokens",
            "kv_tokens": "max_batch_total_tokens",
            "max_batched_tokens": "max_batch_prefill_tokens",
        },
    )
    admitted = _count(info.get("max_concurrent_requests"))
    if "max_sequences" not in found and admitted is not None:
        found["max_sequences"] = (
            admitted,
            "max_concurrent_requests of /info: an admission limit, more than that are answered 429; the batch is "
            "bounded by tokens",
        )
    return found


def _llamacpp(collected: Collected) -> Found:
    props, path = _object(collected, "/props")
    found = _pick(props, path, {"max_sequences": "total_slots"})
    settings = props.get("default_generation_settings")
    found |= _pick(settings if isinstance(settings, dict) else {}, f"{path}, per slot", {"context_tokens": "n_ctx"})
    if "max_sequences" in found and "context_tokens" in found:
        slots, context_tokens = found["max_sequences"][0], found["context_tokens"][0]
        found["kv_tokens"] = (slots * context_tokens, f"total_slots * n_ctx of {path}; less with --kv-unified")
    return found


def _metric(collected: Collected, name: str, label: str = "") -> int | None:
    """Value of the first sample of `name` whose labels hold the text `label`."""
    if collected.metrics is None:
        return None
    for match in re.finditer(rf"^{re.escape(name)}(\{{[^\n]*\}})?[ \t]+(\S+)", collected.metrics.text, re.MULTILINE):
        if label in (match.group(1) or ""):
            return _count(match.group(2))
    return None


def _tensorrt_llm(collected: Collected) -> Found:
    found: Found = {}
    for field, name in (
        ("max_sequences", "trtllm_max_batch_size_static"),
        ("max_batched_tokens", "trtllm_max_num_tokens_runtime"),
    ):
        value = _metric(collected, name)
        if value is not None:
            found[field] = (value, name)
    blocks, tokens = (
        _metric(collected, "trtllm_kv_cache_max_blocks"),
        _metric(collected, "trtllm_kv_cache_tokens_per_block"),
    )
    if blocks is not None and tokens is not None:
        found["kv_tokens"] = (blocks * tokens, "trtllm_kv_cache_max_blocks * trtllm_kv_cache_tokens_per_block")
    return found


def _triton(collected: Collected) -> Found:
    found: Found = {}
    blocks_name = "nv_trt_llm_kv_cache_block_metrics"
    blocks = _metric(collected, blocks_name, 'kv_cache_block_type="max"')
    tokens = _metric(collected, blocks_name, 'kv_cache_block_type="tokens_per"')
    if blocks is not None and tokens is not None:
        found["kv_tokens"] = (blocks * tokens, f"max * tokens_per of {blocks_name}")
    requests = _metric(collected, "nv_trt_llm_request_metrics", 'request_type="max"')
    if requests is not None:
        found["max_sequences"] = (requests, "max of nv_trt_llm_request_metrics")
    return found


_READERS: dict[str, Callable[[Collected], Found]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "tgi": _tgi,
    "llama.cpp": _llamacpp,
    "tensorrt-llm": _tensorrt_llm,
    "triton": _triton,
}
