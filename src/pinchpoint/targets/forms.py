"""Pieces of request bodies that several APIs write in the same way."""

from typing import Any

from pinchpoint.prompt import Image, Message, Prompt

SCHEMA_NAME = "answer"
"""APIs want a name for the schema of an answer, and make nothing of it."""

IGNORE_EOS_ENGINES = ("vllm", "sglang", "llama.cpp", "tensorrt-llm")
"""Engines that can be told to go on behind the end of a sequence, so that the output has the planned length. Others are
told nothing: strict servers refuse unknown fields. `min_tokens`, which some know, too, is not sent: the length is exact
without it, and it would cost the engine a step of its own for each token."""


def ignores_eos(engine: str) -> dict[str, Any]:
    """Members of a body in OpenAI's style."""
    return {"ignore_eos": True} if engine in IGNORE_EOS_ENGINES else {}


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


def merged(body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`body` with the members of `extra`; objects are merged member by member, and `extra` has the last word."""
    result = dict(body)
    for name, value in extra.items():
        before = result.get(name)
        result[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result
