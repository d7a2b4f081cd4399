"""Shares of a host are the same whether they come from this machine or from an exporter's counters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import format_labels
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.node_page import NodeShares

MODES = ("idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user")


def cpu(cores: list[dict[str, float]]) -> list[Reading]:
    return [
        Reading("node_cpu_seconds_total", "host.cpu_s_total", format_labels({"cpu": str(core), "mode": mode}), value)
        for core, modes in enumerate(cores)
        for mode, value in modes.items()
    ]


def values(readings: list[Reading]) -> dict[str, float]:
    return {reading.raw: reading.value for reading in readings}


def test_a_busy_core_and_an_idle_one_that_was_robbed() -> None:
    shares = NodeShares()
    zero = dict.fromkeys(MODES, 0.0)
    assert values(shares.read(cpu([zero, zero]))) == {"host.cpu_cores": 2.0}
    told = values(shares.read(cpu([zero | {"user": 0.8, "idle": 0.2}, zero | {"idle": 0.5, "steal": 0.5}])))
    assert told["host.cpu_used_ratio"] == pytest.approx(0.4)
    assert told["host.cpu_core_max_ratio"] == pytest.approx(0.8)
    assert told["host.cpu_steal_ratio"] == pytest.approx(0.25)
    assert told["host.cpu_user_ratio"] == pytest.approx(0.4)


def test_memory_in_use_is_what_is_not_available() -> None:
    readings = [
        Reading("node_memory_MemTotal_bytes", "host.memory_total_bytes", "", 8e9),
        Reading("node_memory_MemAvailable_bytes", "host.memory_available_bytes", "", 2e9),
    ]
    assert values(NodeShares().read(readings)) == {"host.memory_used_ratio": pytest.approx(0.75)}


def test_shares_of_a_remote_host_say_whose_they_are() -> None:
    told = NodeShares("host=gpu-1").read(cpu([{"idle": 1.0, "user": 1.0}]))
    assert [(reading.raw, reading.labels) for reading in told] == [("host.cpu_cores", "host=gpu-1")]


def test_a_page_of_something_else_gives_nothing() -> None:
    assert NodeShares().read([Reading("vllm:num_requests_running", "engine.requests_running", "", 3.0)]) == []


def test_a_core_that_went_away_gives_no_shares_and_those_after_it_do() -> None:
    shares = NodeShares()
    core = {"idle": 1.0, "user": 1.0}
    shares.read(cpu([core, core]))
    assert values(shares.read(cpu([{"idle": 2.0, "user": 2.0}]))) == {"host.cpu_cores": 1.0}
    assert "host.cpu_used_ratio" in values(shares.read(cpu([{"idle": 3.0, "user": 3.0}])))


@given(st.text(max_size=8), st.text(max_size=8))
def test_hostile_labels_do_no_harm(core: str, mode: str) -> None:
    shares = NodeShares()
    for value in (1.0, 2.0):
        labels = format_labels({"cpu": core, "mode": mode})
        shares.read([Reading("node_cpu_seconds_total", "host.cpu_s_total", labels, value)])


def test_what_the_page_tells_itself_is_not_told_twice() -> None:
    readings = [
        Reading("node_memory_MemTotal_bytes", "host.memory_total_bytes", "", 8e9),
        Reading("node_memory_MemAvailable_bytes", "host.memory_available_bytes", "", 2e9),
        Reading("host.memory_used_ratio", "host.memory_used_ratio", "", 0.7),
    ]
    assert NodeShares().read(readings) == []
