"""The virtual service: what clients see, and the laws of the queues in front of the engine."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_traffic import NS_PER_S, chat_run
from prometheus_client.parser import text_string_to_metric_families

from pinchpoint.lab.params import Front, LabParams
from pinchpoint.lab.service import ClientEvent, VirtualService

MS = 1_000_000
NO_TOKENIZER = Front(tokenizer_s_per_token=0)


def kinds(events: list[ClientEvent], request_id: int) -> list[str]:
    return [e.kind for e in events if e.request_id == request_id]


def test_a_request_gets_headers_then_each_token_then_the_end() -> None:
    service = VirtualService(LabParams(), seed=1)
    service.submit(5 * MS, 7, 100, 3)
    events = service.advance(NS_PER_S)
    assert kinds(events, 7) == ["headers", "chunk", "chunk", "chunk", "end"]
    assert events[0].status == 200
    assert (events[-1].finish_reason, events[-1].prompt_tokens, events[-1].completion_tokens) == ("length", 100, 3)
    assert service.advance(2 * NS_PER_S) == []


def test_an_answer_that_is_not_streamed_comes_at_once() -> None:
    service = VirtualService(LabParams(), seed=1)
    service.submit(0, 7, 100, 30, stream=False)
    events = service.advance(NS_PER_S)
    assert [(e.kind, e.tokens) for e in events] == [("headers", 0), ("chunk", 30), ("end", 0)]
    assert len({e.t_ns for e in events}) == 1


def test_where_nothing_is_generated_the_prompt_is_computed_and_answered_whole() -> None:
    service = VirtualService(LabParams(step_noise_ratio=0), seed=1)
    service.submit(0, 7, 2000, 0)
    events = service.advance(NS_PER_S)
    assert kinds(events, 7) == ["headers", "end"]
    assert (events[-1].prompt_tokens, events[-1].completion_tokens) == (2000, 0)
    short = VirtualService(LabParams(step_noise_ratio=0), seed=1)
    short.submit(0, 7, 20, 0)
    assert short.advance(NS_PER_S)[-1].t_ns < events[-1].t_ns / 4
    assert service.engine.pool.free == service.engine.pool.total


def test_a_buffering_proxy_moves_the_first_token_to_the_end_and_nothing_else() -> None:
    plain, held = (
        chat_run(LabParams(proxy_buffering=buffering, step_noise_ratio=0), 2.0, 10) for buffering in (False, True)
    )
    ends = [[e.t_ns for e in outcome.events if e.kind == "end"] for outcome in (plain, held)]
    assert ends[0] == ends[1]
    for events in held.by_request().values():
        assert len({e.t_ns for e in events}) == 1
    assert np.median(held.ttft_s()) > 20 * np.median(plain.ttft_s())
    server_ttft = [o.service.engine.metrics.ttft_s.sum for o in (plain, held)]
    assert server_ttft[0] == server_ttft[1]


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 400), st.integers(1, 300), st.integers(0, 40), st.booleans(), st.integers(0, 900)),
        min_size=1,
        max_size=25,
    ),
    cuts=st.lists(st.integers(0, 1000), max_size=10),
    params=st.sampled_from(
        [
            LabParams(),
            LabParams(kv_blocks=40, max_num_seqs=6),
            LabParams(in_flight_limit=3),
            LabParams(rate_limit_rps=20, rate_limit_burst_requests=2),
            LabParams(api_request_s=0.02, api_chunk_s=0.001),
            LabParams(proxy_buffering=True),
        ]
    ),
)
def test_every_request_is_answered_once_whole_and_in_time_order(requests: list, cuts: list, params: LabParams) -> None:
    """Any way of cutting the time axis into advance() calls gives the same events."""

    def run(instants: list[int]) -> list[ClientEvent]:
        service = VirtualService(params, seed=3)
        for request_id, (t_ms, prompt, output, stream, cancel_ms) in enumerate(sorted(requests)):
            service.submit(t_ms * MS, request_id, prompt, output, stream)
            if cancel_ms < 200:
                service.cancel((t_ms + cancel_ms) * MS, request_id)
        events = []
        for instant in [*sorted(instants), 10**6]:
            events += service.advance(instant * MS)
        assert service.engine.pool.free == service.engine.pool.total
        assert service.next_ns() is None
        assert (
            service.process_readings(10**6 * MS)["open_fds"]
            == VirtualService(params, 0).process_readings(0)["open_fds"]
        )
        return events

    events = run(cuts)
    assert events == run([])
    assert [e.t_ns for e in events] == sorted(e.t_ns for e in events)
    for request_id, (t_ms, _, output, _, cancel_ms) in enumerate(sorted(requests)):
        mine = [e for e in events if e.request_id == request_id]
        assert all(e.t_ns >= t_ms * MS for e in mine)
        if mine and mine[-1].kind == "end":
            assert [e.kind for e in mine].count("headers") == 1 and mine[0].kind == "headers"
            assert sum(e.tokens for e in mine) == (output if mine[0].status == 200 else 0)
        else:
            assert cancel_ms < 200
            assert all(e.t_ns <= (t_ms + cancel_ms) * MS for e in mine)


def test_a_cancelled_request_leaves_the_engine_and_frees_its_blocks() -> None:
    service = VirtualService(LabParams(), seed=1)
    service.submit(0, 1, 1000, 5000)
    service.advance(NS_PER_S)
    assert service.engine.pool.used_ratio > 0
    service.cancel(NS_PER_S, 1)
    assert service.advance(2 * NS_PER_S) == []
    assert service.engine.pool.used_ratio == 0
    assert service.engine.metrics.finished["abort"] == 1


def test_too_long_a_request_is_answered_400() -> None:
    service = VirtualService(LabParams(kv_blocks=10), seed=1)
    service.submit(0, 1, 150, 11)
    events = service.advance(NS_PER_S)
    assert [(e.kind, e.status) for e in events] == [("headers", 400), ("end", None)]


def test_the_token_bucket_admits_burst_then_rate_and_says_when_to_come_back() -> None:
    service = VirtualService(LabParams(rate_limit_rps=2, rate_limit_burst_requests=3), seed=1)
    for request_id in range(100):
        service.submit(request_id * 100 * MS, request_id, 10, 1)
    events = service.advance(20 * NS_PER_S)
    ok = sum(e.kind == "headers" and e.status == 200 for e in events)
    refused = [e for e in events if e.kind == "headers" and e.status == 429]
    assert ok == 3 + int(9.9 * 2)
    assert len(refused) == 100 - ok
    assert all(e.retry_after_s == 1.0 for e in refused)


def test_no_more_than_the_limit_are_in_flight_and_the_rest_get_503() -> None:
    outcome = chat_run(LabParams(in_flight_limit=5), 10.0, 20)
    delta = []
    for events in outcome.by_request().values():
        if events[0].status == 200:
            delta += [(outcome.sent_ns[events[0].request_id], 1), (events[-1].t_ns, -1)]
    assert max(np.cumsum([d for _, d in sorted(delta)])) == 5
    assert outcome.rejected() > 0
    assert 'vllm:admission_rejections_total{model_name="llama-3-8b",reason="max_num_queued_reqs"}' in (
        outcome.service.metrics_page(10**13)
    )


def test_the_api_process_is_one_line_through_which_health_goes_too() -> None:
    service = VirtualService(LabParams(api_request_s=0.1, api_null_s=0.001, front=NO_TOKENIZER), seed=1)
    for request_id in range(5):
        service.submit(0, request_id, 10, 1)
    service.null_request(0)
    service.submit(0, 5, 10, 1)
    events = service.advance(10 * NS_PER_S)
    null = next(e for e in events if e.kind == "null")
    assert null.latency_s == pytest.approx(0.501, abs=1e-9)
    assert next(e for e in events if e.request_id == 5 and e.kind == "headers").t_ns == pytest.approx(601 * MS)
    assert service.process_readings(300 * MS + 10 * NS_PER_S)["cpu_s"] == pytest.approx(0.601 + 6 * 15e-6)


def test_process_cpu_grows_one_for_one_while_the_line_is_not_empty() -> None:
    service = VirtualService(LabParams(api_request_s=0.1, front=NO_TOKENIZER), seed=1)
    for request_id in range(10):
        service.submit(0, request_id, 10, 1)
    assert service.process_readings(250 * MS)["cpu_s"] == pytest.approx(0.25)
    assert service.process_readings(750 * MS)["cpu_s"] == pytest.approx(0.75)


def test_littles_law_holds_inside_the_engine() -> None:
    duration_s = 200
    service, rng = VirtualService(LabParams(), seed=1), np.random.default_rng(2)
    for request_id, at_s in enumerate(np.cumsum(rng.exponential(1 / 8.0, size=int(8 * duration_s)))):
        service.submit(int(at_s * NS_PER_S), request_id, 268, 128)
    present = []
    for index in range(20 * duration_s):
        service.advance(index * NS_PER_S // 20)
        gauges = service.engine.gauges()
        present.append(gauges.requests_running + gauges.requests_waiting)
    metrics = service.engine.metrics
    in_engine_s = metrics.queue_s.sum + metrics.inference_s.sum
    assert np.mean(present) == pytest.approx(in_engine_s / duration_s, rel=0.03)


def test_same_seed_gives_the_same_events_and_another_seed_does_not() -> None:
    def events(seed: int) -> list[ClientEvent]:
        service = VirtualService(LabParams(), seed)
        for request_id in range(20):
            service.submit(request_id * 50 * MS, request_id, 200, 20)
        return service.advance(20 * NS_PER_S)

    assert events(1) == events(1)
    assert events(1) != events(2)


def late_ratio(params: LabParams, rate_rps: float) -> float:
    """Share of requests that were refused, or whose first token took longer than half a second."""
    outcome = chat_run(params, rate_rps, 60)
    return (outcome.rejected() + float(np.sum(outcome.ttft_s() > 0.5))) / len(outcome.sent_ns)


LADDERS = {
    "max_num_seqs": ([4, 8, 16, 32], 8.0),
    "kv_blocks": ([160, 240, 320, 640], 8.0),
    "in_flight_limit": ([4, 8, 16, 32], 8.0),
    "rate_limit_rps": ([2.0, 4.0, 6.0, 12.0], 8.0),
    "compute_efficiency_ratio": ([0.05, 0.1, 0.2, 0.7], 8.0),
    "max_num_batched_tokens": ([256, 512, 2048], 24.0),
}


@pytest.mark.parametrize("limit", LADDERS)
def test_a_wider_limit_never_carries_less_load(limit: str) -> None:
    values, rate_rps = LADDERS[limit]
    late = [late_ratio(msgspec.structs.replace(LabParams(), **{limit: value}), rate_rps) for value in values]
    assert all(wider <= narrower + 0.01 for narrower, wider in itertools.pairwise(late)), late
    assert late[0] > late[-1] + 0.2, late


def test_an_unloaded_stream_has_the_pace_of_the_cost_model() -> None:
    service = VirtualService(LabParams(), seed=1)
    service.submit(0, 1, 1024, 200)
    chunks = [e.t_ns for e in service.advance(60 * NS_PER_S) if e.kind == "chunk"]
    assert chunks[0] / MS == pytest.approx(77, rel=0.1)
    assert (chunks[-1] - chunks[0]) / 199 / MS == pytest.approx(9.9, rel=0.06)


def test_the_metrics_page_parses_and_agrees_with_what_clients_saw() -> None:
    outcome = chat_run(LabParams(), 5.0, 20)
    page = outcome.service.metrics_page(10**13)
    values = {
        (s.name, *sorted((k, v) for k, v in s.labels.items() if k not in ("engine", "model_name"))): s.value
        for family in text_string_to_metric_families(page)
        for s in family.samples
    }
    tokens = sum(outcome.output_tokens.values())
    assert values[("vllm:generation_tokens_total",)] == tokens
    assert values[("vllm:request_success_total", ("finished_reason", "length"))] == len(outcome.sent_ns)
    assert values[("vllm:time_to_first_token_seconds_count",)] == len(outcome.sent_ns)
    assert values[("vllm:inter_token_latency_seconds_count",)] == tokens - len(outcome.sent_ns)
    assert values[("vllm:iteration_tokens_total_sum",)] == tokens + values[("vllm:prompt_tokens_total",)]
    assert values[("vllm:time_to_first_token_seconds_bucket", ("le", "+Inf"))] == len(outcome.sent_ns)
    http = ("http_requests_total", ("handler", "/v1/chat/completions"), ("method", "POST"), ("status", "2xx"))
    assert values[http] == len(outcome.sent_ns)
    config = next(s for f in text_string_to_metric_families(page) for s in f.samples if "cache_config" in s.name)
    assert int(config.labels["num_gpu_blocks"]) == LabParams().num_kv_blocks()
    # The server's own TTFT leaves out what lies in front of it, and only that.
    server_s = values[("vllm:time_to_first_token_seconds_sum",)] / len(outcome.sent_ns)
    assert 0 < float(np.mean(outcome.ttft_s())) - server_s < 0.002
