"""Was the load that was asked for delivered? Proof from the run directory alone. Pure: a view in, a Delivery out.

A latency means something only under the load that it is told for. So what was asked is held against what was offered,
what went out, what the service took and what it answered: second by second, arrival process by arrival process, users
in flight, lengths of prompts and answers, and how much of the prompts a cache answered. `flags` says in words what is
off; an empty one is the proof.
"""

import math

import msgspec
import numpy as np

from pinchpoint.asked import Asked, asked_of
from pinchpoint.clock import NS_PER_S
from pinchpoint.goodness import fit, two_sample_distance
from pinchpoint.model import STATUSES, Stage
from pinchpoint.outcomes import Outcomes, read_outcomes
from pinchpoint.series import RunView
from pinchpoint.units import counted, format_duration, format_ratio, significant

SECONDS_MAX = 3600
"""Rows of the table by time; of longer runs a row holds more than one second."""
BIN_LENGTHS_S = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 86400)
GAP_TOLERANCE_RATIO = 0.02
GAP_TOLERANCE_S = 0.001
"""A gap that is off by less than either changes no queue: a decode step takes longer than a millisecond."""
DISTANCE_MAX = 0.05
"""More than one in twenty gaps out of place is another arrival process."""
GAPS_MOVED_MIN = 3
"""One or two gaps out of place are an accident, whatever share of a few gaps they are."""
P_MIN = 0.01
BEHIND_GAP_RATIO = 0.25
"""A request that leaves within a quarter of the mean gap is in its place; see also GAP_TOLERANCE_S."""
BACKLOG_MAX_RATIO = 0.01
BACKLOG_MIN = 2
FULL_RATIO = 0.99
"""Of the asked users in flight is "full"."""
FULL_TIME_RATIO_MIN = 0.95
LENGTH_TOLERANCE_RATIO = 0.02
CACHED_RATIO_MAX = 0.05
"""Chat templates begin alike; more than that is content of prompts."""
REACHED_STATUSES = (200, 300)


class PerSecond(msgspec.Struct, frozen=True):
    """The course of the load; lists of one length, counts per row. Row i is [i * bin_s, (i + 1) * bin_s) after the
    first load stage began."""

    bin_s: int
    offered: list[int]
    """Due."""
    issued: list[int]
    """Sent."""
    accepted: list[int]
    """The head of an answer with HTTP 2xx came."""
    completed: list[int]
    rejected: list[int]
    failed: list[int]
    """Any other failure, when it became known."""
    unsent: list[int]
    """Due and never sent: dropped, or lost with their load process."""
    in_flight: list[float]
    """Mean number of requests sent and not ended."""


class ArrivalFit(msgspec.Struct, frozen=True):
    """Arrivals of one stage of an open loop: asked, scheduled and sent."""

    stage: int
    name: str
    arrivals: str
    profile: str
    asked: float | None
    """Expected number; None where the run does not tell."""
    offered: int
    sent: int
    sent_ratio: float | None
    gap_distance: float | None
    """Kolmogorov-Smirnov distance between the gaps scheduled and the gaps sent, shifts that change nothing left out."""
    backlog_max: int
    """Largest number of requests that were due and not sent at one instant, for longer than a quarter of a gap."""
    late_p50_s: float | None
    late_p99_s: float | None
    late_max_s: float | None
    scheduled_p: float | None
    """p-value of the scheduled gaps under the law that was asked for; None where it has no law, or too few gaps."""
    sent_p: float | None
    sent_law_distance: float | None
    """Kolmogorov-Smirnov distance of the sent gaps to that law."""


class ConcurrencyFit(msgspec.Struct, frozen=True):
    """Users of one stage of a closed loop: asked and in flight, from when all were there to the last send."""

    stage: int
    name: str
    asked: int
    mean: float | None
    full_ratio: float | None
    """Share of the time with at least 99 % of the asked users in flight."""
    reached_s: float | None
    """From the beginning until all were there first; None: never."""
    comparable: bool
    """False: users pause between requests, or their number changes on purpose, so fewer than asked are in flight and
    nothing is wrong."""


class Lengths(msgspec.Struct, frozen=True):
    """Tokens asked and tokens that the service counted, over completed requests that it counted."""

    n: int
    asked_mean: float
    counted_mean: float
    ratio: float
    """counted_mean / asked_mean."""
    off_ratio: float
    """Share of the requests off by more than 2 %."""


