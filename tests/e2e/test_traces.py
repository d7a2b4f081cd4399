"""Spans of a service of several parts, exported by OpenTelemetry's SDK, received during a load and joined to it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.support.otlp_exports import as_json, export, span
from tests.support.real_engines import free_ports, pinchpoint, records_of_load
from tests.support.traced_app import DECODE_S, PREFILL_S, QUEUE_S, STORE_S

from pinchpoint.traceids import salt_of, trace_id

SKEW_S = 7.5
REQUESTS = 20
STOP_LIMIT_S = 20.0
LOAD = ("--api", "chat", "--model", "m", "--concurrency", 2, "--requests", REQUESTS, "--input-tokens", 5)
LATE_S = 0.5  # a stalled host sleeps longer than it is told


@contextlib.contextmanager
def traced_app(otlp_url: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.support.traced_app", otlp_url, str(SKEW_S)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.stdin.close()
        process.wait(STOP_LIMIT_S)
        process.stdout.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "run"
    http_port, grpc_port = free_ports(2)
    with traced_app(f"http://127.0.0.1:{http_port}") as url:
        listen = f"127.0.0.1:{http_port}:{grpc_port}"
        records = records_of_load(path, url, *LOAD, "--output-tokens", 4, "--otlp", listen)
    assert {record["status"] for record in records} == {"ok"}
    return path


def test_every_request_has_the_spans_of_every_part(run: Path) -> None:
    rows = pq.read_table(run / "spans.parquet").to_pylist()
    by_request: dict[int, set[str]] = {}
    for row in rows:
        by_request.setdefault(row["request_id"], set()).add(row["name"])
    assert len(by_request) == REQUESTS
    parts = {"POST /v1/chat/completions", "retrieve", "POST engine", "llm_request"}
    assert all(names == parts for names in by_request.values())


def test_time_is_told_apart_by_stage_though_the_engines_clock_is_wrong(run: Path) -> None:
    found = pinchpoint("spans", run)
    assert (found["requests"], found["traced"], found["foreign_spans"]) == (REQUESTS, REQUESTS, 0)
    medians = {stage["name"]: stage["median_s"] for stage in found["stages"]}
    told = {"dependency": STORE_S, "queue": QUEUE_S, "prefill": PREFILL_S, "decode": DECODE_S}
    for name, least_s in told.items():
        assert least_s * 0.9 <= medians[name] <= least_s + LATE_S, medians
    assert {"network", "gateway"} <= set(medians)
    offsets = {clock["service"]: (clock["offset_s"], clock["error_s"]) for clock in found["clocks"]}
    assert offsets["gateway"][0] == 0.0
    assert abs(offsets["engine"][0] + SKEW_S) <= offsets["engine"][1] + 0.001
    assert [one["name"] for one in found["dependencies"]] == ["retrieve"]


def test_spans_of_files_are_taken_in_place_of_those_received(run: Path, tmp_path: Path) -> None:
    salt = salt_of(json.loads((run / "run.json").read_text())["run_id"])
    record = pq.read_table(run / "records.parquet").to_pylist()[0]
    anchor_ns = json.loads((run / "run.json").read_text())["clock"]["realtime_minus_monotonic_ns"]
    begun_ns = record["sent_ns"] + anchor_ns + 1_000_000
    lone = span(1, trace=trace_id(salt, record["request_id"]), start_ns=begun_ns, duration_ns=20_000_000)
    (tmp_path / "export.jsonl").write_bytes(as_json(export(lone, span(2))))
    found = pinchpoint("spans", run, "--from", tmp_path / "export.jsonl")
    assert (found["traced"], found["spans"], found["foreign_spans"]) == (1, 1, 1)
