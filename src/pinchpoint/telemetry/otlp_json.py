"""Spans out of JSON: an OTLP export (opentelemetry-proto, ExportTraceServiceRequest), or Jaeger's `data` of traces.

OTLP's JSON has ids in hexadecimal, 64-bit numbers as texts or numbers, and enumerations as numbers; files written by
protobuf's own JSON have ids in base64, names in snake_case and enumerations as words. All are read. A thing of the
wrong type is left out where it stands, so one odd attribute does not cost an export.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import msgspec

from pinchpoint.telemetry.span import KINDS, SPAN_DIGITS, STATUSES, TRACE_DIGITS, Sender, Sent, Span, checked, sender_of

NS_PER_US = 1_000
KIND_WORDS = {f"SPAN_KIND_{word.upper()}": number for number, word in enumerate(KINDS) if number}
STATUS_WORDS = {f"STATUS_CODE_{word.upper()}": number for number, word in enumerate(STATUSES)}
JAEGER_KINDS = {word: number for number, word in enumerate(KINDS) if number}
TRUTHS = {"true": True, "false": False}


class NotSpansError(ValueError):
    """The text is no JSON, or JSON that holds no list of spans."""


def spans_in_json(text: bytes) -> tuple[list[Span], list[str]]:
    """The spans of one document, and a reason for each that was none. Raises NotSpansError."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotSpansError(f"not JSON ({error})") from None
    except RecursionError:
        raise NotSpansError("JSON nested too deeply") from None
    return spans_of(found)


def spans_of(found: Any) -> tuple[list[Span], list[str]]:
    """As spans_in_json, of JSON that was decoded."""
    if isinstance(found, dict):
        groups = _get(found, "resourceSpans", "resource_spans")
        if isinstance(groups, list):
            return _sorted_out(_otlp(groups))
        traces = found.get("data")
        if isinstance(traces, list) and (not traces or isinstance(_dict(traces[0]).get("spans"), list)):
            return _sorted_out(_jaeger(traces))
        if not found:  # an export of nothing, as some senders try out an endpoint
            return [], []
    raise NotSpansError("neither resourceSpans (OTLP) nor data with spans (Jaeger)")


def _sorted_out(sent: Iterator[tuple[Sent, Sender]]) -> tuple[list[Span], list[str]]:
    spans: list[Span] = []
    refused: list[str] = []
    for one, sender in sent:
        span = checked(one, sender)
        if isinstance(span, str):
            refused.append(span)
        else:
            spans.append(span)
    return spans, refused


def _otlp(groups: list[Any]) -> Iterator[tuple[Sent, Sender]]:
    for group in map(_dict, groups):
        sender = sender_of(_attributes(_dict(group.get("resource")).get("attributes")))
        for scope in _list(_get(group, "scopeSpans", "scope_spans", "instrumentationLibrarySpans")):
            for span in _list(_dict(scope).get("spans")):
                yield _otlp_span(_dict(span)), sender


def _otlp_span(span: dict[str, Any]) -> Sent:
    status = _get(_dict(span.get("status")), "code")
    kind = span.get("kind")
    return Sent(
        _id(_get(span, "traceId", "trace_id"), TRACE_DIGITS),
        _id(_get(span, "spanId", "span_id"), SPAN_DIGITS),
        _id(_get(span, "parentSpanId", "parent_span_id"), SPAN_DIGITS),
        _string(span.get("name")),
        KIND_WORDS.get(kind, 0) if isinstance(kind, str) else _int(kind),
        _int(_get(span, "startTimeUnixNano", "start_time_unix_nano")),
        _int(_get(span, "endTimeUnixNano", "end_time_unix_nano")),
        STATUS_WORDS.get(status, 0) if isinstance(status, str) else _int(status),
        _attributes(span.get("attributes")),
    )


def _jaeger(traces: list[Any]) -> Iterator[tuple[Sent, Sender]]:
    for trace in map(_dict, traces):
        processes = _dict(trace.get("processes"))
        for span in map(_dict, _list(trace.get("spans"))):
            process = _dict(processes.get(_string(span.get("processID"))))
            told = {"service.name": process.get("serviceName"), **_tags(process.get("tags"))}
            if "hostname" in told:
                told.setdefault("host.name", told["hostname"])
            yield _jaeger_span(span), sender_of(told)


def _jaeger_span(span: dict[str, Any]) -> Sent:
    tags = _tags(span.get("tags"))
    parents = [_dict(one) for one in _list(span.get("references"))]
    parent = next((_string(one.get("spanID")) for one in parents if one.get("refType") == "CHILD_OF"), "")
    start_ns = _int(span.get("startTime")) * NS_PER_US
    return Sent(
        _string(span.get("traceID")).rjust(TRACE_DIGITS, "0"),
        _string(span.get("spanID")).rjust(SPAN_DIGITS, "0"),
        parent.rjust(SPAN_DIGITS, "0"),
        _string(span.get("operationName")),
        JAEGER_KINDS.get(_string(tags.get("span.kind")), 0),
        start_ns,
        start_ns + _int(span.get("duration")) * NS_PER_US,
        2 if tags.get("error") is True or tags.get("otel.status_code") == "ERROR" else 0,
        tags,
    )


def _tags(tags: Any) -> dict[str, Any]:
    """Jaeger's list of keys and values; numbers may be told as texts."""
    told: dict[str, Any] = {}
    for tag in map(_dict, _list(tags)):
        value = tag.get("value")
        if isinstance(value, str) and tag.get("type") in ("int64", "float64", "bool"):
            value = TRUTHS.get(value, _number(value))
        told[_string(tag.get("key"))] = value
    return told


def _attributes(listed: Any) -> dict[str, Any]:
    """OTLP's list of keys and typed values, as an object."""
    told: dict[str, Any] = {}
    for one in map(_dict, _list(listed)):
        told[_string(one.get("key"))] = _any_value(_dict(one.get("value")))
    return told


def _any_value(typed: dict[str, Any]) -> Any:
    for name, value in typed.items():
        match name:
            case "intValue" | "int_value":
                return _int(value)
            case "doubleValue" | "double_value":
                return _number(value)
            case "stringValue" | "string_value" | "boolValue" | "bool_value":
                return value
            case "arrayValue" | "array_value":
                return [_any_value(_dict(one)) for one in _list(_dict(value).get("values")) if not _nested(one)]
    return "..."


def _nested(value: Any) -> bool:
    return any(name in _dict(value) for name in ("arrayValue", "array_value", "kvlistValue", "kvlist_value"))


def _id(value: Any, digits: int) -> str:
    text = _string(value)
    if len(text) in (0, digits):
        return text
    try:
        return base64.b64decode(text, validate=True).hex()
    except (binascii.Error, ValueError):
        return ""


def _get(found: dict[str, Any], *names: str) -> Any:
    return next((found[name] for name in names if name in found), None)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _int(value: Any) -> int:
    """0 where it is none."""
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    digits = value.removeprefix("-") if isinstance(value, str) else ""
    return int(value) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else 0


def _number(value: Any) -> float | str:
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(_string(value))
    except ValueError:
        return ""
