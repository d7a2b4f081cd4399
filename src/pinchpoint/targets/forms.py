"""Pieces of request bodies that several APIs write in the same way."""

from typing import Any

from pinchpoint.prompt import Image, Message, Prompt

SCHEMA_NAME = "answer"
"""APIs want a name for the schema of an answer, and make nothing of it."""

IGNORE_EOS: dict[str, dict[str, Any]] = {
    "vllm": {"ignore_eos": True},
    "sglang": {"ignore_eos": True},
    "llama.cpp": {"ignore_eos": True},
    "tensorrt-llm": {"ignore_eos": True},
}
"""How engines are told that the output must have the planned length, so that no end of sequence cuts it short. Others
get nothing: strict servers reject unknown fields. `min_tokens`, which some of them know, too, is not sent: it costs the
engine a step of its own for each token, and the length is exact without it."""


def split_system(prompt: Prompt) -> tuple[str, tuple[Message, ...]]:
    """The system message, "" if there is none, and the rest, for APIs that have a place of its own for it."""
    messages = prompt.messages
    if messages and messages[0].role == "system":
        return messages[0].text, messages[1:]
    return "", messages


def data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{image.base64}"


def function_tools(prompt: Prompt) -> list[dict[str, Any]]:
    """As OpenAI's chat and Ollama take them."""
    return [{"type": "function", "function": tool} for tool in prompt.tools]


def last_user_text(prompt: Prompt) -> str:
    """What is asked, for APIs without a conversation."""
    return prompt.messages[-1].text


def merged(body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`body` with the members of `extra`; objects are merged member by member, and `extra` has the last word."""
    result = dict(body)
    for name, value in extra.items():
        before = result.get(name)
        result[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result
