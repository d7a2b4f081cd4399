"""Learning from recorded requests: what a plan makes is found again, and unseen requests are met."""

import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from pinchpoint.errors import UsageError
from pinchpoint.plan import Plan, build_plan, read_plan
from pinchpoint.schedule import Schedule
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.fit import Fitted, fit, joint_of, quantiles, recorded, scaled
from pinchpoint.workload.fit_plan import fit_plan
from pinchpoint.workload.fitness import ks, plan_tables, plane_distance, quality, rank_correlation
from pinchpoint.workload.rates import pieces_of
from pinchpoint.workload.schedule import Scheduler
from pinchpoint.workload.sharing import block_paths
from pinchpoint.workload.traces.read import read_log
from pinchpoint.workload.traces.table import RequestLog

DATA = Path(__file__).parents[2] / "data" / "traces"
BLOCK = 16


def made_by(plan: Plan) -> Schedule:
    return Scheduler.of(plan, resolve(plan, None)).stage(0, plan.stages[0]).schedule


def plan_of(stage: dict, one: dict, seed: int = 7) -> Plan:
    return build_plan(
        {"url": "http://127.0.0.1", "seed": seed, "workload": {"classes": [one]}, "stages": [{"kind": "open", **stage}]}
    )


def log_of(made: Schedule, *, system: int = 0, prefix: int = 0) -> RequestLog:
    """What a service with a prefix cache would have logged of a schedule: instants, lengths of whole prompts and their
    blocks."""
    history: dict[int, list[str]] = {}
    blocks, inputs = [], []
    for i in range(len(made)):
        session = int(made.session_id[i])
        said = history.setdefault(session, ["system"] * system)
        message = int(made.input_tokens[i])
        shared = min(prefix, message - 1) if made.prefix_id[i] >= 0 and not made.turn[i] else 0
        said += [f"p{made.prefix_id[i]}"] * shared + [f"m{i}"] * (message - shared)
        inputs.append(len(said))
        blocks.append([(k, *said[k : k + BLOCK]) for k in range(0, len(said), BLOCK)])
        said += [f"a{i}"] * int(made.max_output_tokens[i])
    ids: dict = {}
    numbered = [[ids.setdefault(block, len(ids)) for block in one] for one in blocks]
    outputs = made.max_output_tokens.astype(np.int64)
    return RequestLog("made", made.offset_ns - made.offset_ns[0], np.array(inputs), outputs, None, numbered, BLOCK)


