"""What the generation API does: which path answers, whether it streams and counts, and how words become tokens.

Costs the target two requests of one token each, three or four where it refuses an option.

The surprising thing: a chat template adds tokens to every prompt (31 of 32 for a short one on SmolLM2). A workload
that asks for 256 input tokens must know that, so two prompts of known length are sent and a line is fitted.
"""

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from pinchpoint.errors import TargetError, UsageError
from pinchpoint.probe.exchange import HTTP_OK, Exchange, Page, Unanswered
from pinchpoint.targets.target import Target

GENERATION_TIMEOUT_S = 60.0
SERVER_ERROR = 500
RETRIES = 2
"""A service that fails one request in five is still a service to test; three failures in a row are told at once."""
"""A first request may wait for a model to be loaded (Ollama) or kernels to be compiled (vLLM): tens of seconds."""
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
CHAT_TAIL = "/chat/completions"
FIT_WORDS = (8, 136)
"""128 words apart: one token more or less then moves tokens per word by less than 1 %. Fits a context of 512 tokens."""
FIT_SEED = 1
WORDS = (
    "time year day way thing man world life hand part child eye place work week case point home water room mother area "
    "money story month lot right book word side kind head house friend power hour game line end law car city name team"
).split()[:40]
"""Common short English nouns: one token each in nearly every vocabulary."""
REFUSED_OPTION = (400, 422)
NO_SUCH_API = (404, 405, 501)
NOT_FOUND = 404
NO_ENTRY = (401, 403)
TURNED_AWAY = (429, 503)


class Generation(msgspec.Struct, frozen=True):
    """api None: no generation path answered; `refusal` then says what the last one answered. name: the target's."""

    api: str | None
    streaming: bool | None = None
    usage_in_stream: bool | None = None
    prompt_overhead_tokens: float | None = None
    tokens_per_word: float | None = None
    refusal: str | None = None
    name: str | None = None
    options: dict[str, Any] = {}


def probe_words(count: int, seed: int) -> str:
    """`count` words from WORDS in an order fixed by the seed."""
    generator = random.Random(seed)
    return " ".join(generator.choice(WORDS) for _ in range(count))


def fit_tokens(points: list[tuple[int, int]]) -> tuple[float, float] | None:
    """(overhead tokens, tokens per word) of the line through two (words, prompt tokens); None if it makes no sense."""
    (words_a, tokens_a), (words_b, tokens_b) = points
    if words_a == words_b or tokens_b <= tokens_a:
        return None
    per_word = (tokens_b - tokens_a) / (words_b - words_a)
    return max(0.0, tokens_a - per_word * words_a), per_word


class _Answer(msgspec.Struct, frozen=True):
    """One generation that worked."""

    streamed: bool
    prompt_tokens: int | None


def probe_generation(exchange: Exchange, model: str | None, paths: Sequence[str] = (CHAT, COMPLETIONS)) -> Generation:
    """Tries OpenAI's paths: chat, then plain completions.

    Raises TargetError when the service wants a key, is too busy, fails or does not answer; UsageError when it does
    not know the model.
    """
    refusal: str | None = None
    for path in paths:
        result = _try_path(exchange, path, model)
        if isinstance(result, Generation):
            return result
        refusal = refusal if result is None else f"{path} answered {result}"
    return Generation(None, refusal=refusal)


def _try_path(exchange: Exchange, path: str, model: str | None) -> Generation | str | None:
    """None: there is no such API. A text: there is one, and it refused."""
    # Plain first refusals are of an option: asked for a stream with usage, for a stream, for an answer in one piece.
    for stream, usage in ((True, True), (True, False), (False, False)):
        page = _ask(exchange, path, model, FIT_WORDS[0], stream, usage)
        if page.status not in REFUSED_OPTION:
            break
    else:
        return describe(exchange, page)
    if page.status in NO_SUCH_API:
        complain_about_model(exchange, page, model)
        return None
    if page.status != HTTP_OK:
        return describe(exchange, page)
    first = _answer(exchange, path, page)
    return _with_fit(exchange, path, model, first, usage)


def _with_fit(exchange: Exchange, path: str, model: str | None, first: _Answer, asked_usage: bool) -> Generation:
    usage_in_stream = first.streamed and first.prompt_tokens is not None
    stream = first.streamed
    points: list[tuple[int, int]] = []
    for words in FIT_WORDS:
        if words == FIT_WORDS[0] and first.prompt_tokens is not None:
            points.append((words, first.prompt_tokens))
            continue
        in_stream = stream and usage_in_stream
        page = _ask(exchange, path, model, words, in_stream, in_stream and asked_usage)
        answer = _answer(exchange, path, page) if page.status == HTTP_OK else None
        if answer is None or answer.prompt_tokens is None:
            break
        points.append((words, answer.prompt_tokens))
    line = fit_tokens(points) if len(points) == len(FIT_WORDS) else None
    overhead, per_word = line if line is not None else (None, None)
    name = "chat" if path.endswith(CHAT_TAIL) else "completions"
    return Generation(path, first.streamed, usage_in_stream if first.streamed else None, overhead, per_word, name=name)


