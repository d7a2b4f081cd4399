"""The path: round trips, handshakes, lost packets, a narrow card, and what the server's kernel does with connections.

Every mechanism is seen at the client and leaves its trace on the host, and no other.
"""

import numpy as np
import pytest
from lab_traffic import NS_PER_S, Outcome, chat_run

from pinchpoint.lab.params import LabParams
from pinchpoint.lab.readings import HostReading
from pinchpoint.lab.service import VirtualService

MS = 1_000_000
QUIET = {"step_noise_ratio": 0.0}


def run(changes: dict, rate_rps: float = 5.0, duration_s: float = 20) -> Outcome:
    return chat_run(LabParams().changed(QUIET | changes), rate_rps, duration_s, drain=True)


def host(outcome: Outcome, t_s: float = 10_000) -> HostReading:
    return outcome.service.state(int(t_s * NS_PER_S)).replicas[0].host


def gaps_s(outcome: Outcome) -> np.ndarray:
    chunks = [[e.t_ns for e in events if e.kind == "chunk"] for events in outcome.by_request().values()]
    return np.concatenate([np.diff(times) for times in chunks]) / NS_PER_S


def errors(outcome: Outcome) -> list[str]:
    return [e.error for e in outcome.events if e.kind == "error" and e.error is not None]


def one_request(changes: dict) -> list:
    service = VirtualService(LabParams().changed(QUIET | changes), seed=1)
    service.submit(0, 1, 100, 3)
    return service.advance(100 * NS_PER_S)


def test_a_request_on_a_new_connection_takes_two_round_trips_and_one_on_an_open_connection_takes_one() -> None:
    near, far = run({}), run({"path.rtt_s": 0.2})
    shift_s = np.sort(far.ttft_s()) - np.sort(near.ttft_s())
    assert np.median(shift_s) == pytest.approx(0.2, abs=0.01)
    assert shift_s.max() == pytest.approx(0.4, abs=0.03)
    assert near.service.engine.metrics.ttft_s.sum == pytest.approx(far.service.engine.metrics.ttft_s.sum, rel=0.1)
    assert np.median(far.null_s()) == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize(
    ("changes", "connect_s"),
    [
        ({}, 0.0),
        ({"path.rtt_s": 0.1}, 0.1),
        ({"path.rtt_s": 0.1, "path.dns_s": 0.05}, 0.15),
        ({"path.rtt_s": 0.1, "path.tls_s": 0.03}, 0.23),
    ],
)
def test_connecting_takes_lookup_round_trips_and_the_handshakes_cpu_time(changes: dict, connect_s: float) -> None:
    headers = one_request(changes)[0]
    assert headers.connected_ns == pytest.approx(connect_s * NS_PER_S, abs=1000)
    plain = one_request({})[0]
    shift_s = (headers.t_ns - plain.t_ns) / NS_PER_S
    assert shift_s == pytest.approx(connect_s + changes.get("path.rtt_s", 0.0), abs=1e-5)


def test_handshakes_wait_for_the_one_core_of_the_proxy_and_are_saved_by_open_connections() -> None:
    slow = {"path.tls_s": 0.15}
    closed, kept = run(slow | {"path.keep_alive": False}), run(slow)
    assert np.median(closed.ttft_s()) > np.median(kept.ttft_s()) + 0.15
    assert np.quantile(closed.ttft_s(), 0.95) > 0.5


def test_a_lost_packet_holds_up_the_stream_until_three_others_have_passed_or_the_time_out_comes() -> None:
    lossy = {"path.loss_ratio": 0.03, "path.rtt_s": 0.02}
    outcome, healthy = run(lossy), run({"path.rtt_s": 0.02})
    late = gaps_s(outcome)[gaps_s(outcome) > 0.04]
    assert len(late) > 0.01 * len(gaps_s(outcome))
    assert np.quantile(gaps_s(outcome), 0.995) > 2 * np.quantile(gaps_s(healthy), 0.995)
    seen = host(outcome)
    assert seen.retransmits_total / seen.segments_out_total == pytest.approx(0.03, rel=0.3)
    assert host(healthy).retransmits_total == 0
    assert outcome.output_tokens.keys() == {e.request_id for e in outcome.events if e.kind == "end"}


def test_a_slow_stream_that_loses_a_packet_has_a_gap_of_the_retransmission_time_out() -> None:
    # Tokens so far apart that the time-out comes before three packets do.
    slow = {"step_overhead_s": 0.15, "path.loss_ratio": 0.05, "path.rtt_s": 0.02}
    service = VirtualService(LabParams().changed(QUIET | slow), seed=2)
    service.submit(0, 1, 100, 300)
    times = np.array([e.t_ns for e in service.advance(200 * NS_PER_S) if e.kind == "chunk"]) / NS_PER_S
    delays_s = times - np.arange(len(times)) * np.median(np.diff(times))
    late = (delays_s - delays_s.min())[delays_s - delays_s.min() > 0.05]
    assert len(late) > 5
    assert late.max() >= 0.2


