"""TensorFlow Serving's predict over HTTP: rows (`instances`) or columns (`inputs`). Nothing is streamed."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.forms import merged
from pinchpoint.targets.options import Options
from pinchpoint.targets.reading import decoded
from pinchpoint.targets.target import Chunk, Target, TargetSpec, error_text
from pinchpoint.targets.tensors import TensorOptions

FORMATS = ("row", "column")
DEFAULT_SIGNATURE = "serving_default"


TYPES = {
    "DT_STRING": "BYTES",
    "DT_BOOL": "BOOL",
    "DT_UINT8": "UINT8",
    "DT_INT8": "INT8",
    "DT_INT16": "INT16",
    "DT_INT32": "INT32",
    "DT_INT64": "INT64",
    "DT_HALF": "FP16",
    "DT_FLOAT": "FP32",
    "DT_DOUBLE": "FP64",
}
"""tensorflow.DataType -> data types of the Open Inference Protocol."""


def declared(metadata: Mapping[str, Any], signature: str) -> dict[str, Any]:
    """Options for the first input of a signature, by the model's own description (GET /v1/models/NAME/metadata). Empty
    where it has none. A size that the model leaves open is 1."""
    try:
        inputs: dict[str, Any] = metadata["metadata"]["signature_def"]["signature_def"][signature]["inputs"]
        name, one = next(iter(inputs.items()))
        dimensions = one.get("tensor_shape", {}).get("dim") or ()
        shape = [max(1, int(size["size"])) for size in dimensions]
        return {"input": name, "datatype": TYPES[one["dtype"]], "shape": shape or [1]}
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        return {}


class TfServingTarget(Target):
    """Builds requests for one signature of one model and reads answers. extra: further members of every body."""

    name = "tfserving"
    stream = False
    needs_finish = False

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        options = Options(spec)
        version = options.text("version", "")
        model = quote(spec.model, safe="") + (f"/versions/{quote(version)}" if version else "")
        self.path = spec.path or f"/v1/models/{model}:predict"
        self._rows = options.choice("format", FORMATS, "row") == "row"
        self._signature = options.text("signature_name", "")
        self._tensors = TensorOptions.of(spec, length_input="", shape=(1,))
        self.generates = self._tensors.generates
        self._extra = extra

    def build(self, prompt: Prompt) -> bytes:
        columns = self._columns(prompt)
        values = list(columns.values())
        body: dict[str, Any] = {"signature_name": self._signature} if self._signature else {}
        if self._rows:
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
            body["instances"] = rows if self._tensors.input else values[0]
        else:
            body["inputs"] = columns if self._tensors.input else values[0]
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def _columns(self, prompt: Prompt) -> dict[str, list[Any]]:
        """Name of each input -> its tensor as nested lists."""
        tensors = self._tensors
        if not tensors.is_text:
            return {tensors.input: tensors.numbers(prompt.text).tolist()}
        columns = {tensors.input: _nested(prompt.text, len(tensors.shape))}
        if tensors.input and tensors.length_input:
            columns[tensors.length_input] = _nested(prompt.max_output_tokens, len(tensors.shape))
        return columns

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        raise ValueError("a stream is no prediction")

    def parse_answer(self, body: bytes) -> Chunk:
        told = decoded(_decoder, body, "a prediction")
        if told.error:
            return Chunk(error=error_text(told.error))
        found = bytes(told.predictions) or bytes(told.outputs)
        if not found or found in (b"null", b"[]", b"{}"):
            raise ValueError("the answer holds neither predictions nor outputs")
        text = _text_of(msgspec.json.decode(found), self._tensors.output) if self._tensors.is_text else ""
        return Chunk(content=True, text=text)


class _Answer(msgspec.Struct):
    predictions: msgspec.Raw = msgspec.Raw()
    outputs: msgspec.Raw = msgspec.Raw()
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


def _nested(value: Any, depth: int) -> list[Any]:
    nested = [value]
    for _ in range(depth - 1):
        nested = [nested]
    return nested


def _text_of(values: Any, output: str) -> str:
    """All strings of the output with that name, or of the only output, which has no name. "" where there are none: a
    model that takes text may well answer with numbers."""
    if isinstance(values, str):
        return values
    if isinstance(values, list):
        return "".join(_text_of(one, output) for one in values)
    return _text_of(values.get(output), output) if isinstance(values, dict) else ""
