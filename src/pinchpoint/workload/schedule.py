"""Makes the schedules of a run: which request is due when, how long it is, how patient its user.

One seed fixes everything. What a request is depends on the seed and its place in the stage alone: arrivals, lengths,
think times and patience each draw from a stream of their own, in blocks of BLOCK_ROWS places, so a stage that is made
in one go and one that is extended piece by piece have the same content, and no stage depends on those before it.
Lengths do not depend on the stage either, only on the place in it; steps of a search go on where others ended.
"""

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

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
from pinchpoint.schedule import AFTER, NEVER, UNSHARED, Schedule, Slots
from pinchpoint.workload.arrivals import check_fits, offsets_ns, parse_arrivals, too_many
from pinchpoint.workload.classes import Traffic
from pinchpoint.workload.durations import CountLaw, DurationLaw, parse_counts, parse_durations
from pinchpoint.workload.lengths import draw_lengths, joint_inputs, joint_outputs
from pinchpoint.workload.profiles import flat, profile_of, step_lengths_s
from pinchpoint.workload.trace import forest, moved, replay, trace_of, turns_of

BLOCK_ROWS = 4096
"""Places whose lengths and durations are drawn from one generator."""
STAGE_IDS = 1_000_000_000
"""request_id is stage * STAGE_IDS + place, so that topping up one stage changes nothing in the next."""
POOL_ROWS = 256
"""Requests that a closed loop of unknown length begins with, when the caller does not say how many."""
ARRIVALS, INPUTS, OUTPUTS, THINK, PATIENCE, TURNS, CLASSES, PREFIXES, SESSION_CLASSES = range(1, 10)
"""Streams of random numbers."""
DEFAULT_TURNS = 4
"""Of a stage of sessions, where neither it nor its workload says how many."""


