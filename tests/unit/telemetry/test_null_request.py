"""Requests that need no model: pages and connections in turn, and a failure is an event by kind."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from fake_service import FakeService, QuietServer, answer

from pinchpoint.catalog import load_catalog
from pinchpoint.telemetry import null_request
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.null_request import NullRequest


class Keeping:
    """A service that keeps connections until `hang_up`. pages: path -> status; others are 404."""

    def __init__(self) -> None:
        self.pages = {"/health": 200, "/v1/models": 200}
        self.hang_up = False
        self.ports: list[tuple[str, int]] = []
        keeping = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                keeping.ports.append((self.path, self.client_address[1]))
                answer(self, keeping.pages.get(self.path, 404), b"{}")
                self.close_connection = keeping.hang_up or self.headers["Connection"] == "close"

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.urls = (url + "/health", url + "/v1/models")


@pytest.fixture
def keeping() -> Iterator[Keeping]:
    service = Keeping()
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()


def labels(readings: list[Reading]) -> str:
    return readings[0].labels


def names(readings: list[Reading]) -> list[str]:
    return [reading.series or reading.raw for reading in readings]


def test_pages_and_kinds_of_connections_take_turns(keeping: Keeping) -> None:
    source = NullRequest(keeping.urls)
    told = [labels(source.read()[1]) for _ in range(5)]
    assert told == [
        "connection=new,path=/health",
        "connection=kept,path=/health",
        "connection=new,path=/v1/models",
        "connection=kept,path=/v1/models",
        "connection=new,path=/health",
    ]


def test_a_kept_connection_is_used_again_and_a_new_one_is_new(keeping: Keeping) -> None:
    source = NullRequest(keeping.urls[0])
    for _ in range(6):
        source.read()
    ports = [port for _, port in keeping.ports]
    assert len(set(ports[1::2])) == 1
    assert len(set(ports[0::2])) == 3


def test_connecting_is_told_apart_from_the_answer_and_only_when_there_was_one(keeping: Keeping) -> None:
    source = NullRequest(keeping.urls[0])
    new, first_kept, _, kept = (source.read()[1] for _ in range(4))
    values = {reading.series: reading.value for reading in new}
    assert values["probe.null_request_s"] == pytest.approx(values["probe.connect_s"] + values["probe.answer_s"])
    assert min(values.values()) > 0
    assert "probe.connect_s" in names(first_kept)
    assert names(kept) == ["probe.null_request_s", "probe.answer_s"]
    assert kept[0].value == kept[1].value


def test_a_service_that_closes_kept_connections_is_asked_on_another_and_has_not_failed(keeping: Keeping) -> None:
    keeping.hang_up = True
    source = NullRequest(keeping.urls[0])
    for _ in range(6):
        assert "probe.null_request_s" in names(source.read()[1])


def test_a_page_that_is_not_there_is_left_out_and_told_once(keeping: Keeping) -> None:
    del keeping.pages["/v1/models"]
    source = NullRequest(keeping.urls)
    told = [source.read()[1][0] for _ in range(8)]
    left_out = [reading for reading in told if reading.series is None]
    assert left_out == [("null_request_left_out", None, "path=/v1/models,reason=http_404", 1.0)]
    assert [reading.labels for reading in told].count("connection=new,path=/v1/models") == 0


def test_a_page_that_was_there_and_fails_is_a_failure_each_time(keeping: Keeping) -> None:
    source = NullRequest(keeping.urls)
    for _ in range(4):
        source.read()
    keeping.pages["/v1/models"] = 404
    told = [source.read()[1][0] for _ in range(8)]
    assert [reading.raw for reading in told if reading.series is None] == ["null_request_failed"] * 4


def test_a_failed_request_is_an_event_by_kind_and_never_a_latency(service: FakeService, free_port_url: str) -> None:
    service.respond = lambda handler: answer(handler, 503, b"overloaded")
    told = "connection=new,path=/,reason="
    assert NullRequest(service.url).read()[1] == [("null_request_failed", None, told + "http_503", 1.0)]
    assert NullRequest(free_port_url).read()[1] == [("null_request_failed", None, told + "refused", 1.0)]


def test_a_request_that_hangs_ends_at_its_timeout_on_both_kinds(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(null_request, "NULL_TIMEOUT_S", 0.1)
    service.respond = lambda handler: time.sleep(0.5)
    source = NullRequest(service.url)
    for kind in ("new", "kept"):
        told = [("null_request_failed", None, f"connection={kind},path=/,reason=timeout", 1.0)]
        assert source.read()[1] == told


def test_every_series_is_in_the_catalogue(keeping: Keeping) -> None:
    assert all(load_catalog().entry(name) is not None for name in names(NullRequest(keeping.urls).read()[1]))
