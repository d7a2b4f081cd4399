"""Where the share of misses crosses what an SLO allows: a posterior over the rate, from all steps together.

Near the crossing the logit of the share of misses is close to a straight line in the logarithm of the rate. The model
is that line, with unknown place and slope, and nothing farther away: a share far above the allowed one only says that
the crossing lies below. What the line does not know (queues that had not settled, drift, misfit) is an error of each
step in its place. The posterior is computed on a grid: no sampling, no optimiser, the same numbers every time.
docs/explanation/capacity.md has the reasons and how well it holds.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

TOLD_FACTOR = 4.0
"""A share of misses beyond so many times the allowed one says no more than that it is at least so large."""
PLACE_SIGMA = 0.025
"""Standard deviation of a step's error in its place, in the logarithm of the rate."""
COMMON_SIGMA = 0.025
"""The same of what all steps of a run have in common: bends of the curve that a straight line misses, the lengths that
happened to be drawn. It bounds how narrow an interval can get: 10 % from end to end. Set so that intervals of the
tuning half of bench/capacity.py hold the truth as often as they say."""
LENGTHS_VARIANCE = 0.25
"""Of the lengths of requests over their squared mean: a step of few requests is lighter or heavier by chance in them.
Chats have 0.2 to 0.3 (log-normal with sigma 0.4 to 0.5)."""
SLOPES = np.geomspace(2.0, 150.0, 9)
"""Logit per e-fold of the rate. Token buckets and slow decoding have 3 to 10, queues 20 to 100."""
SLOPE_MIDDLE, SLOPE_SPREAD = 15.0, 1.2
"""Median, and standard deviation of the logarithm, of the prior over slopes."""
GRID_STEP = 0.01
GRID_MARGIN = 1.4
"""The grid reaches so far beyond the rates that were tried (in the logarithm: a factor of four)."""
UNSUSTAINED_ERROR = 0.005
"""Probability that a backlog seems to grow at a rate below capacity."""
UNSUSTAINED_BLUR = 0.03
"""In the logarithm of the rate: how close to the capacity that probability changes."""
DEPENDENCE_PRIOR, DEPENDENCE_PRIOR_WEIGHT = 0.3, 4.0
"""Independent share of the requests before misses were seen, and how many misses that is worth."""
DEPENDENCE_STEP_WEIGHT = 10.0
"""Misses that a step needs to be believed as much as all steps together."""

