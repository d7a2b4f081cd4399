"""The client's own host is judged: stops of the load processes, and each cause alone, near misses and silence included.

Every reading of a case series is one second; stages are 30 s long with 10 s between them.
"""

from pathlib import Path
from typing import Any

import pytest
from case_run import build_case

from pinchpoint.judge import judge
from pinchpoint.model import NO_PORT_ERROR, ValidityReason, Verdict
from pinchpoint.series import RunView

SEARCH: dict[str, Any] = {"rates": [1, 2, 3], "overload": False, "service": {"a": 0.01}}
LOAD: dict[str, Any] = {"rates": [20], "kinds": ["load"], "seconds": 20, "slos": [], "service": {"a": 0.01}}
"""A plain load: one stage, no SLO, nothing searched."""
UNKNOWN_WHEN_UNRECORDED = ("loop-stall", "cpu-quota", "gc-pauses", "retransmits", "receive-buffers", "headroom")


def judged(tmp_path: Path, base: dict[str, Any] = SEARCH, **changes: Any) -> Verdict:
    return judge(RunView(build_case(tmp_path / "run", {**base, **changes})))


def reason(verdict: Verdict, check: str) -> ValidityReason:
    return next(r for r in verdict.validity_reasons if r.check == check)


def level(tmp_path: Path, check: str, base: dict[str, Any] = SEARCH, **changes: Any) -> str:
    return reason(judged(tmp_path, base, **changes), check).level


@pytest.mark.parametrize("base", [SEARCH, LOAD], ids=["search", "load"])
def test_what_was_not_recorded_is_unknown_and_changes_nothing(tmp_path: Path, base: dict[str, Any]) -> None:
    verdict = judged(tmp_path, base)
    assert verdict.validity == "VALID"
    for check in (*UNKNOWN_WHEN_UNRECORDED, "host-limits"):
        assert reason(verdict, check).level == "unknown", check


# -- stops of the client ----------------------------------------


@pytest.mark.parametrize("base", [LOAD, {**LOAD, "slos": ["ttft p95 < 500ms"]}], ids=["no-slo", "slo"])
def test_a_client_stopped_for_two_of_twenty_seconds_is_invalid_and_says_so(tmp_path: Path, base: dict) -> None:
    verdict = judged(
        tmp_path, base, client={"stop": (10.0, 12.0)}, series={"client.loop_stall_max_s": "0.001x12 2.0 0.001x8"}
    )
    stall = reason(verdict, "loop-stall")
    assert verdict.validity == "INVALID"
    assert stall.level == "invalid"
    assert "stopped the client" in stall.statement and "2000 ms" in stall.statement
    assert "invalid" in verdict.headline
    assert verdict.exit_code == 3


def test_a_stop_between_two_stages_touches_nothing(tmp_path: Path) -> None:
    series = {"client.loop_stall_max_s": "0.001x34 2.0 0.001x80"}
    assert level(tmp_path, "loop-stall", series=series) == "ok"


def test_a_stop_that_few_sends_felt_is_suspect(tmp_path: Path) -> None:
    verdict = judged(
        tmp_path, LOAD, client={"stop": (10.0, 10.12)}, series={"client.loop_stall_max_s": "0.001x10 0.12 0.001x9"}
    )
    assert reason(verdict, "loop-stall").level == "suspect"


def test_a_long_stop_that_no_send_felt_is_suspect_and_a_short_one_fine(tmp_path: Path) -> None:
    long, short = "0.001x10 1.5 0.001x105", "0.001x10 0.13 0.001x105"
    assert level(tmp_path / "a", "loop-stall", series={"client.loop_stall_max_s": long}) == "suspect"
    assert level(tmp_path / "b", "loop-stall", series={"client.loop_stall_max_s": short}) == "ok"


@pytest.mark.parametrize(
    ("waited_s", "words"),
    [("1.9", "other work had its core"), ("0.02", "did not wait for a core"), (None, "suspended process or machine")],
)
def test_the_reason_of_a_stop_is_told_as_far_as_the_kernel_knows_it(
    tmp_path: Path, waited_s: str | None, words: str
) -> None:
    series = {"client.loop_stall_max_s": "0.001x12 2.0 0.001x8"}
    if waited_s is not None:
        series["client.run_queue_wait_s"] = f"0.0x12 {waited_s} 0.0x8"
    verdict = judged(tmp_path, LOAD, client={"stop": (10.0, 12.0)}, series=series)
    assert words in reason(verdict, "loop-stall").statement


def test_one_late_send_of_few_is_not_yet_invalid(tmp_path: Path) -> None:
    few = {**LOAD, "rates": [2]}
    lags = {"client": {"stop": (11.0, 11.4)}, "series": {"client.loop_stall_max_s": "0.001x11 0.4 0.001x8"}}
    assert level(tmp_path, "loop-stall", few, **lags) == "suspect"


