"""Which API other than OpenAI's chat and completions a service speaks: tried with the very targets that a load uses.

Each is asked for one token, or for one vector, ranking or prediction; where a path is not there, that costs one small
request. What a model server wants to be sent is read from its own description of the model.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from pinchpoint.errors import TargetError, UsageError
from pinchpoint.probe.exchange import HTTP_OK, Exchange, Page, Unanswered
from pinchpoint.probe.generation import (
    FIT_SEED,
    FIT_WORDS,
    NO_SUCH_API,
    REFUSED_OPTION,
    Generation,
    ask_for_a_token,
    complain_about_model,
    describe,
    fit_tokens,
    probe_generation,
    probe_words,
)
from pinchpoint.prompt import Prompt
from pinchpoint.targets import kserve, tfserving
from pinchpoint.targets.ndjson import NdjsonParser
from pinchpoint.targets.registry import kind_of, make_target
from pinchpoint.targets.sse import SseParser
from pinchpoint.targets.target import Chunk, Target, TargetSpec

OTHERS: Mapping[str, tuple[str, ...]] = {
    "ollama": ("ollama", "embeddings"),
    "tgi": ("tgi",),
    "tei": ("embeddings", "rerank"),
    "sglang": ("sglang-generate", "embeddings", "rerank"),
    "vllm": ("embeddings", "rerank", "score"),
    "triton": ("triton-generate", "kserve"),
    "tf-serving": ("tfserving",),
}
"""Engine -> targets in the order in which they are tried."""
ANY = ("messages", "responses", "embeddings", "rerank")
"""Of every other service."""
MODEL_FIRST = ("triton", "tf-serving")
"""Engines whose paths hold the model's name, so that without one there is nothing to try."""
INDEX = "/v2/repository/index"


class Asked(msgspec.Struct, frozen=True):
    """options: of the target, as the user gave them."""

    model: str | None
    engine: str
    options: dict[str, Any] = {}


def probe_named(exchange: Exchange, api: str, asked: Asked) -> Generation:
    """That API and no other. Raises UsageError for one that there is not, TargetError as probe_generation does."""
    kind = kind_of(api)
    if kind.transport != "http":
        return Generation(kind.path or api, name=kind.name, options=asked.options)
    if kind.name in ("chat", "completions"):
        return probe_generation(exchange, asked.model, (api if api.startswith("/") else kind.path,))
    result = _try(exchange, api, asked)
    return result if isinstance(result, Generation) else Generation(None, refusal=result)


def probe_others(exchange: Exchange, asked: Asked, refusal: str | None) -> Generation:
    """Whatever the engine may speak. refusal: what OpenAI's paths answered, if they are there; kept when nothing else
    is."""
    if asked.engine in MODEL_FIRST and asked.model is None:
        return Generation(None, refusal=refusal)
    for name in OTHERS.get(asked.engine, ANY):
        result = _try(exchange, name, asked)
        if isinstance(result, Generation):
            return result
    return Generation(None, refusal=refusal)


def triton_models(exchange: Exchange) -> list[Any]:
    """Names of the models that are ready; empty where the service keeps them to itself."""
    try:
        page = exchange.post(INDEX, {"ready": True})
    except Unanswered:
        return []
    told = page.json() if page.status == HTTP_OK else None
    return [one.get("name") for one in told if isinstance(one, dict)] if isinstance(told, list) else []


def _try(exchange: Exchange, api: str, asked: Asked) -> Generation | str | None:
    """None: there is no such API. A text: there is one, and it refused."""
    kind = kind_of(api)
    declared = {name: value for name, value in _declared(exchange, kind.name, asked).items() if name in _known(kind)}
    options = {**declared, **asked.options}
    spec = TargetSpec(api, asked.model or "default", asked.engine, options=options)
    for stream in (True, False) if kind.streams else (False,):
        target = make_target(msgspec.structs.replace(spec, stream=stream))
        page = _ask(exchange, target, FIT_WORDS[0])
        if page.status not in REFUSED_OPTION:
            break
    else:
        return f"{target.path} answered {describe(exchange, page)}"
    if page.status in NO_SUCH_API:
        complain_about_model(exchange, page, asked.model)
        return None
    if page.status != HTTP_OK:
        return f"{target.path} answered {describe(exchange, page)}"
    try:
        streamed, chunks = _read(target, page)
    except ValueError as error:
        return f"{target.path} answered 200, but {exchange.clean(str(error))}"
    errors = [chunk.error for chunk in chunks if chunk.error is not None]
    if errors:
        return f"{target.path} answered 200 and then an error ({exchange.clean(errors[0])})"
    counted = _input_tokens(chunks)
    line = _fit(exchange, target, counted)
    overhead, per_word = line if line is not None else (None, None)
    usage = counted is not None if streamed else None
    return Generation(target.path, streamed, usage, overhead, per_word, name=target.name, options=declared)


def _known(kind: Any) -> Mapping[str, str]:
    return kind.options or {}


def _declared(exchange: Exchange, name: str, asked: Asked) -> dict[str, Any]:
    """Options that the service's own description of the model gives."""
    if asked.model is None or name not in ("triton-generate", "kserve", "tfserving"):
        return {}
    model = quote(asked.model, safe="")
    try:
        if name == "tfserving":
            page = exchange.get(f"/v1/models/{model}/metadata")
            signature = asked.options.get("signature_name", tfserving.DEFAULT_SIGNATURE)
            return tfserving.declared(page.object(), signature) if page.status == HTTP_OK else {}
        page = exchange.get(f"/v2/models/{model}")
        return kserve.declared(page.object()) if page.status == HTTP_OK else {}
    except Unanswered:
        return {}


def _ask(exchange: Exchange, target: Target, words: int) -> Page:
    prompt = Prompt.of(probe_words(words, FIT_SEED), 1 if target.generates else 0)
    return ask_for_a_token(exchange, target.path, target.build(prompt), target)


def _read(target: Target, page: Page) -> tuple[bool, list[Chunk]]:
    """Whether it was a stream, and what it says. Raises ValueError when it is none of the API."""
    reader = target.reader()
    declared = page.content_type.startswith("text/event-stream")
    if declared or page.body.lstrip().startswith((b"data:", b"event:")):
        parser: SseParser | NdjsonParser = SseParser()
    elif target.stream and target.framing == "ndjson":
        parser = NdjsonParser()
    else:
        return False, [reader.parse_answer(page.body)]
    events = [*parser.feed(page.body), *parser.end()]
    return True, [reader.parse_event(*event) for event in events]


def _input_tokens(chunks: list[Chunk]) -> int | None:
    told = [chunk.usage.input_tokens for chunk in chunks if chunk.usage is not None]
    return next((tokens for tokens in reversed(told) if tokens), None)


def _fit(exchange: Exchange, target: Target, first: int | None) -> tuple[float, float] | None:
    """(overhead tokens, tokens per word), by a second prompt of known length; None where the service does not count."""
    if first is None:
        return None
    few, many = FIT_WORDS
    try:
        page = _ask(exchange, target, many)
        second = _input_tokens(_read(target, page)[1]) if page.status == HTTP_OK else None
    except (ValueError, TargetError, UsageError):
        return None
    return fit_tokens([(few, first), (many, second)]) if second is not None else None
