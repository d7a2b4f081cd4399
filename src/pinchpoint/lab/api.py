"""The simulated service's APIs, sans IO: request bodies to what the engine has to do.

OpenAI's chat, completions, responses and embeddings, Anthropic's messages, rerank, score, /tokenize. Not HTTP framing
(http.py), not the bytes of answers (answers.py), and not when anything happens. How tokens are counted: tokens.py.
"""

import math
import random
import zlib
from typing import Any, Literal, TypeVar

import msgspec

from pinchpoint.lab.params import LabParams
from pinchpoint.lab.tokens import Talk, strings, strings_of_talk, tokens_of_image, tokens_of_talk, words, words_of_talk

NATURAL_OUTPUT_TOKENS = 200
NATURAL_OUTPUT_SIGMA = 0.6
"""Median and log-normal shape of an answer that nobody limits; order of magnitude of public chat traces."""

BAD_REQUEST = 400
NOT_FOUND = 404
DIMENSIONS_MAX = 1024
"""Of an embedding; the lab's vectors are that long."""
INPUTS_MAX = 2048
"""Texts in one request, as OpenAI's embeddings API allows."""

T = TypeVar("T")
Dialect = Literal["chat", "completions", "responses", "messages"]
RankingKind = Literal["embeddings", "rerank", "score"]

ANTHROPIC_KINDS = {"NotFoundError": "not_found_error", "RateLimitError": "rate_limit_error"}
"""Types of errors in Anthropic's words; the rest are invalid requests, or an overload."""


class ApiError(Exception):
    """A refusal, with its body in OpenAI's form or, for `messages`, in Anthropic's."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", retry_after_s: float | None = None):
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self._kind = kind

    def body(self, dialect: Dialect | RankingKind | None = None) -> bytes:
        if dialect == "messages":
            kind = ANTHROPIC_KINDS.get(
                self._kind, "invalid_request_error" if self.status == BAD_REQUEST else "overloaded_error"
            )
            return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": str(self)}})
        error = {"message": str(self), "type": self._kind, "param": None, "code": self.status}
        return msgspec.json.encode({"error": error})


class Generation(msgspec.Struct, frozen=True):
    """A text to generate. finish_reason: length when the client's limit ends it, stop when it ends by itself.
    include_usage: counts at the end of a stream of chat or completions; the other APIs always tell them.

    prompt: the tokens themselves, where the service shares what they have in common; else empty. image_tokens: of
    prompt_tokens. session and schema: a number for equal ones.
    """

    dialect: Dialect
    prompt_tokens: int
    max_output_tokens: int
    finish_reason: str
    stream: bool
    include_usage: bool
    prompt: list[str] = []
    image_tokens: int = 0
    session: int | None = None
    adapter: int | None = None
    schema: int | None = None
    priority: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the answer where they occur in it, after at least min_tokens."""
    min_tokens: int = 0
    text_bytes: int | None = None
    """Of an answer that `answers.stopped` has ended: its text goes this far. None: to the end of its tokens."""
    stop_text: str | None = None
    """Which of `stop` it was."""


class Ranking(msgspec.Struct, frozen=True):
    """Texts of which only the prompts are computed, to embed or to rank them. prompt_tokens, scores: one for each.

    documents: of rerank, which sends them back. base64: vectors are packed floats. dimensions: None for all.
    """

    kind: RankingKind
    prompt_tokens: tuple[int, ...]
    documents: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    top: int | None = None
    base64: bool = False
    dimensions: int | None = None

    def ranked(self) -> list[tuple[int, float]]:
        """(index, score) of the best documents, best first."""
        order = sorted(enumerate(self.scores), key=lambda pair: -pair[1])
        return order[: self.top] if self.top else order


class _Message(msgspec.Struct):
    role: str = "user"
    content: str | list[dict[str, Any]] | None = None
    type: str = "message"
    output: Any = None
    """Of a function's result, among the items of the responses API."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Text(msgspec.Struct):
    """Of the responses API: the form that the answer's text must have."""

    format: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    """Of all generating APIs; each looks at its own members."""

    model: str | None = None
    messages: list[_Message] | None = None
    prompt: str | list[str | int] | None = None
    input: str | list[_Message] | None = None
    system: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = False
    n: int | None = 1
    return_token_strs: bool | None = False
    priority: int | None = 0
    user: str | None = None
    session_id: str | None = None
    prompt_cache_key: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    text: _Text | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    stop_sequences: list[str] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None


class _RankingBody(msgspec.Struct):
    model: str | None = None
    input: str | list[str | int | list[int]] | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    query: str | None = None
    documents: list[str] | None = None
    top_n: int | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None


