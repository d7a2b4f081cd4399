"""Laws of durations and of counts, and the text that names them.

Durations (think time, patience):

    2s, constant:2s          always the same
    exponential:2s           mean
    lognormal:2s:0.5         mean, and sigma of the logarithm
    trace:FILE[:COLUMN]      drawn from the values of a file, in seconds

Counts (turns of a conversation), at least 1:

    4, constant:4            always the same
    geometric:4              mean: after each turn the conversation ends with the same probability
    uniform:2:8              from, to
    trace:FILE[:COLUMN]      drawn from the values of a file, whole numbers

A file is CSV with a header or JSON lines, plain or .gz; without COLUMN it has one number per line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.plan import TURNS_MAX
from pinchpoint.units import parse_duration_s
from pinchpoint.workload.trace import read_numbers

DURATION_MAX_S = 1e9
"""Thirty years: longer than any run, and far within int64 nanoseconds."""
SIGMA_MAX = 5.0
"""Of a log-normal: its mean is then 268,000 times its median, and more cannot be seen in any run."""


@dataclass(frozen=True)
class DurationLaw:
    """`draw_s(count, rng)` gives float64 seconds. mean_s: of the law."""

    text: str
    mean_s: float
    draw_s: Callable[[int, np.random.Generator], np.ndarray]

    def draw_ns(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """int64 nanoseconds, shape (count,), at most DURATION_MAX_S each."""
        return np.rint(np.minimum(self.draw_s(count, rng), DURATION_MAX_S) * NS_PER_S).astype(np.int64)


@dataclass(frozen=True)
class CountLaw:
    """`draw(count, rng)` gives int64 from 1 to TURNS_MAX."""

    text: str
    mean: float
    draw: Callable[[int, np.random.Generator], np.ndarray]


def parse_durations(text: str) -> DurationLaw:
    """Raises UsageError."""
    kind, *given = text.strip().split(":")
    match kind, given:
        case "trace", [_, *_]:
            values = _from_file(text)
            if values.min() < 0:
                raise UsageError(f"{text!r} holds {values.min():g}; durations must not be negative")
            return DurationLaw(text, float(values.mean()), lambda count, rng: rng.choice(values, count))
        case ("constant", [mean]) | (mean, []):
            mean_s = _seconds(text, mean)
            return DurationLaw(text, mean_s, lambda count, rng: np.full(count, mean_s))
        case "exponential", [mean]:
            mean_s = _seconds(text, mean)
            return DurationLaw(text, mean_s, lambda count, rng: rng.exponential(mean_s, count))
        case "lognormal", [mean, sigma_text]:
            mean_s, sigma = _seconds(text, mean), _number(text, sigma_text, "sigma", 0.0, SIGMA_MAX)
            if mean_s == 0:
                raise UsageError(f"{text!r}: the mean of a log-normal must be above 0")
            location = np.log(mean_s) - sigma**2 / 2
            return DurationLaw(text, mean_s, lambda count, rng: rng.lognormal(location, sigma, count))
    raise UsageError(
        f"{text!r} is not a duration or a law of durations; write for example 2s, exponential:2s, lognormal:2s:0.5 or "
        "trace:think.csv:seconds"
    )


def parse_counts(value: int | str) -> CountLaw:
    """Raises UsageError."""
    text = str(value)
    kind, *given = text.strip().split(":")
    match kind, given:
        case "trace", [_, *_]:
            values = _from_file(text)
            if values.min() < 1 or values.max() > TURNS_MAX or np.any(values != np.rint(values)):
                raise UsageError(f"{text!r} must hold whole numbers from 1 to {TURNS_MAX}")
            whole = values.astype(np.int64)
            return CountLaw(text, float(values.mean()), lambda count, rng: rng.choice(whole, count))
        case ("constant", [number]) | (number, []):
            same = round(_number(text, number, "count", 1, TURNS_MAX, whole=True))
            return CountLaw(text, same, lambda count, rng: np.full(count, same, np.int64))
        case "geometric", [mean_text]:
            # So far below the limit that cutting there takes nothing away (e^-10 of the conversations).
            mean = _number(text, mean_text, "mean", 1, TURNS_MAX / 10)
            return CountLaw(text, mean, lambda count, rng: np.minimum(rng.geometric(1 / mean, count), TURNS_MAX))
        case "uniform", [low_text, high_text]:
            low = round(_number(text, low_text, "lower end", 1, TURNS_MAX, whole=True))
            high = round(_number(text, high_text, "upper end", low, TURNS_MAX, whole=True))
            return CountLaw(text, (low + high) / 2, lambda count, rng: rng.integers(low, high + 1, count))
    raise UsageError(
        f"{text!r} is not a count or a law of counts; write for example 4, geometric:4, uniform:2:8 or "
        "trace:turns.csv:turns"
    )


def _seconds(text: str, given: str) -> float:
    value_s = parse_duration_s(given)
    if value_s > DURATION_MAX_S:
        raise UsageError(f"{text!r}: a duration of at most {DURATION_MAX_S:g} s can be used")
    return value_s


def _number(text: str, given: str, what: str, low: float, high: float, *, whole: bool = False) -> float:
    try:
        value = float(given)
    except ValueError:
        value = np.nan
    if not low <= value <= high or (whole and value != round(value)):
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{text!r}: the {what} is {given!r}; it must be {kind} from {low:g} to {high:g}")
    return value


def _from_file(text: str) -> np.ndarray:
    place = text.strip().removeprefix("trace:")
    path, _, column = place.rpartition(":")
    if not path or Path(place).exists():
        path, column = place, ""
    return read_numbers(Path(path), column or None)