def bare_log(t_s: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> RequestLog:
    return RequestLog("made", np.rint((t_s - t_s[0]) * 1e9).astype(np.int64), inputs, outputs)


@settings(max_examples=12, deadline=None)
@given(
    cv=st.sampled_from([0.4, 0.7, 1.0, 1.6, 2.5]),
    low_rps=st.floats(2, 20),
    ratio=st.sampled_from([1.0, 3.0, 5.0]),
    seed=st.integers(0, 1000),
)
@example(cv=1.6, low_rps=2.0, ratio=1.0, seed=209)
def test_rates_and_burstiness_of_a_made_load_are_found_again(
    cv: float, low_rps: float, ratio: float, seed: int
) -> None:
    half_s = 3000 / low_rps
    rates = [low_rps, ratio * low_rps]
    stage = {"kind": "steps", "rates_rps": rates, "each_s": half_s, "arrivals": f"gamma:{cv}"}
    made = made_by(plan_of(stage, {"name": "a", "input_tokens": 100, "output_tokens": 10}, seed))
    log = bare_log(made.offset_ns / 1e9, made.input_tokens.astype(np.int64), made.max_output_tokens.astype(np.int64))
    found = fit(recorded(log)).arrivals
    assert found is not None
    assert found.cv == pytest.approx(cv, rel=0.12)
    # Over the inner part of each half: chance may make a short lull or burst a stretch of its own.
    at_s = np.concatenate([np.linspace(0.1, 0.9, 200), np.linspace(1.1, 1.9, 200)]) * half_s
    edges = np.cumsum(found.lengths_s)
    at = np.array(found.rates_rps)[np.minimum(np.searchsorted(edges, at_s, side="right"), len(edges) - 1)]
    learnt = at.reshape(2, -1).mean(axis=1)
    assert learnt == pytest.approx(rates, rel=0.15 * max(1, cv))
    assert found.mean_rps == pytest.approx(np.mean(rates), rel=0.1 * max(1, cv))


def test_a_steady_poisson_load_is_called_that() -> None:
    rng = np.random.default_rng(3)
    t_s = np.cumsum(rng.exponential(0.1, 4000))
    found = fit(recorded(bare_log(t_s, np.full(4000, 50), np.full(4000, 5)))).arrivals
    assert found is not None and (found.law, len(found.rates_rps)) == ("poisson", 1)


def test_even_gaps_are_called_constant() -> None:
    found = fit(recorded(bare_log(np.arange(500) * 0.25, np.full(500, 50), np.full(500, 5)))).arrivals
    assert found is not None and (found.law, found.mean_rps) == ("constant", pytest.approx(4, rel=0.01))


def test_conversations_are_found_by_their_blocks_with_their_turns_and_pauses() -> None:
    one = {
        "name": "a",
        "input_tokens": {"mean": 120, "sigma": 0.3, "min": 40, "max": 400},
        "output_tokens": {"mean": 60, "sigma": 0.3, "min": 20, "max": 200},
        "turns": "geometric:3",
        "think": "lognormal:8s:0.4",
        "system_tokens": 2 * BLOCK,
    }
    made = made_by(plan_of({"rate_rps": 5.0, "duration_s": 400.0, "arrivals": "poisson"}, one))
    log = log_of(made, system=2 * BLOCK)
    told = recorded(log)
    assert told.turns.source == "blocks" and told.turns.has_history
    # Oracle: the schedule's own sessions.
    right = np.mean(told.turns.turn == made.turn)
    assert right > 0.98
    found = fit(told).traffic
    assert found.system_tokens == 2 * BLOCK
    sessions = np.bincount(made.session_id.astype(np.int64))
    assert float(str(found.turns).removeprefix("geometric:")) == pytest.approx(sessions[sessions > 0].mean(), rel=0.03)
    mean_s = float(str(found.think).split(":")[1].removesuffix("s"))
    order = np.argsort(made.session_id, kind="stable")
    pauses_s = np.diff(made.offset_ns[order])[np.diff(made.session_id[order].astype(np.int64)) == 0] / 1e9
    assert mean_s == pytest.approx(pauses_s.mean(), rel=0.1)
    assert found.joint is not None and found.later_joint is not None
    for joint in (found.joint, found.later_joint):
        assert np.mean(joint.input_tokens) == pytest.approx(120, rel=0.12)


def test_a_pool_of_shared_beginnings_is_found_again() -> None:
    one = {
        "name": "a",
        "input_tokens": {"mean": 400, "sigma": 0.2, "min": 200, "max": 900},
        "output_tokens": 20,
        "prefix": {"tokens": 8 * BLOCK, "pool": 6, "ratio": 0.6, "skew": 1.0},
    }
    made = made_by(plan_of({"rate_rps": 10.0, "duration_s": 200.0}, one))
    found = fit(recorded(log_of(made, prefix=8 * BLOCK))).traffic.prefix
    assert found is not None
    assert (found.tokens, found.pool) == (8 * BLOCK, 6)
    assert found.ratio == pytest.approx(0.6, abs=0.04)
    assert found.skew == pytest.approx(1.0, abs=0.25)


def test_what_many_share_is_a_beginning_and_no_conversation() -> None:
    blocks = [[1, 2], *([1, 2, 10 + i] for i in range(60))]
    inputs = np.array([len(one) * BLOCK for one in blocks])
    log = RequestLog("made", np.arange(61) * 10**8, inputs, np.full(61, 4), None, blocks, BLOCK)
    turns = recorded(log).turns
    assert turns.turn.max() <= 1 and np.count_nonzero(turns.turn) <= 1
    paths = block_paths(log)
    assert paths is not None and paths.seen.tolist() == [0] + [2] * 60


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=300), st.integers(3, 65))
def test_quantiles_keep_the_mean_as_far_as_the_largest_value_lets_them(values: list[int], points: int) -> None:
    given_values = np.array(values)
    found = np.array(quantiles(given_values, points), float)
    assert list(found) == sorted(found) and found[0] >= 1 and found[-1] <= given_values.max()
    drawn = (found[1:] + found[:-1]).mean() / 2
    if found[-2] < found[-1] < given_values.max():
        assert drawn == pytest.approx(given_values.mean(), abs=1.5)


