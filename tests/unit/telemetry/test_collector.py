"""The collector process: pacing, files that survive, and how it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from fake_service import FakeService, answer
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import load_catalog
from pinchpoint.errors import EXIT_USAGE, UnsupportedMeasurementError
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.rundir import arrow_schema
from pinchpoint.telemetry import CollectorConfig, CollectorHandle, PageAt, handle, start_collector
from pinchpoint.telemetry.collect import Pacer

PAGE = (Path(__file__).parents[2] / "data" / "metrics" / "vllm_v1.prom").read_bytes()
PERIOD_S = 0.05
PATIENCE_S = 15.0


def read_part(out_dir: Path, source: str) -> list[dict[str, object]]:
    """Whole batches of a part, torn end or not."""
    rows: list[dict[str, object]] = []
    path = out_dir / "parts" / f"telemetry-{source}.arrows"
    if not path.exists() or path.stat().st_size == 0:
        return rows
    try:
        with pa.ipc.open_stream(path.read_bytes()) as stream:
            assert stream.schema == arrow_schema(SAMPLE_COLUMNS)
            for batch in stream:
                rows += batch.to_pylist()
    except (pa.ArrowInvalid, OSError):  # OSError: the batch that is being written is longer than what is there of it
        pass
    return rows


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


def started(out_dir: Path, source: str = "host", readings: int = 3) -> None:
    wait_until(
        lambda: len({row["t_ns"] for row in read_part(out_dir, source)}) >= readings,
        f"{source} has {readings} readings",
    )


@pytest.fixture
def collector(tmp_path: Path):
    handles: list[CollectorHandle] = []

    def start(api_key: str | None = None, **fields: object) -> CollectorHandle:
        config = CollectorConfig(**({"out_dir": str(tmp_path), "period_s": PERIOD_S} | fields))  # pyright: ignore
        handles.append(start_collector(config, api_key=api_key))
        return handles[-1]

    yield start
    for running in handles:
        running.stop()


# -- pacing, in virtual time ---------------------------------------------------------------------------------------


@given(st.integers(0, 10**12), st.lists(st.integers(0, 3_000_000_000), min_size=1, max_size=30))
def test_readings_stay_on_the_grid_and_never_lie_in_the_past(start_ns: int, durations_ns: list[int]) -> None:
    period_ns = 500_000_000
    pacer = Pacer(start_ns, period_ns / 1e9)
    now_ns = start_ns
    for duration_ns in durations_ns:
        planned_ns = pacer.planned_ns
        now_ns = max(now_ns, planned_ns) + duration_ns
        passed_over = pacer.advance(now_ns)
        assert (pacer.planned_ns - start_ns) % period_ns == 0
        assert pacer.planned_ns > now_ns
        assert pacer.planned_ns == planned_ns + (passed_over + 1) * period_ns


def test_lateness_is_actual_minus_planned_and_fits_its_column() -> None:
    pacer = Pacer(1_000_000, 0.5)
    assert pacer.late_us(1_000_000) == 0
    assert pacer.late_us(3_500_000) == 2_500
    assert pacer.late_us(10**18) == 2**31 - 1
    assert pacer.wait_s(0) == pytest.approx(0.001)


# -- the process ---------------------------------------------------------------------------------------------------


def test_all_sources_write_their_own_part_and_stop_cleanly(service: FakeService, tmp_path: Path, collector) -> None:
    service.respond = lambda h: answer(h, 200, PAGE if h.path == "/metrics" else b"ok")
    running = collector(
        pages=(PageAt("engine", service.url + "/metrics"),),
        null_request_urls=(service.url + "/health",),
        server_pids=(os.getpid(),),
        client_pids=(os.getpid(),),
    )
    for source in ("host", "engine", "server", "client"):
        started(tmp_path, source)
    started(tmp_path, "null-request", readings=1)
    assert running.alive()
    assert running.stop() == 0
    assert not running.alive()
    assert running.complaint() is None
    for source in ("host", "engine", "server", "client", "null-request"):
        path = tmp_path / "parts" / f"telemetry-{source}.arrows"
        with pa.ipc.open_stream(path.read_bytes()) as stream:  # raises when the end is torn
            rows = stream.read_all().to_pylist()
        assert {row["source"] for row in rows} == {source}
        assert all(row["late_us"] >= 0 for row in rows)
        assert all(row["series"] is None or load_catalog().entry(row["series"]) for row in rows)


def test_a_hanging_metrics_page_delays_nobody(service: FakeService, tmp_path: Path, collector) -> None:
    release = threading.Event()
    service.respond = lambda h: release.wait(PATIENCE_S)
    running = collector(pages=(PageAt("engine", service.url),))
    started(tmp_path, "host", readings=10)
    assert read_part(tmp_path, "engine") == []
    assert running.stop() == 0  # although the engine source still hangs
    release.set()


def test_a_kill_loses_at_most_the_reading_under_way(tmp_path: Path, collector) -> None:
    running = collector()
    started(tmp_path)
    before = len(read_part(tmp_path, "host"))
    os.kill(running.pid, signal.SIGKILL)
    assert running.stop() == -signal.SIGKILL
    assert len(read_part(tmp_path, "host")) >= before


def test_ctrl_c_is_left_to_the_parent_and_sigterm_ends(tmp_path: Path, collector) -> None:
    running = collector()
    started(tmp_path)
    os.kill(running.pid, signal.SIGINT)
    seen = len({row["t_ns"] for row in read_part(tmp_path, "host")})
    started(tmp_path, readings=seen + 3)
    os.kill(running.pid, signal.SIGTERM)
    wait_until(lambda: not running.alive(), "SIGTERM ended the collector")
    assert running.stop() == 0


def test_the_stop_file_ends_it(tmp_path: Path, collector) -> None:
    stop_path = tmp_path / "stop"
    running = collector(stop_path=str(stop_path))
    started(tmp_path)
    stop_path.touch()
    wait_until(lambda: not running.alive(), "the stop file ended the collector")
    assert running.stop() == 0


PARENT = """
import sys, time
from pinchpoint.telemetry import CollectorConfig, PageAt, start_collector
print(start_collector(CollectorConfig(sys.argv[1], period_s=0.05)).pid, flush=True)
time.sleep(60)
"""


def test_it_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    started(tmp_path)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not _running(pid), "the collector noticed")


def _running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_the_key_reaches_the_service_and_neither_arguments_nor_files(
    service: FakeService, tmp_path: Path, collector
) -> None:
    service.respond = lambda h: answer(h, 200, PAGE)
    running = collector(api_key="sk-very-secret", pages=(PageAt("engine", service.url, keyed=True),))
    started(tmp_path, "engine", readings=1)
    assert service.requests[0][1]["Authorization"] == "Bearer sk-very-secret"
    assert b"sk-very-secret" not in Path(f"/proc/{running.pid}/cmdline").read_bytes()
    assert running.stop() == 0
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-very-secret" not in path.read_bytes()


@pytest.mark.parametrize("line", [b"", b"{}\n", b'{"out_dir": 3}\n', b'{"out_dir": "/tmp", "surprise": 1}\n', b"[\n"])
def test_a_configuration_that_is_none_ends_in_one_sentence(line: bytes) -> None:
    done = subprocess.run([sys.executable, "-m", "pinchpoint.telemetry"], input=line, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr


def test_an_unwritable_run_directory_is_said_in_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    running = start_collector(CollectorConfig(str(blocked)))
    wait_until(lambda: not running.alive(), "the collector gave up")
    assert running.stop() == 2
    assert "give a writable run directory" in (running.complaint() or "")


def test_a_collector_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real_popen = subprocess.Popen

    def dead(*args: object, **kwargs: object) -> "subprocess.Popen[bytes]":
        process = real_popen([sys.executable, "-c", "raise SystemExit(7)"], stdin=subprocess.PIPE)
        process.wait()
        return process

    monkeypatch.setattr(handle.subprocess, "Popen", dead)
    with pytest.raises(UnsupportedMeasurementError, match="ended at once"):
        start_collector(CollectorConfig(str(tmp_path)))


def test_the_configuration_survives_its_way_to_the_process() -> None:
    config = CollectorConfig(
        "out", pages=(PageAt("engine", "http://x/metrics"),), server_pids=(1, 2), headers_env="NAME"
    )
    assert msgspec.json.decode(msgspec.json.encode(config), type=CollectorConfig) == config


def test_a_ca_file_that_is_none_ends_the_collector_with_a_sentence(collector, tmp_path: Path) -> None:
    handle = collector(ca_file=str(tmp_path / "missing.pem"), pages=(PageAt("engine", "https://127.0.0.1:1/metrics"),))
    wait_until(lambda: not handle.alive(), "the collector has ended")
    assert handle.stop() == EXIT_USAGE
    assert "missing.pem" in (handle.complaint() or "")
