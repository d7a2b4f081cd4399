"""The numbers of a plain load: each is what its docstring says, and each request is counted once."""

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.gaps import digest_gaps
from pinchpoint.measure import LoadResult, measure
from pinchpoint.outcomes import read_outcomes
from pinchpoint.slo import parse_slos
from tests.support.load_runs import Answer, build_load, even, load_stage, poisson, served


def measured(path: Path, answers: list[Answer], stages: list[Any] | None = None, **more: Any) -> LoadResult:
    return measure(build_load(path / "run", stages or [load_stage()], answers, **more))


def test_each_latency_is_what_it_says(tmp_path: Path) -> None:
    """All requests alike: due at t, sent 2 ms late, first token 50 ms after the send, 20 tokens every 10 ms."""
    result = measured(tmp_path, [served(due_s, lag_s=0.002) for due_s in even(20, 10)])
    expected = {
        "ttft_s": 0.052,
        "ttft_from_send_s": 0.050,
        "tpot_s": 0.010,
        "itl_s": 0.010,
        "e2e_s": 0.242,
        "e2e_from_send_s": 0.240,
        "send_lag_s": 0.002,
        "output_tokens_per_s": 100.0,
    }
    assert set(result.total.metrics) == set(expected)
    for name, value in expected.items():
        metric = result.total.metrics[name]
        assert metric.n == (200 * 19 if name == "itl_s" else 200)
        for shown in (metric.mean, metric.p50, metric.p99, metric.min, metric.max):
            assert shown == pytest.approx(value, rel=1e-3), name
        assert metric.intervals["p50"] == pytest.approx((value, value), rel=1e-3)
    assert result.total.metrics["ttft_s"].p999 is None, "200 requests say nothing about one in a thousand"
    assert result.total.metrics["ttft_s"].intervals["p999"] is None


def test_counts_rates_and_tokens(tmp_path: Path) -> None:
    total = measured(tmp_path, [served(due_s) for due_s in even(20, 10)]).total
    assert (total.offered, total.issued, total.completed, total.failed, total.lost) == (200, 200, 200, 0, 0)
    assert total.achieved_rate_rps == pytest.approx(20.0)
    assert total.completed_rate_rps == pytest.approx(200 / 10.19)  # the last is due at 9.95 s and takes 240 ms
    assert (total.tokens.input, total.tokens.output, total.tokens.cached) == (20_000, 4_000, 0)
    assert total.tokens.output_tokens_per_s == pytest.approx(4_000 / 10.19)
    assert total.tokens.output_counted_by_service_ratio == 1.0


FATES = [
    Answer(0.1, 0.1, status="rejected", fields={"retry_after_s": 2.0, "error": "HTTP 429: slow down"}),
    Answer(0.2, 0.2, status="rejected", fields={"retry_after_s": 4.0, "error": "HTTP 429: slow down"}),
    Answer(0.3, 0.3, status="http_error", fields={"error": "HTTP 500: oops"}),
    Answer(0.4, 0.4, status="transport_error", fields={"phase": "connect", "error": "refused", "attempts": 3}),
    Answer(0.5, 0.5, status="transport_error", fields={"phase": "headers", "error": "reset"}),
    Answer(0.6, 0.6, [0.7, 0.8], status="timeout", fields={"phase": "between-tokens"}),
    Answer(0.7, 0.7, [0.8, 0.9], status="truncated"),
    Answer(0.8, 0.8, status="malformed"),
    Answer(0.9, 0.9, [0.95], status="stream_error", fields={"error": "CUDA out of memory"}),
    Answer(1.0, 1.0, [1.1], status="cancelled"),
    Answer(1.1, 1.1, status="abandoned"),
    Answer(1.2, None, status="dropped"),
    Answer(1.3, None, recorded=False),
    served(1.4),
]