class ClassLengths(msgspec.Struct, frozen=True):
    """Lengths of the requests of one class; None as in Delivery."""

    name: str
    prompt_lengths: Lengths | None
    output_lengths: Lengths | None


class Delivery(msgspec.Struct, frozen=True):
    per_second: PerSecond
    arrivals: tuple[ArrivalFit, ...]
    concurrency: tuple[ConcurrencyFit, ...]
    prompt_lengths: Lengths | None
    """None: the service does not count."""
    output_lengths: Lengths | None
    class_lengths: tuple[ClassLengths, ...]
    """By class, in the order of the plan; empty where there is one class."""
    cached_ratio: float | None
    """Share of the prompt tokens that a cache answered; None: the service does not tell."""
    shared_ratio: float
    """Share of the asked prompt tokens that other requests begin with too, by design: template, system prompt, shared
    beginnings, history."""
    beyond_ratio: float | None
    """Share of the prompt tokens that a cache answered beyond what is shared by design; None as cached_ratio."""
    flags: tuple[str, ...]
    """What is off, in words."""
    notes: tuple[str, ...]
    """What could not be told, and why."""


def delivered(view: RunView, outcomes: Outcomes | None = None) -> Delivery:
    """outcomes: those of `read_outcomes(view)`, when the caller has them. Raises RunFormatError for a damaged run."""
    o = read_outcomes(view) if outcomes is None else outcomes
    asked = asked_of(o.stages, view.manifest.plan)
    arrivals = tuple(
        _arrivals(o, stage, view.t0_ns, asked.get(stage.index)) for stage in o.stages if stage.concurrency is None
    )
    concurrency = tuple(_concurrency(o, stage, view.t0_ns) for stage in o.stages if stage.concurrency is not None)
    prompts, outputs = _prompt_lengths(o, o.ok), _output_lengths(o, o.ok)
    by_class = _class_lengths(o, view.manifest.classes)
    told = o.ok & np.isfinite(o.cached_tokens) & np.isfinite(o.input_tokens)
    prompt_tokens = float(o.input_tokens[told].sum())
    cached_ratio = float(o.cached_tokens[told].sum()) / prompt_tokens if prompt_tokens else None
    beyond = np.maximum(o.cached_tokens[told] - np.nan_to_num(o.shared_input_tokens[told]), 0.0)
    beyond_ratio = float(beyond.sum()) / prompt_tokens if prompt_tokens else None
    asked_tokens = float(o.requested_input_tokens[o.ok].sum())
    shared_ratio = float(np.nan_to_num(o.shared_input_tokens[o.ok]).sum()) / asked_tokens if asked_tokens else 0.0
    return Delivery(
        per_second=_per_second(o, view.t0_ns),
        arrivals=arrivals,
        concurrency=concurrency,
        prompt_lengths=prompts,
        output_lengths=outputs,
        class_lengths=by_class,
        cached_ratio=cached_ratio,
        shared_ratio=shared_ratio,
        beyond_ratio=beyond_ratio,
        flags=(
            *_unsent_flags(o),
            *(flag for found in arrivals for flag in _arrival_flags(found)),
            *(flag for found in concurrency for flag in _concurrency_flags(found)),
            *_length_flags(prompts, outputs, by_class),
            *_cache_flags(beyond_ratio),
        ),
        notes=(
            *(str(event.get("message")) for event in view.run.events() if event.get("kind") == "cut"),
            *_notes(o, prompts, outputs, cached_ratio),
        ),
    )


# -- by time -----------------------------------------------------------------------------------------------------------


