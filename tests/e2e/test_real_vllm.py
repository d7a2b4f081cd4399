"""Real vLLM on the CPU with a real small model (`make test-vllm`): every API that it serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.real_engines import MODEL_NAME, needs, pinchpoint, records_of_load, vllm

pytestmark = needs("vllm")

INPUT_TOKENS, OUTPUT_TOKENS = 60, 16
SHORT = ("--model", MODEL_NAME, "--concurrency", 2, "--requests", 6, "--seed", 7)
LENGTHS = ("--input-tokens", INPUT_TOKENS, "--output-tokens", OUTPUT_TOKENS)


@pytest.fixture(scope="module")
def generating() -> Iterator[str]:
    with vllm("--enable-scale-out") as url:
        yield url


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
def test_prompts_and_answers_are_exactly_as_long_as_planned(
    generating: str, tmp_path: Path, api: str, streamed: str
) -> None:
    records = records_of_load(tmp_path / "run", generating, "--api", api, streamed, *SHORT, *LENGTHS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert {record["token_source"] for record in records} == {"usage"}
    assert {(record["input_tokens"], record["output_tokens"]) for record in records} == {(INPUT_TOKENS, OUTPUT_TOKENS)}
    assert {record["finish_reason"] for record in records} <= {"length", "max_output_tokens", "completed", "incomplete"}
    assert all((record["first_token_ns"] < record["last_token_ns"]) == (streamed == "--stream") for record in records)


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_anthropic_messages_end_when_the_model_likes_because_vllm_takes_no_minimum_there(
    generating: str, tmp_path: Path, streamed: str
) -> None:
    records = records_of_load(tmp_path / "run", generating, "--api", "messages", streamed, *SHORT, *LENGTHS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert {record["input_tokens"] for record in records} == {INPUT_TOKENS}
    assert all(0 < record["output_tokens"] <= OUTPUT_TOKENS for record in records)
    assert {record["finish_reason"] for record in records} <= {"max_tokens", "end_turn"}


def test_the_probe_finds_chat_its_limits_and_its_metrics(generating: str) -> None:
    facts = pinchpoint("probe", generating)
    assert (facts["engine"], facts["model"], facts["api"]) == ("vllm", MODEL_NAME, "/v1/chat/completions")
    assert facts["limits"]["context_tokens"] == 2048
    assert facts["metrics_url"] == f"{generating}/metrics"


@pytest.fixture(scope="module")
def pooling(request: pytest.FixtureRequest) -> Iterator[str]:
    with vllm("--runner", "pooling", "--convert", "embed") as url:
        yield url


@pytest.mark.parametrize("api", ["embeddings", "rerank", "score"])
def test_apis_that_generate_nothing_are_timed_as_a_whole(pooling: str, tmp_path: Path, api: str) -> None:
    records = records_of_load(tmp_path / "run", pooling, "--api", api, *SHORT, "--input-tokens", INPUT_TOKENS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert all(record["input_tokens"] > 0 and not record["output_tokens"] for record in records)
    assert {record["requested_output_tokens"] for record in records} == {0}
