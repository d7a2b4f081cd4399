"""Pages of metrics: what is kept of a good one, and that no bad one does harm. Exchanges are with real sockets."""

import gzip
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

import pytest
from fake_service import FakeService, answer
from tests.support.scripted_server import END, Piece, ScriptedServer, chunk

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.parts import PartWriter
from pinchpoint.telemetry import page as page_source
from pinchpoint.telemetry.collect import collect_source
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.page import Page

PAGE = (Path(__file__).parents[2] / "data" / "metrics" / "vllm_v1.prom").read_bytes()
SMALL = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 4\n"


def make(url: str = "http://unused/", **options: object) -> Page:
    return Page(url, "engine", load_catalog(), **options)  # pyright: ignore[reportArgumentType]


def by_series(readings: Sequence[Reading]) -> dict[str, float]:
    return {reading.series: reading.value for reading in readings if reading.series is not None}


def by_raw(readings: Sequence[Reading]) -> dict[str, Reading]:
    return {reading.raw: reading for reading in readings}


def page(text: str) -> dict[str, Reading]:
    return by_raw(make().read_page(text.encode()))


def plain(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/plain", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def scrape(*pieces: Piece) -> list[Reading]:
    with ScriptedServer(lambda number, body: (*pieces, "close")) as server:
        return make(server.url + "/metrics").read()[1]


def failed(reason: str) -> list[Reading]:
    return [Reading("scrape_failed", None, f"reason={reason}", 1.0)]


# -- samples -------------------------------------------------------------------------------------------------------


def test_every_sample_is_kept_but_creation_times() -> None:
    readings = make().read_page(PAGE)
    lines = [line for line in PAGE.decode().splitlines() if line and not line.startswith("#")]
    created = [line for line in lines if "_created{" in line]
    assert created
    assert len(readings) == len(lines) - len(created)
    assert not any(reading.raw.endswith("_created") for reading in readings)


def test_known_samples_carry_their_series_in_its_unit_and_unknown_ones_stay_raw() -> None:
    readings = page('DCGM_FI_DEV_GPU_UTIL{gpu="0"} 50\nsomething_else 3\n')
    assert readings["DCGM_FI_DEV_GPU_UTIL"] == (
        "DCGM_FI_DEV_GPU_UTIL", "gpu.util_ratio", "gpu=0,kind=nvidia", 0.5,
    )  # fmt: skip
    assert readings["something_else"].series is None


def test_readings_of_another_machine_say_which_and_those_of_a_service_do_not() -> None:
    readings = by_raw(make(host="node1").read_page(b"node_load1 2\nvllm:num_requests_running 3\n"))
    assert readings["node_load1"].labels == "host=node1"
    assert readings["vllm:num_requests_running"].labels == ""


@pytest.mark.parametrize("value", ["-1", "NaN", "+Inf"])
def test_a_value_that_means_failed_stays_raw_and_is_counted(value: str) -> None:
    readings = page(f"vllm:gpu_prefix_cache_hit_rate {value}\n")
    assert readings["vllm:gpu_prefix_cache_hit_rate"].series is None
    assert readings["scrape_unusable_values"].value == 1.0


def test_an_old_name_beside_its_successor_does_not_count_twice() -> None:
    old, new = "vllm:time_per_output_token_seconds_sum", "vllm:inter_token_latency_seconds_sum"
    readings = page(f"{old} 2\n{new} 2\n")
    assert readings[new].series == "engine.itl_s_sum"
    assert readings[old].series is None
    assert page(f"{old} 2\n")[old].series == "engine.itl_s_sum"


def test_labels_of_one_name_all_feed_its_series() -> None:
    readings = make().read_page(b'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4\n')
    assert [(r.series, r.labels, r.value) for r in readings] == [
        ("engine.requests_running", "engine=0", 3.0),
        ("engine.requests_running", "engine=1", 4.0),
    ]


def test_buckets_are_kept_with_their_bounds() -> None:
    name = "vllm:time_to_first_token_seconds_bucket"
    readings = make().read_page(f'{name}{{le="0.5"}} 3\n{name}{{le="+Inf"}} 4\n'.encode())
    assert [(r.series, parse_labels(r.labels)["le"], r.value) for r in readings] == [
        ("engine.ttft_s_bucket", "0.5", 3.0),
        ("engine.ttft_s_bucket", "+Inf", 4.0),
    ]


def test_malformed_lines_become_a_reading() -> None:
    assert page("a 1\nb b b\n")["scrape_malformed_lines"].value == 1.0


def test_a_sample_given_twice_counts_once_also_with_its_labels_in_another_order() -> None:
    readings = make().read_page(
        b'vllm:num_requests_running{a="1",b="2"} 3\nvllm:num_requests_running{b="2",a="1"} 9\n'
        b'vllm:num_requests_running{a="1",b="2"} 3\n'
    )
    assert by_series(readings) == {"engine.requests_running": 3.0}
    assert by_raw(readings)["scrape_duplicate_samples"].value == 2.0


# -- from one page to the next -------------------------------------------------------------------------------------


def test_the_same_page_again_tells_no_events() -> None:
    source = make()
    assert source.read_page(PAGE) == source.read_page(PAGE) == source.read_page(PAGE)


def test_counters_that_fell_and_a_new_process_are_events() -> None:
    source = make()
    source.read_page(b"vllm:generation_tokens_total 90\nx_total 5\nprocess_start_time_seconds 1700000000\n")
    readings = by_raw(
        source.read_page(b"vllm:generation_tokens_total 7\nx_total 1\nprocess_start_time_seconds 1700000900\n")
    )
    assert readings["counter_reset"].labels == "count=2,example=engine.generation_tokens_total"
    assert readings["exporter_restarted"].labels == "reason=start_time"
    assert readings["vllm:generation_tokens_total"].value == 7.0


def test_a_gauge_may_fall() -> None:
    source = make()
    source.read_page(b"vllm:num_requests_running 9\n")
    assert [r.raw for r in source.read_page(b"vllm:num_requests_running 1\n")] == ["vllm:num_requests_running"]


def test_names_that_change_midway_are_an_event_and_the_series_goes_on() -> None:
    source = make()
    old, new = "vllm:time_per_output_token_seconds_sum", "vllm:inter_token_latency_seconds_sum"
    assert by_series(source.read_page(f"{old} 2\na 1\n".encode())) == {"engine.itl_s_sum": 2.0}
    readings = source.read_page(f"{new} 3\na 1\n".encode())
    assert by_series(readings) == {"engine.itl_s_sum": 3.0}
    assert by_raw(readings)["page_names_changed"].labels == f"example={old},gone=1,new=1"
    both = source.read_page(f"{old} 4\n{new} 4\na 1\n".encode())  # and a name that joins takes nothing away
    assert by_series(both) == {"engine.itl_s_sum": 4.0}
    assert by_raw(both)["page_names_added"].labels == f"count=1,example={old}"


def test_labels_that_change_with_every_page_do_not_grow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_source, "MAX_HEADS", 100)
    source = make()
    for turn in range(30):
        readings = source.read_page("".join(f'a_total{{id="{turn}-{i}"}} 1\n' for i in range(20)).encode())
        assert len(readings) == 20
    assert len(source._known) <= 100


