"""From recorded requests to a plan that makes any amount of load like them.

Learnt are: the rate over time as steps, where it changes by more than chance; how arrivals scatter around it (gamma
renewal, by the distribution of the gaps on the time axis of the cumulated rate); the joint law of input and output
lengths as quantiles of one within ranges of the other; turns and pauses where sessions are told; and shared beginnings
where prompts are told as blocks. `fitness` holds the result against requests that were held back.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.goodness import gamma_cdf
from pinchpoint.plan import JointSpec, PrefixSpec
from pinchpoint.workload.traces.table import RequestLog

REQUESTS_PER_WINDOW = 60
"""Enough to know a rate to an eighth; fewer would turn chance into a profile."""
WINDOWS_MAX = 60
SPREAD_SIGMAS = 3.0
"""Windows whose counts spread by more than chance by so much have rates of their own."""
CV_MIN, CV_MAX, CV_STEPS = 0.2, 8.0, 161
POISSON_CV = 0.06
"""A coefficient of variation so near to 1 is that of a Poisson process."""
TIES_MAX_RATIO = 0.2
"""More requests that share an instant with the one before mean that instants were rounded or requests bunched."""
GAPS_MIN = 20
"""Gaps from which a law can be told."""
RANGE_REQUESTS = 60
"""Requests behind each list of output quantiles."""
RANGES_MAX = 16
INPUT_QUANTILES = 65
OUTPUT_QUANTILES = 33
SHARED_MIN_RATIO = 0.02
"""Of the input tokens: less sharing is not worth a key in a plan."""
SKEW_MAX = 2.0
SKEW_TEXTS_MIN = 5
TURNS_MIN = 1.02
HISTORY_SHARE = 0.8
"""Of the later turns, whose input is at least all that was said before: then inputs hold the history."""
SIGMA_MAX = 3.0


@dataclass(frozen=True)
class Arrivals:
    """rates_rps: of equally long windows. cv: of the gaps on the axis of the cumulated rate. bunched: requests share
    instants, so gaps below `grid_s` are not known."""

    rates_rps: np.ndarray
    window_s: float
    cv: float
    bunched: bool
    grid_s: float

    @property
    def text(self) -> str:
        return "poisson" if abs(self.cv - 1) <= POISSON_CV else f"gamma:{self.cv:.3g}"

    @property
    def mean_rps(self) -> float:
        return float(self.rates_rps.mean())


@dataclass(frozen=True)
class Learnt:
    """What was learnt. None: the trace does not tell, or there is none of it."""

    arrivals: Arrivals | None
    joint: JointSpec
    turns: str | None = None
    think: str | None = None
    prefix: PrefixSpec | None = None
    notes: tuple[str, ...] = ()

    def scaled(self, factor: float) -> "Learnt":
        """With `factor` times the rate at every instant."""
        if self.arrivals is None:
            return self
        return replace(self, arrivals=replace(self.arrivals, rates_rps=self.arrivals.rates_rps * factor))


def learn(log: RequestLog, seen: np.ndarray | None = None, blocks_s: float | None = None) -> Learnt:
    """seen: rows to learn from, boolean; None: all. blocks_s: length of the time blocks that `seen` was cut from, of
    which every second one, the first included, was seen."""
    mask = np.ones(len(log), bool) if seen is None else seen
    notes = list(log.notes)
    arrivals = None
    if log.t_ns is not None and log.span_s > 0:
        arrivals = learn_arrivals(log.t_ns / NS_PER_S, mask, log.span_s, blocks_s)
        if arrivals.bunched:
            notes.append(
                f"{_ties_ratio(log.t_ns):.0%} of the requests share an instant with the one before: how arrivals "
                f"scatter within {arrivals.grid_s:.3g} s is not in this trace, only how they do over longer times"
            )
    else:
        notes.append("this trace has no instants: give the plan a rate of your own")
    if log.session is None:
        notes.append("sessions are not in this trace")
    prefix = learn_prefix(log, mask) if log.blocks is not None else None
    if log.blocks is None:
        notes.append("which beginnings prompts share is not in this trace")
    elif prefix is None:
        notes.append("prompts of this trace hardly share any beginnings")
    turns, think = learn_sessions(log) if log.session is not None else (None, None)
    joint = learn_joint(own_lengths(log)[mask], log.output_tokens[mask])
    return Learnt(arrivals, joint, turns, think, prefix, tuple(notes))


# -- arrivals ----------------------------------------------------------------------------------------------------------


def _ties_ratio(t_ns: np.ndarray) -> float:
    return float(np.mean(np.diff(t_ns) == 0)) if len(t_ns) > 1 else 0.0


def window_s(requests: int, span_s: float) -> float:
    """Length of a window of constant rate."""
    return span_s / float(np.clip(requests // REQUESTS_PER_WINDOW, 1, WINDOWS_MAX))


def learn_arrivals(t_s: np.ndarray, mask: np.ndarray, span_s: float, blocks_s: float | None) -> Arrivals:
    length_s = window_s(len(t_s), span_s)
    windows = max(1, round(span_s / length_s))
    counts = np.bincount(np.minimum((t_s[mask] / length_s).astype(int), windows - 1), minlength=windows).astype(float)
    exposure_s = np.full(windows, length_s) if blocks_s is None else _exposure_s(windows, length_s, blocks_s)
    rates_rps = counts / exposure_s
    bunched = len(t_s) > 1 and float(np.mean(np.diff(t_s) == 0)) > TIES_MAX_RATIO
    distinct_s = np.unique(t_s)
    grid_s = float(np.median(np.diff(distinct_s))) if bunched and len(distinct_s) > 1 else 0.0

    def cv_around(rates: np.ndarray) -> float:
        if bunched:
            return _cv_of_bunches(t_s, mask, rates, length_s, distinct_s)
        return _cv_of_gaps(t_s, mask, rates, length_s, blocks_s)

    cv = cv_around(rates_rps)
    expected = counts.mean()
    spread = counts.var(ddof=1) / expected / max(cv, 1.0) ** 2 if windows > 1 and expected > 0 else 1.0
    if windows > 1 and spread <= 1 + SPREAD_SIGMAS * np.sqrt(2 / (windows - 1)):
        rates_rps = np.full(windows, counts.sum() / exposure_s.sum())
        cv = cv_around(rates_rps)
    return Arrivals(rates_rps, length_s, cv, bunched, grid_s)


def _exposure_s(windows: int, length_s: float, blocks_s: float) -> np.ndarray:
    """Seconds of each window that lie in blocks which were seen."""
    whole, rest = np.divmod(np.arange(windows + 1) * length_s, 2 * blocks_s)
    return np.maximum(np.diff(whole * blocks_s + np.minimum(rest, blocks_s)), 1e-9)


def _cv_of_gaps(
    t_s: np.ndarray, mask: np.ndarray, rates_rps: np.ndarray, length_s: float, blocks_s: float | None
) -> float:
    """The coefficient of variation whose gamma law is nearest to the gaps on the axis of the cumulated rate, by the
    largest distance of the curves. No gap reaches across the edge of a block."""
    edges = np.concatenate([[0.0], np.cumsum(rates_rps * length_s)])
    at = np.interp(t_s, np.arange(len(rates_rps) + 1) * length_s, edges)
    both = mask[:-1] & mask[1:]
    if blocks_s is not None:
        both &= np.diff((t_s / blocks_s).astype(int)) == 0
    gaps = np.sort(np.diff(at)[both])
    if len(gaps) < GAPS_MIN or gaps.mean() <= 0:
        return 1.0
    gaps = gaps / gaps.mean()
    steps = (np.arange(len(gaps)) + 0.5) / len(gaps)
    candidates = np.geomspace(CV_MIN, CV_MAX, CV_STEPS)
    distances = [float(np.abs(gamma_cdf(gaps * cv**-2, cv**-2) - steps).max()) for cv in candidates]
    return float(candidates[int(np.argmin(distances))])


def _cv_of_bunches(
    t_s: np.ndarray, mask: np.ndarray, rates_rps: np.ndarray, length_s: float, distinct_s: np.ndarray
) -> float:
    """From how the numbers at each instant spread around what the rate lets expect: of a renewal process with many
    arrivals in each stretch, variance over mean is the square of the gaps' coefficient of variation (Cox, Renewal
    Theory, 4.2)."""
    edges = np.concatenate([[0.0], np.cumsum(rates_rps * length_s)])
    at = np.interp(distinct_s, np.arange(len(rates_rps) + 1) * length_s, edges)
    steps = np.diff(at)
    expected = np.append(steps, np.median(steps) if len(steps) else 1.0)
    places = np.searchsorted(distinct_s, t_s)
    counts = np.bincount(places, minlength=len(distinct_s)).astype(float)
    use = np.zeros(len(distinct_s), bool)
    use[places[mask]] = True
    use &= expected > 0
    if use.sum() < GAPS_MIN:
        return 1.0
    ratio = float(((counts[use] - expected[use]) ** 2).sum() / expected[use].sum())
    return float(np.clip(np.sqrt(ratio), CV_MIN, CV_MAX))


# -- lengths -----------------------------------------------------------------------------------------------------------


def own_lengths(log: RequestLog) -> np.ndarray:
    """Input tokens of each turn's own message: without what was said before, where inputs hold the history."""
    if log.session is None:
        return log.input_tokens
    order = np.argsort(log.session, kind="stable")
    session, inputs, outputs = log.session[order], log.input_tokens[order], log.output_tokens[order]
    later = np.concatenate([[False], session[1:] == session[:-1]])
    said = np.concatenate([[0], inputs[:-1] + outputs[:-1]])
    if not later.any() or np.mean(inputs[later] > said[later]) < HISTORY_SHARE:
        return log.input_tokens
    found = np.empty_like(inputs)
    found[order] = np.where(later, np.maximum(inputs - said, 1), inputs)
    return found


