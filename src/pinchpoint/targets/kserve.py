"""Triton's generate extension and the Open Inference Protocol (KServe v2) over HTTP.

The generate extension takes a flat object, in which a name that the model has no tensor of is a parameter. Its streams
simply end: no reason, no counts, no mark. It can tell an error inside of status 200.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.forms import merged
from pinchpoint.targets.options import Options
from pinchpoint.targets.reading import as_text, decoded
from pinchpoint.targets.target import EMPTY, Chunk, Target, TargetSpec, error_text
from pinchpoint.targets.template import Templates
from pinchpoint.targets.tensors import TEXT, TensorOptions

TEXT_INPUT, TEXT_OUTPUT, LENGTH_INPUT, STREAM_INPUT = "text_input", "text_output", "max_tokens", "stream"
"""As Triton's backends for language models name them."""


def model_path(spec: TargetSpec, action: str) -> str:
    """Option `version` picks one of several that are loaded; the service has a policy of its own otherwise."""
    version = Options(spec).text("version", "")
    return f"/v2/models/{quote(spec.model, safe='')}{f'/versions/{quote(version)}' if version else ''}/{action}"


def declared(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the tensors that a model has, by its own description (GET /v2/models/NAME). Empty where it has none.
    A size that the model leaves open is 1."""
    inputs = {one["name"]: one for one in metadata.get("inputs") or () if isinstance(one, dict) and "name" in one}
    if not inputs:
        return {}
    texts = [name for name, one in inputs.items() if one.get("datatype") == TEXT]
    own = TEXT_INPUT if TEXT_INPUT in texts else [*texts, *inputs][0]
    sizes = [size for size in inputs[own].get("shape") or () if isinstance(size, int)]
    options: dict[str, Any] = {
        "input": own,
        "datatype": inputs[own].get("datatype"),
        "shape": [max(1, size) for size in sizes] or [1],
        "length_input": LENGTH_INPUT if LENGTH_INPUT in inputs and texts else "",
        "stream_input": STREAM_INPUT if STREAM_INPUT in inputs else "",
    }
    outputs = [one.get("name") for one in metadata.get("outputs") or () if isinstance(one, dict)]
    if outputs and TEXT_OUTPUT not in outputs:
        options["output"] = outputs[0]
    return options


class TritonGenerateTarget(Target):
    """Builds requests for one model and reads answers. extra: further members of every body."""

    name = "triton-generate"
    needs_finish = False

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        options = Options(spec)
        self.path = spec.path or model_path(spec, "generate_stream" if spec.stream else "generate")
        self.stream = spec.stream
        self._input = options.text("input", TEXT_INPUT)
        self._output = options.text("output", TEXT_OUTPUT)
        self._length_input = options.text("length_input", LENGTH_INPUT)
        self._stream_input = options.text("stream_input", STREAM_INPUT)
        self.generates = self._length_input != ""
        self._extra = extra
        self._templates = Templates(self.parse_event)

    def build(self, prompt: Prompt) -> bytes:
        body: dict[str, Any] = {self._input: prompt.text}
        if self._length_input:
            body[self._length_input] = prompt.max_output_tokens
        if self._stream_input:
            body[self._stream_input] = self.stream
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if not data.strip():
            return EMPTY
        return self._meaning(decoded(_objects, data, "an event of Triton"))

    def parse_answer(self, body: bytes) -> Chunk:
        return self._meaning(decoded(_objects, body, "an answer of Triton"))

    def template(self, event: bytes) -> tuple[bytes, bytes] | None:
        return self._templates.of(event)

    def _meaning(self, told: dict[str, Any]) -> Chunk:
        if told.get("error"):
            return Chunk(error=error_text(told["error"]))
        if self._output not in told:
            if told.get("detail"):  # of a service that has no such path
                return Chunk(error=error_text(told["detail"]))
            raise ValueError(f"the answer has no output {self._output}; it has {', '.join(told) or 'none'}")
        text = "".join(_texts(told[self._output]))
        return Chunk(content=bool(text), text=text)


class KserveTarget(Target):
    """Builds requests for one model and reads answers: a text and a length, or numbers. Nothing is streamed."""

    name = "kserve"
    stream = False
    needs_finish = False

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        options = Options(spec)
        self.path = spec.path or model_path(spec, "infer")
        self._tensors = TensorOptions.of(spec, length_input=LENGTH_INPUT, shape=(1, 1))
        self._stream_input = options.text("stream_input", "")
        self.generates = self._tensors.generates
        self._extra = extra

    def build(self, prompt: Prompt) -> bytes:
        tensors = self._tensors
        if not tensors.is_text:
            inputs = [self._tensor(tensors.input, tensors.datatype, tensors.numbers(prompt.text).ravel().tolist())]
        else:
            inputs = [self._tensor(tensors.input, TEXT, [prompt.text])]
            if tensors.length_input:
                inputs.append(self._tensor(tensors.length_input, "INT32", [prompt.max_output_tokens]))
            if self._stream_input:
                inputs.append(self._tensor(self._stream_input, "BOOL", [False]))
        body: dict[str, Any] = {"inputs": inputs}
        if tensors.is_text:
            body["outputs"] = [{"name": tensors.output}]
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def _tensor(self, name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
        return {"name": name, "shape": self._tensors.shape, "datatype": datatype, "data": data}

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        raise ValueError("a stream is no answer of the Open Inference Protocol")

    def parse_answer(self, body: bytes) -> Chunk:
        told = decoded(_answers, body, "an answer of the Open Inference Protocol")
        if told.error:
            return Chunk(error=error_text(told.error))
        if not told.outputs:
            raise ValueError("the answer holds no output tensor")
        if not self._tensors.is_text:
            return Chunk(content=True)
        for output in told.outputs:
            if output.name == self._tensors.output:
                if output.datatype != TEXT:
                    raise ValueError(f"output {output.name} is of type {output.datatype}, and no text")
                text = "".join(_texts(msgspec.json.decode(output.data) if bytes(output.data) else None))
                return Chunk(content=bool(text), text=text)
        names = ", ".join(output.name for output in told.outputs)
        raise ValueError(f"the answer has no output {self._tensors.output}; it has {names}")


class _Output(msgspec.Struct):
    name: str = ""
    datatype: str = ""
    data: msgspec.Raw = msgspec.Raw()


class _Answer(msgspec.Struct):
    outputs: list[_Output] | None = None
    error: Any = None


_objects: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_answers = msgspec.json.Decoder(_Answer)


def _texts(data: Any) -> list[str]:
    """Elements of a tensor in JSON, however it is nested."""
    if isinstance(data, list):
        return [text for one in data for text in _texts(one)]
    return [as_text(data)]
