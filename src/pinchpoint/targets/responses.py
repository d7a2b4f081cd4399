"""OpenAI's Responses API: typed events, and the whole answer once more in the last of them.

Only deltas are pieces of the answer; the `done` events repeat what they said. Services differ: llama.cpp and vLLM call
a response completed that `max_output_tokens` has cut, some end with `[DONE]`, transformers writes no `event:` lines (so
the type inside of the data is the one that counts) and streams unless told not to.
"""

from typing import Any

import msgspec

from pinchpoint.prompt import Image, Message, Prompt
from pinchpoint.targets.forms import SCHEMA_NAME, data_url, ignores_eos, merged, split_system
from pinchpoint.targets.reading import as_text, decoded
from pinchpoint.targets.target import DONE, EMPTY, Chunk, Target, TargetSpec, Usage, count, error_text

PATH = "/v1/responses"
WHAT = "a response"
TEXT_DELTAS = ("response.output_text.delta", "response.refusal.delta")
REASONING_DELTAS = (
    "response.reasoning_text.delta",
    "response.reasoning_summary_text.delta",
    "response.reasoning.delta",
)
TOOL_DELTAS = (
    "response.function_call_arguments.delta",
    "response.custom_tool_call_input.delta",
    "response.mcp_call_arguments.delta",
    "response.code_interpreter_call_code.delta",
)
CALLS = ("function_call", "custom_tool_call", "mcp_call")
"""Items that begin with the name of what is called, which the model wrote."""
LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
TAKES_IGNORE_EOS = ("vllm", "llama.cpp")
"""Of the engines that know `ignore_eos`, those that heed it in this API."""
BAD_STATUSES = ("failed", "cancelled")


class ResponsesTarget(Target):
    """Builds requests for one model and reads answers. extra: further members of every body."""

    name = "responses"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        self.path = spec.path or PATH
        self.stream = spec.stream
        self._fixed: dict[str, Any] = {"model": spec.model, "stream": spec.stream}
        self._until_planned = ignores_eos(spec.engine) if spec.engine in TAKES_IGNORE_EOS else {}
        self._extra = extra

    def build(self, prompt: Prompt) -> bytes:
        system, messages = split_system(prompt)
        items = [_item(i, message) for i, message in enumerate(messages)]
        if prompt.images:
            items[-1]["content"] = [
                {"type": "input_text", "text": messages[-1].text},
                *(_image(image) for image in prompt.images),
            ]
        body: dict[str, Any] = {**self._fixed, "input": items, "max_output_tokens": prompt.max_output_tokens}
        if system:
            body["instructions"] = system
        if prompt.tools:
            body["tools"] = [{"type": "function", "strict": False, **tool} for tool in prompt.tools]
        if prompt.schema is None:
            body |= self._until_planned
        else:
            form = {"type": "json_schema", "name": SCHEMA_NAME, "schema": prompt.schema, "strict": True}
            body["text"] = {"format": form}
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if data == b"[DONE]":
            return DONE
        if not data.strip():
            return EMPTY
        told = decoded(_events, data, "an event of a response")
        if told.error is not None or event == b"error" or told.type == "error":
            return Chunk(error=error_text(told.error or told.message or data.decode("utf-8", "replace")))
        if told.type in LAST_EVENTS:
            if told.response is None:
                raise ValueError(f"event {told.type} holds no response")
            chunk = _ending(told.response)
            failed = told.type in ("response.failed", "response.cancelled") and chunk.error is None
            return msgspec.structs.replace(chunk, error=told.type) if failed else chunk
        delta = as_text(told.delta)
        if told.type in TEXT_DELTAS:
            return Chunk(content=bool(delta), text=delta)
        if told.type in REASONING_DELTAS:
            return Chunk(reasoning=bool(delta))
        if told.type in TOOL_DELTAS:
            return Chunk(tool=bool(delta))
        if told.type == "response.output_item.added" and told.item is not None:
            return Chunk(tool=told.item.type in CALLS and bool(told.item.name))
        if not told.type:
            raise ValueError("an event of the stream has no type, so it is none of a response")
        return EMPTY

    def parse_answer(self, body: bytes) -> Chunk:
        told = decoded(_answers, body, WHAT)
        if told.error:
            return Chunk(error=error_text(told.error))
        if told.output is None:
            if told.message is not None or told.detail is not None:
                return Chunk(error=error_text(told.message or told.detail))
            raise ValueError("the answer holds no output, so it is no response")
        text, reasoning, tool = "", False, False
        for item in told.output:
            pieces = "".join(as_text(part.text) + as_text(part.refusal) for part in _parts(item.content))
            if item.type == "message":
                text += pieces
            elif item.type == "reasoning":
                reasoning = reasoning or bool(pieces) or any(part.text for part in item.summary or ())
            else:
                tool = tool or item.type in CALLS
        return msgspec.structs.replace(_ending(told), content=bool(text), text=text, reasoning=reasoning, tool=tool)


def _item(index: int, message: Message) -> dict[str, Any]:
    """The model's own answers are given back in the form in which it gave them; some services take no other."""
    if message.role == "assistant":
        part = {"type": "output_text", "text": message.text, "annotations": []}
        item = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
        return {"id": f"msg_{index}", **item}
    return {"role": message.role, "content": message.text}


def _image(image: Image) -> dict[str, Any]:
    return {"type": "input_image", "detail": "auto", "image_url": data_url(image)}


class _Part(msgspec.Struct):
    text: Any = None
    refusal: Any = None


class _Item(msgspec.Struct):
    type: str = ""
    name: Any = None
    content: Any = None
    summary: list[_Part] | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: Any = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: Any = None


class _Usage(msgspec.Struct):
    input_tokens: Any = None
    output_tokens: Any = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    output: list[_Item] | None = None
    usage: _Usage | None = None
    incomplete_details: _Incomplete | None = None
    error: Any = None
    message: Any = None
    detail: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    delta: Any = None
    item: _Item | None = None
    response: _Response | None = None
    error: Any = None
    message: Any = None


_events = msgspec.json.Decoder(_Event)
_answers = msgspec.json.Decoder(_Response)


def _parts(content: Any) -> list[_Part]:
    """Of an item whose content is a list; a null or something else has none."""
    if not isinstance(content, list):
        return []
    return [_Part(part.get("text"), part.get("refusal")) for part in content if isinstance(part, dict)]


def _ending(response: _Response) -> Chunk:
    """Status, counts and complaint of a response that has ended."""
    cut = response.incomplete_details.reason if response.incomplete_details is not None else None
    status = response.status or "completed"
    error = error_text(response.error) if response.error else None
    if error is None and status in BAD_STATUSES:
        error = f"the response is {status}"
    return Chunk(finish_reason=cut or status, usage=_usage(response.usage), error=error)


def _usage(told: _Usage | None) -> Usage | None:
    if told is None or count(told.output_tokens) is None:
        return None
    cached, reasoning = told.input_tokens_details, told.output_tokens_details
    return Usage(
        input_tokens=count(told.input_tokens),
        output_tokens=count(told.output_tokens),
        cached_tokens=count(None if cached is None else cached.cached_tokens),
        reasoning_tokens=count(None if reasoning is None else reasoning.reasoning_tokens),
    )
