"""From counts per rate to an interval."""

from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_the_interval_lies_within_what_was_decided_and_holds_the_point() -> None:
    n = requests_needed(SLOS)
    capacity = capacity_of([stage(2, n, n), stage(4, n, n), stage(8, 10, 60), stage(6, 5, 60)], SLOS)
    assert capacity is not None and capacity.lower_rps and capacity.upper_rps and capacity.best_rps
    assert (capacity.passed_rps, capacity.failed_rps) == (4, 6)
    assert 3.7 < capacity.lower_rps < capacity.best_rps < capacity.upper_rps < 6.2
    assert capacity.limiting_slo == TTFT


def test_proven_means_that_the_test_alone_decided_rates_within_the_interval() -> None:
    many = 20 * requests_needed(SLOS)
    near = capacity_of([stage(4, many * 97 // 100, many), stage(4.4, many * 88 // 100, many)], SLOS)
    far = capacity_of([stage(4, many * 95 // 100, many), stage(4.4, many * 94 // 100, many), stage(8, 5, 60)], SLOS)
    assert near is not None and near.proven and near.note == ""
    assert near.passed_rps == 4 and near.failed_rps == 4.4
    assert far is not None and not far.proven and "4 req/s passed" not in far.note


def test_requests_at_neighbouring_rates_prove_together_what_none_proves_alone() -> None:
    n = requests_needed(SLOS)
    alone, pair = stage(4, n // 2 + 1, n // 2 + 1), stage(4.2, n // 2 + 1, n // 2 + 1)
    fail = stage(8, 5, 60)
    assert capacity_of([alone, fail], SLOS).passed_rps is None  # type: ignore[union-attr]
    assert capacity_of([alone, pair, fail], SLOS).passed_rps == 4  # type: ignore[union-attr]


def test_a_lucky_pass_above_a_fail_does_not_raise_the_capacity() -> None:
    n = requests_needed(SLOS)
    capacity = capacity_of([stage(2, n, n), stage(4, 5, 60), stage(8, n, n)], SLOS)
    assert capacity is not None and capacity.passed_rps == 2 and capacity.failed_rps == 4
    assert capacity.best_rps is not None and capacity.best_rps < 8


def test_too_few_requests_leave_the_interval_unproven() -> None:
    capacity = capacity_of([stage(2, 20, 20), stage(4, 5, 60)], SLOS)
    assert capacity is not None and not capacity.proven
    assert capacity.best_rps is not None and 1 < capacity.best_rps < 4
    assert "no rate passed" in capacity.note and "4 req/s failed" in capacity.note


def test_without_a_fail_the_capacity_is_open_above_and_without_a_pass_below() -> None:
    n = requests_needed(SLOS)
    above = capacity_of([stage(2, n, n)], SLOS)
    below = capacity_of([stage(2, 5, 60)], SLOS)
    assert above is not None and (above.lower_rps, above.upper_rps) == (2, None)
    assert below is not None and (below.lower_rps, below.upper_rps) == (None, 2)
    assert above.best_rps is None and below.best_rps is None
    assert capacity_of([], SLOS) is None


def test_a_stage_whose_backlog_grew_has_failed_whatever_its_latencies() -> None:
    n = requests_needed(SLOS)
    stages = [stage(2, n, n, 0), stage(4, n, n, 1), stage(16, 5, 60, 2)]
    calm, grown = capacity_of(stages, SLOS), capacity_of(stages, SLOS, unsustained=frozenset({1}))
    assert calm is not None and grown is not None and calm.best_rps and grown.best_rps and grown.upper_rps
    assert grown.failed_rps == 4 and grown.upper_rps < 4.5
    assert calm.best_rps > 4 > grown.best_rps


def test_an_undecided_stage_leans_by_its_allowance_rounded_up() -> None:
    assert leans_pass({TTFT: (17, 18), ERRORS: (18, 18)}, SLOS)
    assert not leans_pass({TTFT: (16, 18), ERRORS: (18, 18)}, SLOS)
    assert leans_pass({TTFT: (19, 20), ERRORS: (20, 20)}, SLOS)
    assert not leans_pass({TTFT: (18, 20), ERRORS: (20, 20)}, SLOS)
    assert not leans_pass({}, SLOS)


def test_one_unlucky_step_is_outvoted_by_better_ones_above_it() -> None:
    stages = [stage(2, 18, 20), stage(4, 60, 60), stage(8, 5, 60)]
    capacity = capacity_of(stages, SLOS)
    assert capacity is not None and capacity.best_rps is not None and 3 < capacity.best_rps < 8


def test_misses_at_a_lower_rate_speak_against_a_lucky_higher_one() -> None:
    lucky = stage(6, 19, 20)
    trusted = capacity_of([stage(2, 60, 60), stage(4, 60, 60), lucky, stage(8, 5, 60)], SLOS)
    doubted = capacity_of([stage(2, 60, 60), stage(4, 45, 60, effective=0.2), lucky, stage(8, 5, 60)], SLOS)
    assert trusted is not None and doubted is not None and trusted.best_rps and doubted.best_rps
    assert doubted.best_rps < 0.8 * trusted.best_rps


@settings(deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 80)), min_size=2, max_size=6),
    unsustained=st.sets(st.integers(0, 5)),
)
def test_whatever_was_counted_the_interval_is_in_order(counts: list[tuple[int, int]], unsustained: set[int]) -> None:
    stages = [stage(2.0 * 1.3**i, min(met, n), n, i) for i, (met, n) in enumerate(counts)]
    capacity = capacity_of(stages, SLOS, unsustained=frozenset(unsustained))
    assert capacity is not None
    if capacity.best_rps is not None:
        assert capacity.lower_rps is not None and capacity.upper_rps is not None
        assert capacity.lower_rps <= capacity.best_rps <= capacity.upper_rps
    else:
        assert capacity.lower_rps is None or capacity.upper_rps is None
    if capacity.passed_rps is not None and capacity.failed_rps is not None:
        assert capacity.passed_rps < capacity.failed_rps
