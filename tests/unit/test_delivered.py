"""Proof of delivery: what is off is said, and what is as asked is not accused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinchpoint.asked import asked_of
from pinchpoint.delivered import Delivery, delivered
from pinchpoint.model import Stage
from tests.support.load_runs import Answer, build_load, even, load_stage, poisson, served


def delivery(path: Path, answers: list[Answer], *stages: Stage, plan: dict[str, Any] | None = None) -> Delivery:
    return delivered(build_load(path / "run", stages or [load_stage()], answers, plan=plan))


def flat(rate_rps: float, arrivals: str, length_s: float = 10.0) -> Stage:
    return load_stage(rate_rps=rate_rps, arrivals=arrivals, profile="flat", length_s=length_s)


def test_a_load_that_went_as_asked_raises_no_flag(tmp_path: Path) -> None:
    answers = [served(due_s, lag_s=0.0001) for due_s in poisson(30, 20)]
    found = delivery(tmp_path, answers, flat(30, "poisson", 20))
    assert found.flags == found.notes == ()
    (arrivals,) = found.arrivals
    assert arrivals.asked == pytest.approx(600)
    assert arrivals.offered == arrivals.sent == len(answers)
    assert arrivals.gap_distance == arrivals.backlog_max == 0
    assert arrivals.late_p99_s == pytest.approx(0.0001)
    assert arrivals.scheduled_p is not None and arrivals.scheduled_p > 0.01
    assert arrivals.sent_p == pytest.approx(arrivals.scheduled_p)
    assert found.prompt_lengths is not None and found.prompt_lengths.ratio == 1.0
    assert found.cached_ratio == 0.0


def test_every_second_is_accounted_for(tmp_path: Path) -> None:
    answers = [
        *(served(due_s, ttft_s=0.5, itl_s=0.05, tokens=11) for due_s in even(10, 3)),  # each lasts a second
        Answer(3.2, 3.2, status="rejected", fields={"http_status": 429}),
        Answer(3.3, 3.3, status="transport_error"),
        Answer(3.4, None, status="dropped"),
        Answer(3.5, None, recorded=False),
    ]
    seconds = delivery(tmp_path, answers, load_stage(length_s=4)).per_second
    assert seconds.bin_s == 1
    assert seconds.offered == [10, 10, 10, 4]
    assert seconds.issued == [10, 10, 10, 2]
    assert seconds.accepted == [5, 10, 10, 5]
    assert seconds.completed == [0, 10, 10, 10]
    assert seconds.rejected == [0, 0, 0, 1]
    assert seconds.failed == [0, 0, 0, 1]
    assert seconds.unsent == [0, 0, 0, 2]
    assert seconds.in_flight == pytest.approx([5.5, 10, 10, 4.5])
    assert sum(seconds.offered) == len(answers)


def test_a_long_run_has_a_table_that_stays_short(tmp_path: Path) -> None:
    seconds = delivery(tmp_path, [served(due_s) for due_s in even(0.01, 20_000)], load_stage(length_s=20_000))
    assert seconds.per_second.bin_s == 10
    assert len(seconds.per_second.offered) == 2000
    assert sum(seconds.per_second.completed) == 200


def test_requests_that_were_never_sent_are_flagged(tmp_path: Path) -> None:
    answers = [served(due_s) for due_s in even(10, 10)]
    answers += [Answer(1.0, None, status="dropped"), Answer(2.0, None, recorded=False)]
    flags = " / ".join(delivery(tmp_path, answers, flat(10, "constant")).flags)
    assert "1 request never left" in flags
    assert "1 request left no record" in flags


def test_a_client_that_stopped_for_two_seconds_is_caught(tmp_path: Path) -> None:
    """20 req/s; from 8 s to 10 s nothing leaves, then 40 at once."""
    answers = [served(due_s, lag_s=max(0.0, 10.0 - due_s) if due_s > 8 else 0.0) for due_s in poisson(20, 20)]
    found = delivery(tmp_path, answers, flat(20, "poisson", 20))
    assert found.arrivals[0].backlog_max == pytest.approx(40, abs=15)
    assert found.arrivals[0].late_max_s == pytest.approx(2.0, abs=0.3)
    assert any("due and not yet sent" in flag for flag in found.flags)


def test_arrivals_that_were_bunched_on_a_tick_are_caught(tmp_path: Path) -> None:
    """A client that looks every 50 ms sends 40 req/s in clumps, though none is later than that."""
    due = poisson(40, 20)
    answers = [served(due_s, lag_s=np.ceil(due_s * 20) / 20 - due_s) for due_s in due]
    found = delivery(tmp_path, answers, flat(40, "poisson", 20))
    (arrivals,) = found.arrivals
    assert arrivals.gap_distance is not None and arrivals.gap_distance > 0.2
    assert arrivals.sent_p is not None and arrivals.sent_p < 1e-6
    assert found.flags


@pytest.mark.parametrize("arrivals", ["constant", "bursts:5"])
def test_jitter_below_a_millisecond_changes_no_process(tmp_path: Path, arrivals: str) -> None:
    rng = np.random.default_rng(4)
    due = even(20, 10) if arrivals == "constant" else np.repeat(even(4, 10), 5)
    found = delivery(tmp_path, [served(s, lag_s=rng.uniform(0, 0.0004)) for s in due], flat(20, arrivals))
    assert found.flags == ()
    assert found.arrivals[0].scheduled_p is None, "a fixed gap is no law that a sample could fit"


def test_a_few_milliseconds_at_thirty_a_second_are_no_backlog(tmp_path: Path) -> None:
    answers = [served(due_s, lag_s=0.006 if i % 50 < 3 else 0.0) for i, due_s in enumerate(poisson(30, 10))]
    assert delivery(tmp_path, answers, flat(30, "poisson")).flags == ()


def test_a_schedule_of_another_process_than_asked_shows_in_its_p(tmp_path: Path) -> None:
    answers = [served(due_s) for due_s in even(20, 10)]
    found = delivery(tmp_path, answers, flat(20, "poisson"))
    assert found.arrivals[0].scheduled_p is not None and found.arrivals[0].scheduled_p < 1e-6


@pytest.mark.parametrize(
    ("spec", "rate_rps"),
    [
        ({"kind": "open", "rate_rps": 7.0}, lambda t: 7.0),
        ({"kind": "ramp", "from_rps": 2.0, "to_rps": 10.0, "duration_s": 40.0}, lambda t: min(2 + t / 5, 10.0)),
        ({"kind": "steps", "rates_rps": [3.0, 0.0, 9.0], "each_s": 20.0}, lambda t: (3, 0, 9, 9, 9)[int(t // 20)]),
        (
            {"kind": "steps", "rates_rps": [3.0, 5.0], "each_s": None, "durations_s": [10.0, 50.0]},
            lambda t: 3 if t < 10 else 5,
        ),
        (
            {"kind": "spike", "base_rps": 2.0, "peak_rps": 20.0, "at_s": 15.0, "for_s": 5.0},
            lambda t: 20 if 15 <= t < 20 else 2,
        ),
        (
            {"kind": "sine", "mean_rps": 8.0, "amplitude_ratio": 0.5, "period_s": 30.0},
            lambda t: 8 * (1 + 0.5 * np.sin(2 * np.pi * t / 30)),
        ),
        ({"kind": "on-off", "rate_rps": 6.0, "on_s": 4.0, "off_s": 8.0}, lambda t: 6 if t % 12 < 4 else 0),
    ],
)
def test_the_cumulated_rate_is_the_integral_of_the_rate(spec: dict[str, Any], rate_rps) -> None:
    asked = asked_of([load_stage(arrivals="poisson", length_s=60)], {"stages": [spec]})[0]
    step_s = 0.001
    fine_s = np.arange(0, 60, step_s)
    integral = np.concatenate([[0], np.cumsum([rate_rps(t + step_s / 2) * step_s for t in fine_s])])
    at = np.arange(0, 60001, 500)
    assert asked.cumulated(at * step_s) == pytest.approx(integral[at], abs=0.02)


def test_a_ramp_is_poisson_on_its_own_time_axis(tmp_path: Path) -> None:
    spec = {"kind": "ramp", "from_rps": 2.0, "to_rps": 60.0, "duration_s": 20.0}
    unit = np.cumsum(np.random.default_rng(6).exponential(1, 700))
    due_s = (-2 + np.sqrt(4 + 2 * 2.9 * unit)) / 2.9  # inverse of 2 t + 2.9 t^2 / 2
    due_s = due_s[due_s < 20]
    stage = load_stage(arrivals="poisson", profile="ramp", length_s=20)
    (found,) = delivery(tmp_path, [served(s) for s in due_s], stage, plan={"stages": [spec]}).arrivals
    assert found.asked == pytest.approx(620)
    assert found.scheduled_p is not None and found.scheduled_p > 0.01
    (flat_fit,) = delivery(tmp_path / "flat", [served(s) for s in due_s], flat(31, "poisson", 20)).arrivals
    assert flat_fit.scheduled_p is not None and flat_fit.scheduled_p < 0.01


def test_gamma_gaps_are_held_against_their_own_law(tmp_path: Path) -> None:
    gaps_s = np.random.default_rng(7).gamma(0.25, 4 / 20, 400)
    due_s = np.cumsum(gaps_s)
    answers = [served(s) for s in due_s]
    length_s = float(due_s[-1]) + 0.1
    (bursty,) = delivery(tmp_path, answers, flat(20, "gamma:2", length_s)).arrivals
    (plain,) = delivery(tmp_path / "plain", answers, flat(20, "poisson", length_s)).arrivals
    assert bursty.scheduled_p is not None and bursty.scheduled_p > 0.01
    assert plain.scheduled_p is not None and plain.scheduled_p < 1e-6


def test_a_plan_that_does_not_tell_leaves_the_law_open() -> None:
    stage = load_stage(arrivals="poisson")
    assert asked_of([stage], {"stages": [{"kind": "replay", "file": "x.csv"}]}) == {}
    assert asked_of([stage], {"stages": [{"kind": "ramp", "from_rps": 1.0}]}) == {}
    assert asked_of([stage], {}) == {}


def closed_loop(users: int, rounds: int, pause_s: float, first_s: float = 0.0) -> list[Answer]:
    """Each answer lasts a second; user u comes in at first_s * u."""
    answers = []
    for user in range(users):
        for turn in range(rounds):
            at_s = first_s * user + turn * (1.0 + pause_s)
            answers.append(served(at_s, ttft_s=0.5, itl_s=0.5 / 19, closed=True))
    return answers


def test_users_that_are_all_there_are_full(tmp_path: Path) -> None:
    stage = load_stage(concurrency=20)
    found = delivery(tmp_path, closed_loop(20, 10, 0.0001, first_s=0.005), stage)
    (users,) = found.concurrency
    assert (users.asked, users.comparable) == (20, True)
    assert users.mean == pytest.approx(20, rel=0.01)
    assert users.full_ratio is not None and users.full_ratio > 0.99
    assert users.reached_s == pytest.approx(0.095)
    assert found.flags == ()


def test_users_that_are_too_few_are_told(tmp_path: Path) -> None:
    stage = load_stage(concurrency=20, name="twenty")
    (flag,) = delivery(tmp_path / "a", closed_loop(15, 10, 0.0), stage).flags
    assert flag.startswith("never were 20 requests in flight in twenty; 15 on average")
    (flag,) = delivery(tmp_path / "b", closed_loop(20, 5, 1.0), stage).flags
    assert "only" in flag and "of the time" in flag


def test_users_that_think_are_not_accused(tmp_path: Path) -> None:
    found = delivery(tmp_path, closed_loop(20, 5, 1.0), load_stage(concurrency=20, think_s=1.0))
    assert found.flags == ()
    assert not found.concurrency[0].comparable


def test_a_closed_loop_without_a_single_send_has_no_concurrency(tmp_path: Path) -> None:
    (users,) = delivery(tmp_path, [], load_stage(concurrency=3)).concurrency
    assert (users.mean, users.full_ratio, users.reached_s) == (None, None, None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"input_tokens": 110}, "prompts had 110 tokens on average where 100 were asked for"),
        (
            {"output_tokens": 12},
            "answers had 12 tokens on average where 20 were asked for: the model ended",
        ),
        ({"output_tokens": 30}, "did not keep to the limit"),
        ({"cached_tokens": 60}, "a cache answered 60 % of the prompt tokens"),
    ],
)
def test_lengths_and_caches_that_are_off_are_told(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    (flag,) = delivery(tmp_path, [served(due_s, fields=fields) for due_s in even(10, 10)]).flags
    assert says in flag


def test_what_the_service_does_not_count_is_not_proven(tmp_path: Path) -> None:
    fields = {"input_tokens": None, "cached_tokens": None, "token_source": "events"}
    found = delivery(tmp_path, [served(due_s, fields=fields) for due_s in even(10, 10)])
    assert (found.flags, found.prompt_lengths, found.output_lengths, found.cached_ratio) == ((), None, None, None)
    assert len(found.notes) == 3


def test_an_empty_run_proves_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    found = delivery(tmp_path, [], load_stage(kind="warmup"))
    assert (found.arrivals, found.concurrency, found.flags) == ((), (), ())
    assert delivery(tmp_path / "b", []).per_second.offered == [0] * 10


@pytest.mark.parametrize(("moved", "flagged"), [(1, False), (6, True)])
def test_one_gap_of_a_few_out_of_place_is_an_accident(tmp_path: Path, moved: int, flagged: bool) -> None:
    """Twelve requests at 10/s, of which the first few leave 20 ms late."""
    answers = [
        served(due_s, lag_s=0.02 if i in range(1, 2 * moved, 2) else 0.0) for i, due_s in enumerate(even(10, 1.2))
    ]
    found = delivery(tmp_path, answers, flat(10, "constant", 1.2))
    assert any("did not leave at the gaps" in flag for flag in found.flags) == flagged


def test_a_load_into_which_no_arrival_fell_says_so(tmp_path: Path) -> None:
    assert "no arrival fell into the load" in delivery(tmp_path, [], flat(0.001, "poisson", 2)).flags[0]


def test_lengths_that_are_off_name_their_class_even_where_classes_make_up_for_each_other(tmp_path: Path) -> None:
    answers = [
        *(served(0.1 * i, fields={"class_id": 0, "input_tokens": 110}) for i in range(100)),
        *(served(0.1 * i + 0.05, fields={"class_id": 1, "input_tokens": 90}) for i in range(100)),
    ]
    found = delivered(build_load(tmp_path / "run", [load_stage()], answers, classes=("chat", "rag")))
    assert found.prompt_lengths is not None and found.prompt_lengths.ratio == 1.0
    assert [(each.name, each.prompt_lengths and each.prompt_lengths.ratio) for each in found.class_lengths] == [
        ("chat", pytest.approx(1.1)),
        ("rag", pytest.approx(0.9)),
    ]
    assert [flag for flag in found.flags if "tokens on average" in flag] == [
        "prompts of chat had 110 tokens on average where 100 were asked for",
        "prompts of rag had 90 tokens on average where 100 were asked for",
    ]
