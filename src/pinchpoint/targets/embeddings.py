"""OpenAI's embeddings: one text, or several in one request, become vectors. Nothing is generated."""

from typing import Any

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.forms import merged
from pinchpoint.targets.reading import decoded
from pinchpoint.targets.target import Chunk, Target, TargetSpec, Usage, count, error_text

PATH = "/v1/embeddings"
FORMATS = ("float", "base64")
WHAT = "a list of embeddings"


class EmbeddingsTarget(Target):
    """Builds requests for one model and reads answers. encoding: of the vectors. extra: further members of bodies."""

    name = "embeddings"
    stream = False
    needs_finish = False
    generates = False

    def __init__(self, spec: TargetSpec, extra: dict[str, Any], *, encoding: str) -> None:
        self.path = spec.path or PATH
        self._fixed: dict[str, Any] = {"model": spec.model, "encoding_format": encoding}
        self._extra = extra

    def build(self, prompt: Prompt) -> bytes:
        texts = [prompt.text, *prompt.documents]
        body = {**self._fixed, "input": texts if prompt.documents else texts[0]}
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        raise ValueError("a stream is no list of embeddings")

    def parse_answer(self, body: bytes) -> Chunk:
        told = decoded(_decoder, body, WHAT)
        complaint = told.error or (told.message if told.object == "error" else None)
        if complaint or (told.data is None and told.detail):
            return Chunk(error=error_text(complaint or told.detail))
        if not told.data:
            raise ValueError("the answer holds no embeddings")
        if any(not bytes(one.embedding) for one in told.data):
            raise ValueError("an element of the answer holds no embedding")
        return Chunk(content=True, usage=input_usage(told.usage))


class InputUsage(msgspec.Struct):
    """Counts of APIs that only read. Some tell but a total, which is the input's."""

    prompt_tokens: Any = None
    total_tokens: Any = None
    input_tokens: Any = None


class _Embedding(msgspec.Struct):
    embedding: msgspec.Raw = msgspec.Raw()
    """Not decoded: a vector of thousands of numbers would cost more than everything else."""


class _Answer(msgspec.Struct):
    data: list[_Embedding] | None = None
    usage: InputUsage | None = None
    error: Any = None
    detail: Any = None
    message: Any = None
    object: Any = None


_decoder = msgspec.json.Decoder(_Answer)


def input_usage(told: InputUsage | None) -> Usage | None:
    if told is None:
        return None
    for tokens in (told.prompt_tokens, told.input_tokens, told.total_tokens):
        if count(tokens) is not None:
            return Usage(input_tokens=count(tokens))
    return None
