"""Arrival processes: when requests are due, seeded and exact.

A stage of an open loop is a process of unit rate (this module) under a rate profile (profiles.py). The processes:

    constant   one arrival each unit, the first after half a unit: [0, n) has exactly n, and two stages one after the
               other keep the gap at their seam
    poisson    independent exponential gaps
    gamma:CV   independent gamma gaps of mean 1 and coefficient of variation CV: shape 1 / CV^2. 1 is poisson; above it
               arrivals come in clusters, below they are more even
    bursts:N   N arrivals at one instant; the instants are those of `constant`, one every N units

Poisson and gamma are stationary: the first gap is what is left of a gap that was under way (the equilibrium renewal
process of Cox, Renewal Theory, 1962), so that the expected count is the cumulated rate from the first instant on.
Nothing is rescaled to a wanted count or sum, which would take away the scatter that the process is chosen for.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.plan import STAGE_REQUESTS_MAX
from pinchpoint.workload.profiles import Profile

DRAW_MAX = 1 << 20
"""Gaps drawn at a time; bounds the memory of a stage whose length is not known beforehand."""
CV_RANGE = (0.01, 100.0)
"""Beyond, gamma gaps are equal, or all but a few of them zero, to the digits of a float64."""
_HELP = "choose constant, poisson, gamma:CV (such as gamma:2) or bursts:N (such as bursts:10)"


@dataclass(frozen=True)
class Arrivals:
    """A process of unit rate. parameter: coefficient of variation of the gaps, or the size of a burst; else 1."""

    kind: Literal["constant", "poisson", "gamma", "bursts"]
    parameter: float = 1.0

    @property
    def text(self) -> str:
        return f"{self.kind}:{self.parameter:g}" if self.kind in ("gamma", "bursts") else self.kind

    @property
    def group(self) -> int:
        """Arrivals that share one instant."""
        return int(self.parameter) if self.kind == "bursts" else 1


def parse_arrivals(text: str) -> Arrivals:
    """Raises UsageError."""
    kind, colon, given = text.strip().partition(":")
    if kind in ("constant", "poisson") and not colon:
        return Arrivals(kind)
    if kind == "gamma":
        try:
            cv = float(given)
        except ValueError:
            cv = math.nan
        if not CV_RANGE[0] <= cv <= CV_RANGE[1]:
            raise UsageError(
                f"{text!r}: the coefficient of variation of gamma must be a number from {CV_RANGE[0]:g} to "
                f"{CV_RANGE[1]:g}; write for example gamma:2"
            )
        return Arrivals(kind, cv)
    if kind == "bursts":
        if not given.isdecimal() or not 1 <= int(given) <= STAGE_REQUESTS_MAX:
            raise UsageError(f"{text!r}: the size of a burst must be a whole number above 0, such as bursts:10")
        return Arrivals(kind, float(given))
    raise UsageError(f"{text!r} is not an arrival process; {_HELP}")


def unit_instants(
    arrivals: Arrivals, rng: np.random.Generator, *, until: float = math.inf, count: int | None = None
) -> np.ndarray:
    """Instants of the unit-rate process in [0, until), float64 in order; at most the first `count` of them.

    One of the bounds must be given. A shorter stretch is the beginning of a longer one with the same generator.
    """
    if arrivals.kind in ("constant", "bursts"):
        size = arrivals.group
        groups = math.inf if count is None else math.ceil(count / size)
        groups = int(min(groups, max(0, math.ceil(until / size - 0.5)) if until < math.inf else math.inf))
        return np.repeat((np.arange(groups) + 0.5) * size, size)[:count]
    drawn: list[np.ndarray] = []
    reached, left = 0.0, count
    while reached < until and left != 0:
        wanted = left if left is not None else _likely_count(until - reached, arrivals.parameter)
        gaps = _gaps(arrivals, rng, min(int(wanted), DRAW_MAX), first=not drawn)
        instants = reached + np.cumsum(gaps)
        reached = float(instants[-1])
        drawn.append(instants)
        left = None if left is None else left - len(instants)
    instants = np.concatenate(drawn) if drawn else np.empty(0)
    return instants[: int(np.searchsorted(instants, until, side="left"))]


def _likely_count(length: float, cv: float) -> float:
    """Enough gaps to pass `length` nearly always; the caller draws again when they do not."""
    return min(length + 5 * max(1.0, cv) * math.sqrt(length) + 10, DRAW_MAX)


def _gaps(arrivals: Arrivals, rng: np.random.Generator, count: int, *, first: bool) -> np.ndarray:
    if arrivals.kind == "poisson":
        return rng.exponential(1.0, count)  # what is left of an exponential gap is exponential
    shape = arrivals.parameter**-2
    if not first:
        return rng.gamma(shape, 1 / shape, count)
    # A gap met under way is longer the longer it is (gamma of shape + 1), and met anywhere in it.
    rest = rng.random() * rng.gamma(shape + 1, 1 / shape)
    return np.concatenate([[rest], rng.gamma(shape, 1 / shape, count - 1)])


def offsets_ns(
    arrivals: Arrivals,
    profile: Profile,
    rng: np.random.Generator,
    *,
    duration_s: float | None = None,
    count: int | None = None,
) -> np.ndarray:
    """Arrivals of the process under the profile: int64 nanoseconds in order, in [0, duration_s), or the first `count`.

    One of the two must be given. Raises UsageError as check_fits.
    """
    until = check_fits(arrivals, profile, duration_s, count)
    instants_s = profile.instants_s(unit_instants(arrivals, rng, until=until, count=count))
    offsets = np.rint(instants_s * NS_PER_S).astype(np.int64)
    return offsets if duration_s is None else offsets[offsets < round(duration_s * NS_PER_S)]


def check_fits(arrivals: Arrivals, profile: Profile, duration_s: float | None, count: int | None) -> float:
    """The expected count of the stage; infinite without a duration.

    Raises UsageError for more than STAGE_REQUESTS_MAX requests, and for bursts that do not come or not come whole.
    """
    expected = math.inf if duration_s is None else profile.cumulated(duration_s)
    if count is None and expected > STAGE_REQUESTS_MAX:
        raise too_many(expected)
    if count is not None and count % arrivals.group:
        raise UsageError(f"{count} requests are no whole number of bursts of {arrivals.group}; ask for a multiple")
    if arrivals.kind == "bursts" and expected < arrivals.group / 2:
        raise UsageError(
            f"a burst of {arrivals.group} does not come in a stage of {expected:.3g} requests; make the stage longer "
            "or the burst smaller"
        )
    return expected


def too_many(requests: float) -> UsageError:
    return UsageError(
        f"about {requests:.3g} requests are more than the {STAGE_REQUESTS_MAX} that a stage can have; make several "
        "stages of it"
    )
