"""Real vLLM on the CPU with a real small model (`make test-vllm`): every API that it serves."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.real_engines import MODEL_NAME, needs, otlp_sink, pinchpoint, records_of_load, vllm

pytestmark = needs("vllm")

INPUT_TOKENS, OUTPUT_TOKENS = 60, 16
SHORT = ("--model", MODEL_NAME, "--concurrency", 2, "--requests", 6, "--seed", 7)
LENGTHS = ("--input-tokens", INPUT_TOKENS, "--output-tokens", OUTPUT_TOKENS)


SPANS_LIMIT_S = 30.0  # vLLM sends them every 5 s


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans") / "spans.jsonl"


@pytest.fixture(scope="module")
def generating(spans: Path) -> Iterator[str]:
    with otlp_sink(spans) as endpoint, vllm("--enable-scale-out", "--otlp-traces-endpoint", endpoint) as url:
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
    if streamed == "--stream":
        assert all(record["first_token_ns"] < record["last_token_ns"] for record in records)
    else:  # when the first token was there is not known
        assert {record["first_token_ns"] for record in records} == {None}


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_anthropic_messages_end_when_the_model_likes_because_vllm_takes_no_minimum_there(
    generating: str, tmp_path: Path, streamed: str
) -> None:
    records = records_of_load(tmp_path / "run", generating, "--api", "messages", streamed, *SHORT, *LENGTHS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert {record["input_tokens"] for record in records} == {INPUT_TOKENS}
    assert all(0 < record["output_tokens"] <= OUTPUT_TOKENS for record in records)
    assert {record["finish_reason"] for record in records} <= {"max_tokens", "end_turn"}


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_the_api_of_token_numbers_takes_and_gives_exactly_as_many_as_planned(
    generating: str, tmp_path: Path, streamed: str
) -> None:
    records = records_of_load(tmp_path / "run", generating, "--api", "vllm-tokens", streamed, *SHORT, *LENGTHS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert {(record["requested_input_tokens"], record["output_tokens"]) for record in records} == {
        (INPUT_TOKENS, OUTPUT_TOKENS)
    }


def test_the_probe_finds_chat_its_limits_and_its_metrics(generating: str) -> None:
    facts = pinchpoint("probe", generating)
    assert (facts["engine"], facts["model"], facts["api"]) == ("vllm", MODEL_NAME, "/v1/chat/completions")
    assert facts["limits"]["context_tokens"] == 2048
    assert facts["metrics_url"] == f"{generating}/metrics"


def requests_in(spans: Path) -> list[dict[str, int]]:
    """Token counts of each span of a request."""
    exports = [json.loads(line) for line in spans.read_text().splitlines() if line.endswith("}")]
    scopes = [scope for export in exports for resource in export["resourceSpans"] for scope in resource["scopeSpans"]]
    return [
        {one["key"]: int(one["value"]["intValue"]) for one in span["attributes"] if "intValue" in one["value"]}
        for scope in scopes
        for span in scope["spans"]
        if span["name"] == "llm_request"
    ]


def test_its_own_spans_tell_the_same_counts_and_a_load_can_be_learnt_from_them(
    generating: str, spans: Path, tmp_path: Path
) -> None:
    odd = ("--input-tokens", 77, "--output-tokens", 9)  # lengths that no other test asks for
    enough = ("--model", MODEL_NAME, "--concurrency", 4, "--requests", 20, "--seed", 7)  # to learn from
    records = records_of_load(tmp_path / "run", generating, "--api", "chat", *enough, *odd)

    def told() -> int:
        """Spans of these requests; vLLM sends them in batches, those of earlier tests among them."""
        keys = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens")
        return [tuple(one[key] for key in keys) for one in requests_in(spans)].count((77, 9))

    limit = time.monotonic() + SPANS_LIMIT_S
    while time.monotonic() < limit and told() < len(records):
        time.sleep(0.2)
    assert told() == len(records)
    pinchpoint("workload", "fit", spans, "-o", tmp_path / "plan.toml")
    assert "[[stages]]" in (tmp_path / "plan.toml").read_text()


@pytest.fixture(scope="module")
def pooling() -> Iterator[str]:
    with vllm("--runner", "pooling", "--convert", "embed") as url:
        yield url


@pytest.mark.parametrize("api", ["embeddings", "rerank", "score"])
def test_apis_that_generate_nothing_are_timed_as_a_whole(pooling: str, tmp_path: Path, api: str) -> None:
    records = records_of_load(tmp_path / "run", pooling, "--api", api, *SHORT, "--input-tokens", INPUT_TOKENS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert all(record["input_tokens"] > 0 and not record["output_tokens"] for record in records)
    assert {record["requested_output_tokens"] for record in records} == {0}
