"""Carries out the steps of a search: hands them to the driver, hears what becomes of them, ends them.

Decides nothing about rates; that is search.py. Watches over the run: a service that is gone, or that has more requests
unanswered than the guard allows, ends it here.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pinchpoint.capacity import Interval
from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import GuardError, UnsupportedMeasurementError
from pinchpoint.load.messages import Outcome, Update
from pinchpoint.model import Progress, Slo, Stage, StageKind
from pinchpoint.plan import Plan
from pinchpoint.schedule import Schedule, Slots
from pinchpoint.slo import WITHDRAWN_STATUSES
from pinchpoint.step import StepState
from pinchpoint.workload.schedule import StageLoad

POLL_S = 0.1
LEAD_S = 0.25
"""From handing out a step to its first instant: time to build and deliver its requests."""
DEAD_FAILURES = 20
"""So many transport failures with nothing else between them: the service is gone."""
LOST_FAILURES = 3
PROGRESS_PERIOD_S = 0.25
PROGRESS_WINDOW_S = 5.0
CANCEL_PATIENCE_S = 5.0
"""Withdrawn requests are confirmed within a tenth of a second; a load process that takes longer is in trouble."""
BUSY_READINGS_MIN = 10


class Driver(Protocol):
    """Carries out steps. Real: processes and sockets. Virtual: the lab's engine on a simulated clock."""

    def now_ns(self) -> int: ...
    def start_step(self, stage: int, t0_ns: int, schedule: Schedule, slots: Slots | None) -> None:
        """Begins a stage; called again for the same stage, without slots, it adds sessions to its pool."""
        ...

    def poll(self, timeout_s: float) -> list[Update]:
        """Waits (or advances virtual time) up to timeout_s; returns what the load processes report."""
        ...

    def stop_issue(self) -> None: ...
    def cancel(self, reason: str) -> None: ...


class Observer(Protocol):
    """Hears what happens; the runner stores and shows it."""

    def on_schedule(self, schedule: Schedule) -> None: ...
    def on_stage(self, stage: Stage) -> None: ...
    def on_slos(self, slos: tuple[Slo, ...], derived: bool) -> None: ...
    def on_progress(self, progress: Progress) -> None: ...
    def on_event(self, kind: str, **fields: object) -> None: ...


class ServiceGoneError(UnsupportedMeasurementError):
    """The service stopped answering in the middle of the run."""


