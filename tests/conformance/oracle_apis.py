"""A second, plain reading of streams of the other APIs. Shares no code with the package, and nothing is fast here."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Facts:
    """What a stream holds. None: the service does not tell."""

    text_events: int = 0
    text: str = ""
    reasoning: str = ""
    calls: str = ""
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    ended: bool = field(default=False)

    def add(self, *, text: str = "", reasoning: str = "", calls: str = "") -> None:
        """One event's pieces."""
        self.text_events += bool(text or reasoning or calls)
        self.text += text
        self.reasoning += reasoning
        self.calls += calls


def objects(body: bytes) -> list[dict[str, Any]]:
    """JSON of every data line, or of every line where there are none."""
    lines = body.decode().splitlines()
    data = [line.removeprefix("data:") for line in lines if line.startswith("data:")] or lines
    return [json.loads(line) for line in data if line.strip() not in ("", "[DONE]")]


def read_responses(body: bytes) -> Facts:
    facts = Facts()
    for told in objects(body):
        kind = told["type"]
        if kind == "response.output_text.delta":
            facts.add(text=told["delta"])
        elif kind.startswith("response.reasoning") and kind.endswith(".delta"):
            facts.add(reasoning=told["delta"])
        elif kind.endswith(("arguments.delta", "call_code.delta", "input.delta")):
            facts.add(calls=told["delta"])
        elif kind == "response.output_item.added" and "call_id" in told["item"] and told["item"].get("name"):
            facts.add(calls=told["item"]["name"])
        elif kind == "response.completed":
            response = told["response"]
            usage = response["usage"]
            facts.finish_reason = (response.get("incomplete_details") or {}).get("reason") or response["status"]
            facts.input_tokens, facts.output_tokens = usage["input_tokens"], usage["output_tokens"]
            facts.cached_tokens = (usage.get("input_tokens_details") or {}).get("cached_tokens")
            facts.reasoning_tokens = (usage.get("output_tokens_details") or {}).get("reasoning_tokens")
            facts.ended = True
    return facts


def read_messages(body: bytes) -> Facts:
    facts, counts = Facts(), {}
    for told in objects(body):
        delta = told.get("delta") or {}
        block = told.get("content_block") or {}
        facts.add(
            text=delta.get("text") or block.get("text") or "",
            reasoning=delta.get("thinking") or block.get("thinking") or "",
            calls=delta.get("partial_json") or (block.get("name") if "input" in block else "") or "",
        )
        usage = told.get("usage") or (told.get("message") or {}).get("usage") or {}
        counts |= {name: value for name, value in usage.items() if value is not None}
        facts.finish_reason = delta.get("stop_reason") or facts.finish_reason
        facts.ended = facts.ended or told["type"] == "message_stop"
    cache = ("cache_read_input_tokens", "cache_creation_input_tokens")
    facts.input_tokens = counts["input_tokens"] + sum(counts.get(name, 0) for name in cache)
    facts.output_tokens = counts["output_tokens"]
    facts.cached_tokens = counts.get("cache_read_input_tokens")
    facts.reasoning_tokens = (counts.get("output_tokens_details") or {}).get("thinking_tokens")
    return facts


def read_ollama(body: bytes) -> Facts:
    facts = Facts()
    for told in objects(body):
        facts.add(text=told.get("response") or (told.get("message") or {}).get("content") or "")
        if told["done"]:
            facts.finish_reason = told.get("done_reason")
            facts.input_tokens, facts.output_tokens = told.get("prompt_eval_count"), told.get("eval_count")
            facts.ended = True
    return facts


def read_triton(body: bytes) -> Facts:
    facts = Facts()
    for told in objects(body):
        facts.add(text=told["text_output"])
    return facts


def read_tokens(body: bytes) -> Facts:
    """Tokens stand as numbers; an event with some is a piece of an answer without text."""
    facts = Facts(ended=b"[DONE]" in body)
    for told in objects(body):
        for choice in told["choices"]:
            facts.text_events += bool(choice["token_ids"])
            facts.finish_reason = choice["finish_reason"] or facts.finish_reason
    return facts


READERS = {
    "responses": read_responses,
    "messages": read_messages,
    "ollama": read_ollama,
    "triton": read_triton,
    "vllm-tokens": read_tokens,
}
