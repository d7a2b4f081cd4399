"""What the sources that ask the service read, and what they say when they cannot."""

import time
from pathlib import Path

import pytest
from fake_service import FakeService, answer

from pinchpoint.catalog import load_catalog
from pinchpoint.telemetry import engine_page, null_request
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.engine_page import EnginePage
from pinchpoint.telemetry.null_request import NullRequest

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
