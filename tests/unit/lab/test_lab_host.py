"""The host: quotas, crowds, stolen time, far memory, leaks and slow disks change what clients see, and show."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_traffic import NS_PER_S, Outcome, chat_run

from pinchpoint.lab.host import PERIOD_NS, Host, Process, spread
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.path import HostNetwork
from pinchpoint.lab.readings import HostReading
from pinchpoint.lab.service import VirtualService

MS = 1_000_000
HEAVY = {"step_overhead_s": 3e-3, "api_chunk_s": 60e-6, "step_noise_ratio": 0.0}
"""An engine and API process with much work for the CPU."""
DURATION_S = 20


def run(changes: dict, rate_rps: float = 5.0, duration_s: float = DURATION_S) -> Outcome:
    return chat_run(LabParams().changed(HEAVY | changes), rate_rps, duration_s, drain=False)


def host(outcome: Outcome) -> HostReading:
    return outcome.service.state(int(outcome.duration_s * NS_PER_S)).replicas[0].host


def gaps_s(outcome: Outcome) -> np.ndarray:
    chunks = [[e.t_ns for e in events if e.kind == "chunk"] for events in outcome.by_request().values()]
    return np.concatenate([np.diff(times) for times in chunks]) / NS_PER_S


def made(changes: dict) -> Host:
    params = LabParams().changed(changes)
    made = Host(params, 1, HostNetwork(params, 1))
    made.processes = [Process("api-0", 0, 0.0), Process("engine-0", 0, 0.0, spins=True)]
    return made


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 150)), min_size=1, max_size=20),
    quota=st.floats(0.05, 2.0),
)
def test_no_period_has_more_cpu_time_than_its_quota_and_no_work_is_lost(pieces: list, quota: float) -> None:
    limited, free_ns = made({"host.cpu_quota_cores": quota}), 0
    used_ns: dict[int, float] = {}
    for pause_ms, cpu_ms in pieces:
        began_ns = free_ns + pause_ms * MS
        free_ns = limited.elapse(began_ns, cpu_ms * MS, limited.processes[0])
        assert free_ns - began_ns >= cpu_ms * MS - 1
        # Whatever ran between the two instants ran in the periods that they touch.
        whole_periods = max(0, free_ns // PERIOD_NS - began_ns // PERIOD_NS - 1)
        assert whole_periods * min(quota, 1) * PERIOD_NS <= cpu_ms * MS + 1
        used_ns[began_ns] = cpu_ms * MS
    total_ns, span_ns = sum(used_ns.values()), free_ns - min(used_ns) + 2 * PERIOD_NS
    assert total_ns <= quota * span_ns + 1


def test_a_quota_makes_stalls_until_the_next_period_and_throttled_periods() -> None:
    limited = made({"host.cpu_quota_cores": 0.2})
    assert limited.elapse(0, 20 * MS, limited.processes[0]) == 20 * MS
    assert limited.elapse(20 * MS, 5 * MS, limited.processes[0]) == 105 * MS
    assert limited.elapse(230 * MS, 10 * MS, limited.processes[0]) == 240 * MS
    reading = limited.reading(1000 * MS, [])
    assert (reading.throttled_periods_total, reading.periods_total) == (1, 10)
    assert reading.throttled_s_total == pytest.approx(0.08)


def test_a_crowd_slows_work_by_its_share_of_the_cores_and_stolen_time_by_what_is_left() -> None:
    def takes_ms(changes: dict) -> float:
        machine = made(changes)
        return machine.elapse(0, 10 * MS, machine.processes[0]) / MS

    assert takes_ms({"host.cores": 4, "host.neighbour_cores": 3.0}) == 10
    assert takes_ms({"host.cores": 2, "host.neighbour_cores": 7.0}) == 40
    assert takes_ms({"host.steal_ratio": 0.75}) == 40
    assert 10 < takes_ms({"host.numa_remote_ratio": 1.0}) < 17


TRACES = {
    "quota": ({"host.cpu_quota_cores": 0.18}, "throttled_periods_total", 20),
    "crowd": ({"host.cores": 4, "host.neighbour_cores": 24.0}, "cpu_pressure_s_total", 0.9 * DURATION_S),
    "numa": ({"host.numa_remote_ratio": 1.0}, "numa_foreign_total", 1000),
}


@pytest.mark.parametrize("name", TRACES)
def test_what_slows_the_cpu_slows_tokens_and_shows_in_its_own_counter_alone(name: str) -> None:
    changes, counter, at_least = TRACES[name]
    slow, healthy = run(changes), run({})
    assert np.mean(gaps_s(slow)) > 1.04 * np.mean(gaps_s(healthy))
    assert getattr(host(slow), counter) > at_least
    for other in {counter for _, counter, _ in TRACES.values()}:
        assert getattr(host(healthy), other) == 0
        if other != counter:
            assert getattr(host(slow), other) == 0


def test_stalls_of_a_quota_end_when_a_period_begins() -> None:
    gaps = gaps_s(run({"host.cpu_quota_cores": 0.12}))
    healthy = gaps_s(run({}))
    assert np.quantile(gaps, 0.99) > np.quantile(healthy, 0.99) + 0.02
    assert np.quantile(gaps, 0.999) < 0.25


def test_stolen_time_shows_as_such_and_makes_no_pressure() -> None:
    outcome = run({"host.steal_ratio": 0.75})
    seen = host(outcome)
    steal_s = sum(core["steal"] for core in seen.cpu_s_total)
    own_s = sum(core["user"] + core["system"] for core in seen.cpu_s_total)
    assert steal_s == pytest.approx(3 * own_s, rel=0.05)
    assert seen.cpu_pressure_s_total == 0


def test_neighbours_show_as_runnable_threads_load_and_cpu_time() -> None:
    seen = host(run({"host.cores": 4, "host.neighbour_cores": 10.0}, duration_s=60))
    assert seen.runnable >= 10
    assert 5 < seen.load1 < 15
    idle_s = sum(core["idle"] for core in seen.cpu_s_total)
    assert idle_s == pytest.approx(0, abs=1)
    for core in seen.cpu_s_total:
        assert sum(core.values()) == pytest.approx(60, rel=1e-6)


def test_fewer_cores_than_threads_are_a_crowd_without_neighbours() -> None:
    threads = {"front.tokenizer_s_per_token": 1e-3, "front.tokenizer_threads": 8}
    few, many = (run(threads | {"host.cores": cores}) for cores in (2, 16))
    assert np.median(few.ttft_s()) > 1.2 * np.median(many.ttft_s())
    assert host(few).cpu_pressure_s_total > 1
    assert host(many).cpu_pressure_s_total == 0


LEAK = {"host.memory_bytes": 5e9, "host.rss_leak_bytes_per_request": 30e6}


def test_a_leak_grows_the_process_until_pages_are_swapped_and_every_request_waits_for_them() -> None:
    outcome = run(LEAK, duration_s=40)
    seen = host(outcome)
    healthy = run({}, duration_s=40)
    assert seen.processes[0].rss_bytes > 750e6 + 100 * 30e6
    assert seen.memory_available_bytes == 0
    assert seen.major_faults_total > 1000
    assert seen.swap_in_pages_total > 0 and seen.swap_out_pages_total > 0
    assert seen.memory_pressure_s_total > 1
    assert seen.oom_kills_total == 0
    assert np.quantile(outcome.ttft_s(), 0.95) > 1.5 * np.quantile(healthy.ttft_s(), 0.95)
    assert host(healthy).major_faults_total == 0


def test_without_swap_the_kernel_kills_the_replica_which_comes_back_empty() -> None:
    params = LabParams().changed(LEAK | {"host.swap": False, "accelerator.restart_s": 5.0})
    outcome = chat_run(params, 5.0, 40, drain=False)
    states = [outcome.service.state(40 * NS_PER_S).replicas[0]]
    errors = [e.error for e in outcome.events if e.kind == "error"]
    assert states[0].host.oom_kills_total >= 1
    assert set(errors) == {"reset", "connect_refused"}
    kill_ns = min(e.t_ns for e in outcome.events if e.kind == "error")
    ok_ns = [e.t_ns for e in outcome.events if e.kind == "headers"]
    away = [t for t in ok_ns if kill_ns < t < kill_ns + 5 * NS_PER_S]
    assert not away and any(t > kill_ns + 5 * NS_PER_S for t in ok_ns)
    assert states[0].engines[0].metrics.generation_tokens < sum(outcome.output_tokens.values()) / 2
    assert states[0].host.processes[0].started_s > 5


def test_log_records_of_every_chunk_wait_for_a_slow_disk_without_using_the_cpu() -> None:
    logs = {"front.log_s_per_chunk": 5e-6, "front.log_bytes_per_write": 4000}
    fast, slow = run(logs), run(logs | {"host.disk_write_bytes_per_s": 2.5e6})
    assert np.quantile(slow.ttft_s(), 0.9) > 3 * np.quantile(fast.ttft_s(), 0.9)
    assert host(slow).disk_busy_s_total > 0.8 * DURATION_S
    assert host(slow).io_pressure_s_total > 0.8 * DURATION_S
    assert host(slow).processes[0].cpu_s_total <= 1.1 * host(fast).processes[0].cpu_s_total
    assert host(fast).disk_written_bytes_total > 0
    assert host(run({})).disk_written_bytes_total == 0


def test_cpu_time_of_a_process_grows_evenly_within_a_piece_of_work() -> None:
    process = Process("api-0", 0, 0.0)
    process.account(100, 300, 100)
    assert [process.cpu_ns(t) for t in (50, 100, 200, 300, 500)] == [0, 0, 50, 100, 100]
    process.account(400, 500, 100)
    assert [process.cpu_ns(t) for t in (400, 450, 500)] == [100, 150, 200]


LADDERS = {
    "host.cpu_quota_cores": [0.1, 0.15, 0.3, 4.0],
    "host.cores": [1, 2, 16],
    "host.memory_bytes": [4.5e9, 5.5e9, 128e9],
    "host.disk_write_bytes_per_s": [1e6, 3e6, 500e6],
}


@pytest.mark.parametrize("limit", LADDERS)
def test_a_wider_limit_never_makes_answers_slower(limit: str) -> None:
    beside = {"front.log_s_per_chunk": 5e-6} if "disk" in limit else {}
    beside |= {"host.rss_leak_bytes_per_request": 30e6} if "memory" in limit else {}
    beside |= {"host.neighbour_cores": 3.0} if "cores" in limit and "quota" not in limit else {}
    means = []
    for value in LADDERS[limit]:
        service = VirtualService(LabParams().changed(HEAVY | beside | {limit: value}), seed=1)
        for request_id in range(100):
            service.submit(request_id * 200 * MS, request_id, 200, 100)
        events = service.advance(2000 * NS_PER_S)
        means.append(np.mean([e.t_ns - e.request_id * 200 * MS for e in events if e.kind == "end"]))
    assert all(wider <= narrower * 1.001 for narrower, wider in itertools.pairwise(means)), means
    assert means[0] > 1.02 * means[-1], means


@given(
    total=st.floats(0, 50),
    places=st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 10)), min_size=1, max_size=8),
)
def test_load_is_spread_over_cores_without_loss_and_none_has_more_than_its_time(
    total: float, places: list[tuple[float, float]]
) -> None:
    room, weights = [space for space, _ in places], [weight for _, weight in places]
    taken = spread(total, room, weights)
    assert sum(taken) == pytest.approx(min(total, sum(room)))
    assert all(0 <= part <= space + 1e-9 for part, space in zip(taken, room, strict=True))


def test_cores_are_not_alike_and_their_time_is_all_of_it() -> None:
    outcome = run({})
    cores = host(outcome).cpu_s_total
    assert len({core["user"] for core in cores}) == len(cores)
    for core in cores:
        assert sum(core.values()) == pytest.approx(outcome.duration_s)


def test_a_process_that_waits_for_the_disk_leaves_a_core_in_iowait() -> None:
    waits = run({"front.log_s_per_chunk": 5e-6, "front.log_bytes_per_write": 4000, "host.disk_write_bytes_per_s": 2e6})
    reading = host(waits)
    assert sum(core["iowait"] for core in reading.cpu_s_total) == pytest.approx(reading.io_pressure_s_total)
    assert reading.io_pressure_s_total > 0.1 * waits.duration_s