def _per_second(o: Outcomes, t0_ns: int) -> PerSecond:
    if not o.stages:
        return PerSecond(1, [], [], [], [], [], [], [], [])
    start_s = (o.stages[0].t0_ns - t0_ns) / NS_PER_S
    last_s = max((stage.t1_ns - t0_ns) / NS_PER_S for stage in o.stages)
    ended = o.end_s[np.isfinite(o.end_s)]
    length_s = max(last_s, float(ended.max()) if len(ended) else last_s) - start_s
    bin_s = next((b for b in BIN_LENGTHS_S if length_s <= b * SECONDS_MAX), BIN_LENGTHS_S[-1])
    rows = max(1, math.ceil(length_s / bin_s))
    edges_s = start_s + bin_s * np.arange(rows + 1)

    def count(instants_s: np.ndarray) -> list[int]:
        """The last row takes what lies on its end; anything outside belongs to the nearest row."""
        known = instants_s[np.isfinite(instants_s)]
        row = np.clip(((known - start_s) / bin_s).astype(int), 0, rows - 1)
        return np.bincount(row, minlength=rows).tolist()

    reached = (o.http_status >= REACHED_STATUSES[0]) & (o.http_status < REACHED_STATUSES[1])
    rejected = o.status == STATUSES.index("rejected")
    ours = np.isin(o.status, [STATUSES.index(name) for name in ("cancelled", "abandoned", "dropped")])
    known_s = np.where(np.isfinite(o.end_s), o.end_s, np.where(np.isfinite(o.sent_s), o.sent_s, o.scheduled_s))
    unsent_s = np.concatenate([o.scheduled_s[o.status == STATUSES.index("dropped")], o.lost_scheduled_s])
    return PerSecond(
        bin_s=bin_s,
        offered=count(np.concatenate([o.scheduled_s, o.lost_scheduled_s])),
        issued=count(o.sent_s),
        accepted=count(o.headers_s[reached]),
        completed=count(o.end_s[o.ok]),
        rejected=count(known_s[rejected]),
        failed=count(known_s[~o.ok & ~rejected & ~ours]),
        unsent=count(unsent_s),
        in_flight=[round(float(mean), 3) for mean in np.diff(_area(o, edges_s)) / bin_s],
    )


