"""Where the time of a request went: stages add up, clocks are set right, hostile spans do no harm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.model import Stage
from pinchpoint.spans import Breakdown, breakdown, request_times
from pinchpoint.spans.stages import STAGES
from tests.support.span_runs import T0_NS, SpanRun, Times, ns

NEAR_S = 1e-6
TIMES = Times()


def many(run: SpanRun, count: int = 40, seed: int = 5) -> list[Times]:
    """Requests whose times in every part differ."""
    rng = np.random.default_rng(seed)
    told = [Times(*(float(part) for part in rng.exponential(0.05, 9) + 0.001)) for _ in range(count)]
    for number, times in enumerate(told):
        run.through_all(number, number * 3.0, times)
    return told


def shares(found: Breakdown | None) -> dict[str, float]:
    assert found is not None
    return {stage.name: stage.median_s for stage in found.stages}


def test_each_stage_gets_its_time_and_together_they_are_the_requests(tmp_path: Path) -> None:
    run = SpanRun()
    run.through_all(7, 1.0, TIMES)
    found = breakdown(run.view(tmp_path / "run"))
    assert found is not None
    expected = {
        "network": TIMES.way_in_s + TIMES.hop_s + TIMES.out_s,
        "gateway": TIMES.gateway_s,
        "dependency": TIMES.retrieve_s,
        "engine": TIMES.tokenise_s,
        "queue": TIMES.queue_s,
        "prefill": TIMES.prefill_s,
        "decode": TIMES.decode_s,
    }
    assert shares(found) == pytest.approx(expected, abs=NEAR_S)
    assert found.total_median_s == pytest.approx(sum(expected.values()), abs=NEAR_S)
    assert sum(stage.share_ratio for stage in found.stages) == pytest.approx(1.0)
    first = {stage.name: stage.first_token_median_s for stage in found.stages}
    assert first["queue"] == pytest.approx(TIMES.queue_s, abs=NEAR_S)
    assert sum(value or 0.0 for value in first.values()) == pytest.approx(found.first_token_median_s, abs=NEAR_S)
    assert [(one.name, one.calls, one.requests) for one in found.dependencies] == [("retrieve", 1, 1)]
    assert found.notes == ()


@pytest.mark.parametrize("vllm_s", [0.0, 0.3, 3600.0, -40.0])
@pytest.mark.parametrize("gateway_s", [0.0, -0.2, 900.0])
def test_clocks_that_are_off_are_found_and_what_they_told_is_put_right(
    tmp_path: Path, gateway_s: float, vllm_s: float
) -> None:
    straight, skewed = SpanRun(), SpanRun({"gateway": gateway_s, "vllm": vllm_s})
    told = many(straight)
    many(skewed)
    true, found = (request_times(run.view(tmp_path / str(i))) for i, run in enumerate((straight, skewed)))
    seen = breakdown(skewed.view(tmp_path / "again"))
    assert seen is not None
    for clock, ahead_s in zip(seen.clocks, (gateway_s, vllm_s), strict=True):
        assert clock.offset_s is not None and clock.error_s is not None
        assert abs(clock.offset_s + ahead_s) <= clock.error_s + 0.002
        assert clock.error_s < 0.05  # the quickest of many requests leave little room
    for stage in ("dependency", "queue", "prefill"):  # they depend on no clock
        assert found.stage_s[stage] == pytest.approx(true.stage_s[stage], abs=0.002)
    assert found.stage_s["queue"] == pytest.approx([times.queue_s for times in told], abs=0.002)
    assert np.median(np.abs(found.stage_s["network"] - true.stage_s["network"])) < 0.05


def test_a_clock_that_is_as_good_as_ours_is_left_alone(tmp_path: Path) -> None:
    run = SpanRun()
    many(run)
    found = breakdown(run.view(tmp_path / "run"))
    assert found is not None
    assert [clock.offset_s for clock in found.clocks] == [0.0, 0.0]


def test_a_clock_that_no_offset_can_set_right_is_said_to_be_so(tmp_path: Path) -> None:
    run = SpanRun()
    for number in range(40):
        run.clocks = {"gateway": float(number * 7 % 40), "vllm": 0.0}
        run.through_all(number, number * 3.0, TIMES)
    found = breakdown(run.view(tmp_path / "run"))
    assert found is not None
    assert [clock.offset_s is None for clock in found.clocks if clock.service == "gateway"] == [True]
    assert any("cannot be brought to agree" in note for note in found.notes)
    assert shares(found)["queue"] == pytest.approx(TIMES.queue_s, abs=0.01)


def test_calls_that_overlap_are_counted_once(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    run.span(1, 1, None, "POST /ask", "gateway", 0.0, 1.0)
    run.span(1, 2, 1, "embed", "gateway", 0.2, 0.6, "client")
    run.span(1, 3, 1, "search", "gateway", 0.4, 0.8, "client")
    found = breakdown(run.view(tmp_path / "run"))
    assert shares(found) == pytest.approx({"gateway": 0.4, "dependency": 0.6}, abs=NEAR_S)


def test_what_a_dependency_does_inside_is_the_dependencys(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    run.span(1, 1, None, "POST /ask", "gateway", 0.0, 1.0)
    run.span(1, 2, 1, "GET /find", "gateway", 0.2, 0.8, "client")
    run.span(1, 3, 2, "GET /find", "finder", 0.3, 0.7, "server")
    run.span(1, 4, 3, "SELECT documents", "finder", 0.4, 0.6, "client", db__system="postgresql")
    found = breakdown(run.view(tmp_path / "run"))
    assert shares(found) == pytest.approx({"gateway": 0.4, "dependency": 0.6}, abs=NEAR_S)
    assert found is not None and [one.name for one in found.dependencies] == ["GET /find"]


def test_an_engine_alone_leaves_the_rest_to_the_network(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, 0.45, 1.0)
    told = {"gen_ai__latency__time_in_queue": 0.1, "gen_ai__latency__time_in_model_prefill": 0.2}
    run.span(1, 1, None, "llm_request", "vllm", 0.05, 0.95, gen_ai__latency__time_in_model_decode=0.5, **told)
    found = breakdown(run.view(tmp_path / "run"))
    expected = {"network": 0.1, "engine": 0.1, "queue": 0.1, "prefill": 0.2, "decode": 0.5}
    assert shares(found) == pytest.approx(expected, abs=NEAR_S)


def test_an_engine_that_tells_times_as_texts_is_understood(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    run.span(1, 1, None, "generate", "tgi", 0.0, 1.0, queue_time="250.5ms", inference_time="700ms", total_time="1s")
    assert shares(breakdown(run.view(tmp_path / "run"))) == pytest.approx(
        {"queue": 0.2505, "engine": 0.7495}, abs=NEAR_S
    )


def test_spans_named_for_their_stage_need_no_attributes(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    run.span(1, 1, None, "http-request", "frontend", 0.0, 1.0)
    for number, (name, start_s, end_s) in enumerate(
        (("queue", 0.1, 0.3), ("prefill", 0.3, 0.5), ("decode", 0.5, 0.9)), 2
    ):
        run.span(1, number, 1, name, "worker", start_s, end_s, "internal")
    expected = {"gateway": 0.2, "queue": 0.2, "prefill": 0.2, "decode": 0.4}
    assert shares(breakdown(run.view(tmp_path / "run"))) == pytest.approx(expected, abs=NEAR_S)


def test_a_call_of_a_model_whose_server_tells_nothing_is_the_engines(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    run.span(1, 1, None, "POST /ask", "app", 0.0, 1.0)
    run.span(1, 2, 1, "chat gpt", "app", 0.1, 0.9, "client", gen_ai__operation__name="chat")
    found = breakdown(run.view(tmp_path / "run"))
    assert shares(found) == pytest.approx({"gateway": 0.2, "engine": 0.8}, abs=NEAR_S)
    assert found is not None and any("no engine tells its queue" in note for note in found.notes)


def test_a_run_without_spans_has_no_breakdown(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    assert breakdown(run.view(tmp_path / "run")) is None


def test_spans_of_no_request_say_what_to_do(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    run.span(1, 1, None, "llm_request", "vllm", 0.0, 1.0)
    run.spans[0]["request_id"] = None
    found = breakdown(run.view(tmp_path / "run"))
    assert found is not None
    assert (found.traced, found.foreign_spans, found.stages) == (0, 1, ())
    assert any("--trace-requests" in note for note in found.notes)


def test_only_answered_requests_of_the_stage_count_and_untraced_ones_are_told(tmp_path: Path) -> None:
    run = SpanRun()
    for number in range(6):
        run.through_all(number, number * 10.0, TIMES)
    run.request(6, 60.0, None, 61.0)
    run.request(7, 70.0, None, 71.0, status="timeout")
    whole = run.view(tmp_path / "whole")
    stage = Stage(0, "search", "step", T0_NS + ns(20.0), T0_NS + ns(45.0), T0_NS + ns(60.0), 0)
    found, of_stage = breakdown(whole), breakdown(whole, stage)
    assert found is not None and of_stage is not None
    assert (found.requests, found.traced, of_stage.requests, of_stage.traced) == (7, 6, 3, 3)
    assert any("1 of 7 answered requests have no spans" in note for note in found.notes)


def test_an_export_that_came_twice_counts_once(tmp_path: Path) -> None:
    run = SpanRun()
    run.through_all(1, 0.0, TIMES)
    run.spans *= 2
    found = breakdown(run.view(tmp_path / "run"))
    assert found is not None and found.spans == 4


def test_callers_in_a_circle_end_somewhere(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    for number, parent in ((1, 3), (2, 1), (3, 2), (4, 4), (5, 2)):
        run.span(1, number, parent, f"span {number}", "loop", 0.1, 0.9, "internal")
    found = breakdown(run.view(tmp_path / "run"))
    assert found is not None and found.spans == 5


HOSTILE = st.fixed_dictionaries(
    {
        "parent": st.none() | st.integers(1, 6),
        "name": st.sampled_from(["llm_request", "queue", "retrieve", "POST /", "x"]) | st.text(max_size=5),
        "service": st.sampled_from(["a", "b", ""]),
        "kind": st.sampled_from(["server", "client", "internal", "producer", "consumer"]),
        "start_s": st.floats(-1e6, 1e6),
        "length_s": st.floats(0, 1e6),
        "value": st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=6) | st.just("1.2.3ms"),
        "key": st.sampled_from(
            [
                "gen_ai.latency.time_in_queue",
                "gen_ai.latency.time_in_model_prefill",
                "gen_ai.latency.time_to_first_token",
            ]
        ),
    }
)


@given(spans=st.lists(HOSTILE, min_size=1, max_size=6))
@settings(max_examples=60)
def test_whatever_was_sent_the_stages_of_a_request_are_its_time(
    spans: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = SpanRun()
    run.request(1, 0.0, 0.4, 1.0)
    for number, told in enumerate(spans, 1):
        end_s = told["start_s"] + told["length_s"]
        run.span(
            1, number, told["parent"], told["name"], told["service"], told["start_s"], end_s, told["kind"],
            **{told["key"]: told["value"]},
        )  # fmt: skip
    times = request_times(run.view(tmp_path_factory.mktemp("hostile") / "run"))
    for total_s, parts in ((1.0, times.stage_s), (0.4, times.first_token_stage_s)):
        assert sum(parts[stage][0] for stage in STAGES) == pytest.approx(total_s, abs=1e-6)
        assert all(parts[stage][0] >= 0 for stage in STAGES)
    assert times.total_s[0] == pytest.approx(1.0)
