"""Text Generation Inference's own API: /generate_stream, one token an event, and /generate.

Special tokens, such as the end of the sequence, are counted by the service but are no text, so they are no piece of it.
The last event carries the reason and the counts. Errors come as events of their own inside of a good status.
"""

from typing import Any

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.forms import data_url, merged
from pinchpoint.targets.reading import as_text, decoded
from pinchpoint.targets.target import EMPTY, Chunk, Target, TargetSpec, Usage, count, error_text

STREAM_PATH = "/generate_stream"
PATH = "/generate"
WHAT = "an answer of TGI"


class TgiTarget(Target):
    """Builds requests and reads answers. extra: further members of every body."""

    name = "tgi"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        self.path = spec.path or (STREAM_PATH if spec.stream else PATH)
        self.stream = spec.stream
        self._extra = extra

    def build(self, prompt: Prompt) -> bytes:
        # Images stand in the text in Markdown; the API has no other place for them.
        images = "".join(f"![]({data_url(image)})" for image in prompt.images)
        parameters: dict[str, Any] = {"max_new_tokens": prompt.max_output_tokens, "details": True}
        if prompt.schema is not None:
            parameters["grammar"] = {"type": "json", "value": prompt.schema}
        body = {"inputs": images + prompt.text, "parameters": parameters}
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if not data.strip():
            return EMPTY
        told = decoded(_events, data, "an event of TGI")
        if told.error:
            return Chunk(error=error_text(told.error))
        if event == b"error":
            return Chunk(error=error_text(data.decode("utf-8", "replace")))
        if told.token is None:
            raise ValueError("an event of the stream holds no token, so it is none of TGI")
        text = "" if told.token.special else as_text(told.token.text)
        return Chunk(bool(text), finish_reason=_reason(told.details), usage=_usage(told.details), text=text)

    def parse_answer(self, body: bytes) -> Chunk:
        told = decoded(_answers, body, WHAT)
        if isinstance(told, list):  # the path "/" of an older service answers with a list
            if len(told) != 1:
                raise ValueError(f"the answer holds {len(told)} texts, where one was asked for")
            told = told[0]
        if told.error:
            return Chunk(error=error_text(told.error))
        if told.generated_text is None:
            raise ValueError("the answer holds no generated_text, so it is none of TGI")
        text = as_text(told.generated_text)
        return Chunk(bool(text), finish_reason=_reason(told.details), usage=_usage(told.details), text=text)


class _Token(msgspec.Struct):
    text: Any = None
    special: bool | None = None


class _Details(msgspec.Struct):
    """Of a stream with `input_length`; of a whole answer perhaps with the tokens of the prompt in `prefill`."""

    finish_reason: str | None = None
    generated_tokens: Any = None
    input_length: Any = None
    prefill: list[Any] | None = None


class _Event(msgspec.Struct):
    token: _Token | None = None
    details: _Details | None = None
    error: Any = None


class _Answer(msgspec.Struct):
    generated_text: Any = None
    details: _Details | None = None
    error: Any = None


_events = msgspec.json.Decoder(_Event)
_answers: msgspec.json.Decoder[_Answer | list[_Answer]] = msgspec.json.Decoder(_Answer | list[_Answer])


def _reason(details: _Details | None) -> str | None:
    return (details.finish_reason or None) if details is not None else None


def _usage(details: _Details | None) -> Usage | None:
    if details is None or count(details.generated_tokens) is None:
        return None
    told = details.input_length if details.input_length is not None else len(details.prefill or ()) or None
    return Usage(input_tokens=count(told), output_tokens=count(details.generated_tokens))
