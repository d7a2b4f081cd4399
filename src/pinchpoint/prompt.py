"""What one request asks, before an API gives it a form. Made by `workload`, encoded by `targets`.

A target takes what its API has a place for: an API without roles gets `Prompt.text`, one that ranks takes `documents`.
"""

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant"]


class Message(msgspec.Struct, frozen=True):
    role: Role
    text: str


class Image(msgspec.Struct, frozen=True):
    """base64: of the whole file, standard alphabet with padding."""

    media_type: str
    base64: str


class Prompt(msgspec.Struct, frozen=True):
    """One request.

    messages: a system message first, if any; then the conversation so far; the last is the user's. input_tokens: the
    whole input as it was planned, with history and what the service's template adds as far as that is known; 0 where it
    cannot be told beforehand (pictures).
    max_output_tokens: 0 where nothing is generated (embeddings, ranking). shared_tokens: of input_tokens, those that
    other requests begin with too: template, system prompt, shared beginning, history. images belong to the last
    message. tools: JSON-schema functions as `{"name", "description", "parameters"}`. schema: the answer must be JSON of
    this schema. documents: what is to be ranked against the last message, or embedded together with it.
    """

    messages: tuple[Message, ...]
    input_tokens: int
    max_output_tokens: int
    shared_tokens: int = 0
    images: tuple[Image, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    schema: dict[str, Any] | None = None
    documents: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, max_output_tokens: int, input_tokens: int = 0) -> "Prompt":
        """One user's message and nothing else."""
        return cls((Message("user", text),), input_tokens, max_output_tokens)

    @property
    def text(self) -> str:
        """All messages as one text, for an API without roles."""
        if len(self.messages) == 1:
            return self.messages[0].text
        return "\n\n".join(message.text for message in self.messages)
