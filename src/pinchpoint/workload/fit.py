"""Learns from recorded requests what it takes to make any number of requests like them.

Arrivals: pieces of constant rate (rates.py) with gaps of one law inside them. Lengths: the joint law of input and
output as quantiles, of first and of later turns apart. Conversations: turns and pauses. Sharing: a system prompt and a
pool of beginnings. What the file does not tell is said and not guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.plan import ClassSpec, JointSpec
from pinchpoint.units import significant
from pinchpoint.workload.rates import Pieces, bin_s, pieces_of
from pinchpoint.workload.recorded_turns import RecordedTurns, turns_in
from pinchpoint.workload.sharing import BlockPaths, Sharing, block_paths, sharing_of
from pinchpoint.workload.traces.table import RequestLog

REQUESTS_MIN = 20
"""Fewer say nothing about a law."""
CV_SIGMAS = 2.0
"""Standard errors that the burstiness must be off Poisson's to be told from it."""
CV_CONSTANT = 0.1
"""Gaps that are more even than this are all alike, but for the clock that recorded them."""
CV_MAX = 20.0
INPUT_POINTS_MAX, OUTPUT_POINTS_MAX, RANGES_MAX = 65, 33, 12
POINT_REQUESTS, RANGE_REQUESTS = 2, 40
"""Requests for each quantile, and for each range of the inputs with outputs of its own: fewer would repeat the
accidents of the trace."""
POINTS_MIN = 3
TURNS_SHARE_MIN = 0.01
"""Of the requests that must be later turns for a workload of conversations."""
LATER_MIN = 20
"""Later turns whose lengths get a law of their own."""
THINK_SIGMA_MAX = 3.0
DIGITS = 4


@dataclass(frozen=True)
class Part:
    """A part of a trace to learn from or to compare with. rows: bool, (n,). windows_s: shape (k, 2), the stretches of
    time that it is made of; None for a trace without instants."""

    rows: np.ndarray
    windows_s: np.ndarray | None


@dataclass(frozen=True)
class Timeline:
    """Instants of a log in seconds, from its first request. grid_s: 0, or the step of the recorder; instants are then
    the begins of steps. span_s: with one mean gap, or one step, after the last request."""

    t_s: np.ndarray
    grid_s: float
    span_s: float


@dataclass(frozen=True)
class Recorded:
    """A log with all that is read out of it before anything is learnt."""

    log: RequestLog
    time: Timeline | None
    paths: BlockPaths | None
    turns: RecordedTurns

    @property
    def whole(self) -> Part:
        windows = None if self.time is None else np.array([[0.0, self.time.span_s]])
        return Part(np.ones(len(self.log), bool), windows)


class FittedArrivals(msgspec.Struct, frozen=True):
    """lengths_s, rates_rps: pieces, one after the other. law: as a stage's `arrivals`. cv: coefficient of variation of
    the gaps within the pieces, as measured."""

    lengths_s: tuple[float, ...]
    rates_rps: tuple[float, ...]
    law: str
    cv: float

    @property
    def mean_rps(self) -> float:
        return sum(s * r for s, r in zip(self.lengths_s, self.rates_rps, strict=True)) / sum(self.lengths_s)

    @property
    def peak_rps(self) -> float:
        return max(self.rates_rps)

    @property
    def span_s(self) -> float:
        return sum(self.lengths_s)


class Fitted(msgspec.Struct, frozen=True):
    """What was learnt. arrivals: None where the file has no instants. traffic: its one class. unknown: what cannot be
    learnt from the file, in words."""

    format: str
    requests: int
    arrivals: FittedArrivals | None
    traffic: ClassSpec
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def recorded(log: RequestLog) -> Recorded:
    """Raises UsageError for too few requests."""
    if len(log) < REQUESTS_MIN:
        raise UsageError(f"{len(log)} requests are too few to learn from; at least {REQUESTS_MIN} are needed")
    paths = block_paths(log)
    return Recorded(log, _timeline(log), paths, turns_in(log, paths))


