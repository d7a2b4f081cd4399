"""Pages are found where exporters usually are, on the given host only, and are told apart by the catalogue."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import msgspec
import pytest
from tests.support.scripted_server import Piece, ScriptedServer

from pinchpoint.catalog import CATALOG_PATH, Catalog, load_catalog, read_catalog
from pinchpoint.errors import UsageError
from pinchpoint.telemetry import discovery as discovery_module
from pinchpoint.telemetry.discovery import FIRST_PATHS, discover, named, places

PAGES = {
    "vllm": b"vllm:num_requests_running 3\nprocess_cpu_seconds_total 1\n",
    "dcgm": b'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 50\nDCGM_FI_DEV_FB_USED{gpu="0"} 5\n',
    "node": b"node_load1 2\nnode_memory_MemAvailable_bytes 5\n",
    "stranger": b"go_goroutines 5\nmyapp_things_total 3\n",
}


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Paths:
    """Answers by path; others are 404."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        self.pages = pages
        self.server = ScriptedServer(self._answer)

    def _answer(self, number: int, body: bytes) -> Iterator[Piece]:
        path = self.server.requests[number].split()[1].decode()
        yield http(self.pages[path]) if path in self.pages else http(b"not here", "404 Not Found")
        yield "close"

    @property
    def asked(self) -> set[str]:
        return {request.split()[1].decode() for request in self.server.requests}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def serve(stack: ExitStack, pages: dict[str, bytes]) -> Paths:
    paths = Paths(pages)
    stack.enter_context(paths.server)
    return paths


def with_ports(ports: dict[str, int]) -> Catalog:
    """The catalogue, with exporters on other ports than the usual ones; none at all for those not named."""
    catalog = read_catalog(CATALOG_PATH)
    catalog._exporters = {
        name: msgspec.structs.replace(each, ports=(ports[name],) if name in ports else ())
        for name, each in catalog.exporters.items()
    }
    return catalog


def told(found: Sequence[object]) -> list[tuple[str | None, str, str]]:
    return [(each.exporter, each.layer, each.page.name) for each in found]  # pyright: ignore


@pytest.mark.parametrize("path", FIRST_PATHS)
def test_a_page_is_found_on_the_service_itself(stack: ExitStack, path: str) -> None:
    paths = serve(stack, {path: PAGES["vllm"]})
    found = discover(paths.server.url, load_catalog(), elsewhere=False)
    assert told(found.pages) == [("vllm", "engine", "engine")]
    assert found.pages[0].page.url == paths.server.url + path
    assert found.trouble is None


def test_one_page_under_two_paths_is_one_page(stack: ExitStack) -> None:
    paths = serve(stack, {"/metrics": PAGES["vllm"], "/metrics/": PAGES["vllm"], "/prometheus/metrics": PAGES["node"]})
    found = discover(paths.server.url, load_catalog(), elsewhere=False)
    assert told(found.pages) == [("vllm", "engine", "engine"), ("node", "host", "host-node")]


def test_exporters_are_found_on_their_ports_of_the_same_host_and_get_no_key(stack: ExitStack) -> None:
    service = serve(stack, {"/metrics": PAGES["vllm"]})
    gpu, host = serve(stack, {"/metrics": PAGES["dcgm"]}), serve(stack, {"/metrics": PAGES["node"]})
    catalog = with_ports({"dcgm": gpu.server.port, "node": host.server.port})
    found = discover(service.server.url, catalog, api_key="sk-abc")
    assert told(found.pages) == [
        ("vllm", "engine", "engine"),
        ("dcgm", "gpu", "gpu"),
        ("node", "host", "host-node"),
    ]
    assert all(b"sk-abc" in request for request in service.server.requests)
    assert not any(b"sk-abc" in request for other in (gpu, host) for request in other.server.requests)


def test_a_page_of_nobody_known_counts_on_the_service_and_not_elsewhere(stack: ExitStack) -> None:
    service, other = serve(stack, {"/metrics": PAGES["stranger"]}), serve(stack, {"/metrics": PAGES["stranger"]})
    found = discover(service.server.url, with_ports({"dcgm": other.server.port}))
    assert [each.exporter for each in found.pages] == [None]
    assert [each.reason for each in found.nothing if not each.given] == ["unknown_exporter"]


def test_a_service_without_a_page_says_what_stands_in_the_way(stack: ExitStack) -> None:
    assert (discover(serve(stack, {}).server.url, load_catalog(), elsewhere=False).trouble or None) is not None
    locked = stack.enter_context(
        ScriptedServer(lambda number, body: (http(b"", "401 Unauthorized" if number % 2 else "404 Not Found"), "close"))
    )
    trouble = discover(locked.url, load_catalog(), elsewhere=False).trouble
    assert trouble is not None and trouble.reason == "http_401"


def test_a_page_that_was_given_is_the_only_one_asked_for_on_its_server(stack: ExitStack) -> None:
    paths = serve(stack, {"/my/page": PAGES["vllm"], "/metrics": PAGES["node"]})
    found = discover(paths.server.url + "/my/page", load_catalog(), elsewhere=False)
    assert told(found.pages) == [("vllm", "engine", "engine")]
    assert paths.asked == {"/my/page"}


def test_only_the_given_host_and_only_the_ports_of_the_catalogue_are_asked() -> None:
    catalog = load_catalog()
    asked = places("https://gpu-1.example:8443/v1", catalog)
    usual = {port for exporter in catalog.exporters.values() for port in exporter.ports}
    for place in asked:
        url = place.url.split("/")
        assert url[2].split(":")[0] == "gpu-1.example"
        assert place.given == (url[2] == "gpu-1.example:8443" and url[0] == "https:")
        assert place.given or int(url[2].split(":")[1]) in usual
    assert len(asked) == len({place.url for place in asked}) < 50
    assert {place.url for place in places("http://[::1]:8000", catalog)} >= {"http://[::1]:9400/metrics"}


def test_hosts_that_drop_everything_take_the_time_of_one_page(
    monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    monkeypatch.setattr(discovery_module, "PROBE_TIMEOUT_S", 0.3)
    silent = [stack.enter_context(ScriptedServer(lambda number, body: (30.0, "close"))) for _ in range(6)]
    names = list(load_catalog().exporters)[:6]
    service = serve(stack, {"/metrics": PAGES["vllm"]})
    catalog = with_ports(dict(zip(names, [each.port for each in silent], strict=True)))
    started_s = time.monotonic()
    found = discover(service.server.url, catalog)
    took_s = time.monotonic() - started_s
    assert [each.reason for each in found.nothing if not each.given] == ["timeout"] * 6
    assert took_s < 6 * 30.0


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://", "http://u:p@host/", "http://host:99999999"])
def test_what_is_no_url_is_refused_in_words(url: str) -> None:
    with pytest.raises(UsageError):
        places(url, load_catalog())


def test_sources_have_names_of_their_own(stack: ExitStack) -> None:
    pages = [serve(stack, {"/metrics": PAGES["vllm"]}) for _ in range(2)]
    found = [discover(each.server.url, load_catalog(), elsewhere=False).pages[0] for each in pages]
    assert [each.page.name for each in named(found)] == ["engine", "engine-2"]
