"""Another machine is told under the same names as this one, with its own name on every reading."""

import threading
from collections.abc import Iterator

import pytest
from fake_service import FakeService, answer

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.errors import UsageError
from pinchpoint.telemetry.agent import Agent, AgentPage
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.host import Host
from pinchpoint.telemetry.remote_host import RemoteAddress, RemoteHost, parse_remote_host

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def agent() -> Iterator[Agent]:
    server = Agent("127.0.0.1", 0, AgentPage("what-the-agent-calls-itself"), TOKEN)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def of_series(readings: list[Reading]) -> dict[str, float]:
    return {r.series: r.value for r in readings if r.series is not None}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("gpu-1=http://10.0.0.5:9500", ("gpu-1", "http://10.0.0.5:9500/metrics")),
        ("http://node.example:9100/", ("node.example", "http://node.example:9100/metrics")),
        ("a=https://x/y?z=1", ("a", "https://x/y?z=1")),
        ("http://[fd00::5]:9500", ("fd00--5", "http://[fd00::5]:9500/metrics")),
        ("gpu-1", None),
        ("gpu/1=http://x", None),
        ("a=ftp://x", None),
        ("../x=http://y", None),
        ("http://x:99999", None),
    ],
)
def test_a_remote_host_has_a_name_and_a_page(text: str, address: tuple[str, str] | None) -> None:
    if address is None:
        with pytest.raises(UsageError):
            parse_remote_host(text)
    else:
        assert parse_remote_host(text) == address


def test_an_agent_tells_what_the_local_host_source_tells_with_the_name_we_gave_it(agent: Agent) -> None:
    remote = RemoteHost(RemoteAddress("gpu-1", agent.url), load_catalog(), TOKEN)
    remote.read()
    told = [r for r in remote.read()[1] if r.series is not None and r.series.startswith("host.")]
    local = Host()
    local.read()
    ours = {r.series for r in local.read()[1]}
    now_and_then = {"host.tcp_state_sockets", "host.ports_used"} | {s for s in ours if s and s.endswith("_ratio")}
    assert ours - now_and_then <= {r.series for r in told}
    assert {parse_labels(r.labels)["host"] for r in told} == {"gpu-1"}
    assert len([r for r in told if r.series == "host.memory_used_ratio"]) == 1


def test_the_agents_clock_is_compared_with_ours(agent: Agent) -> None:
    told = of_series(RemoteHost(RemoteAddress("gpu-1", agent.url), load_catalog(), TOKEN).read()[1])
    assert abs(told["source.clock_offset_s"]) <= told["source.clock_offset_error_s"] + 1e-3  # it is the same clock


def test_without_the_token_it_is_an_event_and_the_token_is_in_no_reading(agent: Agent) -> None:
    wrong = "f" * 32
    readings = RemoteHost(RemoteAddress("gpu-1", agent.url), load_catalog(), wrong).read()[1]
    assert [(r.raw, r.labels) for r in readings] == [("scrape_failed", "reason=http_401")]
    assert wrong not in repr(readings)


NODE = """node_cpu_seconds_total{{cpu="0",mode="idle"}} {idle}
node_cpu_seconds_total{{cpu="0",mode="user"}} {user}
node_cpu_seconds_total{{cpu="0",mode="softirq"}} {softirq}
node_memory_MemTotal_bytes 100
node_memory_MemAvailable_bytes 25
node_load1 3
"""


def test_shares_of_a_node_exporter_are_made_of_its_counters(service: FakeService) -> None:
    pages = iter((NODE.format(idle=100, user=10, softirq=5), NODE.format(idle=102, user=15, softirq=8)))
    service.respond = lambda handler: answer(handler, 200, next(pages).encode())
    remote = RemoteHost(RemoteAddress("n", service.url + "/metrics"), load_catalog())
    first = of_series(remote.read()[1])
    assert "host.cpu_used_ratio" not in first
    assert first["host.memory_used_ratio"] == 0.75
    readings = remote.read()[1]
    second = of_series(readings)
    assert second["host.cpu_used_ratio"] == pytest.approx(0.8)
    assert second["host.cpu_softirq_ratio"] == pytest.approx(0.3)
    assert second["host.cpu_cores"] == 1
    assert all("host=n" in r.labels for r in readings if (r.series or "").startswith("host."))
