"""Several replicas: who gets which request, slow ones, new ones, and ones that die."""

from dataclasses import dataclass

import numpy as np
import pytest
from lab_traffic import NS_PER_S, Outcome, chat_run

from pinchpoint.lab.params import Autoscaler, LabParams
from pinchpoint.lab.router import Router, next_look_ns, replica_params, wanted_replicas
from pinchpoint.lab.service import Details, VirtualService

MS = 1_000_000


@dataclass
class Backend:
    up: bool = True
    draining: bool = False
    in_flight: int = 0


def router(policy: str, skew: float = 0.0) -> Router:
    return Router(LabParams().changed({"front.router": policy, "front.router_skew_ratio": skew}), seed=1)


def run(changes: dict, rate_rps: float = 5.0, duration_s: float = 30) -> Outcome:
    return chat_run(LabParams().changed({"front.replicas": 3} | changes), rate_rps, duration_s)


def shares(outcome: Outcome) -> np.ndarray:
    """Of all answers, by replica."""
    counts = [r.engines[0].metrics.e2e_s.count for r in outcome.service.state(0).replicas]
    return np.array(counts) / sum(counts)


def test_round_robin_takes_turns_and_least_loaded_takes_the_emptiest() -> None:
    turns = router("round_robin")
    assert sorted(turns.choose([Backend()] * 3, None) or 0 for _ in range(6)) == [0, 0, 1, 1, 2, 2]
    assert router("least_loaded").choose([Backend(in_flight=3), Backend(in_flight=1), Backend(in_flight=2)], 1) == 1


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded", "sticky"])
def test_only_replicas_that_are_up_and_stay_get_requests(policy: str) -> None:
    backends = [Backend(up=False), Backend(in_flight=9), Backend(draining=True)]
    assert router(policy).choose(backends, 5) == 1
    assert router(policy).choose([Backend(up=False)], 5) is None


def test_a_session_stays_where_it_is_and_sessions_are_spread() -> None:
    sticky, backends = router("sticky"), [Backend() for _ in range(3)]
    homes = {session: sticky.choose(backends, session) for session in range(300)}
    assert all(sticky.choose(backends, session) == home for session, home in homes.items())
    assert all(70 < list(homes.values()).count(i) < 130 for i in range(3))


def test_skew_is_the_share_that_goes_to_the_first_replica_beside_its_fair_share() -> None:
    skewed = run({"front.router": "sticky", "front.router_skew_ratio": 0.7, "max_num_seqs": 4})
    assert shares(skewed)[0] == pytest.approx(0.7 + 0.3 / 3, abs=0.1)
    even = run({"max_num_seqs": 4})
    assert shares(even) == pytest.approx([1 / 3] * 3, abs=0.1)
    assert np.quantile(skewed.ttft_s(), 0.9) > 10 * np.quantile(even.ttft_s(), 0.9)


def test_a_slow_replica_has_longer_steps_at_the_same_batch_and_the_others_do_not() -> None:
    params = LabParams().changed({"front.replica_speed_ratios": (0.25,)})
    assert replica_params(params, 0).compute_efficiency_ratio == pytest.approx(params.compute_efficiency_ratio / 4)
    assert replica_params(params, 1) == params
    outcome = run({"front.router": "round_robin", "front.replica_speed_ratios": (0.25,)})
    engines = [r.engines[0].metrics for r in outcome.service.state(0).replicas]
    tpot_s = [m.tpot_s.sum / m.tpot_s.count for m in engines]
    assert tpot_s[0] > 3 * tpot_s[1]
    assert tpot_s[1] == pytest.approx(tpot_s[2], rel=0.1)


def test_the_autoscaler_asks_for_what_the_load_needs_and_never_for_less() -> None:
    rule = Autoscaler(replicas_max=5, target_in_flight_per_replica=10)
    assert [wanted_replicas(rule, n, 2) for n in (0, 20, 21, 49, 500)] == [2, 2, 3, 5, 5]
    assert next_look_ns(Autoscaler(look_every_s=15), 31 * NS_PER_S) == 45 * NS_PER_S


