"""What each source reads, and what it says when it cannot."""

import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fake_service import FakeService, answer

from pinchpoint.catalog import load_catalog
from pinchpoint.telemetry import engine_page, null_request
from pinchpoint.telemetry import process as process_source
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.engine_page import EnginePage
from pinchpoint.telemetry.host import Host, cpu_readings, named_counter, some_stall_s
from pinchpoint.telemetry.null_request import NullRequest
from pinchpoint.telemetry.process import Client, Server

PAGE = (Path(__file__).parents[2] / "data" / "metrics" / "vllm_v1.prom").read_bytes()


def by_series(readings: list[Reading]) -> dict[str, float]:
    return {reading.series: reading.value for reading in readings if reading.series is not None}


def by_raw(readings: list[Reading]) -> dict[str, Reading]:
    return {reading.raw: reading for reading in readings}


def page(text: str) -> dict[str, Reading]:
    return by_raw(EnginePage("http://unused/", load_catalog()).read_page(text.encode()))


# -- engine --------------------------------------------------------------------------------------------------------


def test_every_sample_is_kept_but_creation_times() -> None:
    readings = EnginePage("http://unused/", load_catalog()).read_page(PAGE)
    lines = [line for line in PAGE.decode().splitlines() if line and not line.startswith("#")]
    created = [line for line in lines if "_created{" in line]
    assert created
    assert len(readings) == len(lines) - len(created)
    assert not any(reading.raw.endswith("_created") for reading in readings)


def test_known_samples_carry_their_series_in_its_unit_and_unknown_ones_stay_raw() -> None:
    readings = page("DCGM_FI_DEV_GPU_UTIL 50\nsomething_else 3\n")
    assert readings["DCGM_FI_DEV_GPU_UTIL"] == ("DCGM_FI_DEV_GPU_UTIL", "gpu.util_ratio", "kind=nvidia", 0.5)
    assert readings["something_else"].series is None


@pytest.mark.parametrize("value", ["-1", "NaN", "+Inf"])
def test_a_value_that_means_failed_stays_raw(value: str) -> None:
    assert page(f"vllm:gpu_prefix_cache_hit_rate {value}\n")["vllm:gpu_prefix_cache_hit_rate"].series is None


def test_an_old_name_beside_its_successor_does_not_count_twice() -> None:
    old, new = "vllm:time_per_output_token_seconds_sum", "vllm:inter_token_latency_seconds_sum"
    readings = page(f"{old} 2\n{new} 2\n")
    assert readings[new].series == "engine.itl_s_sum"
    assert readings[old].series is None
    assert page(f"{old} 2\n")[old].series == "engine.itl_s_sum"


def test_labels_of_one_name_all_feed_its_series() -> None:
    readings = EnginePage("http://unused/", load_catalog()).read_page(
        b'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4\n'
    )
    assert [(r.series, r.labels, r.value) for r in readings] == [
        ("engine.requests_running", "engine=0", 3.0),
        ("engine.requests_running", "engine=1", 4.0),
    ]


def test_malformed_lines_become_a_reading() -> None:
    assert page("a 1\nb b b\n")["scrape_malformed_lines"].value == 1.0


def test_a_scrape_happens_between_asking_and_answering(service: FakeService) -> None:
    service.respond = lambda handler: answer(handler, 200, PAGE)
    before_ns = time.monotonic_ns()
    t_ns, readings = EnginePage(service.url + "/metrics", load_catalog()).read()
    assert before_ns <= t_ns <= time.monotonic_ns()
    assert by_series(readings)["engine.requests_waiting"] == 8.0
    assert by_raw(readings)["scrape_s"].value > 0


@pytest.mark.parametrize(
    ("status", "body", "reason"), [(500, b"no", "http_500"), (401, b"", "http_401"), (200, b"", "no_samples")]
)
def test_a_failed_scrape_is_an_event_not_silence(service: FakeService, status: int, body: bytes, reason: str) -> None:
    service.respond = lambda handler: answer(handler, status, body)
    _, readings = EnginePage(service.url, load_catalog()).read()
    assert readings == [("scrape_failed", None, f"reason={reason}", 1.0)]


def test_a_scrape_of_nothing_is_an_event(free_port_url: str) -> None:
    _, readings = EnginePage(free_port_url, load_catalog()).read()
    assert readings == [("scrape_failed", None, "reason=refused", 1.0)]


def test_a_page_without_end_is_given_up(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_page, "MAX_PAGE_BYTES", 1000)
    service.respond = lambda handler: answer(handler, 200, PAGE)
    _, readings = EnginePage(service.url, load_catalog()).read()
    assert readings == [("scrape_failed", None, "reason=too_large", 1.0)]


def test_the_key_is_sent_as_a_bearer_token(service: FakeService) -> None:
    service.respond = lambda handler: answer(handler, 200, PAGE)
    EnginePage(service.url, load_catalog(), api_key="sk-abc").read()
    assert service.requests[0][1]["Authorization"] == "Bearer sk-abc"


# -- null request --------------------------------------------------------------------------------------------------


