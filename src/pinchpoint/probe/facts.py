"""Finds out what a URL is before any load goes to it: engine, API, model, limits, and where to watch it.

About twenty small requests, one after the other, and two to four generations of one token; up to ten more where no
OpenAI path answers. Everything that could not
be found out becomes one sentence in `unknown`; only what makes a test impossible is an error.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pinchpoint.errors import TargetError, UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.model import Limits, TargetFacts
from pinchpoint.probe.address import Address, parse_address
from pinchpoint.probe.apis import Asked, probe_named, probe_others, triton_models
from pinchpoint.probe.exchange import HTTP_OK, MAX_METRICS_BYTES, Exchange, Page, Unanswered
from pinchpoint.probe.generation import NO_ENTRY, Generation, describe, key_error, probe_generation
from pinchpoint.probe.limits import Collected, Told, read_limits
from pinchpoint.probe.local import listening_pids
from pinchpoint.probe.signatures import (
    EngineSignature,
    Identity,
    Signatures,
    identify,
    load_signatures,
    metric_names,
    model_cards,
)
from pinchpoint.targets.registry import kind_of

DEFAULT_TIMEOUT_S = 5.0
MAX_SILENT_PAGES = 2
"""After so many pages without an answer the rest is not asked for: the service is slow, and a probe must end."""
MAX_MODELS = 100
MAX_SHOWN_MODELS = 10
REDIRECT = range(300, 400)
MARKUP = ("text/html", "application/xhtml+xml", "text/xml", "application/xml")
SERVERS_OF_ANY_MODEL = ("triton", "tf-serving")
"""What they are asked, and how, depends on the model."""
LIMIT_WORDS = {
    "max_sequences": "max sequences",
    "kv_tokens": "KV cache size",
    "context_tokens": "context length",
    "max_batched_tokens": "max batched tokens",
}


def probe(
    url: str,
    *,
    model: str | None = None,
    api: str | None = None,
    api_options: Mapping[str, Any] | None = None,
    api_key: str | None = None,
    ca_file: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> TargetFacts:
    """Facts about the service at `url` (a base URL; /v1 or a full API path behind it is accepted).

    `api` is the name or path of a target, `api_options` its options: then no other is tried. `timeout_s` bounds each
    question but generations, which get 60 s; `ca_file` adds a private authority. Raises TargetError when the service
    cannot be reached or verified, wants a key, refuses a one-token request or is no service that can be tested;
    UsageError for a bad URL or CA file, an unknown model or an unknown API.
    """
    address = parse_address(url)
    # A bad CA file is told even for an http URL: the metrics page may be https.
    tls = tls_context(ca_file) if ca_file is not None or address.scheme == "https" else None
    exchange = Exchange(address, api_key, timeout_s, tls)
    signatures = load_signatures()
    unknown: list[str] = []

    pages = _ask_pages(exchange, signatures, unknown)
    metrics, metrics_url, metrics_trouble = _find_metrics(exchange, signatures, None)
    identity = identify(signatures, pages, metrics)
    if metrics is None and identity.engine is not None and identity.engine.metrics_port is not None:
        metrics, metrics_url, metrics_trouble = _find_metrics(exchange, signatures, identity.engine.metrics_port)
        identity = identify(signatures, pages, metrics)
    if identity.rival is not None and identity.engine is not None:
        unknown.append(f"engine: the evidence fits {identity.rival} as well as {identity.engine.name}")

    engine = identity.engine.name if identity.engine is not None else "openai-compatible"
    models = _models(exchange, pages, engine)
    chosen = _choose_model(exchange, models, pages, model, unknown)
    asked = Asked(chosen, engine, dict(api_options or {}))
    generation = _generation(exchange, identity, asked, api, pages, unknown)
    if metrics_url is None:
        unknown.append(_no_metrics(identity.engine, metrics_trouble))
    told = read_limits(engine, Collected(pages, metrics, chosen))
    unknown += _unknown_limits(told, identity.engine)
    health_path = _health_path(exchange, signatures, identity.engine, pages)
    if health_path is None:
        unknown.append(
            "null request: no path answered that does not touch the model, so queueing before it is not seen"
        )
    pids, pids_note = listening_pids(address)
    if pids_note is not None:
        unknown.append(pids_note)
    return TargetFacts(
        url=address.url,
        engine=engine,
        engine_version=_version(exchange, identity.engine, pages),
        engine_evidence=identity.evidence,
        api=generation.api,
        api_name=generation.name,
        api_options=generation.options,
        models=models,
        model=chosen,
        streaming=generation.streaming,
        usage_in_stream=generation.usage_in_stream,
        limits=told.limits,
        limit_sources=told.sources,
        metrics_url=metrics_url,
        health_path=health_path,
        server_pids=pids,
        prompt_overhead_tokens=generation.prompt_overhead_tokens,
        tokens_per_word=generation.tokens_per_word,
        unknown=tuple(unknown),
    )


def _ask_pages(exchange: Exchange, signatures: Signatures, unknown: list[str]) -> dict[str, Page]:
    """Every page the signatures look at. The first one decides whether the service can be reached at all."""
    pages: dict[str, Page] = {}
    silent: list[str] = []
    for path in signatures.paths:
        try:
            page = exchange.get(path)
        except Unanswered as error:
            if not pages:
                raise TargetError(str(error)) from None
            silent.append(path)
            if len(silent) >= MAX_SILENT_PAGES:
                break
            continue
        pages[path] = page
        if len(pages) == 1:
            _check_first(exchange, page)
    if silent:
        unknown.append(f"engine: {' and '.join(silent)} got no answer, so evidence may be missing")
    return pages


def _check_first(exchange: Exchange, page: Page) -> None:
    if page.status in NO_ENTRY:
        raise key_error(exchange, page)
    if page.status in REDIRECT:
        target = exchange.clean(page.headers.get("location", "")) or "another place"
        raise TargetError(f"{exchange.address.url} redirects to {target} (HTTP {page.status}); give that URL")


def _find_metrics(
    exchange: Exchange, signatures: Signatures, port: int | None
) -> tuple[Page | None, str | None, str | None]:
    """The metrics page, its URL, and what stood in the way when there is none."""
    address: Address = exchange.address
    trouble: str | None = None
    roots = (False, True) if address.prefix and port is None else (False,)
    for at_root in roots:
        base = address.origin(port) if at_root or port else address.url
        for path in signatures.metrics_paths:
            try:
                page = exchange.get(path, port=port, at_root=at_root, max_bytes=MAX_METRICS_BYTES)
            except Unanswered as error:
                return None, None, trouble or f"{path} got no answer ({error.kind})"
            if metric_names(page):
                return page, base + path, None
            if page.status in NO_ENTRY:
                trouble = f"{path} wants other credentials (HTTP {page.status})"
            elif trouble is None:
                trouble = f"{path} answered HTTP {page.status}"
    return None, None, trouble


def _no_metrics(engine: EngineSignature | None, trouble: str | None) -> str:
    hint = engine.hints.get("metrics") if engine is not None else None
    return f"metrics: {trouble or 'no page was found'}; {hint or 'give --metrics-url if there is a page elsewhere'}"


def _models(exchange: Exchange, pages: dict[str, Page], engine: str) -> tuple[str, ...]:
    """Model names that can be shown and sent as they are; hostile ones are left out."""
    cards = model_cards(pages.get("/v1/models")) or model_cards(pages.get("/api/tags"))
    names = [card.get("id") or card.get("name") or card.get("model") for card in cards]
    if not names:
        info = pages["/info"].object() if "/info" in pages else {}
        names = triton_models(exchange) if engine == "triton" else [info.get("model_id")]
    fit = [name for name in names if isinstance(name, str) and name and exchange.clean(name) == name]
    return tuple(dict.fromkeys(fit))[:MAX_MODELS]


def _choose_model(
    exchange: Exchange, models: tuple[str, ...], pages: dict[str, Page], wanted: str | None, unknown: list[str]
) -> str | None:
    if wanted is not None:
        aliases = [card.get("aliases") for card in model_cards(pages.get("/v1/models"))]
        known_alias = any(isinstance(names, list) and wanted in names for names in aliases)
        if not models or wanted in models or known_alias or f"{wanted}:latest" in models:
            return wanted
        shown = ", ".join(models[:MAX_SHOWN_MODELS]) + (", ..." if len(models) > MAX_SHOWN_MODELS else "")
        raise UsageError(
            f"{exchange.address.place} does not serve model {exchange.clean(wanted)}; choose one of: {shown}"
        )
    if not models:
        unknown.append("model: the service lists none; give --model if it needs a name")
        return None
    first, *others = models
    if others:
        unknown.append(
            f"model: the service lists {len(models)} and none was asked for, so the first was taken; choose with "
            "--model"
        )
    return first


def _generation(
    exchange: Exchange,
    identity: Identity,
    asked: Asked,
    api: str | None,
    pages: dict[str, Page],
    unknown: list[str],
) -> Generation:
    """Raises TargetError when nothing answers, except for servers of models that have no name yet."""
    if api is not None:
        result = probe_named(exchange, api, asked)
    else:
        result = probe_generation(exchange, asked.model)
        if result.api is None:
            result = probe_others(exchange, asked, result.refusal)
    name = identity.engine.name if identity.engine is not None else None
    if result.api is None:
        if result.refusal is None and api is None and name in SERVERS_OF_ANY_MODEL:
            unknown.append(
                f"API: {name} answers no API here that a load could be put on; name one of its models with --model"
                if asked.model is None
                else f"API: model {exchange.clean(asked.model)} of {name} answers no API here; name it with --api, and "
                "its tensors in api_options"
            )
            return result
        if result.refusal is not None:
            raise TargetError(
                f"{exchange.address.place} refused a one-token request: {result.refusal}; mend that first, or choose "
                "another --model or --api"
            )
        if api is not None:
            raise TargetError(f"{exchange.address.place} has no API {api}; leave --api out to find one that it has")
        if name is not None:
            raise TargetError(
                f"{exchange.address.place} is {name}, but /v1/chat/completions and /v1/completions are not there; give "
                "the base URL of its OpenAI API"
            )
        raise TargetError(_not_llm(exchange, pages))
    kind = kind_of(result.name or result.api)
    if kind.transport != "http":
        unknown.append(f"API: {kind.name} is taken as given; the probe speaks HTTP only")
        return result
    if result.streaming is False and kind.streams:
        unknown.append("streaming: asked for a stream, the service answers in one piece; TTFT equals E2E")
    if result.usage_in_stream is False:
        unknown.append("usage: streams end without token counts; tokens are counted by events")
    if result.tokens_per_word is None:
        unknown.append("tokens per word: the service did not count two prompts of known length")
    return result


def _not_llm(exchange: Exchange, pages: dict[str, Page]) -> str:
    page = pages.get("/") or next(iter(pages.values()))
    kind = exchange.clean(page.content_type.partition(";")[0]) or "no content type"
    server = exchange.clean(page.headers.get("server", ""))
    by = f" by {server}" if server else ""
    said = f"HTTP {page.status}" if kind in MARKUP else describe(exchange, page)
    return (
        f"{exchange.address.url} is no LLM service known here: {page.path} answered {said} ({kind}{by}), and no OpenAI "
        "path is there; check host, port and path"
    )


def _version(exchange: Exchange, engine: EngineSignature | None, pages: dict[str, Page]) -> str | None:
    for path, key in engine.version if engine is not None else ():
        told = pages[path].object().get(key) if path in pages else None
        if isinstance(told, str) and exchange.clean(told):
            return exchange.clean(told)
    return None


def _unknown_limits(told: Told, engine: EngineSignature | None) -> list[str]:
    hints = engine.hints if engine is not None else {}
    return [
        f"{LIMIT_WORDS[field]}: {hints.get(field, 'the service does not tell')}"
        for field in Limits.__struct_fields__
        if msgspec.structs.asdict(told.limits)[field] is None
    ]


def _health_path(
    exchange: Exchange, signatures: Signatures, engine: EngineSignature | None, pages: dict[str, Page]
) -> str | None:
    """The first path that answers 200. Engines whose /health runs the model have a list of their own."""
    for path in (engine.health_paths if engine is not None else ()) or signatures.health_paths:
        page = pages.get(path)
        if page is None:
            try:
                page = exchange.get(path)
            except Unanswered:
                continue
        if page.status == HTTP_OK:
            return path
    return None
