"""A real Prometheus with a real node-exporter: what it stored during a stretch of time becomes telemetry of a run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.support.prometheus import RealPrometheus, needs_prometheus, real_prometheus
from tests.support.real_engines import records_of_load
from tests.support.scripted_server import ScriptedServer, stream

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.parts import PartWriter, arrow_schema, part_batches
from pinchpoint.telemetry.prometheus_api import PrometheusServer
from pinchpoint.telemetry.prometheus_server import PART, collect

pytestmark = needs_prometheus

SELECTOR = '{namespace="llm"}'
PATIENCE_S = 60.0
NEAR_S = 5.0  # both clocks are this host's; a stalled host answers late


@pytest.fixture(scope="module")
def real() -> Iterator[RealPrometheus]:
    with real_prometheus() as server:
        yield server


def fetched(server: PrometheusServer, run: Path, start_ns: int, end_ns: int) -> tuple[tuple[str, ...], list[dict]]:
    notes = collect(server, run, start_ns, end_ns)
    return notes, [r for b in part_batches(run / "parts" / PART, arrow_schema(SAMPLE_COLUMNS)) for r in b.to_pylist()]


def of(rows: list[dict[str, Any]], raw: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["raw"] == raw]


def test_what_it_stored_is_telemetry_on_our_axis_under_canonical_names(real: RealPrometheus, tmp_path: Path) -> None:
    now_ns = monotonic_ns()
    server = PrometheusServer(real.url, SELECTOR, load_catalog())
    notes, rows = fetched(server, tmp_path, now_ns - 600 * NS_PER_S, now_ns)
    assert notes == (notes[0],), notes
    assert f"from 1 target were fetched from {real.url}" in notes[0]
    load = of(rows, "node_load1")
    assert len(load) >= 2
    assert {row["source"] for row in load} == {"prometheus"}
    assert {row["series"] for row in load} == {load_catalog().resolve("node_load1", {})[0]}
    labels = parse_labels(load[0]["labels"])
    assert (labels["host"], labels["namespace"], labels["instance"]) == ("127.0.0.1", "llm", real.instance)
    instants = [row["t_ns"] for row in load]
    assert instants == sorted(set(instants))
    assert all(0 < now_ns - at_ns < 600 * NS_PER_S + NEAR_S * NS_PER_S for at_ns in instants)
    assert {row["value"] for row in of(rows, "up")} <= {0.0, 1.0}
    (offset,) = of(rows, "source.clock_offset_s")
    (error,) = of(rows, "source.clock_offset_error_s")
    assert abs(offset["value"]) <= error["value"] + 0.1  # it is the same clock
    # a memory in bytes is one of thousands of samples that must be what the server itself says
    known = {row["value"] for row in of(rows, "node_memory_MemAvailable_bytes")}
    told = real.query('max_over_time(node_memory_MemAvailable_bytes{namespace="llm"}[10m])')
    assert float(told[0]["value"][1]) >= max(known)


def test_samples_are_those_that_were_stored_once_each(real: RealPrometheus, tmp_path: Path) -> None:
    now_ns = monotonic_ns()
    server = PrometheusServer(real.url, SELECTOR, load_catalog())
    end_s = (now_ns + server.clock().offset_ns) / NS_PER_S - 1.0
    start_s = end_s - 300.0
    (told,) = real.query(f'up{{job="node"}}[300s] @ {end_s:.3f}')
    asked = [sample for stored in server.samples(("up",), start_s, end_s, 1.0) for sample in stored.samples]
    assert [at_s for at_s, _ in asked] == [at_s for at_s, _ in told["values"] if start_s <= at_s < end_s]
    assert server.exact
    server._raw = False  # as a proxy that refuses range selectors makes it
    stepped = [sample for stored in server.samples(("up",), start_s, end_s, 1.0) for sample in stored.samples]
    assert {value for _, value in stepped} <= {value for _, value in asked}
    assert len(stepped) >= len(asked) - 2  # steps begin where the stretch begins, not at a scrape


def test_before_a_run_it_says_what_there_is(real: RealPrometheus) -> None:
    seen = PrometheusServer(real.url, SELECTOR, load_catalog()).check()
    assert seen.targets == (real.instance,)
    assert seen.names > 20
    assert seen.label_sets >= seen.names
    assert seen.interval_s is not None and 0.5 < seen.interval_s < NEAR_S


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ('{namespace="nobody"}', "no metric that Pinchpoint knows"),
        ('{namespace="llm}', "refuses the query"),
        ('{namespace=~"("}', "refuses the query"),
    ],
)
def test_a_selector_that_finds_nothing_or_is_none_is_told_before_the_run(
    real: RealPrometheus, selector: str, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        PrometheusServer(real.url, selector, load_catalog()).check()


def test_a_target_that_goes_away_leaves_a_gap_and_no_repeated_values(tmp_path: Path) -> None:
    """Prometheus itself says `up 0`; what the target told is not there any more."""
    with real_prometheus() as real:
        real.stop_exporter()
        rows: list[dict[str, Any]] = []
        limit_s = time.monotonic() + PATIENCE_S
        while not any(row["value"] == 0.0 for row in of(rows, "up")) and time.monotonic() < limit_s:
            (tmp_path / "parts" / PART).unlink(missing_ok=True)
            now_ns = monotonic_ns()
            server = PrometheusServer(real.url, SELECTOR, load_catalog())
            _, rows = fetched(server, tmp_path, now_ns - 600 * NS_PER_S, now_ns)
    down = [row["t_ns"] for row in of(rows, "up") if row["value"] == 0.0]
    assert down
    assert max(row["t_ns"] for row in of(rows, "node_load1")) < min(down)


def test_a_server_that_is_gone_after_the_run_is_an_event_and_a_sentence(tmp_path: Path) -> None:
    with real_prometheus() as real:
        server = PrometheusServer(real.url, SELECTOR, load_catalog())
        server.check()
    notes, rows = fetched(server, tmp_path, monotonic_ns() - NS_PER_S, monotonic_ns())
    assert any("cannot be asked (refused)" in note for note in notes)
    assert [row["labels"] for row in of(rows, "prometheus_failed")] == ["reason=refused"]
    with pytest.raises(UsageError, match="cannot be asked"):
        server.check()


def test_series_that_the_run_has_read_itself_are_not_read_twice(real: RealPrometheus, tmp_path: Path) -> None:
    """Of hosts there may be several, told apart by a label; a process of the service is one."""
    catalog = load_catalog()
    twice = "engine.requests_running"
    writer = PartWriter(tmp_path / "parts" / "telemetry-engine.arrows", SAMPLE_COLUMNS)
    writer.append([(1, 0, "engine", "x", twice, "", 1.0)])
    writer.close()
    now_ns = monotonic_ns()
    _, rows = fetched(PrometheusServer(real.url, SELECTOR, catalog), tmp_path, now_ns - 600 * NS_PER_S, now_ns)
    assert twice not in {row["series"] for row in rows}
    assert any((row["series"] or "").startswith("host.") for row in rows)


def test_a_load_takes_what_the_server_stored_meanwhile_into_its_run(real: RealPrometheus, tmp_path: Path) -> None:
    with ScriptedServer(lambda number, body: stream(2)) as service:
        records = records_of_load(
            tmp_path / "run", service.url, "--api", "chat", "--model", "m", "--rate", 3, "--duration", "4s",
            "--prometheus", real.url, "--selector", SELECTOR,
        )  # fmt: skip
    assert {record["status"] for record in records} == {"ok"}
    rows = pq.read_table(tmp_path / "run" / "telemetry.parquet").to_pylist()
    stored = [row["t_ns"] for row in rows if row["raw"] == "node_load1" and row["source"] == "prometheus"]
    assert len(stored) >= 2
    first_ns = min(record["sent_ns"] for record in records)
    assert any(first_ns < at_ns for at_ns in stored)
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert f"were fetched from {real.url}" in events
