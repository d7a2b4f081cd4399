"""The grammar of durations and counts, and the laws that it names."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pinchpoint.errors import UsageError
from pinchpoint.workload.durations import parse_counts, parse_durations


def drawn_s(text: str, count: int = 20_000) -> np.ndarray:
    return parse_durations(text).draw_ns(count, np.random.default_rng(1)) / 1e9


@pytest.mark.parametrize("text", ["2s", "constant:2s", "2000ms", "2"])
def test_a_plain_duration_is_always_the_same(text: str) -> None:
    assert set(drawn_s(text).tolist()) == {2.0}
    assert parse_durations(text).mean_s == 2.0


def test_exponential_and_lognormal_have_their_laws() -> None:
    assert stats.kstest(drawn_s("exponential:2s"), stats.expon(scale=2).cdf).pvalue > 0.01
    lognormal = stats.lognorm(0.5, scale=2 * np.exp(-0.125))
    assert lognormal.mean() == pytest.approx(2)
    assert stats.kstest(drawn_s("lognormal:2s:0.5"), lognormal.cdf).pvalue > 0.01


@given(st.floats(0.001, 1000), st.floats(0, 1))
def test_the_mean_is_the_one_that_is_written(mean_s: float, sigma: float) -> None:
    for text in (f"constant:{mean_s:f}s", f"exponential:{mean_s:f}s", f"lognormal:{mean_s:f}s:{sigma:f}"):
        law = parse_durations(text)
        drawn = law.draw_s(4000, np.random.default_rng(2))
        assert drawn.mean() == pytest.approx(law.mean_s, rel=0.15)
        assert law.mean_s == pytest.approx(mean_s, abs=1e-6)


def test_values_of_a_file_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "think.csv").write_text("name,seconds\na,1\nb,4\n")
    law = parse_durations(f"trace:{tmp_path}/think.csv:seconds")
    drawn = law.draw_s(4000, np.random.default_rng(1))
    assert law.mean_s == 2.5
    assert set(drawn.tolist()) == {1.0, 4.0} and drawn.mean() == pytest.approx(2.5, abs=0.1)
    (tmp_path / "plain:odd.txt").write_text("3\n3\n")
    assert set(parse_durations(f"trace:{tmp_path}/plain:odd.txt").draw_s(9, np.random.default_rng(1))) == {3.0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("soon", "'soon'"),
        ("", "not a duration"),
        ("exponential", "not a duration"),
        ("exponential:2s:3", "law of durations"),
        ("lognormal:2s", "law of durations"),
        ("lognormal:2s:-1", "sigma"),
        ("lognormal:0s:1", "above 0"),
        ("lognormal:2s:x", "sigma"),
        ("weibull:2s", "law of durations"),
        ("constant:-2s", "duration"),
        ("exponential:999999999h", "at most"),
        ("trace:none.csv:x", "none.csv"),
        ("trace:", "cannot read"),
    ],
)
def test_what_is_no_duration_is_told(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_durations(text)


def test_counts_have_their_laws(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    assert set(parse_counts(4).draw(50, rng)) == set(parse_counts("constant:4").draw(50, rng)) == {4}
    geometric = parse_counts("geometric:4").draw(20_000, rng)
    assert geometric.min() == 1 and geometric.mean() == pytest.approx(4, rel=0.03)
    assert np.mean(geometric == 1) == pytest.approx(0.25, abs=0.01)
    uniform = parse_counts("uniform:2:5").draw(20_000, rng)
    assert np.bincount(uniform)[2:] / 20_000 == pytest.approx([0.25] * 4, abs=0.02)
    (tmp_path / "turns.txt").write_text("1\n7\n")
    assert set(parse_counts(f"trace:{tmp_path}/turns.txt").draw(50, rng)) == {1, 7}


@pytest.mark.parametrize("value", [0, 1001, "0", "2.5", "uniform:5:2", "geometric:0.5", "many", "trace:none.csv"])
def test_what_is_no_count_is_told(value: int | str) -> None:
    with pytest.raises(UsageError):
        parse_counts(value)