SCALED = {
    "front.replicas": 1,
    "max_num_seqs": 6,
    "autoscaler.replicas_max": 3,
    "autoscaler.look_every_s": 5.0,
    "autoscaler.start_s": 5.0,
    "autoscaler.target_in_flight_per_replica": 8.0,
}


def test_new_replicas_help_when_they_are_up_and_slow_ones_late() -> None:
    quick, slow, never = (
        run(SCALED | changes, duration_s=40)
        for changes in ({}, {"autoscaler.start_s": 30.0}, {"autoscaler.target_in_flight_per_replica": 1e5})
    )
    medians = [np.median(outcome.ttft_s()) for outcome in (quick, slow, never)]
    assert medians[0] < medians[1] < medians[2]
    assert len(never.service.replicas) == 1
    starting = VirtualService(LabParams().changed(SCALED), seed=1)
    for request_id in range(30):
        starting.submit(request_id * 10 * MS, request_id, 200, 800)
    assert [r.up for r in starting.state(4 * NS_PER_S).replicas] == [True]
    assert [r.up for r in starting.state(6 * NS_PER_S).replicas] == [True, False, False]
    assert [r.up for r in starting.state(11 * NS_PER_S).replicas] == [True, True, True]


def test_a_gpu_fault_ends_what_the_replica_was_doing_and_the_others_go_on() -> None:
    outcome = run({"accelerator.fault_every_s": 10.0, "accelerator.restart_s": 4.0, "front.replicas": 2})
    errors = [e for e in outcome.events if e.kind == "error"]
    assert errors and {e.error for e in errors} <= {"reset", "connect_refused"}
    assert len(errors) < 0.5 * len(outcome.sent_ns)
    alone = run({"accelerator.fault_every_s": 10.0, "accelerator.restart_s": 4.0, "front.replicas": 1})
    assert any(e.error == "connect_refused" for e in alone.events if e.kind == "error")


def test_the_gpus_of_every_replica_are_read_and_tell_of_the_fault_that_ended_it() -> None:
    params = LabParams().changed({"front.replicas": 2, "tensor_parallel": 2, "accelerator.restart_s": 1.0})
    service = VirtualService(params, seed=1)
    for request_id in range(20):
        service.submit(request_id * 100 * MS, request_id, 1000, 100)
    before = service.state(2 * NS_PER_S).replicas
    assert [[gpu.index for gpu in replica.gpus] for replica in before] == [[0, 1], [0, 1]]
    assert all(gpu.busy_ratio > 0.1 and gpu.last_xid == 0 for replica in before for gpu in replica.gpus)
    service.change(2 * NS_PER_S, params.changed({"accelerator.fault_every_s": 2.0}))
    after = service.state(30 * NS_PER_S).replicas
    assert all(replica.gpus[0].last_xid > 0 for replica in after)


def test_a_replica_that_is_down_has_no_page_and_refuses_health() -> None:
    params = LabParams().changed({"accelerator.fault_every_s": 0.5, "accelerator.restart_s": 1000.0})
    service = VirtualService(params, seed=1)
    service.submit(0, 1, 100, 5000)
    service.null_request(60 * NS_PER_S)
    events = service.advance(61 * NS_PER_S)
    assert service.metrics_page(61 * NS_PER_S) == ""
    assert not service.state(61 * NS_PER_S).replicas[0].up
    assert [e.error for e in events if e.kind in ("error", "null")] == ["reset", "connect_refused"]


def test_replicas_that_are_taken_away_finish_what_they_have() -> None:
    service = VirtualService(LabParams().changed({"front.replicas": 2, "front.router": "round_robin"}), seed=1)
    for request_id in range(4):
        service.submit(0, request_id, 100, 200, details=Details(session=request_id))
    events = service.advance(NS_PER_S)
    service.change(NS_PER_S, LabParams())
    for request_id in range(4, 8):
        service.submit(NS_PER_S, request_id, 100, 20)
    events += service.advance(100 * NS_PER_S)
    assert sum(e.kind == "end" for e in events) == 8
    assert [r.engines[0].metrics.e2e_s.count for r in service.state(0).replicas] == [6, 2]
