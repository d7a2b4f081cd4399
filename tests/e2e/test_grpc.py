"""`pinchpoint load` against gRPC services: a grpcio server that speaks KServe v2 and TensorFlow Serving.

The real tritonserver and real SavedModels are the business of test_real_triton.py and test_real_tensorflow.py.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.grpc_server import GrpcServer
from tests.support.real_engines import records_of_load
from tests.support.tls import Authority

from pinchpoint.targets import protobufs

KSERVE, SERVING = protobufs.kserve(), protobufs.tensorflow_serving()
REQUESTS, WORDS = 6, 5
SHORT = ("--concurrency", 2, "--requests", REQUESTS, "--output-tokens", WORDS, "--input-tokens", 20, "--seed", 5)


def metadata(body: bytes, context: Any) -> Iterable[bytes]:
    if KSERVE["ModelMetadataRequest"].FromString(body).name != "words":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
    told = KSERVE["ModelMetadataResponse"](name="words")
    told.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    told.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
    told.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    yield told.SerializeToString()


def asked(body: bytes, context: Any) -> int:
    """How many words; a tensor that the model does not have is refused."""
    request = KSERVE["ModelInferRequest"].FromString(body)
    if request.model_name != "words":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
    inputs = {one.name: one for one in request.inputs}
    if set(inputs) != {"text_input", "max_tokens"} or any(list(one.shape) != [1] for one in request.inputs):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected inputs {sorted(inputs)}")
    return inputs["max_tokens"].contents.int_contents[0]


def response(text: str) -> Any:
    answer = KSERVE["ModelInferResponse"](model_name="words")
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    answer.raw_output_contents.append(len(text).to_bytes(4, "little") + text.encode())
    return answer


def infer(body: bytes, context: Any) -> Iterable[bytes]:
    yield response("word " * asked(body, context)).SerializeToString()


def stream_infer(body: bytes, context: Any) -> Iterable[bytes]:
    for _ in range(asked(body, context)):
        yield KSERVE["ModelStreamInferResponse"](infer_response=response("word ")).SerializeToString()
    last = KSERVE["ModelStreamInferResponse"]()
    last.infer_response.parameters["triton_final_response"].bool_param = True
    yield last.SerializeToString()


def predict(body: bytes, _: Any) -> Iterable[bytes]:
    request = SERVING["PredictRequest"].FromString(body)
    answer = SERVING["PredictResponse"]()
    answer.outputs["y"].CopyFrom(request.inputs["x"])
    yield answer.SerializeToString()


SCRIPTS = {"ModelMetadata": metadata, "ModelInfer": infer, "ModelStreamInfer": stream_infer, "Predict": predict}


@pytest.fixture(scope="module")
def server() -> Iterator[GrpcServer]:
    with GrpcServer(SCRIPTS) as server:
        yield server


@pytest.mark.parametrize(("words", "chunks"), [(("--stream",), WORDS), (("--no-stream",), 0)])
def test_kserve_with_the_tensors_that_the_model_declares(
    server: GrpcServer, tmp_path: Path, words: tuple[str, ...], chunks: int
) -> None:
    records = records_of_load(tmp_path / "run", server.url, "--api", "kserve-grpc", "--model", "words", *SHORT, *words)
    assert [record["status"] for record in records] == ["ok"] * REQUESTS, records[0]["error"]
    assert {record["timestamp_source"] for record in records} == {"user"}
    if chunks:
        assert {len(record["chunk_ns"]) for record in records} == {chunks}


def test_an_http_url_is_one_of_grpc_where_the_api_is(server: GrpcServer, tmp_path: Path) -> None:
    url = server.url.replace("grpc://", "http://")
    records = records_of_load(tmp_path / "run", url, "--api", "kserve-grpc", "--model", "words", *SHORT)
    assert [record["status"] for record in records] == ["ok"] * REQUESTS


def test_tensorflow_serving_with_numbers_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    options = [word for text in ("input=x", "datatype=FP32", "shape=[1, 8]") for word in ("--api-option", text)]
    words = ("--api", "tfserving-grpc", "--model", "m", *options, "--ca-file", authority.ca_file, *SHORT)
    with GrpcServer(SCRIPTS, authority=authority) as server:
        records = records_of_load(tmp_path / "run", server.url, *words)
    assert [record["status"] for record in records] == ["ok"] * REQUESTS, records[0]["error"]
    assert all(record["requested_output_tokens"] == 0 for record in records)


def test_an_open_loop_over_several_channels(server: GrpcServer, tmp_path: Path) -> None:
    words = ("--api", "kserve-grpc", "--model", "words", "--api-option", "channels=3")
    shape = ("--rate", 40, "--duration", "1s", "--input-tokens", 20, "--output-tokens", WORDS, "--seed", 5)
    records = records_of_load(tmp_path / "run", server.url, *words, *shape)
    assert {record["status"] for record in records} == {"ok"}
    assert all(record["sent_ns"] >= record["scheduled_ns"] for record in records)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say which API it has with --api kserve-grpc"),
        (("--api", "kserve-grpc", "--proxy", "http://127.0.0.1:9"), "not loaded through an HTTP proxy"),
        (("--api", "kserve-grpc", "--api-option", "datatype=NUMBER"), "must be one of BYTES"),
    ],
)
def test_what_cannot_be_loaded_is_told_before_anything_is_sent(
    server: GrpcServer, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    command = [sys.executable, "-m", "pinchpoint", "load", server.url, "--rate", "1", "--duration", "1s", *words]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=60, check=False
    )
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
