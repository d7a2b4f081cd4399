"""An independent reading of event streams: whole bodies, standard library only, no code of the package.

It is slow and plain on purpose. What it says about a stream is compared with what the load client says about it.
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a stream holds. Counts of tokens None where the service does not tell."""

    text_events: int
    """Events that carry generated text: content, reasoning, a tool call, a refusal, of any choice."""
    content: str
    reasoning: str
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    done: bool
    error: bool


def sse_events(body: bytes) -> list[tuple[str, str]]:
    """(event type or "", data) of each event of a whole body, as the WHATWG event-stream grammar reads it."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    events: list[tuple[str, str]] = []
    kind, data = "", []
    for line in lines[:-1]:  # what follows the last line end is no line
        if line == "":
            if data:
                events.append((kind, "\n".join(data)))
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
    return events


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_stream(body: bytes) -> Facts:
    """Facts of a completion stream. Raises ValueError when an event is not JSON."""
    text_events, content, reasoning = 0, "", ""
    finish_reason, usage = None, {}
    done = error = False
    for kind, data in sse_events(body):
        if data == "[DONE]":
            done = True
            break
        if not data.strip():
            continue
        payload = json.loads(data, parse_constant=_no_constant)
        if kind == "error" or payload.get("error"):
            error = True
            continue
        pieces = [_pieces(choice) for choice in payload.get("choices") or []]
        text_events += any(any(piece) for piece in pieces)
        content += "".join(piece[0] for piece in pieces)
        reasoning += "".join(piece[1] for piece in pieces)
        for choice in payload.get("choices") or []:
            finish_reason = choice.get("finish_reason") or finish_reason
        told = payload.get("usage") or (payload.get("x_groq") or {}).get("usage") or {}
        if told.get("completion_tokens") is not None:
            usage = told
    inputs, outputs = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return Facts(
        text_events,
        content,
        reasoning,
        finish_reason,
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        inputs.get("cached_tokens", usage.get("cached_tokens")),
        outputs.get("reasoning_tokens"),
        done,
        error,
    )


def _pieces(choice: dict[str, Any]) -> tuple[str, str, str]:
    """Content, reasoning, and everything else that the model wrote, of one choice of one event."""
    delta = choice.get("delta") or {}
    content = delta.get("content") or choice.get("text") or ""
    reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
    if isinstance(content, list):  # parts: text, or a list of thoughts
        reasoning += "".join(thought["text"] for part in content for thought in part.get("thinking", ()))
        content = "".join(part.get("text", "") for part in content)
    other = delta.get("refusal") or ""
    calls = [call.get("function") or {} for call in delta.get("tool_calls") or ()]
    for function in [*calls, delta.get("function_call") or {}]:
        other += (function.get("name") or "") + (function.get("arguments") or "")
    return content, reasoning, other
