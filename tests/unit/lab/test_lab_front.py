"""Inside a replica before the engine: event loops, threads, tokenizers, dependencies, logs; and the application."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_traffic import NS_PER_S, Outcome, chat_run

from pinchpoint.lab.front import EventLoop, Limiter, Servers
from pinchpoint.lab.host import Process
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.service import ClientEvent, Details, VirtualService

MS = 1_000_000
QUIET = {"step_noise_ratio": 0.0}


def run(changes: dict, rate_rps: float = 5.0, duration_s: float = 20) -> Outcome:
    return chat_run(LabParams().changed(QUIET | changes), rate_rps, duration_s)


def together(changes: dict, requests: int = 8, prompt: int = 100, output: int = 20) -> list[ClientEvent]:
    service = VirtualService(LabParams().changed(QUIET | changes), seed=1)
    for request_id in range(requests):
        service.submit(0, request_id, prompt, output)
    return service.advance(1000 * NS_PER_S)


def first_s(events: list[ClientEvent]) -> np.ndarray:
    first: dict[int, int] = {}
    for event in events:
        if event.kind == "chunk":
            first.setdefault(event.request_id, event.t_ns)
    return np.array(sorted(first.values())) / NS_PER_S


@given(jobs=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), max_size=30))
def test_an_event_loop_does_one_job_at_a_time_in_order(jobs: list) -> None:
    loop = EventLoop(Process("api-0", 0, 0.0), 0, lambda t: t)
    done: list[tuple[int, int, int]] = []
    t_ns = 0
    pending: list[tuple[int, int, int]] = []
    for number, (pause, cost) in enumerate(jobs):
        t_ns += pause
        pending.append((t_ns, number, cost))
    resume_at: int | None = None
    for t_ns, number, cost in [*pending, (10**9, -1, 0)]:
        while resume_at is not None and resume_at <= t_ns:
            at = resume_at
            resume_at = loop.busy_until_ns if loop.resume(at) else None
        if number < 0:
            break

        def job(began: int, number: int = number, cost: int = cost) -> int:
            done.append((number, began, began + cost))
            return began + cost

        if loop.join(t_ns, job):
            resume_at = loop.busy_until_ns
    assert [number for number, _, _ in done] == list(range(len(jobs)))
    assert all(a[2] <= b[1] for a, b in itertools.pairwise(done))
    free = 0
    for (t_ns, _, cost), (_, began, _) in zip(pending, done, strict=True):
        assert began == max(t_ns, free)
        free = began + cost


def test_a_limiter_lets_in_as_many_as_it_has_room_for_in_order() -> None:
    limiter: Limiter[str] = Limiter(2)
    assert [limiter.enter(name) for name in "abcd"] == [True, True, False, False]
    assert limiter.admit() is None
    limiter.leave()
    assert (limiter.admit(), limiter.admit()) == ("c", None)
    limiter.size = None
    assert limiter.admit() == "d"


def test_servers_take_the_next_customer_when_the_first_of_them_is_free() -> None:
    servers = Servers(2)
    assert [servers.serve(0, lambda t: t + 10) for _ in range(5)] == [10, 10, 20, 20, 30]
    servers.resize(4)
    assert servers.serve(0, lambda t: t + 10) == 10


def test_threads_cap_what_the_engine_sees_while_health_stays_fast() -> None:
    outcome, free = run({"front.thread_pool_threads": 4}), run({})
    assert np.quantile(outcome.ttft_s(), 0.9) > 20 * np.quantile(free.ttft_s(), 0.9)
    assert np.median(outcome.tpot_s()) <= np.median(free.tpot_s())
    assert np.median(outcome.null_s()) < 1e-3
    service = VirtualService(LabParams().changed({"front.thread_pool_threads": 4}), seed=1)
    for request_id in range(20):
        service.submit(0, request_id, 100, 200)
    engine = service.state(NS_PER_S).replicas[0].engines[0].gauges
    assert (engine.requests_running, engine.requests_waiting) == (4, 0)
    assert service.process_readings(NS_PER_S)["threads"] == 5


def test_each_of_several_event_loops_has_its_own_threads_and_line() -> None:
    one, two = ({"api_request_s": 0.1, "front.api_processes": n} for n in (1, 2))
    assert first_s(together(one))[-1] == pytest.approx(0.8, abs=0.1)
    assert first_s(together(two))[-1] == pytest.approx(0.4, abs=0.1)
    threads = {"front.thread_pool_threads": 2, "front.api_processes": 3}
    service = VirtualService(LabParams().changed(threads), seed=1)
    for request_id in range(20):
        service.submit(0, request_id, 100, 200)
    state = service.state(NS_PER_S).replicas[0]
    assert state.engines[0].gauges.requests_running == 6
    assert [p.name for p in state.host.processes] == ["api-0", "api-1", "api-2", "engine-0"]


def test_a_slow_tokenizer_blocks_the_loop_and_a_pool_of_threads_does_not() -> None:
    slow = {"front.tokenizer_s_per_token": 0.5e-3}
    blocked, pooled = run(slow), run(slow | {"front.tokenizer_threads": 4})
    assert np.mean(blocked.null_s()) > 20e-3
    assert np.mean(pooled.null_s()) < 1e-3
    assert np.median(pooled.ttft_s()) < np.median(blocked.ttft_s())
    names = {p.name: p.cpu_s_total for p in pooled.service.state(0).replicas[0].host.processes}
    blocked_cpu_s = blocked.service.process_readings(0)["cpu_s"]
    assert sum(s for name, s in names.items() if "tokenizer" in name) > 10 * names["api-0"]
    assert blocked_cpu_s == pytest.approx(names["api-0"] + sum(names[f"tokenizer-{i}"] for i in range(4)), rel=0.05)
    validation = pooled.service.engine.metrics.validation_s
    assert validation.sum / validation.count > 0.1


def test_more_tokenizer_threads_never_make_the_line_longer() -> None:
    waits = [
        first_s(together({"front.tokenizer_s_per_token": 1e-3, "front.tokenizer_threads": n}))[-1] for n in (1, 2, 4, 8)
    ]
    assert waits[0] == pytest.approx(0.8, abs=0.1)
    assert all(more <= fewer for fewer, more in itertools.pairwise(waits))
    assert waits[-1] < 0.2


def test_detokenising_spaces_the_chunks_of_one_step_and_costs_cpu_per_token() -> None:
    plain, slow = together({}), together({"front.detokenize_s_per_token": 5e-3})
    assert first_s(slow)[-1] > first_s(plain)[-1] + 7 * 5e-3 * 0.9
    whole = VirtualService(LabParams().changed(QUIET | {"front.detokenize_s_per_token": 5e-3}), seed=1)
    whole.submit(0, 1, 100, 40, stream=False)
    whole.advance(100 * NS_PER_S)
    assert whole.process_readings(0)["cpu_s"] == pytest.approx(40 * 5e-3, rel=0.05)


def test_log_records_hold_up_the_loop_and_are_written_to_the_disk() -> None:
    logs = {"front.log_s_per_request": 20e-3, "front.log_s_per_chunk": 2e-3, "front.log_bytes_per_write": 1000}
    service = VirtualService(LabParams().changed(QUIET | logs), seed=1)
    for request_id in range(4):
        service.submit(0, request_id, 100, 30)
    assert first_s(service.advance(100 * NS_PER_S))[-1] > 4 * 20e-3
    host = service.state(100 * NS_PER_S).replicas[0].host
    assert host.disk_written_bytes_total == 1000 * 4 * 31
    assert host.processes[0].cpu_s_total > 4 * (20e-3 + 30 * 2e-3)


def test_a_dependency_with_few_slots_makes_a_line_that_neither_health_nor_lengths_explain() -> None:
    steady = {"front.dependency_s": 0.5, "front.dependency_cv": 0.0, "front.dependency_slots": 2}
    waits = first_s(together(steady, requests=6))
    assert waits == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.5, 1.5], abs=0.05)
    outcome = run(steady | {"front.dependency_s": 0.3})
    assert np.median(outcome.null_s()) < 1e-3
    metrics = outcome.service.engine.metrics
    assert metrics.queue_s.sum < 1.0 and metrics.ttft_s.sum > 0.25 * metrics.ttft_s.count


def test_calls_to_a_dependency_have_the_mean_and_spread_that_were_asked_for() -> None:
    calls = {"front.dependency_s": 1.0, "front.dependency_cv": 0.5, "front.dependency_slots": 2000}
    free = {"api_request_s": 0.0, "front.tokenizer_s_per_token": 0.0}
    waits = first_s(together(calls | free, requests=1500, prompt=1, output=1))
    assert np.mean(waits) == pytest.approx(1.0, rel=0.05)
    assert np.std(waits) == pytest.approx(0.5, rel=0.1)


def test_the_limit_of_requests_in_flight_counts_those_of_one_replica() -> None:
    events = together({"in_flight_limit": 3}, requests=10)
    statuses = [e.status for e in events if e.kind == "headers"]
    assert statuses.count(200) == 3 and statuses.count(503) == 7
    assert all(e.error and e.retry_after_s for e in events if e.status == 503)
    twice = together({"in_flight_limit": 3, "front.replicas": 2, "path.keep_alive": False}, requests=10)
    assert [e.status for e in twice if e.kind == "headers"].count(200) == 6


@pytest.mark.parametrize(("factor", "tokens", "reason"), [(0.5, 10, "stop"), (1.0, 20, "length"), (3.0, 60, "length")])
def test_the_application_lengthens_answers_or_lets_them_end_early(factor: float, tokens: int, reason: str) -> None:
    events = together({"application.output_factor": factor}, requests=1)
    end = next(e for e in events if e.kind == "end")
    assert (end.completion_tokens, end.finish_reason) == (tokens, reason)
    assert sum(e.tokens for e in events) == tokens


def test_pictures_are_prompt_tokens_that_the_encoder_makes() -> None:
    service = VirtualService(LabParams().changed(QUIET | {"application.image_tokens": 500}), seed=1)
    service.submit(0, 1, 100, 2, details=Details(image_tokens=200))
    end = service.advance(100 * NS_PER_S)[-1]
    assert end.prompt_tokens == 800
    state = service.state(100 * NS_PER_S).replicas[0]
    assert state.engines[0].metrics.encoder_tokens == 700
    assert state.host.net_rx_bytes_total > 700 * 500


def test_one_request_of_several_texts_is_answered_when_the_last_is_computed() -> None:
    service = VirtualService(LabParams().changed(QUIET), seed=1)
    service.submit(0, 2, 100, 0)
    service.submit(0, 1, 100, 0, details=Details(extra_prompts=(2000, 50)))
    events = service.advance(100 * NS_PER_S)
    ends = {e.request_id: e for e in events if e.kind == "end"}
    assert ends[1].prompt_tokens == 2150
    assert ends[1].t_ns > ends[2].t_ns
    assert [e.kind for e in events if e.request_id == 1] == ["headers", "end"]