# -- one exchange --------------------------------------------------------------------------------------------------


def test_a_scrape_happens_between_asking_and_answering(service: FakeService) -> None:
    service.respond = lambda handler: answer(handler, 200, PAGE)
    before_ns = time.monotonic_ns()
    t_ns, readings = make(service.url + "/metrics").read()
    assert before_ns <= t_ns <= time.monotonic_ns()
    assert by_series(readings)["engine.requests_waiting"] == 8.0
    assert by_series(readings)["source.scrape_s"] > 0
    assert by_series(readings)["source.page_bytes"] == len(PAGE)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"no", "http_500"),
        (401, b"", "http_401"),
        (200, b"", "no_samples"),
        (200, b"# TYPE a counter\n", "no_samples"),
        (200, b"\n <!DOCTYPE html><html>\na 1\n</html>", "html"),
        (200, b'[{"iter": 1}]', "json"),
        (200, b"\x7fELF\x00\x01\x02", "binary"),
    ],
)
def test_what_is_no_page_of_metrics_is_an_event_and_not_silence(
    service: FakeService, status: int, body: bytes, reason: str
) -> None:
    service.respond = lambda handler: answer(handler, status, body)
    assert make(service.url).read()[1] == failed(reason)


def test_a_dead_endpoint_is_an_event(free_port_url: str) -> None:
    assert make(free_port_url).read()[1] == failed("refused")


