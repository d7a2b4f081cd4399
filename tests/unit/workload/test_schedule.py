"""Schedules: what a seed fixes, what each stage holds, and how closed loops go on."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.plan import (
    STAGE_REQUESTS_MAX,
    ClosedStage,
    OnOffStage,
    OpenStage,
    Plan,
    RampStage,
    ReplayStage,
    SessionsStage,
    SineStage,
    SpikeStage,
    StageSpec,
    StepsStage,
    WorkloadSpec,
    build_plan,
)
from pinchpoint.schedule import AFTER, NEVER, Schedule, Slots
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.durations import parse_durations
from pinchpoint.workload.lengths import draw_lengths
from pinchpoint.workload.library import presets
from pinchpoint.workload.schedule import STAGE_IDS, Scheduler, check_stages

LENGTHS = resolve(Plan("http://h", 1), None)
MOONCAKE = str(Path(__file__).parents[2] / "data" / "traces" / "mooncake_conversation_60.jsonl.gz")
REPLAY = ReplayStage(file=MOONCAKE, unit="ms", input="input_length", output="output_length")
SPECS: list[StageSpec] = [
    OpenStage(rate_rps=20, duration_s=10),
    OpenStage(rate_rps=20, requests=40, arrivals="bursts:8"),
    RampStage(from_rps=1, to_rps=30, duration_s=10, arrivals="gamma:2"),
    StepsStage(rates_rps=(5, 10), each_s=5, arrivals="constant"),
    SpikeStage(base_rps=2, peak_rps=50, at_s=2, for_s=1, requests=50),
    SineStage(mean_rps=10, amplitude_ratio=0.5, period_s=4, duration_s=10),
    OnOffStage(rate_rps=20, on_s=1, off_s=1, duration_s=10),
    SessionsStage(rate_rps=3, duration_s=10, turns="geometric:3", think="exponential:2s"),
    REPLAY,
    ClosedStage(4, 10, "lognormal:1s:0.5"),
]


def scheduler(seed: int = 1, **keys: object) -> Scheduler:
    return Scheduler(seed, LENGTHS, **keys)  # pyright: ignore


def same(a: Schedule, b: Schedule, *, but: tuple[str, ...] = ()) -> bool:
    names = [name for name in vars(a) if name not in ("stage", *but)]
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def joined(parts: list[Schedule]) -> Schedule:
    names = [name for name in vars(parts[0]) if name != "stage"]
    return Schedule(parts[0].stage, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_a_seed_fixes_a_stage_and_no_stage_depends_on_those_before_it(spec: StageSpec) -> None:
    alone = scheduler().stage(2, spec, pool=50)
    busy = scheduler()
    busy.stage(0, OpenStage(rate_rps=50, duration_s=3), pool=7)
    busy.stage(1, ClosedStage(3, 5.0))
    busy.more(1, 5000)
    after = busy.stage(2, spec, pool=50)
    assert same(alone.schedule, after.schedule, but=("session_id",))
    assert np.array_equal(np.diff(alone.schedule.session_id), np.diff(after.schedule.session_id))
    if spec is not REPLAY:
        assert not same(alone.schedule, scheduler(2).stage(2, spec, pool=50).schedule)
    other = scheduler().stage(3, spec, pool=50).schedule
    if not isinstance(spec, ReplayStage) and getattr(spec, "arrivals", "") not in ("constant", "bursts:8"):
        moving = "think_ns" if isinstance(spec, ClosedStage) else "offset_ns"
        assert not np.array_equal(getattr(alone.schedule, moving), getattr(other, moving))


def test_no_request_and_no_session_has_the_number_of_another() -> None:
    made = scheduler()
    parts = [made.stage(i, spec, pool=20).schedule for i, spec in enumerate(SPECS)] + [made.more(9, 100)]
    ids = np.concatenate([part.request_id for part in parts])
    assert len(np.unique(ids)) == len(ids)
    turns = {(s, t) for part in parts for s, t in zip(part.session_id.tolist(), part.turn.tolist(), strict=True)}
    assert len(turns) == len(ids)
    sessions = [set(part.session_id.tolist()) for part in parts]
    assert sum(map(len, sessions)) == len(set.union(*sessions))
    for i, part in enumerate(parts[:-1]):
        assert part.request_id.tolist() == list(range(i * STAGE_IDS, i * STAGE_IDS + len(part)))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_rows_with_an_instant_are_in_order_and_before_the_end(spec: StageSpec) -> None:
    load = scheduler().stage(0, spec)
    timed = load.schedule.offset_ns[load.schedule.offset_ns != AFTER]
    assert np.all(np.diff(timed) >= 0)
    assert not len(timed) or (timed[0] >= 0 and load.duration_ns is not None and timed[-1] < load.duration_ns)
    assert {getattr(load.schedule, name).dtype.name for name in ("offset_ns", "think_ns", "patience_ns")} == {"int64"}
    assert load.schedule.request_id.dtype.name == "uint64" and load.schedule.turn.dtype.name == "uint16"


def test_steps_of_a_search_differ_in_arrivals_and_not_in_lengths() -> None:
    slow, fast = scheduler().open_loop(0, 5, 10).schedule, scheduler().open_loop(1, 20, 10).schedule
    shared = min(len(slow), len(fast))
    assert np.array_equal(slow.input_tokens[:shared], fast.input_tokens[:shared])
    assert np.array_equal(slow.max_output_tokens[:shared], fast.max_output_tokens[:shared])
    assert not np.array_equal(slow.offset_ns[:shared], fast.offset_ns[:shared])


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6000), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_a_closed_loop_is_the_same_however_it_is_topped_up(blocks: list[int], seed: int) -> None:
    spec = ClosedStage(2, 10.0, "exponential:1s")
    patience = parse_durations("exponential:3s")
    pieces = scheduler(seed, patience=patience)
    first = pieces.stage(1, spec, pool=3).schedule
    parts = joined([first, *(pieces.more(1, block) for block in blocks)])
    whole = scheduler(seed, patience=patience).stage(1, spec, pool=len(parts)).schedule
    assert same(parts, whole)


def test_closed_loops_have_users_and_no_instants() -> None:
    load = scheduler().stage(0, ClosedStage(3, think="500ms", requests=12))
    assert len(load.schedule) == 12 and not load.endless
    assert set(load.schedule.offset_ns.tolist()) == {AFTER}
    assert set(load.schedule.think_ns.tolist()) == {500_000_000}
    assert set(load.schedule.turn.tolist()) == {0}
    assert (load.concurrency, load.think_s, load.arrivals, load.profile, load.duration_ns) == (3, 0.5, "", "", None)
    assert load.slots is not None and load.slots.start_ns.tolist() == [0, 0, 0]
    assert set(load.slots.until_ns.tolist()) == {Slots.NO_END}
    endless = scheduler().stage(0, ClosedStage(3, 5.0), pool=10)
    assert endless.endless and len(endless.schedule) == 10 and endless.duration_ns == 5_000_000_000


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.5, 1000))
def test_a_ramp_of_users_stays_within_half_a_user_of_the_straight_line(begin: int, end: int, length_s: float) -> None:
    slots = scheduler().stage(0, ClosedStage(begin, length_s, to_concurrency=end), pool=1).slots
    assert slots is not None and len(slots.start_ns) == max(begin, end)
    for share in np.linspace(0.001, 0.999, 37):
        t_ns = share * length_s * 1e9
        users = np.sum((slots.start_ns <= t_ns) & (t_ns < slots.until_ns))
        assert users == pytest.approx(begin + (end - begin) * share, abs=0.5 + 1e-6)


def test_sessions_begin_at_the_rate_and_their_turns_wait_for_answers() -> None:
    load = scheduler().stage(0, SessionsStage(rate_rps=5, duration_s=400, turns="geometric:4", think="exponential:2s"))
    rows = load.schedule
    first = rows.turn == 0
    assert np.array_equal(rows.offset_ns != AFTER, first)
    assert first.sum() == pytest.approx(2000, abs=200)
    assert len(rows) / first.sum() == pytest.approx(4, rel=0.1)
    assert set(rows.think_ns[first].tolist()) == {0}
    assert rows.think_ns[~first].mean() == pytest.approx(2e9, rel=0.1)
    for session in np.unique(rows.session_id)[:200]:
        turns = rows.turn[rows.session_id == session]
        assert turns.tolist() == list(range(len(turns)))
    assert load.rate_rps is None and load.arrivals == "poisson" and load.duration_ns == 400 * 10**9
    counted = scheduler().stage(0, SessionsStage(rate_rps=5, sessions=7, turns=3))
    assert len(counted.schedule) == 21 and counted.duration_ns is None


def test_a_replay_brings_its_lengths_and_its_sessions(tmp_path: Path) -> None:
    rows = scheduler().stage(0, REPLAY).schedule
    assert rows.input_tokens[0] == 6758 and rows.max_output_tokens[0] == 500
    (tmp_path / "t.csv").write_text("timestamp,user\n0,a\n1,b\n2,a\n3,a\n")
    looped = ReplayStage(file=str(tmp_path / "t.csv"), session="user", loop=True, requests=6, scale=2)
    again = scheduler().stage(0, looped).schedule
    assert again.turn.tolist() == [0, 0, 1, 2, 0, 0]
    assert again.session_id.tolist()[:4] == [0, 1, 0, 0]
    assert len(set(again.session_id.tolist())) == 4
    assert again.offset_ns.tolist() == [0, 500_000_000, 10**9, 1_500_000_000, 2 * 10**9, 2_500_000_000]
    drawn = scheduler().open_loop(0, 10, 10).schedule.input_tokens[:6]
    assert np.array_equal(again.input_tokens, drawn)


def test_a_count_of_requests_ends_a_stage_with_the_last_of_them() -> None:
    load = scheduler().stage(0, OpenStage(rate_rps=7, requests=33))
    assert len(load.schedule) == 33
    assert load.duration_ns == load.schedule.offset_ns[-1] + 1
    assert (load.rate_rps, load.arrivals, load.profile) == (7, "poisson", "flat")


def test_only_a_rate_that_stays_is_called_the_rate_of_a_stage() -> None:
    for spec in SPECS:
        load = scheduler().stage(0, spec)
        assert (load.rate_rps is not None) == isinstance(spec, OpenStage)
        assert (load.profile == "flat") == isinstance(spec, OpenStage)
        assert bool(load.arrivals) != isinstance(spec, ClosedStage)


def test_patience_is_drawn_for_each_request_and_never_zero() -> None:
    assert set(scheduler().open_loop(0, 10, 10).schedule.patience_ns.tolist()) == {NEVER}
    patient = scheduler(patience=parse_durations("exponential:2s")).open_loop(0, 100, 50).schedule.patience_ns
    assert patient.min() >= 1 and patient.mean() == pytest.approx(2e9, rel=0.1)
    assert set(scheduler(patience=parse_durations("0s")).open_loop(0, 10, 10).schedule.patience_ns.tolist()) == {1}
    plan = build_plan({"url": "http://h", "seed": 1, "patience": "3s"})
    assert set(Scheduler.of(plan, LENGTHS).open_loop(0, 10, 10).schedule.patience_ns.tolist()) == {3 * 10**9}


def test_a_million_requests_take_the_memory_of_their_columns() -> None:
    tracemalloc.start()
    load = scheduler().stage(0, RampStage(from_rps=1e4, to_rps=3e4, duration_s=50, arrivals="gamma:2"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(load.schedule) == pytest.approx(1e6, rel=0.02)
    assert peak_bytes < 200 * len(load.schedule)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"kind": "open", "rate_rps": 1.0, "duration_s": 5.0, "arrivals": "fast"}, r"stages\[1\].arrivals: 'fast'"),
        ({"kind": "closed", "concurrency": 2, "duration_s": 5.0, "think": "long"}, r"stages\[1\].think: 'long'"),
        ({"kind": "sessions", "rate_rps": 1.0, "duration_s": 5.0, "turns": "x"}, r"stages\[1\].turns: 'x'"),
        ({"kind": "sessions", "rate_rps": 1e4, "duration_s": 5e3, "turns": 9}, r"stages\[1\]: about 4.5e\+08 requests"),
        ({"kind": "replay", "file": "none.csv"}, r"stages\[1\]: cannot read the trace none.csv"),
        ({"kind": "replay", "file": MOONCAKE, "start_s": 1e6}, r"stages\[1\]: .*leaves nothing"),
        ({"kind": "open", "rate_rps": 1.0, "duration_s": 5.0, "arrivals": "bursts:50"}, r"stages\[1\]: a burst of 50"),
        ({"kind": "ramp", "from_rps": 1e5, "to_rps": 1e6, "duration_s": 1e4}, f"more than the {STAGE_REQUESTS_MAX}"),
    ],
)
def test_stages_that_cannot_be_carried_out_are_told_before_the_run(stage: dict[str, object], says: str) -> None:
    good = {"kind": "open", "rate_rps": 1.0, "duration_s": 5.0}
    check_stages(build_plan({"url": "http://h", "seed": 1, "stages": [good]}))
    with pytest.raises(UsageError, match=says):
        check_stages(build_plan({"url": "http://h", "seed": 1, "stages": [good, stage]}))
    with pytest.raises(UsageError, match="patience: 'short'"):
        check_stages(build_plan({"url": "http://h", "seed": 1, "patience": "short"}))


@pytest.mark.parametrize("patience", ["0s", "constant:0", "exponential:0ms"])
def test_a_patience_of_nothing_is_refused_and_a_think_time_of_nothing_is_not(patience: str) -> None:
    stage = {"kind": "closed", "concurrency": 1, "duration_s": 5.0, "think": patience}
    check_stages(build_plan({"url": "http://h", "seed": 1, "stages": [stage]}))
    with pytest.raises(UsageError, match=f"patience: '{patience}' is no time at all"):
        check_stages(build_plan({"url": "http://h", "seed": 1, "patience": patience}))


def test_lengths_keep_their_bounds_and_where_these_are_wide_their_mean() -> None:
    for preset in presets():
        for one in resolve(Plan("http://h", 1, workload=WorkloadSpec(preset)), None).classes:
            for law in (one.input_tokens, one.output_tokens):
                if law is None:
                    continue
                drawn = draw_lengths(law, 20_000, np.random.default_rng(1))
                assert drawn.min() >= law.min and drawn.max() <= law.max
                assert drawn.mean() == pytest.approx(law.mean, rel=0.12), preset
