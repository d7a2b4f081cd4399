"""What the gRPC targets send and how they read answers. The oracle of the bytes is what the real stubs wrote."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.prompt import Prompt
from pinchpoint.targets import grpc_kserve, protobufs
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import DONE, Chunk, TargetSpec
from pinchpoint.targets.tensors import BYTES_LENGTH, NUMPY_TYPES, texts_of

RECORDED = Path(__file__).parents[2] / "data" / "grpc"
KSERVE, SERVING = protobufs.kserve(), protobufs.tensorflow_serving()
PROMPT = Prompt.of("What is the capital?", 5)
WORDS = ["pinch ", "point ", "queue ", "batch ", "token "]


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.bin").read_bytes()


def kserve(model: str = "text", *, stream: bool = False, **options: object) -> grpc_kserve.KserveGrpcTarget:
    return grpc_kserve.make(TargetSpec("kserve-grpc", model, stream=stream, options=options))


def serving(model: str = "text", **options: object):
    return make_target(TargetSpec("tfserving-grpc", model, options=options))


def test_a_request_for_one_answer_is_the_one_that_the_stub_writes() -> None:
    theirs = KSERVE["ModelInferRequest"].FromString(recorded("triton-infer-text.request"))
    theirs.ClearField("id")
    target = kserve()
    assert target.build(PROMPT) == theirs.SerializeToString()
    assert (target.path, target.stream) == ("/inference.GRPCInferenceService/ModelInfer", False)


def test_a_request_for_a_stream_is_the_one_that_the_stub_writes() -> None:
    theirs = KSERVE["ModelInferRequest"].FromString(recorded("triton-stream-final.request"))
    theirs.ClearField("id")
    target = kserve("text_stream", stream=True, shape=[1], stream_input="")
    assert target.build(PROMPT) == theirs.SerializeToString()
    assert (target.path, target.stream) == ("/inference.GRPCInferenceService/ModelStreamInfer", True)


def test_a_stream_is_read_to_its_empty_last_answer() -> None:
    target = kserve(stream=True)
    chunks = [target.parse_event(b"", recorded(f"triton-stream.answer{i}")) for i in range(6)]
    assert chunks == [*(Chunk(content=True, text=word) for word in WORDS), DONE]


def test_a_stream_of_a_model_that_answers_once_ends_with_its_text() -> None:
    chunk = kserve(stream=True).parse_event(b"", recorded("triton-stream-of-unary.answer"))
    assert chunk == Chunk(content=True, text="pinch point queue", done=True)


def test_an_error_inside_of_a_stream_is_one() -> None:
    chunk = kserve(stream=True).parse_event(b"", recorded("triton-stream-unknown.answer"))
    assert chunk.error == "Request for unknown model: 'nobody' is not found"


def test_an_answer_in_one_piece_is_read() -> None:
    assert kserve().parse_answer(recorded("triton-infer-text.answer")).text == "pinch point queue batch token"


def test_an_answer_without_the_output_says_which_it_has() -> None:
    with pytest.raises(ValueError, match="no output answer; it has text_output"):
        kserve(output="answer").parse_answer(recorded("triton-infer-text.answer"))


def test_text_may_also_stand_in_typed_contents() -> None:
    answer = KSERVE["ModelInferResponse"]()
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"here")
    assert kserve().parse_answer(answer.SerializeToString()).text == "here"


def test_the_model_s_metadata_fill_in_what_the_plan_does_not_say() -> None:
    spec = TargetSpec("kserve-grpc", "text_stream", stream=True, options={"channels": 2})
    told = grpc_kserve.declared(spec, recorded("triton-metadata"))
    assert told.options == {
        "input": "text_input",
        "datatype": "BYTES",
        "shape": [1],
        "length_input": "max_tokens",
        "sampling_input": "",
        "stream_input": "",
        "channels": 2,
    }
    grpc_kserve.make(told)


def metadata(inputs: list[tuple[str, str, list[int]]], outputs: list[tuple[str, str, list[int]]]) -> bytes:
    told = KSERVE["ModelMetadataResponse"](name="m")
    for tensors, into in ((inputs, told.inputs), (outputs, told.outputs)):
        for name, datatype, shape in tensors:
            into.add(name=name, datatype=datatype, shape=shape)
    return told.SerializeToString()


@pytest.mark.parametrize(
    ("inputs", "outputs", "options"),
    [
        (  # Triton's vLLM backend
            [("text_input", "BYTES", [1]), ("stream", "BOOL", [1]), ("sampling_parameters", "BYTES", [1])],
            [("text_output", "BYTES", [-1])],
            {"sampling_input": "sampling_parameters", "stream_input": "stream", "length_input": "", "shape": [1]},
        ),
        (  # an ensemble of TensorRT-LLM
            [("text_input", "BYTES", [-1, 1]), ("max_tokens", "INT32", [-1, 1]), ("stream", "BOOL", [-1, 1])],
            [("text_output", "BYTES", [-1])],
            {"length_input": "max_tokens", "stream_input": "stream", "shape": [1, 1]},
        ),
        (  # a model of numbers
            [("INPUT", "FP32", [-1, 3, 8])],
            [("OUTPUT", "FP32", [-1, 10])],
            {"input": "INPUT", "datatype": "FP32", "shape": [1, 3, 8], "length_input": ""},
        ),
        (  # names of somebody's own
            [("size", "INT32", [1]), ("question", "BYTES", [1])],
            [("score", "FP32", [1]), ("reply", "BYTES", [1])],
            {"input": "question", "output": "reply", "length_input": ""},
        ),
    ],
)
def test_models_of_every_kind_are_asked_by_their_own_names(
    inputs: list[tuple[str, str, list[int]]], outputs: list[tuple[str, str, list[int]]], options: dict[str, object]
) -> None:
    told = grpc_kserve.declared(TargetSpec("kserve-grpc", "m"), metadata(inputs, outputs))
    assert told.options | options == told.options
    names = {name for name, _, _ in inputs}
    request = KSERVE["ModelInferRequest"].FromString(grpc_kserve.make(told).build(PROMPT))
    assert {one.name for one in request.inputs} <= names


def test_sampling_parameters_hold_the_length() -> None:
    request = KSERVE["ModelInferRequest"].FromString(kserve(sampling_input="sampling_parameters").build(PROMPT))
    (tensor,) = [one for one in request.inputs if one.name == "sampling_parameters"]
    assert msgspec.json.decode(tensor.contents.bytes_contents[0]) == {"max_tokens": 5, "ignore_eos": True}
    assert "max_tokens" not in [one.name for one in request.inputs]


@pytest.mark.parametrize("datatype", NUMPY_TYPES)
def test_numbers_have_the_type_and_shape_that_was_asked(datatype: str) -> None:
    target = kserve(input="x", datatype=datatype, shape=[2, 3])
    request = KSERVE["ModelInferRequest"].FromString(target.build(PROMPT))
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("x", datatype, [2, 3])
    numbers = np.frombuffer(request.raw_input_contents[0], NUMPY_TYPES[datatype])
    assert len(numbers) == 6
    assert not target.generates
    assert target.build(PROMPT) == target.build(PROMPT) != target.build(Prompt.of("Another", 5))


def test_predict_of_a_text_is_what_the_stub_writes() -> None:
    theirs = SERVING["PredictRequest"].FromString(recorded("tensorflow-text.request"))
    target = serving(length_input="max_tokens")
    assert SERVING["PredictRequest"].FromString(target.build(PROMPT)) == theirs
    assert target.generates
    answer = target.parse_answer(recorded("tensorflow-text.answer"))
    assert answer.content
    assert answer.text


def test_predict_of_numbers_is_what_the_stub_writes() -> None:
    theirs = SERVING["PredictRequest"].FromString(recorded("tensorflow-half.request"))
    target = serving("half_plus_two", input="x", datatype="FP32", shape=[3])
    ours = SERVING["PredictRequest"].FromString(target.build(PROMPT))
    theirs_x, ours_x = theirs.inputs["x"], ours.inputs["x"]
    assert (ours_x.dtype, ours_x.tensor_shape) == (theirs_x.dtype, theirs_x.tensor_shape)
    assert len(ours_x.tensor_content) == 3 * 4
    assert ours.model_spec == theirs.model_spec
    assert target.parse_answer(recorded("tensorflow-half.answer")) == Chunk(content=True)
    assert not target.generates


def test_a_version_of_the_model_can_be_picked() -> None:
    assert KSERVE["ModelInferRequest"].FromString(kserve(version="3").build(PROMPT)).model_version == "3"
    assert SERVING["PredictRequest"].FromString(serving(version="3").build(PROMPT)).model_spec.version.value == 3
    with pytest.raises(UsageError, match="whole number"):
        serving(version="newest")


def test_an_answer_of_predict_without_the_output_says_which_it_has() -> None:
    with pytest.raises(ValueError, match="no output reply; it has text_output"):
        serving(length_input="max_tokens", output="reply").parse_answer(recorded("tensorflow-text.answer"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"datatype": "COMPLEX"}, "must be one of BYTES"),
        ({"shape": [2, 2]}, "one prompt needs a shape"),
        ({"shape": []}, "list of whole numbers"),
        ({"channels": 0}, "whole number from 1"),
        ({"datatype": "FP32", "shape": [100_000, 100_000]}, "give a smaller one"),
        ({"input": True}, "must be a text"),
    ],
)
@pytest.mark.parametrize("api", ["kserve-grpc", "tfserving-grpc"])
def test_options_that_cannot_be_used_are_told(api: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_target(TargetSpec(api, "m", options=options))


@given(st.lists(st.binary(max_size=50)), st.integers(0, 60))
def test_elements_of_a_raw_tensor_come_back_and_a_cut_one_is_noticed(texts: list[bytes], cut: int) -> None:
    raw = b"".join(BYTES_LENGTH.pack(len(text)) + text for text in texts)
    assert texts_of(raw) == texts
    ends = {0}
    for text in texts:
        ends.add(max(ends) + BYTES_LENGTH.size + len(text))
    if cut < len(raw) and cut not in ends:
        with pytest.raises(ValueError, match="ends inside"):
            texts_of(raw[:cut])