def test_a_stop_is_measured_against_the_latency_promised(tmp_path: Path) -> None:
    changes = {"client": {"stop": (10.0, 10.4)}, "series": {"client.loop_stall_max_s": "0.001x10 0.4 0.001x9"}}
    lenient = {**LOAD, "slos": ["ttft p95 < 4s"]}
    assert level(tmp_path / "a", "loop-stall", lenient, **changes) == "ok"
    assert level(tmp_path / "b", "loop-stall", LOAD, **changes) == "invalid"


# -- causes on the client's host ----------------------------------------


@pytest.mark.parametrize(
    ("check", "series", "expected"),
    [
        # 120 s of readings; a counter that grows all the time grows by 28 or so in each window of 28 s
        ("cpu-quota", {"cgroup_periods_total": "0+10x120", "cgroup_throttled_periods_total": "0+1x120"}, "suspect"),
        ("cpu-quota", {"cgroup_periods_total": "0+500x120", "cgroup_throttled_periods_total": "0+1x120"}, "ok"),
        ("cpu-quota", {"cgroup_periods_total": "0x120", "cgroup_throttled_periods_total": "0x120"}, "ok"),
        ("gc-pauses", {"gc_pause_max_s": "0x10 0.08 0x109"}, "suspect"),  # the SLO is 500 ms
        ("gc-pauses", {"gc_pause_max_s": "0x10 0.04 0x109"}, "ok"),
        ("gc-pauses", {"gc_pause_max_s": "0x40 0.5 0x79"}, "ok"),  # before the second stage
        ("retransmits", {"tcp_segments_sent_total": "0+1000x120", "tcp_retransmits_total": "0+20x120"}, "suspect"),
        ("retransmits", {"tcp_segments_sent_total": "0+1000x120", "tcp_retransmits_total": "0+5x120"}, "ok"),
        ("retransmits", {"tcp_segments_sent_total": "0+1x120", "tcp_retransmits_total": "0x20 1x100"}, "ok"),
        ("receive-buffers", {"tcp_receive_pruned_total": "0x10 1x110"}, "suspect"),
        ("receive-buffers", {"tcp_zero_window_total": "0+1x120"}, "suspect"),
        ("receive-buffers", {"tcp_zero_window_total": "7x10 8x110"}, "ok"),
        ("receive-buffers", {"tcp_zero_window_total": "9000x120"}, "ok"),  # all before the run
        ("headroom", {"open_files": "950x120", "open_files_limit": "1000x120"}, "suspect"),
        ("headroom", {"open_files": "850x120", "open_files_limit": "1000x120"}, "ok"),
        (
            "headroom",
            {"tcp_sockets": "27000x120", "tcp_time_wait_sockets": "0x120", "ports_available": "28232x120"},
            "suspect",
        ),
        (
            "headroom",  # they wait to be free again, and nobody was kept from opening one
            {"tcp_sockets": "900x120", "tcp_time_wait_sockets": "40000x120", "ports_available": "28232x120"},
            "ok",
        ),
        ("headroom", {"tcp_sockets": "900x120", "ports_available": "28232x120"}, "ok"),
    ],
)
def test_a_cause_on_the_clients_host_is_suspect_beyond_its_limit(
    tmp_path: Path, check: str, series: dict[str, str], expected: str
) -> None:
    verdict = judged(tmp_path, series={f"client.{name}": text for name, text in series.items()})
    assert reason(verdict, check).level == expected
    assert verdict.validity == ("SUSPECT" if expected == "suspect" else "VALID")


@pytest.mark.parametrize(
    ("check", "name"),
    [
        ("retransmits", "tcp_retransmits_total"),
        ("receive-buffers", "tcp_receive_dropped_total"),
        ("receive-buffers", "tcp_zero_window_total"),
    ],
)
def test_counters_of_a_host_that_is_busy_with_other_traffic_accuse_nobody(
    tmp_path: Path, check: str, name: str
) -> None:
    series = {"client.tcp_segments_sent_total": "0+100000x120", f"client.{name}": "0+5000x120"}
    verdict = judged(tmp_path, series=series)
    assert reason(verdict, check).level == "unknown"
    assert "not of this load" in reason(verdict, check).statement
    assert verdict.validity == "VALID"


def test_throttling_tells_for_how_long_and_what_to_do(tmp_path: Path) -> None:
    counts = {"cgroup_periods_total": "0+10x120", "cgroup_throttled_periods_total": "0+5x120"}
    series = {f"client.{name}": text for name, text in counts.items()} | {
        "client.cgroup_throttled_s_total": "0+0.1x120"
    }
    statement = reason(judged(tmp_path, series=series), "cpu-quota").statement
    assert "held it back for" in statement and "cpu.max" in statement


