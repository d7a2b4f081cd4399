"""Each engine is recognised by what it answers, with the limits it tells and the reasons for those it does not."""

import os
from pathlib import Path

import pytest
from fake_engine import CHAT, Answer, FakeEngine, model_list

from pinchpoint.model import Limits, TargetFacts
from pinchpoint.probe import probe
from pinchpoint.probe.exchange import Page
from pinchpoint.probe.signatures import identify, load_signatures

DATA = Path(__file__).parents[2] / "data" / "metrics"
VLLM = (DATA / "vllm_v1.prom").read_text()


def said(facts: TargetFacts, start: str) -> str:
    """The one sentence in `unknown` that starts so."""
    (sentence,) = [sentence for sentence in facts.unknown if sentence.startswith(start)]
    return sentence


def test_vllm_tells_kv_size_and_context_but_not_its_sequence_limit(engine: FakeEngine) -> None:
    engine.headers = {"Server": "uvicorn"}
    engine.pages = {
        "/v1/models": model_list("smollm2", owned_by="vllm", max_model_len=2048),
        "/version": {"version": "0.32.0"},
        "/metrics": VLLM,
        "/health": "",
    }
    facts = probe(engine.url)
    assert (facts.engine, facts.engine_version) == ("vllm", "0.32.0")
    assert "metric names start with vllm:" in facts.engine_evidence
    assert facts.api == CHAT
    assert (facts.models, facts.model) == (("smollm2",), "smollm2")
    assert (facts.streaming, facts.usage_in_stream) == (True, True)
    labels = dict(part.split("=", 1) for part in VLLM.split("cache_config_info{")[1].split("}")[0].split(","))
    blocks, block = (int(labels[key].strip('"')) for key in ("num_gpu_blocks", "block_size"))
    assert facts.limits == Limits(kv_tokens=blocks * block, context_tokens=2048)
    assert facts.limit_sources["context_tokens"] == "max_model_len of /v1/models"
    assert "--max-num-seqs" in said(facts, "max sequences:")
    assert facts.metrics_url == engine.url + "/metrics"
    assert facts.health_path == "/health"
    assert facts.server_pids == (os.getpid(),)


def test_vllm_with_data_parallel_engines_adds_up_their_kv(engine: FakeEngine) -> None:
    line = 'vllm:cache_config_info{{block_size="16",engine="{}",num_gpu_blocks="100"}} 1.0\n'
    engine.pages = {
        "/v1/models": model_list("m", owned_by="vllm"),
        "/metrics": line.format(0) + line.format(1) + "vllm:num_requests_running 0\n",
    }
    assert probe(engine.url).limits.kv_tokens == 3200


def test_vllm_that_hides_its_blocks_leaves_kv_unknown(engine: FakeEngine) -> None:
    engine.pages = {
        "/v1/models": model_list("m", owned_by="vllm"),
        "/metrics": 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n',
    }
    facts = probe(engine.url)
    assert facts.limits.kv_tokens is None
    assert "num_gpu_blocks" in said(facts, "KV cache size:")


@pytest.mark.parametrize("info_path", ["/get_server_info", "/server_info"])
def test_sglang_tells_its_limits(engine: FakeEngine, info_path: str) -> None:
    engine.pages = {
        "/v1/models": model_list("meta-llama/Llama-3.1-8B-Instruct", owned_by="sglang", max_model_len=131072),
        info_path: {
            "model_path": "meta-llama/Llama-3.1-8B-Instruct",
            "tp_size": 1,
            "context_length": None,
            "chunked_prefill_size": 8192,
            "max_running_requests": None,
            "version": "0.5.2",
            "internal_states": [
                {
                    "effective_max_running_requests_per_dp": 2048,
                    "memory_usage": {"weight": 15.0, "kvcache": 50.0, "token_capacity": 443872},
                }
            ],
        },
        "/get_model_info": {"model_path": "meta-llama/Llama-3.1-8B-Instruct", "is_generation": True},
        "/metrics": (DATA / "sglang.prom").read_text(),
        "/health": "",
    }
    facts = probe(engine.url)
    assert (facts.engine, facts.engine_version) == ("sglang", "0.5.2")
    assert facts.limits == Limits(max_sequences=2048, kv_tokens=443872, context_tokens=131072, max_batched_tokens=8192)
    assert facts.health_path == "/v1/models"  # its /health generates a token


