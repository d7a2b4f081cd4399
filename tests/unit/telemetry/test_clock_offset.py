"""The offset of a remote clock: bounds that hold the truth whatever the network and the server do."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.clock_offset import MAX_DRIFT_PPM, PARTS_PER_MILLION, ClockOffset, date_bounds_ns

MS = 1_000_000
exchanges = st.lists(
    st.tuples(
        st.integers(0, 10 * NS_PER_S),  # since the exchange before
        st.integers(0, 3 * NS_PER_S),  # request on its way, or waiting at the server
        st.integers(0, 3 * NS_PER_S),  # answer on its way
        st.sampled_from(["exact", "date", "held date"]),
        st.integers(0, NS_PER_S - 1),  # how old a held date is
    ),
    min_size=1,
    max_size=12,
)
offsets = st.integers(-(10**5) * NS_PER_S, 10**5 * NS_PER_S)


@given(exchanges, offsets, st.integers(-MAX_DRIFT_PPM, MAX_DRIFT_PPM))
def test_the_true_offset_is_always_between_the_bounds_under_any_delays(
    told: list[tuple[int, int, int, str, int]], offset_ns: int, drift_ppm: int
) -> None:
    start_ns = now_ns = 1_700_000_000 * NS_PER_S

    def true_offset_ns(at_ns: int) -> int:
        return offset_ns + (at_ns - start_ns) * drift_ppm // PARTS_PER_MILLION

    clock = ClockOffset()
    for gap_ns, there_ns, back_ns, kind, age_ns in told:
        asked_ns = now_ns + gap_ns
        stamped_ns = asked_ns + there_ns
        now_ns = stamped_ns + back_ns
        remote_ns = stamped_ns + true_offset_ns(stamped_ns)
        if kind == "exact":
            clock.observe(remote_ns, remote_ns, asked_ns, now_ns)
        else:
            shown_ns = (remote_ns - (age_ns if kind == "held date" else 0)) // NS_PER_S * NS_PER_S
            held_ns = NS_PER_S if kind == "held date" else 0
            clock.observe(shown_ns, shown_ns + NS_PER_S + held_ns, asked_ns, now_ns)
        for later_ns in (now_ns, now_ns + 60 * NS_PER_S):
            low_ns, high_ns = clock.bounds_ns(later_ns) or (1, 0)
            assert low_ns <= true_offset_ns(later_ns) <= high_ns
    assert clock.contradictions == 0


@given(st.lists(st.integers(0, NS_PER_S - 1), min_size=1, max_size=30), st.integers(1, 50 * MS))
def test_more_evidence_widens_the_bounds_by_no_more_than_clocks_drift(phases_ns: list[int], round_trip_ns: int) -> None:
    clock = ClockOffset()
    width_ns = None
    slack_ns = 2 * (2 * NS_PER_S + round_trip_ns) * MAX_DRIFT_PPM // PARTS_PER_MILLION + 8
    for i, phase_ns in enumerate(phases_ns):
        asked_ns = i * NS_PER_S + phase_ns
        shown_ns = (asked_ns + round_trip_ns // 2) // NS_PER_S * NS_PER_S
        clock.observe(shown_ns, shown_ns + NS_PER_S, asked_ns, asked_ns + round_trip_ns)
        low_ns, high_ns = clock.bounds_ns(asked_ns + round_trip_ns) or (0, 0)
        assert high_ns - low_ns <= (width_ns or NS_PER_S + round_trip_ns) + slack_ns
        width_ns = high_ns - low_ns


def test_dates_just_before_and_just_after_a_second_pin_the_offset() -> None:
    clock = ClockOffset()
    clock.observe(9 * NS_PER_S, 10 * NS_PER_S, 9_990 * MS, 9_992 * MS)
    clock.observe(11 * NS_PER_S, 12 * NS_PER_S, 11_008 * MS, 11_010 * MS)
    offset_s, error_s = clock.estimate_s(11_010 * MS) or (9.0, 9.0)
    assert abs(offset_s) <= error_s <= 0.012


def test_a_clock_that_was_set_reopens_the_bounds() -> None:
    clock = ClockOffset()
    clock.observe(100 * MS, 100 * MS, 90 * MS, 110 * MS)
    clock.observe(5_100 * MS, 5_100 * MS, 190 * MS, 210 * MS)
    assert clock.contradictions == 1
    drift_ns = 20 * MS * MAX_DRIFT_PPM // PARTS_PER_MILLION  # while the exchange went on
    assert clock.bounds_ns(210 * MS) == (4_890 * MS - drift_ns - 2, 4_910 * MS + drift_ns + 2)


def test_bounds_widen_while_nothing_is_heard() -> None:
    clock = ClockOffset()
    assert clock.bounds_ns(0) is None and clock.estimate_s(0) is None
    clock.observe(0, 0, 0, 0)
    assert clock.bounds_ns(100 * NS_PER_S) == (-50 * MS - 2, 50 * MS + 2)


def test_an_exchange_during_which_our_clock_went_back_says_nothing() -> None:
    clock = ClockOffset()
    clock.observe(0, 0, 100, 50)
    assert clock.bounds_ns(100) is None


def test_a_date_says_between_which_seconds_a_clock_was() -> None:
    text = format_datetime(datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC), usegmt=True)
    stamp_ns = int(datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC).timestamp()) * NS_PER_S
    assert date_bounds_ns(text) == (stamp_ns, stamp_ns + NS_PER_S)
    assert date_bounds_ns(text, "uvicorn") == (stamp_ns, stamp_ns + 2 * NS_PER_S)


@pytest.mark.parametrize("text", ["", "yesterday", "Tue, 99 Nov 2026 12:00:00 GMT", "\x00"])
def test_what_is_no_date_is_no_evidence(text: str) -> None:
    assert date_bounds_ns(text) is None
