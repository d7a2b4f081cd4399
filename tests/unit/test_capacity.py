"""From counts per rate to an interval."""

from pinchpoint.capacity import Tally, capacity_of, decide, leans_pass, requests_needed
from pinchpoint.model import StageResult
from pinchpoint.slo import parse_slos

SLOS = parse_slos(["ttft p95 < 500ms"])
TTFT, ERRORS = (slo.text for slo in SLOS)


def stage(rate_rps: float, met: int, counted: int, index: int = 0, effective: float = 1.0) -> StageResult:
    empty = {"p50": None, "p90": None, "p95": None, "p99": None}
    return StageResult(
        index=index,
        kind="search",
        name="search",
        rate_rps=rate_rps,
        achieved_rps=rate_rps,
        completed_rps=rate_rps,
        goodput_rps=rate_rps,
        duration_s=10.0,
        requests=counted,
        ok=counted,
        errors={},
        ttft_s=empty,
        tpot_s=empty,
        e2e_s=empty,
        ttft_p95_interval_s=None,
        in_flight_mean=1.0,
        output_tokens_per_s=None,
        attainment={TTFT: (met, counted), ERRORS: (counted, counted)},
        effective={TTFT: effective},
        decision="none",
        reason="",
    )


def test_a_clean_stage_passes_only_with_enough_requests() -> None:
    enough = requests_needed(SLOS)
    assert decide({TTFT: (enough, enough), ERRORS: (enough, enough)}, SLOS)[0] == "pass"
    assert decide({TTFT: (20, 20), ERRORS: (20, 20)}, SLOS)[0] == "undecided"


def test_one_broken_slo_fails_the_stage_and_is_named() -> None:
    decision, reason = decide({TTFT: (10, 40), ERRORS: (40, 40)}, SLOS)
    assert decision == "fail" and reason.startswith(TTFT)


def test_dependent_misses_do_not_fail_a_stage_as_independent_ones_do() -> None:
    counts = {TTFT: (30, 40), ERRORS: (40, 40)}
    assert decide(counts, SLOS)[0] == "fail"
    assert decide(counts, SLOS, {TTFT: 0.1})[0] == "undecided"


def test_requests_of_one_rate_are_pooled_and_keep_their_weight() -> None:
    alone = Tally.of({TTFT: (60, 60)}, {})
    both = alone.plus(Tally.of({TTFT: (50, 60)}, {TTFT: 0.1}))
    assert both.attainment[TTFT] == (110, 120)
    assert both.independent[TTFT] == (65, 66)


def test_the_interval_lies_between_the_highest_pass_and_the_lowest_fail() -> None:
    n = requests_needed(SLOS)
    capacity = capacity_of([stage(2, n, n), stage(4, n, n), stage(8, 10, 60), stage(6, 5, 60)], SLOS)
    assert capacity is not None
    assert (capacity.lower_rps, capacity.upper_rps, capacity.proven) == (4, 6, True)
    assert capacity.limiting_slo == TTFT


def test_a_lucky_pass_above_a_fail_does_not_raise_the_capacity() -> None:
    n = requests_needed(SLOS)
    capacity = capacity_of([stage(2, n, n), stage(4, 5, 60), stage(8, n, n)], SLOS)
    assert capacity is not None and (capacity.lower_rps, capacity.upper_rps) == (2, 4)


def test_too_few_requests_leave_the_interval_unproven() -> None:
    capacity = capacity_of([stage(2, 20, 20), stage(4, 5, 60)], SLOS)
    assert capacity is not None
    assert (capacity.lower_rps, capacity.upper_rps, capacity.proven) == (2, 4, False)
    assert "0 of 20 requests missed ttft p95 < 500ms (proof takes" in capacity.note


def test_without_a_fail_the_capacity_is_open_above_and_without_a_pass_below() -> None:
    n = requests_needed(SLOS)
    above = capacity_of([stage(2, n, n)], SLOS)
    below = capacity_of([stage(2, 5, 60)], SLOS)
    assert above is not None and (above.lower_rps, above.upper_rps) == (2, None)
    assert below is not None and (below.lower_rps, below.upper_rps) == (None, 2)
    assert capacity_of([], SLOS) is None


def test_a_stage_whose_backlog_grew_has_failed_whatever_its_latencies() -> None:
    n = requests_needed(SLOS)
    capacity = capacity_of([stage(2, n, n, 0), stage(4, n, n, 1)], SLOS, unsustained=frozenset({1}))
    assert capacity is not None and (capacity.lower_rps, capacity.upper_rps) == (2, 4)


def test_an_undecided_stage_leans_by_its_allowance_rounded_up() -> None:
    assert leans_pass({TTFT: (17, 18), ERRORS: (18, 18)}, SLOS)
    assert not leans_pass({TTFT: (16, 18), ERRORS: (18, 18)}, SLOS)
    assert leans_pass({TTFT: (19, 20), ERRORS: (20, 20)}, SLOS)
    assert not leans_pass({TTFT: (18, 20), ERRORS: (20, 20)}, SLOS)
    assert not leans_pass({}, SLOS)


def test_one_unlucky_step_is_outvoted_by_better_ones_above_it() -> None:
    stages = [stage(2, 18, 20), stage(4, 60, 60), stage(8, 5, 60)]
    capacity = capacity_of(stages, SLOS)
    assert capacity is not None and (capacity.lower_rps, capacity.upper_rps) == (4, 8)


def test_misses_at_a_lower_rate_speak_against_a_lucky_higher_one() -> None:
    stages = [stage(2, 60, 60), stage(4, 45, 60, effective=0.2), stage(6, 19, 20), stage(8, 5, 60)]
    capacity = capacity_of(stages, SLOS)
    assert capacity is not None and (capacity.lower_rps, capacity.upper_rps) == (2, 4)