def test_every_fate_is_counted_under_its_name(tmp_path: Path) -> None:
    result = measured(tmp_path, FATES)
    total = result.total
    assert total.errors == {
        "rejected": 2,
        "http_error": 1,
        "transport_error:connect": 1,
        "transport_error:headers": 1,
        "timeout:between-tokens": 1,
        "truncated": 1,
        "malformed": 1,
        "stream_error": 1,
    }
    assert (total.dropped, total.abandoned, total.cancelled, total.lost) == (1, 1, 1, 1)
    assert total.offered == 14 == total.completed + total.failed + 1 + 1 + 1 + 1
    assert total.issued == 12
    assert (total.attempts, total.retries) == (14, 2)
    assert (total.retry_after.n, total.retry_after.min_s, total.retry_after.mean_s) == (2, 2.0, 3.0)
    assert result.error_samples["rejected"] == ("HTTP 429: slow down",)
    assert result.error_samples["stream_error"] == ("CUDA out of memory",)


def test_a_first_token_counts_whatever_became_of_its_request_and_an_end_only_when_it_is_whole(tmp_path: Path) -> None:
    metrics = measured(tmp_path, FATES).total.metrics
    assert metrics["ttft_s"].n == 5
    assert metrics["e2e_s"].n == metrics["tpot_s"].n == 1
    assert metrics["itl_s"].n == 19


def test_what_is_missing_from_the_latencies_is_said(tmp_path: Path) -> None:
    notes = " / ".join(measured(tmp_path, FATES).notes)
    for part in ("1 request withdrawn at the end", "1 user gave up", "1 request ran into a timeout"):
        assert part in notes


def test_only_a_few_distinct_samples_of_an_error_are_kept(tmp_path: Path) -> None:
    answers = [Answer(i / 100, i / 100, status="http_error", fields={"error": f"id {i % 50}"}) for i in range(200)]
    assert measured(tmp_path, answers).error_samples["http_error"] == ("id 0", "id 1", "id 2")


def test_warm_up_is_left_out_and_every_request_of_a_load_stage_counts(tmp_path: Path) -> None:
    stages = [
        load_stage(0, 0, 5, kind="warmup"),
        load_stage(1, 5, 5, settle_ns=2_000_000_000),
        load_stage(2, 12, 5, rate_rps=20.0),
    ]
    answers = [
        *(served(due_s, stage=0, ttft_s=9.0) for due_s in even(2, 5)),
        *(served(due_s, stage=1) for due_s in even(10, 5, 5)),
        *(served(due_s, stage=2, itl_s=0.02) for due_s in even(20, 5, 12)),
    ]
    result = measured(tmp_path, answers, stages)
    assert [(stage.index, stage.tally.offered) for stage in result.stages] == [(1, 50), (2, 100)]
    assert result.total.offered == 150
    assert result.duration_s == 10.0
    assert result.stages[0].tally.achieved_rate_rps == pytest.approx(10.0)
    assert result.total.achieved_rate_rps == pytest.approx(15.0), "the pause between stages belongs to none"
    pace = [stage.tally.metrics["itl_s"].p50 for stage in result.stages]
    assert pace == pytest.approx([0.01, 0.02], rel=1e-3)
    assert result.total.metrics["itl_s"].n == 150 * 19
    assert result.total.metrics["itl_s"].p90 == pytest.approx(0.02, rel=1e-3)


def test_requests_beyond_the_end_of_a_stage_that_was_cut_short_were_not_due(tmp_path: Path) -> None:
    answers = [served(due_s) for due_s in even(10, 4)]
    answers += [Answer(due_s, None, recorded=False) for due_s in even(10, 6, 4)]
    stopped = {"status": "aborted", "abort_reason": "stopped by the user"}
    result = measured(tmp_path, answers, [load_stage(length_s=4)], **stopped)
    assert (result.total.offered, result.total.lost) == (40, 0)
    assert any("stopped by the user" in note for note in result.notes)


def test_a_schedule_that_a_dead_process_left_is_lost_and_not_forgotten(tmp_path: Path) -> None:
    answers = [served(due_s, recorded=i % 2 == 0) for i, due_s in enumerate(even(10, 10))]
    total = measured(tmp_path, answers).total
    assert (total.offered, total.issued, total.lost) == (100, 50, 50)
    assert total.achieved_rate_rps == pytest.approx(5.0)


def test_a_closed_loop_has_offered_what_it_took(tmp_path: Path) -> None:
    answers = [served(i * 0.3, closed=True, recorded=i < 30) for i in range(60)]
    total = measured(tmp_path, answers, [load_stage(concurrency=1)]).total
    assert (total.offered, total.completed, total.lost) == (30, 30, 0)


