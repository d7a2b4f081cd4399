"""What is asked for beside a load and cannot be had is told before the load; what is there gets a source of its own."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinchpoint.collecting import Collecting
from pinchpoint.errors import PinchpointError, UsageError
from pinchpoint.model import TargetFacts
from pinchpoint.plan import build_plan
from pinchpoint.telemetry import CollectorConfig
from pinchpoint.telemetry import handle as handle_module

PAGES = {
    "/metrics": b"vllm:num_requests_running 3\n",
    "/node": b"node_load1 0.5\nnode_memory_MemTotal_bytes 8\n",
    "/people": b"<!doctype html><title>hello</title>",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/guarded" and self.headers["Authorization"] != "Bearer secret-token":
            self.send_error(401)
            return
        body = PAGES["/node"] if self.path == "/guarded" else PAGES.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def collecting(url: str, facts: dict[str, Any] | None = None, **telemetry: Any) -> Collecting:
    plan = build_plan({"url": url, "seed": 1, "telemetry": {"discover": False, **telemetry}})
    return Collecting(plan, TargetFacts(url, **(facts or {})), None, local=True)


class _Events:
    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def on_event(self, kind: str, **fields: Any) -> None:
        self.told.append((kind, fields))

    def on_host(self, facts: object) -> None:
        pass


def config_of(one: Collecting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CollectorConfig:
    """What the collector process would be told."""
    seen: list[CollectorConfig] = []

    def start(config: CollectorConfig, api_key: str | None = None) -> handle_module.CollectorHandle:
        seen.append(config)
        raise PinchpointError("seen")

    monkeypatch.setattr("pinchpoint.collecting.start_collector", start)
    with pytest.raises(PinchpointError, match="seen"):
        one.start(tmp_path, "run-1", [7], _Events())  # pyright: ignore[reportArgumentType]
    return seen[0]


@pytest.mark.parametrize(
    ("telemetry", "says"),
    [
        ({"pages": ("gpu=http://127.0.0.1:1/metrics",)}, "nothing listens there"),
        ({"pages": ("{url}/nowhere",)}, "HTTP 404"),
        ({"pages": ("{url}/people",)}, "a page for people"),
        ({"hosts": ("gpu1=http://127.0.0.1:1",)}, "nothing listens there"),
        ({"hosts": ("{url}/guarded",)}, "--host-token-env"),
        ({"hosts": ("{url}/metrics",)}, "tells nothing of a host"),
        ({"hosts": ("{url}/guarded",), "host_token_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE is empty"),
        ({"otlp": {"host": "no.such.host.invalid"}}, "no.such.host.invalid"),
        ({"otlp": {"http_port": "{port}"}}, "no spans can be received"),
        ({"spans": "/no/such/spans.json"}, "/no/such/spans.json"),
        ({"prometheus": {"url": "http://127.0.0.1:1", "selector": '{job="llm"}'}}, "127.0.0.1:1"),
    ],
)
def test_a_source_that_is_named_and_cannot_be_read_is_told_before_the_load(
    url: str, telemetry: dict[str, Any], says: str
) -> None:
    if telemetry.get("otlp", {}).get("http_port"):
        telemetry = {"otlp": {"http_port": int(url.rpartition(":")[2])}}
    named = {
        key: tuple(each.replace("{url}", url) for each in value) if isinstance(value, tuple) else value
        for key, value in telemetry.items()
    }
    with pytest.raises(UsageError) as raised:
        collecting(url, **named)
    assert says in str(raised.value)


def test_what_can_be_read_is_given_to_the_collector(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTS", "secret-token")
    one = collecting(
        url,
        facts={"metrics_url": url + "/metrics", "health_path": "/health", "models": ("m",), "server_pids": (5,)},
        pages=(f"node={url}/node", url + "/node"),
        hosts=(f"gpu1={url}/guarded",),
        host_token_env="AGENTS",
        otlp={},
    )
    config = config_of(one, tmp_path, monkeypatch)
    assert [(page.name, page.keyed, page.host) for page in config.pages] == [
        ("engine", True, None),
        ("node", False, "node"),
        ("page-2", False, None),
    ]
    assert config.hosts == (f"gpu1={url}/guarded",)
    assert config.null_request_urls == (url + "/health", url + "/v1/models")
    assert (config.server_pids, config.client_pids, config.accelerators) == ((5,), (7,), True)
    assert config.otlp is not None and config.otlp.run_id == "run-1"  # requests carry a traceparent of the run
    assert "secret-token" not in repr(config)


def test_pages_are_found_beside_the_engine_and_never_twice(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = config_of(collecting(url, discover=True), tmp_path, monkeypatch)
    assert [page.url for page in found.pages] == [url + "/metrics"]
    known = collecting(url, facts={"metrics_url": url + "/metrics"}, discover=True)
    assert [page.url for page in config_of(known, tmp_path, monkeypatch).pages] == [url + "/metrics"]
