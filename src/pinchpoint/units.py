"""Parsing and printing of quantities with units: "500ms", "3m", "2.5rps", "1%".

Seconds and ratios inside, milliseconds only on screen. Printing keeps three significant digits, because no figure
of a load test is worth more.
"""

import math
import re

from pinchpoint.errors import UsageError

_DURATION_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile(rf"({_NUMBER})\s*(us|µs|ms|min|s|m|h)")
_RATE = re.compile(rf"({_NUMBER})\s*(rps|/s|req/s|rpm|/m)?")
_RATIO = re.compile(rf"({_NUMBER})\s*(%)?")

MISSING = "–"
"""What is printed for a value that is not known."""


def parse_duration_s(text: str) -> float:
    """Seconds in "90s", "1m30s", "500ms" or a bare number of seconds. Raises UsageError."""
    cleaned = text.strip().lower()
    if re.fullmatch(_NUMBER, cleaned):
        return float(cleaned)
    total_s, position = 0.0, 0
    for match in _DURATION.finditer(cleaned):
        if match.start() != position:
            break
        total_s += float(match[1]) * _DURATION_S[match[2]]
        position = match.end()
    if position == 0 or position != len(cleaned):
        raise UsageError(f"{text!r} is not a duration; write for example 500ms, 90s or 3m")
    return total_s


def parse_rate_rps(text: str) -> float:
    """Requests per second in "20", "20rps" or "600rpm". Raises UsageError unless > 0."""
    match = _RATE.fullmatch(text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is not a request rate; write for example 20, 20rps or 600rpm, above 0")
    return float(match[1]) / (60.0 if match[2] in ("rpm", "/m") else 1.0)


def parse_ratio(text: str) -> float:
    """A ratio 0 to 1 in "1%" or "0.01". Raises UsageError."""
    match = _RATIO.fullmatch(text.strip())
    value = float(match[1]) / (100.0 if match[2] else 1.0) if match else math.nan
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{text!r} is not a ratio; write for example 1% or 0.01, between 0 and 1")
    return value


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits and no exponent: 1234.5 -> "1230", 0.01234 -> "0.0123"."""
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    text = f"{rounded:.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_duration(value_s: float | None) -> str:
    """0.0123 -> "12.3 ms", 83 -> "1 m 23 s", None -> a dash."""
    if value_s is None or not math.isfinite(value_s):
        return MISSING
    magnitude = abs(value_s)
    if magnitude < 1e-3:
        return f"{significant(value_s * 1e6)} µs"
    if magnitude < 1:
        return f"{significant(value_s * 1e3)} ms"
    if magnitude < 60:
        return f"{significant(value_s)} s"
    minutes, seconds = divmod(round(value_s), 60)
    return f"{minutes} m {seconds} s" if seconds else f"{minutes} m"


def format_rate(value_rps: float | None) -> str:
    return MISSING if value_rps is None else f"{significant(value_rps)} req/s"


def format_ratio(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{significant(value * 100)} %"


def format_count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def counted(n: int, noun: str) -> str:
    """1 -> "1 request", 1200 -> "1,200 requests"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
