"""Makes the schedules of a run: which request is due when, how long it is, how patient its user.

One seed fixes everything. What a request is depends on the seed and its place in the stage alone: arrivals, lengths,
think times and patience each draw from a stream of their own, in blocks of BLOCK_ROWS places, so a stage that is made
in one go and one that is extended piece by piece have the same content, and no stage depends on those before it.
Lengths do not depend on the stage either, so two steps of a search differ in their rate and in nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.plan import (
    STAGE_REQUESTS_MAX,
    ClosedStage,
    OpenKind,
    OpenStage,
    Plan,
    ReplayStage,
    SessionsStage,
    StageSpec,
    StepsStage,
)
from pinchpoint.schedule import AFTER, NEVER, Schedule, Slots
from pinchpoint.workload.arrivals import check_fits, offsets_ns, parse_arrivals, too_many
from pinchpoint.workload.durations import DurationLaw, parse_counts, parse_durations
from pinchpoint.workload.lengths import Lengths, draw_lengths
from pinchpoint.workload.profiles import flat, profile_of, step_lengths_s
from pinchpoint.workload.trace import replay, trace_of, turns_of

BLOCK_ROWS = 4096
"""Places whose lengths and durations are drawn from one generator."""
STAGE_IDS = 1_000_000_000
"""request_id is stage * STAGE_IDS + place, so that topping up one stage changes nothing in the next."""
POOL_ROWS = 256
"""Requests that a closed loop of unknown length begins with, when the caller does not say how many."""
ARRIVALS, INPUTS, OUTPUTS, THINK, PATIENCE, TURNS = range(1, 7)
"""Streams of random numbers."""


@dataclass(frozen=True)
class StageLoad:
    """One stage, ready to be carried out.

    duration_ns: nothing is sent from then on; None: until every request of the schedule has ended. slots: the users of
    a closed loop, else None. rate_rps: of an open loop whose rate stays, else None. endless: `Scheduler.more` has
    further requests, and the caller must ask for them before the schedule is used up. arrivals, profile, think_s: as
    in model.Stage.
    """

    schedule: Schedule
    duration_ns: int | None
    slots: Slots | None = None
    rate_rps: float | None = None
    concurrency: int | None = None
    arrivals: str = ""
    profile: str = ""
    think_s: float = 0.0
    endless: bool = False


@dataclass
class _Pool:
    """What is needed to go on with a stage."""

    think: DurationLaw
    rows: int = 0


@dataclass
class Scheduler:
    """Makes the stages of one run in their order. patience: of every request; None: nobody ever hangs up."""

    seed: int
    lengths: Lengths
    patience: DurationLaw | None = None
    _next_session: int = 0
    _pools: dict[int, _Pool] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, lengths: Lengths) -> "Scheduler":
        """Raises UsageError for a patience that cannot be read."""
        return cls(plan.seed, lengths, _patience(plan))

    def open_loop(self, stage: int, rate_rps: float, duration_s: float) -> StageLoad:
        """Poisson arrivals at one rate on [0, duration_s)."""
        return self.stage(stage, OpenStage(rate_rps=rate_rps, duration_s=duration_s))

    def closed_loop(self, stage: int, concurrency: int, requests: int) -> StageLoad:
        """`requests` for so many users who do not think."""
        return self.stage(stage, ClosedStage(concurrency, requests=requests))

    def more(self, stage: int, requests: int) -> Schedule:
        """The next requests of a closed loop. Together they are the same however often one asks."""
        pool = self._pools[stage]
        first, pool.rows = pool.rows, pool.rows + requests
        think_ns = self._drawn(THINK, stage, first, requests, pool.think.draw_ns)
        return self._rows(stage, first, np.full(requests, AFTER), self._sessions(requests), think_ns=think_ns)

    def stage(self, stage: int, spec: StageSpec, *, pool: int = POOL_ROWS) -> StageLoad:
        """A stage of a plan. pool: requests to begin with where their number is not known.

        Raises UsageError, without the place; `check_stages` has told it with the place before the run.
        """
        match spec:
            case ClosedStage():
                return self._closed_stage(stage, spec, pool)
            case SessionsStage():
                return self._sessions_stage(stage, spec)
            case ReplayStage():
                return self._replay_stage(stage, spec)
        arrivals, profile = parse_arrivals(spec.arrivals), profile_of(spec)
        duration_s = _open_duration_s(spec)
        generator = self._generator(ARRIVALS, stage)
        offsets = offsets_ns(arrivals, profile, generator, duration_s=duration_s, count=spec.requests)
        schedule = self._rows(stage, 0, offsets, self._sessions(len(offsets)))
        return StageLoad(
            schedule,
            _end_ns(schedule, duration_s),
            rate_rps=spec.rate_rps if isinstance(spec, OpenStage) else None,
            arrivals=arrivals.text,
            profile=profile.text,
        )

    def _closed_stage(self, stage: int, spec: ClosedStage, pool: int) -> StageLoad:
        think = parse_durations(spec.think)
        self._pools[stage] = _Pool(think)
        users = spec.concurrency if spec.to_concurrency is None else max(spec.concurrency, spec.to_concurrency)
        return StageLoad(
            self.more(stage, spec.requests or max(pool, users)),
            None if spec.duration_s is None else round(spec.duration_s * NS_PER_S),
            slots=_slots(spec),
            concurrency=users,
            profile=""
            if spec.to_concurrency is None
            else f"ramp from {spec.concurrency} to {spec.to_concurrency} users",
            think_s=think.mean_s,
            endless=spec.requests is None,
        )

    def _sessions_stage(self, stage: int, spec: SessionsStage) -> StageLoad:
        arrivals, think, turns = parse_arrivals(spec.arrivals), parse_durations(spec.think), parse_counts(spec.turns)
        begin_ns = offsets_ns(
            arrivals,
            flat(spec.rate_rps),
            self._generator(ARRIVALS, stage),
            duration_s=spec.duration_s,
            count=spec.sessions,
        )
        counts = turns.draw(len(begin_ns), self._generator(TURNS, stage))
        rows = int(counts.sum())
        if rows > STAGE_REQUESTS_MAX:
            raise too_many(rows)
        session = np.repeat(np.arange(len(counts)), counts)
        turn = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        think_ns = np.where(turn > 0, self._drawn(THINK, stage, 0, rows, think.draw_ns), 0)
        schedule = self._rows(
            stage,
            0,
            np.where(turn == 0, begin_ns[session], AFTER),
            self._sessions(len(counts))[session],
            turn=turn,
            think_ns=think_ns,
        )
        return StageLoad(
            schedule,
            None if spec.duration_s is None else round(spec.duration_s * NS_PER_S),
            arrivals=arrivals.text,
            profile=f"sessions of {turns.text} turns",
            think_s=think.mean_s,
        )

    def _replay_stage(self, stage: int, spec: ReplayStage) -> StageLoad:
        trace = trace_of(spec)
        due = replay(trace, spec)
        turn, sessions = None, self._sessions(len(due.row))
        if trace.session is not None and len(due.row):
            # A session that comes again in another lap is another one.
            numbers = due.lap * (int(trace.session.max()) + 1) + trace.session[due.row]
            _, number = np.unique(numbers, return_inverse=True)
            turn, sessions = turns_of(number), sessions[number]
        schedule = self._rows(
            stage,
            0,
            due.offset_ns,
            sessions,
            turn=turn,
            input_tokens=None if trace.input_tokens is None else trace.input_tokens[due.row],
            output_tokens=None if trace.output_tokens is None else trace.output_tokens[due.row],
        )
        speed = "" if spec.scale == 1 else f" at {spec.scale:g} times its speed"
        profile = f"trace{speed}{', looped' if spec.loop else ''}"
        return StageLoad(schedule, due.end_ns, arrivals="replay", profile=profile)

    def _rows(
        self,
        stage: int,
        first: int,
        offset_ns: np.ndarray,
        session_id: np.ndarray,
        *,
        turn: np.ndarray | None = None,
        think_ns: np.ndarray | None = None,
        input_tokens: np.ndarray | None = None,
        output_tokens: np.ndarray | None = None,
    ) -> Schedule:
        """Rows at the places [first, first + n) of a stage."""
        count = len(offset_ns)
        if input_tokens is None:
            spec = self.lengths.input_tokens
            input_tokens = self._drawn(INPUTS, None, first, count, lambda n, rng: draw_lengths(spec, n, rng))
        if output_tokens is None:
            spec_out = self.lengths.output_tokens
            output_tokens = self._drawn(OUTPUTS, None, first, count, lambda n, rng: draw_lengths(spec_out, n, rng))
        if self.patience is None:
            patience_ns = np.full(count, NEVER)
        else:
            patience_ns = np.maximum(self._drawn(PATIENCE, stage, first, count, self.patience.draw_ns), 1)
        begin = stage * STAGE_IDS + first
        return Schedule(
            stage,
            np.arange(begin, begin + count, dtype=np.uint64),
            session_id.astype(np.uint32),
            np.zeros(count, np.uint16) if turn is None else turn.astype(np.uint16),
            offset_ns.astype(np.int64),
            np.zeros(count, np.int64) if think_ns is None else think_ns.astype(np.int64),
            input_tokens.astype(np.int32),
            output_tokens.astype(np.int32),
            patience_ns.astype(np.int64),
        )

    def _sessions(self, count: int) -> np.ndarray:
        """Numbers of new sessions."""
        first, self._next_session = self._next_session, self._next_session + count
        return np.arange(first, first + count)

    def _generator(self, stream: int, stage: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream, stage))

    def _drawn(
        self,
        stream: int,
        stage: int | None,
        first: int,
        count: int,
        draw: Callable[[int, np.random.Generator], np.ndarray],
    ) -> np.ndarray:
        """int64 values of the places [first, first + count); the same whatever else is asked for."""
        values = np.empty(count, np.int64)
        done = 0
        key = (self.seed, stream) if stage is None else (self.seed, stream, stage)
        while done < count:
            block, skipped = divmod(first + done, BLOCK_ROWS)
            drawn = draw(BLOCK_ROWS, np.random.default_rng((*key, block)))[skipped : skipped + count - done]
            values[done : done + len(drawn)] = drawn
            done += len(drawn)
        return values


def check_stages(plan: Plan) -> None:
    """Reads every text and file that the stages name, before anything is sent.

    Raises UsageError with the place: a text that is no law, a file that cannot be read, too many requests.
    """
    with _at("patience"):
        _patience(plan)
    for i, spec in enumerate(plan.stages):
        for key, parse in (("arrivals", parse_arrivals), ("think", parse_durations), ("turns", parse_counts)):
            if hasattr(spec, key):
                with _at(f"stages[{i}].{key}"):
                    parse(getattr(spec, key))
        with _at(f"stages[{i}]"):
            _check_stage(spec)


def _check_stage(spec: StageSpec) -> None:
    match spec:
        case ClosedStage():
            return
        case ReplayStage():
            replay(trace_of(spec), spec)
        case SessionsStage():
            mean_turns = parse_counts(spec.turns).mean
            sessions = spec.sessions or spec.rate_rps * (spec.duration_s or 0.0)
            if sessions * mean_turns > STAGE_REQUESTS_MAX:
                raise too_many(sessions * mean_turns)
            check_fits(parse_arrivals(spec.arrivals), flat(spec.rate_rps), spec.duration_s, spec.sessions)
        case _:
            check_fits(parse_arrivals(spec.arrivals), profile_of(spec), _open_duration_s(spec), spec.requests)


@contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _patience(plan: Plan) -> DurationLaw | None:
    if plan.patience is None:
        return None
    law = parse_durations(plan.patience)
    if law.mean_s == 0:
        raise UsageError(f"{plan.patience!r} is no time at all: nobody would wait; give one above 0, or leave it out")
    return law


def _open_duration_s(spec: OpenKind) -> float | None:
    """How long arrivals go on; None: until `requests` have come."""
    if spec.requests is not None:
        return None
    return sum(step_lengths_s(spec)) if isinstance(spec, StepsStage) else spec.duration_s


def _end_ns(schedule: Schedule, duration_s: float | None) -> int:
    """Without a duration a stage ends with its last arrival."""
    if duration_s is not None:
        return round(duration_s * NS_PER_S)
    return int(schedule.offset_ns[-1]) + 1 if len(schedule) else 1


def _slots(spec: ClosedStage) -> Slots:
    """A ramp begins or ends its users one by one, each in the middle of the time that the ramp has for it, so that the
    mean number of users is that of the straight line. No user begins anything at or after the end of the stage."""
    begin, end = spec.concurrency, spec.to_concurrency or spec.concurrency
    if spec.duration_s is None:
        return Slots.constant(begin)
    slots, moving = Slots.constant(max(begin, end)), abs(end - begin)
    slots.until_ns[:] = round(spec.duration_s * NS_PER_S)
    instants_ns = np.rint((np.arange(moving) + 0.5) / max(moving, 1) * spec.duration_s * NS_PER_S).astype(np.int64)
    if end > begin:
        slots.start_ns[begin:] = instants_ns
    else:
        slots.until_ns[end:] = instants_ns[::-1]
    return slots
