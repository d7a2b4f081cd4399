"""The own generate APIs of SGLang (/generate) and vLLM (/generate of its old server, /inference/v1/generate).

SGLang and the old vLLM server repeat the text so far in every event, so an event is read against the one before it,
by a reader of its own for each answer. The old vLLM server repeats the prompt, too, and tells neither counts nor a
reason. vLLM's token API takes and gives numbers of tokens, and no text at all.
"""

import zlib
from typing import Any

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.forms import data_url, ignores_eos, merged
from pinchpoint.targets.reading import as_text, decoded
from pinchpoint.targets.target import DONE, EMPTY, Chunk, Framing, Target, TargetSpec, Usage, count, error_text

GENERATE_PATH = "/generate"
TOKENS_PATH = "/inference/v1/generate"
ABORT = "abort"
FIRST_TOKEN_ID = 1000
"""Below lie the special tokens and single bytes of nearly every vocabulary."""
TOKEN_IDS = 10_000
"""So many different tokens are asked for: fewer than the smallest vocabulary in use holds (about 32,000)."""


class SglangTarget(Target):
    """SGLang's own API. extra: further members of every body."""

    name = "sglang-generate"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        self.path = spec.path or GENERATE_PATH
        self.stream = spec.stream
        self._extra = extra
        self._text = ""
        self._tokens = 0

    def build(self, prompt: Prompt) -> bytes:
        sampling: dict[str, Any] = {"max_new_tokens": prompt.max_output_tokens}
        if prompt.schema is None:
            sampling["ignore_eos"] = True
        else:
            sampling["json_schema"] = msgspec.json.encode(prompt.schema).decode()
        body: dict[str, Any] = {"text": prompt.text, "sampling_params": sampling, "stream": self.stream}
        if prompt.images:
            body["image_data"] = [data_url(image) for image in prompt.images]
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def reader(self) -> Target:
        return SglangTarget(TargetSpec(self.name, "", stream=self.stream, path=self.path), self._extra)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        """Read in order: an event is a piece of the answer when it counts more tokens or holds more text."""
        if data == b"[DONE]":
            return DONE
        if not data.strip():
            return EMPTY
        told = decoded(_sglang, data, "an event of SGLang")
        whole = _sglang_meaning(told)
        # A service that was told to stream only what is new does not repeat the beginning.
        piece = whole.text[len(self._text) :] if whole.text.startswith(self._text) else whole.text
        tokens = (whole.usage.output_tokens if whole.usage is not None else None) or 0
        grew = bool(piece) or tokens > self._tokens
        self._text, self._tokens = whole.text or self._text, max(tokens, self._tokens)
        return msgspec.structs.replace(whole, content=grew and whole.error is None, text=piece)

    def parse_answer(self, body: bytes) -> Chunk:
        return _sglang_meaning(decoded(_sglang, body, "an answer of SGLang"))


class _Reason(msgspec.Struct):
    type: str | None = None
    message: Any = None


class _Meta(msgspec.Struct):
    finish_reason: _Reason | None = None
    prompt_tokens: Any = None
    completion_tokens: Any = None
    cached_tokens: Any = None


class _Sglang(msgspec.Struct):
    text: Any = None
    meta_info: _Meta | None = None
    error: Any = None
    message: Any = None
    object: Any = None


_sglang = msgspec.json.Decoder(_Sglang)


def _sglang_meaning(told: _Sglang) -> Chunk:
    if told.error or told.object == "error":
        return Chunk(error=error_text(told.error or told.message))
    if told.text is None and told.meta_info is None:
        raise ValueError("the answer holds neither text nor meta_info, so it is none of SGLang")
    text = as_text(told.text)
    meta = told.meta_info or _Meta()
    reason = meta.finish_reason
    error = None
    if reason is not None and reason.type == ABORT:
        error = error_text(reason.message or f"finish reason {ABORT}")
    usage = None
    if count(meta.completion_tokens) is not None:
        usage = Usage(count(meta.prompt_tokens), count(meta.completion_tokens), count(meta.cached_tokens))
    finish = (reason.type or None) if reason is not None else None
    return Chunk(bool(text), finish_reason=finish, usage=usage, error=error, text=text)


