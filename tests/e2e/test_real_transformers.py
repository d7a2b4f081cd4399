"""`transformers serve` with a real small model (`make test-transformers`): streams without an end marker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.real_engines import MODEL_DIR, needs, records_of_load, transformers_serve

pytestmark = needs("transformers")

OUTPUT_TOKENS = 16
SHORT = ("--model", MODEL_DIR, "--concurrency", 2, "--requests", 6, "--seed", 7)
LENGTHS = ("--input-tokens", 60, "--output-tokens", OUTPUT_TOKENS)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with transformers_serve() as url:
        yield url


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
def test_answers_are_whole_and_counted_by_the_service(server: str, tmp_path: Path, api: str, streamed: str) -> None:
    records = records_of_load(tmp_path / "run", server, "--api", api, streamed, *SHORT, *LENGTHS)
    assert [record["status"] for record in records] == ["ok"] * 6, [record["error"] for record in records]
    assert {record["token_source"] for record in records} == {"usage"}
    assert all(0 < record["output_tokens"] <= OUTPUT_TOKENS for record in records)
    assert all(record["input_tokens"] > 0 for record in records)