def test_the_null_request_measures_connecting_and_all_of_it(service: FakeService) -> None:
    _, readings = NullRequest(service.url + "/health").read()
    values = by_series(readings)
    assert 0 < values["probe.null_connect_s"] < values["probe.null_request_s"]
    assert service.requests[0][0] == "/health"


def test_a_failed_null_request_is_never_a_latency(service: FakeService, free_port_url: str) -> None:
    service.respond = lambda handler: answer(handler, 503, b"overloaded")
    assert NullRequest(service.url).read()[1] == [("null_request_failed", None, "reason=http_503", 1.0)]
    assert NullRequest(free_port_url).read()[1] == [("null_request_failed", None, "reason=refused", 1.0)]


def test_a_null_request_that_hangs_ends_at_its_timeout(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(null_request, "NULL_TIMEOUT_S", 0.1)
    service.respond = lambda handler: time.sleep(0.5)
    assert NullRequest(service.url).read()[1] == [("null_request_failed", None, "reason=timeout", 1.0)]


# -- host ----------------------------------------------------------------------------------------------------------

Times = namedtuple("Times", "user system idle iowait steal guest guest_nice")


def test_cpu_ratios_count_guest_time_once_and_waiting_as_idle() -> None:
    before = [Times(0, 0, 0, 0, 0, 0, 0), Times(0, 0, 0, 0, 0, 0, 0)]
    after = [Times(60, 20, 10, 5, 5, 30, 0), Times(0, 0, 50, 50, 0, 0, 0)]
    assert by_series(cpu_readings(before, after)) == pytest.approx(
        {"host.cpu_used_ratio": 0.4, "host.cpu_core_max_ratio": 0.8, "host.cpu_steal_ratio": 0.025}
    )


def test_no_ratio_is_made_up_when_no_tick_went_by_or_a_core_came_or_went() -> None:
    times = [Times(1, 1, 1, 1, 1, 0, 0)]
    assert cpu_readings(times, times) == []
    assert cpu_readings(times, times * 2) == []


def test_kernel_counters_are_found_by_name_whatever_their_place() -> None:
    text = "Ip: A B\nIp: 1 2\nTcp: X RetransSegs Y\nTcp: -1 42 7\n"
    assert named_counter(text, "Tcp:", "RetransSegs") == 42.0
    assert named_counter(text, "Tcp:", "Missing") is None
    assert named_counter(None, "Tcp:", "RetransSegs") is None


def test_pressure_is_seconds_of_some_stall() -> None:
    text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    assert some_stall_s(text) == 2.5
    assert some_stall_s(None) is None


def test_a_kernel_without_pressure_files_gives_no_pressure_samples(tmp_path: Path) -> None:
    series = by_series(Host(proc=tmp_path).read()[1])
    assert not any(name.startswith(("host.psi", "host.tcp", "host.listen")) for name in series)
    assert 0 < series["host.memory_used_ratio"] < 1


def test_every_host_series_is_in_the_catalogue() -> None:
    _, readings = Host().read()
    assert all(load_catalog().entry(reading.series or "") is not None for reading in readings)


# -- processes -----------------------------------------------------------------------------------------------------

TREE = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"])
child.wait()
"""


@pytest.fixture
def tree() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_a_service_is_its_listeners_and_their_descendants(tree: "subprocess.Popen[bytes]") -> None:
    source = Server([tree.pid])
    first = by_series(source.read()[1])
    assert first["server.processes"] == 2.0
    assert first["server.rss_bytes"] > 0
    assert first["server.threads"] >= 2
    assert "server.cpu_cores" not in first  # nothing to compare with yet
    second = by_series(source.read()[1])
    assert {"server.cpu_cores", "server.listener_cpu_cores", "server.thread_cpu_max_cores"} <= set(second)
    assert all(load_catalog().entry(name) is not None for name in second)


def test_cores_are_the_increase_over_the_time_between_readings() -> None:
    before = process_source._Cpu(0, {1: 10.0, 2: 5.0}, {(1, 1): 10.0})
    after = process_source._Cpu(500_000_000, {1: 10.4, 3: 99.0}, {(1, 1): 10.3, (1, 2): 7.0})
    spent = process_source._cores(before, after)
    assert spent.processes == pytest.approx({1: 0.8})  # 2 ended, 3 is new: neither was there at both readings
    assert spent.threads == pytest.approx({(1, 1): 0.6})


def test_a_process_that_ended_is_an_event(tree: "subprocess.Popen[bytes]") -> None:
    short = subprocess.Popen([sys.executable, "-c", "pass"])
    short.wait()
    _, readings = Server([short.pid, tree.pid]).read()
    assert by_raw(readings)["process_gone"].labels == f"pid={short.pid}"
    assert by_series(readings)["server.processes"] == 2.0


def test_the_collector_is_not_counted_as_load_generator(tree: "subprocess.Popen[bytes]") -> None:
    children = [child.pid for child in psutil.Process().children()]  # the tree, and what other tests left running
    assert tree.pid in children
    before = by_series(Client(children).read()[1])["client.rss_bytes"]
    with_us = by_series(Client([*children, os.getpid()]).read()[1])["client.rss_bytes"]
    after = by_series(Client(children).read()[1])["client.rss_bytes"]  # they may still be starting
    assert 0.9 * min(before, after) < with_us < 1.1 * max(before, after)
