"""Anthropic's Messages API, as Anthropic, vLLM, llama.cpp and others speak it.

Counts come in two events. The first one's output count is a beginning and not a count, so only the last one's is taken.
Anthropic and llama.cpp leave tokens that were read from the cache, or written to it, out of `input_tokens`; they
belong to the input, and are added. vLLM gives the sum, and no counts of a cache.

The length of an answer is only bounded: vLLM and llama.cpp take `ignore_eos` in this API and do not heed it, so it is
not sent, and an answer may end before its planned length.
"""

from typing import Any

import msgspec

from pinchpoint.prompt import Image, Prompt
from pinchpoint.targets.forms import merged, split_system
from pinchpoint.targets.reading import as_text, decoded
from pinchpoint.targets.target import EMPTY, Chunk, Target, TargetSpec, Usage, count, error_text
from pinchpoint.targets.template import Templates

PATH = "/v1/messages"
WHAT = "a message"
VERSION = ("anthropic-version", "2023-06-01")
"""The API wants one; there has been no other since."""
CALLS = ("tool_use", "server_tool_use", "mcp_tool_use")
"""Blocks that begin with the name of what is called, which the model wrote."""


class MessagesTarget(Target):
    """Builds requests for one model. extra: further members of every body."""

    name = "messages"
    headers = (VERSION,)
    key_header = "x-api-key"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        self.path = spec.path or PATH
        self.stream = spec.stream
        self._fixed: dict[str, Any] = {"model": spec.model, "stream": spec.stream}
        self._extra = extra
        self._templates = Templates(_Counts().event)

    def build(self, prompt: Prompt) -> bytes:
        system, rest = split_system(prompt)
        messages: list[dict[str, Any]] = [{"role": message.role, "content": message.text} for message in rest]
        if prompt.images:
            text = {"type": "text", "text": messages[-1]["content"]}
            messages[-1]["content"] = [*(_image(image) for image in prompt.images), text]
        body = {**self._fixed, "max_tokens": prompt.max_output_tokens, "messages": messages}
        if system:
            body["system"] = system
        if prompt.tools:
            body["tools"] = [_tool(tool) for tool in prompt.tools]
        if prompt.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": prompt.schema}}
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def reader(self) -> Target:
        return _Reader(self)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        return _Counts().event(event, data)

    def parse_answer(self, body: bytes) -> Chunk:
        told = decoded(_answers, body, WHAT)
        if told.error is not None or told.type == "error":
            return Chunk(error=error_text(told.error or body.decode("utf-8", "replace")))
        if told.content is None:
            if told.detail is not None:
                return Chunk(error=error_text(told.detail))
            raise ValueError("the answer holds no content, so it is no message")
        text = "".join(as_text(block.text) for block in told.content if block.type == "text")
        reasoning = any(bool(block.thinking or block.data) for block in told.content)
        tool = any(block.type in CALLS for block in told.content)
        usage = _Counts().told(told.usage, final=True)
        return Chunk(bool(text), reasoning, tool, told.stop_reason or None, usage, text=text)

    def template(self, event: bytes) -> tuple[bytes, bytes] | None:
        return self._templates.of(event)


class _Reader(MessagesTarget):
    """Reads one answer: remembers what its first event counted."""

    def __init__(self, target: MessagesTarget) -> None:
        self.path, self.stream = target.path, target.stream
        self._templates = target._templates
        self._counts = _Counts()

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        return self._counts.event(event, data)


def _image(image: Image) -> dict[str, Any]:
    source = {"type": "base64", "media_type": image.media_type, "data": image.base64}
    return {"type": "image", "source": source}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"name": tool["name"], "description": tool.get("description", ""), "input_schema": tool["parameters"]}


class _Details(msgspec.Struct):
    thinking_tokens: Any = None


class _Usage(msgspec.Struct):
    input_tokens: Any = None
    output_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    output_tokens_details: _Details | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: Any = None
    thinking: Any = None
    data: Any = None
    name: Any = None


class _Delta(msgspec.Struct):
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    type: str = ""
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    error: Any = None
    detail: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    message: Any = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: Any = None


_events = msgspec.json.Decoder(_Event)
_answers = msgspec.json.Decoder(_Message)


class _Counts:
    """Reads the events of one answer, and keeps its counts: a later event need not repeat those of the first."""

    def __init__(self) -> None:
        self._input = self._read = self._written = None

    def event(self, event: bytes, data: bytes) -> Chunk:
        """Raises ValueError when the data is no event of a message."""
        if not data.strip():
            return EMPTY
        told = decoded(_events, data, "an event of a message")
        if told.type == "error" or event == b"error":
            return Chunk(error=error_text(told.error or told.message or data.decode("utf-8", "replace")))
        if told.type == "content_block_delta" and told.delta is not None:
            delta = told.delta
            text = as_text(delta.text)
            return Chunk(bool(text), bool(delta.thinking), bool(delta.partial_json), text=text)
        if told.type == "content_block_start" and told.content_block is not None:
            block = told.content_block
            text = as_text(block.text) if block.type == "text" else ""
            tool = block.type in CALLS and bool(block.name)
            return Chunk(bool(text), bool(block.thinking or block.data), tool, text=text)
        if told.type == "message_start":
            start = told.message if isinstance(told.message, dict) else {}
            return Chunk(usage=self.told(msgspec.convert(start.get("usage"), _Usage | None), final=False))
        if told.type == "message_delta":
            reason = told.delta.stop_reason if told.delta is not None else None
            return Chunk(finish_reason=reason or None, usage=self.told(told.usage, final=True))
        if told.type == "message_stop":
            return Chunk(done=True)
        if not told.type:
            raise ValueError("an event of the stream has no type, so it is none of a message")
        return EMPTY

    def told(self, usage: _Usage | None, *, final: bool) -> Usage | None:
        """final: the output is whole, so its count is one."""
        if usage is None:
            return None
        self._input = _latest(usage.input_tokens, self._input)
        self._read = _latest(usage.cache_read_input_tokens, self._read)
        self._written = _latest(usage.cache_creation_input_tokens, self._written)
        details = usage.output_tokens_details
        return Usage(
            input_tokens=None if self._input is None else self._input + (self._read or 0) + (self._written or 0),
            output_tokens=count(usage.output_tokens) if final else None,
            cached_tokens=self._read,
            reasoning_tokens=count(details.thinking_tokens) if final and details is not None else None,
        )


def _latest(told: object, before: int | None) -> int | None:
    found = count(told)
    return before if found is None else found