def learn_joint(inputs: np.ndarray, outputs: np.ndarray) -> JointSpec:
    """Quantiles of the input, and of the output within equally likely ranges of it."""
    ranges = int(np.clip(len(inputs) // RANGE_REQUESTS, 1, RANGES_MAX))
    # Equal inputs are spread over their ranges by chance, as they are when lengths are drawn.
    order = np.lexsort((np.random.default_rng(0).random(len(inputs)), inputs))
    return JointSpec(
        _quantiles(inputs, INPUT_QUANTILES),
        tuple(_quantiles(part, OUTPUT_QUANTILES) for part in np.array_split(outputs[order], ranges)),
    )


def _quantiles(values: np.ndarray, at_most: int) -> tuple[int, ...]:
    found = np.quantile(values, np.linspace(0, 1, int(np.clip(len(values), 2, at_most))))
    return tuple(int(max(1, round(one))) for one in found)


# -- sessions ----------------------------------------------------------------------------------------------------------


def learn_sessions(log: RequestLog) -> tuple[str | None, str | None]:
    """(law of turns, law of pauses) as a plan writes them. The pauses hold the service's own time: a trace of arrivals
    does not tell when an answer had ended."""
    assert log.session is not None
    counts = np.bincount(log.session)
    counts = counts[counts > 0]
    if counts.mean() < TURNS_MIN:
        return None, None
    think = None
    if log.t_ns is not None:
        order = np.argsort(log.session, kind="stable")
        gaps_s = np.diff(log.t_ns[order])[np.diff(log.session[order]) == 0] / NS_PER_S
        gaps_s = gaps_s[gaps_s > 0]
        if len(gaps_s):
            sigma = min(float(np.log(gaps_s).std()), SIGMA_MAX)
            mean = f"{max(1, round(gaps_s.mean() * 1000))}ms"
            think = f"lognormal:{mean}:{sigma:.2f}" if sigma > 0 else mean
    alike = bool(np.all(counts == counts[0]))
    return (str(int(counts[0])) if alike else f"geometric:{counts.mean():.3g}"), think


# -- shared beginnings -------------------------------------------------------------------------------------------------


def shared_tokens(blocks: Sequence[Sequence[Hashable]], block_tokens: int, inputs: np.ndarray) -> np.ndarray:
    """For each request, the tokens of the longest beginning that an earlier request had, int64."""
    root: dict[Hashable, dict] = {}
    found = np.zeros(len(blocks), np.int64)
    for i, one in enumerate(blocks):
        node, depth, known = root, 0, True
        for block in one:
            child = node.get(block)
            if child is None:
                known = False
                child = node[block] = {}
            elif known:
                depth += 1
            node = child
        found[i] = min(depth * block_tokens, int(inputs[i]) - 1)
    return found


def learn_prefix(log: RequestLog, mask: np.ndarray) -> PrefixSpec | None:
    """One length, a pool and a ratio that give the same share of repeated tokens. None: hardly any are."""
    assert log.blocks is not None
    rows = np.flatnonzero(mask)
    blocks = [log.blocks[i] for i in rows.tolist()]
    inputs = log.input_tokens[rows]
    shared = shared_tokens(blocks, log.block_tokens, inputs)
    wanted = float(shared.sum() / inputs.sum())
    if wanted < SHARED_MIN_RATIO:
        return None
    sharing = shared[shared > 0]
    found = PrefixSpec(1)
    for quantile in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        tokens = max(1, int(np.quantile(sharing, quantile)))
        uses = _uses(blocks, shared, log.block_tokens, max(1, round(tokens / log.block_tokens)))
        # Each text of the pool comes once before it is shared.
        draws = wanted * float(inputs.sum()) / float(np.minimum(tokens, inputs - 1).mean()) + len(uses)
        found = PrefixSpec(tokens, len(uses), round(min(1.0, draws / len(rows)), 3), _skew(uses))
        if draws <= len(rows):
            break
    return found


def _uses(blocks: Sequence[Sequence[Hashable]], shared: np.ndarray, block_tokens: int, depth: int) -> np.ndarray:
    """How often each shared beginning of at most `depth` blocks came, most popular first."""
    counts: dict[tuple[Hashable, ...], int] = {}
    for one, much in zip(blocks, shared.tolist(), strict=True):
        if much > 0:
            key = tuple(one[: min(depth, -(-much // block_tokens))])
            counts[key] = counts.get(key, 1) + 1
    return np.sort(np.array(list(counts.values()), float))[::-1]


def _skew(counts: np.ndarray) -> float:
    """Exponent of Zipf's law, by the line of least squares through the logarithms of rank and number."""
    if len(counts) < SKEW_TEXTS_MIN:
        return 0.0
    slope = np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0]
    return round(float(np.clip(-slope, 0.0, SKEW_MAX)), 2)
