"""Ollama's own API: a conversation (/api/chat) or one prompt (/api/generate), and JSON objects line by line."""

from typing import Any

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.forms import function_tools, merged, split_system
from pinchpoint.targets.reading import as_text, decoded
from pinchpoint.targets.target import EMPTY, Chunk, Framing, Target, TargetSpec, Usage, count, error_text

CHAT_PATH = "/api/chat"
GENERATE_PATH = "/api/generate"
WHAT = "an answer of Ollama"


class OllamaTarget(Target):
    """Builds requests for one model and reads answers. extra: further members of every body."""

    framing: Framing = "ndjson"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any], *, chat: bool) -> None:
        self.name = "ollama" if chat else "ollama-generate"
        self.path = spec.path or (CHAT_PATH if chat else GENERATE_PATH)
        self.stream = spec.stream
        self._chat = chat
        self._fixed: dict[str, Any] = {"model": spec.model, "stream": spec.stream}
        self._extra = extra

    def build(self, prompt: Prompt) -> bytes:
        body = {**self._fixed, "options": {"num_predict": prompt.max_output_tokens}}
        images = [image.base64 for image in prompt.images]
        if self._chat:
            messages: list[dict[str, Any]] = [{"role": one.role, "content": one.text} for one in prompt.messages]
            if images:
                messages[-1]["images"] = images
            body["messages"] = messages
            if prompt.tools:
                body["tools"] = function_tools(prompt)
        else:
            system, rest = split_system(prompt)
            body["prompt"] = "\n\n".join(message.text for message in rest)
            if system:
                body["system"] = system
            if images:
                body["images"] = images
        if prompt.schema is not None:
            body["format"] = prompt.schema
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if not data.strip():
            return EMPTY
        return _meaning(decoded(_decoder, data, "a line of Ollama"))

    def parse_answer(self, body: bytes) -> Chunk:
        return _meaning(decoded(_decoder, body, WHAT))


class _Message(msgspec.Struct):
    content: Any = None
    thinking: Any = None
    tool_calls: Any = None


class _Line(msgspec.Struct):
    message: _Message | None = None
    response: Any = None
    thinking: Any = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Line)


def _meaning(line: _Line) -> Chunk:
    if line.error:
        return Chunk(error=error_text(line.error))
    if line.message is None and line.response is None and line.done is None:
        raise ValueError("the answer holds neither a message nor a response, so it is none of Ollama")
    message = line.message or _Message()
    text = as_text(message.content) + as_text(line.response)
    usage = None
    if count(line.eval_count) is not None or count(line.prompt_eval_count) is not None:
        usage = Usage(input_tokens=count(line.prompt_eval_count), output_tokens=count(line.eval_count))
    return Chunk(
        content=bool(text),
        reasoning=bool(message.thinking or line.thinking),
        tool=bool(message.tool_calls),
        finish_reason=(line.done_reason or None) if line.done else None,
        usage=usage,
        done=bool(line.done),
        text=text,
    )