def test_a_dead_load_process_of_a_closed_loop_is_told(tmp_path: Path) -> None:
    answers = [served(i * 0.3, closed=True) for i in range(30)]
    result = measured(tmp_path, answers, [load_stage(concurrency=1)], events=("worker-lost",))
    assert any("load processes that died: 1" in note for note in result.notes)


def test_requests_sent_late_stretch_the_window_of_the_rate(tmp_path: Path) -> None:
    answers = [served(due_s, lag_s=due_s) for due_s in even(20, 10)]  # half of the speed asked
    assert measured(tmp_path, answers).total.achieved_rate_rps == pytest.approx(10.0, rel=0.02)


def test_two_base_urls_are_told_apart(tmp_path: Path) -> None:
    answers = [
        served(due_s, itl_s=0.01 * (1 + i % 2), fields={"backend": i % 2}) for i, due_s in enumerate(even(20, 10))
    ]
    result = measured(tmp_path, answers)
    assert [tally.completed for tally in result.backends.values()] == [100, 100]
    pace = [tally.metrics["itl_s"].p50 for tally in result.backends.values()]
    assert pace == pytest.approx([0.01, 0.02], rel=1e-3)
    assert result.total.metrics["itl_s"].n == 200 * 19


def test_one_base_url_needs_no_table(tmp_path: Path) -> None:
    assert measured(tmp_path, [served(1.0, fields={"backend": 0})]).backends == {}


def test_shares_of_load_processes(tmp_path: Path) -> None:
    answers = [served(due_s, lag_s=0.001, fields={"worker": i % 3}) for i, due_s in enumerate(even(30, 10))]
    workers = measured(tmp_path, answers).workers
    assert [(share.worker, share.issued, share.completed) for share in workers] == [(n, 100, 100) for n in range(3)]
    assert workers[0].send_lag_p50_s == pytest.approx(0.001)


def test_tokens_of_the_first_event_do_not_make_the_pace(tmp_path: Path) -> None:
    """11 tokens in the first event and 19 in the events after it, 10 ms apart: 100 tokens/s and not 158."""
    fields = {"chunk_tokens": [11] + [1] * 19, "output_tokens": 30}
    result = measured(tmp_path, [served(due_s, fields=fields) for due_s in even(10, 10)])
    assert result.total.metrics["output_tokens_per_s"].p50 == pytest.approx(100.0)
    assert any("1.5 tokens were counted for each event" in note for note in result.notes)


def test_an_answer_that_is_no_stream_has_an_end_and_no_first_token(tmp_path: Path) -> None:
    fields = {"end_ns": None, "output_tokens": 20}
    answers = []
    for due_s in even(10, 10):
        answer = Answer(due_s, due_s, fields=dict(fields))
        answer.fields["end_ns"] = answer.record(0)["scheduled_ns"] + 80_000_000
        answers.append(answer)
    result = measured(tmp_path, answers)
    metrics = result.total.metrics
    assert metrics["e2e_s"].p50 == pytest.approx(0.08)
    assert [metrics[name].n for name in ("ttft_s", "tpot_s", "itl_s", "output_tokens_per_s")] == [0, 0, 0, 0]
    assert any("not as a stream" in note for note in result.notes)


def test_error_bounds_come_from_the_stamps(tmp_path: Path) -> None:
    fields = {"timestamp_error_ns": 19_000, "chunk_error_ns": 400_000}
    metrics = measured(tmp_path, [served(due_s, fields=fields) for due_s in even(10, 10)]).total.metrics
    assert metrics["ttft_s"].error_bound == pytest.approx(19e-6)
    assert metrics["tpot_s"].error_bound == pytest.approx(1e-6)
    assert metrics["itl_s"].error_bound == pytest.approx(400e-6)
    assert metrics["send_lag_s"].error_bound is None


def test_a_run_without_anything_says_so(tmp_path: Path) -> None:
    result = measured(tmp_path, [], [load_stage(kind="warmup")])
    assert (result.total.offered, result.total.metrics["ttft_s"].n, result.stages) == (0, 0, ())
    assert any("nothing was measured" in note for note in result.notes)
    assert measured(tmp_path / "other", []).total.achieved_rate_rps == 0.0


