"""Workloads of several classes: how a plan composes them, and what their schedules keep to."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.plan import (
    ClassSpec,
    ClosedStage,
    JointSpec,
    LengthSpec,
    OpenStage,
    Plan,
    PrefixSpec,
    SessionsStage,
    WorkloadSpec,
    build_plan,
)
from pinchpoint.schedule import AFTER, UNSHARED, Schedule
from pinchpoint.workload.classes import Traffic, cuts, resolve
from pinchpoint.workload.library import presets
from pinchpoint.workload.schedule import Scheduler

SHORT = LengthSpec(40, 0.3, 16, 120)


def traffic(*classes: ClassSpec, context_tokens: int | None = None) -> Traffic:
    return resolve(Plan("http://h", 1, workload=WorkloadSpec(classes=classes)), context_tokens)


def one(**keys: object) -> ClassSpec:
    return ClassSpec(**{"input_tokens": SHORT, "output_tokens": SHORT, **keys})  # pyright: ignore[reportArgumentType]


def talkers(turns: str = "geometric:4", think: str = "exponential:2s") -> Traffic:
    return traffic(one(name="talk", turns=turns, think=think))


def opened(found: Traffic, rate_rps: float = 50, duration_s: float = 400, seed: int = 1) -> Schedule:
    return Scheduler(seed, found).stage(0, OpenStage(rate_rps=rate_rps, duration_s=duration_s)).schedule


# -- composing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_every_preset_resolves_says_its_source_and_fits_a_context_of_eight_thousand(name: str) -> None:
    preset = presets()[name]
    assert preset.summary and preset.stresses and preset.source
    for found in resolve(Plan("http://h", 1, workload=WorkloadSpec(name)), 8192).classes:
        longest = found.input_tokens.max + (found.output_tokens.max if found.output_tokens else 0)
        assert longest + found.system_tokens <= 8192


def test_a_class_takes_its_preset_and_changes_what_is_given() -> None:
    found = traffic(ClassSpec(preset="chat", name="ours", input_tokens=440, weight=2.0, slos=("ttft p95 < 1s",)))
    (ours,) = found.classes
    chat = presets()["chat"].classes[0]
    assert (ours.name, ours.weight, ours.slos) == ("ours", 2.0, ("ttft p95 < 1s",))
    assert ours.input_tokens == LengthSpec(440, 0.5, 64, 2048)
    assert ours.output_tokens == chat.output_tokens


@pytest.mark.parametrize("api", ["custom", "plugin:mine"])
def test_the_api_that_a_preset_names_is_not_that_of_a_service_of_ones_own(api: str) -> None:
    plan = Plan("http://h", 1, api=api, workload=WorkloadSpec("embeddings"))
    assert [one.api for one in resolve(plan, None).classes] == [None]
    classes = (ClassSpec(preset="embeddings"), ClassSpec(preset="embeddings", name="theirs", api="embeddings"))
    found = resolve(msgspec.structs.replace(plan, workload=WorkloadSpec(classes=classes)), None)
    assert [one.api for one in found.classes] == [None, "embeddings"]


def test_workloads_of_stages_get_ids_after_those_of_the_plan() -> None:
    plan = build_plan(
        {
            "url": "http://h",
            "seed": 1,
            "workload": {"preset": "mixed"},
            "workloads": {"own": {"classes": [{"preset": "chat-short", "name": "tiny"}]}},
            "stages": [
                {"kind": "closed", "concurrency": 1, "requests": 2, "workload": "own"},
                {"kind": "closed", "concurrency": 1, "requests": 2},
                {"kind": "closed", "concurrency": 1, "requests": 2, "workload": "embeddings"},
            ],
        }
    )
    found = resolve(plan, None)
    mixed = len(presets()["mixed"].classes)
    assert found.mix(None) == tuple(range(mixed))
    assert found.mix("own") == (mixed,) and found.mix("embeddings") == (mixed + 1,)
    assert [found.classes[mixed].name, found.classes[mixed + 1].name] == ["tiny", "embeddings"]
    assert found.classes[mixed + 1].output_tokens is None


def test_classes_of_one_name_are_told_apart() -> None:
    found = traffic(ClassSpec(preset="chat"), ClassSpec(preset="chat"))
    assert len({each.name for each in found.classes}) == 2


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"preset": "chess"}, r"workload: classes\[0\]: there is no workload 'chess'; choose from chat"),
        ({"preset": "mixed"}, "'mixed' is itself a mix"),
        ({}, "input_tokens is missing"),
        ({"preset": "chat", "turns": "often"}, "the count is 'often'"),
        ({"preset": "chat", "think": "a while"}, "'a while' is not a duration"),
        ({"preset": "chat", "weight": 0}, "weight is 0; it must be a number above 0"),
        ({"preset": "chat", "slos": ["quick"]}, "'quick' is not an SLO"),
        ({"preset": "embeddings", "turns": 3}, "a conversation needs answers"),
        ({"preset": "chat", "prefix": {"tokens": 10, "ratio": 2.0}}, "a ratio from 0 to 1"),
        ({"joint": {"input_tokens": [5, 4], "output_tokens": [[1, 2]]}}, "in ascending order"),
        ({"preset": "chat", "images": {"width": 0}}, "pixels"),
    ],
)
def test_what_cannot_be_resolved_says_where_and_why(keys: dict[str, object], says: str) -> None:
    plan = build_plan({"url": "http://h", "seed": 1, "workload": {"classes": [keys]}})
    with pytest.raises(UsageError, match=says):
        resolve(plan, None)


def test_an_unknown_workload_of_a_stage_is_named_with_its_place() -> None:
    stage = {"kind": "closed", "concurrency": 1, "requests": 2, "workload": "lunch"}
    with pytest.raises(UsageError, match=r"stages\[0\].workload: there is no workload 'lunch'"):
        resolve(build_plan({"url": "http://h", "seed": 1, "stages": [stage]}), None)


def test_lengths_are_cut_to_the_context_or_refused() -> None:
    (cut,) = resolve(Plan("http://h", 1, workload=WorkloadSpec("summarise")), 2048).classes
    assert cut.output_tokens is not None
    assert cut.input_tokens.max + cut.output_tokens.max <= 2048 - 64
    with pytest.raises(UsageError, match="too small"):
        resolve(Plan("http://h", 1, workload=WorkloadSpec("summarise")), 256)
    with pytest.raises(UsageError, match="choose from"):
        resolve(Plan("http://h", 1, workload=WorkloadSpec("chess")), None)


# -- schedules ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(weights=st.lists(st.floats(0.5, 8), min_size=2, max_size=5), seed=st.integers(0, 1000))
def test_classes_come_in_proportion_to_their_weights(weights: list[float], seed: int) -> None:
    found = traffic(*(one(name=f"c{i}", weight=weight) for i, weight in enumerate(weights)))
    schedule = opened(found, seed=seed)
    shares = np.bincount(schedule.class_id, minlength=len(weights)) / len(schedule)
    expected = np.array(weights) / sum(weights)
    assert np.all(np.abs(shares - expected) < 5 * np.sqrt(expected / len(schedule)))


def test_a_mix_changes_no_arrival() -> None:
    plain, mixed = opened(traffic(one())), opened(traffic(one(), one(name="b"), one(name="c", turns=4, think="1s")))
    assert np.array_equal(plain.offset_ns, mixed.offset_ns)


@settings(max_examples=15, deadline=None)
@given(mean=st.floats(1.5, 8), think_s=st.floats(0, 5), seed=st.integers(0, 1000))
def test_conversations_keep_rate_turns_and_think_time_together(mean: float, think_s: float, seed: int) -> None:
    found = talkers(f"geometric:{mean}", f"exponential:{think_s:.3f}s")
    schedule = opened(found, seed=seed)
    plain = opened(traffic(one()), seed=seed)
    assert np.array_equal(schedule.offset_ns, plain.offset_ns)  # the rate, and every arrival
    order = np.lexsort((schedule.turn, schedule.session_id))
    session, turn, due_ns = (each[order] for each in (schedule.session_id, schedule.turn, schedule.offset_ns))
    later = turn > 0
    assert np.all(session[1:][later[1:]] == session[:-1][later[1:]])  # no turn is missing
    pauses_s = np.diff(due_ns)[later[1:]] / 1e9
    # To the next arrival it may take longer than was drawn, at 50 requests per second not by much.
    assert pauses_s.mean() == pytest.approx(think_s, rel=0.12, abs=0.15)
    # Sessions that begin near the end have no time for all of their turns.
    starts_ns = due_ns[~later]
    sizes = np.diff(np.append(np.flatnonzero(~later), len(session)))
    whole = starts_ns < 250e9
    assert sizes[whole].mean() == pytest.approx(mean, rel=0.12)


def test_a_closed_loop_plays_whole_conversations_with_the_think_time_of_the_class() -> None:
    scheduler = Scheduler(1, talkers("4", "2s"))
    load = scheduler.stage(0, ClosedStage(10, duration_s=60, think="1s"), pool=40)
    assert load.schedule.turn.tolist() == [0, 1, 2, 3] * 10
    assert set(load.schedule.offset_ns.tolist()) == {AFTER}
    assert set(load.schedule.think_ns[load.schedule.turn > 0].tolist()) == {2 * 10**9}
    assert set(load.schedule.think_ns[load.schedule.turn == 0].tolist()) == {10**9}
    assert load.think_s == pytest.approx((3 * 2 + 1) / 4)
    more = scheduler.more(0, 5)
    assert more.turn.tolist() == [0, 1, 2, 3] * 2  # a conversation is not cut
    assert not set(more.session_id.tolist()) & set(load.schedule.session_id.tolist())


def test_a_closed_loop_in_one_go_is_the_same_as_in_pieces() -> None:
    found = traffic(one(turns="geometric:3", think="exponential:1s"), one(name="b", weight=2.0))
    whole = Scheduler(1, found).stage(0, ClosedStage(2, duration_s=9), pool=300).schedule
    scheduler = Scheduler(1, found)
    parts = [scheduler.stage(0, ClosedStage(2, duration_s=9), pool=100).schedule]
    while sum(map(len, parts)) < len(whole):
        parts.append(scheduler.more(0, 30))
    for name in ("request_id", "session_id", "turn", "think_ns", "input_tokens", "class_id", "prefix_id"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(joined[: len(whole)], getattr(whole, name)), name


def test_a_stage_of_sessions_takes_turns_and_think_time_of_its_workload_unless_it_gives_its_own() -> None:
    found = talkers("3", "2s")
    own = Scheduler(1, found).stage(0, SessionsStage(rate_rps=5, duration_s=10)).schedule
    assert own.turn.max() == 2 and set(own.think_ns[own.turn > 0].tolist()) == {2 * 10**9}
    given_here = Scheduler(1, found).stage(0, SessionsStage(rate_rps=5, duration_s=10, turns=5, think="1s")).schedule
    assert given_here.turn.max() == 4 and set(given_here.think_ns[given_here.turn > 0].tolist()) == {10**9}
    single = Scheduler(1, traffic(one())).stage(0, SessionsStage(rate_rps=5, duration_s=10)).schedule
    assert single.turn.max() == 3


def test_shared_beginnings_come_in_the_stated_ratio_and_by_zipfs_law() -> None:
    prefix = PrefixSpec(tokens=10, pool=4, ratio=0.6, skew=1.0)
    schedule = opened(traffic(one(prefix=prefix)), rate_rps=100)
    shared = schedule.prefix_id[schedule.prefix_id != UNSHARED]
    assert len(shared) / len(schedule) == pytest.approx(0.6, abs=0.02)
    shares = np.bincount(shared, minlength=4) / len(shared)
    assert shares == pytest.approx(np.array([1, 1 / 2, 1 / 3, 1 / 4]) / (25 / 12), abs=0.02)


def test_a_conversation_keeps_its_shared_beginning() -> None:
    prefix = PrefixSpec(tokens=10, pool=8)
    schedule = opened(traffic(one(turns=4, think="1s", prefix=prefix)), duration_s=60)
    for session in np.unique(schedule.session_id)[:50]:
        assert len(set(schedule.prefix_id[schedule.session_id == session].tolist())) == 1


def test_joint_lengths_keep_their_quantiles_and_their_dependence() -> None:
    joint = JointSpec((10, 100, 1000), ((5, 6, 7), (50, 60, 70)))
    schedule = opened(traffic(ClassSpec(name="traced", joint=joint)), rate_rps=100)
    low, high = schedule.input_tokens < 99, schedule.input_tokens > 101
    assert np.median(schedule.input_tokens) == pytest.approx(100, rel=0.05)
    assert schedule.max_output_tokens[low].max() <= 7 and schedule.max_output_tokens[high].min() >= 50
    assert np.median(schedule.max_output_tokens[low]) == pytest.approx(6, abs=0.5)


def test_nothing_is_generated_for_embeddings() -> None:
    found = resolve(Plan("http://h", 1, workload=WorkloadSpec("embeddings")), None)
    assert set(opened(found).max_output_tokens.tolist()) == {0}


def test_what_is_cut_to_the_context_is_told() -> None:
    plan = build_plan({"url": "http://x", "seed": 1, "workload": {"preset": "long-context"}})
    (sentence,) = cuts(resolve(plan, None), resolve(plan, 8192))
    assert "class long-context" in sentence and "8192" in sentence and "120000" in sentence
    assert cuts(resolve(plan, None), resolve(plan, None)) == []


@pytest.mark.parametrize(
    "keys",
    [{"weight": float("nan")}, {"weight": float("inf")}, {"prefix": {"tokens": 10, "skew": float("nan")}}],
)
def test_numbers_that_are_none_are_refused(keys: dict) -> None:
    with pytest.raises(UsageError, match=r"weight is|skew is"):
        resolve(build_plan({"url": "http://x", "seed": 1, "workload": {"classes": [{"preset": "chat", **keys}]}}), None)