def test_the_key_is_sent_as_a_bearer_token(service: FakeService) -> None:
    service.respond = lambda handler: answer(handler, 200, PAGE)
    make(service.url, api_key="sk-abc").read()
    assert service.requests[0][1]["Authorization"] == "Bearer sk-abc"


def test_a_slow_endpoint_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_source, "SCRAPE_TIMEOUT_S", 0.2)
    assert scrape(10.0) == failed("timeout")


def test_a_page_that_trickles_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_source, "SCRAPE_TIMEOUT_S", 0.2)
    trickle: list[Piece] = [b"HTTP/1.1 200 OK\r\n\r\n"]
    for _ in range(500):
        trickle += [b"a 1\n", 0.02]
    assert scrape(*trickle) == failed("timeout")


def endless(line: bytes) -> Iterator[Piece]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    while True:
        yield line


@pytest.mark.parametrize("line", [b"a 1\n" * 4096, b"a" * 16384], ids=["lines", "one line"])
def test_a_page_without_end_is_refused_in_bounded_memory_and_left_alone_for_a_while(line: bytes) -> None:
    with ScriptedServer(lambda number, body: endless(line)) as server:
        source = make(server.url)
        tracemalloc.start()
        try:
            assert source.read()[1] == failed("too_large")
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 4 * page_source.MAX_PAGE_BYTES
        assert [r.raw for r in source.read()[1]] == ["scrape_skipped"]
        assert len(server.requests) == 1


