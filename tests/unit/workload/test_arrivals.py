"""Arrival processes: each has the law that its name says, under every rate profile."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pinchpoint.errors import UsageError
from pinchpoint.plan import OnOffStage, OpenKind, OpenStage, RampStage, SineStage, SpikeStage, StepsStage
from pinchpoint.workload.arrivals import check_fits, offsets_ns, parse_arrivals, unit_instants
from pinchpoint.workload.profiles import flat, profile_of

STAGES: dict[str, OpenKind] = {
    "flat": OpenStage(rate_rps=20, duration_s=60),
    "ramp": RampStage(from_rps=0, to_rps=40, duration_s=60),
    "ramp down": RampStage(from_rps=40, to_rps=0, duration_s=60),
    "steps": StepsStage(rates_rps=(5, 0, 40, 15), each_s=15),
    "spike": SpikeStage(base_rps=10, peak_rps=100, at_s=20, for_s=6.5, duration_s=60),
    "sine": SineStage(mean_rps=20, amplitude_ratio=1.0, period_s=17, duration_s=60),
    "on-off": OnOffStage(rate_rps=50, on_s=2, off_s=3, duration_s=60),
}
LENGTH_S = 60.0
SMALLEST_GAP = 1e-9


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def gap_law(text: str):
    cv = 1.0 if text == "poisson" else float(text.partition(":")[2])
    return stats.gamma(cv**-2, scale=cv**2)


# -- processes of unit rate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["poisson", "gamma:0.25", "gamma:1", "gamma:2", "gamma:4"])
def test_gaps_have_the_law_and_are_independent(text: str) -> None:
    gaps = np.diff(unit_instants(parse_arrivals(text), rng(), count=20_001))
    law = gap_law(text)
    # Of the smallest gaps of clustered arrivals the sum keeps no digits; they are far below a nanosecond.
    kept, low = gaps[gaps > SMALLEST_GAP], law.cdf(SMALLEST_GAP)
    assert len(kept) / len(gaps) == pytest.approx(1 - low, abs=0.02)
    assert stats.kstest(kept, lambda x: (law.cdf(x) - low) / (1 - low)).pvalue > 0.01
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_scatter_as_asked(cv: float) -> None:
    gaps = np.diff(unit_instants(parse_arrivals(f"gamma:{cv}"), rng(), count=100_000))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize("text", ["poisson", "gamma:0.3", "gamma:3"])
def test_a_stationary_process_has_its_mean_count_from_the_first_instant_on(text: str) -> None:
    counts = [len(unit_instants(parse_arrivals(text), rng(seed), until=2.0)) for seed in range(6000)]
    assert np.mean(counts) == pytest.approx(2.0, abs=4 * np.std(counts) / math.sqrt(len(counts)))


def test_gamma_of_one_is_poisson_in_law() -> None:
    counts = [len(unit_instants(parse_arrivals("gamma:1"), rng(seed), until=25.0)) for seed in range(1500)]
    expected = stats.poisson(25)
    assert stats.kstest(np.array(counts) + rng().random(1500) - 0.5, lambda x: _continued(expected, x)).pvalue > 0.01


def _continued(law, x: np.ndarray) -> np.ndarray:
    """The distribution of a count to which a number from [-0.5, 0.5) was added."""
    whole = np.floor(x + 0.5)
    return law.cdf(whole - 1) + (x + 0.5 - whole) * law.pmf(whole)


def test_poisson_counts_vary_as_poisson_counts_do_even_in_single_seconds() -> None:
    """A generator that pins the count of each second, or of the whole, would show here."""
    runs = [unit_instants(parse_arrivals("poisson"), rng(seed), until=50.0) for seed in range(600)]
    totals = np.array([len(run) for run in runs])
    seconds = np.concatenate([np.histogram(run, bins=50, range=(0, 50))[0] for run in runs])
    assert totals.var() == pytest.approx(50, rel=0.2)
    assert seconds.var() == pytest.approx(1.0, rel=0.05)
    assert np.corrcoef(seconds[:-1], seconds[1:])[0, 1] == pytest.approx(0, abs=0.02)


@given(st.integers(1, 5000))
def test_constant_arrivals_have_one_gap_and_half_of_it_at_both_ends(count: int) -> None:
    instants = unit_instants(parse_arrivals("constant"), rng(), until=float(count))
    assert instants.tolist() == [k + 0.5 for k in range(count)]


@given(st.integers(1, 40), st.floats(0.5, 3000))
def test_bursts_come_whole_at_even_distances(size: int, until: float) -> None:
    instants, sizes = np.unique(unit_instants(parse_arrivals(f"bursts:{size}"), rng(), until=until), return_counts=True)
    assert np.all(sizes == size)
    assert np.all(np.diff(instants) == size)
    assert len(instants) * size == pytest.approx(until, abs=size / 2 + 1e-9)


@pytest.mark.parametrize("text", ["constant", "poisson", "gamma:2", "bursts:5"])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), until=st.floats(0.1, 500), longer=st.floats(1, 3))
def test_a_shorter_stretch_is_the_beginning_of_a_longer_one(text: str, seed: int, until: float, longer: float) -> None:
    short = unit_instants(parse_arrivals(text), rng(seed), until=until)
    long = unit_instants(parse_arrivals(text), rng(seed), until=until * longer)
    assert np.all(np.diff(long) >= 0)
    assert np.allclose(short, long[: len(short)], rtol=1e-9)
    assert len(long) == len(short) or long[len(short)] >= until * (1 - 1e-9)


@pytest.mark.parametrize("text", ["constant", "poisson", "gamma:2", "bursts:5"])
def test_a_count_is_kept_exactly(text: str) -> None:
    for count in (5, 1000, 70_000):
        assert len(offsets_ns(parse_arrivals(text), flat(1000), rng(), count=count)) == count


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("uniform", "choose constant"),
        ("poisson:2", "choose constant"),
        ("gamma", "coefficient of variation"),
        ("gamma:0", "coefficient of variation"),
        ("gamma:nan", "coefficient of variation"),
        ("gamma:-1", "coefficient of variation"),
        ("bursts:0", "whole number"),
        ("bursts:2.5", "whole number"),
        ("bursts", "whole number"),
        ("", "choose"),
    ],
)
def test_what_is_no_process_is_told(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_arrivals(text)


def test_a_stage_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UsageError, match="more than"):
        check_fits(parse_arrivals("poisson"), flat(1e6), 3600, None)
    with pytest.raises(UsageError, match="does not come"):
        check_fits(parse_arrivals("bursts:100"), flat(4), 10, None)
    with pytest.raises(UsageError, match="multiple"):
        check_fits(parse_arrivals("bursts:10"), flat(4), None, 15)


# -- under a profile ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_the_inverse_undoes_the_cumulated_rate(name: str) -> None:
    profile = profile_of(STAGES[name])
    units = np.sort(rng().uniform(0, profile.cumulated(LENGTH_S), 500))
    instants = profile.instants_s(units)
    assert np.all(np.diff(instants) >= 0) and instants.max() < LENGTH_S
    # Where the rate passes through zero an instant is only known to the root of the digits of a float64.
    assert [profile.cumulated(t) for t in instants] == pytest.approx(units, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("name", STAGES)
def test_the_cumulated_rate_is_the_integral_of_the_rate(name: str) -> None:
    stage, profile = STAGES[name], profile_of(STAGES[name])
    grid = (np.arange(600_000) + 0.5) * (LENGTH_S / 600_000)
    cumulated = np.cumsum(rate_of(stage, grid)) * (LENGTH_S / 600_000)
    for share in (0.1, 0.25, 0.5, 0.77, 1.0):
        assert profile.cumulated(share * LENGTH_S) == pytest.approx(cumulated[int(share * 600_000) - 1], abs=0.02)


def rate_of(stage: OpenKind, t_s: np.ndarray) -> np.ndarray:
    """The rate as the plan's words say it."""
    match stage:
        case OpenStage():
            return np.full(len(t_s), stage.rate_rps)
        case RampStage():
            return np.interp(t_s, [0, stage.duration_s], [stage.from_rps, stage.to_rps])
        case StepsStage():
            assert stage.each_s
            return np.array(stage.rates_rps)[np.minimum(t_s // stage.each_s, 3).astype(int)]
        case SpikeStage():
            inside = (t_s >= stage.at_s) & (t_s < stage.at_s + stage.for_s)
            return np.where(inside, stage.peak_rps, stage.base_rps)
        case SineStage():
            return stage.mean_rps * (1 + stage.amplitude_ratio * np.sin(2 * np.pi * t_s / stage.period_s))
        case OnOffStage():
            return np.where(t_s % (stage.on_s + stage.off_s) < stage.on_s, stage.rate_rps, 0.0)


@pytest.mark.parametrize(("name", "text"), list(itertools.product(STAGES, ["poisson", "gamma:2"])))
def test_on_the_clock_of_the_cumulated_rate_every_profile_has_the_law_of_its_process(name: str, text: str) -> None:
    profile = profile_of(STAGES[name])
    offsets = [offsets_ns(parse_arrivals(text), profile, rng(seed), duration_s=LENGTH_S) for seed in range(8)]
    gaps = np.concatenate([np.diff([profile.cumulated(t / 1e9) for t in run.tolist()]) for run in offsets])
    assert stats.kstest(gaps, gap_law(text).cdf).pvalue > 0.005


@pytest.mark.parametrize("name", STAGES)
def test_a_profile_conserves_the_mean_and_the_poisson_scatter_of_the_count(name: str) -> None:
    profile = profile_of(STAGES[name])
    expected = profile.cumulated(LENGTH_S)
    counts = [
        len(offsets_ns(parse_arrivals("poisson"), profile, rng(seed), duration_s=LENGTH_S)) for seed in range(300)
    ]
    assert np.mean(counts) == pytest.approx(expected, abs=4 * math.sqrt(expected / 300))
    assert np.var(counts) == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize("name", STAGES)
def test_constant_arrivals_follow_the_cumulated_rate_to_half_a_request(name: str) -> None:
    profile = profile_of(STAGES[name])
    offsets_s = offsets_ns(parse_arrivals("constant"), profile, rng(), duration_s=LENGTH_S) / 1e9
    for t_s in np.linspace(0, LENGTH_S, 301):
        assert np.searchsorted(offsets_s, t_s) == pytest.approx(profile.cumulated(t_s), abs=0.5 + 1e-6)


def test_nothing_comes_while_the_rate_is_zero() -> None:
    for seed in range(20):
        on_off = offsets_ns(parse_arrivals("poisson"), profile_of(STAGES["on-off"]), rng(seed), duration_s=60) / 1e9
        assert np.all(on_off % 5 <= 2)
        steps = offsets_ns(parse_arrivals("gamma:3"), profile_of(STAGES["steps"]), rng(seed), duration_s=60) / 1e9
        assert not np.any((steps > 15) & (steps < 30))


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(STAGES)),
    st.sampled_from(["constant", "poisson", "gamma:0.5", "bursts:3"]),
    st.integers(0, 2**32 - 1),
    st.floats(1, 60),
)
def test_arrivals_are_in_order_and_inside_the_stage(name: str, text: str, seed: int, duration_s: float) -> None:
    profile = profile_of(STAGES[name])
    if text == "bursts:3" and profile.cumulated(duration_s) < 1.5:
        return
    offsets = offsets_ns(parse_arrivals(text), profile, rng(seed), duration_s=duration_s)
    assert np.all(np.diff(offsets) >= 0)
    assert not len(offsets) or (offsets[0] >= 0 and offsets[-1] < round(duration_s * 1e9))
    again = offsets_ns(parse_arrivals(text), profile, rng(seed), duration_s=duration_s)
    assert np.array_equal(offsets, again)


@given(st.floats(0.01, 5000), st.integers(1, 400))
def test_a_constant_stage_of_a_whole_number_of_gaps_has_as_many_requests(rate_rps: float, count: int) -> None:
    """Also where the product of rate and duration is a hair above or below the number."""
    offsets = offsets_ns(parse_arrivals("constant"), flat(rate_rps), rng(), duration_s=count / rate_rps)
    assert len(offsets) == count


def test_with_a_count_a_ramp_goes_on_at_its_last_rate() -> None:
    offsets_s = offsets_ns(parse_arrivals("constant"), profile_of(STAGES["ramp"]), rng(), count=1600) / 1e9
    assert len(offsets_s) == 1600
    assert np.diff(offsets_s[-300:]) == pytest.approx(1 / 40)
    assert offsets_s[-1] == pytest.approx(60 + 399.5 / 40)
