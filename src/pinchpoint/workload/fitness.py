"""Holds a fit against requests that it has not seen, beside the usual baseline: Poisson arrivals at the mean rate and
log-normal lengths that know nothing of each other.

The trace is cut into short blocks of time; every second one is held back, so that both halves see the same hours. The
load is made by the very plan that the fit writes, through the same scheduler that a run uses. Conversations belong to
the block in which they begin. Without instants every second request is held back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.fitted import Curve, FitQuality, Match
from pinchpoint.plan import build_plan
from pinchpoint.schedule import Schedule
from pinchpoint.units import counted, significant
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.fit import Fitted, Part, Recorded, fit
from pinchpoint.workload.schedule import Scheduler

BLOCK_REQUESTS, BLOCKS_MIN, BLOCKS_MAX = 30, 4, 60
"""Blocks of some requests each at least; more blocks than that would only make them shorter than conversations."""
BLOCK_UNIT_S = 60.0
"""Blocks of more than half a minute are of whole minutes, so that counts per minute can be compared."""
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
DEFAULT_RATE_RPS, DEFAULT_LENGTH_S = 1.0, 300.0
"""Of the stage for a trace without instants: to be changed by whoever runs it."""


@dataclass(frozen=True)
class Sample:
    """Requests that lie in the same blocks of time. t_s None: no instants. inputs: whole prompts, or messages where the
    trace tells those. shared: share of input tokens that an earlier request began with; None: not told. turns: of the
    conversations that begin in the blocks."""

    t_s: np.ndarray | None
    inputs: np.ndarray
    outputs: np.ndarray
    shared: float | None = None
    turns: np.ndarray | None = None


def quality(found: Recorded, whole: Fitted, name: str, seed: int = 1) -> FitQuality:
    """Fits one half of the log and compares. whole: what all of it says."""
    log, time = found.log, found.time
    blocks_s = None if time is None else _blocks_s(len(log), time.span_s, time.grid_s)
    if time is not None and blocks_s is not None:
        block = (time.t_s / blocks_s + 1e-9).astype(np.int64)
        seen = block % 2 == 0
        begins = np.arange(0, time.span_s, 2 * blocks_s)
        windows = np.stack([begins, np.minimum(begins + blocks_s, time.span_s)], axis=1)
    else:
        seen, windows = found.turns.session % 2 == 0, None
    half = fit(found, Part(seen, windows), name="half")
    held, other = _sample(found, ~seen), _sample(found, seen)
    grid_s = 0.0 if time is None else time.grid_s
    span_s = 0.0 if time is None else time.span_s
    made = _made(half, found, span_s, blocks_s, grid_s, seed)
    base = _baseline(other, span_s, blocks_s, grid_s, len(log), seed)
    return FitQuality(
        trace=name,
        format=log.format,
        requests=len(log),
        span_s=span_s,
        held=len(held.inputs),
        summary=describe(whole),
        matches=tuple(_matches(held, other, made, base, blocks_s, grid_s, span_s)),
        curves=tuple(_curves(held, made, base, blocks_s, span_s)),
        notes=(*whole.unknown, *whole.notes, *(f"{count} rows left out: {why}" for why, count in log.left_out.items())),
    )


def _blocks_s(requests: int, span_s: float, grid_s: float) -> float:
    length_s = span_s / int(np.clip(requests // BLOCK_REQUESTS, BLOCKS_MIN, BLOCKS_MAX))
    unit_s = BLOCK_UNIT_S if length_s > BLOCK_UNIT_S / 2 else 0.0
    for step_s in (unit_s, grid_s):
        if step_s:
            length_s = float(np.ceil(length_s / step_s - 1e-9) * step_s)
    return length_s


def describe(found: Fitted) -> tuple[str, ...]:
    """What was learnt, a line each."""
    lines = []
    arrivals, one = found.arrivals, found.traffic
    if arrivals is not None:
        low, high = min(arrivals.rates_rps), max(arrivals.rates_rps)
        pieces = len(arrivals.rates_rps)
        spread = "steady" if pieces == 1 else f"{low:.3g} to {high:.3g} in {pieces} pieces"
        lines.append(f"rate: {arrivals.mean_rps:.3g} requests/s on average, {spread}")
        lines.append(f"arrivals: {arrivals.law} around it (coefficient of variation {arrivals.cv:.2f})")
    for joint, what in ((one.joint, "lengths"), (one.later_joint, "of later turns")):
        if joint is not None:
            middle = joint.input_tokens[len(joint.input_tokens) // 2]
            outputs = sorted(each[len(each) // 2] for each in joint.output_tokens)
            lines.append(
                f"{what}: input p50 {middle}, up to {joint.input_tokens[-1]}; output p50 {outputs[0]} to {outputs[-1]} "
                f"by input, in {counted(len(joint.output_tokens), 'range')}"
            )
    if one.turns is not None:
        lines.append(f"conversations: {one.turns} turns, {one.think or '0s'} from one to the next")
    if one.system_tokens:
        lines.append(f"system prompt: {one.system_tokens} tokens that nearly all requests begin with")
    if one.prefix is not None:
        lines.append(
            f"shared beginnings: {one.prefix.ratio:.0%} of the first messages begin with one of {one.prefix.pool} "
            f"texts of {one.prefix.tokens} tokens"
        )
    return tuple(lines)


# -- loads to compare with ---------------------------------------------------------------------------------------------


def plan_tables(found: Fitted) -> dict[str, Any]:
    """The parts of a plan that a fit makes: one class and one stage."""
    told = msgspec.to_builtins(found.traffic)
    one = {key: value for key, value in told.items() if value not in (None, "", [], ()) and key != "weight"}
    arrivals = found.arrivals
    stage: dict[str, Any] = {"name": found.traffic.name}
    if arrivals is None:
        stage = {"kind": "open", **stage, "rate_rps": DEFAULT_RATE_RPS, "duration_s": DEFAULT_LENGTH_S}
    elif len(arrivals.rates_rps) == 1:
        stage = {"kind": "open", **stage, "rate_rps": arrivals.rates_rps[0], "duration_s": arrivals.span_s}
    else:
        stage = {
            "kind": "steps",
            **stage,
            "rates_rps": list(arrivals.rates_rps),
            "durations_s": list(arrivals.lengths_s),
        }
    if arrivals is not None:
        stage["arrivals"] = arrivals.law
    return {"workload": {"classes": [one]}, "stages": [stage]}


def _sample(found: Recorded, rows: np.ndarray) -> Sample:
    """Of the trace itself."""
    log, turns = found.log, found.turns
    shared = None
    if found.paths is not None:
        blocks = np.array([len(path) for path in found.paths.rows])
        shared = float(found.paths.seen[rows].sum() / max(1, blocks[rows].sum()))
    counts = None
    if turns.source:
        counts = np.bincount(turns.session)[np.unique(turns.session[rows & (turns.turn == 0)])]
    t_s = None if found.time is None else found.time.t_s[rows]
    return Sample(t_s, log.input_tokens[rows], log.output_tokens[rows], shared, counts)


def _made(half: Fitted, found: Recorded, span_s: float, blocks_s: float | None, grid_s: float, seed: int) -> Sample:
    """What the fit's own plan makes, in the blocks that were held back."""
    tables = plan_tables(half)
    count = len(found.log)
    if half.arrivals is None:
        tables["stages"][0] |= {"duration_s": None, "requests": min(count, MADE_MAX // REPEATS)}
    parts: list[Sample] = []
    for repeat in range(_repeats(count)):
        plan = build_plan({"url": "http://127.0.0.1", "seed": seed + repeat, **tables})
        made = Scheduler.of(plan, resolve(plan, None)).stage(0, plan.stages[0]).schedule
        t_s = _set_back(made.offset_ns / NS_PER_S, grid_s)
        keep = np.ones(len(t_s), bool) if blocks_s is None else (t_s / blocks_s + 1e-9).astype(np.int64) % 2 == 1
        inputs, seen_tokens = _prompts(half, made, whole=found.turns.has_history or not found.turns.source)
        shared = counts = None
        if found.paths is not None:
            unit = found.log.block_tokens
            shared = float((seen_tokens[keep] // unit).sum() / max(1, (-(-inputs[keep] // unit)).sum()))
        if found.turns.source:
            session = made.session_id.astype(np.int64)
            counts = np.bincount(session)[np.unique(session[keep & (made.turn == 0)])]
        shift_s = repeat * _stride_s(span_s, blocks_s)
        instants = None if half.arrivals is None else t_s[keep] + shift_s
        outputs = made.max_output_tokens[keep].astype(np.int64)
        parts.append(Sample(instants, inputs[keep], outputs, shared, counts))
    return _together(parts)


def _repeats(count: int) -> int:
    return max(1, min(REPEATS, MADE_MAX // max(count, 1)))


def _prompts(half: Fitted, made: Schedule, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the prompts of a schedule, int64, and how many of them an earlier prompt began with, which a cache of
    prompts without bounds would find: the system prompt, a beginning from the pool, all but the newest of a
    conversation. whole: prompts hold what was said before."""
    one = half.traffic
    system = one.system_tokens or 0
    messages, answers = made.input_tokens.astype(np.int64), made.max_output_tokens.astype(np.int64)
    if not whole:
        return messages, np.zeros(len(messages), np.int64)
    order = np.argsort(made.session_id, kind="stable")
    first = np.concatenate([[True], np.diff(made.session_id[order].astype(np.int64)) != 0])
    said = np.cumsum(messages[order] + answers[order])
    before = np.concatenate([[0], said[:-1]])
    prompts = messages[order] + before - np.maximum.accumulate(np.where(first, before, 0)) + system
    seen = np.where(first, system, np.concatenate([[0], prompts[:-1]]))
    inputs, found = np.empty_like(messages), np.empty_like(messages)
    inputs[order], found[order] = prompts, seen
    if one.prefix is not None:
        used = made.prefix_id >= 0
        again = np.ones(len(used), bool)
        again[np.unique(made.prefix_id, return_index=True)[1]] = False
        begun = used & again & (made.turn == 0)
        found[begun] += np.minimum(one.prefix.tokens, messages[begun] - 1)
    return inputs, found


def _stride_s(span_s: float, blocks_s: float | None) -> float:
    """Repeats lie behind one another, whole pairs of blocks apart, so that blocks keep their parity."""
    return 0.0 if blocks_s is None else (np.ceil(span_s / (2 * blocks_s)) + 1) * 2 * blocks_s


def _together(parts: Sequence[Sample]) -> Sample:
    times = [part.t_s for part in parts if part.t_s is not None]
    shares = [part.shared for part in parts if part.shared is not None]
    turns = [part.turns for part in parts if part.turns is not None]
    return Sample(
        np.concatenate(times) if times else None,
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.outputs for part in parts]),
        float(np.mean(shares)) if shares else None,
        np.concatenate(turns) if turns else None,
    )


def _baseline(seen: Sample, span_s: float, blocks_s: float | None, grid_s: float, total: int, seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    parts = []
    for repeat in range(_repeats(total)):
        count, t_s = total, None
        if seen.t_s is not None and blocks_s is not None:
            t_s = _set_back(np.sort(rng.uniform(0, span_s, rng.poisson(total))), grid_s)
            t_s = t_s[(t_s / blocks_s + 1e-9).astype(np.int64) % 2 == 1] + repeat * _stride_s(span_s, blocks_s)
            count = len(t_s)
        turns = None if seen.turns is None else np.ones(count, np.int64)
        shared = None if seen.shared is None else 0.0
        lengths = (_lognormal(seen.inputs, count, rng), _lognormal(seen.outputs, count, rng))
        parts.append(Sample(t_s, *lengths, shared, turns))
    return _together(parts)


def _lognormal(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    logs = np.log(values)
    drawn = rng.lognormal(logs.mean(), logs.std(), count)
    return np.clip(np.rint(drawn), values.min(), values.max()).astype(np.int64)


# -- comparison --------------------------------------------------------------------------------------------------------


def _matches(
    held: Sample,
    seen: Sample,
    made: Sample,
    base: Sample,
    blocks_s: float | None,
    coarse_s: float,
    span_s: float,
) -> list[Match]:
    found = []
    if held.t_s is not None and blocks_s is not None:
        gaps = [_gaps(one.t_s, blocks_s) for one in (held, made, base, seen)]
        if coarse_s:
            gaps = [np.rint(one / coarse_s) for one in gaps]
        found.append(_distance("gaps between arrivals", gaps))
        if coarse_s:
            steps = [_per_step(one.t_s, blocks_s, coarse_s) for one in (held, made, base, seen)]
            found.append(_distance(f"requests per {significant(coarse_s)} s", steps))
        cv = [_cv(one) for one in gaps]
        found.append(
            Match("CV of the gaps", False, cv[1], cv[2], cv[0], chance=2 * (cv[0] or 0.0) * _halves(gaps[0], gaps[3]))
        )
        for width_s in DISPERSION_S:
            if coarse_s and width_s < WIDTHS_PER_GRID * coarse_s:
                continue
            (held_one, count), (made_one, _), (base_one, _) = (
                _dispersion(one.t_s, blocks_s, width_s, span_s) for one in (held, made, base)
            )
            if held_one is not None:
                chance = 2 * held_one * (4 / count) ** 0.5  # of a variance over the mean, of two halves
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
    chance = 2 * _halves(held.inputs, seen.inputs)
    found.append(Match("rank correlation of the two", False, ranks[1], ranks[2], ranks[0], chance=chance))
    if held.turns is not None and made.turns is not None and len(held.turns) and len(made.turns):
        mean = float(held.turns.mean())
        chance = 2 * float(held.turns.std()) * _halves(held.turns, held.turns)
        found.append(Match("turns of a conversation", False, float(made.turns.mean()), 1.0, mean, chance=chance))
    if held.shared is not None:
        found.append(Match("share of blocks seen before", False, made.shared or 0.0, 0.0, held.shared))
    return found


def _halves(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of the difference of two halves, in standard deviations of one value: what is learnt from one half
    is off by as much as the other half is."""
    return (1 / max(1, len(a)) + 1 / max(1, len(b))) ** 0.5


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
    return np.diff(t_s)[np.diff((t_s / blocks_s + 1e-9).astype(np.int64)) == 0]


def _set_back(t_s: np.ndarray, grid_s: float) -> np.ndarray:
    """To the begin of the step of the trace's clock; 0: it knows any instant."""
    return np.floor(t_s / grid_s + 1e-9) * grid_s if grid_s else t_s


def _per_step(t_s: np.ndarray | None, blocks_s: float, step_s: float) -> np.ndarray:
    """Requests at each step of the clock in the blocks that hold any."""
    assert t_s is not None
    each = round(blocks_s / step_s)
    step = np.rint(t_s / step_s).astype(np.int64)
    blocks, place = np.unique(step // each, return_inverse=True)
    return np.bincount(place * each + step % each, minlength=len(blocks) * each)


def _cv(gaps: np.ndarray) -> float | None:
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else None


def _dispersion(t_s: np.ndarray | None, blocks_s: float, width_s: float, span_s: float) -> tuple[float | None, int]:
    """Variance over mean of the counts in windows that fit into whole blocks, None where too few do; and how many."""
    assert t_s is not None
    each = int(blocks_s / width_s + 1e-9)
    if each < 1 or not len(t_s):
        return None, 0
    block = (t_s / blocks_s + 1e-9).astype(np.int64)
    lap = round(_stride_s(span_s, blocks_s) / blocks_s)
    whole = (block % lap + 1) * blocks_s <= span_s + 1e-6
    laps = int(block.max()) // lap + 1
    place = np.maximum((t_s - block * blocks_s) / width_s + 1e-9, 0.0).astype(np.int64)
    per_lap = int(np.floor(span_s / blocks_s + 1e-9)) // 2  # whole blocks of odd number
    if per_lap * each * laps < WINDOWS_MIN:
        return None, 0
    inside = whole & (place < each)
    number = (block // lap) * per_lap + block % lap // 2
    counts = np.bincount(number[inside] * each + place[inside], minlength=per_lap * each * laps)
    return (float(counts.var() / counts.mean()) if counts.mean() > 0 else None), per_lap * each


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
