"""Counters grow per label set: restarts, late label sets and bucket edges, held against what was really counted."""

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.growth import Growth, growth, identity, quantile_bounds, rate_between

Reading = tuple[float, int, float]
"""Instant, label set, value."""


def grown(readings: Sequence[Reading], owner: Sequence[int], together: Sequence[int] | None = None) -> Growth:
    t_s, child, value = (np.array(column) for column in zip(*readings, strict=True))
    return growth(t_s, child, value.astype(float), owner, together)


def test_a_restart_of_one_label_set_counts_no_other_again() -> None:
    readings = [(0.0, 0, 1000.0), (0.0, 1, 50.0), (1.0, 0, 1010.0), (1.0, 1, 3.0), (2.0, 0, 1020.0), (2.0, 1, 5.0)]
    assert grown(readings, [0, 1]).amount.sum() == 10 + 10 + 3 + 2


def test_a_label_set_of_another_thing_comes_and_goes_without_a_jump() -> None:
    readings = [(0.0, 0, 10.0), (1.0, 0, 11.0), (1.0, 1, 5000.0), (2.0, 0, 12.0), (2.0, 1, 5001.0), (3.0, 0, 13.0)]
    steps = grown(readings, [0, 1])
    assert steps.amount.sum() == 3 + 1
    t_s, rate = rate_between(steps)
    assert (t_s.tolist(), rate.tolist()) == ([1.0, 2.0, 3.0], [1.0, 2.0, 1.0])


def test_the_first_event_of_its_kind_counts_from_zero() -> None:
    readings = [(0.0, 0, 10.0), (1.0, 0, 11.0), (1.0, 1, 2.0), (2.0, 0, 12.0), (2.0, 1, 2.0)]
    assert grown(readings, [0, 0]).amount.sum() == 2 + 2


def test_a_label_set_that_was_away_is_differenced_across_its_gap() -> None:
    steps = grown([(0.0, 0, 10.0), (1.0, 0, math.nan), (2.0, 0, 14.0)], [0])
    assert (steps.from_s.tolist(), steps.to_s.tolist(), steps.amount.tolist()) == ([0.0], [2.0], [4.0])


def test_what_lives_in_one_process_begins_again_together() -> None:
    readings = [(0.0, 0, 5.0), (0.0, 1, 100.0), (1.0, 0, 7.0), (1.0, 1, 20.0)]  # the first has overtaken its old value
    assert grown(readings, [0, 1], together=[0, 0]).amount.sum() == 7 + 20
    assert grown(readings, [0, 1]).amount.sum() == 2 + 20


def test_sources_read_at_different_instants_add_their_rates_and_leave_gaps_open() -> None:
    readings = [(0.0, 0, 0.0), (2.0, 0, 4.0), (1.0, 1, 0.0), (3.0, 1, 6.0), (9.0, 2, 0.0), (10.0, 2, 1.0)]
    t_s, rate = rate_between(grown(readings, [0, 1, 2]))
    assert (t_s.tolist(), rate.tolist()) == ([1.0, 2.0, 3.0, 10.0], [2.0, 5.0, 3.0, 1.0])


def test_a_label_that_names_a_kind_is_no_part_of_what_a_label_set_is_of() -> None:
    assert identity({"status": "200", "engine": "0"}) == identity({"engine": "0", "status": "503", "le": "1"})
    assert identity({"engine": "0"}) != identity({"engine": "1"})


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[Reading], float]:
    """Readings of counters that restart, and what was counted between the first and the last reading of each.

    After a restart a counter is read before it has as much as it had; what is lost unread nobody can know.
    """
    readings: list[Reading] = []
    total = 0.0
    events = st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=8)
    for child in range(draw(st.integers(1, 4))):
        t_s, value = float(draw(st.integers(0, 3))), float(draw(st.integers(0, 100)))
        read = value
        readings.append((t_s, child, value))
        for counted, restarts, missed in draw(events):
            t_s += 1.0
            restarts = restarts and value == read and counted < value
            value = counted if restarts else value + counted
            total += counted
            if restarts or not missed:
                readings.append((t_s, child, value))
                read = value
        readings.append((t_s + 1.0, child, value))
    return readings, total


@given(lives(), st.randoms())
def test_the_growth_is_what_was_counted_whatever_restarts(told: tuple[list[Reading], float], rng: Random) -> None:
    readings, total = told
    shuffled = list(readings)
    rng.shuffle(shuffled)
    steps = grown(shuffled, range(1 + max(child for _, child, _ in readings)))
    assert steps.amount.sum() == total
    t_s, rate = rate_between(steps)
    edges = np.unique(np.concatenate((steps.from_s, steps.to_s)))
    gap_s = dict(zip(edges[1:].tolist(), np.diff(edges).tolist(), strict=True))
    assert sum(r * gap_s[t] for t, r in zip(t_s.tolist(), rate.tolist(), strict=True)) == pytest.approx(total)


METHODS = ("linear", "lower", "higher", "midpoint", "nearest", "inverted_cdf", "averaged_inverted_cdf")
edge_sets = st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True).map(sorted)
observations = st.lists(st.integers(1, 80), max_size=30)


@given(
    st.lists(st.tuples(edge_sets, observations), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0]),
)
def test_the_quantile_lies_between_the_edges(histograms: list[tuple[list[int], list[int]]], q: float) -> None:
    edges = [np.array([*own, math.inf]) for own, _ in histograms]
    counts = [np.array([sum(value <= edge for value in seen) for edge in own])
              for own, (_, seen) in zip(edges, histograms, strict=True)]  # fmt: skip
    everything = np.array([value for _, seen in histograms for value in seen], float)
    bounds = quantile_bounds(edges, counts, q)
    if not len(everything):
        assert bounds is None
        return
    assert bounds is not None
    low, high = bounds
    for method in METHODS:
        assert low <= float(np.quantile(everything, q, method=method)) <= high
    assert {low, high} <= {0.0, *np.concatenate(edges).tolist()}


@given(edge_sets, st.lists(st.integers(1, 80), min_size=1, max_size=30), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_no_narrower_pair_of_edges_would_hold_it(own: list[int], seen: list[int], q: float) -> None:
    edges = np.array([*own, math.inf])
    bounds = quantile_bounds([edges], [np.array([sum(value <= edge for value in seen) for edge in edges])], q)
    values = np.sort(seen)
    place = (len(values) - 1) * q
    lowest, highest = values[math.floor(place)], values[math.ceil(place)]
    low = max([edge for edge in own if edge < lowest], default=0.0)
    assert bounds == (low, edges[edges >= highest].min())


def test_without_observations_there_is_no_quantile() -> None:
    assert quantile_bounds([], [], 0.5) is None
    assert quantile_bounds([np.array([1.0, math.inf])], [np.array([0.0, 0.0])], 0.5) is None
