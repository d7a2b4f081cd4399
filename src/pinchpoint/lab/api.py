"""The OpenAI-compatible API, sans IO: request bodies to a Completion, tokens to response bytes.

Not HTTP framing (http.py) and not when anything happens. Prompt tokens are whitespace-separated words, plus a fixed
template for chat; /tokenize counts the same way. Output is words, one per token. Bytes that repeat for every token
are built once per request, because the server writes thousands of chunks per second.
"""

import math
import random
from typing import Any

import msgspec

from pinchpoint.lab.params import LabParams

CHAT_TEMPLATE_TOKENS = 12
"""What the chat template adds to every conversation."""

NATURAL_OUTPUT_TOKENS = 200
NATURAL_OUTPUT_SIGMA = 0.6
"""Median and log-normal shape of an answer that nobody limits; order of magnitude of public chat traces."""

BAD_REQUEST = 400
NOT_FOUND = 404

# fmt: off
_VOCABULARY = (
    "the", "river", "bends", "past", "old", "mills", "and", "slow", "boats", "carry", "grain", "down", "to", "sea",
    "where", "gulls", "turn", "above", "grey", "stone", "quays", "each", "morning", "someone", "opens", "a", "small",
    "blue", "door", "counts", "crates", "writes", "numbers", "in", "book", "that", "nobody", "reads", "until", "winter",
    "comes", "with", "ice", "lamps", "quiet", "rooms", "warm", "bread", "long", "letters", "from", "far", "cities",
    "full", "of", "noise", "trains", "glass", "towers", "bright", "signs", "rain", "again", "home",
)
# fmt: on


class ApiError(Exception):
    """An answer in OpenAI's error format."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", retry_after_s: float | None = None):
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        error = {"message": message, "type": kind, "param": None, "code": status}
        self.body = msgspec.json.encode({"error": error})


class Completion(msgspec.Struct, frozen=True):
    """A request that the engine can take."""

    chat: bool
    prompt_tokens: int
    max_output_tokens: int
    finish_reason: str
    """length when the client's limit ends it, stop when the answer ends by itself."""
    stream: bool
    include_usage: bool


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    model: str | None = None
    messages: list[_Message] | None = None
    prompt: str | list[str | int] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = 1


def words(text: str) -> int:
    return len(text.split())


def _prompt_tokens(body: _Body, chat: bool) -> int:
    if chat:
        if not body.messages:
            raise ApiError(BAD_REQUEST, "field 'messages' is missing or empty; send a list with at least one message")
        total = CHAT_TEMPLATE_TOKENS
        for message in body.messages:
            if isinstance(message.content, str):
                total += words(message.content)
            elif message.content:
                total += sum(words(part["text"]) for part in message.content if isinstance(part.get("text"), str))
        return total
    prompt = body.prompt
    if prompt is None:
        raise ApiError(BAD_REQUEST, "field 'prompt' is missing; send a string, or a list of token ids")
    if isinstance(prompt, str):
        return max(1, words(prompt))
    if not prompt:
        raise ApiError(BAD_REQUEST, "field 'prompt' is an empty list")
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return max(1, words(prompt[0]))
    if any(isinstance(item, str) for item in prompt):
        raise ApiError(BAD_REQUEST, "several prompts in one request are not supported; send one request for each")
    return len(prompt)


