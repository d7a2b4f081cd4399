"""One span as we keep it, whatever it came as: bounded, checked, and with no text of prompts or answers.

Readers of OTLP and of files bring a `Sent` (what a sender told, untrusted) and get a `Span` or the reason why it is
none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

MAX_NAME_CHARS = 200
MAX_VALUE_CHARS = 256
MAX_ATTRIBUTES_BYTES = 4096
"""Attributes of one span as JSON; vLLM's take 500 bytes. More are left out, those of generative AI last."""
MAX_ATTRIBUTES = 128
"""Of one span; the default limit of OpenTelemetry's SDKs (specification, "Span limits")."""
INT64_MAX = 2**63 - 1
FIRST_NS = 10**18
"""The year 2001: a sender whose clock says earlier has none."""
TRACE_DIGITS, SPAN_DIGITS = 32, 16
KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
"""By number in OTLP (trace.proto, Span.SpanKind); unspecified counts as internal."""
STATUSES = ("unset", "ok", "error")
SPOKEN = (
    *("gen_ai.prompt", "gen_ai.completion", "gen_ai.input", "gen_ai.output", "gen_ai.system_instructions"),
    *("gen_ai.tool.call", "gen_ai.tool.definitions", "llm.prompts", "llm.completions"),
    *("llm.input_messages", "llm.output_messages", "input.value", "output.value"),
    *("traceloop.entity.input", "traceloop.entity.output", "db.query.text", "db.statement", "url.query"),
    *("http.request.header.", "http.response.header.", "rpc.request.metadata.", "rpc.response.metadata."),
)
"""Beginnings of attributes that hold what users or models said, what was looked up, or keys: never kept."""
ADDRESSES = frozenset({"url.full", "http.url", "http.target"})
"""Kept without their query, in which keys and questions stand."""
NAMELESS = "unknown_service"
"""What an SDK calls a service that was given no name (OTEL_SERVICE_NAME)."""
VLLM_MODULE = "vllm.instrumenting_module_name"
"""vLLM tells what it is by an attribute of its own (vllm/tracing/otel.py)."""
FIRST_KEPT = ("gen_ai.", "llm.", "http.", "rpc.", "db.system", "server.", "peer.")


class Sent(NamedTuple):
    """A span as told. Ids in hexadecimal, instants in ns since 1970; kind and status by their numbers in OTLP."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    start_unix_ns: int
    end_unix_ns: int
    status: int
    attributes: Mapping[str, Any]


class Span(NamedTuple):
    """In the order of model.SPAN_COLUMNS up to the instants, which are still those of the sender's wall clock."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    service: str
    instance: str
    kind: str
    start_unix_ns: int
    end_unix_ns: int
    status: str
    attributes_json: str


class Sender(NamedTuple):
    """From whom a group of spans came. instance: whose clock they were stamped with, as far as is told."""

    service: str
    instance: str


def sender_of(resource: Mapping[str, Any]) -> Sender:
    """resource: the sender's own attributes (semantic conventions "resource")."""
    instance = next((resource[key] for key in ("host.name", "service.instance.id") if resource.get(key)), "")
    service = _text(resource.get("service.name", ""))
    if service.startswith(NAMELESS) and VLLM_MODULE in resource:
        service = "vllm"
    return Sender(service, _text(instance))


def checked(sent: Sent, sender: Sender) -> Span | str:
    """The span, or in few words why it is none."""
    if not _is_id(sent.trace_id, TRACE_DIGITS) or not _is_id(sent.span_id, SPAN_DIGITS):
        return "a trace or span id that is none"
    if not FIRST_NS <= sent.start_unix_ns <= INT64_MAX or not FIRST_NS <= sent.end_unix_ns <= INT64_MAX:
        return "no start or no end"
    if sent.end_unix_ns < sent.start_unix_ns:
        return "an end before its start"
    parent = sent.parent_id.lower()
    return Span(
        sent.trace_id.lower(),
        sent.span_id.lower(),
        parent if _is_id(parent, SPAN_DIGITS) else None,
        _text(sent.name),
        sender.service,
        sender.instance,
        KINDS[sent.kind] if 0 <= sent.kind < len(KINDS) else KINDS[0],
        sent.start_unix_ns,
        sent.end_unix_ns,
        STATUSES[sent.status] if 0 <= sent.status < len(STATUSES) else STATUSES[0],
        attributes_json(sent.attributes),
    )


def attributes_json(attributes: Mapping[str, Any]) -> str:
    """Attributes as a JSON object of numbers, truths and texts; long texts cut, nested values as text."""
    kept: dict[str, Any] = {}
    for key in sorted(attributes, key=_kept_late):
        if key.startswith(SPOKEN) or len(kept) == MAX_ATTRIBUTES:
            continue
        value = _plain(attributes[key])
        kept[_text(key)] = str(value).partition("?")[0] if key in ADDRESSES else value
    text = msgspec.json.encode(kept)
    while len(text) > MAX_ATTRIBUTES_BYTES:  # those that matter least stand last
        for key in list(kept)[-(len(kept) // 4 + 1) :]:
            del kept[key]
        text = msgspec.json.encode(kept)
    return text.decode()


def _kept_late(key: str) -> bool:
    return not key.startswith(FIRST_KEPT)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int):
        return value if -INT64_MAX <= value <= INT64_MAX else str(value)[:MAX_VALUE_CHARS]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no word for them
    return _text(value, MAX_VALUE_CHARS)


def _text(value: Any, limit: int = MAX_NAME_CHARS) -> str:
    """A surrogate alone can be written down in JSON and in no file."""
    text = (value if isinstance(value, str) else _listed(value))[:limit]
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _listed(value: Any) -> str:
    """The first few of a list, not nested; a repr of what a stranger nested could take long."""
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return ",".join(_short(one) for one in value[:MAX_VALUE_CHARS])
    return _short(value)


def _short(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float | bool) and len(str(value)) < MAX_VALUE_CHARS else "..."


def _is_id(text: str, digits: int) -> bool:
    if len(text) != digits or not text.isascii() or not text.isalnum():
        return False
    try:
        return int(text, 16) != 0
    except ValueError:
        return False


def reasons(refused: Iterable[str]) -> str:
    """Each reason once, for a message to the sender."""
    return "; ".join(dict.fromkeys(refused))
