"""What is learnt from requests gives such requests back, and comes nearer to them than the usual guess."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, spearmanr

from pinchpoint.fitted import Match
from pinchpoint.plan import JointSpec, build_plan
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.fit_plan import fit_plan
from pinchpoint.workload.fitness import ks, plane_distance, quality, rank_correlation
from pinchpoint.workload.learning import learn, learn_joint, own_lengths, shared_tokens
from pinchpoint.workload.schedule import Scheduler
from pinchpoint.workload.traces.read import read_log
from pinchpoint.workload.traces.table import RequestLog

DATA = Path(__file__).parents[2] / "data" / "traces"
EXCERPTS = (
    "azure2023_conv_1200.csv.gz",
    "mooncake_conversation_800.jsonl.gz",
    "servegen_2clients.tar.gz",
    "lengths_arxiv_600.csv.gz",
    "lengths_sharegpt_600.csv.gz",
)


def log_of(t_s: np.ndarray, inputs: np.ndarray | None = None, outputs: np.ndarray | None = None) -> RequestLog:
    count = len(t_s)
    rng = np.random.default_rng(3)
    return RequestLog(
        "made",
        np.rint((t_s - t_s[0]) * 1e9).astype(np.int64),
        rng.integers(10, 500, count) if inputs is None else inputs,
        rng.integers(5, 100, count) if outputs is None else outputs,
    )


def renewal(cv: float, count: int, rate_rps: float = 5.0, seed: int = 1) -> np.ndarray:
    gaps = np.random.default_rng(seed).gamma(cv**-2, cv**2 / rate_rps, count)
    return np.cumsum(gaps)


@pytest.mark.parametrize("cv", [0.5, 1.0, 1.6, 2.5])
def test_the_burstiness_of_arrivals_comes_back(cv: float) -> None:
    found = learn(log_of(renewal(cv, 4000))).arrivals
    assert found is not None
    assert found.cv == pytest.approx(cv, rel=0.12)
    assert found.mean_rps == pytest.approx(5.0, rel=0.15)
    assert (found.text == "poisson") == (abs(found.cv - 1) <= 0.06)


def test_a_steady_rate_is_one_rate_and_a_changing_one_is_followed() -> None:
    rng = np.random.default_rng(2)
    steady = learn(log_of(np.sort(rng.uniform(0, 600, 3000)))).arrivals
    assert steady is not None and np.all(steady.rates_rps == steady.rates_rps[0])
    quiet, busy = np.sort(rng.uniform(0, 300, 600)), np.sort(rng.uniform(300, 600, 3000))
    found = learn(log_of(np.concatenate([quiet, busy]))).arrivals
    assert found is not None
    half = len(found.rates_rps) // 2
    assert found.rates_rps[:half].mean() == pytest.approx(2, rel=0.15)
    assert found.rates_rps[half:].mean() == pytest.approx(10, rel=0.15)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([40, 400, 4000]))
def test_drawn_lengths_have_the_law_of_those_they_were_learnt_from(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = np.maximum(1, rng.lognormal(5, 1, count)).astype(int)
    outputs = np.maximum(1, inputs // 3 + rng.integers(0, 30, count))
    joint = learn_joint(inputs, outputs)
    plan = build_plan({"url": "http://x", "seed": 5, "workload": {"classes": [{"joint": _table(joint)}]}})
    made = Scheduler.of(plan, resolve(plan, None)).open_loop(0, 100.0, 60.0).schedule
    assert ks(inputs, made.input_tokens) < 1.63 * (1 / count + 1 / len(made)) ** 0.5 + 0.02
    if count >= 400:
        assert rank_correlation(made.input_tokens, made.max_output_tokens) > 0.7


def _table(joint: JointSpec) -> dict:
    return {"input_tokens": joint.input_tokens, "output_tokens": joint.output_tokens}


def test_what_was_said_before_is_no_part_of_a_turns_own_message() -> None:
    log = replace(
        log_of(np.arange(4.0), np.array([100, 170, 250, 40]), np.array([20, 30, 10, 5])),
        session=np.array([0, 0, 0, 1]),
    )
    assert own_lengths(log).tolist() == [100, 50, 50, 40]
    found = learn(log)
    assert found.turns is not None and found.turns.startswith("geometric:2")
    assert (found.think is not None and found.think.startswith("lognormal:1000ms")) or found.think == "1000ms"


def test_lengths_without_history_stay_as_they_are() -> None:
    log = replace(log_of(np.arange(4.0), np.array([100, 20, 30, 40])), session=np.array([0, 0, 0, 1]))
    assert own_lengths(log).tolist() == [100, 20, 30, 40]


def test_a_beginning_that_was_there_before_is_shared() -> None:
    found = shared_tokens([[1, 2, 3], [1, 2, 4], [2, 1], [1]], 10, np.array([30, 30, 20, 10]))
    assert found.tolist() == [0, 20, 0, 9]


@pytest.mark.parametrize("file", EXCERPTS)
def test_the_fit_of_a_real_trace_is_nearer_than_poisson_with_lognormal_lengths(file: str) -> None:
    found = quality(read_log(DATA / file), file)
    judged = {match.name: match for match in found.matches if match.better is not None}
    assert [name for name, match in judged.items() if not match.better] == []
    for name in ("input tokens", "output tokens", "input and output together"):
        fit, baseline = judged[name].fit, judged[name].baseline
        assert fit is not None and baseline is not None and fit < baseline


def test_distances_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 50, 300), rng.integers(10, 60, 200)
    assert ks(a, b) == pytest.approx(ks_2samp(a, b).statistic)
    assert rank_correlation(a[:200], b) == pytest.approx(spearmanr(a[:200], b).statistic)


def test_the_plane_tells_apart_what_single_lengths_cannot() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=2000)
    up, down = (x, x + 0.1 * rng.normal(size=2000)), (x, -x + 0.1 * rng.normal(size=2000))
    assert ks(up[1], down[1]) < 0.06
    assert plane_distance(up, down) > 0.3
    assert plane_distance(up, up) < 0.05


def test_a_match_is_better_when_it_is_nearer_or_as_near_as_chance_allows() -> None:
    assert Match("x", True, 0.1, 0.2).better
    assert not Match("x", True, 0.2, 0.1).better
    assert Match("x", True, 0.2, 0.1, chance=0.25).better
    assert Match("x", False, 1.9, 1.0, held=2.0).better
    assert Match("x", False, None, 1.0, held=2.0).better is None


@pytest.mark.parametrize("file", EXCERPTS)
@pytest.mark.parametrize("duration_s", [None, 30.0])
def test_the_plan_can_be_read_and_makes_the_load(file: str, duration_s: float | None, tmp_path: Path) -> None:
    log = read_log(DATA / file)
    found = quality(log, file)
    text = fit_plan(learn(log).scaled(1.5), found, name="x", url="http://127.0.0.1", seed=3, duration_s=duration_s)
    raw = tomllib.loads(text)
    raw.update(raw.pop("target"))
    plan = build_plan(raw)
    made = Scheduler.of(plan, resolve(plan, None)).stage(0, plan.stages[0])
    assert made.duration_ns is not None and made.duration_ns > 0
    if log.t_ns is not None:
        length_s = duration_s or log.span_s
        assert made.duration_ns / 1e9 == pytest.approx(length_s, rel=0.02)
        expected = 1.5 * len(log) / log.span_s * length_s
        assert len(made.schedule) == pytest.approx(expected, rel=0.2, abs=8 * expected**0.5)
