"""Real SavedModels behind the real protobufs of TensorFlow Serving (`make test-tensorflow`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.real_engines import needs, records_of_load, tensorflow

from pinchpoint.errors import EXIT_UNSUPPORTED

pytestmark = needs("tensorflow")

SHORT = ("--concurrency", 2, "--requests", 8, "--seed", 7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorflow(tmp_path_factory.mktemp("models")) as address:
        yield f"grpc://{address}"


def test_predict_answers_a_prompt(server: str, tmp_path: Path) -> None:
    words = ("--api", "tfserving-grpc", "--model", "text", "--input-tokens", 40, "--output-tokens", 12)
    options = ("--api-option", "input=text_input", "--api-option", "output=text_output")
    limit = ("--api-option", "length_input=max_tokens")
    records = records_of_load(tmp_path / "run", server, *words, *options, *limit, *SHORT)
    assert [record["status"] for record in records] == ["ok"] * 8, [record["error"] for record in records]
    assert {record["timestamp_source"] for record in records} == {"user"}


def test_a_model_that_is_not_served_is_told(server: str, tmp_path: Path) -> None:
    words = (server, "--api", "tfserving-grpc", "--model", "nobody", *SHORT)
    records = records_of_load(tmp_path / "run", *words, code=EXIT_UNSUPPORTED)
    assert {record["status"] for record in records} == {"http_error"}
    assert "Servable not found" in records[0]["error"]