LOGISTIC_NORMAL = math.pi / 8
"""A logistic curve smeared by a normal error of variance v is nearly one whose slope is divided by
sqrt(1 + LOGISTIC_NORMAL slope² v) (MacKay 1992)."""
SMEAR_MAX = 0.15
"""In the logarithm of the rate: no step is moved farther for the chance in its arrivals."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(3)


class Seen(msgspec.Struct, frozen=True):
    """What one step says of one SLO. rate_rps: as it came, not as it was asked for. effective: independent share of
    the requests as the step alone shows it. arrived: requests that rate_rps was counted from; None: it is exact."""

    rate_rps: float
    misses: int
    counted: int
    effective: float = 1.0
    arrived: int | None = None


class Crossing:
    """Posterior of the capacity over `grid`, the logarithms of rates. Quantiles in req/s."""

    def __init__(self, grid: np.ndarray, density: np.ndarray, by_slo: tuple[np.ndarray, ...]) -> None:
        self._grid = grid
        self._cumulative = np.cumsum(density) / density.sum()
        self.by_slo = by_slo
        """Probability of each SLO to be the one that breaks first."""

    def quantile(self, q: float) -> float:
        return float(math.exp(np.interp(q, self._cumulative, self._grid)))

    def below(self, rate_rps: float) -> float:
        """Probability that the capacity is below a rate."""
        return float(np.interp(math.log(rate_rps), self._grid, self._cumulative))


def crossing_of(
    steps: Sequence[Sequence[Seen]], allowed_ratios: Sequence[float], unsustained_rps: Sequence[float] = ()
) -> Crossing | None:
    """steps: for each SLO what every step says of it. unsustained_rps: rates at which a backlog grew. None without a
    step. The capacity is the lowest crossing of all SLOs."""
    rates = [seen.rate_rps for of_slo in steps for seen in of_slo if seen.counted]
    if not rates:
        return None
    rates += list(unsustained_rps)
    grid = np.arange(math.log(min(rates)) - GRID_MARGIN, math.log(max(rates)) + GRID_MARGIN, GRID_STEP)
    survival = np.ones((len(steps), len(grid)))
    for k, (of_slo, allowed_ratio) in enumerate(zip(steps, allowed_ratios, strict=True)):
        density = _density(of_slo, allowed_ratio, grid)
        survival[k] = np.maximum(1 - (np.cumsum(density) - density / 2) / density.sum(), 1e-300)
    hazard = -np.gradient(np.log(survival), axis=1)
    total = survival.prod(axis=0)
    for rate_rps in unsustained_rps:
        above = 1 / (1 + np.exp((grid - math.log(rate_rps)) / UNSUSTAINED_BLUR))
        total_weight = UNSUSTAINED_ERROR + (1 - UNSUSTAINED_ERROR) * above
        hazard = hazard * total_weight
    density = _blurred(np.maximum(total * hazard.sum(axis=0), 0)) + 1e-300
    shares = (total * hazard).sum(axis=1)
    return Crossing(grid, density, tuple(shares / shares.sum()))


def _blurred(density: np.ndarray) -> np.ndarray:
    """Convolved with the common error; the same length."""
    reach = math.ceil(4 * COMMON_SIGMA / GRID_STEP)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * GRID_STEP / COMMON_SIGMA) ** 2)
    return np.convolve(density, kernel / kernel.sum(), mode="same")


def _density(steps: Sequence[Seen], allowed_ratio: float, grid: np.ndarray) -> np.ndarray:
    """Posterior density of one SLO's crossing over the grid, largest value 1."""
    slopes = SLOPES[:, None]
    prior = -0.5 * (np.log(SLOPES / SLOPE_MIDDLE) / SLOPE_SPREAD) ** 2
    log_likelihood = np.repeat(prior[:, None], len(grid), axis=1)
    edge = math.log(allowed_ratio / (1 - allowed_ratio))
    told = min(TOLD_FACTOR * allowed_ratio, 0.5)
    for step, share in zip(steps, independent_shares(steps, allowed_ratio), strict=True):
        if not step.counted:
            continue
        n = step.counted * share
        miss_ratio = min(step.misses / step.counted, told)
        terms = np.empty((len(_NODES), *log_likelihood.shape))
        place = math.log(step.rate_rps) - _smear(slopes, edge, step.arrived)
        sigma = math.sqrt(PLACE_SIGMA**2 + (LENGTHS_VARIANCE / step.arrived if step.arrived else 0.0))
        for q, node in enumerate(_NODES):
            logit = edge + slopes * (place + sigma * node - grid)
            if step.misses / step.counted > told:
                logit = np.minimum(logit, math.log(told / (1 - told)))
            # ln p = -softplus(-logit), ln (1 - p) = -softplus(logit)
            softplus = np.logaddexp(0, logit)
            terms[q] = n * (miss_ratio * logit - softplus) + math.log(_WEIGHTS[q] / _WEIGHTS.sum())
        log_likelihood += np.logaddexp.reduce(terms, axis=0)
    return np.exp(log_likelihood - log_likelihood.max()).sum(axis=0)


def _smear(slopes: np.ndarray, edge: float, arrived: int | None) -> np.ndarray | float:
    """How far the crossing at the rate that came lies above that in the long run, in the logarithm of the rate.

    In the long run there are stretches with more arrivals than the mean, and they bring more misses than the lighter
    ones save. A step is one stretch, and its arrivals were counted: its curve is steeper than that of the long run.
    The variance of the logarithm of a count of Poisson arrivals is one over the count.
    """
    if not arrived:
        return 0.0
    smeared = np.sqrt(1 + LOGISTIC_NORMAL * slopes**2 / arrived) - 1
    return np.minimum(abs(edge) / slopes * smeared, SMEAR_MAX)


def independent_shares(steps: Sequence[Seen], allowed_ratio: float) -> list[float]:
    """For each step the share of its requests that counts as independent: its own, drawn towards that of all steps.

    A step without a miss shows no dependence, though its requests waited in the same queue as those of other steps. A
    step far above the capacity shows one long run of misses, and nothing of the service near its capacity.
    """
    told = min(TOLD_FACTOR * allowed_ratio, 0.5)
    weights = np.array([step.misses if step.misses <= told * step.counted else 0 for step in steps], float)
    own = np.log([min(max(step.effective, 1e-3), 1.0) for step in steps]) if steps else np.zeros(0)
    total = DEPENDENCE_PRIOR_WEIGHT + float(weights.sum())
    common = (DEPENDENCE_PRIOR_WEIGHT * math.log(DEPENDENCE_PRIOR) + float((weights * own).sum())) / total
    drawn = (weights * own + DEPENDENCE_STEP_WEIGHT * common) / (weights + DEPENDENCE_STEP_WEIGHT)
    return np.exp(drawn).tolist()