class Api:
    """Parses for one model. `seed` fixes the lengths of answers nobody limits."""

    def __init__(self, params: LabParams, seed: int) -> None:
        self.model = params.model
        self.max_model_len_tokens = params.max_model_len_tokens()
        self.adapters = adapter_names(params)
        self._shares = params.prefix_caching
        self._random = random.Random(seed)
        self._decoder = msgspec.json.Decoder(_Body)
        self._ranking_decoder = msgspec.json.Decoder(_RankingBody)

    def generation(self, raw: bytes, dialect: Dialect, session: str | None = None) -> Generation:
        """session: as a header names it. Raises ApiError 400 for a body that cannot be served, 404 for an unknown
        model."""
        body = _decode(self._decoder, raw)
        adapter = self._adapter(body.model)
        if body.n not in (None, 1):
            raise ApiError(BAD_REQUEST, f"n is {body.n}; this server makes one answer per request")
        if body.stream_options is not None and not body.stream:
            raise ApiError(BAD_REQUEST, "stream_options is only allowed with stream=true")
        _check_sampling(body)
        talk = None if dialect == "completions" else _talk(body, dialect)
        prompt_tokens = _plain_tokens(body) if talk is None else tokens_of_talk(talk)
        asked = _asked_tokens(body, dialect)
        self._check_lengths(prompt_tokens, asked, body.min_tokens)
        output_tokens, reason = self._output(asked, self.max_model_len_tokens - prompt_tokens, body)
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        prompt = (_plain_words(body) if talk is None else words_of_talk(talk)) if self._shares else []
        return Generation(
            dialect,
            prompt_tokens,
            output_tokens,
            reason,
            bool(body.stream),
            include_usage,
            prompt,
            0 if talk is None else sum(map(tokens_of_image, talk.images)),
            _number_of(session or body.session_id or body.prompt_cache_key or body.user),
            adapter,
            _schema(body),
            body.priority or 0,
            _stops(body, dialect),
            body.min_tokens or 0,
        )

    def ranking(self, raw: bytes, kind: RankingKind) -> Ranking:
        """Raises ApiError as above."""
        body = _decode(self._ranking_decoder, raw)
        self._adapter(body.model)
        ranking = _embeddings(body) if kind == "embeddings" else _pairs(body, kind)
        if len(ranking.prompt_tokens) > INPUTS_MAX:
            raise ApiError(BAD_REQUEST, f"{len(ranking.prompt_tokens)} texts in one request; {INPUTS_MAX} are allowed")
        for prompt_tokens in ranking.prompt_tokens:
            self._check_lengths(prompt_tokens, None, None)
        return ranking

    def tokenize(self, raw: bytes) -> bytes:
        """Body of POST /tokenize: the count, and token ids that are positions in the text; their texts, if asked."""
        body = _decode(self._decoder, raw)
        self._adapter(body.model or self.model)
        if body.messages is not None:
            talk = _talk(body, "chat")
            count = tokens_of_talk(talk)
            texts = strings_of_talk(talk) if body.return_token_strs else None
        else:
            if not isinstance(body.prompt, str):
                raise ApiError(BAD_REQUEST, "send the text as field 'prompt', or a conversation as 'messages'")
            count = words(body.prompt)
            texts = strings(body.prompt) if body.return_token_strs else None
        answer = {"count": count, "max_model_len": self.max_model_len_tokens, "tokens": list(range(count))}
        return msgspec.json.encode({**answer, "token_strs": texts} if body.return_token_strs else answer)

    def _adapter(self, model: str | None) -> int | None:
        """Of the model that is asked for; None: the base model."""
        if model == self.model:
            return None
        if model is None:
            raise ApiError(BAD_REQUEST, f"field 'model' is missing; this server has {self.model!r}")
        if model not in self.adapters:
            message = f"the model {model!r} does not exist; this server has {self.model!r}"
            raise ApiError(NOT_FOUND, message, "NotFoundError")
        return self.adapters.index(model)

    def _check_lengths(self, prompt_tokens: int, asked: int | None, least: int | None) -> None:
        if asked is not None and asked < 1:
            raise ApiError(BAD_REQUEST, f"max_tokens is {asked}; it must be at least 1")
        if least is not None and (least < 0 or least > (asked or self.max_model_len_tokens)):
            raise ApiError(BAD_REQUEST, f"min_tokens is {least}; it must lie between 0 and max_tokens ({asked})")
        if self.max_model_len_tokens - prompt_tokens < (asked or 1):
            raise ApiError(
                BAD_REQUEST,
                f"the maximum context length is {self.max_model_len_tokens} tokens, but the request has "
                f"{prompt_tokens} prompt tokens and asks for {asked or 1} more; shorten one of them",
            )

    def _output(self, asked: int | None, room_tokens: int, body: _Body) -> tuple[int, str]:
        """An answer that is limited has just that length: the model never ends before, whether or not it may.

        Nobody's limit: its own length, at least min_tokens; with ignore_eos all the room there is.
        """
        if asked is not None:
            return asked, "length"
        natural = int(math.exp(self._random.gauss(math.log(NATURAL_OUTPUT_TOKENS), NATURAL_OUTPUT_SIGMA)))
        natural = max(1, natural, body.min_tokens or 0)
        return (natural, "stop") if natural < room_tokens and not body.ignore_eos else (room_tokens, "length")