def test_a_stall_of_a_few_answers_widens_the_interval_of_the_gaps(tmp_path: Path) -> None:
    """2 % slow gaps spread over all answers say much about p99; the same gaps in one answer of fifty say little."""
    rng = np.random.default_rng(3)

    def answers(slow_of_request) -> list[Answer]:
        made = []
        for i, due_s in enumerate(poisson(20, 10)):
            gaps_s = np.where(rng.random(99) < slow_of_request(i), rng.uniform(0.1, 0.5, 99), 0.01)
            tokens_s = due_s + 0.05 + np.concatenate([[0.0], np.cumsum(gaps_s)])
            made.append(Answer(due_s, due_s, tokens_s.tolist()))
        return made

    spread = measured(tmp_path / "a", answers(lambda i: 0.02)).total.metrics["itl_s"]
    bunched = measured(tmp_path / "b", answers(lambda i: 0.5 if i % 25 == 0 else 0.0)).total.metrics["itl_s"]
    assert spread.intervals["p99"] is not None
    low, high = spread.intervals["p99"]
    assert spread.p99 is not None and low <= spread.p99 <= high
    assert bunched.intervals["p99"] is None or bunched.intervals["p99"][1] - bunched.intervals["p99"][0] > high - low


def test_the_interval_of_very_many_gaps_allows_for_the_width_of_a_bucket(tmp_path: Path) -> None:
    itl_s = 0.0100001
    interval = (
        measured(tmp_path, [served(d, itl_s=itl_s) for d in even(20, 10)]).total.metrics["itl_s"].intervals["p50"]
    )
    assert interval is not None
    assert interval[0] <= itl_s <= interval[1]
    assert interval[1] - interval[0] <= 0.002 * itl_s


def test_a_quantile_of_gaps_that_rests_on_one_answer_has_no_interval(tmp_path: Path) -> None:
    """Answers differ in pace and are even in themselves: the slowest of 200 has all of the gaps beyond p99.5."""
    paces_s = 0.01 + 1e-4 * np.random.default_rng(2).permutation(200)
    answers = [served(due_s, itl_s=float(s), tokens=101) for due_s, s in zip(even(20, 10), paces_s, strict=True)]
    itl = measured(tmp_path, answers).total.metrics["itl_s"]
    assert itl.n == 20_000
    assert itl.p999 is not None and itl.intervals["p999"] is None
    assert itl.intervals["p50"] is not None


class RecordsInMemory:
    """A run of which only the arrivals of tokens are asked."""

    def __init__(self, gaps_s: list[np.ndarray]) -> None:
        chunks = [(np.concatenate([[0.0], np.cumsum(gaps)]) * 1e9).astype(np.int64) for gaps in gaps_s]
        self._batch = pa.record_batch(
            {
                "request_id": pa.array(np.arange(len(chunks), dtype=np.uint64)),
                "scheduled_ns": pa.array(np.arange(len(chunks))),
                "chunk_ns": pa.array(chunks, type=pa.list_(pa.int64())),
            }
        )

    def record_batches(self, columns: tuple[str, ...]) -> list[pa.RecordBatch]:
        return [self._batch.select(list(columns))]


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
def test_the_interval_of_the_gaps_covers_as_often_as_it_says(q: float) -> None:
    """Gaps of one answer share a pace: log-normal with a mean of their own. Truth from the mixture."""
    rng = np.random.default_rng(13)
    truth_s = 0.01 * np.exp(math.sqrt(0.2**2 + 0.3**2) * NormalDist().inv_cdf(q))
    known, covered = 0, 0
    for _ in range(100):
        paces = rng.normal(0, 0.2, 300)
        run = RecordsInMemory([0.01 * np.exp(pace + rng.normal(0, 0.3, rng.integers(20, 60))) for pace in paces])
        digest = digest_gaps(run, np.arange(300, dtype=np.uint64), np.zeros(300, int), 1, (q,))[0]  # type: ignore
        interval = digest.intervals[q]
        known += interval is not None
        covered += interval is not None and interval[0] <= truth_s <= interval[1]
    assert known == 100
    assert covered >= 90


