"""TensorFlow Serving's PredictionService over gRPC: Predict, one request and one answer.

Text goes in as a string tensor; for other models a tensor of numbers of the shape that the signature wants.
"""

from typing import Any

from pinchpoint.prompt import Prompt
from pinchpoint.targets import protobufs
from pinchpoint.targets.options import Options
from pinchpoint.targets.target import Chunk, Target, TargetSpec, Transport
from pinchpoint.targets.tensors import TensorOptions

PREDICT_PATH = "/tensorflow.serving.PredictionService/Predict"
DEFAULT_SIGNATURE = "serving_default"
_DT_INT32, _DT_STRING = 3, 7
DATA_TYPES = {
    "BYTES": _DT_STRING,
    "BOOL": 10,
    "UINT8": 4,
    "UINT16": 17,
    "UINT32": 22,
    "UINT64": 23,
    "INT8": 6,
    "INT16": 5,
    "INT32": _DT_INT32,
    "INT64": 9,
    "FP16": 19,
    "FP32": 1,
    "FP64": 2,
}
"""Of the Open Inference Protocol -> tensorflow.DataType."""


def make(spec: TargetSpec) -> "TfServingGrpcTarget":
    """Raises UsageError for options that cannot be used, and when the extra `grpc` is missing."""
    return TfServingGrpcTarget(spec)


class TfServingGrpcTarget(Target):
    """Messages for one signature of one model. Answers are never streamed."""

    name = "tfserving-grpc"
    transport: Transport = "grpc"
    path = PREDICT_PATH
    stream = False
    needs_finish = False

    def __init__(self, spec: TargetSpec) -> None:
        options = Options(spec)
        self.channels = options.count("channels", 1)
        self._model = spec.model
        version = options.text("version", "")
        if version and not (version.isascii() and version.isdecimal()):
            raise options.error("version", "a whole number, as text")
        self._version = int(version) if version else None
        self._signature = options.text("signature_name", DEFAULT_SIGNATURE)
        self._tensors = TensorOptions.of(spec, length_input="", shape=(1,))
        self.generates = self._tensors.generates
        messages = protobufs.tensorflow_serving()
        self._request, self._response = messages["PredictRequest"], messages["PredictResponse"]

    def build(self, prompt: Prompt) -> bytes:
        request = self._request()
        request.model_spec.name = self._model
        if self._version is not None:
            request.model_spec.version.value = self._version
        request.model_spec.signature_name = self._signature
        tensors = self._tensors
        if tensors.is_text:
            self._add(request, tensors.input, _DT_STRING).string_val.append(prompt.text.encode("utf-8", "replace"))
            if tensors.length_input:
                self._add(request, tensors.length_input, _DT_INT32).int_val.append(prompt.max_output_tokens)
        else:
            tensor = self._add(request, tensors.input, DATA_TYPES[tensors.datatype])
            tensor.tensor_content = tensors.numbers(prompt.text).tobytes()
        return request.SerializeToString()

    def _add(self, request: Any, name: str, data_type: int) -> Any:
        tensor = request.inputs[name]
        tensor.dtype = data_type
        for size in self._tensors.shape:
            tensor.tensor_shape.dim.add(size=size)
        return tensor

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        """Predict has no stream; a message is a whole answer."""
        return self.parse_answer(data)

    def parse_answer(self, body: bytes) -> Chunk:
        response = protobufs.decode(self._response, body, "an answer of Predict")
        if not response.outputs:
            raise ValueError("the answer holds no output tensor")
        if not self._tensors.is_text:
            return Chunk(content=True)
        name = self._tensors.output
        if name not in response.outputs:
            if not self.generates:
                return Chunk(content=True)  # a classifier of texts, say
            raise ValueError(f"the answer has no output {name}; it has {', '.join(sorted(response.outputs))}")
        tensor = response.outputs[name]
        if tensor.dtype != _DT_STRING:
            raise ValueError(f"output {name} is of tensorflow.DataType {tensor.dtype}, and no text")
        text = b"".join(tensor.string_val).decode("utf-8", "replace")
        return Chunk(content=bool(text), text=text)