def adapter_names(params: LabParams) -> list[str]:
    """Models that are adapters of the base model, in the order of their numbers."""
    return [adapter_name(params.model, index) for index in range(params.lora.adapters)]


def adapter_name(model: str, index: int) -> str:
    """Under which requests ask for an adapter and pages name it."""
    return f"{model}-lora-{index}"


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise ApiError(BAD_REQUEST, f"the request body is not valid: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(BAD_REQUEST, f"the request body is not JSON: {error}") from error


RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("temperature", 0.0, 2.0, True),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, True),
    ("presence_penalty", -2.0, 2.0, True),
    ("frequency_penalty", -2.0, 2.0, True),
    ("repetition_penalty", 0.0, 2.0, False),
)
"""Sampling parameter, least, most, and whether the least itself is allowed; as OpenAI's and vLLM's references say."""


def _check_sampling(body: _Body) -> None:
    """What the lab's answers do not depend on is checked all the same, and what it cannot answer is refused."""
    for name, least, most, closed in RANGES:
        value: float | None = getattr(body, name)
        if value is not None and not (least < value <= most or (closed and value == least)):
            raise ApiError(
                BAD_REQUEST, f"{name} is {value:g}; it must be in {'[' if closed else '('}{least:g}, {most:g}]"
            )
    if body.top_k is not None and body.top_k < -1:
        raise ApiError(BAD_REQUEST, f"top_k is {body.top_k}; it must be -1 or 0 (off), or at least 1")
    # A number asks for log probabilities even when it is 0: those of the chosen tokens.
    wants = body.logprobs is not None and body.logprobs is not False
    if wants or body.top_logprobs or body.prompt_logprobs is not None:
        raise ApiError(BAD_REQUEST, "logprobs are not available: this server simulates a model and has none")
    if body.echo:
        raise ApiError(BAD_REQUEST, "echo is not available: this server does not send the prompt back")
    if body.best_of not in (None, 1):
        raise ApiError(BAD_REQUEST, f"best_of is {body.best_of}; this server makes one answer per request")


def _stops(body: _Body, dialect: Dialect) -> tuple[str, ...]:
    stop = body.stop_sequences if dialect == "messages" else body.stop
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in found:
        raise ApiError(BAD_REQUEST, "stop holds an empty text; leave it out, or give texts that can occur")
    return found


def _asked_tokens(body: _Body, dialect: Dialect) -> int | None:
    if dialect == "responses":
        return body.max_output_tokens
    if dialect == "messages" and body.max_tokens is None:
        raise ApiError(BAD_REQUEST, "field 'max_tokens' is missing; this API wants a limit for every answer")
    return body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens


def _plain_prompt(body: _Body) -> str | list[int]:
    prompt = body.prompt
    if prompt is None:
        raise ApiError(BAD_REQUEST, "field 'prompt' is missing; send a string, or a list of token ids")
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise ApiError(BAD_REQUEST, "field 'prompt' is an empty list")
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) != len(prompt):
        raise ApiError(BAD_REQUEST, "several prompts in one request are not supported; send one request for each")
    return ids


def _plain_tokens(body: _Body) -> int:
    prompt = _plain_prompt(body)
    return max(1, words(prompt)) if isinstance(prompt, str) else len(prompt)


def _plain_words(body: _Body) -> list[str]:
    prompt = _plain_prompt(body)
    return prompt.split() if isinstance(prompt, str) else list(map(str, prompt))


def _schema(body: _Body) -> int | None:
    """A number for the form that the answer must have: equal for equal forms. None: it is free."""
    wanted = body.response_format or (body.text.format if body.text is not None else None)
    if isinstance(wanted, dict) and wanted.get("type") not in (None, "text"):
        form = wanted.get("json_schema") or wanted.get("schema") or wanted.get("type")
    else:
        form = body.guided_json or body.structured_outputs
    return zlib.crc32(msgspec.json.encode(form, order="sorted")) if form else None


