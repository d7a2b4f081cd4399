"""The receiver of spans: every way an exporter sends, and what strangers send."""

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.otlp_exports import as_json, as_protobuf, export, span

from pinchpoint.clock import NS_PER_S, monotonic_ns, realtime_offset_ns
from pinchpoint.errors import UsageError
from pinchpoint.model import SPAN_COLUMNS
from pinchpoint.parts import arrow_schema, part_batches
from pinchpoint.telemetry import otlp
from pinchpoint.telemetry.otlp import GRPC_METHOD, MAX_EXPORT_BYTES, OtlpReceiver, listen
from pinchpoint.traceids import salt_of, trace_id

SALT = salt_of("this run")
PATIENCE_S = 20.0
JSON, PROTOBUF = "application/json", "application/x-protobuf"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "parts" / "spans-otlp.arrows"


@pytest.fixture
def receiver(part: Path) -> Iterator[OtlpReceiver]:
    receiver = listen(part, SALT, http_port=0, grpc_port=0)
    try:
        yield receiver
    finally:
        receiver.close()


def kept(receiver: OtlpReceiver, part: Path) -> list[dict[str, Any]]:
    receiver.close()
    return [row for batch in part_batches(part, arrow_schema(SPAN_COLUMNS)) for row in batch.to_pylist()]


def post(
    receiver: OtlpReceiver, body: Any, kind: str = JSON, path: str = "/v1/traces", **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(receiver.http_url.removeprefix("http://"), timeout=PATIENCE_S)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, {"Content-Type": kind, **named})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def counts(receiver: OtlpReceiver) -> dict[str, float]:
    _, readings = receiver.read()
    return {reading.raw + (f" {reading.labels}" if reading.labels else ""): reading.value for reading in readings}


def in_chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 50):
        yield data[start : start + 50]


def test_every_way_an_exporter_sends_keeps_the_same_spans(receiver: OtlpReceiver, part: Path) -> None:
    def told(number: int) -> dict[str, Any]:
        return export(span(number))

    assert post(receiver, as_json(told(1))) == (200, b"{}")
    assert post(receiver, as_protobuf(told(2)), PROTOBUF) == (200, b"")
    assert post(receiver, gzip.compress(as_protobuf(told(3))), PROTOBUF, Content_Encoding="gzip")[0] == 200
    assert post(receiver, in_chunks(gzip.compress(as_json(told(4)))), JSON, Content_Encoding="gzip")[0] == 200
    with grpc.insecure_channel(receiver.grpc_endpoint or "") as channel:
        send = channel.unary_unary(GRPC_METHOD)
        assert send(as_protobuf(told(5)), timeout=PATIENCE_S) == b""
        assert send(as_protobuf(told(6)), timeout=PATIENCE_S, compression=grpc.Compression.Gzip) == b""
    rows = kept(receiver, part)
    assert [row["span_id"] for row in rows] == [f"{number:016x}" for number in range(1, 7)]
    same = [{**row, "span_id": "", "received_ns": 0, "start_ns": 0, "end_ns": 0} for row in rows]
    assert all(row == same[0] for row in same)
    assert {row["end_ns"] - row["start_ns"] for row in rows} == {1_000_000}


def test_a_span_knows_its_request_and_stands_on_our_axis(receiver: OtlpReceiver, part: Path) -> None:
    offset_ns, _ = realtime_offset_ns()
    now_ns = monotonic_ns()
    begun_ns = now_ns + offset_ns
    post(receiver, as_json(export(span(1, trace=trace_id(SALT, 77), start_ns=begun_ns), span(2, start_ns=begun_ns))))
    ours, foreign = kept(receiver, part)
    assert (ours["request_id"], foreign["request_id"]) == (77, None)
    assert abs(ours["start_ns"] - now_ns) < NS_PER_S  # the same instant, but for a step of the clock meanwhile
    assert now_ns <= ours["received_ns"] <= monotonic_ns()


def test_counts_are_told_as_a_source_and_each_refusal_once(receiver: OtlpReceiver) -> None:
    post(receiver, as_json(export(span(1), span(2, trace=trace_id(SALT, 3)), span(3) | {"spanId": "x"})))
    post(receiver, b"{")
    expected = {"otlp_spans_total": 2, "otlp_spans_of_requests_total": 1}
    assert counts(receiver) == expected | {"otlp_refused what=span": 1, "otlp_refused what=unreadable": 1}
    assert counts(receiver) == expected


def test_spans_are_in_the_file_while_the_run_goes_on(receiver: OtlpReceiver, part: Path) -> None:
    post(receiver, as_json(export(span(1))))
    receiver.read()
    assert sum(batch.num_rows for batch in part_batches(part, arrow_schema(SPAN_COLUMNS))) == 1


def test_a_refused_span_is_answered_as_a_partial_success(receiver: OtlpReceiver) -> None:
    status, body = post(receiver, as_json(export(span(1), span(2) | {"traceId": "0"})))
    assert (status, json.loads(body)["partialSuccess"]["rejectedSpans"]) == (200, "1")


