"""Schedules: laws of the arrivals, and what a seed fixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pinchpoint.errors import UsageError
from pinchpoint.plan import WorkloadSpec
from pinchpoint.workload.lengths import draw_lengths, presets, resolve_lengths
from pinchpoint.workload.prompts import PromptWriter
from pinchpoint.workload.schedule import Scheduler, poisson_offsets_s

LENGTHS = resolve_lengths(WorkloadSpec("chat"), None)


def test_poisson_gaps_are_exponential() -> None:
    offsets = poisson_offsets_s(50, 200, np.random.default_rng(1))
    gaps = np.diff(offsets)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.05


def test_poisson_counts_vary_as_poisson_counts_do() -> None:
    counts = [len(poisson_offsets_s(5, 10, np.random.default_rng(seed))) for seed in range(400)]
    assert np.mean(counts) == pytest.approx(50, rel=0.03)
    assert np.var(counts) == pytest.approx(50, rel=0.25)


@settings(max_examples=40)
@given(st.floats(0.01, 200), st.floats(0.5, 20), st.integers(0, 1000))
def test_arrivals_are_sorted_and_inside_the_step(rate: float, duration: float, seed: int) -> None:
    offsets = poisson_offsets_s(rate, duration, np.random.default_rng(seed))
    assert np.all(np.diff(offsets) >= 0)
    assert not len(offsets) or (offsets[0] >= 0 and offsets[-1] < duration)


def test_a_seed_fixes_the_schedule_and_another_seed_gives_another() -> None:
    first, again, other = (Scheduler(seed, LENGTHS).open_loop(0, 20, 10) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_steps_differ_in_arrivals_and_not_in_lengths() -> None:
    scheduler = Scheduler(1, LENGTHS)
    slow, fast = scheduler.open_loop(0, 5, 10), scheduler.open_loop(1, 20, 10)
    shared = min(len(slow), len(fast))
    assert [r.input_tokens for r in slow][:shared] == [r.input_tokens for r in fast][:shared]
    assert {r.request_id for r in slow}.isdisjoint({r.request_id for r in fast})


def test_closed_loop_users_have_turns_and_no_instants() -> None:
    requests = Scheduler(1, LENGTHS).closed_loop(0, 3, 4, think_s=0.5)
    assert len(requests) == 12
    assert {(r.session_id, r.turn) for r in requests} == {(s, t) for s in range(3) for t in range(4)}
    assert all(r.offset_ns is None and r.think_ns == 500_000_000 for r in requests)


def test_lengths_keep_their_mean_and_their_bounds() -> None:
    for preset in presets().values():
        for spec in (preset.input_tokens, preset.output_tokens):
            drawn = draw_lengths(spec, 20_000, np.random.default_rng(1))
            assert drawn.min() >= spec.min and drawn.max() <= spec.max
            assert drawn.mean() == pytest.approx(spec.mean, rel=0.05)


def test_lengths_are_cut_to_the_context_or_refused() -> None:
    cut = resolve_lengths(WorkloadSpec("summarise"), 2048)
    assert cut.input_tokens.max + cut.output_tokens.max <= 2048 - 64
    with pytest.raises(UsageError, match="too small"):
        resolve_lengths(WorkloadSpec("summarise"), 256)
    with pytest.raises(UsageError, match="choose from"):
        resolve_lengths(WorkloadSpec("chess"), None)


def test_prompts_are_fixed_by_seed_and_request_and_begin_differently() -> None:
    writer = PromptWriter(7, 1.0, 10.0)
    assert writer.write(3, 100) == PromptWriter(7, 1.0, 10.0).write(3, 100)
    starts = {" ".join(writer.write(i, 100).split()[:8]) for i in range(500)}
    assert len(starts) == 500
    assert len(writer.write(3, 100).split()) == 90


def test_prompt_length_follows_the_measured_tokens_per_word() -> None:
    assert PromptWriter(1, 1.25, 20.0).words_for(120) == 80
    assert PromptWriter(1, None, None).words_for(120) == 120
    assert PromptWriter(1, 1.0, 50.0).words_for(20) == 1