def _number_of(name: str | None) -> int | None:
    return None if name is None else zlib.crc32(name.encode())


def _talk(body: _Body, dialect: Dialect) -> Talk:
    """The conversation, whichever API asks. A system prompt that has a place of its own is a message like any other."""
    talk = Talk([], tools=[_function(tool) for tool in body.tools or ()])
    if dialect == "responses":
        if not body.input:
            raise ApiError(BAD_REQUEST, "field 'input' is missing or empty; send a string, or a list of items")
        if body.instructions:
            talk.texts.append(body.instructions)
        messages = [_Message(content=body.input)] if isinstance(body.input, str) else body.input
    else:
        if not body.messages:
            raise ApiError(BAD_REQUEST, "field 'messages' is missing or empty; send a list with at least one message")
        if dialect == "messages" and body.system:
            _add(talk, body.system)
        messages = body.messages
    for message in messages:
        _add(talk, message.output if message.type == "function_call_output" else message.content)
    return talk


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """A function in one form, whichever API offers it, so that it costs the same."""
    inner = tool.get("function")
    inner = inner if isinstance(inner, dict) else tool
    parameters = inner.get("parameters") or inner.get("input_schema")
    return {"name": inner.get("name"), "description": inner.get("description"), "parameters": parameters}


def _add(talk: Talk, content: Any) -> None:
    """One message: its texts as one, and its images."""
    if isinstance(content, str) or not content:
        talk.texts.append(content or "")
        return
    texts: list[str] = []
    images: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            raise ApiError(BAD_REQUEST, "the request body is not valid: a part of a message is no object")
        if isinstance(text := part.get("text"), str):
            texts.append(text)
        elif part.get("type") in ("image_url", "input_image", "image"):
            images.append(_image_data(part))
    talk.texts.append(" ".join(texts))
    talk.images = [*talk.images, *images]


def _image_data(part: dict[str, Any]) -> str:
    """base64 of an image in the form of chat (image_url.url), responses (image_url) or messages (source.data)."""
    place = part.get("image_url") or part.get("source") or ""
    found = place.get("url") or place.get("data") if isinstance(place, dict) else place
    return found.partition("base64,")[2] or found if isinstance(found, str) else ""


def _embeddings(body: _RankingBody) -> Ranking:
    texts = body.input
    if not texts:
        raise ApiError(BAD_REQUEST, "field 'input' is missing or empty; send a string, or a list of strings")
    if body.encoding_format not in (None, "float", "base64"):
        raise ApiError(BAD_REQUEST, f"encoding_format is {body.encoding_format!r}; it must be float or base64")
    if body.dimensions is not None and not 1 <= body.dimensions <= DIMENSIONS_MAX:
        raise ApiError(BAD_REQUEST, f"dimensions is {body.dimensions}; it must lie between 1 and {DIMENSIONS_MAX}")
    if isinstance(texts, str):
        counts = [words(texts)]
    elif isinstance(texts[0], int):
        counts = [len(texts)]
    else:
        counts = [words(text) if isinstance(text, str) else len(text) for text in texts if not isinstance(text, int)]
    return Ranking(
        "embeddings",
        tuple(max(1, count) for count in counts),
        base64=body.encoding_format == "base64",
        dimensions=body.dimensions,
    )


def _pairs(body: _RankingBody, kind: RankingKind) -> Ranking:
    """A model that ranks reads the question and a document together."""
    if kind == "rerank":
        if body.query is None or not body.documents:
            raise ApiError(BAD_REQUEST, "fields 'query' and 'documents' are needed, a string and a list of strings")
        pairs = [(body.query, document) for document in body.documents]
    else:
        ones, others = _as_list(body.text_1), _as_list(body.text_2)
        if not ones or not others or len(ones) not in (1, len(others)):
            raise ApiError(
                BAD_REQUEST, "fields 'text_1' and 'text_2' are needed: one text and several, or as many as the other"
            )
        pairs = list(zip(ones * len(others) if len(ones) == 1 else ones, others, strict=True))
    return Ranking(
        kind,
        tuple(max(1, words(one) + words(other)) for one, other in pairs),
        documents=tuple(document for _, document in pairs),
        scores=tuple(_likeness(one, other) for one, other in pairs),
        top=body.top_n,
    )


def _as_list(texts: str | list[str] | None) -> list[str]:
    return [texts] if isinstance(texts, str) else texts or []


def _likeness(question: str, document: str) -> float:
    """Share of the question's words that the document has: enough to put documents into an order."""
    asked = set(question.split())
    return round(len(asked & set(document.split())) / len(asked), 6) if asked else 0.0
