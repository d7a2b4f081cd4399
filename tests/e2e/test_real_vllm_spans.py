"""Real vLLM on the CPU exports its `llm_request` spans over gRPC, and they are joined to our requests."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.support.real_engines import MODEL_NAME, free_ports, needs, pinchpoint, records_of_load, vllm

pytestmark = needs("vllm")

REQUESTS = 12
LOAD = ("--model", MODEL_NAME, "--concurrency", 4, "--requests", REQUESTS, "--seed", 7)
LENGTHS = ("--input-tokens", 60, "--output-tokens", 16)
LATENCIES = ("time_in_queue", "time_in_model_prefill", "time_in_model_decode", "time_to_first_token", "e2e")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose spans came while it went on."""
    path = tmp_path_factory.mktemp("vllm") / "run"
    http_port, grpc_port = free_ports(2)
    with vllm("--otlp-traces-endpoint", f"grpc://127.0.0.1:{grpc_port}") as url:
        listen = f"127.0.0.1:{http_port}:{grpc_port}"
        records = records_of_load(path, url, "--api", "chat", *LOAD, *LENGTHS, "--otlp", listen)
        assert {record["status"] for record in records} == {"ok"}
    return path


def test_every_request_has_its_span_with_the_engines_own_account(run: Path) -> None:
    spans = [row for row in pq.read_table(run / "spans.parquet").to_pylist() if row["name"] == "llm_request"]
    ours = [row for row in spans if row["request_id"] is not None]
    assert len(ours) == REQUESTS == len({row["request_id"] for row in ours})
    for row in ours:
        told = json.loads(row["attributes_json"])
        assert all(told[f"gen_ai.latency.{name}"] >= 0 for name in LATENCIES)
        assert (told["gen_ai.usage.prompt_tokens"], told["gen_ai.usage.completion_tokens"]) == (60, 16)


def test_the_span_lies_inside_its_request_and_its_parts_are_the_requests_time(run: Path) -> None:
    records = {row["request_id"]: row for row in pq.read_table(run / "records.parquet").to_pylist()}
    for row in pq.read_table(run / "spans.parquet").to_pylist():
        if row["request_id"] is not None and row["name"] == "llm_request":
            record = records[row["request_id"]]
            assert record["sent_ns"] < row["start_ns"] < row["end_ns"] < record["end_ns"] + 1_000_000
    found = pinchpoint("spans", run)
    assert found["traced"] == found["requests"] == REQUESTS
    shares = {stage["name"]: stage["share_ratio"] for stage in found["stages"]}
    assert {"network", "engine", "prefill", "decode"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["prefill"] + shares["decode"] + shares.get("queue", 0.0) > shares["network"]
    (clock,) = (clock for clock in found["clocks"] if clock["offset_s"] is not None)
    assert clock["offset_s"] == 0.0  # it is the same clock