def test_sglang_without_metrics_is_told_which_flag_turns_them_on(engine: FakeEngine) -> None:
    engine.pages = {
        "/v1/models": model_list("m", owned_by="sglang"),
        "/get_server_info": {"model_path": "m", "tp_size": 1, "max_running_requests": 64, "max_total_num_tokens": 9000},
    }
    facts = probe(engine.url)
    assert facts.metrics_url is None
    assert "--enable-metrics" in said(facts, "metrics:")
    assert (facts.limits.max_sequences, facts.limits.kv_tokens) == (64, 9000)
    assert "token_capacity" not in facts.limit_sources["kv_tokens"]


TGI_INFO = {
    "model_id": "bigscience/bloom-560m",
    "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
    "model_pipeline_tag": "text-generation",
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": 1024,
    "max_total_tokens": 2048,
    "max_batch_total_tokens": 32000,
    "max_batch_size": None,
    "validation_workers": 2,
    "max_client_batch_size": 32,
    "router": "text-generation-router",
    "version": "2.4.1",
}


def test_tgi_tells_its_limits_and_that_one_is_of_admission(engine: FakeEngine) -> None:
    engine.pages = {"/info": TGI_INFO, "/metrics": (DATA / "tgi.prom").read_text(), "/health": ""}
    facts = probe(engine.url)
    assert (facts.engine, facts.engine_version) == ("tgi", "2.4.1")
    assert facts.models == ("bigscience/bloom-560m",)
    assert facts.limits == Limits(max_sequences=128, kv_tokens=32000, context_tokens=2048)
    assert "admission limit" in facts.limit_sources["max_sequences"]
    assert facts.health_path == "/info"


# Recorded from llama.cpp's server; the sampling parameters were left out.
LLAMACPP_PROPS = {
    "default_generation_settings": {"params": {"temperature": 0.8}, "n_ctx": 2048},
    "total_slots": 4,
    "model_alias": "smollm2",
    "build_info": "b0-unknown",
}


@pytest.mark.parametrize("status", [404, 501])
def test_llamacpp_without_metrics_is_told_which_flag_turns_them_on(engine: FakeEngine, status: int) -> None:
    engine.headers = {"Server": "llama.cpp"}
    error = {"error": {"code": status, "message": "This server does not support metrics endpoint.", "type": "x"}}
    engine.pages = {
        "/v1/models": model_list("smollm2", owned_by="llamacpp", aliases=["smol", "smollm2"], meta={"n_ctx": 2048}),
        "/props": LLAMACPP_PROPS,
        "/metrics": (status, error),
        "/health": {"status": "ok"},
    }
    facts = probe(engine.url, model="smol")
    assert (facts.engine, facts.engine_version) == ("llama.cpp", "b0-unknown")
    assert facts.model == "smol"
    assert facts.limits == Limits(max_sequences=4, kv_tokens=8192, context_tokens=2048)
    assert facts.metrics_url is None
    assert said(facts, "metrics:") == f"metrics: /metrics answered HTTP {status}; start llama-server with --metrics"


def test_tensorrt_llm_has_its_metrics_page_elsewhere_and_json_is_not_one(engine: FakeEngine) -> None:
    engine.pages = {
        "/v1/models": model_list("m", owned_by="tensorrt_llm"),
        "/version": {"version": "1.2.0"},
        "/metrics": [{"iter": 1, "iterLatencyMS": 12.0}],
        "/prometheus/metrics": (
            "trtllm_max_batch_size_static 64\ntrtllm_max_num_tokens_runtime 8192\n"
            'trtllm_kv_cache_max_blocks{rank="0"} 100\ntrtllm_kv_cache_tokens_per_block 32\n'
        ),
    }
    facts = probe(engine.url)
    assert facts.engine == "tensorrt-llm"
    assert facts.metrics_url == engine.url + "/prometheus/metrics"
    assert facts.limits == Limits(max_sequences=64, kv_tokens=3200, max_batched_tokens=8192)