def test_the_joint_law_keeps_how_lengths_go_together() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.integers(10, 1000, 5000)
    outputs = np.maximum(inputs // 2 + rng.integers(-20, 20, 5000), 1)
    plan = build_plan(
        {
            "url": "http://127.0.0.1",
            "seed": 1,
            "workload": {"classes": [{"name": "a", "joint": msgspec.to_builtins(joint_of(inputs, outputs))}]},
            "stages": [{"kind": "open", "rate_rps": 1.0, "requests": 5000}],
        }
    )
    made = made_by(plan)
    assert rank_correlation(made.input_tokens, made.max_output_tokens) > 0.95
    assert ks(inputs, made.input_tokens) < 0.04 and ks(outputs, made.max_output_tokens) < 0.04


@pytest.mark.parametrize(
    "name",
    [
        "azure2023_conv_1200.csv.gz",
        "mooncake_conversation_800.jsonl.gz",
        "servegen_2clients.tar.gz",
        "lengths_arxiv_600.csv.gz",
        "lengths_sharegpt_600.csv.gz",
    ],
)
def test_unseen_requests_are_met_at_least_as_well_as_by_the_baseline(name: str) -> None:
    told = recorded(read_log(DATA / name))
    found = quality(told, fit(told), name)
    judged = {one.name: one.better for one in found.matches if one.better is not None}
    assert all(judged.values()), judged
    by_name = {one.name: one for one in found.matches}
    for each in ("input tokens", "output tokens", "input and output together"):
        match = by_name[each]
        assert match.fit is not None and match.baseline is not None and match.fit < match.baseline
    assert by_name.keys() >= {"rank correlation of the two"}
    if told.time is not None:
        assert by_name.keys() >= {"gaps between arrivals", "CV of the gaps"}


def test_what_a_file_does_not_tell_is_said() -> None:
    told = fit(recorded(read_log(DATA / "lengths_arxiv_600.csv.gz")))
    assert told.arrivals is None
    assert [text.partition(":")[0] for text in told.unknown] == ["arrivals", "shared beginnings", "conversations"]
    coarse = fit(recorded(read_log(DATA / "mooncake_conversation_800.jsonl.gz")))
    assert any("grid" in text for text in coarse.unknown)


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="10 requests are too few"):
        recorded(read_log(DATA / "aiperf_profile_export_10.jsonl"))


def learnt() -> Fitted:
    return fit(recorded(read_log(DATA / "azure2023_conv_1200.csv.gz")), name="azure")


@given(st.floats(0.1, 5), st.floats(10, 2000))
def test_scaled_rates_keep_their_shape_in_any_length(factor: float, duration_s: float) -> None:
    found = learnt().arrivals
    assert found is not None
    again = scaled(found, factor, duration_s)
    assert sum(again.lengths_s) == pytest.approx(duration_s)
    assert set(np.round(np.array(again.rates_rps) / factor, 6)) <= set(np.round(found.rates_rps, 6))
    if duration_s <= found.span_s:
        assert again.mean_rps == pytest.approx(factor * found.mean_rps)


def test_the_written_plan_is_the_fit(tmp_path: Path) -> None:
    told = recorded(read_log(DATA / "mooncake_conversation_800.jsonl.gz"))
    found = fit(told, name="mooncake")
    text = fit_plan(found, quality(told, found, "mooncake.jsonl"), url="http://127.0.0.1:1", seed=5, comments=["hello"])
    assert "# hello" in text and max(map(len, text.splitlines())) <= 160
    path = tmp_path / "plan.toml"
    path.write_text(text)
    plan = read_plan(path, {})
    assert (plan.url, plan.seed) == ("http://127.0.0.1:1", 5)
    assert plan.workload.classes == (found.traffic,)
    built = build_plan({"url": "http://127.0.0.1:1", "seed": 5, **plan_tables(found)})
    a, b = made_by(plan), made_by(built)
    assert np.array_equal(a.input_tokens[:100], b.input_tokens[:100])
    assert a.offset_ns[:50] == pytest.approx(b.offset_ns[:50], rel=1e-4, abs=10**6)
    assert tomllib.loads(text)["stages"]


# -- parts -------------------------------------------------------------------------------------------------------------


def test_counts_are_cut_where_their_rate_changes_and_only_there() -> None:
    rng = np.random.default_rng(5)
    counts = np.concatenate([rng.poisson(5, 300), rng.poisson(20, 50), rng.poisson(5, 300)])
    found = pieces_of(counts, np.full(650, 2.0), 2.0)
    assert found.lengths_s == pytest.approx([600, 100, 600], abs=6)
    assert found.rates_rps == pytest.approx([2.5, 10, 2.5], rel=0.1)
    half = pieces_of(counts, np.where(np.arange(650) % 2, 2.0, 0.0), 2.0)
    assert half.rates_rps == pytest.approx([2.5, 10, 2.5], rel=0.15)


small = st.lists(st.integers(0, 6), min_size=1, max_size=40).map(np.array)


@given(small, small)
def test_the_distance_of_two_samples_is_that_of_their_curves(a: np.ndarray, b: np.ndarray) -> None:
    """Oracle: the definition, at every value."""
    wanted = max(abs(float(np.mean(a <= x)) - float(np.mean(b <= x))) for x in range(-1, 8))
    assert ks(a, b) == pytest.approx(wanted)
    assert plane_distance((a, a), (a, a)) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_the_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:

    x, y = np.array(pairs).T
    if x.std() and y.std():
        assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)
    else:
        assert rank_correlation(x, y) == 0