def _flights(o: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Instants at which requests were sent and ended, each in order. A request without an end is in flight for ever."""
    sent = np.isfinite(o.sent_s)
    ends_s = np.where(np.isfinite(o.end_s[sent]), o.end_s[sent], np.inf)
    return np.sort(o.sent_s[sent]), np.sort(np.maximum(ends_s, o.sent_s[sent]))


def _area(o: Outcomes, t_s: np.ndarray) -> np.ndarray:
    """Requests in flight, integrated from the beginning to each instant, in request-seconds."""

    def passed(instants_s: np.ndarray) -> np.ndarray:
        instants_s = instants_s[np.isfinite(instants_s)]
        before = np.searchsorted(instants_s, t_s)
        return before * t_s - np.concatenate([[0.0], np.cumsum(instants_s)])[before]

    starts_s, ends_s = _flights(o)
    return passed(starts_s) - passed(ends_s)


# -- arrivals ----------------------------------------------------------------------------------------------------------


def _arrivals(o: Outcomes, stage: Stage, t0_ns: int, asked: Asked | None) -> ArrivalFit:
    mine = (o.stage == stage.index) & o.own_instant
    start_s = (stage.t0_ns - t0_ns) / NS_PER_S
    sent = mine & np.isfinite(o.sent_s)
    lost = int((o.lost_stage == stage.index).sum())
    offered_s = np.sort(np.concatenate([o.scheduled_s[mine], o.lost_scheduled_s[o.lost_stage == stage.index]]))
    due_s, sent_s = o.scheduled_s[sent] - start_s, np.sort(o.sent_s[sent]) - start_s
    late_s = o.sent_s[sent] - o.scheduled_s[sent]
    gaps_s = np.diff(due_s)
    mean_gap_s = float(gaps_s.mean()) if len(gaps_s) else 0.0
    tolerance_s = max(GAP_TOLERANCE_RATIO * mean_gap_s, GAP_TOLERANCE_S)
    scheduled_fit = sent_fit = None
    if asked is not None and asked.gap_cdf is not None:
        scheduled_fit = fit(np.diff(asked.cumulated(offered_s - start_s)), asked.gap_cdf)
        sent_fit = fit(np.diff(asked.cumulated(np.maximum(sent_s, 0.0))), asked.gap_cdf)
    offered = int(mine.sum()) + lost
    length_s = np.array((stage.t1_ns - stage.t0_ns) / NS_PER_S)
    return ArrivalFit(
        stage=stage.index,
        name=stage.name,
        arrivals=stage.arrivals,
        profile=stage.profile,
        asked=None if asked is None else float(asked.cumulated(length_s)),
        offered=offered,
        sent=len(sent_s),
        sent_ratio=len(sent_s) / offered if offered else None,
        gap_distance=two_sample_distance(gaps_s, np.diff(sent_s), tolerance_s),
        backlog_max=_backlog_max(due_s, sent_s, max(BEHIND_GAP_RATIO * mean_gap_s, GAP_TOLERANCE_S)),
        late_p50_s=float(np.quantile(late_s, 0.5)) if len(late_s) else None,
        late_p99_s=float(np.quantile(late_s, 0.99)) if len(late_s) else None,
        late_max_s=float(late_s.max()) if len(late_s) else None,
        scheduled_p=None if scheduled_fit is None else scheduled_fit[1],
        sent_p=None if sent_fit is None else sent_fit[1],
        sent_law_distance=None if sent_fit is None else sent_fit[0],
    )


def _backlog_max(due_s: np.ndarray, sent_s: np.ndarray, tolerance_s: float) -> int:
    """Largest distance between the counting processes of what was due and what was sent, both in order, the first one
    shifted by the tolerance."""
    if not len(due_s):
        return 0
    behind = np.arange(1, len(due_s) + 1) - np.searchsorted(sent_s, due_s + tolerance_s, side="right")
    return max(0, int(behind.max()))


# -- users in flight ---------------------------------------------------------------------------------------------------


def _concurrency(o: Outcomes, stage: Stage, t0_ns: int) -> ConcurrencyFit:
    users = stage.concurrency or 0
    mine = (o.stage == stage.index) & np.isfinite(o.sent_s)
    comparable = stage.think_s == 0 and not stage.profile
    start_s, stop_s = (stage.t0_ns - t0_ns) / NS_PER_S, (stage.t1_ns - t0_ns) / NS_PER_S
    unknown = ConcurrencyFit(stage.index, stage.name, users, None, None, None, comparable)
    if not mine.any():
        return unknown
    sent_s = o.sent_s[mine]
    ends_s = np.where(np.isfinite(o.end_s[mine]), np.maximum(o.end_s[mine], sent_s), np.inf)
    instants_s = np.concatenate([ends_s, sent_s])  # at one instant, who ends makes room for who begins
    steps = np.repeat([-1, 1], len(sent_s))
    order = np.argsort(instants_s, kind="stable")
    instants_s, in_flight = instants_s[order], np.cumsum(steps[order])
    full = in_flight >= FULL_RATIO * users
    reached_s = float(instants_s[np.argmax(full)]) if full.any() else None
    until_s = min(stop_s, float(sent_s.max()))
    from_s = start_s if reached_s is None else reached_s
    if until_s <= from_s:
        return msgspec.structs.replace(unknown, reached_s=None if reached_s is None else reached_s - start_s)
    lasting_s = np.diff(np.clip(np.append(instants_s, np.inf), from_s, until_s))
    length_s = until_s - from_s
    return ConcurrencyFit(
        stage=stage.index,
        name=stage.name,
        asked=users,
        mean=float((in_flight * lasting_s).sum() / length_s),
        full_ratio=float(lasting_s[full].sum() / length_s),
        reached_s=None if reached_s is None else reached_s - start_s,
        comparable=comparable,
    )


# -- lengths -----------------------------------------------------------------------------------------------------------


def _prompt_lengths(o: Outcomes, mask: np.ndarray) -> Lengths | None:
    return _lengths(o.requested_input_tokens, o.input_tokens, mask)


def _output_lengths(o: Outcomes, mask: np.ndarray) -> Lengths | None:
    return _lengths(o.requested_output_tokens, o.output_tokens, mask & o.counted_by_service)


def _class_lengths(o: Outcomes, names: tuple[str, ...]) -> tuple[ClassLengths, ...]:
    if len(names) < 2:
        return ()
    masks = ((name, o.ok & o.of_class(i)) for i, name in enumerate(names))
    return tuple(
        ClassLengths(name, _prompt_lengths(o, mask), _output_lengths(o, mask)) for name, mask in masks if mask.any()
    )


def _lengths(asked: np.ndarray, counted: np.ndarray, mask: np.ndarray) -> Lengths | None:
    known = mask & np.isfinite(counted) & (asked > 0)
    if not known.any():
        return None
    asked_mean, counted_mean = float(asked[known].mean()), float(counted[known].mean())
    off = np.abs(counted[known] / asked[known] - 1) > LENGTH_TOLERANCE_RATIO
    return Lengths(int(known.sum()), asked_mean, counted_mean, counted_mean / asked_mean, float(off.mean()))


# -- in words ----------------------------------------------------------------------------------------------------------


def _unsent_flags(o: Outcomes) -> list[str]:
    dropped, lost = int((o.status == STATUSES.index("dropped")).sum()), len(o.lost_stage)
    flags = []
    if o.stages and not len(o) and not lost:
        flags.append("no arrival fell into the load, which was too short for its rate; give a longer --duration")
    if dropped:
        flags.append(f"{counted(dropped, 'request')} never left: this host could not send what was due")
    if lost:
        flags.append(f"{counted(lost, 'request')} left no record: a load process died or was killed")
    return flags


def _in(name: str) -> str:
    return f" in {name}" if name else ""


def _arrival_flags(found: ArrivalFit) -> list[str]:
    flags = []
    if found.backlog_max >= BACKLOG_MIN and found.backlog_max > BACKLOG_MAX_RATIO * found.offered:
        flags.append(
            f"up to {found.backlog_max} of {found.offered} requests{_in(found.name)} were due and not yet sent: the "
            f"latest left {format_duration(found.late_max_s)} late"
        )
    elif (
        found.gap_distance is not None
        and found.gap_distance > DISTANCE_MAX
        and found.gap_distance * (found.offered - 1) >= GAPS_MOVED_MIN - 0.5  # a share of the gaps, so nearly whole
    ):
        flags.append(
            f"requests{_in(found.name)} did not leave at the gaps that were scheduled (distance "
            f"{significant(found.gap_distance, 2)}, at most {DISTANCE_MAX:g} is expected)"
        )
    elif (
        found.sent_p is not None
        and found.scheduled_p is not None
        and found.sent_p < P_MIN <= found.scheduled_p
        and (found.sent_law_distance or 0.0) > DISTANCE_MAX
    ):
        flags.append(f"what was sent{_in(found.name)} is not {found.arrivals} any more, though the schedule is")
    return flags


def _concurrency_flags(found: ConcurrencyFit) -> list[str]:
    if not found.comparable:
        return []
    if found.reached_s is None:
        mean = "" if found.mean is None else f"; {significant(found.mean)} on average"
        return [f"never were {found.asked} requests in flight{_in(found.name)}{mean}"]
    if found.full_ratio is not None and found.full_ratio < FULL_TIME_RATIO_MIN:
        return [
            f"{found.asked} requests were in flight{_in(found.name)} only {format_ratio(found.full_ratio)} of the "
            f"time, {significant(found.mean or 0.0)} on average"
        ]
    return []


def _length_flags(prompts: Lengths | None, outputs: Lengths | None, by_class: tuple[ClassLengths, ...]) -> list[str]:
    """With several classes those that are off are named: in the sum they may make up for each other."""
    if not by_class:
        return _off(prompts, outputs, "")
    return [flag for one in by_class for flag in _off(one.prompt_lengths, one.output_lengths, f" of {one.name}")]


def _off(prompts: Lengths | None, outputs: Lengths | None, whose: str) -> list[str]:
    flags = []
    if prompts is not None and abs(prompts.ratio - 1) > LENGTH_TOLERANCE_RATIO:
        flags.append(
            f"prompts{whose} had {significant(prompts.counted_mean)} tokens on average where "
            f"{significant(prompts.asked_mean)} were asked for"
        )
    if outputs is not None and abs(outputs.ratio - 1) > LENGTH_TOLERANCE_RATIO:
        why = "the model ended them itself" if outputs.ratio < 1 else "the service did not keep to the limit"
        flags.append(
            f"answers{whose} had {significant(outputs.counted_mean)} tokens on average where "
            f"{significant(outputs.asked_mean)} were asked for: {why}"
        )
    return flags


def _cache_flags(beyond_ratio: float | None) -> list[str]:
    if beyond_ratio is None or beyond_ratio <= CACHED_RATIO_MAX:
        return []
    return [
        f"a cache answered {format_ratio(beyond_ratio)} of the prompt tokens beyond what requests share by design: "
        "prefill was cheaper than it would be"
    ]


def _notes(
    o: Outcomes, prompts: Lengths | None, outputs: Lengths | None, cached_ratio: float | None
) -> tuple[str, ...]:
    if not o.ok.any():
        return ()
    notes = []
    if prompts is None and np.isfinite(o.input_tokens).any():
        notes.append(
            "how many tokens these prompts are is the model's own matter (pictures, functions), so not compared"
        )
    elif prompts is None:
        notes.append("the service does not count prompt tokens, so their length is not proven")
    if outputs is None and (o.requested_output_tokens[o.ok] > 0).any():
        notes.append("the service does not count the tokens of its answers, so their length is not proven")
    if not np.isfinite(o.timestamp_error_s[o.ok]).any():
        notes.append("arrivals were stamped in user space, after they had been read; how late is not known")
    if cached_ratio is None:
        notes.append("the service does not tell what its prefix cache answered, so a cache cannot be ruled out")
    return tuple(notes)
