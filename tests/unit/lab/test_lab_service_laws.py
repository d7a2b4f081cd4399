"""Laws of the whole service, whatever its mechanisms: every request ends once, time is honest, nothing is left over."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_traffic import NS_PER_S

from pinchpoint.lab.params import LabParams
from pinchpoint.lab.service import ClientEvent, Details, VirtualService

MS = 1_000_000
LATE_NS = 2000 * NS_PER_S
RETRIES = {"front.gateway_timeout_s": 0.5, "front.gateway_retries": 3}
AUTOSCALER = {
    "autoscaler.replicas_max": 3,
    "autoscaler.look_every_s": 0.1,
    "autoscaler.start_s": 0.2,
    "autoscaler.target_in_flight_per_replica": 3.0,
}
KINDS = [
    {},
    {"path.rtt_s": 0.03, "path.loss_ratio": 0.2},
    {"path.rtt_s": 0.01, "path.keep_alive": False, "path.tls_s": 0.02, "path.dns_s": 0.005},
    {"path.bandwidth_bytes_per_s": 50e3, "host.softirq_s_per_packet": 1e-3},
    {"path.keep_alive": False, "host.accept_backlog": 1, "api_request_s": 0.1, "path.loss_ratio": 0.1},
    {"path.keep_alive": False, "host.conntrack_max": 6},
    {"host.nofile": 28},
    {"front.thread_pool_threads": 2, "front.dependency_s": 0.1, "front.dependency_slots": 2},
    {"front.api_processes": 3, "front.tokenizer_threads": 2, "front.tokenizer_s_per_token": 1e-4},
    {"front.gateway_timeout_s": 0.08, "front.gateway_retries": 2, "max_num_seqs": 2},
    {"front.replicas": 3, "front.router": "sticky", "front.router_skew_ratio": 0.5},
    {"front.replicas": 2, "front.router": "round_robin", "front.replica_speed_ratios": (0.3,), "in_flight_limit": 4},
    {"host.cpu_quota_cores": 0.05, "front.log_s_per_chunk": 1e-4},
    {"host.cores": 1, "host.neighbour_cores": 6.0, "host.steal_ratio": 0.3, "host.numa_remote_ratio": 0.5},
    {"host.memory_bytes": 4.5e9, "host.rss_leak_bytes_per_request": 60e6},
    {"host.memory_bytes": 4.5e9, "host.swap": False, "host.rss_leak_bytes_per_request": 60e6},
    {"accelerator.fault_every_s": 0.3, "accelerator.restart_s": 0.2, "in_flight_limit": 2, "front.replicas": 2},
    {"accelerator.fault_every_s": 0.2, "accelerator.restart_s": 0.1} | RETRIES,
    {"kv_blocks": 60, "accelerator.memory_leak_bytes_per_s": 2e8, "accelerator.restart_s": 0.5},
    {"max_num_seqs": 2} | AUTOSCALER,
    {"proxy_buffering": True, "path.rtt_s": 0.02},
    {"proxy_buffering": True, "path.loss_ratio": 0.1, "front.gateway_timeout_s": 0.05},
    {"rate_limit_rps": 20.0, "rate_limit_burst_requests": 2.0, "path.rtt_s": 0.005},
    {"application.output_factor": 2.5, "application.image_tokens": 100, "kv_blocks": 60},
    {"application.output_factor": 0.3, "data_parallel": 2},
]  # fmt: skip
ASKS = st.lists(
    st.tuples(
        st.integers(0, 600),
        st.integers(1, 300),
        st.integers(0, 40),
        st.booleans(),
        st.integers(0, 900),
        st.sampled_from([(), (20, 30)]),
    ),
    min_size=1,
    max_size=20,
)


def submit_all(service: VirtualService, asks: list) -> None:
    for request_id, (t_ms, prompt, output, stream, cancel_ms, extra) in enumerate(sorted(asks)):
        details = Details(session=request_id % 3, extra_prompts=extra if output == 0 else ())
        service.submit(t_ms * MS, request_id, prompt, output, stream, details)
        if cancel_ms < 200:
            service.cancel((t_ms + cancel_ms) * MS, request_id)
    service.null_request(100 * MS)


def check_all_ended(service: VirtualService, asks: list, events: list[ClientEvent], factor: float) -> None:
    assert [e.t_ns for e in events] == sorted(e.t_ns for e in events)
    for request_id, (t_ms, _, output, _, cancel_ms, _) in enumerate(sorted(asks)):
        mine = [e for e in events if e.request_id == request_id]
        assert all(e.t_ns >= t_ms * MS for e in mine)
        finals = [e for e in mine if e.kind in ("end", "error")]
        assert len(finals) <= 1 and (not finals or mine[-1] is finals[0])
        assert [e.kind for e in mine].count("headers") <= 1
        assert all(e.kind in ("headers", "error") for e in mine[:1])
        if not finals:
            assert cancel_ms < 200
            assert all(e.t_ns <= (t_ms + cancel_ms) * MS for e in mine)
        elif finals[0].kind == "end" and mine[0].status == 200:
            assert sum(e.tokens for e in mine) == finals[0].completion_tokens
            if factor == 1.0:
                assert finals[0].completion_tokens == output
    assert sum(e.kind == "null" for e in events) == 1


def check_nothing_left(service: VirtualService) -> None:
    state = service.state(LATE_NS)
    for replica, seen in zip(service.replicas, state.replicas, strict=True):
        assert replica.in_flight == 0
        assert seen.host.connections_established == 0
        if replica.group is not None:
            assert replica.group.requests == 0
            assert all(engine.pool.free == engine.pool.total for engine in replica.group.engines)
            assert all(process.open_fds == 24 for process in seen.host.processes)
    assert service.next_ns() is None


@settings(max_examples=60, deadline=None)
@given(asks=ASKS, cuts=st.lists(st.integers(0, 1500), max_size=10), kind=st.sampled_from(KINDS))
def test_each_request_ends_once_and_the_way_time_is_cut_changes_nothing(asks: list, cuts: list, kind: dict) -> None:
    params = LabParams().changed(kind)

    def run(instants: list[int]) -> list[ClientEvent]:
        service = VirtualService(params, seed=3)
        submit_all(service, asks)
        events = []
        for instant in sorted(instants):
            events += service.advance(instant * MS)
            service.state(instant * MS)
        events += service.advance(LATE_NS)
        if "fault_every_s" not in str(kind):
            check_nothing_left(service)
        return events

    events = run(cuts)
    assert events == run([])
    check_all_ended(VirtualService(params, 3), asks, events, params.application.output_factor)


@settings(max_examples=40, deadline=None)
@given(asks=ASKS, kind=st.sampled_from(KINDS))
def test_nothing_happens_before_the_next_instant_and_waiting_for_ends_misses_nothing(asks: list, kind: dict) -> None:
    params = LabParams().changed(kind)
    stepped, whole, ended = (VirtualService(params, seed=3) for _ in range(3))
    for service in (stepped, whole, ended):
        submit_all(service, asks)
    events: list[ClientEvent] = []
    while (next_ns := stepped.next_ns()) is not None:
        assert stepped.advance(next_ns - 1) == []
        events += stepped.advance(next_ns)
    expected = whole.advance(LATE_NS)
    assert events == expected
    to_ends: list[ClientEvent] = []
    now_ns = 0
    while ended.next_ns() is not None:
        now_ns, part = ended.advance_to_end(now_ns + NS_PER_S)
        finals = [e.t_ns for e in part if e.kind in ("end", "error")]
        assert all(t == now_ns for t in finals)
        to_ends += part
    assert to_ends == expected


@settings(max_examples=50, deadline=None)
@given(asks=ASKS, first=st.sampled_from(KINDS[:16]), then=st.sampled_from(KINDS[:16]), onset_ms=st.integers(0, 800))
def test_a_change_under_load_loses_no_request(asks: list, first: dict, then: dict, onset_ms: int) -> None:
    service = VirtualService(LabParams().changed(first), seed=5)
    submit_all(service, asks)
    events = service.advance(onset_ms * MS)
    service.change(onset_ms * MS, LabParams().changed(then))
    events += service.advance(LATE_NS)
    check_all_ended(service, asks, events, 1.0)
    check_nothing_left(service)


LOOPBACK = [
    {},
    {"front.thread_pool_threads": 3, "front.dependency_s": 0.1, "front.dependency_slots": 2},
    {"front.api_processes": 3, "front.tokenizer_threads": 2, "front.tokenizer_s_per_token": 1e-4},
    {"host.cores": 1, "host.neighbour_cores": 6.0, "host.steal_ratio": 0.3},
    {"max_num_seqs": 2},
]


@pytest.mark.parametrize("kind", LOOPBACK, ids=str)
def test_littles_law_holds_across_the_whole_service(kind: dict) -> None:
    """Requests inside, as the host counts connections = rate x time, as clients measure it."""
    service = VirtualService(LabParams().changed({"path.keep_alive": False} | kind), seed=1)
    rng = np.random.default_rng(2)
    sent_ns: dict[int, int] = {}
    for request_id, at_s in enumerate(np.cumsum(rng.exponential(1 / 5.0, size=150))):
        sent_ns[request_id] = int(at_s * NS_PER_S)
        service.submit(sent_ns[request_id], request_id, 150, 30)
    events, present, step_ns, t_ns = [], [], 5 * MS, 0
    while service.next_ns() is not None:
        t_ns += step_ns
        events += service.advance(t_ns)
        present.append(service.replicas[0].network.established(t_ns))
    stayed_s = sum((e.t_ns - sent_ns[e.request_id]) / NS_PER_S for e in events if e.kind == "end")
    duration_s = len(present) * step_ns / NS_PER_S
    assert np.mean(present) == pytest.approx(stayed_s / duration_s, rel=0.01)


def test_counters_of_a_host_never_go_back() -> None:
    service = VirtualService(
        LabParams().changed({"host.cpu_quota_cores": 0.3, "path.loss_ratio": 0.05, "path.keep_alive": False}), seed=1
    )
    for request_id in range(100):
        service.submit(request_id * 100 * MS, request_id, 200, 40)
    before: dict[str, float] = {}
    for index in range(120):
        service.advance(index * 100 * MS)
        if index == 60:
            service.change(index * 100 * MS, LabParams().changed({"host.steal_ratio": 0.5, "host.cores": 4}))
        host = service.state(index * 100 * MS).replicas[0].host
        now = {name: getattr(host, name) for name in host.__struct_fields__ if name.endswith("_total")}
        now.pop("cpu_s_total")
        now |= {f"{core}/{mode}": s for core, modes in enumerate(host.cpu_s_total[:4]) for mode, s in modes.items()}
        assert all(value >= before.get(name, 0) for name, value in now.items())
        total_s = sum(host.cpu_s_total[0].values())
        assert total_s == pytest.approx(index / 10, abs=1e-6)
        before = now
