"""Every API of llama.cpp's server, with a real small model (`make real`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.real_engines import LLAMA, MODEL_NAME, llama, needs, records_of_load

pytestmark = needs(LLAMA)

INPUT_TOKENS, OUTPUT_TOKENS = 60, 16
SHORT = ("--model", MODEL_NAME, "--concurrency", 2, "--requests", 6, "--seed", 7)
BOUNDED_ONLY = ("messages",)
"""llama.cpp heeds no `ignore_eos` in these, so the model may end an answer before its planned length."""
LENGTHS = ("--input-tokens", INPUT_TOKENS, "--output-tokens", OUTPUT_TOKENS)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with llama(2, "--embeddings") as url:
        yield url


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
@pytest.mark.parametrize("api", ["chat", "completions", "responses", "messages"])
def test_prompts_and_answers_are_exactly_as_long_as_planned(
    server: str, tmp_path: Path, api: str, streamed: str
) -> None:
    records = records_of_load(tmp_path / "run", server, "--api", api, streamed, *SHORT, *LENGTHS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert {record["token_source"] for record in records} == {"usage"}
    assert {record["input_tokens"] for record in records} == {INPUT_TOKENS}
    lengths = {record["output_tokens"] for record in records}
    if api in BOUNDED_ONLY:
        assert max(lengths) <= OUTPUT_TOKENS
        assert min(lengths) > 0
    else:
        assert lengths == {OUTPUT_TOKENS}


def test_embeddings_have_no_answer_to_wait_for_token_by_token(server: str, tmp_path: Path) -> None:
    words = (server, "--api", "embeddings", *SHORT, "--input-tokens", INPUT_TOKENS)
    records = records_of_load(tmp_path / "run", *words)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert {(record["input_tokens"], record["requested_output_tokens"]) for record in records} == {(INPUT_TOKENS, 0)}
