"""OpenAI-style chat and text completions: request bodies, stream events, whole answers.

Engines differ in small ways, and all of these are normal here: a role-only first chunk, a usage-only last chunk, usage
inside the last choice chunk, no `[DONE]`, `reasoning_content` or `reasoning` deltas, tool-call deltas, an `error`
object inside a 200 stream, several tokens in one chunk, content as a list of parts, a refusal instead of content, usage
inside `x_groq`.
"""

from typing import Any

import msgspec

from pinchpoint.targets.sse import SseParser
from pinchpoint.targets.template import cut, is_plain

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"

EXTRA_BODY: dict[str, dict[str, Any]] = {
    # Output length must be the planned one, so end-of-sequence is ignored where the engine's API allows it.
    "vllm": {"ignore_eos": True},
    "sglang": {"ignore_eos": True},
    "llama.cpp": {"ignore_eos": True},
}
"""Fields beyond the OpenAI API that an engine understands. Others get none: strict servers reject unknown fields."""


class Usage(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Chunk(msgspec.Struct, frozen=True):
    """Meaning of one stream event. All false or None: an event without content (role, keep-alive)."""

    content: bool = False
    reasoning: bool = False
    tool: bool = False
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None
    done: bool = False

    @property
    def has_text(self) -> bool:
        return self.content or self.reasoning or self.tool


EMPTY = Chunk()
DONE = Chunk(done=True)


class OpenAITarget:
    """Builds requests for one model and reads answers. Prompts arrive as text; lengths as tokens."""

    def __init__(self, path: str, model: str, engine: str, *, stream: bool = True, usage: bool = True) -> None:
        self.path = path
        self.stream = stream
        self._chat = path.endswith("/chat/completions")
        self._last_template = (b"", b"")
        self._fixed: dict[str, Any] = {"model": model, "stream": stream, **EXTRA_BODY.get(engine, {})}
        if stream and usage:
            self._fixed["stream_options"] = {"include_usage": True}

    def build(self, prompt: str, max_output_tokens: int) -> bytes:
        body = dict(self._fixed, max_tokens=max_output_tokens)
        if self._chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        return msgspec.json.encode(body)

    @staticmethod
    def parse_event(event: bytes, data: bytes) -> Chunk:
        return parse_event(event, data)

    @staticmethod
    def parse_answer(body: bytes) -> Chunk:
        return parse_answer(body)

    def template(self, event: bytes) -> tuple[bytes, bytes] | None:
        """See targets.template: the bytes of a whole event around its text, when the text is all it says."""
        before, behind = self._last_template
        if (
            before
            and event.startswith(before)
            and event.endswith(behind)
            and is_plain(event[len(before) : -len(behind)])
        ):
            return before, behind  # a service that does not number its answers
        found = cut(event, _is_text)
        if found is not None:
            self._last_template = found
        return found


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
            return Chunk(error=_error_text(data.decode("utf-8", "replace")))
        raise ValueError(f"stream event is not a completion chunk ({error})") from None
    if payload.error or event == b"error":
        return Chunk(error=_error_text(payload.error or data.decode("utf-8", "replace")))
    if payload.object == "error":
        return Chunk(error=_error_text(payload.message or data.decode("utf-8", "replace")))
    return _meaning(payload)


def _is_text(event: bytes) -> bool:
    """Whether the bytes are one whole event that carries text and nothing else."""
    parser = SseParser()
    events = parser.feed(event)
    if len(events) != 1 or not parser.idle:
        return False
    try:
        chunk = parse_event(*events[0])
    except ValueError:
        return False
    return chunk.has_text and (chunk.finish_reason, chunk.usage, chunk.error, chunk.done) == (None, None, None, False)


def parse_answer(body: bytes) -> Chunk:
    """A whole, non-streamed answer. Raises ValueError when it is not a completion."""
    if body.lstrip()[:1] == b"<":
        raise ValueError("the answer is an HTML page, not a completion")
    try:
        payload = _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"answer is not a completion ({error})") from None
    if payload.error or payload.object == "error":
        return Chunk(error=_error_text(payload.error or payload.message or body.decode("utf-8", "replace")))
    if not payload.choices:
        raise ValueError("answer holds no choices")
    return _meaning(payload)


def _meaning(payload: _Payload) -> Chunk:
    content = reasoning = tool = False
    finish_reason: str | None = None
    for choice in payload.choices or ():
        delta = choice.delta or choice.message
        if delta is not None:
            if isinstance(delta.content, list):
                content = content or _has_text(delta.content)
                reasoning = reasoning or any(_has_text(part.get("thinking")) for part in _parts(delta.content))
            else:
                content = content or bool(delta.content)
            content = content or bool(delta.refusal)
            reasoning = reasoning or bool(delta.reasoning_content) or bool(delta.reasoning)
            for call in delta.tool_calls or ():
                tool = tool or (call.function is not None and bool(call.function.name or call.function.arguments))
            if isinstance(delta.function_call, dict):
                tool = tool or any(delta.function_call.values())
        content = content or bool(choice.text)
        finish_reason = finish_reason or choice.finish_reason or None  # an empty one is none
    told = payload.usage or (payload.x_groq.usage if payload.x_groq is not None else None)
    usage = _usage(told) if told is not None else None
    error = f"finish reason {finish_reason}" if finish_reason in FAILED_REASONS else None
    return Chunk(content, reasoning, tool, finish_reason, usage, error)


def _parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a content that is a list, as Mistral's reasoning models send it."""
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _has_text(parts: Any) -> bool:
    return any(part.get("text") for part in _parts(parts))


TOKENS_MAX = 2**31 - 1
"""No answer has more. Records hold 32-bit counts, and a count that cannot be is one that is not known."""


def _usage(told: _Usage) -> Usage | None:
    """None when the number of output tokens is not told or cannot be."""
    output_tokens = _count(told.completion_tokens)
    if output_tokens is None:
        return None
    cached, reasoning = told.prompt_tokens_details, told.completion_tokens_details
    return Usage(
        input_tokens=_count(told.prompt_tokens),
        output_tokens=output_tokens,
        cached_tokens=_count(told.cached_tokens if cached is None else cached.cached_tokens),
        reasoning_tokens=_count(None if reasoning is None else reasoning.reasoning_tokens),
    )


def _count(tokens: Any) -> int | None:
    """A number of tokens; some services write it as 5.0. None for whatever cannot be one."""
    if tokens is None:
        return None
    if isinstance(tokens, float) and tokens.is_integer():
        tokens = int(tokens)
    return tokens if type(tokens) is int and 0 <= tokens <= TOKENS_MAX else None


ERROR_TEXT_CHARS = 300


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:ERROR_TEXT_CHARS]
