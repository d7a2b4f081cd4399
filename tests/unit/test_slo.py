"""The SLO language and how single requests are held against it."""

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.slo import derive_slos, parse_slo, parse_slos, request_meets, surely_missed


def meets(slo: str, status: str = "ok", **values: float | None) -> bool | None:
    defaults = {"ttft_s": None, "tpot_s": None, "e2e_s": None, "itl_max_s": None}
    return request_meets(parse_slo(slo), status=status, **{**defaults, **values})


@pytest.mark.parametrize(
    ("text", "metric", "attainment", "limit"),
    [
        ("ttft p99 < 500ms", "ttft", 0.99, 0.5),
        ("TPOT P95<50ms", "tpot", 0.95, 0.05),
        ("e2e p99.9 <= 8s", "e2e", 0.999, 8),
        ("itl p90 < 0.2", "itl", 0.9, 0.2),
        ("errors < 1%", "errors", 0.99, 0.01),
        ("error < 0.05", "errors", 0.95, 0.05),
    ],
)
def test_an_slo_is_a_share_of_requests_and_a_limit(text: str, metric: str, attainment: float, limit: float) -> None:
    slo = parse_slo(text)
    assert (slo.metric, slo.attainment_ratio, slo.limit) == (metric, pytest.approx(attainment), pytest.approx(limit))
    assert parse_slo(slo.text) == slo


@pytest.mark.parametrize(
    "text",
    ["", "ttft < 500ms", "ttft p99 > 500ms", "latency p99 < 1s", "ttft p0 < 1s", "ttft p100 < 1s", "ttft p99 < soon",
     "ttft p99 < 0ms", "errors < 0%", "errors < 200%", "errors", "tpot p95 < -1ms"],
)  # fmt: skip
def test_what_is_no_slo_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_slo(text)
    assert "\n" not in str(caught.value)


def test_errors_get_a_limit_of_their_own_when_none_is_given() -> None:
    assert [slo.text for slo in parse_slos(["ttft p99 < 500ms"])] == ["ttft p99 < 500ms", "errors < 1%"]
    assert [slo.text for slo in parse_slos(["errors < 5%"])] == ["errors < 5%"]
    assert parse_slos([]) == ()


def test_two_limits_for_one_percentile_are_refused() -> None:
    with pytest.raises(UsageError, match="keep one"):
        parse_slos(["ttft p99 < 500ms", "ttft p99 < 900ms"])


def test_a_failed_request_counts_as_an_error_and_not_as_a_latency() -> None:
    for status in ("rejected", "http_error", "stream_error", "transport_error", "truncated"):
        assert meets("errors < 1%", status) is False
        assert meets("ttft p99 < 500ms", status, ttft_s=0.1) is None


def test_a_timeout_misses_latency_and_errors() -> None:
    assert meets("errors < 1%", "timeout") is False
    assert meets("ttft p99 < 500ms", "timeout", ttft_s=0.1) is False


def test_what_we_withdrew_or_never_sent_counts_nowhere() -> None:
    for status in ("cancelled", "dropped"):
        assert meets("errors < 1%", status) is None
        assert meets("e2e p99 < 1s", status, e2e_s=0.5) is None


def test_a_single_token_answer_has_no_tpot_to_judge() -> None:
    assert meets("tpot p95 < 50ms", tpot_s=None) is None
    assert meets("tpot p95 < 50ms", tpot_s=0.049) is True
    assert meets("tpot p95 < 50ms", tpot_s=0.05) is False


def waiting(slo: str, age_s: float, first_byte: bool = False, since_first_s: float | None = None) -> bool:
    return surely_missed(
        parse_slo(slo), age_s=age_s, has_first_byte=first_byte, since_first_token_s=since_first_s, max_output_tokens=11
    )


def test_a_request_without_a_byte_at_the_limit_has_missed_ttft() -> None:
    assert waiting("ttft p99 < 500ms", 0.5)
    assert not waiting("ttft p99 < 500ms", 0.49)
    assert not waiting("ttft p99 < 500ms", 9.0, first_byte=True)


def test_tpot_is_missed_once_the_longest_answer_would_be_too_slow() -> None:
    assert waiting("tpot p95 < 50ms", 9.0, True, since_first_s=0.5)
    assert not waiting("tpot p95 < 50ms", 9.0, True, since_first_s=0.49)
    assert not waiting("tpot p95 < 50ms", 9.0, True)


def test_defaults_follow_the_unloaded_latency_with_floors() -> None:
    fast = [slo.text for slo in derive_slos(0.02, 0.005, 0.5)]
    slow = [slo.text for slo in derive_slos(1.0, 0.1, 9.0)]
    assert fast == ["ttft p95 < 500ms", "tpot p95 < 30ms", "errors < 1%"]
    assert slow == ["ttft p95 < 4s", "tpot p95 < 250ms", "errors < 1%"]


def test_a_service_that_does_not_stream_is_judged_by_its_whole_answers() -> None:
    assert [slo.text for slo in derive_slos(None, None, 0.5)] == ["e2e p95 < 2s", "errors < 1%"]


def test_an_slo_of_one_class_names_it() -> None:
    slo = parse_slo("chat: TTFT p99 < 500ms")
    assert (slo.scope, slo.text, slo.metric, slo.limit) == ("chat", "chat: ttft p99 < 500ms", "ttft", 0.5)
    assert parse_slo(slo.text) == slo
    assert parse_slo("errors < 1%").scope is None


def test_classes_may_promise_the_same_and_each_only_once() -> None:
    texts = ["chat: ttft p99 < 1s", "rag: ttft p99 < 2s", "ttft p99 < 3s", "rag: errors < 2%"]
    assert [slo.text for slo in parse_slos(texts)] == [*texts, "errors < 1%"]
    with pytest.raises(UsageError, match="two SLOs for the same percentile"):
        parse_slos(["chat: ttft p99 < 1s", "chat: ttft p99 < 2s"])
    with pytest.raises(UsageError, match="names a class of its own"):
        parse_slo("chat: rag: ttft p99 < 1s")


def test_a_request_that_was_withdrawn_after_a_late_first_token_has_missed_its_ttft() -> None:
    slo = parse_slo("ttft p95 < 500ms")
    for ttft_s, missed in ((0.6, True), (0.4, False)):
        found = surely_missed(
            slo, age_s=2.0, has_first_byte=True, since_first_token_s=2.0 - ttft_s, max_output_tokens=9
        )
        assert found is missed