class VllmGenerateTarget(Target):
    """The demonstration server of older vLLM. Its streams are JSON objects, ended by LF or NUL; they simply end.

    The text of the first event cannot be told from the prompt before it; it counts as a piece without a text.
    """

    name = "vllm-generate"
    framing: Framing = "ndjson"
    needs_finish = False

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        self.path = spec.path or GENERATE_PATH
        self.stream = spec.stream
        self._extra = extra
        self._text: str | None = None

    def build(self, prompt: Prompt) -> bytes:
        body = {
            "prompt": prompt.text,
            "stream": self.stream,
            "max_tokens": prompt.max_output_tokens,
            "ignore_eos": True,
        }
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def reader(self) -> Target:
        return VllmGenerateTarget(TargetSpec(self.name, "", stream=self.stream, path=self.path), self._extra)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        """Read in order: the text of an event without that of the one before."""
        if not data.strip():
            return EMPTY
        text, error = _vllm_text(data)
        if error is not None:
            return Chunk(error=error)
        before, self._text = self._text, text
        if before is None:
            return Chunk(content=True)
        piece = text[len(before) :] if text.startswith(before) else text
        return Chunk(content=bool(piece), text=piece)

    def parse_answer(self, body: bytes) -> Chunk:
        text, error = _vllm_text(body)
        return Chunk(error=error) if error is not None else Chunk(content=bool(text))


class _Vllm(msgspec.Struct):
    text: list[str] | str | None = None
    error: Any = None
    detail: Any = None


_vllm = msgspec.json.Decoder(_Vllm)


def _vllm_text(data: bytes) -> tuple[str, str | None]:
    """Prompt and answer so far, and what went wrong."""
    told = decoded(_vllm, data, "an answer of vLLM's generate")
    if told.text is None:
        if told.error or told.detail:
            return "", error_text(told.error or told.detail)
        raise ValueError("the answer holds no text, so it is none of vLLM's generate")
    return "".join(told.text), None


class VllmTokensTarget(Target):
    """vLLM's API of tokens alone, by numbers: the input has exactly the planned length, and no tokenizer is needed.

    A word of the prompt becomes a token by its checksum, so that prompts with a common beginning share it in tokens,
    too. What such a prompt says means nothing.
    """

    name = "vllm-tokens"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any], *, first_id: int, ids: int) -> None:
        self.path = spec.path or TOKENS_PATH
        self.stream = spec.stream
        self._fixed: dict[str, Any] = {"model": spec.model, "stream": spec.stream}
        if spec.stream and spec.usage:
            self._fixed["stream_options"] = {"include_usage": True}
        self._first_id, self._ids = first_id, ids
        self._extra = extra

    def build(self, prompt: Prompt) -> bytes:
        words = prompt.text.split() or [""]
        length = prompt.input_tokens or len(words)
        ids = [self._first_id + zlib.crc32(word.encode("utf-8", "replace")) % self._ids for word in words[:length]]
        ids += [ids[i % len(ids)] for i in range(length - len(ids))]
        sampling = {"max_tokens": prompt.max_output_tokens, **ignores_eos("vllm")}
        body = {**self._fixed, "token_ids": ids, "sampling_params": sampling}
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if data == b"[DONE]":
            return DONE
        if not data.strip():
            return EMPTY
        return _tokens_meaning(decoded(_tokens, data, "an event of vLLM's token API"), event)

    def parse_answer(self, body: bytes) -> Chunk:
        return _tokens_meaning(decoded(_tokens, body, "an answer of vLLM's token API"), b"")


class _TokenChoice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _TokenUsage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None


class _Tokens(msgspec.Struct):
    choices: list[_TokenChoice] | None = None
    usage: _TokenUsage | None = None
    error: Any = None
    detail: Any = None


_tokens = msgspec.json.Decoder(_Tokens)


def _tokens_meaning(told: _Tokens, event: bytes) -> Chunk:
    if told.error or event == b"error":
        return Chunk(error=error_text(told.error or "an error event"))
    if told.choices is None:
        if told.detail:
            return Chunk(error=error_text(told.detail))
        raise ValueError("the answer holds no choices, so it is none of vLLM's token API")
    usage = None
    if told.usage is not None and count(told.usage.completion_tokens) is not None:
        usage = Usage(count(told.usage.prompt_tokens), count(told.usage.completion_tokens))
    content = any(choice.token_ids for choice in told.choices)
    reasons = [choice.finish_reason for choice in told.choices if choice.finish_reason]
    error = f"finish reason {ABORT}" if ABORT in reasons else None
    return Chunk(content, finish_reason=reasons[0] if reasons else None, usage=usage, error=error)
