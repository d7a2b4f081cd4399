"""Messages made from our tables against those of the real stubs: recorded bytes, and the published definitions."""

import ast
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.targets import protobufs
from tests.support.real_engines import REAL, needs

RECORDED = Path(__file__).parents[2] / "data" / "grpc"
KSERVE, SERVING = protobufs.kserve(), protobufs.tensorflow_serving()
KINDS = {
    "triton-infer-text.request": KSERVE["ModelInferRequest"],
    "triton-stream-final.request": KSERVE["ModelInferRequest"],
    "triton-infer-text.answer": KSERVE["ModelInferResponse"],
    "triton-metadata": KSERVE["ModelMetadataResponse"],
    "triton-stream-unknown.answer": KSERVE["ModelStreamInferResponse"],
    "triton-stream-of-unary.answer": KSERVE["ModelStreamInferResponse"],
    **{f"triton-stream.answer{i}": KSERVE["ModelStreamInferResponse"] for i in range(6)},
    "tensorflow-half.request": SERVING["PredictRequest"],
    "tensorflow-half.answer": SERVING["PredictResponse"],
    "tensorflow-text.request": SERVING["PredictRequest"],
    "tensorflow-text.answer": SERVING["PredictResponse"],
}


@pytest.mark.parametrize("name", KINDS)
def test_recorded_messages_are_understood_to_the_last_byte(name: str) -> None:
    data = (RECORDED / f"{name}.bin").read_bytes()
    message = KINDS[name].FromString(data)
    message.DiscardUnknownFields()
    assert KINDS[name].FromString(message.SerializeToString(deterministic=True)) == message
    assert len(message.SerializeToString()) == len(data)


def test_every_recorded_message_is_tried() -> None:
    assert {path.stem for path in RECORDED.glob("*.bin")} == set(KINDS)


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=200))
def test_what_is_no_message_is_a_value_error_that_says_what_was_wanted(name: str, data: bytes) -> None:
    try:
        protobufs.decode(KINDS[name], data, "an answer")
    except ValueError as error:
        assert "are not an answer" in str(error)


def published(site: Path, path: str) -> FileDescriptorProto:
    """The definition that generated code holds, read without importing it or what it depends on."""
    for node in ast.walk(ast.parse((site / path).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            return FileDescriptorProto.FromString(ast.literal_eval(node.args[0]))
    raise AssertionError(f"{path} holds no definition")


def fields_of(message: DescriptorProto | Any) -> dict[str, tuple[int, int, bool]]:
    """name -> number, type, repeated."""
    return {one.name: (one.number, one.type, one.label == FieldDescriptorProto.LABEL_REPEATED) for one in message.field}


def assert_ours_are_theirs(ours: protobufs.Messages, names: list[str], theirs: dict[str, Any]) -> None:
    for name in names:
        mine = DescriptorProto()
        ours[name].DESCRIPTOR.CopyToProto(mine)
        their_fields = fields_of(theirs[name])
        for field, (number, kind, repeated) in fields_of(mine).items():
            their_number, their_kind, their_repeated = their_fields[field]
            if their_kind == FieldDescriptor.TYPE_ENUM:
                their_kind = FieldDescriptor.TYPE_INT32  # the same on the wire
            assert (number, kind, repeated) == (their_number, their_kind, their_repeated), f"{name}.{field}"


def by_name(file: FileDescriptorProto) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def add(message: Any, prefix: str) -> None:
        found[prefix + message.name] = message
        for nested in message.nested_type:
            add(nested, f"{prefix}{message.name}.")

    for message in file.message_type:
        add(message, "")
    return found


@needs("triton")
def test_fields_of_kserve_have_the_published_numbers_and_types() -> None:
    (site,) = (REAL / "triton").glob("lib/python3*/site-packages")
    file = published(site, "tritonclient/grpc/service_pb2.py")
    assert file.package == "inference"
    assert_ours_are_theirs(KSERVE, list(protobufs.KSERVE), by_name(file))
    methods = {method.name for service in file.service for method in service.method}
    assert {"ServerReady", "ModelReady", "ModelMetadata", "ModelInfer", "ModelStreamInfer"} <= methods


@needs("tensorflow")
def test_fields_of_tensorflow_serving_have_the_published_numbers_and_types() -> None:
    (site,) = (REAL / "tensorflow").glob("lib/python3*/site-packages")
    serving = {}
    for part in ("predict", "model"):
        serving |= by_name(published(site, f"tensorflow_serving/apis/{part}_pb2.py"))
    own = [name for name in protobufs.TENSORFLOW_SERVING if name != "Int64Value"]
    assert_ours_are_theirs(SERVING, own, serving)
    tensors: dict[str, Any] = {}
    for part in ("tensor", "tensor_shape"):
        tensors |= by_name(published(site, f"tensorflow/core/framework/{part}_pb2.py"))
    for name, lines in protobufs.TENSORFLOW.items():
        theirs = fields_of(tensors[name])
        for line in lines:
            kind, field, number = line.replace(" =", "").rsplit(" ", 2)
            assert theirs[field][0] == int(number), f"{name}.{field}"
            assert theirs[field][2] == kind.startswith("repeated")
