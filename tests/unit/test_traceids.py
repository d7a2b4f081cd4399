"""Trace ids: made of run and request, and read back."""

import re

from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.traceids import request_of, salt_of, span_id, trace_id, traceparent

SALTS = st.text().map(salt_of)
NUMBERS = st.integers(0, 2**64 - 1)


@given(SALTS, NUMBERS, st.integers(1, 100))
def test_the_header_is_as_w3c_wants_it_and_no_identifier_is_zero(salt: int, number: int, attempt: int) -> None:
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", traceparent(salt, number, attempt))
    assert match is not None
    assert match.groups() == (trace_id(salt, number), span_id(salt, number, attempt))
    assert all(int(part, 16) for part in match.groups())


@given(SALTS, NUMBERS)
def test_the_request_is_read_back_out_of_its_trace(salt: int, number: int) -> None:
    assert request_of(salt, trace_id(salt, number)) == number


@given(st.text(), st.text(), NUMBERS)
def test_a_trace_of_another_run_is_of_nobody(run: str, other: str, number: int) -> None:
    found = request_of(salt_of(run), trace_id(salt_of(other), number))
    assert (found == number) == (run == other)


@given(SALTS, st.text(max_size=40))
def test_any_text_is_a_trace_of_ours_or_none(salt: int, text: str) -> None:
    assert request_of(salt, text) is None


@given(SALTS, st.integers(0, 2**63))
def test_the_half_that_backends_of_64_bits_keep_is_never_zero(salt: int, number: int) -> None:
    assert int(trace_id(salt, number)[16:], 16)


def test_successive_requests_are_sampled_evenly_by_ratio() -> None:
    """A sampler that keeps one in ten by the lower half of the trace id keeps about one in ten of ours."""
    kept = sum(int(trace_id(salt_of("r"), n)[16:], 16) < 2**64 // 10 for n in range(1000))
    assert 95 <= kept <= 105
