"""How the simulated service counts tokens. One rule, for prompts, answers and /tokenize alike.

A text has as many tokens as it has words between blanks and line breaks; the blanks before a word belong to it, and
punctuation to the word it stands at. A conversation has CHAT_TEMPLATE_TOKENS beside its texts, and MESSAGE_TOKENS for
every message behind the first. Functions that are offered are read as JSON with a blank behind each comma and colon.
An image has as many tokens as it has squares of IMAGE_PATCH_PIXELS, cut ones included. A schema for the answer has
none: engines hold answers to it while sampling.

Nothing real counts like this. It is simple enough to be counted by hand, and what a prompt was meant to have can be
held against it exactly.
"""

import base64
import binascii
import json
import re
from typing import Any

import msgspec

CHAT_TEMPLATE_TOKENS = 12
"""What the chat template adds to a conversation of one message: marks of the beginning, of roles, and of the answer
that is to come."""
MESSAGE_TOKENS = 4
"""What it adds to every further message: a role between marks, and a line break."""
IMAGE_PATCH_PIXELS = 28
"""Side of the square that becomes one token: patches of 14, two by two merged, as in the Qwen2-VL family."""
UNKNOWN_IMAGE_TOKENS = 256
"""For an image that is elsewhere, or whose size cannot be read."""
TEMPLATE_TOKEN = "<|template|>"
IMAGE_TOKEN = "<|image|>"

_WORD = re.compile(r"\s*\S+")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_CHARS = 32
"""base64 of the first 24 bytes of a PNG: signature, head of a chunk, width, height (PNG specification, 11.2)."""


class Talk(msgspec.Struct):
    """A conversation. texts: of each message, also the system's. images: base64, or "" for one that is elsewhere."""

    texts: list[str]
    images: list[str] = []
    tools: list[dict[str, Any]] = []


def words(text: str) -> int:
    """Tokens of a text alone."""
    return len(text.split())


def tokens_of_talk(talk: Talk) -> int:
    further = MESSAGE_TOKENS * max(0, len(talk.texts) - 1)
    images = sum(map(tokens_of_image, talk.images))
    return CHAT_TEMPLATE_TOKENS + further + sum(map(words, talk.texts)) + images + sum(map(_tokens_of_tool, talk.tools))


def tokens_of_image(data: str) -> int:
    """data: base64 of a whole PNG; others count as UNKNOWN_IMAGE_TOKENS."""
    try:
        head = base64.b64decode(data[:_PNG_HEADER_CHARS], validate=True)
    except (binascii.Error, ValueError):
        return UNKNOWN_IMAGE_TOKENS
    if not head.startswith(_PNG) or len(head) < 24:
        return UNKNOWN_IMAGE_TOKENS
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    return -(-width // IMAGE_PATCH_PIXELS) * -(-height // IMAGE_PATCH_PIXELS)


def strings(text: str) -> list[str]:
    """The tokens of a text; joined they are the text, but for blanks at its end."""
    return _WORD.findall(text)


def strings_of_talk(talk: Talk) -> list[str]:
    """The tokens of a conversation: marks of the template, functions, texts with marks between them, images, and the
    marks behind which the answer comes.

    Followed by the words of the answer they are the beginning of the conversation's next turn, as in real templates,
    so what was computed for one turn can be used by the next.
    """
    found = [TEMPLATE_TOKEN] * (CHAT_TEMPLATE_TOKENS - MESSAGE_TOKENS)
    for tool in talk.tools:
        found += strings(_tool_text(tool))
    for text in talk.texts:
        found += strings(text) + [TEMPLATE_TOKEN] * MESSAGE_TOKENS
    if talk.images:
        del found[-MESSAGE_TOKENS:]
        for image in talk.images:
            found += [IMAGE_TOKEN] * tokens_of_image(image)
        found += [TEMPLATE_TOKEN] * MESSAGE_TOKENS
    return found


def block_keys(tokens: list[str], block_size_tokens: int) -> list[int]:
    """Identity of each full block: equal when it and all tokens before it are equal. Blanks around a word and between
    words do not count."""
    keys: list[int] = []
    key = 0
    for end in range(block_size_tokens, len(tokens) + 1, block_size_tokens):
        key = hash((key, *tokens[end - block_size_tokens : end]))
        keys.append(key)
    return keys


def words_of_talk(talk: Talk) -> list[str]:
    """As strings_of_talk, without blanks, and each image under its own name: what two requests may have in common."""
    found = [TEMPLATE_TOKEN] * (CHAT_TEMPLATE_TOKENS - MESSAGE_TOKENS)
    for tool in talk.tools:
        found += _tool_text(tool).split()
    marks = [TEMPLATE_TOKEN] * MESSAGE_TOKENS
    for index, text in enumerate(talk.texts):
        if index:
            found += marks
        found += text.split()
    for image in talk.images:
        found += [f"{IMAGE_TOKEN}{hash(image)}"] * tokens_of_image(image)
    return found + marks


def _tool_text(tool: dict[str, Any]) -> str:
    return json.dumps(tool)


def _tokens_of_tool(tool: dict[str, Any]) -> int:
    return words(_tool_text(tool))