def fit(found: Recorded, part: Part | None = None, *, name: str = "fitted") -> Fitted:
    """What `part` of the log says; None: all of it. name: of the class."""
    part = found.whole if part is None else part
    log, turns = found.log, found.turns
    unknown: list[str] = []
    arrivals = None
    if found.time is None or part.windows_s is None:
        unknown.append("arrivals: the file has no instants, so rate and burstiness are yours to choose")
    else:
        arrivals = fit_arrivals(found.time, part)
        if found.time.grid_s:
            unknown.append(
                f"gaps below {significant(found.time.grid_s, 3)} s: instants are on a grid of that step; the "
                "burstiness is that of the counts per step"
            )
    sharing = Sharing(0, None)
    if found.paths is None:
        unknown.append("shared beginnings: the file does not tell which prompts begin alike, so every prompt is unique")
    else:
        sharing = sharing_of(log, found.paths, np.flatnonzero(turns.turn == 0), part.rows)
        unknown.append(f"sharing within less than a block of {log.block_tokens} tokens")
    if not turns.source:
        unknown.append("conversations: the file names no sessions, so every request stands alone")
    elif turns.source == "blocks":
        unknown.append(
            "conversations of prompts shorter than a block; longer ones were found as prompts that go on where another "
            "ends"
        )
    return Fitted(
        log.format,
        int(part.rows.sum()),
        arrivals,
        _class(found, part, sharing, unknown, name),
        tuple(unknown),
        log.notes,
    )


def fit_arrivals(time: Timeline, part: Part) -> FittedArrivals:
    """Pieces and burstiness of the instants in the windows of a part."""
    assert part.windows_s is not None
    t_s = time.t_s[part.rows]
    covered_s = float(np.diff(part.windows_s, axis=1).sum())
    width_s = bin_s(len(t_s), covered_s, time.grid_s)
    edges = np.arange(int(np.ceil(time.span_s / width_s - 1e-9)) + 1) * width_s
    counts = np.histogram(t_s + (time.grid_s / 2), edges)[0]
    pieces = pieces_of(counts, _overlap(edges, part.windows_s), width_s)
    rest_s = time.span_s - float(pieces.lengths_s[:-1].sum())
    pieces = Pieces(np.append(pieces.lengths_s[:-1], rest_s), pieces.rates_rps)
    cv, error = _burstiness(time, part, pieces, t_s)
    if cv < CV_CONSTANT:
        law = "constant"
    elif abs(cv - 1) < CV_SIGMAS * error:
        law = "poisson"
    else:
        law = f"gamma:{significant(min(cv, CV_MAX), 3)}"
    return FittedArrivals(tuple(map(float, pieces.lengths_s)), tuple(map(float, pieces.rates_rps)), law, cv)


def _timeline(log: RequestLog) -> Timeline | None:
    if log.t_ns is None:
        return None
    t_s = log.t_ns / NS_PER_S
    grid_s = log.resolution_ns / NS_PER_S
    mean_gap_s = t_s[-1] / (len(log) - 1)
    if t_s[-1] <= 0:
        raise UsageError("all requests have the same instant; there is no rate to learn")
    if grid_s < mean_gap_s / 10:  # too fine to matter
        return Timeline(t_s, 0.0, float(t_s[-1] + mean_gap_s))
    steps = np.rint(t_s / grid_s)
    return Timeline(steps * grid_s, grid_s, float((steps[-1] + 1) * grid_s))


def _overlap(edges: np.ndarray, windows_s: np.ndarray) -> np.ndarray:
    """Time of each bin that lies in the windows; windows are in order and apart."""
    inside = np.zeros(len(edges))
    for begin, end in windows_s.tolist():
        inside += np.clip(edges, begin, end) - begin
    overlap = np.diff(inside)
    return np.where(overlap > 1e-9, overlap, 0.0)


def _burstiness(time: Timeline, part: Part, pieces: Pieces, t_s: np.ndarray) -> tuple[float, float]:
    """Coefficient of variation of the gaps in the time of the process (where the rate is 1 throughout), and its
    standard error for a Poisson process. On a grid: the root of the dispersion of the counts per step, which is the
    same for a renewal process seen for long."""
    assert part.windows_s is not None
    if time.grid_s:
        steps = np.arange(round(time.span_s / time.grid_s))
        middles = (steps + 0.5) * time.grid_s
        known = np.zeros(len(steps), bool)
        for begin, end in part.windows_s.tolist():
            known |= (middles > begin) & (middles < end)
        counts = np.bincount(np.rint(t_s / time.grid_s).astype(np.int64), minlength=len(steps))[: len(steps)][known]
        expected = np.diff(pieces.expected(np.append(steps, len(steps)) * time.grid_s))[known]
        dispersion = float(((counts - expected) ** 2).sum() / max(expected.sum(), 1e-12))
        return float(np.sqrt(dispersion)), float(np.sqrt(2 / max(len(counts), 1)) / 2)
    units = pieces.expected(t_s)
    window = np.searchsorted(part.windows_s[:, 0], t_s, side="right")
    gaps = np.diff(units)[window[1:] == window[:-1]]
    if len(gaps) < 2 or gaps.mean() <= 0:
        return 1.0, 1.0
    return float(gaps.std() / gaps.mean()), float(1 / np.sqrt(len(gaps)))


