"""OTLP exports as SDKs make them, in JSON and in protobuf, from one short description of spans."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
BEGUN_NS = 1_795_526_000_000_000_000
KIND_NUMBERS = {"internal": 1, "server": 2, "client": 3}


def attribute(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": key, "value": {"doubleValue": value}}
    return {"key": key, "value": {"stringValue": value}}


def span(
    number: int = 1,
    *,
    trace: str = TRACE,
    parent: str = "",
    name: str = "llm_request",
    kind: str = "server",
    start_ns: int = BEGUN_NS,
    duration_ns: int = 1_000_000,
    **attributes: Any,
) -> dict[str, Any]:
    """As it stands in an export; underscores in the names of attributes stand for dots where there are two."""
    return {
        "traceId": trace,
        "spanId": f"{number:016x}",
        **({"parentSpanId": parent} if parent else {}),
        "name": name,
        "kind": KIND_NUMBERS[kind],
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(start_ns + duration_ns),
        "attributes": [attribute(key.replace("__", "."), value) for key, value in attributes.items()],
    }


def export(*spans: Mapping[str, Any], service: str = "vllm", instance: str = "host-a") -> dict[str, Any]:
    resource = [attribute("service.name", service), attribute("host.name", instance)]
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [{"spans": list(spans)}]}]}


def as_json(exported: Mapping[str, Any]) -> bytes:
    return json.dumps(exported).encode()


def as_protobuf(exported: Mapping[str, Any]) -> bytes:
    """protobuf's own JSON wants ids in base64, OTLP's has them in hex; so they are set by hand."""
    message = ExportTraceServiceRequest()
    for group in exported["resourceSpans"]:
        made = message.resource_spans.add()
        ParseDict(group["resource"], made.resource)
        for scope in group["scopeSpans"]:
            spans = made.scope_spans.add().spans
            for told in scope["spans"]:
                ids = ("traceId", "spanId", "parentSpanId")
                one = ParseDict({key: value for key, value in told.items() if key not in ids}, spans.add())
                one.trace_id = bytes.fromhex(told["traceId"])
                one.span_id = bytes.fromhex(told["spanId"])
                one.parent_span_id = bytes.fromhex(told.get("parentSpanId", ""))
    return message.SerializeToString()