class Stepper:
    """The stages so far, and the one that runs. phase, detail, rate_rps, interval and lines are for the screen."""

    def __init__(self, driver: Driver, observer: Observer, plan: Plan) -> None:
        self._driver = driver
        self._observer = observer
        self._plan = plan
        self.stages: list[Stage] = []
        self.phase, self.detail = "warm-up", ""
        self.rate_rps: float | None = None
        self.interval = Interval(None, False, None, False)
        self.lines: list[tuple[float, str, str]] = []
        self._begun_ns = driver.now_ns()
        self._current: StepState | None = None
        self._live: dict[int, StepState] = {}
        """stage -> what is known of it: the running stage and those before it that still wait for answers."""
        self._ended: deque[tuple[int, Outcome]] = deque(maxlen=20_000)
        self._shown_ns = -NS_PER_S
        self._completed = self._failed = 0
        self._failures_in_a_row = 0
        self._tokens: dict[int, int] = {}
        self._token_history: deque[tuple[int, int]] = deque(maxlen=600)
        self._client_busy: deque[float] = deque(maxlen=20)

    @property
    def elapsed_s(self) -> float:
        return (self._driver.now_ns() - self._begun_ns) / NS_PER_S

    @property
    def left_s(self) -> float:
        return self._plan.budget_s - self.elapsed_s

    @property
    def client_busy_ratio(self) -> float | None:
        """Median share of a core that the load loop used lately; None before there are enough readings."""
        return float(np.median(self._client_busy)) if len(self._client_busy) >= BUSY_READINGS_MIN else None

    @property
    def loses_contact(self) -> bool:
        """Whether the last requests failed to connect: the service may be gone, and the step decides nothing yet."""
        return self._failures_in_a_row >= LOST_FAILURES

    @property
    def in_flight(self) -> int:
        """Unanswered requests of the running stage and of those before it."""
        return sum(len(state.pending) for state in self._live.values())

    def since_s(self, t0_ns: int) -> float:
        return (self._driver.now_ns() - t0_ns) / NS_PER_S

    def begin(
        self,
        asked: StageLoad,
        kind: StageKind,
        *,
        settle_ns: int = 0,
    ) -> tuple[StepState, int]:
        t0_ns = self._driver.now_ns() + round(LEAD_S * NS_PER_S)
        self._observer.on_schedule(asked.schedule)
        state = self._current = StepState(asked, t0_ns, settle_ns, kind)
        self._live = {stage: earlier for stage, earlier in self._live.items() if earlier.pending}
        self._live[len(self.stages)] = state
        self._driver.start_step(len(self.stages), t0_ns, asked.schedule, asked.slots)
        return state, t0_ns

    def top_up(self, state: StepState, schedule: Schedule) -> None:
        """Gives the users of the running closed loop further requests."""
        self._observer.on_schedule(schedule)
        self._driver.start_step(schedule.stage, state.t0_ns, schedule, None)

    def end(
        self,
        state: StepState,
        name: str,
        decision: str,
        reason: str,
        *,
        settle_ns: int | None = None,
        t1_ns: int | None = None,
    ) -> None:
        now_ns = self._driver.now_ns()
        stage = Stage(
            index=len(self.stages),
            kind=state.kind,
            name=name,
            t0_ns=state.t0_ns,
            t1_ns=max(state.t0_ns + 1, t1_ns or now_ns),
            drained_ns=now_ns,
            settle_ns=state.settle_ns if settle_ns is None else settle_ns,
            rate_rps=state.asked.rate_rps,
            concurrency=state.asked.concurrency,
            think_s=state.asked.think_s,
            arrivals=state.asked.arrivals,
            profile=state.asked.profile,
            decision=decision,  # pyright: ignore[reportArgumentType]
            reason=reason,
        )
        self._current = None
        self.stages.append(stage)
        self._observer.on_stage(stage)

    def poll(self, state: StepState) -> bool:
        """One round: waits, takes what came into the state, shows progress. False when nothing came.

        Raises GuardError with too many requests unanswered, ServiceGoneError when nothing can be reached any more; the
        running stage is ended before.
        """
        came = self._receive(state)
        if (unanswered := self.in_flight) > self._plan.max_in_flight:
            self.interrupt("more requests were unanswered than the guard allows")
            raise GuardError(
                f"stopped by the guard: {unanswered} requests were unanswered, {self._plan.max_in_flight} are allowed "
                "(--max-in-flight)"
            )
        if self._failures_in_a_row >= DEAD_FAILURES:
            state.kind = "interrupted"
            self.interrupt("the service stopped answering")
            raise ServiceGoneError(
                f"the service stopped answering: the last {self._failures_in_a_row} requests all failed to connect; "
                "see whether it still runs"
            )
        return came

    def _receive(self, state: StepState) -> bool:
        updates = self._driver.poll(POLL_S)
        for update in updates:
            self._tokens[update.worker] = update.tokens
            self._client_busy.append(update.busy_ratio)
            for outcome in update.outcomes:
                self._ended.append((update.t_ns, outcome))
                self._count(outcome)
                if (of_stage := self._live.get(outcome.stage)) is not None:
                    of_stage.outcomes[outcome.request_id] = outcome
                    of_stage.pending.pop(outcome.request_id, None)
            for pending in update.pending:
                of_stage = self._live.get(pending.stage)
                if of_stage is not None and pending.request_id not in of_stage.outcomes:
                    of_stage.pending[pending.request_id] = pending
            if update.t_ns >= state.t0_ns:
                state.unissued[update.worker] = update.unissued
            state.backlog.append(((update.t_ns - state.t0_ns) / NS_PER_S, self.in_flight))
            self._token_history.append((update.t_ns, sum(self._tokens.values())))
        now_ns = self._driver.now_ns()
        if updates and now_ns - self._shown_ns >= PROGRESS_PERIOD_S * NS_PER_S:
            self._shown_ns = now_ns
            self._observer.on_progress(self._progress(self.in_flight))
        return bool(updates)

    def interrupt(self, reason: str) -> None:
        """Ends the running stage at once, so that what was measured of it is kept and can be judged."""
        state = self._current
        if state is None:
            return
        self._driver.stop_issue()
        self.drain(state, cancel_after_s=0.0)
        self.end(state, "interrupted", "none", reason)

    def _count(self, outcome: Outcome) -> None:
        if outcome.status == "ok":
            self._completed += 1
        elif outcome.status not in WITHDRAWN_STATUSES:
            self._failed += 1
        if outcome.status == "transport_error":
            self._failures_in_a_row += 1
        elif outcome.status not in WITHDRAWN_STATUSES:
            self._failures_in_a_row = 0

    def drain(self, state: StepState, *, cancel_after_s: float) -> None:
        """Waits for what is in flight; withdraws what has not ended after a while."""
        deadline_ns = self._driver.now_ns() + round(cancel_after_s * NS_PER_S)
        first = True
        while first or (self.in_flight and self._driver.now_ns() < deadline_ns):
            first = False
            self._receive(state)
        if self.in_flight:
            self._driver.cancel("the step was decided")
            give_up_ns = self._driver.now_ns() + round(CANCEL_PATIENCE_S * NS_PER_S)
            while self.in_flight and self._driver.now_ns() < give_up_ns:
                self._receive(state)

    def ease(self, state: StepState, *, in_flight: float, within_s: float) -> bool:
        """Waits until no more than `in_flight` requests are unanswered; they go on under the next step. False when
        that takes longer than `within_s`."""
        deadline_ns = self._driver.now_ns() + round(within_s * NS_PER_S)
        self._receive(state)
        while self.in_flight > in_flight and self._driver.now_ns() < deadline_ns:
            self._receive(state)
        return self.in_flight <= in_flight

    def _progress(self, in_flight: int) -> Progress:
        now_ns = self._driver.now_ns()
        since_ns = now_ns - round(PROGRESS_WINDOW_S * NS_PER_S)
        while self._ended and self._ended[0][0] < since_ns:
            self._ended.popleft()
        while len(self._token_history) > 2 and self._token_history[0][0] < since_ns:
            self._token_history.popleft()
        recent = [o for _, o in self._ended if o.status == "ok"]
        (t_a, n_a), (t_b, n_b) = self._token_history[0], self._token_history[-1]
        return Progress(
            phase=self.phase,
            detail=self.detail,
            elapsed_s=self.elapsed_s,
            left_s=max(0.0, self.left_s) if not self._plan.stages else None,
            rate_rps=self.rate_rps,
            in_flight=in_flight,
            completed=self._completed,
            errors=self._failed,
            output_tokens_per_s=(n_b - n_a) / max((t_b - t_a) / NS_PER_S, 1e-3) if t_b > t_a else 0.0,
            ttft_p50_s=_percentile([o.ttft_s for o in recent], 50, 1),
            ttft_p95_s=_percentile([o.ttft_s for o in recent], 95, 20),
            tpot_p50_s=_percentile([o.tpot_s for o in recent], 50, 1),
            tpot_p95_s=_percentile([o.tpot_s for o in recent], 95, 20),
            lower_rps=self.interval.lower_rps,
            upper_rps=self.interval.upper_rps,
            steps=tuple(self.lines),
        )


def _percentile(values: Sequence[float | None], percent: float, at_least: int) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.percentile(known, percent)) if len(known) >= at_least else None
