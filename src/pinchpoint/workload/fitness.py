"""Holds a fit against requests that it has not seen, beside the usual baseline: Poisson arrivals at the mean rate and
log-normal lengths that know nothing of each other.

The trace is cut into short blocks of time; every second one is held back, so that both halves see the same hours. The
load is made by the very plan that the fit writes, through the same scheduler that a run uses. Without instants every
second request is held back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.fitted import Curve, FitQuality, Match
from pinchpoint.plan import build_plan
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.learning import Learnt, learn, own_lengths, shared_tokens, window_s
from pinchpoint.workload.schedule import Scheduler
from pinchpoint.workload.traces.table import RequestLog

BLOCKS_PER_WINDOW = 4
"""Two of them are seen and two held back, so each rate is known from half of its window."""
REPEATS = 5
"""Loads that are made and put together, so that their own chance hardly counts."""
MADE_MAX = 400_000
PLANE_POINTS = 1500
"""Points of the held-back half at which the distance of the joint laws is looked for."""
CURVE_POINTS = 120
DISPERSION_S = (1.0, 10.0, 60.0)
WIDTHS_PER_GRID = 3
"""Counts are compared over so many steps of a coarse grid of instants at least."""
KS_5_PERCENT = 1.36
"""Critical value of the two-sample test at 5 % (Smirnov 1948)."""
WINDOWS_MIN = 20
"""Counting windows from which a dispersion can be told."""


@dataclass(frozen=True)
class Sample:
    """Requests that lie in the same blocks of time. t_s None: no instants. shared: share of input tokens that an
    earlier request of the sample began with; None: not told."""

    t_s: np.ndarray | None
    inputs: np.ndarray
    outputs: np.ndarray
    shared: float | None = None


def quality(log: RequestLog, name: str, seed: int = 1) -> FitQuality:
    """Fits one half of the log and compares."""
    span_s = log.span_s
    blocks_s = window_s(len(log), span_s) / BLOCKS_PER_WINDOW if span_s else None
    if blocks_s is not None and log.t_ns is not None:
        t_s = log.t_ns / NS_PER_S
        seen = (t_s / blocks_s).astype(int) % 2 == 0
    else:
        t_s, seen = None, np.arange(len(log)) % 2 == 0
    fit = learn(log, seen, blocks_s)
    inputs = own_lengths(log)
    held = Sample(None if t_s is None else t_s[~seen], inputs[~seen], log.output_tokens[~seen], _shared(log, ~seen))
    other = Sample(None if t_s is None else t_s[seen], inputs[seen], log.output_tokens[seen])
    bunched = fit.arrivals is not None and fit.arrivals.bunched
    grid_s = np.unique(t_s) if t_s is not None and bunched else None
    made = _made(fit, span_s, blocks_s, grid_s, len(log), seed)
    base = _baseline(other, span_s, blocks_s, grid_s, seen, seed)
    coarse_s = fit.arrivals.grid_s if fit.arrivals is not None and bunched else 0.0
    return FitQuality(
        trace=name,
        format=log.format,
        requests=len(log),
        span_s=span_s,
        held=len(held.inputs),
        summary=describe(learn(log)),
        matches=tuple(_matches(held, other, made, base, blocks_s, coarse_s)),
        curves=tuple(_curves(held, made, base, blocks_s, span_s)),
        notes=(*fit.notes, *(f"{count} rows left out: {why}" for why, count in log.left_out.items())),
    )


def describe(fit: Learnt) -> tuple[str, ...]:
    """What was learnt, a line each."""
    lines = []
    arrivals = fit.arrivals
    if arrivals is not None:
        low, high = float(arrivals.rates_rps.min()), float(arrivals.rates_rps.max())
        spread = "steady" if high == low else f"{low:.3g} to {high:.3g} in {len(arrivals.rates_rps)} steps"
        lines.append(f"rate: {arrivals.mean_rps:.3g} requests/s on average, {spread}")
        lines.append(f"arrivals: {arrivals.text} around it")
    joint = fit.joint
    middle = len(joint.input_tokens) // 2
    outputs = sorted(one[len(one) // 2] for one in joint.output_tokens)
    lines.append(
        f"lengths: input p50 {joint.input_tokens[middle]}, up to {joint.input_tokens[-1]}; output p50 {outputs[0]} to "
        f"{outputs[-1]} by input, in {len(joint.output_tokens)} ranges"
    )
    if fit.turns is not None:
        lines.append(f"sessions: {fit.turns} turns, {fit.think or '0s'} between two requests of one")
    if fit.prefix is not None:
        lines.append(
            f"shared beginnings: {fit.prefix.ratio:.0%} of the requests begin with one of {fit.prefix.pool} texts of "
            f"{fit.prefix.tokens} tokens"
        )
    return tuple(lines)


# -- loads to compare with ---------------------------------------------------------------------------------------------


def plan_tables(fit: Learnt, name: str) -> dict:
    """The parts of a plan that the fit makes: one class and one stage."""
    one: dict = {
        "name": name,
        "joint": {"input_tokens": fit.joint.input_tokens, "output_tokens": fit.joint.output_tokens},
    }
    if fit.prefix is not None:
        one["prefix"] = {key: getattr(fit.prefix, key) for key in ("tokens", "pool", "ratio", "skew")}
    if fit.turns is not None:
        one |= {"turns": fit.turns, "think": fit.think or "0s"}
    arrivals = fit.arrivals
    if arrivals is None:
        stage: dict = {"kind": "open", "name": name, "rate_rps": 1.0, "duration_s": 60.0}
    elif np.all(arrivals.rates_rps == arrivals.rates_rps[0]):
        length_s = arrivals.window_s * len(arrivals.rates_rps)
        stage = {"kind": "open", "name": name, "rate_rps": arrivals.mean_rps, "duration_s": length_s}
    else:
        rates = [round(float(rate), 5) for rate in arrivals.rates_rps]
        stage = {"kind": "steps", "name": name, "rates_rps": rates, "each_s": arrivals.window_s}
    if arrivals is not None:
        stage["arrivals"] = arrivals.text
    return {"workload": {"classes": [one]}, "stages": [stage]}


def _made(
    fit: Learnt, span_s: float, blocks_s: float | None, grid_s: np.ndarray | None, count: int, seed: int
) -> Sample:
    """What the fit's own plan makes, in the blocks that were held back."""
    tables = plan_tables(fit, "fit")
    if fit.arrivals is None:
        tables["stages"][0] |= {"rate_rps": 1.0, "duration_s": None, "requests": min(count, MADE_MAX // REPEATS)}
    parts: list[Sample] = []
    for repeat in range(max(1, min(REPEATS, MADE_MAX // max(count, 1)))):
        plan = build_plan({"url": "http://127.0.0.1", "seed": seed + repeat, **tables})
        made = Scheduler.of(plan, resolve(plan, None)).stage(0, plan.stages[0]).schedule
        t_s = _set_back(made.offset_ns / NS_PER_S, grid_s)
        keep = np.ones(len(t_s), bool) if blocks_s is None else (t_s / blocks_s).astype(int) % 2 == 1
        shared = None
        if fit.prefix is not None:
            shared = _pool_share(made.prefix_id[keep], made.input_tokens[keep], fit.prefix.tokens)
        shift_s = repeat * _stride_s(span_s, blocks_s)
        parts.append(
            Sample(
                None if fit.arrivals is None else t_s[keep] + shift_s,
                made.input_tokens[keep].astype(np.int64),
                made.max_output_tokens[keep].astype(np.int64),
                shared,
            )
        )
    return _together(parts)


def _stride_s(span_s: float, blocks_s: float | None) -> float:
    """Repeats lie behind one another, whole pairs of blocks apart, so that blocks keep their parity."""
    return 0.0 if blocks_s is None else (np.ceil(span_s / (2 * blocks_s)) + 1) * 2 * blocks_s


def _together(parts: Sequence[Sample]) -> Sample:
    times = [part.t_s for part in parts if part.t_s is not None]
    shares = [part.shared for part in parts if part.shared is not None]
    return Sample(
        np.concatenate(times) if times else None,
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.outputs for part in parts]),
        float(np.mean(shares)) if shares else None,
    )


def _pool_share(prefix_id: np.ndarray, inputs: np.ndarray, tokens: int) -> float:
    seen: set[int] = set()
    total = 0
    for one, length in zip(prefix_id.tolist(), inputs.tolist(), strict=True):
        if one >= 0:
            total += min(tokens, length - 1) if one in seen else 0
            seen.add(one)
    return total / max(1, int(inputs.sum()))


def _baseline(
    seen: Sample, span_s: float, blocks_s: float | None, grid_s: np.ndarray | None, mask: np.ndarray, seed: int
) -> Sample:
    rng = np.random.default_rng(seed)
    parts = []
    for repeat in range(max(1, min(REPEATS, MADE_MAX // max(len(mask), 1)))):
        count = len(mask)
        t_s = None
        if seen.t_s is not None and blocks_s is not None:
            rate_rps = len(seen.t_s) / (span_s / 2)
            t_s = _set_back(np.sort(rng.uniform(0, span_s, rng.poisson(rate_rps * span_s))), grid_s)
            t_s = t_s[(t_s / blocks_s).astype(int) % 2 == 1] + repeat * _stride_s(span_s, blocks_s)
            count = len(t_s)
        parts.append(Sample(t_s, _lognormal(seen.inputs, count, rng), _lognormal(seen.outputs, count, rng), 0.0))
    return _together(parts)


def _lognormal(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    logs = np.log(values)
    drawn = rng.lognormal(logs.mean(), logs.std(), count)
    return np.clip(np.rint(drawn), values.min(), values.max()).astype(np.int64)


def _shared(log: RequestLog, mask: np.ndarray) -> float | None:
    if log.blocks is None:
        return None
    rows = np.flatnonzero(mask)
    found = shared_tokens([log.blocks[i] for i in rows.tolist()], log.block_tokens, log.input_tokens[rows])
    return float(found.sum() / log.input_tokens[rows].sum())


# -- comparison --------------------------------------------------------------------------------------------------------


def _matches(
    held: Sample, seen: Sample, made: Sample, base: Sample, blocks_s: float | None, coarse_s: float
) -> list[Match]:
    found = []
    if held.t_s is not None and blocks_s is not None:
        gaps = [_gaps(one.t_s, blocks_s) for one in (held, made, base, seen)]
        found.append(_distance("gaps between arrivals", gaps))
        cv = [_cv(one) for one in gaps]
        found.append(
            Match("CV of the gaps", False, cv[1], cv[2], cv[0], chance=2 * (cv[0] or 0.0) / len(gaps[0]) ** 0.5)
        )
        for width_s in DISPERSION_S:
            if coarse_s and width_s < WIDTHS_PER_GRID * coarse_s:
                continue
            (held_one, count), (made_one, _), (base_one, _) = (
                _dispersion(one.t_s, blocks_s, width_s) for one in (held, made, base)
            )
            if held_one is not None:
                chance = 2 * held_one * (2 / count) ** 0.5  # of a variance over the mean, twice its standard error
                found.append(
                    Match(f"dispersion of counts, {width_s:g} s", False, made_one, base_one, held_one, chance=chance)
                )
    for name, of in (("input tokens", "inputs"), ("output tokens", "outputs")):
        found.append(_distance(name, [getattr(one, of) for one in (held, made, base, seen)]))
    pairs = [(one.inputs, one.outputs) for one in (held, made, base, seen)]
    found.append(
        Match(
            "input and output together",
            True,
            plane_distance(pairs[0], pairs[1]),
            plane_distance(pairs[0], pairs[2]),
            floor=plane_distance(pairs[0], pairs[3]),
        )
    )
    ranks = [rank_correlation(*pair) for pair in pairs]
    chance = 2 * (1 / len(held.inputs) + 1 / len(seen.inputs)) ** 0.5  # of two samples, twice the standard error
    found.append(Match("rank correlation of the two", False, ranks[1], ranks[2], ranks[0], chance=chance))
    if held.shared is not None:
        found.append(Match("share of tokens seen before", False, made.shared or 0.0, 0.0, held.shared))
    return found


def _distance(name: str, values: Sequence[np.ndarray]) -> Match:
    """values: of the held-back half, the fit, the baseline, the other half."""
    held, made, base, seen = values
    chance = KS_5_PERCENT * (1 / max(1, len(held)) + 1 / max(1, len(made))) ** 0.5
    return Match(name, True, ks(held, made), ks(held, base), floor=ks(held, seen), chance=chance)


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample distance of Kolmogorov and Smirnov; 1 when one of them is empty."""
    if not len(a) or not len(b):
        return 1.0
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())


def plane_distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Largest difference of the shares in any quadrant around any point of `a` (Fasano and Franceschini 1987, with the
    points of one sample)."""
    rng = np.random.default_rng(0)
    points = rng.choice(len(a[0]), min(PLANE_POINTS, len(a[0])), replace=False)
    b_rows = rng.choice(len(b[0]), min(20 * PLANE_POINTS, len(b[0])), replace=False)
    largest = 0.0
    for x, y in zip(a[0][points].tolist(), a[1][points].tolist(), strict=True):
        shares = []
        for xs, ys in ((a[0], a[1]), (b[0][b_rows], b[1][b_rows])):
            left, below = xs <= x, ys <= y
            both = float(np.mean(left & below))
            west, south = float(np.mean(left)), float(np.mean(below))
            shares.append((both, west - both, south - both, 1 - west - south + both))
        largest = max(largest, *(abs(one - other) for one, other in zip(*shares, strict=True)))
    return largest


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, with mean ranks of equal values; 0 where one of them does not vary."""
    ranks = [_ranks(x), _ranks(y)]
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _gaps(t_s: np.ndarray | None, blocks_s: float) -> np.ndarray:
    """Between neighbours in one block."""
    assert t_s is not None
    return np.diff(t_s)[np.diff((t_s / blocks_s).astype(int)) == 0]


def _set_back(t_s: np.ndarray, grid_s: np.ndarray | None) -> np.ndarray:
    """To the instants that the trace knows, where requests share them; None: it knows any."""
    if grid_s is None:
        return t_s
    return grid_s[np.maximum(np.searchsorted(grid_s, t_s, "right") - 1, 0)]


def _cv(gaps: np.ndarray) -> float | None:
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else None


def _dispersion(t_s: np.ndarray | None, blocks_s: float, width_s: float) -> tuple[float | None, int]:
    """Variance over mean of the counts in windows that fit into blocks, None where too few do; and how many do."""
    assert t_s is not None
    each = int(blocks_s // width_s)
    if each < 1 or not len(t_s):
        return None, 0
    block = (t_s / blocks_s).astype(int)
    place = ((t_s - block * blocks_s) / width_s).astype(int)
    inside = place < each
    blocks = np.arange(1, int(block.max()) + 1, 2)
    if len(blocks) * each < WINDOWS_MIN:
        return None, 0
    counts = np.bincount((block[inside] // 2) * each + place[inside], minlength=(int(block.max()) // 2 + 1) * each)
    return (float(counts.var() / counts.mean()) if counts.mean() > 0 else None), len(blocks) * each


def _curves(held: Sample, made: Sample, base: Sample, blocks_s: float | None, span_s: float) -> list[Curve]:
    found = []
    if held.t_s is not None and blocks_s is not None:
        gaps = [_gaps(one.t_s, blocks_s) for one in (held, made, base)]
        found.append(_cdf("gaps between arrivals", "s", gaps))
        found.append(_rates(held, made, base, blocks_s, span_s))
    found.append(_cdf("input tokens", "tokens", [held.inputs, made.inputs, base.inputs]))
    found.append(_cdf("output tokens", "tokens", [held.outputs, made.outputs, base.outputs]))
    return found


def _cdf(name: str, unit: str, values: Sequence[np.ndarray]) -> Curve:
    positive = values[0][values[0] > 0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 2.0)
    x = np.geomspace(low, max(high, low * 1.01), CURVE_POINTS)
    shares = [np.searchsorted(np.sort(one), x, "right") / max(1, len(one)) for one in values]
    trace, fit, baseline = (tuple(one.tolist()) for one in shares)
    return Curve(name, unit, tuple(x.tolist()), trace, fit, baseline, log=True)


def _rates(held: Sample, made: Sample, base: Sample, blocks_s: float, span_s: float) -> Curve:
    """Requests per second in each pair of blocks, of the held-back half."""
    pairs = max(1, int(span_s // (2 * blocks_s)))
    stride_s = _stride_s(span_s, blocks_s)
    x = (np.arange(pairs) * 2 + 1.5) * blocks_s
    rates = []
    for one in (held, made, base):
        assert one.t_s is not None
        laps = max(1.0, np.ceil((one.t_s.max() + 1e-9) / stride_s)) if len(one.t_s) else 1.0
        place = ((one.t_s % stride_s) / (2 * blocks_s)).astype(int)
        rates.append(np.bincount(place[place < pairs], minlength=pairs)[:pairs] / blocks_s / laps)
    trace, fit, baseline = (tuple(one.tolist()) for one in rates)
    return Curve("requests per second over time", "s", tuple(x.tolist()), trace, fit, baseline)
