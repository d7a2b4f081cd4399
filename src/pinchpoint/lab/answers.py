"""What the simulated service answers, sans IO: tokens to response bytes, in the form of each API.

Output is words, one per token. Bytes that repeat for every token are built once per request, because the server writes
thousands of events per second. Events come without HTTP framing. Not when anything happens: that is the engine's.
"""

import base64
import random
import struct
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Protocol

import msgspec

from pinchpoint.lab.api import Dialect, Generation, Ranking

# fmt: off
_VOCABULARY = (
    "the", "river", "bends", "past", "old", "mills", "and", "slow", "boats", "carry", "grain", "down", "to", "sea",
    "where", "gulls", "turn", "above", "grey", "stone", "quays", "each", "morning", "someone", "opens", "a", "small",
    "blue", "door", "counts", "crates", "writes", "numbers", "in", "book", "that", "nobody", "reads", "until", "winter",
    "comes", "with", "ice", "lamps", "quiet", "rooms", "warm", "bread", "long", "letters", "from", "far", "cities",
    "full", "of", "noise", "trains", "glass", "towers", "bright", "signs", "rain", "again", "home",
)
# fmt: on
_WORDS = tuple(f" {word}" for word in _VOCABULARY)
_WORD_BYTES = tuple(word.encode() for word in _WORDS)
_LONGEST_WORD_BYTES = max(map(len, _WORD_BYTES))
_CHAT_SUFFIX = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
_TEXT_SUFFIX = b'","logprobs":null,"finish_reason":null}]}\n\n'
_CHAT_TAILS, _TEXT_TAILS = (
    tuple((len(word), word + suffix + b"\r\n") for word in _WORD_BYTES) for suffix in (_CHAT_SUFFIX, _TEXT_SUFFIX)
)
"""Length of each word, and how a framed event ends from it on."""

EMBEDDING_DIMENSIONS = 1024
"""Usual for models that embed texts. The numbers are the same for every text: nobody reads them."""
_VECTOR = [round(random.Random(0).uniform(-1, 1), 6) for _ in range(EMBEDDING_DIMENSIONS)]


class Answer(Protocol):
    """Bytes of one generated answer, event by event. n: tokens that share an event, from the one with this index."""

    def first(self, last: bool, n: int = 1) -> list[bytes]:
        """Events that go out with the first tokens; last: they are the last ones, too."""
        ...

    def token(self, index: int, n: int = 1) -> bytes:
        """Event for tokens of which none is the first or the last."""
        ...

    def framed(self, index: int) -> bytes:
        """The event for one token as an HTTP chunk: what the server sends most, so made in the fewest steps."""
        ...

    def last(self, index: int, n: int = 1) -> bytes: ...

    def words(self, output_tokens: int) -> list[str]:
        """The tokens of the answer, without blanks."""
        ...

    def trailer(self, output_tokens: int) -> list[bytes]:
        """Events behind the last token."""
        ...

    def whole(self, output_tokens: int) -> bytes:
        """The body of an answer that is not streamed."""
        ...


def answer_to(generation: Generation, model: str, request_id: int, created_s: int) -> Answer:
    kinds: dict[Dialect, type[_Completions] | type[_Responses] | type[_Messages]] = {
        "responses": _Responses,
        "messages": _Messages,
    }
    return kinds.get(generation.dialect, _Completions)(generation, model, request_id, created_s)


def stopped(generation: Generation, request_id: int) -> Generation:
    """The same, ended by the first of its stop texts that the answer to this request would hold.

    As in vLLM, the text ends before the stop text, and the tokens count up to the one that completes it.
    """
    if not generation.stop:
        return generation
    lengths = [len(word) for word in _Text(request_id, None).each(generation.max_output_tokens)]
    ends = list(accumulate(lengths))
    text = _Text(request_id, None).text(generation.max_output_tokens)
    best: tuple[int, int, str] | None = None
    for stop in generation.stop:
        at = text.find(stop)
        while at >= 0:
            tokens = bisect_left(ends, at + len(stop)) + 1
            if tokens > generation.min_tokens:
                best = min(best or (tokens, at, stop), (tokens, at, stop))
                break
            at = text.find(stop, at + 1)
    if best is None:
        return generation
    tokens, at, stop = best
    return msgspec.structs.replace(
        generation, max_output_tokens=tokens, finish_reason="stop", text_bytes=at, stop_text=stop
    )