def _ask(exchange: Exchange, path: str, model: str | None, words: int, stream: bool, usage: bool) -> Page:
    text = probe_words(words, FIT_SEED)
    payload: dict[str, Any] = {"model": model or "default", "max_tokens": 1, "temperature": 0, "stream": stream}
    payload |= {"messages": [{"role": "user", "content": text}]} if path.endswith(CHAT_TAIL) else {"prompt": text}
    if usage:
        payload["stream_options"] = {"include_usage": True}
    return ask_for_a_token(exchange, path, json.dumps(payload).encode())


def ask_for_a_token(exchange: Exchange, path: str, body: bytes, target: Target | None = None) -> Page:
    """One small request, again where the service fails. target: whose headers it has. Raises TargetError when there is
    no answer to work with: none at all, a key that is wanted, a service that is too busy."""
    headers, key_header = (dict(target.headers), target.key_header) if target is not None else ({}, "")
    try:
        page = exchange.post_body(path, body, GENERATION_TIMEOUT_S, headers, key_header)
        for _ in range(RETRIES):
            if page.status < SERVER_ERROR or page.status in TURNED_AWAY or page.status in NO_SUCH_API:
                break
            page = exchange.post_body(path, body, GENERATION_TIMEOUT_S, headers, key_header)
    except Unanswered as error:
        if error.kind == "timeout":
            raise TargetError(
                f"{exchange.address.place} answers, but gave no token within {GENERATION_TIMEOUT_S:g} s on {path}; "
                "check that the model is loaded and the service is not stuck"
            ) from None
        raise TargetError(f"a one-token request to {path} failed: {error}") from None
    if page.status in NO_ENTRY:
        raise key_error(exchange, page)
    if page.status in TURNED_AWAY:
        raise TargetError(
            f"{exchange.address.place} turned a single one-token request away ({describe(exchange, page)}); wait until "
            "it is idle or raise its rate limit"
        )
    return page


def _answer(exchange: Exchange, path: str, page: Page) -> _Answer:
    """Reads a 200. Raises TargetError when it is neither a stream nor JSON, or holds an error."""
    if page.content_type.startswith("text/event-stream") or page.body.lstrip().startswith(b"data:"):
        events = _events(page.body)
        streamed = True
    else:
        events = [page.object()] if page.object() else []
        streamed = False
    if not any("choices" in event or event.get("error") for event in events):
        shown = exchange.clean(page.text) or "nothing"
        raise TargetError(f"{path} answered 200 without any choices ({shown}); that is no OpenAI API")
    prompt_tokens: int | None = None
    for event in events:
        if event.get("error"):
            raise TargetError(
                f"{path} answered 200 and then an error ({exchange.clean(_message(event))}); see the service's log"
            )
        usage = event.get("usage")
        counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if isinstance(counted, int) and counted > 0:
            prompt_tokens = counted
    return _Answer(streamed, prompt_tokens)


def _events(body: bytes) -> list[dict[str, Any]]:
    """JSON objects of the data lines of a stream."""
    events: list[dict[str, Any]] = []
    for line in body.splitlines():
        if line.startswith(b"data:"):
            try:
                event = json.loads(line[len(b"data:") :])
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                events.append(event)
    return events


def _message(content: dict[str, Any]) -> str:
    """The complaint in an error body; engines put it in error.message, error, message or detail."""
    error = content.get("error")
    if isinstance(error, dict):
        error = error.get("message") or error.get("type")
    found = error or content.get("message") or content.get("detail") or ""
    return found if isinstance(found, str) else json.dumps(found)


def describe(exchange: Exchange, page: Page) -> str:
    """`HTTP 400: the complaint`, fit to be shown."""
    complaint = exchange.clean(_message(page.object()) or page.text)
    return f"HTTP {page.status}: {complaint}" if complaint else f"HTTP {page.status}"


def key_error(exchange: Exchange, page: Page) -> TargetError:
    """For 401 and 403."""
    what = "does not accept the API key" if exchange.has_key else "wants an API key"
    return TargetError(
        f"{exchange.address.place} {what} (HTTP {page.status} on {page.path}); give one with --api-key-env NAME or "
        "--api-key-file FILE"
    )


def complain_about_model(exchange: Exchange, page: Page, model: str | None) -> None:
    """A 404 that names the model is about the model, not about the path."""
    complaint = _message(page.object())
    if model is None or page.status != NOT_FOUND:
        return
    if re.search(rf"(?<!\w){re.escape(model)}(?!\w)", complaint):
        raise UsageError(f"the service does not serve model {exchange.clean(model)}: {exchange.clean(complaint)}")
