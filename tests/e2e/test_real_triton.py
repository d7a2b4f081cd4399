"""Real Triton (tritonserver out of nvidia-pytriton, `make test-triton`): its HTTP and gRPC APIs and its metrics."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.real_engines import Triton, needs, pinchpoint, records_of_load, triton

from pinchpoint.errors import EXIT_UNSUPPORTED

pytestmark = needs("triton")

WORDS = 12  # of an answer; the models of the test take so long per word that a stream is seen as one
SHORT = ("--concurrency", 2, "--requests", 8, "--seed", 7, "--input-tokens", 40, "--output-tokens", WORDS)


@pytest.fixture(scope="module")
def server() -> Iterator[Triton]:
    with triton() as server:
        yield server


def records_of(server_url: str, out: Path, api: str, *words: object) -> list[dict]:
    records = records_of_load(out, server_url, "--api", api, *SHORT, *words)
    assert [record["status"] for record in records] == ["ok"] * 8, [record["error"] for record in records]
    return records


def test_generate_stream_gives_a_chunk_per_word(server: Triton, tmp_path: Path) -> None:
    records = records_of(server.url, tmp_path / "run", "triton-generate", "--model", "text_stream")
    assert {len(record["chunk_ns"]) for record in records} == {WORDS}
    assert {(record["output_tokens"], record["token_source"]) for record in records} == {(WORDS, "events")}
    assert all(record["timestamp_source"] == "kernel" for record in records)


def test_generate_gives_the_answer_at_once(server: Triton, tmp_path: Path) -> None:
    records = records_of(server.url, tmp_path / "run", "triton-generate", "--model", "text", "--no-stream")
    assert {record["first_token_ns"] for record in records} == {None}  # an answer in one piece tells no first token


def test_an_error_inside_a_200_is_an_error(server: Triton, tmp_path: Path) -> None:
    """generate of a model that answers any number of times: Triton says 200 and what is wrong in the body."""
    words = (server.url, "--api", "triton-generate", "--model", "text_stream", "--no-stream", *SHORT)
    records = records_of_load(tmp_path / "run", *words, code=EXIT_UNSUPPORTED)
    assert all(record["status"] != "ok" for record in records)
    assert "exactly 1 response" in records[0]["error"]


def test_kserve_infer_over_http(server: Triton, tmp_path: Path) -> None:
    records = records_of(server.url, tmp_path / "run", "kserve", "--model", "text")
    assert {record["http_status"] for record in records} == {200}


@pytest.mark.parametrize("model", ["text_stream", "text"])
def test_kserve_infer_over_grpc(server: Triton, tmp_path: Path, model: str) -> None:
    streamed = "--stream" if model == "text_stream" else "--no-stream"
    records = records_of(f"grpc://{server.grpc}", tmp_path / "run", "kserve-grpc", "--model", model, streamed)
    assert {record["timestamp_source"] for record in records} == {"user"}
    assert {len(record["chunk_ns"]) for record in records} == {WORDS if model == "text_stream" else 0}


def test_grpc_tells_an_unknown_model_inside_of_a_stream_that_ends_well(server: Triton, tmp_path: Path) -> None:
    words = (f"grpc://{server.grpc}", "--api", "kserve-grpc", "--model", "nobody", *SHORT)
    records = records_of_load(tmp_path / "run", *words, code=EXIT_UNSUPPORTED)
    assert {record["status"] for record in records} == {"stream_error"}
    assert "nobody" in records[0]["error"]


def test_an_unknown_model_is_told_with_tritons_own_words(server: Triton, tmp_path: Path) -> None:
    words = (server.url, "--api", "kserve", "--model", "nobody", *SHORT)
    records = records_of_load(tmp_path / "run", *words, code=EXIT_UNSUPPORTED)
    assert {(record["status"], record["http_status"]) for record in records} == {("http_error", 404)}
    assert "nobody" in records[0]["error"]


def test_the_probe_knows_it(server: Triton) -> None:
    facts = pinchpoint("probe", server.url, "--model", "text")
    assert (facts["engine"], facts["engine_version"]) == ("triton", "2.51.0")