class _Text:
    """The words of one answer. They begin at another one for each request, so that two answers do not read the same.

    text_bytes: where the text ends though there are more tokens; None: nowhere.
    """

    def __init__(self, request_id: int, text_bytes: int | None) -> None:
        self._first_word = request_id
        self._text_bytes = text_bytes

    def each(self, n: int) -> list[bytes]:
        """The first n words, one by one, as if nothing ended the text."""
        found = [_WORD_BYTES[(self._first_word + i) % len(_WORD_BYTES)] for i in range(n)]
        return [found[0][1:], *found[1:]] if found else []

    def word(self, index: int, n: int = 1) -> bytes:
        """n words; the first one of an answer has no blank before it."""
        at = (self._first_word + index) % len(_WORD_BYTES)
        found = _WORD_BYTES[at] if n == 1 else b"".join(_WORD_BYTES[(at + i) % len(_WORD_BYTES)] for i in range(n))
        found = found if index else found[1:]
        if self._text_bytes is None:
            return found
        return found[: max(0, self._text_bytes - sum(map(len, self.each(index))))]

    def text(self, output_tokens: int) -> str:
        return self.word(0, output_tokens).decode() if output_tokens else ""

    def words(self, output_tokens: int) -> list[str]:
        return [_VOCABULARY[(self._first_word + i) % len(_VOCABULARY)] for i in range(output_tokens)]


class _Completions(_Text):
    """OpenAI's chat and text completions."""

    def __init__(self, generation: Generation, model: str, request_id: int, created_s: int) -> None:
        super().__init__(request_id, generation.text_bytes)
        self._generation = generation
        self._stop_reason = msgspec.json.encode(generation.stop_text).decode()
        chat = self._chat = generation.dialect == "chat"
        kind = "chat.completion" if chat else "text_completion"
        event_kind = "chat.completion.chunk" if chat else "text_completion"
        identity = f'"id":"{"chatcmpl" if chat else "cmpl"}-{request_id:016x}"'
        tail = f'"created":{created_s},"model":"{model}"'
        self._head = f'{{{identity},"object":"{kind}",{tail}'
        self._event_head = f'data: {{{identity},"object":"{event_kind}",{tail}'
        field = '"delta":{"content":"' if chat else '"text":"'
        self._prefix = f'{self._event_head},"choices":[{{"index":0,{field}'.encode()
        close = '"}' if chat else '"'
        self._suffix = _CHAT_SUFFIX if chat else _TEXT_SUFFIX
        self._tails = _CHAT_TAILS if chat else _TEXT_TAILS
        length = len(self._prefix) + len(self._suffix)
        self._heads = tuple(b"%x\r\n%b" % (length + word, self._prefix) for word in range(_LONGEST_WORD_BYTES + 1))
        """Beginning of a framed event by the length of its word."""
        self._last_suffix = (
            f'{close},"logprobs":null,"finish_reason":"{generation.finish_reason}","stop_reason":{self._stop_reason}}}]}}\n\n'
        ).encode()

    def token(self, index: int, n: int = 1) -> bytes:
        return self._prefix + self.word(index, n) + self._suffix

    def framed(self, index: int) -> bytes:
        length, tail = self._tails[(self._first_word + index) % len(_WORD_BYTES)]
        return self._heads[length] + tail

    def first(self, last: bool, n: int = 1) -> list[bytes]:
        """For chat, an event with only the role comes before it."""
        events = []
        if self._chat:
            delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
            events.append(f'{self._event_head},"choices":[{{"index":0,{delta}}}]}}\n\n'.encode())
        events.append(self._prefix + self.word(0, n) + (self._last_suffix if last else self._suffix))
        return events

    def last(self, index: int, n: int = 1) -> bytes:
        return self._prefix + self.word(index, n) + self._last_suffix

    def trailer(self, output_tokens: int) -> list[bytes]:
        """Usage, when it was asked for, and the end mark."""
        events = [b"data: [DONE]\n\n"]
        if self._generation.include_usage:
            usage = self._usage(output_tokens)
            events.insert(0, f'{self._event_head},"choices":[],"usage":{usage}}}\n\n'.encode())
        return events

    def whole(self, output_tokens: int) -> bytes:
        text = self.text(output_tokens)
        content = f'"message":{{"role":"assistant","content":"{text}"}}' if self._chat else f'"text":"{text}"'
        reason = self._generation.finish_reason
        choice = f'{{"index":0,{content},"logprobs":null,"finish_reason":"{reason}","stop_reason":{self._stop_reason}}}'
        return f'{self._head},"choices":[{choice}],"usage":{self._usage(output_tokens)}}}'.encode()

    def _usage(self, output_tokens: int) -> str:
        prompt_tokens = self._generation.prompt_tokens
        return (
            f'{{"prompt_tokens":{prompt_tokens},"total_tokens":{prompt_tokens + output_tokens},'
            f'"completion_tokens":{output_tokens}}}'
        )


