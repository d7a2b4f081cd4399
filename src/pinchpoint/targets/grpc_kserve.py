"""The Open Inference Protocol (KServe v2) over gRPC, with Triton's stream of answers for language models.

An answer in one piece comes from ModelInfer. Triton's ModelStreamInfer carries any number of answers to one request,
one for each piece of text that a decoupled model sends. Its parameter `triton_final_response` marks the last one, which
is empty because the request says `triton_enable_empty_final_response`. Errors inside of a stream are a message of their
own, and the call still ends with status OK.
"""

from typing import Any

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets import protobufs
from pinchpoint.targets.options import Options
from pinchpoint.targets.target import EMPTY, Chunk, Target, TargetSpec, Transport, error_text
from pinchpoint.targets.tensors import TEXT, TensorOptions, texts_of

SERVICE = "/inference.GRPCInferenceService"
INFER_PATH = f"{SERVICE}/ModelInfer"
STREAM_PATH = f"{SERVICE}/ModelStreamInfer"
FINAL = "triton_final_response"
ASK_FINAL = "triton_enable_empty_final_response"

METADATA_PATH = f"{SERVICE}/ModelMetadata"
TEXT_INPUT, TEXT_OUTPUT, LENGTH_INPUT, STREAM_INPUT = "text_input", "text_output", "max_tokens", "stream"
"""As Triton's backends for language models name their tensors."""
SAMPLING_INPUT = "sampling_parameters"
"""Of Triton's vLLM backend, which has no tensor for the length alone."""


def make(spec: TargetSpec) -> "KserveGrpcTarget":
    """Raises UsageError for options that cannot be used, and when the extra `grpc` is missing."""
    return KserveGrpcTarget(spec)


def metadata_request(model: str) -> bytes:
    """The body of ModelMetadata."""
    return protobufs.kserve()["ModelMetadataRequest"](name=model).SerializeToString()


def declared(spec: TargetSpec, metadata: bytes) -> TargetSpec:
    """The spec with options for the tensors that the model has, by its answer to ModelMetadata; options that were given
    stay. A size that the model leaves open is 1. Raises ValueError for an answer that is none."""
    told = protobufs.decode(protobufs.kserve()["ModelMetadataResponse"], metadata, "an answer of ModelMetadata")
    inputs = {one.name: one for one in told.inputs}
    if not inputs:
        return spec
    texts = [one.name for one in told.inputs if one.datatype == TEXT]
    own = spec.options.get("input", TEXT_INPUT if TEXT_INPUT in inputs else [*texts, *inputs][0])
    found: dict[str, Any] = {"input": own}
    if own in inputs:
        found["datatype"] = inputs[own].datatype
        found["shape"] = [max(1, size) for size in inputs[own].shape] or [1]
    found["length_input"] = LENGTH_INPUT if LENGTH_INPUT in inputs else ""
    found["sampling_input"] = SAMPLING_INPUT if SAMPLING_INPUT in inputs and not found["length_input"] else ""
    found["stream_input"] = STREAM_INPUT if STREAM_INPUT in inputs else ""
    outputs = [one.name for one in told.outputs if one.datatype == TEXT]
    if outputs and TEXT_OUTPUT not in outputs:
        found["output"] = outputs[0]
    return msgspec.structs.replace(spec, options={**found, **spec.options})


class KserveGrpcTarget(Target):
    """Messages for one model."""

    name = "kserve-grpc"
    transport: Transport = "grpc"
    needs_finish = False

    def __init__(self, spec: TargetSpec) -> None:
        options = Options(spec)
        self.stream = spec.stream
        self.path = STREAM_PATH if spec.stream else INFER_PATH
        self.channels = options.count("channels", 1)
        self._model, self._version = spec.model, options.text("version", "")
        self._tensors = TensorOptions.of(spec, length_input=LENGTH_INPUT, shape=(1, 1))
        self._sampling_input = options.text("sampling_input", "")
        if self._sampling_input and "length_input" not in spec.options:
            self._tensors = msgspec.structs.replace(self._tensors, length_input="")
        default = STREAM_INPUT if self._tensors.is_text else ""
        self._stream_input = options.text("stream_input", default) if spec.stream else ""
        self.generates = self._tensors.generates or self._sampling_input != ""
        messages = protobufs.kserve()
        self._request, self._response = messages["ModelInferRequest"], messages["ModelInferResponse"]
        self._streamed = messages["ModelStreamInferResponse"]

    def build(self, prompt: Prompt) -> bytes:
        request = self._request(model_name=self._model, model_version=self._version)
        tensors = self._tensors
        if not tensors.is_text:
            request.inputs.add(name=tensors.input, datatype=tensors.datatype, shape=tensors.shape)
            request.raw_input_contents.append(tensors.numbers(prompt.text).tobytes())
        else:
            text = prompt.text.encode("utf-8", "replace")
            self._add(request, tensors.input, "BYTES").bytes_contents.append(text)
            if tensors.length_input:
                self._add(request, tensors.length_input, "INT32").int_contents.append(prompt.max_output_tokens)
            if self._sampling_input:
                sampling = {"max_tokens": prompt.max_output_tokens, "ignore_eos": True}
                self._add(request, self._sampling_input, "BYTES").bytes_contents.append(msgspec.json.encode(sampling))
            if self._stream_input:
                self._add(request, self._stream_input, "BOOL").bool_contents.append(True)
        if self.stream:
            request.parameters[ASK_FINAL].bool_param = True
        return request.SerializeToString()

    def _add(self, request: Any, name: str, datatype: str) -> Any:
        return request.inputs.add(name=name, datatype=datatype, shape=self._tensors.shape).contents

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        """One message of ModelStreamInfer."""
        message = protobufs.decode(self._streamed, data, "an answer of ModelStreamInfer")
        if message.error_message:
            return Chunk(error=error_text(message.error_message))
        response = message.infer_response
        final = FINAL in response.parameters and response.parameters[FINAL].bool_param
        if not response.outputs:
            return Chunk(done=True) if final else EMPTY
        return self._meaning(response, done=final)

    def parse_answer(self, body: bytes) -> Chunk:
        """The answer of ModelInfer."""
        response = protobufs.decode(self._response, body, "an answer of ModelInfer")
        if not response.outputs:
            raise ValueError("the answer holds no output tensor")
        return self._meaning(response, done=False)

    def _meaning(self, response: Any, *, done: bool) -> Chunk:
        if not self._tensors.is_text:
            return Chunk(content=True, done=done)
        for i, output in enumerate(response.outputs):
            if output.name == self._tensors.output:
                if output.datatype != "BYTES":
                    raise ValueError(f"output {output.name} is of type {output.datatype}, and no text")
                raw = response.raw_output_contents
                texts = texts_of(raw[i]) if i < len(raw) else output.contents.bytes_contents
                text = b"".join(texts).decode("utf-8", "replace")
                return Chunk(content=bool(text), text=text, done=done)
        names = ", ".join(output.name for output in response.outputs)
        raise ValueError(f"the answer has no output {self._tensors.output}; it has {names}")