@pytest.mark.parametrize(("stall", "expected"), [("0.002x120", "ok"), ("2.5x120", "suspect")])
def test_windows_closed_by_others_are_not_laid_on_a_load_that_read_in_time(
    tmp_path: Path, stall: str, expected: str
) -> None:
    """An answer of 40 kB in two seconds fills a window of 64 KiB in three."""
    series = {"client.tcp_zero_window_total": "0+5x120", "client.loop_stall_max_s": stall}
    client = {"bytes_in": 40_000 if expected == "ok" else 400_000}
    found = reason(judged(tmp_path, client=client, series=series), "receive-buffers")
    assert found.level == expected
    assert ("none of this load's" in found.statement) == (expected == "ok")


PORTS = {
    "client.tcp_sockets": "900x120",
    "client.tcp_time_wait_sockets": "28000x120",
    "client.ports_available": "28232x120",
}


def test_ports_that_wait_to_be_free_are_told_apart_from_sockets_in_use(tmp_path: Path) -> None:
    statement = reason(judged(tmp_path, series=PORTS), "headroom").statement
    assert "900 TCP sockets in use" in statement and "28000 more in TIME_WAIT" in statement
    assert "no connection" not in statement


@pytest.mark.parametrize("series", [PORTS, {}], ids=["watched", "not-watched"])
def test_requests_that_found_no_port_say_so(tmp_path: Path, series: dict[str, str]) -> None:
    lack = {"dropped": 0.005, "dropped_error": NO_PORT_ERROR}
    found = reason(judged(tmp_path, LOAD | {"rates": [100]}, client=lack, series=series), "headroom")
    assert found.level == "suspect"
    assert "no local port was free" in found.statement and "tcp_tw_reuse" in found.statement


def test_requests_that_were_dropped_for_another_reason_do_not_blame_the_ports(tmp_path: Path) -> None:
    assert level(tmp_path, "headroom", LOAD | {"rates": [100]}, client={"dropped": 0.005}, series=PORTS) == "ok"


# -- what the run itself tells ----------------------------------------

LOST = {"kind": "worker-lost", "message": "load process 1 died (exit code -9); its part of the load is missing"}


def test_a_load_process_that_took_its_load_with_it_makes_the_run_invalid(tmp_path: Path) -> None:
    verdict = judged(tmp_path, LOAD, events=[LOST], client={"lost": 0.3})
    assert reason(verdict, "lost-workers").level == "invalid"
    assert "exit code -9" in reason(verdict, "lost-workers").statement


def test_a_load_process_that_died_with_nothing_to_do_is_suspect(tmp_path: Path) -> None:
    assert level(tmp_path, "lost-workers", LOAD, events=[LOST]) == "suspect"


def test_of_a_closed_loop_the_share_of_the_processes_counts(tmp_path: Path) -> None:
    workers = [{"kind": "worker", "worker": n, "realtime": False} for n in range(4)]
    lost = reason(judged(tmp_path, LOAD, events=[*workers, LOST], closed=True), "lost-workers")
    assert lost.level == "invalid"
    assert lost.observed == pytest.approx(0.25)


def test_requests_that_a_search_withdrew_are_not_lost(tmp_path: Path) -> None:
    assert level(tmp_path, "lost-workers", client={"lost": 0.3}) == "ok"


def test_a_plan_beyond_the_limits_of_the_host_is_suspect_when_forced(tmp_path: Path) -> None:
    forced = {"kind": "beyond-limits", "message": "90,000 tokens/s are asked for and this host can take 40,000"}
    verdict = judged(tmp_path, LOAD, events=[forced])
    assert reason(verdict, "host-limits").level == "suspect"
    assert "90,000 tokens/s" in reason(verdict, "host-limits").statement


def test_a_plan_within_the_limits_is_fine(tmp_path: Path) -> None:
    assert level(tmp_path, "host-limits", LOAD, events=[{"kind": "host-limits"}]) == "ok"


@pytest.mark.parametrize(
    ("plan", "events", "words"),
    [
        ({}, [], "normal priority"),
        ({}, [{"kind": "worker", "worker": 0, "realtime": False}], "normal priority"),
        ({"realtime": True}, [{"kind": "worker", "worker": n, "realtime": True} for n in range(2)], "ran at real-time"),
        ({"realtime": True}, [{"kind": "worker", "worker": n, "realtime": n > 0} for n in range(2)], "did not grant"),
    ],
)
def test_the_priority_is_told_and_changes_nothing(tmp_path: Path, plan: dict, events: list, words: str) -> None:
    verdict = judged(tmp_path, LOAD, plan=plan, events=events)
    assert words in reason(verdict, "priority").statement
    assert verdict.validity == "VALID"