class _Responses(_Text):
    """OpenAI's responses: every event has a type and a number of its own."""

    def __init__(self, generation: Generation, model: str, request_id: int, created_s: int) -> None:
        super().__init__(request_id, generation.text_bytes)
        self._generation = generation
        self._model, self._created_s = model, created_s
        self._id = f"resp_{request_id:016x}"
        self._item_id = f"msg_{request_id:016x}"
        kind = "response.output_text.delta"
        self._place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        self._prefix = (
            f'event: {kind}\ndata: {{"type":"{kind}","item_id":"{self._item_id}","output_index":0,"content_index":0,'
            '"logprobs":[],"sequence_number":'
        ).encode()
        self._numbers_before = 4
        """Events before the first token."""
        self._deltas = 0

    def token(self, index: int, n: int = 1) -> bytes:
        self._deltas += 1
        return b'%s%d,"delta":"%s"}\n\n' % (self._prefix, self._numbers_before + self._deltas - 1, self.word(index, n))

    def framed(self, index: int) -> bytes:
        return _framed(self.token(index))

    def first(self, last: bool, n: int = 1) -> list[bytes]:
        begun = {"response": self._response("in_progress", None)}
        item = {"output_index": 0, "item": self._item("in_progress", None)}
        return [
            _event("response.created", 0, begun),
            _event("response.in_progress", 1, begun),
            _event("response.output_item.added", 2, item),
            _event("response.content_part.added", 3, {**self._place, "part": _part("")}),
            self.token(0, n),
        ]

    def last(self, index: int, n: int = 1) -> bytes:
        return self.token(index, n)

    def trailer(self, output_tokens: int) -> list[bytes]:
        text = self.text(output_tokens)
        number = self._numbers_before + self._deltas
        status = self._status
        item = {"output_index": 0, "item": self._item(status, text)}
        return [
            _event("response.output_text.done", number, {**self._place, "text": text, "logprobs": []}),
            _event("response.content_part.done", number + 1, {**self._place, "part": _part(text)}),
            _event("response.output_item.done", number + 2, item),
            _event(f"response.{status}", number + 3, {"response": self._response(status, text, output_tokens)}),
        ]

    def whole(self, output_tokens: int) -> bytes:
        return msgspec.json.encode(self._response(self._status, self.text(output_tokens), output_tokens))

    @property
    def _status(self) -> str:
        return "incomplete" if self._generation.finish_reason == "length" else "completed"

    def _item(self, status: str, text: str | None) -> dict[str, object]:
        content = [] if text is None else [_part(text)]
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _response(self, status: str, text: str | None, output_tokens: int = 0) -> dict[str, object]:
        prompt_tokens = self._generation.prompt_tokens
        usage = {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + output_tokens,
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._model,
            "output": [] if text is None else [self._item(status, text)],
            "usage": None if text is None else usage,
        }