def test_a_page_of_50_megabytes_is_refused_and_a_small_one_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_source, "TOO_LARGE_PAUSE_S", 0.0)
    line = b'some_metric_with_a_long_name{label="value"} 1\n'
    pages = [plain(line * (50_000_000 // len(line))), plain(SMALL)]
    with ScriptedServer(lambda number, body: (pages[number], "close")) as server:
        source = make(server.url)
        assert source.read()[1] == failed("too_large")
        assert by_series(source.read()[1])["engine.requests_running"] == 3.0


def test_chunked_pages_are_whole_and_cut_ones_are_refused() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert by_series(scrape(head, chunk(SMALL[:20]), chunk(SMALL[20:]), END))["engine.requests_waiting"] == 4.0
    assert scrape(head, chunk(SMALL[:28]), chunk(SMALL[28:])) == failed("truncated")


def test_a_page_shorter_than_its_length_is_refused_also_between_lines() -> None:
    cut = plain(SMALL).replace(SMALL, SMALL.splitlines(keepends=True)[0])
    assert scrape(cut) == failed("truncated")


def test_a_page_without_length_is_whole_when_its_last_line_is() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    assert by_series(scrape(head + SMALL))["engine.requests_waiting"] == 4.0
    assert scrape(head + SMALL[:-2]) == failed("truncated")  # "4" could have been "42"


def test_openmetrics_says_where_it_ends() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0\r\n\r\n"
    assert by_series(scrape(head + SMALL + b"# EOF\n"))["engine.requests_waiting"] == 4.0
    assert scrape(head + SMALL) == failed("truncated")


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_page_is_read_though_nobody_asked_for_it(name: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(SMALL)
    assert by_series(scrape(plain(packed, f"Content-Encoding: {name}")))["engine.requests_waiting"] == 4.0
    assert scrape(plain(packed[:-3], f"Content-Encoding: {name}")) == failed("truncated")
    assert scrape(plain(b"plain text", f"Content-Encoding: {name}")) == failed("encoding")


def test_a_compressed_page_that_swells_is_refused() -> None:
    bomb = gzip.compress(b"a 1\n" * (1 << 24))
    assert scrape(plain(bomb, "Content-Encoding: gzip")) == failed("too_large")


def test_an_encoding_that_nobody_asked_for_is_said() -> None:
    assert scrape(plain(b"x", "Content-Encoding: br")) == failed("encoding")


def test_a_wrong_content_type_is_an_event_once_and_the_page_is_read() -> None:
    wrong = plain(SMALL).replace(b"text/plain", b"text/html")
    with ScriptedServer(lambda number, body: (wrong, "close")) as server:
        source = make(server.url)
        first, second = by_raw(source.read()[1]), by_raw(source.read()[1])
    assert first["page_content_type"].labels == "type=text/html"
    assert first["vllm:num_requests_running"].value == 3.0
    assert "page_content_type" not in second


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


def test_a_redirect_within_the_server_is_followed_and_remembered() -> None:
    pages = [redirect("/metrics/"), plain(SMALL), plain(SMALL)]
    with ScriptedServer(lambda number, body: (pages[number], "close")) as server:
        source = make(server.url + "/metrics")
        assert by_series(source.read()[1])["engine.requests_running"] == 3.0
        source.read()
        assert [request.split()[1] for request in server.requests] == [b"/metrics", b"/metrics/", b"/metrics/"]


def test_a_redirect_to_another_server_is_refused_and_it_gets_no_key() -> None:
    with ScriptedServer(lambda number, body: (plain(SMALL), "close")) as other:
        to = redirect(other.url + "/metrics")
        with ScriptedServer(lambda number, body: (to, "close")) as server:
            assert make(server.url, api_key="sk-abc").read()[1] == failed("redirected")
        assert other.requests == []


def test_redirects_in_a_circle_end() -> None:
    with ScriptedServer(lambda number, body: (redirect("/metrics"), "close")) as server:
        assert make(server.url).read()[1] == failed("redirects")


# -- clocks --------------------------------------------------------------------------------------------------------


def test_the_clock_behind_a_page_is_known_within_bounds() -> None:
    ahead_s = 3600.0
    with ScriptedServer(
        lambda number, body: (plain(SMALL, f"Date: {formatdate(time.time() + ahead_s, usegmt=True)}"), "close")
    ) as server:
        values = by_series(make(server.url).read()[1])
    assert abs(values["source.clock_offset_s"] - ahead_s) <= values["source.clock_offset_error_s"] + 0.05


def test_a_clock_that_the_page_tells_is_exact() -> None:
    def told(number: int, body: bytes) -> Sequence[Piece]:
        return (plain(f"node_time_seconds {time.time() - 100}\n".encode()), "close")

    with ScriptedServer(told) as server:
        readings = make(server.url).read()[1]
    values = by_series(readings)
    assert abs(values["source.clock_offset_s"] + 100) <= values["source.clock_offset_error_s"] + 0.05
    assert values["source.clock_offset_error_s"] <= values["source.scrape_s"]


# -- under the collector -------------------------------------------------------------------------------------------


def test_never_more_than_one_scrape_is_in_flight_and_missed_instants_fall_out(tmp_path: Path) -> None:
    stop = threading.Event()
    in_flight: list[int] = []
    most = 0

    def slow(number: int, body: bytes) -> Iterator[Piece]:
        nonlocal most
        in_flight.append(number)
        most = max(most, len(in_flight))
        if number == 3:
            stop.set()
        yield 0.25
        in_flight.remove(number)  # before the answer, so that the next request cannot come first
        yield plain(SMALL)
        yield "close"

    period_s = 0.05
    with ScriptedServer(slow) as server:
        started_s = time.monotonic()
        writer = PartWriter(tmp_path / "telemetry-engine.arrows", SAMPLE_COLUMNS)
        collect_source(make(server.url), writer, stop, period_s)
        assert most == 1
        assert len(server.requests) == 4 < (time.monotonic() - started_s) / period_s
