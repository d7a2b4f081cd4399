"""Another machine, for real: the agent behind a network of its own, and node-exporter beside our own reading."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.real_engines import free_ports

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.host import Host
from pinchpoint.telemetry.remote_host import RemoteAddress, RemoteHost

TOKEN = "0123456789abcdef0123456789abcdef"
OURS, THEIRS = "10.213.77.1", "10.213.77.2"
NODE_EXPORTER = "prometheus-node-exporter"
STARTUP_LIMIT_S = 60.0
POLL_S = 0.05


def by_place(readings: list[Reading]) -> dict[tuple[str, str], float]:
    """By series and labels, without the name of the host."""
    found: dict[tuple[str, str], float] = {}
    for reading in readings:
        if reading.series is not None:
            labels = {key: value for key, value in parse_labels(reading.labels).items() if key != "host"}
            found[reading.series, str(sorted(labels.items()))] = reading.value
    return found


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with the address THEIRS, reached from OURS. Needs to be root."""
    name = f"pinchpoint-{os.getpid()}"
    near, far = f"pp{os.getpid()}a", f"pp{os.getpid()}b"
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespace can be made here")
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", f"{OURS}/24", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", name, "addr", "add", f"{THEIRS}/24", "dev", far)
        ip("-n", name, "link", "set", far, "up")
        yield name
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no pair of interfaces can be made here: {error.stderr.decode(errors='replace')}")
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", name)


def test_an_agent_on_another_network_is_read_and_tells_of_its_own(namespace: str) -> None:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "pinchpoint", "agent"]
    command += ["--listen", f"{THEIRS}:0", "--token-env", "AGENT_TOKEN"]
    process = subprocess.Popen(
        command, env={**os.environ, "AGENT_TOKEN": TOKEN}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+/metrics", process.stdout.readline())
        assert found is not None
        remote = RemoteHost(RemoteAddress("far", found.group()), load_catalog(), TOKEN)
        remote.read()
        readings = remote.read()[1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
    nics = {parse_labels(r.labels)["nic"] for r in readings if r.series == "host.net_rx_bytes_total"}
    assert nics == {f"pp{os.getpid()}b"}
    assert {parse_labels(r.labels)["host"] for r in readings if (r.series or "").startswith("host.")} == {"far"}
    told = {r.series: r.value for r in readings}
    assert abs(told["source.clock_offset_s"]) <= told["source.clock_offset_error_s"] + 1e-3  # one clock, two networks


def wait_until_listening(port: int) -> None:
    deadline_s = time.monotonic() + STARTUP_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), STARTUP_LIMIT_S).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline_s, "it does not listen"
            time.sleep(POLL_S)


@pytest.fixture
def node_exporter() -> Iterator[str]:
    program = shutil.which(NODE_EXPORTER) or shutil.which("node_exporter")
    if program is None:
        pytest.skip(f"{NODE_EXPORTER} is not installed")
    [port] = free_ports(1)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([program, f"--web.listen-address=127.0.0.1:{port}"], stdout=quiet, stderr=quiet)
    try:
        wait_until_listening(port)
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc")
def test_counters_of_a_real_node_exporter_lie_between_our_own_before_and_after(node_exporter: str) -> None:
    catalog = load_catalog()
    remote, host = RemoteHost(RemoteAddress("here", node_exporter), catalog), Host()
    remote.read()
    before = by_place(host.read()[1])
    theirs = by_place(remote.read()[1])
    after = by_place(host.read()[1])
    compared = 0
    for place, value in theirs.items():
        entry = catalog.entry(place[0])
        if entry is not None and entry.kind == "counter" and place in before and place in after:
            slack = 1e-6 * abs(value)  # seconds in floating point
            assert before[place] - slack <= value <= after[place] + slack, place
            compared += 1
    assert compared > 20
    for name in ("host.memory_total_bytes", "host.cpu_cores", "host.conntrack_limit", "host.swap_total_bytes"):
        assert theirs.get((name, "[]")) == before.get((name, "[]"))