class Api:
    """Parses and answers for one model. `seed` fixes the lengths of answers nobody limits."""

    def __init__(self, params: LabParams, seed: int) -> None:
        self.model = params.model
        self.max_model_len_tokens = params.max_model_len_tokens()
        self._random = random.Random(seed)
        self._decoder = msgspec.json.Decoder(_Body)
        self.words = tuple(f" {word}".encode() for word in _VOCABULARY)

    def parse(self, raw: bytes, chat: bool) -> Completion:
        """Raises ApiError 400 for a body that cannot be served, 404 for an unknown model."""
        body = self._decode(raw)
        self._check_model(body.model)
        if body.n not in (None, 1):
            raise ApiError(BAD_REQUEST, f"n is {body.n}; this server makes one answer per request")
        if body.stream_options is not None and not body.stream:
            raise ApiError(BAD_REQUEST, "stream_options is only allowed with stream=true")
        prompt_tokens = _prompt_tokens(body, chat)
        room_tokens = self.max_model_len_tokens - prompt_tokens
        asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        if asked is not None and asked < 1:
            raise ApiError(BAD_REQUEST, f"max_tokens is {asked}; it must be at least 1")
        if room_tokens < (asked or 1):
            raise ApiError(
                BAD_REQUEST,
                f"the maximum context length is {self.max_model_len_tokens} tokens, but the request has "
                f"{prompt_tokens} prompt tokens and asks for {asked or 1} more; shorten one of them",
            )
        if asked is None:
            natural = math.exp(self._random.gauss(math.log(NATURAL_OUTPUT_TOKENS), NATURAL_OUTPUT_SIGMA))
            output_tokens, reason = (int(natural), "stop") if natural < room_tokens else (room_tokens, "length")
        else:
            output_tokens, reason = asked, "length"
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        return Completion(chat, prompt_tokens, max(1, output_tokens), reason, bool(body.stream), include_usage)

    def tokenize(self, raw: bytes) -> bytes:
        """Body of POST /tokenize: the count, and token ids that are positions in the text."""
        body = self._decode(raw)
        self._check_model(body.model or self.model)
        count = _prompt_tokens(body, chat=body.messages is not None)
        answer = {"count": count, "max_model_len": self.max_model_len_tokens, "tokens": list(range(count))}
        return msgspec.json.encode(answer)

    def models(self, created_s: int) -> bytes:
        card = {
            "id": self.model,
            "object": "model",
            "created": created_s,
            "owned_by": "pinchpoint-lab",
            "root": self.model,
            "parent": None,
            "max_model_len": self.max_model_len_tokens,
        }
        return msgspec.json.encode({"object": "list", "data": [card]})

    def _decode(self, raw: bytes) -> _Body:
        try:
            return self._decoder.decode(raw)
        except msgspec.ValidationError as error:
            raise ApiError(BAD_REQUEST, f"the request body is not valid: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ApiError(BAD_REQUEST, f"the request body is not JSON: {error}") from error

    def _check_model(self, model: str | None) -> None:
        if model is None:
            raise ApiError(BAD_REQUEST, f"field 'model' is missing; this server has {self.model!r}")
        if model != self.model:
            message = f"the model {model!r} does not exist; this server has {self.model!r}"
            raise ApiError(NOT_FOUND, message, "NotFoundError")


class Answer:
    """Bytes of one answer, event by event. Events come without HTTP framing."""

    def __init__(self, api: Api, completion: Completion, request_id: int, created_s: int) -> None:
        self._completion = completion
        self._words = api.words
        self._first_word = request_id  # so that two answers do not read the same
        chat = completion.chat
        kind = "chat.completion" if chat else "text_completion"
        event_kind = "chat.completion.chunk" if chat else "text_completion"
        identity = f'"id":"{"chatcmpl" if chat else "cmpl"}-{request_id:016x}"'
        tail = f'"created":{created_s},"model":"{api.model}"'
        self._head = f'{{{identity},"object":"{kind}",{tail}'
        self._event_head = f'data: {{{identity},"object":"{event_kind}",{tail}'
        field = '"delta":{"content":"' if chat else '"text":"'
        self._prefix = f'{self._event_head},"choices":[{{"index":0,{field}'.encode()
        close = '"}' if chat else '"'
        self._suffix = f'{close},"logprobs":null,"finish_reason":null}}]}}\n\n'.encode()
        self._last_suffix = (
            f'{close},"logprobs":null,"finish_reason":"{completion.finish_reason}","stop_reason":null}}]}}\n\n'
        ).encode()

    def _word(self, index: int) -> bytes:
        word = self._words[(self._first_word + index) % len(self._words)]
        return word if index else word[1:]

    def token(self, index: int) -> bytes:
        """Event for the token with this index, neither the first nor the last."""
        return self._prefix + self._words[(self._first_word + index) % len(self._words)] + self._suffix

    def first(self, last: bool) -> list[bytes]:
        """Events that go out with the first token: for chat, one with only the role before it."""
        events = []
        if self._completion.chat:
            delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
            events.append(f'{self._event_head},"choices":[{{"index":0,{delta}}}]}}\n\n'.encode())
        events.append(self._prefix + self._word(0) + (self._last_suffix if last else self._suffix))
        return events

    def last(self, index: int) -> bytes:
        return self._prefix + self._word(index) + self._last_suffix

    def trailer(self, output_tokens: int) -> list[bytes]:
        """Usage, when it was asked for, and the end mark."""
        events = [b"data: [DONE]\n\n"]
        if self._completion.include_usage:
            usage = self._usage(output_tokens)
            events.insert(0, f'{self._event_head},"choices":[],"usage":{usage}}}\n\n'.encode())
        return events

    def whole(self, output_tokens: int) -> bytes:
        """The body of an answer that is not streamed."""
        text = b"".join(self._word(index) for index in range(output_tokens)).decode()
        if self._completion.chat:
            content = f'"message":{{"role":"assistant","content":"{text}"}}'
        else:
            content = f'"text":"{text}"'
        reason = self._completion.finish_reason
        choice = f'{{"index":0,{content},"logprobs":null,"finish_reason":"{reason}","stop_reason":null}}'
        return f'{self._head},"choices":[{choice}],"usage":{self._usage(output_tokens)}}}'.encode()

    def _usage(self, output_tokens: int) -> str:
        prompt_tokens = self._completion.prompt_tokens
        return (
            f'{{"prompt_tokens":{prompt_tokens},"total_tokens":{prompt_tokens + output_tokens},'
            f'"completion_tokens":{output_tokens}}}'
        )
