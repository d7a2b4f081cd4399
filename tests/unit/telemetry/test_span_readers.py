"""Spans out of OTLP's JSON and protobuf and Jaeger's JSON: the same meaning, bounded, whatever a stranger sends."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.otlp_exports import BEGUN_NS, TRACE, as_json, as_protobuf, attribute, export, span

from pinchpoint.telemetry.otlp_json import NotSpansError, spans_in_json, spans_of
from pinchpoint.telemetry.otlp_protobuf import answer, failure, spans_in_protobuf
from pinchpoint.telemetry.span import MAX_ATTRIBUTES_BYTES, MAX_NAME_CHARS, Span

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=20,
)


def test_both_forms_of_an_export_mean_the_same() -> None:
    told = export(
        span(1, gen_ai__latency__time_in_queue=0.25, gen_ai__usage__prompt_tokens=60, http__ok=True),
        span(2, parent=f"{1:016x}", name="decode", kind="internal"),
    )
    from_json, from_protobuf = spans_in_json(as_json(told)), spans_in_protobuf(as_protobuf(told))
    assert from_json == from_protobuf
    first, second = from_json[0]
    assert first[:7] == (TRACE, f"{1:016x}", None, "llm_request", "vllm", "host-a", "server")
    assert (first.start_unix_ns, first.end_unix_ns - first.start_unix_ns) == (BEGUN_NS, 1_000_000)
    assert json.loads(first.attributes_json) == {
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.usage.prompt_tokens": 60,
        "http.ok": True,
    }
    assert (second.parent_id, second.kind) == (first.span_id, "internal")


def test_protobufs_own_json_with_ids_in_base64_and_words_for_numbers_is_read_too() -> None:
    told = span(7)
    told["traceId"] = base64.b64encode(bytes.fromhex(TRACE)).decode()
    told["spanId"] = base64.b64encode(bytes.fromhex(f"{7:016x}")).decode()
    told["kind"], told["status"] = "SPAN_KIND_CLIENT", {"code": "STATUS_CODE_ERROR"}
    ((one,), refused) = spans_in_json(as_json(export(told)))
    assert (one.trace_id, one.span_id, one.kind, one.status) == (TRACE, f"{7:016x}", "client", "error")
    assert refused == []


def test_jaegers_traces_are_read() -> None:
    told = {
        "data": [
            {
                "traceID": TRACE,
                "spans": [
                    {
                        "traceID": TRACE,
                        "spanID": "a",
                        "operationName": "retrieve",
                        "references": [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": "b"}],
                        "startTime": BEGUN_NS // 1000,
                        "duration": 1500,
                        "tags": [
                            {"key": "span.kind", "type": "string", "value": "client"},
                            {"key": "gen_ai.latency.e2e", "type": "float64", "value": "0.5"},
                            {"key": "error", "type": "bool", "value": True},
                        ],
                        "processID": "p1",
                    }
                ],
                "processes": {"p1": {"serviceName": "rag", "tags": [{"key": "hostname", "value": "h"}]}},
            }
        ]
    }
    ((one,), _) = spans_in_json(as_json(told))
    assert one[:7] == (TRACE, f"{10:016x}", f"{11:016x}", "retrieve", "rag", "h", "client")
    assert (one.end_unix_ns - one.start_unix_ns, one.status) == (1_500_000, "error")
    assert json.loads(one.attributes_json)["gen_ai.latency.e2e"] == 0.5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"traceId": "0" * 32}, "id that is none"),
        ({"traceId": "xyz"}, "id that is none"),
        ({"spanId": 5}, "id that is none"),
        ({"endTimeUnixNano": "0"}, "no start or no end"),
        ({"startTimeUnixNano": "12"}, "no start or no end"),
        ({"startTimeUnixNano": "99999999999999999999"}, "no start or no end"),
        ({"endTimeUnixNano": str(BEGUN_NS - 1)}, "an end before its start"),
        ({"startTimeUnixNano": None}, "no start or no end"),
    ],
)
def test_a_span_that_is_none_is_refused_with_its_reason_and_the_others_are_kept(change: dict, says: str) -> None:
    spans, refused = spans_in_json(as_json(export(span(1) | change, span(2))))
    assert [one.span_id for one in spans] == [f"{2:016x}"]
    assert len(refused) == 1 and says in refused[0]


def test_what_was_said_or_looked_up_and_headers_are_never_kept() -> None:
    told = span(
        1,
        gen_ai__prompt__0__content="secret",
        gen_ai__input__messages="secret",
        input__value="secret",
        db__statement="select secret",
        http__request__header__authorization="secret",
        url__full="http://h/search?q=secret",
        gen_ai__usage__input_tokens=3,
    )
    ((one,), _) = spans_in_json(as_json(export(told)))
    assert "secret" not in one.attributes_json
    assert json.loads(one.attributes_json) == {"gen_ai.usage.input_tokens": 3, "url.full": "http://h/search"}


def test_long_things_are_cut_and_the_attributes_of_generative_ai_stay() -> None:
    told = span(1, name="n" * 5000, a__gen_ai="x" * 100_000, gen_ai__latency__e2e=1.5)
    told["attributes"] += [attribute(f"more.{number}", "y" * 5000) for number in range(1000)]
    ((one,), _) = spans_in_json(as_json(export(told, service="s" * 5000)))
    assert len(one.name) == len(one.service) == MAX_NAME_CHARS
    assert len(one.attributes_json.encode()) <= MAX_ATTRIBUTES_BYTES
    assert json.loads(one.attributes_json)["gen_ai.latency.e2e"] == 1.5


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"resourceLogs": []}', b"[]", b'{"data": [{}]}']
)
def test_what_is_no_export_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(NotSpansError):
        spans_in_json(text)


def test_an_export_of_nothing_is_one() -> None:
    assert spans_in_json(b"{}") == spans_in_protobuf(b"") == ([], [])


def bounded(spans: list[Span]) -> None:
    for one in spans:
        assert len(one.attributes_json.encode()) <= MAX_ATTRIBUTES_BYTES
        json.loads(one.attributes_json)
        "".join(text for text in one if isinstance(text, str)).encode()


@given(ANYTHING, ANYTHING, ANYTHING)
@settings(max_examples=200)
def test_any_json_in_any_place_is_harmless(resource: Any, attributes: Any, odd: Any) -> None:
    told = export(span(1) | {"attributes": attributes, "status": odd, "name": odd}, span(2) | {"kind": odd})
    told["resourceSpans"][0]["resource"] = resource
    spans, refused = spans_of(told)
    assert len(spans) + len(refused) == 2
    bounded(spans)
    for groups in (odd, [odd], [{"scopeSpans": odd}], [{"scopeSpans": [odd]}], [{"scopeSpans": [{"spans": odd}]}]):
        try:
            bounded(spans_of({"resourceSpans": groups})[0])
        except NotSpansError:
            assert not isinstance(groups, list)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_export_in_protobuf_or_said_to_be_none(message: bytes) -> None:
    try:
        bounded(spans_in_protobuf(message)[0])
    except NotSpansError as error:
        assert "protobuf" in str(error)


def test_answers_are_messages_of_otlp() -> None:
    from google.protobuf.internal.decoder import _DecodeVarint  # pyright: ignore
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    assert ExportTraceServiceResponse.FromString(answer(0, "")) == ExportTraceServiceResponse()
    partial = ExportTraceServiceResponse.FromString(answer(3, "why")).partial_success
    assert (partial.rejected_spans, partial.error_message) == (3, "why")
    told = failure("w" * 500)
    assert told[0] == 2 << 3 | 2  # field 2 of google.rpc.Status, a text
    length, begin = _DecodeVarint(told, 1)
    assert told[begin:] == b"w" * length


def test_real_spans_of_vllm_tell_where_its_time_went() -> None:
    """Captured from vLLM 0.32.0; see tests/data/spans."""
    spans, refused = spans_in_json((Path("tests/data/spans") / "vllm_llm_request.jsonl").read_bytes())
    assert (len(spans), refused) == (3, [])
    for one in spans:
        assert (one.name, one.kind, one.parent_id, one.service) == ("llm_request", "server", None, "vllm")
        told = json.loads(one.attributes_json)
        parts = sum(told[f"gen_ai.latency.time_in_{part}"] for part in ("queue", "model_prefill", "model_decode"))
        assert 0 < parts <= told["gen_ai.latency.e2e"]
        assert told["gen_ai.latency.e2e"] == pytest.approx((one.end_unix_ns - one.start_unix_ns) / 1e9, abs=0.01)