arrivals = st.lists(st.lists(st.integers(0, 10**9), max_size=12).map(sorted), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(arrivals, st.data())
def test_gaps_are_those_of_each_answer_alone(tmp_path_factory, chunks: list[list[int]], data: st.DataObject) -> None:
    groups = [data.draw(st.integers(-1, 1)) for _ in chunks]
    answers = [
        Answer(1.0, 1.0, [1.0 + c / 1e9 for c in chunk], status="ok" if chunk else "http_error") for chunk in chunks
    ]
    view = build_load(tmp_path_factory.mktemp("gaps") / "run", [load_stage()], answers)
    ids = np.array([i for i, group in enumerate(groups) if group >= 0], dtype=np.uint64)
    group = np.array([g for g in groups if g >= 0], dtype=int)
    digests = digest_gaps(view.run, ids, group, 2, (0.5,))
    for number, digest in enumerate(digests):
        mine = [np.diff(c) for c, g in zip(chunks, groups, strict=True) if g >= 0 and (number == 2 or g == number)]
        gaps_s = np.concatenate([np.empty(0), *mine]) / 1e9
        assert digest.histogram.n == len(gaps_s)
        if len(gaps_s):
            assert digest.histogram.mean == pytest.approx(gaps_s.mean(), abs=1e-8)
            assert digest.histogram.quantile(0.5) == pytest.approx(np.quantile(gaps_s, 0.5), rel=5e-4, abs=1.1e-6)


def test_outcomes_are_in_the_order_in_which_they_were_due(tmp_path: Path) -> None:
    view = build_load(tmp_path / "run", [load_stage()], [served(due_s) for due_s in (3.0, 1.0, 2.0)])
    outcomes = read_outcomes(view)
    assert outcomes.scheduled_s.tolist() == [1.0, 2.0, 3.0]
    assert outcomes.request_id.tolist() == [1, 2, 0]


# -- classes -----------------------------------------------------------------------------------------------------------

CHAT_SLO = "chat: ttft p95 < 100ms"


def test_each_class_has_its_counts_latencies_and_its_own_slos(tmp_path: Path) -> None:
    answers = [
        *(served(0.1 * i, ttft_s=0.05, fields={"class_id": 0}) for i in range(100)),
        *(served(0.1 * i + 0.05, ttft_s=0.3, fields={"class_id": 1}) for i in range(50)),
    ]
    slos = parse_slos([CHAT_SLO, "rag: ttft p95 < 200ms", "ttft p50 < 100ms"])
    view = build_load(tmp_path / "run", [load_stage()], answers, classes=("chat", "rag", "idle"), slos=slos)
    chat, rag = measure(view).classes
    assert (chat.name, chat.tally.completed, rag.name, rag.tally.completed) == ("chat", 100, "rag", 50)
    assert chat.tally.metrics["ttft_s"].p50 == pytest.approx(0.05)
    assert rag.tally.metrics["ttft_s"].p50 == pytest.approx(0.3)
    assert [(each.slo, each.met, each.counted, each.kept) for each in chat.slos] == [(CHAT_SLO, 100, 100, True)]
    assert [(each.met, each.counted, each.kept) for each in rag.slos] == [(0, 50, False)]
    overall = {each.slo: (each.met, each.counted) for each in measure(view).slos}
    assert overall == {"ttft p50 < 100ms": (100, 150), "errors < 1%": (150, 150)}


def test_a_lost_request_is_lost_to_its_class(tmp_path: Path) -> None:
    answers = [
        served(0.1, fields={"class_id": 0}),
        served(0.2, fields={"class_id": 1}),
        served(0.3, fields={"class_id": 1}, recorded=False),
    ]
    view = build_load(tmp_path / "run", [load_stage()], answers, classes=("chat", "rag"))
    chat, rag = measure(view).classes
    assert (chat.tally.lost, rag.tally.lost, rag.tally.offered) == (0, 1, 2)


def test_a_run_of_one_class_has_no_classes_to_compare(tmp_path: Path) -> None:
    slos = parse_slos([CHAT_SLO])
    view = build_load(tmp_path / "run", [load_stage()], [served(0.1)], classes=("chat",), slos=slos)
    found = measure(view)
    assert found.classes == ()
    assert [each.slo for each in found.slos] == [CHAT_SLO, "errors < 1%"]
