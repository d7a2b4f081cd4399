"""Quantities as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.units import (
    format_duration,
    format_ratio,
    parse_duration_s,
    parse_rate_rps,
    parse_ratio,
    significant,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("3m", 180),
        ("1m30s", 90),
        ("90", 90),
        ("2.5s", 2.5),
        ("1h", 3600),
        ("250us", 250e-6),
        (" 3 s", 3),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "3 apples", "-3s", "s", "1m30", "1.2.3s", "3m later", "NaN", "inf"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write for example"):
        parse_duration_s(text)


@pytest.mark.parametrize(("text", "rps"), [("20", 20), ("20rps", 20), ("600rpm", 10), ("0.5/s", 0.5)])
def test_rates(text: str, rps: float) -> None:
    assert parse_rate_rps(text) == pytest.approx(rps)


@pytest.mark.parametrize("text", ["0", "-4", "fast", "", "20 rps per second"])
def test_a_rate_must_be_above_zero(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rate_rps(text)


def test_ratios_are_between_zero_and_one() -> None:
    assert parse_ratio("1%") == pytest.approx(0.01)
    assert parse_ratio("0.25") == 0.25
    for text in ("101%", "2", "-1%", "x"):
        with pytest.raises(UsageError):
            parse_ratio(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (83, "1 m 23 s"),
        (120, "2 m"),
        (None, "–"),
        (0.00004, "40 µs"),
        (1.5, "1.5 s"),
        (59.99, "60 s"),
    ],
)
def test_printed_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(1e-6, 1e6))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert float(significant(value)) == pytest.approx(value, rel=5.1e-3)


def test_missing_values_print_as_a_dash() -> None:
    assert format_ratio(float("nan")) == "–"
    assert significant(float("inf")) == "–"
