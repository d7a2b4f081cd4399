"""Proxy and gateway: handshakes on one core, answers held back, limits, time-outs and retries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_traffic import NS_PER_S, chat_run

from pinchpoint.lab.gateway import RateLimit
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.proxy import Proxy
from pinchpoint.lab.service import VirtualService

MS = 1_000_000


def test_handshakes_are_served_one_after_the_other() -> None:
    proxy = Proxy(LabParams().changed({"path.tls_s": 0.04}))
    assert [proxy.shake_hands(t * MS) for t in (0, 10, 100)] == [40 * MS, 80 * MS, 140 * MS]
    assert proxy.process.cpu_ns(NS_PER_S) == 120 * MS
    assert proxy.process.cpu_ns(120 * MS) == 100 * MS


@given(
    pauses_ms=st.lists(st.integers(0, 500), min_size=1, max_size=60),
    rate=st.floats(0.5, 20),
    burst=st.integers(1, 10),
)
def test_a_token_bucket_never_admits_more_than_burst_and_rate(pauses_ms: list[int], rate: float, burst: int) -> None:
    params = LabParams(rate_limit_rps=rate, rate_limit_burst_requests=burst)
    limit, t_ms, admitted = RateLimit(params), 0, 0
    for pause_ms in pauses_ms:
        t_ms += pause_ms
        admitted += limit.admit(t_ms * MS) is None
    assert admitted <= burst + (t_ms / 1000) * rate + 1e-6
    assert admitted >= min(len(pauses_ms), burst)


def test_a_request_that_is_slow_to_begin_is_tried_again_and_the_work_is_thrown_away() -> None:
    params = LabParams().changed({"max_num_seqs": 1, "front.gateway_timeout_s": 1.0, "front.gateway_retries": 2})
    service = VirtualService(params, seed=1)
    service.submit(0, 1, 100, 400)  # about four seconds, and nobody else meanwhile
    service.submit(0, 2, 100, 10)
    events = service.advance(100 * NS_PER_S)
    timed_out = [e for e in events if e.request_id == 2]
    assert [(e.kind, e.status) for e in timed_out] == [("headers", 504), ("end", None)]
    assert timed_out[0].t_ns == pytest.approx(3 * NS_PER_S, rel=0.01)
    assert service.engine.metrics.finished["abort"] == 3
    assert service.engine.metrics.engine_requests == 4
    assert sum(e.tokens for e in events if e.request_id == 1) == 400


def test_an_answer_that_has_begun_is_never_given_up() -> None:
    service = VirtualService(LabParams().changed({"front.gateway_timeout_s": 0.5}), seed=1)
    service.submit(0, 1, 100, 400)
    events = service.advance(100 * NS_PER_S)
    assert [e.status for e in events if e.kind == "headers"] == [200]
    assert sum(e.tokens for e in events) == 400


def test_a_gateway_that_may_try_again_keeps_headers_until_the_first_byte() -> None:
    for changes in ({}, {"front.gateway_timeout_s": 5.0}):
        service = VirtualService(LabParams().changed(changes), seed=1)
        service.submit(0, 1, 2000, 5)
        events = service.advance(10 * NS_PER_S)
        held = events[0].t_ns == events[1].t_ns
        assert [e.kind for e in events[:2]] == ["headers", "chunk"]
        assert held == bool(changes)


def test_retries_multiply_the_load_and_take_from_what_is_finished() -> None:
    base = {"max_num_seqs": 8, "step_noise_ratio": 0.0}
    storm = base | {"front.gateway_timeout_s": 0.4, "front.gateway_retries": 4}
    calm, stormy = (chat_run(LabParams().changed(changes), 7.0, 40, drain=False) for changes in (base, storm))
    done = [sum(e.kind == "end" and e.finish_reason is not None for e in o.events) for o in (calm, stormy)]
    metrics = stormy.service.engine.metrics
    assert metrics.engine_requests > 1.5 * len(stormy.sent_ns)
    assert metrics.finished["abort"] > 50
    assert calm.service.engine.metrics.finished["abort"] == 0
    assert done[1] <= done[0]
    assert any(e.status == 504 for e in stormy.events)


def test_another_replica_gets_the_second_attempt_when_the_first_dies_before_it_answered() -> None:
    changes = {
        "front.replicas": 2,
        "front.gateway_timeout_s": 100.0,
        "front.gateway_retries": 5,
        "front.dependency_s": 2.0,
        "accelerator.fault_every_s": 6.0,
        "accelerator.restart_s": 1.0,
    }
    outcome = chat_run(LabParams().changed(changes), 3.0, 30)
    unanswered = chat_run(LabParams().changed(changes | {"front.gateway_retries": 0}), 3.0, 30)

    def failed(events: list) -> int:
        return sum(e.kind == "error" for e in events)

    assert failed(outcome.events) < failed(unanswered.events)


def test_a_held_answer_is_as_many_bytes_as_a_streamed_one_in_fewer_packets() -> None:
    plain, held = (chat_run(LabParams(proxy_buffering=b, step_noise_ratio=0), 2.0, 10) for b in (False, True))
    hosts = [o.service.state(10_000 * NS_PER_S).replicas[0].host for o in (plain, held)]
    assert hosts[1].segments_out_total < hosts[0].segments_out_total / 3
    assert 0.7 < hosts[1].net_tx_bytes_total / hosts[0].net_tx_bytes_total < 1
    assert np.median(held.ttft_s()) > 10 * np.median(plain.ttft_s())
