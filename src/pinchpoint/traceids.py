"""Trace identifiers of our own requests: made of the run and the request's number, so that nothing has to be stored.

A request may carry the W3C header `traceparent: 00-<trace id>-<span id>-01` (W3C Trace Context, level 1, section 3.2).
What a service then tells of the request bears the same trace id, and the number is read back out of it:

    trace id = salt of the run (64 bits), (request_id + 1) * SPREAD mod 2^64
    span id  = the lower half of the trace id, mixed with the salt, plus the number of the attempt

The multiplication can be undone because SPREAD is odd, and it scatters successive numbers evenly over the range, which
samplers by ratio compare with a bound (OpenTelemetry's TraceIdRatioBased looks at the lower 64 bits).
"""

import hashlib

HEADER = "traceparent"
MASK = (1 << 64) - 1
SPREAD = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, made odd (Knuth, The Art of Computer Programming 3, section 6.4)."""
UNSPREAD = pow(SPREAD, -1, 1 << 64)
SALT_BYTES = 8
HALF_DIGITS = 16
SAMPLED = "01"
"""Trace flags: whoever samples by its parent keeps the request."""


def salt_of(run_id: str) -> int:
    """64 bits that tell the run from others, never zero."""
    return int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=SALT_BYTES).digest(), "big") or 1


def trace_id(salt: int, request_id: int) -> str:
    """32 hexadecimal digits."""
    return f"{salt:016x}{_lower(request_id):016x}"


def span_id(salt: int, request_id: int, attempt: int = 1) -> str:
    """16 hexadecimal digits, never all zero: the span that we play, which is the parent of the service's first."""
    return f"{((_lower(request_id) ^ salt) + attempt) & MASK or 1:016x}"


def traceparent(salt: int, request_id: int, attempt: int = 1) -> str:
    """The header's value. attempt: from 1."""
    return f"00-{trace_id(salt, request_id)}-{span_id(salt, request_id, attempt)}-{SAMPLED}"


def request_of(salt: int, trace: str) -> int | None:
    """The number of the request whose trace this is; None when it is of another run, or of nobody's of ours."""
    if len(trace) != 2 * HALF_DIGITS or trace[:HALF_DIGITS] != f"{salt:016x}":
        return None
    try:
        return (int(trace[HALF_DIGITS:], 16) * UNSPREAD - 1) & MASK
    except ValueError:
        return None


def _lower(request_id: int) -> int:
    """Zero for no request that there is: backends with identifiers of 64 bits keep this half alone."""
    return (request_id + 1) * SPREAD & MASK
