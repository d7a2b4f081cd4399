"""How a fit is held against what it has not seen: the distances, and what counts as better."""

import numpy as np
import pytest
from scipy.stats import ks_2samp, spearmanr

from pinchpoint.fitted import Match
from pinchpoint.workload.fitness import WINDOWS_MIN, _dispersion, _stride_s, ks, plane_distance, rank_correlation


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


def test_the_dispersion_of_poisson_counts_is_one_however_many_loads_are_put_together() -> None:
    """Neither what lies between two loads nor the rest of a block at their ends is counted as an empty window."""
    rng = np.random.default_rng(0)
    span_s, blocks_s = 3502.0, 14.6
    laps = []
    for lap in range(5):
        t_s = np.sort(rng.uniform(0, span_s, 19000))
        laps.append(t_s[(t_s / blocks_s).astype(int) % 2 == 1] + lap * _stride_s(span_s, blocks_s))
    found, count = _dispersion(np.concatenate(laps), blocks_s, 10.0, span_s)
    assert found == pytest.approx(1.0, abs=0.15)
    assert count >= WINDOWS_MIN