@dataclass(frozen=True)
class StageLoad:
    """One stage, ready to be carried out.

    duration_ns: nothing is sent from then on; None: until every request of the schedule has ended. slots: the users of
    a closed loop, else None. rate_rps: of an open loop whose rate stays, else None. endless: `Scheduler.more` has
    further requests, and the caller must ask for them before the schedule is used up. arrivals, profile, think_s: as
    in model.Stage. classes: names by class_id.
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
    classes: tuple[str, ...] = ()


@dataclass
class _Pool:
    """What is needed to go on with a stage of a closed loop."""

    think: DurationLaw
    mix: tuple[int, ...]
    rows: int = 0
    sessions: int = 0


@dataclass(frozen=True)
class _Rows:
    """Rows of a stage before lengths are drawn, shape (n,). place: of the session in its stage."""

    place: np.ndarray  # int64
    turn: np.ndarray  # int64
    class_id: np.ndarray  # int64


@dataclass
class Scheduler:
    """Makes the stages of one run in their order. patience: of every request; None: nobody ever hangs up."""

    seed: int
    traffic: Traffic
    patience: DurationLaw | None = None
    roots: dict[str, int] = field(default_factory=dict)
    """Trace -> what to add to its nodes in the run's tree, see trace.forest."""
    _next_session: int = 0
    _pools: dict[int, _Pool] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, traffic: Traffic) -> "Scheduler":
        """Raises UsageError for a patience that cannot be read."""
        return cls(plan.seed, traffic, _patience(plan), forest(plan.stages)[1])

    def open_loop(self, stage: int, rate_rps: float, duration_s: float, *, lengths_from: int = 0) -> StageLoad:
        """Poisson arrivals at one rate on [0, duration_s), of the plan's workload. lengths_from: place in the sequence
        of classes and lengths at which it begins; steps that go on where others ended are together a better sample of
        the workload than steps that all have the same requests."""
        load = self._open_stage(stage, OpenStage(rate_rps=rate_rps, duration_s=duration_s), lengths_from)
        return replace(load, classes=tuple(one.name for one in self.traffic.classes))

    def closed_loop(self, stage: int, concurrency: int, requests: int) -> StageLoad:
        """`requests` for so many users who do not think between two conversations."""
        return self.stage(stage, ClosedStage(concurrency, requests=requests))

    def more(self, stage: int, requests: int) -> Schedule:
        """The next requests of a closed loop, at least so many: a conversation is not cut. Together they are the same
        however often one asks."""
        return self._pool_rows(stage, requests, whole=True)

    def stage(self, stage: int, spec: StageSpec, *, pool: int = POOL_ROWS) -> StageLoad:
        """A stage of a plan. pool: requests to begin with where their number is not known.

        Raises UsageError, without the place; `check_stages` has told it with the place before the run.
        """
        match spec:
            case ClosedStage():
                load = self._closed_stage(stage, spec, pool)
            case SessionsStage():
                load = self._sessions_stage(stage, spec)
            case ReplayStage():
                load = self._replay_stage(stage, spec)
            case _:
                load = self._open_stage(stage, spec)
        return replace(load, classes=tuple(one.name for one in self.traffic.classes))

    def _open_stage(self, stage: int, spec: OpenKind, lengths_from: int = 0) -> StageLoad:
        arrivals, profile = parse_arrivals(spec.arrivals), profile_of(spec)
        duration_s = _open_duration_s(spec)
        generator = self._generator(ARRIVALS, stage)
        offsets = offsets_ns(arrivals, profile, generator, duration_s=duration_s, count=spec.requests)
        mix = self.traffic.mix(spec.workload)
        rows = self._chained(stage, offsets, self._classes(CLASSES, mix, lengths_from, len(offsets)))
        sessions = self._sessions(int(rows.place.max()) + 1 if len(offsets) else 0)
        session_id = sessions[rows.place] if len(offsets) else sessions
        schedule = self._rows(stage, 0, offsets, session_id, rows, lengths_from=lengths_from)
        return StageLoad(
            schedule,
            _end_ns(schedule, duration_s),
            rate_rps=spec.rate_rps if isinstance(spec, OpenStage) else None,
            arrivals=arrivals.text,
            profile=profile.text,
        )

    def _closed_stage(self, stage: int, spec: ClosedStage, pool: int) -> StageLoad:
        think = parse_durations(spec.think)
        self._pools[stage] = _Pool(think, self.traffic.mix(spec.workload))
        users = spec.concurrency if spec.to_concurrency is None else max(spec.concurrency, spec.to_concurrency)
        return StageLoad(
            self._pool_rows(stage, spec.requests or max(pool, users), whole=spec.requests is None),
            None if spec.duration_s is None else round(spec.duration_s * NS_PER_S),
            slots=_slots(spec),
            concurrency=users,
            profile=""
            if spec.to_concurrency is None
            else f"ramp from {spec.concurrency} to {spec.to_concurrency} users",
            think_s=self._mean_think_s(think, self._pools[stage].mix),
            endless=spec.requests is None,
        )

    def _pool_rows(self, stage: int, requests: int, *, whole: bool) -> Schedule:
        """Sessions of a closed loop, taken one by one until there are so many requests. whole: the last one is not cut
        to reach the number exactly."""
        pool = self._pools[stage]
        places, turns, classes = [], [], []
        count = 0
        while count < requests:
            wanted = requests - count
            class_id = self._classes(SESSION_CLASSES, pool.mix, pool.sessions, wanted)
            lengths = self._turns(stage, class_id, pool.sessions)
            ends = np.cumsum(lengths)
            taken = min(int(np.searchsorted(ends, wanted, side="left")) + 1, wanted)
            place, turn = _unrolled(lengths[:taken])
            places.append(place + pool.sessions)
            turns.append(turn)
            classes.append(class_id[place])
            pool.sessions += taken
            count += len(place)
        rows = _Rows(np.concatenate(places), np.concatenate(turns), np.concatenate(classes))
        if not whole:
            rows = _Rows(rows.place[:requests], rows.turn[:requests], rows.class_id[:requests])
        count = len(rows.place)
        first, pool.rows = pool.rows, pool.rows + count
        begin_ns = self._drawn(THINK, stage, first, count, pool.think.draw_ns)
        think_ns = np.where(rows.turn > 0, self._thinks(stage, rows, first, None), begin_ns)
        base = int(rows.place[0])
        sessions = self._sessions(int(rows.place[-1]) - base + 1)
        return self._rows(stage, first, np.full(count, AFTER), sessions[rows.place - base], rows, think_ns=think_ns)

    def _sessions_stage(self, stage: int, spec: SessionsStage) -> StageLoad:
        arrivals, mix = parse_arrivals(spec.arrivals), self.traffic.mix(spec.workload)
        begin_ns = offsets_ns(
            arrivals,
            flat(spec.rate_rps),
            self._generator(ARRIVALS, stage),
            duration_s=spec.duration_s,
            count=spec.sessions,
        )
        class_id = self._classes(SESSION_CLASSES, mix, 0, len(begin_ns))
        law = self._law_of_turns(spec, mix)
        if law is None:
            counts = self._turns(stage, class_id, 0)
        else:
            counts = law.draw(len(begin_ns), self._generator(TURNS, stage))
        rows = int(counts.sum())
        if rows > STAGE_REQUESTS_MAX:
            raise too_many(rows)
        place, turn = _unrolled(counts)
        made = _Rows(place, turn, class_id[place])
        think = None if spec.think is None else parse_durations(spec.think)
        schedule = self._rows(
            stage,
            0,
            np.where(turn == 0, begin_ns[place], AFTER),
            self._sessions(len(counts))[place],
            made,
            think_ns=np.where(turn > 0, self._thinks(stage, made, 0, think), 0),
        )
        return StageLoad(
            schedule,
            None if spec.duration_s is None else round(spec.duration_s * NS_PER_S),
            arrivals=arrivals.text,
            profile=f"sessions of {law.text if law else self._turns_text(mix)} turns",
            think_s=think.mean_s if think else self._mean_think_s(None, mix),
        )

    def _law_of_turns(self, spec: SessionsStage, mix: tuple[int, ...]) -> CountLaw | None:
        """The stage's own law; None: that of each class."""
        if spec.turns is not None:
            return parse_counts(spec.turns)
        return None if any(self.traffic.classes[i].remembers for i in mix) else parse_counts(DEFAULT_TURNS)

    def _turns_text(self, mix: tuple[int, ...]) -> str:
        return " and ".join(dict.fromkeys(self.traffic.classes[i].turns for i in mix))

    def _mean_think_s(self, begin: DurationLaw | None, mix: tuple[int, ...]) -> float:
        """Of all requests of a closed loop (begin: before a session), or of the later turns of sessions (None)."""
        shares = self.traffic.weights(mix)
        total = requests = 0.0
        for share, i in zip(shares, mix, strict=True):
            one = self.traffic.classes[i]
            later = one.mean_turns - 1
            total += share * (later * parse_durations(one.think).mean_s + (begin.mean_s if begin else 0.0))
            requests += share * (later + (1 if begin else 0))
        return total / requests if requests else 0.0

    def _replay_stage(self, stage: int, spec: ReplayStage) -> StageLoad:
        trace = trace_of(spec)
        due = replay(trace, spec)
        mix = self.traffic.mix(spec.workload)
        place, turn, sessions = np.arange(len(due.row)), np.zeros(len(due.row), np.int64), self._sessions(len(due.row))
        if trace.session is not None and len(due.row):
            # A session that comes again in another lap is another one.
            numbers = due.lap * (int(trace.session.max()) + 1) + trace.session[due.row]
            _, number = np.unique(numbers, return_inverse=True)
            place, turn, sessions = number, turns_of(number), sessions[number]
        schedule = self._rows(
            stage,
            0,
            due.offset_ns,
            sessions,
            _Rows(place, turn, self._classes(CLASSES, mix, 0, len(due.row))[place]),
            prefix_id=None if trace.node is None else moved(trace.node[due.row], self.roots.get(spec.file, 0)),
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
        rows: _Rows,
        *,
        think_ns: np.ndarray | None = None,
        prefix_id: np.ndarray | None = None,
        input_tokens: np.ndarray | None = None,
        output_tokens: np.ndarray | None = None,
        lengths_from: int | None = None,
    ) -> Schedule:
        """Rows at the places [first, first + n) of a stage. lengths_from: place of their lengths; None: first."""
        count = len(offset_ns)
        drawn_in, drawn_out = self._lengths(rows, first if lengths_from is None else lengths_from)
        if self.patience is None:
            patience_ns = np.full(count, NEVER)
        else:
            patience_ns = np.maximum(self._drawn(PATIENCE, stage, first, count, self.patience.draw_ns), 1)
        begin = stage * STAGE_IDS + first
        return Schedule(
            stage,
            np.arange(begin, begin + count, dtype=np.uint64),
            session_id.astype(np.uint32),
            rows.turn.astype(np.uint16),
            offset_ns.astype(np.int64),
            np.zeros(count, np.int64) if think_ns is None else think_ns.astype(np.int64),
            (drawn_in if input_tokens is None else input_tokens).astype(np.int32),
            (drawn_out if output_tokens is None else output_tokens).astype(np.int32),
            patience_ns.astype(np.int64),
            rows.class_id.astype(np.uint16),
            (self._prefixes(stage, rows) if prefix_id is None else prefix_id).astype(np.int32),
        )

    # -- what each place is ------------------------------------------------------------------------------------------

    def _classes(self, stream: int, mix: tuple[int, ...], first: int, count: int) -> np.ndarray:
        """Class ids of the places [first, first + count), int64. The same in every stage with the same mix."""
        if len(mix) == 1:
            return np.full(count, mix[0], np.int64)
        bounds = np.cumsum(self.traffic.weights(mix))[:-1]
        u = self._uniform(stream, None, first, count)
        return np.asarray(mix, np.int64)[np.searchsorted(bounds, u, side="right")]

    def _lengths(self, rows: _Rows, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Input and output tokens of the places from `first` on, int64 each."""
        class_id = rows.class_id
        count = len(class_id)
        inputs, outputs = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for i in np.unique(class_id).tolist():
            mask, one = class_id == i, self.traffic.classes[i]
            if one.joint is not None:
                u, v = self._uniform(INPUTS, i, first, count)[mask], self._uniform(OUTPUTS, i, first, count)[mask]
                inputs[mask], outputs[mask] = joint_inputs(one.joint, u), joint_outputs(one.joint, u, v)
                if one.later_joint is not None:
                    later = rows.turn[mask] > 0
                    at = np.flatnonzero(mask)[later]
                    inputs[at] = joint_inputs(one.later_joint, u[later])
                    outputs[at] = joint_outputs(one.later_joint, u[later], v[later])
                continue
            law_in, law_out = one.input_tokens, one.output_tokens
            inputs[mask] = self._drawn(INPUTS, i, first, count, lambda n, rng, law=law_in: draw_lengths(law, n, rng))[
                mask
            ]
            if law_out is not None:
                outputs[mask] = self._drawn(
                    OUTPUTS, i, first, count, lambda n, rng, law=law_out: draw_lengths(law, n, rng)
                )[mask]
        for i in np.unique(class_id).tolist():
            if not self.traffic.classes[i].generates:
                outputs[class_id == i] = 0
        return inputs, outputs

    def _turns(self, stage: int, class_id: np.ndarray, first: int) -> np.ndarray:
        """Turns of the sessions at the places from `first` on, int64."""
        counts = np.ones(len(class_id), np.int64)
        for i in np.unique(class_id).tolist():
            one = self.traffic.classes[i]
            if one.remembers:
                drawn = self._drawn(TURNS, (stage, i), first, len(class_id), parse_counts(one.turns).draw)
                counts[class_id == i] = drawn[class_id == i]
        return counts

    def _thinks(self, stage: int, rows: _Rows, first: int, law: DurationLaw | None) -> np.ndarray:
        """Pauses before later turns, int64 ns: by the law of the stage, else by that of each class."""
        count = len(rows.place)
        if law is not None:
            return self._drawn(THINK, stage, first, count, law.draw_ns)
        pauses = np.zeros(count, np.int64)
        for i in np.unique(rows.class_id).tolist():
            one = self.traffic.classes[i]
            if one.remembers:
                mask = rows.class_id == i
                draw = parse_durations(one.think).draw_ns
                pauses[mask] = self._drawn(THINK, (stage, i + 1), first, count, draw)[mask]
        return pauses

    def _prefixes(self, stage: int, rows: _Rows) -> np.ndarray:
        """Shared beginnings, int64; all turns of a session have that of its first."""
        found = np.full(len(rows.place), UNSHARED, np.int64)
        for i in np.unique(rows.class_id).tolist():
            prefix = self.traffic.classes[i].prefix
            if prefix is None:
                continue
            mask = rows.class_id == i
            places = rows.place[mask]
            low = int(places.min())
            u = self._uniform(PREFIXES, i, low, int(places.max()) - low + 1)[places - low]
            shares = np.arange(1, prefix.pool + 1, dtype=float) ** -prefix.skew
            picked = np.searchsorted(np.cumsum(shares) / shares.sum() * prefix.ratio, u, side="right")
            found[mask] = np.where(picked < prefix.pool, picked, UNSHARED)
        return found

    def _chained(self, stage: int, offset_ns: np.ndarray, class_id: np.ndarray) -> _Rows:
        """Sessions of arrivals at given instants: each is the next turn of a session of its class whose last turn was
        due a think time ago or more, the one that waits longest; where there is none, a new session begins.

        So the arrivals stay as asked, sessions get all their turns, and pauses are as drawn but for the wait until the
        next arrival.
        """
        count = len(offset_ns)
        place, turn = np.arange(count), np.zeros(count, np.int64)
        remembering = [i for i in np.unique(class_id).tolist() if self.traffic.classes[i].remembers]
        if not remembering:
            return _Rows(place, turn, class_id)
        turns = self._turns(stage, class_id, 0).tolist()
        thinks = self._thinks(stage, _Rows(place, turn, class_id), 0, None).tolist()
        instants, classes = offset_ns.tolist(), class_id.tolist()
        ready: dict[int, list[tuple[int, int, int]]] = {i: [] for i in remembering}
        """(instant from which the next turn may come, session, its turns so far) of each class, a heap."""
        found_place, found_turn = [0] * count, [0] * count
        sessions = 0
        for row in range(count):
            heap = ready.get(classes[row])
            if heap and heap[0][0] <= instants[row]:
                _, session, said = heapq.heappop(heap)
            else:
                session, said = sessions, 0
                sessions += 1
            found_place[row], found_turn[row] = session, said
            # How long a session is, is drawn at the place of its number, which is never above that of the row.
            if heap is not None and said + 1 < turns[session]:
                heapq.heappush(heap, (instants[row] + thinks[row], session, said + 1))
        return _Rows(np.array(found_place, np.int64), np.array(found_turn, np.int64), class_id)

    def _sessions(self, count: int) -> np.ndarray:
        """Numbers of new sessions."""
        first, self._next_session = self._next_session, self._next_session + count
        return np.arange(first, first + count)

    def _generator(self, stream: int, stage: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream, stage))

    def _uniform(self, stream: int, key: int | None, first: int, count: int) -> np.ndarray:
        """float64 from [0, 1) at the places [first, first + count)."""
        return self._drawn(stream, key, first, count, lambda n, rng: rng.random(n), np.float64)

    def _drawn(
        self,
        stream: int,
        key: int | tuple[int, ...] | None,
        first: int,
        count: int,
        draw: Callable[[int, np.random.Generator], np.ndarray],
        dtype: type = np.int64,
    ) -> np.ndarray:
        """Values of the places [first, first + count); the same whatever else is asked for. key: further parts of the
        seed, such as the stage or the class."""
        values = np.empty(count, dtype)
        done = 0
        parts = () if key is None else (key,) if isinstance(key, int) else key
        while done < count:
            block, skipped = divmod(first + done, BLOCK_ROWS)
            generator = np.random.default_rng((self.seed, stream, *parts, block))
            drawn = draw(BLOCK_ROWS, generator)[skipped : skipped + count - done]
            values[done : done + len(drawn)] = drawn
            done += len(drawn)
        return values


def _unrolled(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the session and turn, for each of the turns of sessions of so many."""
    place = np.repeat(np.arange(len(counts)), counts)
    return place, np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)


def check_stages(plan: Plan) -> None:
    """Reads every text and file that the stages name, before anything is sent.

    Raises UsageError with the place: a text that is no law, a file that cannot be read, too many requests.
    """
    with _at("patience"):
        _patience(plan)
    for i, spec in enumerate(plan.stages):
        for key, parse in (("arrivals", parse_arrivals), ("think", parse_durations), ("turns", parse_counts)):
            if getattr(spec, key, None) is not None:
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
            mean_turns = parse_counts(spec.turns or DEFAULT_TURNS).mean
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
