"""The agent serves this host's readings to those who may have them, and to nobody else."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.support.tls import Authority

from pinchpoint.catalog import format_labels, load_catalog, parse_labels
from pinchpoint.cli_agent import agent as serve_agent
from pinchpoint.errors import UsageError
from pinchpoint.fetch import FetchError, bearer, get, tls_context
from pinchpoint.telemetry.agent import MAX_AT_ONCE, Agent, AgentPage, listening_pids, server_tls
from pinchpoint.telemetry.config import Reading, event, own
from pinchpoint.telemetry.exposition import exposition
from pinchpoint.telemetry.prometheus import PrometheusParser, RawSample

TOKEN = "0123456789abcdef0123456789abcdef"
WAIT_S = 30.0
"""For answers on a busy host; a good one takes milliseconds."""


def served(agent: Agent) -> Iterator[Agent]:
    thread = threading.Thread(target=agent.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield agent
    agent.shutdown()
    agent.server_close()
    thread.join()


@pytest.fixture
def agent() -> Iterator[Agent]:
    yield from served(Agent("127.0.0.1", 0, AgentPage("gpu-1", lambda: (os.getpid(),)), TOKEN))


def page_of(url: str, token: str | None = TOKEN, tls: ssl.SSLContext | None = None) -> list[RawSample]:
    answer = get(url, bearer(token), WAIT_S, 1 << 20, tls)
    assert answer.status == 200
    samples, malformed = PrometheusParser().parse(answer.body)
    assert malformed == 0
    return samples


def status_of(agent: Agent, request: bytes) -> bytes:
    """The first line of the answer to raw bytes; empty when the agent just hung up."""
    with socket.create_connection(agent.server_address[:2], WAIT_S) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline()


def test_readings_come_under_their_canonical_names_with_the_hosts_name(agent: Agent) -> None:
    page_of(agent.url)
    samples = page_of(agent.url)
    names = {sample.name for sample in samples}
    assert {"host.load1", "host.clock_unix_s", "host.memory_used_ratio", "server.rss_bytes"} <= names
    assert all(sample.labels["host"] == "gpu-1" for sample in samples)
    assert all(load_catalog().resolve(sample.name, sample.labels)[0] == sample.name for sample in samples)


def test_without_the_right_token_there_is_nothing(agent: Agent) -> None:
    for headers in ({}, bearer("x" * 32), bearer(TOKEN[:-1]), {"Authorization": f"Basic {TOKEN}"}):
        answer = get(agent.url, headers, WAIT_S, 1 << 20)
        assert (answer.status, answer.body) == (401, b"")


def test_only_the_page_can_be_had_and_only_read(agent: Agent) -> None:
    head = b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
    assert status_of(agent, b"GET /metrics?x=1" + head).split()[1] == b"200"
    assert status_of(agent, b"GET /etc/passwd" + head).split()[1] == b"404"
    assert status_of(agent, b"POST /metrics" + head).split()[1] == b"405"


def test_a_head_without_end_and_bytes_that_are_no_request_are_refused(agent: Agent) -> None:
    assert status_of(agent, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000).split()[1:2] in ([b"431"], [])
    assert status_of(agent, b"\x00\x01\x02 nonsense\r\n\r\n") == b""
    assert page_of(agent.url)


def test_askers_who_say_nothing_take_no_more_than_their_room(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinchpoint.telemetry.agent.MAX_SECONDS", WAIT_S)
    silent = [socket.create_connection(agent.server_address[:2], WAIT_S) for _ in range(MAX_AT_ONCE)]
    with pytest.raises(FetchError):  # one too many: hung up on
        get(agent.url, bearer(TOKEN), WAIT_S, 1 << 20)
    for connection in silent:
        connection.close()


def test_askers_who_say_nothing_are_hung_up_on(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinchpoint.telemetry.agent.MAX_SECONDS", 0.05)
    with socket.create_connection(agent.server_address[:2], WAIT_S) as connection:
        assert connection.recv(1) == b""


def test_a_second_asker_right_behind_the_first_gets_the_same_readings_with_a_clock_of_his_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ns, wall_s = iter((0, 50_000_000, 150_000_000)), iter((1000.0, 1000.05, 1000.15))
    reads = iter(range(3))
    monkeypatch.setattr("pinchpoint.telemetry.agent.monotonic_ns", lambda: next(now_ns))
    monkeypatch.setattr("pinchpoint.telemetry.agent.time.time", lambda: next(wall_s))
    monkeypatch.setattr(
        "pinchpoint.telemetry.agent.Host.read", lambda host: (0, [own("host.load1", float(next(reads)))])
    )
    page = AgentPage("a")
    pages = [PrometheusParser().parse(page.read())[0] for _ in range(3)]
    told = [{sample.name: sample.value for sample in samples} for samples in pages]
    assert [one["host.load1"] for one in told] == [0, 0, 1]
    assert [one["host.clock_unix_s"] for one in told] == [1000.0, 1000.05, 1000.15]


def test_a_service_that_restarts_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = iter(range(0, 100_000_000_000, 10_000_000_000))
    monkeypatch.setattr("pinchpoint.telemetry.agent.monotonic_ns", lambda: next(now_ns))
    pids = iter(((), (os.getpid(),)))
    page = AgentPage("a", lambda: next(pids))
    assert b"server.processes" not in page.read()
    assert b"server.processes" in page.read()
    assert b"server.processes" in page.read()  # and not looked for while it is there


def test_processes_are_found_by_their_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listening_pids(listener.getsockname()[1]) == (os.getpid(),)
    assert listening_pids(1) == ()


def test_beyond_loopback_there_must_be_a_token() -> None:
    with pytest.raises(UsageError, match="--token-env"):
        Agent("0.0.0.0", 0, AgentPage("a"))
    for server in (Agent("127.0.0.1", 0, AgentPage("a")), Agent("localhost", 0, AgentPage("a"))):
        server.server_close()


@pytest.mark.parametrize("token", ["short", "has a blank in its middle", "line\nend-and-more-text", "ümläute-ümläute"])
def test_a_token_that_is_weak_or_no_header_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(UsageError) as failure:
        Agent("127.0.0.1", 0, AgentPage("a"), token)
    assert token not in str(failure.value)


def test_an_address_that_cannot_be_had_is_told_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen on"):
        Agent("127.0.0.1", taken.getsockname()[1], AgentPage("a"))
    with pytest.raises(UsageError, match="no address of this machine"):
        Agent("no.such.host.invalid", 0, AgentPage("a"))
    with pytest.raises(UsageError, match="--cert"):
        server_tls(str(tmp_path / "a"), str(tmp_path / "b"))


def test_the_page_is_served_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = server_tls(str(authority.certificate_file), str(authority.key_file))
    for agent in served(Agent("127.0.0.1", 0, AgentPage("a"), TOKEN, tls)):
        assert page_of(agent.url, tls=tls_context(str(authority.ca_file)))
        with pytest.raises(FetchError):
            get(agent.url, bearer(TOKEN), WAIT_S, 1 << 20)  # a stranger to this authority


label_values = st.text(max_size=20)


@given(st.lists(st.tuples(label_values, st.floats(allow_nan=False)), min_size=1, max_size=5, unique_by=lambda p: p[0]))
def test_a_page_reads_back_as_what_was_put_on_it(samples: list[tuple[str, float]]) -> None:
    readings: list[Reading] = [
        own("server.thread_cpu_cores", value, format_labels({"thread": name.strip("\n\r")})) for name, value in samples
    ]
    readings.append(event("process_gone", "pid=7"))
    text = exposition(readings, load_catalog(), {"host": 'a"b\\c'})
    parsed, malformed = PrometheusParser().parse(text)
    assert malformed == 0
    assert [(s.name, s.labels, s.value) for s in parsed] == [
        (r.raw, {**parse_labels(r.labels), "host": 'a"b\\c'}, r.value) for r in readings
    ]


def test_series_do_not_come_and_go_from_page_to_page(agent: Agent) -> None:
    page_of(agent.url)
    names = [
        {sample.name for sample in page_of(agent.url) if not sample.name.endswith(("_ratio", "_cores"))} for _ in "ab"
    ]
    assert names[0] == names[1]


def test_another_reader_of_the_format_finds_the_same_on_the_page() -> None:
    text = AgentPage("gpu-1").read().decode()
    ours, _ = PrometheusParser().parse(text)
    theirs = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert [(s.name, s.labels, s.value) for s in theirs] == [(s.name, s.labels, s.value) for s in ours]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"listen": "9500"}, "give ADDRESS:PORT"),
        ({"listen": "127.0.0.1:99999"}, "give ADDRESS:PORT"),
        ({"pid": (1,), "port": 80}, "give one of them"),
        ({"cert": Path("x")}, "give both"),
        ({"token_env": "NO_SUCH_VARIABLE_IS_SET"}, "put the token there"),
    ],
)
def test_flags_that_do_not_fit_are_told_in_words(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        serve_agent(**flags)


def test_the_verb_serves_until_it_is_ended_and_its_token_is_nowhere_to_be_seen() -> None:
    command = [sys.executable, "-c", "from pinchpoint.cli_agent import agent_app; agent_app()"]
    command += ["--listen", "127.0.0.1:0", "--token-env", "AGENT_TOKEN", "--name", "b"]
    environment = {**os.environ, "AGENT_TOKEN": TOKEN}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+/metrics", line)
    assert found is not None, line
    assert page_of(found.group())
    assert TOKEN.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert rest == ""


class _Gpus:
    name = "gpu"

    def read(self) -> tuple[int, list[Reading]]:
        return 0, [own("gpu.power_watts", 321.0, "gpu=0,kind=nvidia"), event("gpu_lost", "gpu=1")]


def test_the_accelerators_of_the_host_stand_on_the_page_without_their_events() -> None:
    page = AgentPage("a", accelerators=_Gpus()).read().decode()
    assert '{"gpu.power_watts",gpu="0",kind="nvidia",host="a"} 321.0' in page
    assert "gpu_lost" not in page