@pytest.mark.parametrize(
    ("body", "kind", "more", "status"),
    [
        (b"{", JSON, {}, 400),
        (b"\xff\xff", PROTOBUF, {}, 400),
        (b"{}", "text/plain", {}, 415),
        (b"{}", JSON, {"Content_Encoding": "br"}, 415),
        (b"no gzip", JSON, {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"{}")[:-9], JSON, {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(bytes(MAX_EXPORT_BYTES + 1)), JSON, {"Content_Encoding": "gzip"}, 413),
        (b"", JSON, {"Content_Length": str(MAX_EXPORT_BYTES + 1)}, 413),
        (b"", JSON, {"Content_Length": "9" * 5000}, 413),
        (b"", JSON, {"Content_Length": "-1"}, 411),
        (b"{}", JSON, {"path": "/v1/metrics"}, 404),
        (b"zz\r\n", JSON, {"Transfer_Encoding": "chunked"}, 400),
        (b"-5\r\n", JSON, {"Transfer_Encoding": "chunked"}, 400),
        (b"fffffff\r\n", JSON, {"Transfer_Encoding": "chunked"}, 413),
    ],
)
def test_what_cannot_be_read_is_refused_in_words_and_the_next_export_is_kept(
    receiver: OtlpReceiver, part: Path, body: bytes, kind: str, more: dict[str, str], status: int
) -> None:
    answered, words = post(receiver, body, kind, **more)
    assert answered == status
    assert words
    assert post(receiver, as_json(export(span(1))))[0] == 200
    assert len(kept(receiver, part)) == 1


def test_a_grpc_export_that_is_none_is_refused_and_other_methods_are_not_there(receiver: OtlpReceiver) -> None:
    with grpc.insecure_channel(receiver.grpc_endpoint or "") as channel:
        for method, message, code in (
            (GRPC_METHOD, b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
            ("/some.Service/Other", b"", grpc.StatusCode.UNIMPLEMENTED),
            (GRPC_METHOD, bytes(5 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(message, timeout=PATIENCE_S)
            assert caught.value.code() == code  # pyright: ignore


def test_a_sender_that_hangs_or_hangs_up_keeps_nobody_from_sending(
    receiver: OtlpReceiver, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _, port = receiver.http_url.removeprefix("http://").partition(":")
    hanging = [socket.create_connection((host, int(port))) for _ in range(3)]
    for number, connection in enumerate(hanging):
        connection.sendall((b"POST /v1/traces HTTP/1.1\r\nContent-Length: 50\r\n\r\n{", b"POST ", b"")[number])
    assert post(receiver, as_json(export(span(1))))[0] == 200
    for connection in hanging:
        connection.close()
    assert len(kept(receiver, part)) == 1


def test_a_crowd_of_connections_is_bounded(receiver: OtlpReceiver) -> None:
    host, _, port = receiver.http_url.removeprefix("http://").partition(":")
    crowd = [socket.create_connection((host, int(port)), PATIENCE_S) for _ in range(otlp.MAX_CONNECTIONS)]
    late = socket.create_connection((host, int(port)), PATIENCE_S)
    assert late.recv(1) == b""  # closed at once: all places are taken
    for connection in (*crowd, late):
        connection.close()
    assert counts(receiver)["otlp_refused what=too-many-connections"] == 1


def test_many_senders_at_once_lose_nothing(receiver: OtlpReceiver, part: Path) -> None:
    def send(number: int) -> int:
        return post(receiver, as_json(export(*(span(number * 10 + each) for each in range(1, 6)))))[0]

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(send, range(40))) == {200}
    rows = kept(receiver, part)
    assert len({row["span_id"] for row in rows}) == len(rows) == 200


def test_a_run_keeps_no_more_spans_than_it_may(
    receiver: OtlpReceiver, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "MAX_SPANS", 2)
    status, body = post(receiver, as_json(export(*(span(number) for number in range(1, 5)))))
    assert (status, json.loads(body)["partialSuccess"]["rejectedSpans"]) == (200, "2")
    assert len(kept(receiver, part)) == 2


def test_a_port_that_is_taken_is_told_with_what_to_do(part: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for ports in ({"http_port": port, "grpc_port": 0}, {"http_port": 0, "grpc_port": port}):
            with pytest.raises(UsageError, match=f"cannot receive spans on 127.0.0.1:{port} .*another port"):
                listen(part, None, **ports)


def test_without_the_extra_json_is_received_and_the_rest_told_what_to_install(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise UsageError(otlp.MISSING)

    monkeypatch.setattr(otlp, "require_protobuf", absent)
    receiver = listen(part, None, http_port=0, grpc_port=0)
    assert (receiver.grpc_endpoint, receiver.notes) == (None, (otlp.MISSING,))
    assert post(receiver, as_json(export(span(1))))[0] == 200
    status, words = post(receiver, as_protobuf(export(span(2))), PROTOBUF)
    assert status == 415 and b"pinchpoint[otlp]" in words
    assert len(kept(receiver, part)) == 1


def test_a_disk_that_takes_no_more_ends_the_source_and_not_the_listening(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(rows: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(receiver._writer, "append", full)
    assert post(receiver, as_json(export(span(1))))[0] == 200
    with pytest.raises(OSError, match="No space left"):
        receiver.read()