def _class(found: Recorded, part: Part, sharing: Sharing, unknown: list[str], name: str) -> ClassSpec:
    log, turns = found.log, found.turns
    chosen = part.rows
    first, later = chosen & (turns.turn == 0), chosen & (turns.turn > 0)
    message = np.where(
        turns.turn == 0, np.maximum(turns.message_tokens - sharing.system_tokens, 1), turns.message_tokens
    )
    if float(np.mean(later[chosen])) < TURNS_SHARE_MIN or not first.any():
        first, later = chosen, np.zeros(len(log), bool)
    joint = joint_of(message[first], log.output_tokens[first])
    own = joint_of(message[later], log.output_tokens[later]) if later.sum() >= LATER_MIN else None
    return ClassSpec(
        name=name,
        joint=joint,
        later_joint=own,
        turns=_turns_law(turns, first) if later.any() else None,
        think=_think_law(found, later, unknown) if later.any() else None,
        system_tokens=sharing.system_tokens or None,
        prefix=sharing.prefix,
    )


def _turns_law(turns: RecordedTurns, first: np.ndarray) -> str:
    """Of the conversations that begin in the chosen rows."""
    counts = np.bincount(turns.session)[np.unique(turns.session[first])]
    if counts.min() == counts.max():
        return f"constant:{counts[0]}"
    return f"geometric:{significant(float(counts.mean()), DIGITS)}"


def _think_law(found: Recorded, later: np.ndarray, unknown: list[str]) -> str | None:
    """From one turn's sending to the next one's: traces of requests seldom tell when an answer ended."""
    if found.time is None:
        unknown.append("pauses between turns: the file has no instants")
        return None
    rows = np.flatnonzero(later)
    pauses_s = found.time.t_s[rows] - found.time.t_s[found.turns.previous[rows]]
    logs = np.log(np.maximum(pauses_s, max(found.time.grid_s / 2, 1e-3)))
    sigma = float(min(logs.std(), THINK_SIGMA_MAX))
    unknown.append("when answers ended: the pause before a turn is from the sending of the turn before it")
    return f"lognormal:{significant(float(np.exp(logs.mean() + sigma**2 / 2)), 3)}s:{significant(sigma, 3)}"


def joint_of(inputs: np.ndarray, outputs: np.ndarray) -> JointSpec:
    """As many ranges and quantiles as the number of requests carries. shapes (n,), at least one."""
    n = len(inputs)
    ranges = int(np.clip(n // RANGE_REQUESTS, 1, RANGES_MAX))
    # Equal inputs go to their ranges by chance, as they do when lengths are drawn.
    order = np.lexsort((np.random.default_rng(0).random(n), inputs))
    return JointSpec(
        quantiles(inputs, _points(n, INPUT_POINTS_MAX)),
        tuple(
            quantiles(outputs[rows], _points(n // ranges, OUTPUT_POINTS_MAX)) for rows in np.array_split(order, ranges)
        ),
    )


def _points(count: int, most: int) -> int:
    return int(np.clip(count // POINT_REQUESTS, POINTS_MIN, most))


def quantiles(values: np.ndarray, points: int) -> tuple[int, ...]:
    """Whole numbers at evenly spaced probabilities from 0 to 1. The last one is not the largest value but the one with
    which straight lines between them have the mean of the values: a single giant would stand for many otherwise."""
    found = np.quantile(values, np.linspace(0, 1, points))
    drawn_mean = float((found[1:] + found[:-1]).mean() / 2)
    last = found[-1] + 2 * (points - 1) * (float(values.mean()) - drawn_mean)
    found[-1] = np.clip(last, found[-2], found[-1])
    return tuple(max(1, round(one)) for one in found.tolist())


def scaled(arrivals: FittedArrivals, factor: float, duration_s: float | None) -> FittedArrivals:
    """Rates times `factor`. duration_s: the pieces one after the other again and again if it is longer than the trace,
    and the same rates in less time if it is shorter."""
    lengths, rates = list(arrivals.lengths_s), [factor * rate for rate in arrivals.rates_rps]
    span_s = sum(lengths)
    if duration_s is not None and duration_s < span_s:
        lengths = [length * duration_s / span_s for length in lengths]
    elif duration_s is not None:
        laps = int(np.ceil(duration_s / span_s))
        lengths, rates = _until(lengths * laps, duration_s), rates * laps
        rates = rates[: len(lengths)]
    return FittedArrivals(tuple(lengths), tuple(rates), arrivals.law, arrivals.cv)


def _until(lengths_s: Sequence[float], end_s: float) -> list[float]:
    kept: list[float] = []
    left_s = end_s
    for length in lengths_s:
        if left_s <= 0:
            break
        kept.append(min(length, left_s))
        left_s -= length
    return kept
