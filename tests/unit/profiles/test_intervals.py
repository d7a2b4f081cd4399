"""Sets of intervals obey the laws of sets, and say what counting single nanoseconds says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.profiles import intervals

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def arrays(pairs):
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def cover(pairs):
    return intervals.union(*arrays(pairs))


def instants(pairs):
    return {at for start, end in pairs for at in range(start, end)}


def of_cover(found):
    return instants(zip(found.starts.tolist(), found.ends.tolist(), strict=True))


@given(PAIRS)
def test_a_union_holds_each_instant_once_and_its_pieces_do_not_touch(pairs):
    found = cover(pairs)
    assert of_cover(found) == instants(pairs)
    assert found.total_ns == len(instants(pairs))
    assert (found.starts[1:] > found.ends[:-1]).all()


@given(PAIRS, PAIRS)
def test_joining_intersecting_and_subtracting_are_those_of_sets(first, second):
    a, b = cover(first), cover(second)
    assert of_cover(intervals.join(a, b)) == instants(first) | instants(second)
    assert of_cover(intervals.intersect(a, b)) == instants(first) & instants(second)
    assert of_cover(intervals.subtract(a, b)) == instants(first) - instants(second)
    both, only = intervals.intersect(a, b), intervals.subtract(a, b)
    assert both.total_ns + only.total_ns == a.total_ns


@given(PAIRS, st.integers(0, 70), st.integers(0, 70))
def test_gaps_and_cover_share_out_a_window(pairs, one, other):
    start, end = sorted((one, other))
    window = set(range(start, end))
    assert of_cover(intervals.gaps(cover(pairs), start, end)) == window - instants(pairs)
    within = intervals.length_within(cover(pairs), np.array([start]), np.array([end]))
    assert within.tolist() == [len(window & instants(pairs))]


@given(PAIRS, st.lists(st.integers(-5, 80)))
def test_inside_asks_for_membership(pairs, asked):
    answer = intervals.inside(cover(pairs), np.array(asked, np.int64))
    assert answer.tolist() == [at in instants(pairs) for at in asked]


@given(PAIRS)
def test_fair_shares_add_up_to_the_union(pairs):
    starts, ends = arrays(pairs)
    parts = intervals.shares(starts, ends)
    naive = [sum(1 / sum(a <= at < b for a, b in pairs) for at in range(start, end)) for start, end in pairs]
    assert parts == pytest.approx(naive, abs=1e-9)
    assert parts.sum() == pytest.approx(len(instants(pairs)))


def nested(depth=0):
    """Ranges that nest as those of one thread do."""
    return st.recursive(
        st.just([]), lambda inner: st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), inner), max_size=3)
    )


def laid_out(tree, at=0):
    rows = []
    for gap, own, inner in tree:
        start = at + gap
        inside, end = laid_out(inner, start + 1)
        end = max(end, start + own)
        rows += [(start, end), *inside]
        at = end
    return rows, at


@given(nested(), st.lists(st.integers(-1, 60)))
def test_the_innermost_range_is_found(tree, asked):
    pairs, _ = laid_out(tree)
    starts, ends = arrays(pairs)
    found = intervals.latest_started(starts, ends, np.array(asked, np.int64))
    for at, index in zip(asked, found.tolist(), strict=True):
        running = [pair for pair in pairs if pair[0] <= at < pair[1]]
        assert (index == -1) == (not running)
        if running:
            assert pairs[index] == max(running, key=lambda pair: (pair[0], -pair[1]))
