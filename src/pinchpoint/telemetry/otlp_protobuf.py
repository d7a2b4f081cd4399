"""Spans out of an OTLP export in protobuf. Needs the extra `otlp`; imports it when the first export comes."""

from collections.abc import Iterable
from typing import Any

from pinchpoint.errors import UsageError
from pinchpoint.telemetry.otlp_json import NotSpansError
from pinchpoint.telemetry.span import Sent, Span, checked, sender_of

MISSING = "spans in protobuf need OpenTelemetry's messages; install them with: pip install 'pinchpoint[otlp]'"


def require_protobuf() -> None:
    """Raises UsageError when the extra is not installed."""
    try:
        import opentelemetry.proto.collector.trace.v1.trace_service_pb2  # noqa: F401
    except ImportError:
        raise UsageError(MISSING) from None


def spans_in_protobuf(message: bytes) -> tuple[list[Span], list[str]]:
    """The spans of one ExportTraceServiceRequest, and a reason for each that was none. Raises NotSpansError."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        export = ExportTraceServiceRequest.FromString(message)
    except (DecodeError, RecursionError) as error:
        raise NotSpansError(f"not an export of spans in protobuf ({error})") from None
    spans: list[Span] = []
    refused: list[str] = []
    for group in export.resource_spans:
        sender = sender_of(_attributes(group.resource.attributes))
        for scope in group.scope_spans:
            for span in scope.spans:
                sent = Sent(
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    span.kind,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code,
                    _attributes(span.attributes),
                )
                one = checked(sent, sender)
                if isinstance(one, str):
                    refused.append(one)
                else:
                    spans.append(one)
    return spans, refused


def answer(refused: int, why: str) -> bytes:
    """The ExportTraceServiceResponse."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    response = ExportTraceServiceResponse()
    if refused:
        response.partial_success.rejected_spans = refused
        response.partial_success.error_message = why
    return response.SerializeToString()


def failure(why: str) -> bytes:
    """A google.rpc.Status, as OTLP over HTTP wants it for a refusal: its field 2 is the message."""
    text = why.encode("utf-8")[:127]  # a length that fits into one byte
    return bytes((0x12, len(text))) + text


def _attributes(listed: Iterable[Any]) -> dict[str, Any]:
    return {one.key: _plain(one.value) for one in listed}


def _plain(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_scalar(one) for one in value.array_value.values]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    which = value.WhichOneof("value")
    return getattr(value, which) if which in ("string_value", "bool_value", "int_value", "double_value") else "..."
