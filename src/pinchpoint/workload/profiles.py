"""How the rate changes within a stage: lambda(t), its integral, and the inverse of the integral.

A process of unit rate becomes one of rate lambda(t) when each of its instants u is moved to the t at which the
cumulated rate Lambda(t) reaches u (time change; Çinlar 1975, chapter 4). This is exact for every process: nothing is
thinned, rescaled or started anew where the rate changes. Where the rate is zero the clock of the process stands still.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pinchpoint.plan import OnOffStage, OpenKind, OpenStage, RampStage, SineStage, SpikeStage, StepsStage
from pinchpoint.units import format_duration, significant

BISECTIONS = 52
"""Halvings of one period: as far as a float64 goes, and below a nanosecond for periods of weeks."""
BISECTION_ROWS = 1 << 16
"""At a time, so that what is halved stays in the cache."""

STEPS_SHOWN_MAX = 8
"""More steps than this are told by their range."""


class Profile(Protocol):
    @property
    def text(self) -> str:
        """What the rate does, for people; "flat" when it stays."""
        ...

    def cumulated(self, t_s: float) -> float:
        """Expected arrivals in [0, t_s)."""
        ...

    def instants_s(self, units: np.ndarray) -> np.ndarray:
        """The instants at which the cumulated rate passes `units`, float64 of the same shape; infinite if never."""
        ...


@dataclass(frozen=True)
class Piecewise:
    """Straight pieces: (length_s, rate at its begin, rate at its end), then the last rate for ever."""

    text: str
    pieces: tuple[tuple[float, float, float], ...]

    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Begin, rate at the begin, slope and cumulated rate at the begin of each piece, the endless one included."""
        lengths, begins, ends = (np.array(column, float) for column in zip(*self.pieces, strict=True))
        areas = lengths * (begins + ends) / 2
        start_s = np.concatenate([[0.0], np.cumsum(lengths)])
        cumulated = np.concatenate([[0.0], np.cumsum(areas)])
        slopes = np.concatenate([(ends - begins) / lengths, [0.0]])
        return start_s, np.concatenate([begins, ends[-1:]]), slopes, cumulated

    def cumulated(self, t_s: float) -> float:
        start_s, rates, slopes, cumulated = self._table()
        piece = int(np.searchsorted(start_s, t_s, side="right")) - 1
        inside_s = t_s - start_s[piece]
        return float(cumulated[piece] + inside_s * (rates[piece] + slopes[piece] * inside_s / 2))

    def instants_s(self, units: np.ndarray) -> np.ndarray:
        start_s, rates, slopes, cumulated = self._table()
        piece = np.searchsorted(cumulated, units, side="right") - 1
        rest, rate = units - cumulated[piece], rates[piece]
        # The root of rate t + slope t^2 / 2 = rest that loses no digits where slope or rate is small.
        root = np.sqrt(np.maximum(rate**2 + 2 * slopes[piece] * rest, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            inside_s = 2 * rest / (rate + root)
        inside_s = np.where(rest == 0, 0.0, inside_s)
        never = (rates[-1] == 0) & (units >= cumulated[-1])
        return np.where(never, np.inf, start_s[piece] + inside_s)


@dataclass(frozen=True)
class OnOff:
    """`rate_rps` for on_s, nothing for off_s, and so on."""

    rate_rps: float
    on_s: float
    off_s: float

    @property
    def text(self) -> str:
        return f"{_rate(self.rate_rps)} for {format_duration(self.on_s)}, off for {format_duration(self.off_s)}"

    def cumulated(self, t_s: float) -> float:
        periods = math.floor(t_s / (self.on_s + self.off_s))
        inside_s = t_s - periods * (self.on_s + self.off_s)
        return self.rate_rps * (periods * self.on_s + min(inside_s, self.on_s))

    def instants_s(self, units: np.ndarray) -> np.ndarray:
        area = self.rate_rps * self.on_s
        periods = np.floor(units / area)
        inside_s = np.clip(units - periods * area, 0.0, area) / self.rate_rps
        return periods * (self.on_s + self.off_s) + inside_s


@dataclass(frozen=True)
class Sine:
    """mean_rps * (1 + amplitude_ratio * sin(2 pi t / period_s))."""

    mean_rps: float
    amplitude_ratio: float
    period_s: float

    @property
    def text(self) -> str:
        swing = significant(100 * self.amplitude_ratio)
        return f"sine around {_rate(self.mean_rps)}, ±{swing} %, period {format_duration(self.period_s)}"

    def cumulated(self, t_s: float) -> float:
        radian_s = self.period_s / (2 * math.pi)
        return self.mean_rps * (t_s + self.amplitude_ratio * radian_s * (1 - math.cos(t_s / radian_s)))

    def instants_s(self, units: np.ndarray) -> np.ndarray:
        turns = units / (self.mean_rps * self.period_s)
        whole = np.floor(turns)
        wanted = 2 * np.pi * (turns - whole)
        phase = np.empty_like(wanted)
        for begin in range(0, len(wanted), BISECTION_ROWS):
            rows = slice(begin, begin + BISECTION_ROWS)
            phase[rows] = self._phase(wanted[rows])
        return self.period_s * (whole + phase / (2 * np.pi))

    def _phase(self, wanted: np.ndarray) -> np.ndarray:
        """x in [0, 2 pi) with x + amplitude (1 - cos x) = wanted. Halving, as the slope may be zero."""
        low, width = np.zeros_like(wanted), 2 * np.pi
        for _ in range(BISECTIONS):
            width /= 2
            middle = low + width
            low = np.where(middle + self.amplitude_ratio * (1 - np.cos(middle)) <= wanted, middle, low)
        return low


def profile_of(stage: OpenKind) -> Profile:
    """The profile of a stage whose numbers the plan has checked."""
    match stage:
        case OpenStage(rate_rps=rate_rps):
            return flat(rate_rps)
        case RampStage(from_rps=begin, to_rps=end, duration_s=length_s):
            text = f"ramp from {_rate(begin)} to {_rate(end)} over {format_duration(length_s)}"
            return Piecewise(text, ((length_s, begin, end),))
        case StepsStage(rates_rps=rates):
            lengths = step_lengths_s(stage)
            if len(rates) <= STEPS_SHOWN_MAX:
                text = "steps of " + ", ".join(
                    f"{_rate(r)} for {format_duration(s)}" for r, s in zip(rates, lengths, strict=True)
                )
            else:
                text = f"{len(rates)} steps of {_rate(min(rates))} to {_rate(max(rates))}"
            return Piecewise(text, tuple((s, r, r) for s, r in zip(lengths, rates, strict=True)))
        case SpikeStage(base_rps=base, peak_rps=peak, at_s=at_s, for_s=for_s):
            text = f"{_rate(base)}, {_rate(peak)} at {format_duration(at_s)} for {format_duration(for_s)}"
            before = ((at_s, base, base),) if at_s > 0 else ()
            # The last piece only says what the rate is ever after.
            return Piecewise(text, (*before, (for_s, peak, peak), (1.0, base, base)))
        case SineStage(mean_rps=mean, amplitude_ratio=ratio, period_s=period_s):
            return Sine(mean, ratio, period_s)
        case OnOffStage(rate_rps=rate_rps, on_s=on_s, off_s=off_s):
            return OnOff(rate_rps, on_s, off_s)


def flat(rate_rps: float) -> Piecewise:
    return Piecewise("flat", ((1.0, rate_rps, rate_rps),))


def step_lengths_s(stage: StepsStage) -> tuple[float, ...]:
    return stage.durations_s or (stage.each_s or 0.0,) * len(stage.rates_rps)


def _rate(rate_rps: float) -> str:
    return f"{significant(rate_rps)} req/s"