class _Messages(_Text):
    """Anthropic's messages: a message is begun, its one block is filled, and both are closed."""

    def __init__(self, generation: Generation, model: str, request_id: int, created_s: int) -> None:
        super().__init__(request_id, generation.text_bytes)
        self._generation = generation
        self._model = model
        self._id = f"msg_{request_id:016x}"
        kind = "content_block_delta"
        self._prefix = (
            f'event: {kind}\ndata: {{"type":"{kind}","index":0,"delta":{{"type":"text_delta","text":"'
        ).encode()
        reasons = {"length": "max_tokens", "stop": "end_turn" if generation.stop_text is None else "stop_sequence"}
        self._stop_reason = reasons[generation.finish_reason]

    def token(self, index: int, n: int = 1) -> bytes:
        return self._prefix + self.word(index, n) + b'"}}\n\n'

    def framed(self, index: int) -> bytes:
        return _framed(self.token(index))

    def first(self, last: bool, n: int = 1) -> list[bytes]:
        message = self._message(None, [], 0)
        return [
            _event("message_start", None, {"message": message}),
            _event("content_block_start", None, {"index": 0, "content_block": {"type": "text", "text": ""}}),
            _event("ping", None, {}),
            self.token(0, n),
        ]

    def last(self, index: int, n: int = 1) -> bytes:
        return self.token(index, n)

    def trailer(self, output_tokens: int) -> list[bytes]:
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._generation.stop_text}
        return [
            _event("content_block_stop", None, {"index": 0}),
            _event("message_delta", None, {"delta": delta, "usage": {"output_tokens": output_tokens}}),
            _event("message_stop", None, {}),
        ]

    def whole(self, output_tokens: int) -> bytes:
        content = [{"type": "text", "text": self.text(output_tokens)}]
        return msgspec.json.encode(self._message(self._stop_reason, content, output_tokens))

    def _message(self, stop_reason: str | None, content: list[dict[str, str]], output_tokens: int) -> dict[str, object]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": self._generation.stop_text if stop_reason else None,
            "usage": {"input_tokens": self._generation.prompt_tokens, "output_tokens": output_tokens},
        }


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(kind: str, number: int | None, members: Mapping[str, object]) -> bytes:
    numbered = {} if number is None else {"sequence_number": number}
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode({"type": kind, **numbered, **members}) + b"\n\n"


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def ranking_body(ranking: Ranking, model: str, request_id: int, created_s: int) -> bytes:
    """The whole answer to a request for vectors or scores, in vLLM's form."""
    identity = f"{request_id:016x}"
    total_tokens = sum(ranking.prompt_tokens)
    usage = {"prompt_tokens": total_tokens, "total_tokens": total_tokens, "completion_tokens": 0}
    if ranking.kind == "rerank":
        results = [
            {"index": index, "document": {"text": ranking.documents[index]}, "relevance_score": score}
            for index, score in ranking.ranked()
        ]
        answer = {"id": f"rerank-{identity}", "model": model, "usage": {"total_tokens": total_tokens}}
        return msgspec.json.encode({**answer, "results": results})
    head = {"object": "list", "created": created_s, "model": model, "usage": usage}
    if ranking.kind == "score":
        scores = [{"index": index, "object": "score", "score": score} for index, score in enumerate(ranking.scores)]
        return msgspec.json.encode({"id": f"score-{identity}", **head, "data": scores})
    vector = _vector(ranking.dimensions or EMBEDDING_DIMENSIONS, ranking.base64)
    data = [{"index": index, "object": "embedding", "embedding": vector} for index in range(len(ranking.prompt_tokens))]
    return msgspec.json.encode({"id": f"embd-{identity}", **head, "data": data})


def _vector(dimensions: int, as_base64: bool) -> list[float] | str:
    vector = _VECTOR[:dimensions]
    return base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if as_base64 else vector