def test_a_narrow_card_makes_a_line_of_bytes_and_the_servers_own_times_stay() -> None:
    wide, narrow = run({}), run({"path.bandwidth_bytes_per_s": 200e3})
    assert np.median(narrow.ttft_s()) > 3 * np.median(wide.ttft_s())
    assert narrow.service.engine.metrics.tpot_s.sum == pytest.approx(wide.service.engine.metrics.tpot_s.sum, rel=0.1)
    busy = narrow.service.state(0).replicas[0].host
    assert busy.net_speed_bytes_per_s == 200e3
    seconds = (max(e.t_ns for e in narrow.events) - min(narrow.sent_ns.values())) / NS_PER_S
    assert 0.8 * 200e3 < host(narrow).net_tx_bytes_total / seconds <= 200e3


def test_interrupts_on_one_core_queue_packets_and_show_in_softnet() -> None:
    healthy, hot = run({}), run({"host.softirq_s_per_packet": 1.4e-3})
    assert np.median(hot.ttft_s()) > 2 * np.median(healthy.ttft_s())
    seen = host(hot, 20)
    assert seen.softnet_squeezed_total > 100
    assert seen.cpu_s_total[0]["softirq"] > 0.7 * 20
    assert all(core["softirq"] == 0 for core in seen.cpu_s_total[1:])
    assert host(healthy).softnet_squeezed_total == 0
    flooded = host(run({"host.softirq_s_per_packet": 4e-3}))
    assert flooded.softnet_dropped_total > 0 and flooded.retransmits_total > 0


def burst(changes: dict, requests: int) -> tuple[list, HostReading]:
    service = VirtualService(LabParams().changed(QUIET | {"path.keep_alive": False} | changes), seed=1)
    for request_id in range(requests):
        service.submit(request_id * MS // 10, request_id, 20, 2)
    events = service.advance(60 * NS_PER_S)
    return events, service.state(60 * NS_PER_S).replicas[0].host


def test_a_full_accept_queue_drops_the_syn_which_comes_again_after_1_3_and_7_seconds() -> None:
    events, seen = burst({"host.accept_backlog": 2, "api_request_s": 0.3}, 40)
    connects_s = [round(e.connected_ns / NS_PER_S) for e in events if e.kind == "headers"]
    assert set(connects_s) == {0, 1, 3, 7}
    refused = [e for e in events if e.kind == "error"]
    assert {e.error for e in refused} == {"connect_timeout"}
    assert all(round(e.t_ns / NS_PER_S) == 10 for e in refused)
    assert seen.listen_overflows_total == seen.listen_drops_total > 0
    calm, quiet = burst({"host.accept_backlog": 128, "api_request_s": 0.3}, 40)
    assert quiet.listen_overflows_total == 0 and all(e.connected_ns < NS_PER_S for e in calm if e.kind == "headers")


def test_a_full_connection_table_drops_new_connections_until_old_entries_leave() -> None:
    full = {"host.conntrack_max": 30, "host.conntrack_time_wait_s": 8.0, "path.keep_alive": False}
    outcome = run(full)
    assert set(errors(outcome)) <= {"connect_timeout"}
    seen = outcome.service.state(10_000 * NS_PER_S).replicas[0].host
    assert seen.conntrack_dropped_total > 20
    assert seen.conntrack_entries == 0
    forever = run(full | {"host.conntrack_time_wait_s": 1000.0})
    assert len(errors(forever)) > len(errors(outcome))
    assert host(forever, 21).conntrack_entries == 30
    assert not errors(run(full | {"path.keep_alive": True}))


def test_connections_without_a_file_left_are_reset_and_the_others_are_fine() -> None:
    outcome = run({"host.nofile": 28, "path.keep_alive": False})
    assert set(errors(outcome)) == {"reset"}
    assert len(errors(outcome)) > 10
    assert np.quantile(outcome.ttft_s(), 0.95) < 0.1
    service = VirtualService(LabParams().changed({"host.nofile": 28, "path.keep_alive": False}), seed=1)
    for request_id in range(10):
        service.submit(0, request_id, 100, 500)
    process = service.state(NS_PER_S).replicas[0].host.processes[0]
    assert (process.open_fds, process.max_fds) == (28, 28)


def test_connections_are_counted_while_they_are_open_and_while_they_wait_to_be_forgotten() -> None:
    service = VirtualService(LabParams().changed({"path.keep_alive": False}), seed=1)
    for request_id in range(5):
        service.submit(0, request_id, 100, 20)
    assert service.state(50 * MS).replicas[0].host.connections_established == 5
    after = service.state(10 * NS_PER_S).replicas[0].host
    assert (after.connections_established, after.connections_time_wait, after.conntrack_entries) == (0, 5, 5)
    later = service.state(90 * NS_PER_S).replicas[0].host
    assert (later.connections_time_wait, later.conntrack_entries) == (0, 5)
    assert service.state(200 * NS_PER_S).replicas[0].host.conntrack_entries == 0


def test_an_idle_connection_is_used_again_and_closed_after_five_seconds() -> None:
    service = VirtualService(LabParams().changed({"path.rtt_s": 0.1}), seed=1)
    for request_id, at_s in enumerate((0, 2, 20)):
        service.submit(at_s * NS_PER_S, request_id, 100, 2)
    connected = {e.request_id: e.connected_ns for e in service.advance(60 * NS_PER_S) if e.kind == "headers"}
    assert connected == {0: 100 * MS, 1: None, 2: 20 * NS_PER_S + 100 * MS}
