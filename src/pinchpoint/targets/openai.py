"""OpenAI-style chat and text completions: request bodies, stream events, whole answers.

Engines differ in small ways, and all of these are normal here: a role-only first chunk, a usage-only last chunk, usage
inside the last choice chunk, no `[DONE]`, `reasoning_content` or `reasoning` deltas, tool-call deltas, an `error`
object inside a 200 stream, several tokens in one chunk, content as a list of parts, a refusal instead of content, usage
inside `x_groq`.
"""

from typing import Any

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.forms import SCHEMA_NAME, data_url, function_tools, ignores_eos, merged
from pinchpoint.targets.reading import as_text, decoded
from pinchpoint.targets.target import DONE, EMPTY, Chunk, Target, Usage, count, error_text
from pinchpoint.targets.template import Templates

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"


class OpenAITarget(Target):
    """Builds requests for one model and reads answers.

    usage: streams are asked to end with token counts. extra: further members of every body. length_field: what the
    service calls the bound of the output; OpenAI's own reasoning models take only "max_completion_tokens".
    """

    def __init__(
        self,
        path: str,
        model: str,
        engine: str,
        *,
        stream: bool = True,
        usage: bool = True,
        extra: dict[str, Any] | None = None,
        length_field: str = "max_tokens",
    ) -> None:
        self.name = "chat" if path.endswith("/chat/completions") else "completions"
        self.path = path
        self.stream = stream
        self._chat = path.endswith("/chat/completions")
        self._templates = Templates(parse_event)
        self._fixed: dict[str, Any] = {"model": model, "stream": stream}
        self._until_planned = ignores_eos(engine)
        if stream and usage:
            self._fixed["stream_options"] = {"include_usage": True}
        self._extra = extra or {}
        self._length_field = length_field

    def build(self, prompt: Prompt) -> bytes:
        body = {**self._fixed, self._length_field: prompt.max_output_tokens}
        if prompt.schema is None:  # an answer of a given form ends where the form ends
            body |= self._until_planned
        if self._chat:
            body["messages"] = _messages(prompt)
            if prompt.tools:
                body["tools"] = function_tools(prompt)
        else:
            body["prompt"] = prompt.text
        if prompt.schema is not None:
            form = {"name": SCHEMA_NAME, "schema": prompt.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    @staticmethod
    def parse_event(event: bytes, data: bytes) -> Chunk:
        return parse_event(event, data)

    @staticmethod
    def parse_answer(body: bytes) -> Chunk:
        return parse_answer(body)

    def template(self, event: bytes) -> tuple[bytes, bytes] | None:
        return self._templates.of(event)


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": message.role, "content": message.text} for message in prompt.messages]
    if prompt.images:
        text = {"type": "text", "text": messages[-1]["content"]}
        images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in prompt.images]
        messages[-1]["content"] = [text, *images]
    return messages


class _Function(msgspec.Struct):
    name: Any = None
    arguments: Any = None


class _Tool(msgspec.Struct):
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[_Tool] | None = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: Any = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: Any = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Any = None


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    cached_tokens: Any = None


class _XGroq(msgspec.Struct):
    usage: _Usage | None = None


class _Payload(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    x_groq: _XGroq | None = None
    error: Any = None
    object: Any = None
    message: Any = None


FAILED_REASONS = ("error", "abort")
"""Finish reasons that say the answer was given up by the service."""

_decoder = msgspec.json.Decoder(_Payload)


def parse_event(event: bytes, data: bytes) -> Chunk:
    """Raises ValueError when the data is not what the API promises."""
    if data == b"[DONE]":
        return DONE
    if not data.strip():
        return EMPTY
    try:
        payload = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        if event == b"error":
            return Chunk(error=error_text(data.decode("utf-8", "replace")))
        raise ValueError(f"stream event is not a completion chunk ({error})") from None
    if payload.error or event == b"error":
        return Chunk(error=error_text(payload.error or data.decode("utf-8", "replace")))
    if payload.object == "error":
        return Chunk(error=error_text(payload.message or data.decode("utf-8", "replace")))
    return _meaning(payload)


def parse_answer(body: bytes) -> Chunk:
    """A whole, non-streamed answer. Raises ValueError when it is not a completion."""
    payload = decoded(_decoder, body, "a completion")
    if payload.error or payload.object == "error":
        return Chunk(error=error_text(payload.error or payload.message or body.decode("utf-8", "replace")))
    if not payload.choices:
        raise ValueError("answer holds no choices")
    return _meaning(payload)


def _meaning(payload: _Payload) -> Chunk:
    reasoning = tool = False
    text = ""
    finish_reason: str | None = None
    for choice in payload.choices or ():
        delta = choice.delta or choice.message
        if delta is not None:
            if isinstance(delta.content, list):
                text += _text_of(delta.content)
                reasoning = reasoning or any(_text_of(part.get("thinking")) for part in _parts(delta.content))
            else:
                text += as_text(delta.content)
            text += as_text(delta.refusal)
            reasoning = reasoning or bool(delta.reasoning_content) or bool(delta.reasoning)
            for call in delta.tool_calls or ():
                tool = tool or (call.function is not None and bool(call.function.name or call.function.arguments))
            if isinstance(delta.function_call, dict):
                tool = tool or any(delta.function_call.values())
        text += as_text(choice.text)
        finish_reason = finish_reason or choice.finish_reason or None  # an empty one is none
    told = payload.usage or (payload.x_groq.usage if payload.x_groq is not None else None)
    usage = _usage(told) if told is not None else None
    error = f"finish reason {finish_reason}" if finish_reason in FAILED_REASONS else None
    return Chunk(bool(text), reasoning, tool, finish_reason, usage, error, text=text)


def _parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a content that is a list, as Mistral's reasoning models send it."""
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _text_of(parts: Any) -> str:
    return "".join(as_text(part.get("text")) for part in _parts(parts))


def _usage(told: _Usage) -> Usage | None:
    """None when the number of output tokens is not told or cannot be."""
    output_tokens = count(told.completion_tokens)
    if output_tokens is None:
        return None
    cached, reasoning = told.prompt_tokens_details, told.completion_tokens_details
    return Usage(
        input_tokens=count(told.prompt_tokens),
        output_tokens=output_tokens,
        cached_tokens=count(told.cached_tokens if cached is None else cached.cached_tokens),
        reasoning_tokens=count(None if reasoning is None else reasoning.reasoning_tokens),
    )