def test_triton_is_recognised_though_it_has_no_chat_api(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: None
    engine.pages = {
        "/v2": {"name": "triton", "version": "2.51.0", "extensions": ["classification"]},
        "/v2/health/live": "",
    }
    facts = probe(engine.url)
    assert (facts.engine, facts.engine_version, facts.api) == ("triton", "2.51.0", None)
    assert said(facts, "API:")
    assert "8002" in said(facts, "metrics:")
    assert facts.health_path == "/v2/health/live"


def test_tensorflow_serving_is_recognised_by_its_complaint(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: Answer({"error": f"Malformed request: POST {path}"}, 404)
    engine.pages = {
        "/v1/models": (400, {"error": "Malformed request: GET /v1/models"}),
        "/monitoring/prometheus/metrics": ':tensorflow:serving:request_count{model_name="m",status="OK"} 3\n',
    }
    facts = probe(engine.url)
    assert facts.engine == "tf-serving"
    assert facts.metrics_url == engine.url + "/monitoring/prometheus/metrics"


def test_ollama_is_recognised_and_its_latest_tag_is_implied(engine: FakeEngine) -> None:
    engine.pages = {
        "/": "Ollama is running",
        "/api/version": {"version": "0.12.3"},
        "/api/tags": {"models": [{"name": "llama3.2:latest", "model": "llama3.2:latest"}]},
        "/v1/models": model_list("llama3.2:latest", owned_by="library"),
    }
    facts = probe(engine.url, model="llama3.2")
    assert (facts.engine, facts.engine_version, facts.model) == ("ollama", "0.12.3", "llama3.2")
    assert facts.health_path == "/api/version"
    assert "OLLAMA_NUM_PARALLEL" in said(facts, "max sequences:")
    assert said(facts, "metrics:").endswith("Ollama has no metrics page")


def test_anything_else_with_the_api_is_openai_compatible(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("gpt-x", owned_by="acme", context_length=8192)}
    facts = probe(engine.url)
    assert (facts.engine, facts.engine_version, facts.engine_evidence) == ("openai-compatible", None, ())
    assert facts.limits == Limits(context_tokens=8192)
    assert facts.health_path == "/v1/models"


def page(path: str, body: bytes, **headers: str) -> Page:
    return Page(path, 200, headers, body, True)


def test_weak_evidence_names_no_engine() -> None:
    pages = {"/version": page("/version", b'{"version": "1.0"}')}
    assert identify(load_signatures(), pages, None).engine is None


def test_the_heavier_evidence_wins_and_a_tie_is_said() -> None:
    signatures = load_signatures()
    models = page("/v1/models", b'{"data": [{"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "sglang"}]}')
    tie = identify(signatures, {"/v1/models": models}, None)
    assert tie.engine is not None
    assert (tie.engine.name, tie.rival) == ("vllm", "sglang")
    metrics = page("/metrics", b"sglang:num_running_reqs 1\n")
    clear = identify(signatures, {"/v1/models": models}, metrics)
    assert clear.engine is not None
    assert (clear.engine.name, clear.rival) == ("sglang", None)


def test_every_engine_can_reach_the_minimum_weight_by_its_own_evidence() -> None:
    signatures = load_signatures()
    for engine in signatures.engine:
        assert sum(test.weight for test in engine.evidence) >= signatures.minimum_weight
        assert max(test.weight for test in engine.evidence) >= signatures.minimum_weight
        assert set(engine.hints) <= {*Limits.__struct_fields__, "metrics"}
