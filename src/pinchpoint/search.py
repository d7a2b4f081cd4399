"""Capacity search: how much load the service carries within its SLOs, and how it breaks beyond.

    warm-up     one user, until its latencies are stationary; gives the unloaded latency and, if none were given, SLOs
    bracket     open-loop Poisson steps, the rate growing geometrically until a step fails
    refine      steps where the capacity is believed to be, each under the queue that the one before left behind
    overload    one step beyond the capacity, long enough to see what gives way
    recovery    one user, until the service is itself again

A step is judged by sequential binomial tests, one per SLO, over its requests in the order they were scheduled: a
request counts only when all before it are decided, so that fast answers do not come first and flatter the step. Where
to go next is read from the posterior of the capacity over all steps so far (crossing.py), and a step ends when it
has become sure that the capacity is elsewhere.

Everything here happens through a Driver, so the same search runs against a real service and in virtual time.
"""

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from pinchpoint.capacity import StepCounts, Tally, estimate_of, posterior_of, requests_needed, tallies_of
from pinchpoint.clock import NS_PER_S
from pinchpoint.crossing import Crossing
from pinchpoint.errors import UnsupportedMeasurementError
from pinchpoint.load.messages import Outcome
from pinchpoint.model import Slo, StageKind
from pinchpoint.plan import ClosedStage, Plan, StageSpec
from pinchpoint.schedule import AFTER
from pinchpoint.slo import derive_slos
from pinchpoint.stats import is_stationary
from pinchpoint.step import StepState
from pinchpoint.stepper import Driver, Observer, Stepper
from pinchpoint.workload.schedule import Scheduler

WARMUP_BUDGET_RATIO = 0.15
WARMUP_MAX_S = 40.0
WARMUP_REQUESTS_MIN = 8
WARMUP_REQUESTS_MAX = 200
OVERLOAD_BUDGET_RATIO = 0.15
OVERLOAD_BUDGET_MAX_RATIO = 0.25
OVERLOAD_RANGE_S = (8.0, 30.0)
OVERLOAD_FACTOR = 1.5
"""Times the highest throughput seen: what gives way first is then saturated, whatever SLO broke before."""
OVERLOAD_TRIES = 4
MILD_REQUESTS = 8
MILD_MISS_RATIO = 0.5
"""An overload step of which so many requests are decided and fewer than this share missed an SLO did not break it."""
STEP_COUNT_PLANNED = 5
"""Search steps that the budget is divided by."""
STEP_RANGE_S = (4.0, 60.0)
BRACKET_FACTOR = 2.0
HOPELESS_MISSES = 8
HOPELESS_FACTOR = 3.0
"""So many times the allowed misses end a step that leans to fail."""
SLOWED_FACTOR = 1.25
BRACKET_STEP_E2E = 3.0
"""Length of a bracket step in unloaded end-to-end times: one to settle, the rest to see requests end."""
STEP_REQUESTS_MIN = 10
"""A step is made long enough for so many requests, and a very low rate is tried only if so many fit."""
REFINE_PLACES = (0.5, 0.8, 0.35, 0.65, 0.5, 0.8, 0.2)
"""Where the next step goes, as quantiles of the posterior, in turn. More above than below: misses tell more than
their absence."""
STEP_LIMITS = 3.0
"""A step is so many times as long as the longest limit on TTFT or E2E, beside the time in which it settles: a queue has
to grow to the limit before a request can miss it."""
NARROW_BUDGET_RATIO, NARROW_E2E = 0.1, 10.0
"""A step in a narrow interval takes at least this share of the budget, and so many loaded end-to-end times: queues
near the capacity need long to show what they do."""
WIDE_SHARE, NARROW_SHARE = 0.15, 0.3
"""Share of the time left for a step while the interval is wide, and when it is narrow."""
REFINE_MAX_S = 120.0
ELSEWHERE_PROBABILITY = 0.98
"""A step ends when the capacity is so surely above or below its rate."""
RETHINK_RATIO, RETHINK_MIN_S = 0.05, 2.0
"""The posterior is computed again so often: in shares of the step's length, and no oftener than that."""
LOOK_RATIO = 0.01
"""The counts of a step are looked at again when it has become so much longer."""
EASE_FACTOR = 3.0
"""A step hands its queue on when no more requests are in flight than so many times what its rate keeps without one."""
SETTLE_MAX_SHARE = 1 / 3
"""Of a step at most so much is left out because it had not settled."""
TOLD_ENOUGH_FACTOR = 6.0
"""So many times the allowed misses end a step near the capacity: more of them would tell no more."""
PROVE_REQUESTS_MIN = 10
"""A proof that still lacks requests is given at least so many: the count without a miss is the best case."""
FIRST_CONCURRENCY = 1.0
"""The first rate keeps about this many requests in flight on an unloaded service (Little's law)."""
PRECISE_RATIO = 1.12
"""The search ends early when both ends are proven and this close."""
WIDE_RATIO = 1.5
THROUGHPUT_MARGIN = 0.93
"""Guess below the highest throughput seen: a queue needs some slack to be stable."""
HINT_QUANTILES = (0.05, 0.95)
"""A guess within these quantiles of the posterior is possible."""
WIDE_STEPS = 3
"""An interval this wide is narrowed in short steps, but no more of them than that: what then is still wide needs more
requests, not other rates."""
BACKLOG_PREFIX = "backlog grows"
"""How the reason of a stage begins that failed because it was not sustained; the judge knows it by this."""
LEANS_TO_FAIL = " (leans to fail)"
BACKLOG_SHARE = 0.1
"""A step in which more than this share of the offered requests piles up is not sustained."""
DRAIN_MAX_S = 8.0
RECOVERY_MAX_S = 10.0
RECOVERY_REQUESTS_MAX = 50
RECOVERY_RESERVE_S = 2.0
RECOVERY_FACTOR = 2.0
"""The service is itself again when single requests are within this factor of the unloaded TTFT."""
CLIENT_BUSY_MAX = 0.9
"""Above this share of a core the load loop is the limit; going higher would measure ourselves."""
POOL_AHEAD_S = 3.0
"""A closed loop is given the requests that it will take in so long; readings come ten times a second."""
POOL_FIRST_MAX = 20_000
"""Requests beyond one per user that it is given at its begin."""
OVER_AFTER_S = 1.0
"""A stage without an end of its own is over when nothing is left, but not before every worker had time to say so."""


class Baseline(msgspec.Struct, frozen=True):
    """Medians of the unloaded service. None where the service does not stream."""

    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    input_tokens: float | None
    """As the service counted them; None when it does not tell."""
    planned_input_tokens: float


class _Taken:
    """A step that was taken: its state as long as answers are missing, and then only its counts."""

    def __init__(self, state: StepState, end_ns: int, *, sustained: bool) -> None:
        self._state: StepState | None = state
        self._end_ns = end_ns
        self._counts: StepCounts | None = None
        self.sustained = sustained

    def counts(self, slos: Sequence[Slo], now_ns: int) -> StepCounts:
        if self._state is not None:
            self._counts = self._state.counts(slos, now_ns, until_ns=self._end_ns)
            if not self._state.pending:
                self._state = None
        assert self._counts is not None
        return msgspec.structs.replace(self._counts, sustained=self.sustained)


class Search:
    """One search. `run` returns normally when the search is over; what was measured is with the observer."""

    def __init__(self, driver: Driver, observer: Observer, scheduler: Scheduler, plan: Plan, slos: tuple[Slo, ...]):
        self._driver = driver
        self._observer = observer
        self._scheduler = scheduler
        self._plan = plan
        self.slos = slos
        self._steps = Stepper(driver, observer, plan)
        self.baseline: Baseline | None = None
        self.on_baseline: Callable[[Baseline], None] | None = None
        """Called once the unloaded latencies are known, before the first search step (prompts are re-fitted)."""
        self.on_overload: Callable[[float], None] | None = None
        """Called when a step begins that is meant to overload the service, with its longest duration in seconds."""
        self._taken: list[_Taken] = []
        """Every step of search and overload, in their order."""
        self._throughput: dict[float, float] = {}
        """rate -> successful completions per second of the last step at that rate."""
        self._requests_sent = 0
        self._loaded_e2e_s = 0.0
        """Median end-to-end time in the last step."""
        self._slowed = False
        """Whether the last search step was answered visibly slower than the unloaded service answers."""

    # -- the whole -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._warm_up()
        if self._plan.stages:
            self._run_plan_stages()
            return
        self._bracket()
        self._refine()
        self._overload()

    def interrupt(self, reason: str) -> None:
        """Ends the running stage at once, so that what was measured of it is kept and can be judged."""
        self._steps.interrupt(reason)

    @property
    def _overload_s(self) -> float:
        low, high = OVERLOAD_RANGE_S
        settle_s = 2 * self.baseline.e2e_s if self.baseline else 0.0
        wanted_s = min(max(low, OVERLOAD_BUDGET_RATIO * self._plan.budget_s, settle_s), high)
        return min(wanted_s, OVERLOAD_BUDGET_MAX_RATIO * self._plan.budget_s)

    @property
    def _search_left_s(self) -> float:
        """Budget without what the overload step, if one follows, and the recovery after it need."""
        return self._steps.left_s - RECOVERY_RESERVE_S - (self._overload_s if self._overload_follows else 0.0)

    @property
    def _overload_follows(self) -> bool:
        ceiling_rps = self._plan.max_rate_rps
        at_ceiling = ceiling_rps is not None and self._lower is not None and self._lower >= ceiling_rps
        return not (self._upper is None and at_ceiling)

    # -- phases ----------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        self._steps.phase = "warm-up"
        self._steps.rate_rps = None
        limit_s = min(WARMUP_MAX_S, WARMUP_BUDGET_RATIO * self._plan.budget_s)
        asked = self._scheduler.closed_loop(len(self._steps.stages), 1, WARMUP_REQUESTS_MAX)
        state, t0_ns = self._steps.begin(asked, "warmup")
        stationary = False
        while True:
            self._steps.poll(state)
            done = state.in_order()
            answered = [o for o in done if o.status == "ok"]
            elapsed_s = self._steps.since_s(t0_ns)
            stationary = len(answered) >= WARMUP_REQUESTS_MIN and self._looks_stationary(answered)
            if stationary or len(done) >= WARMUP_REQUESTS_MAX:
                break
            if elapsed_s >= limit_s and answered:
                break
            if elapsed_s >= max(3 * limit_s, self._plan.timeout_s + 1) or (len(done) >= 5 and not answered):
                break
        self._driver.stop_issue()
        self._steps.drain(state, cancel_after_s=0.0 if not answered else max(2.0, answered[-1].e2e_s * 2))
        answered = [o for o in state.in_order() if o.status == "ok"]
        if not answered:
            self._steps.end(state, "warm-up", "none", "no request was answered")
            first = next(iter(state.outcomes.values()), None)
            cause = f"{first.status}: {first.error}" if first else "no answer in time"
            raise UnsupportedMeasurementError(f"the service answered no request of the warm-up ({cause})")
        settled = answered[len(answered) // 2 :] if len(answered) >= 6 else answered
        settle_ns = max(0, settled[0].scheduled_ns - t0_ns)
        reason = (
            f"stationary after {len(answered)} requests"
            if stationary
            else f"not yet stationary after {len(answered)} requests; the time for it was up"
        )
        self._steps.end(state, "warm-up", "none", reason, settle_ns=settle_ns)
        self.baseline = Baseline(
            ttft_s=_median([o.ttft_s for o in settled]),
            tpot_s=_median([o.tpot_s for o in settled]),
            e2e_s=_median([o.e2e_s for o in settled]) or 1e-3,
            input_tokens=_median([o.input_tokens for o in settled]),
            planned_input_tokens=_median([o.planned_input_tokens for o in settled]) or 1.0,
        )
        if self.on_baseline:
            self.on_baseline(self.baseline)
        derived = not self.slos
        if derived:
            self.slos = derive_slos(self.baseline.ttft_s, self.baseline.tpot_s, self.baseline.e2e_s)
        self._observer.on_slos(self.slos, derived)

    @staticmethod
    def _looks_stationary(answered: list[Outcome]) -> bool:
        """Over the later two thirds: what came first may have met cold caches and compilers."""
        recent = answered[len(answered) // 3 :]
        ttft = [o.ttft_s for o in recent if o.ttft_s is not None]
        tpot = [o.tpot_s for o in recent if o.tpot_s is not None]
        if not ttft:
            return is_stationary([o.e2e_s for o in recent])
        return is_stationary(ttft, tolerance_ratio=0.25) and (not tpot or is_stationary(tpot))

    def _bracket(self) -> None:
        """Short steps: a wrong lean to pass costs nothing here, because the ends are proven later."""
        self._steps.phase = "search"
        assert self.baseline is not None
        rate_rps = FIRST_CONCURRENCY / self.baseline.e2e_s
        ceiling_rps = self._ceiling_rps
        step_s = min(STEP_RANGE_S[1], max(STEP_RANGE_S[0], BRACKET_STEP_E2E * self.baseline.e2e_s))
        # A step at the ceiling that passes needs no overload after it, so its time may be spent.
        spare_s = self._overload_s if ceiling_rps < math.inf else 0.0
        while not self._taken or self._search_left_s + spare_s > min(step_s, STEP_RANGE_S[1]):
            rate_rps = min(rate_rps, ceiling_rps)
            if self._step(_neat(rate_rps), max_s=step_s, drain=False) == "fail":
                rate_rps /= BRACKET_FACTOR**2
                if self._lower is not None or rate_rps * self._search_left_s < STEP_REQUESTS_MIN:
                    return
                step_s = max(step_s, STEP_REQUESTS_MIN / rate_rps)  # the first rate failed: look far below it
            elif self._upper is not None or rate_rps >= ceiling_rps or self._client_is_limit():
                return
            else:
                hurried = self._search_left_s < 3 * step_s
                rate_rps *= BRACKET_FACTOR if self._slowed and not hurried else BRACKET_FACTOR**2
                if hurried and ceiling_rps < math.inf:
                    rate_rps = ceiling_rps

    def _refine(self) -> None:
        """Narrows the interval, as far as the budget goes."""
        turn = 0
        while self._search_left_s > STEP_RANGE_S[0]:
            left_s = self._search_left_s
            if self._lower is None:
                # What had passed did not hold. Look below, as far as enough requests fit into the time left.
                below_rps = (self._upper or 0.0) / BRACKET_FACTOR
                if below_rps * left_s < STEP_REQUESTS_MIN:
                    return
                self._step(_neat(below_rps))
                continue
            if self._upper is None:
                # Nothing failed and nothing else is left to do: all the time goes into the one rate that counts.
                if self._prove_s(self._lower, latency_only=True) > 0:
                    rest_s = max(left_s, self._steps.left_s - RECOVERY_RESERVE_S)
                    self._step(self._lower, max_s=rest_s, prove=True)
                return
            posterior = posterior_of(self._seen(), self.slos)
            assert posterior is not None
            interval = self._steps.interval
            width = self._upper / self._lower
            if width <= PRECISE_RATIO and interval.lower_proven and interval.upper_proven:
                return
            rate_rps = posterior.quantile(REFINE_PLACES[turn % len(REFINE_PLACES)])
            if turn < WIDE_STEPS:
                rate_rps = self._pulled(rate_rps, posterior)
            rate_rps = min(rate_rps, self._ceiling_rps)
            self._step(_neat(rate_rps), max_s=self._refine_s(width, turn), carry=True)
            turn += 1

    def _pulled(self, rate_rps: float, posterior: Crossing) -> float:
        """While little is known: where the throughput of a service that was overloaded points, if that is possible."""
        carried_rps = THROUGHPUT_MARGIN * max(self._throughput.values(), default=0.0)
        possible = posterior.quantile(HINT_QUANTILES[0]) < carried_rps < posterior.quantile(HINT_QUANTILES[1])
        wide = posterior.quantile(0.75) > WIDE_RATIO * posterior.quantile(0.25)
        return carried_rps if wide and possible else rate_rps

    def _refine_s(self, width: float, turn: int) -> float:
        assert self.baseline is not None
        left_s = self._search_left_s
        if width > WIDE_RATIO and turn < WIDE_STEPS:
            wanted_s = max(WIDE_SHARE * left_s, 4 * self._loaded_e2e_s)
        else:
            wanted_s = max(NARROW_SHARE * left_s, NARROW_BUDGET_RATIO * self._plan.budget_s)
            wanted_s = max(wanted_s, NARROW_E2E * self._loaded_e2e_s)
        telling_s = STEP_LIMITS * self._patience_s + 2 * self._loaded_e2e_s
        step_s = min(max(wanted_s, telling_s, STEP_RANGE_S[0]), REFINE_MAX_S)
        return left_s if left_s < 1.5 * step_s else step_s

    def _seen(self) -> list[StepCounts]:
        """Counts of every step so far."""
        now_ns = self._driver.now_ns()
        return [taken.counts(self.slos, now_ns) for taken in self._taken]

    def _pooled(self, rate_rps: float) -> Tally:
        """Counts of all steps so far at one rate: the test is valid however the requests were spread."""
        return tallies_of(self._seen()).get(rate_rps, Tally())

    @property
    def _ceiling_rps(self) -> float:
        return self._plan.max_rate_rps or math.inf

    @property
    def _lower(self) -> float | None:
        return self._steps.interval.lower_rps

    @property
    def _upper(self) -> float | None:
        return self._steps.interval.upper_rps

    def _prove_s(self, rate_rps: float, *, latency_only: bool) -> float:
        """Time that proving this rate still takes if nothing more is missed; 0 when it is decided.

        The errors SLO allows so few misses that proving it takes several times as long as the latency SLOs; it is
        proven only when time is left over, and else the answer says how far the evidence goes.
        """
        tally = self._pooled(rate_rps)
        missing = 0.0
        for slo in self.slos:
            if latency_only and slo.metric == "errors":
                continue
            if tally.decide_slo(slo, self.slos) == "undecided":
                needed = requests_needed((slo,), alpha_shared_by=len(self.slos))
                of_slo = max(needed - tally.counted(slo), PROVE_REQUESTS_MIN)
                missing = max(missing, of_slo / self._share(slo))
        return missing / rate_rps

    def _share(self, slo: Slo) -> float:
        """Share of the requests that the SLO is about; 1 for a class that only other stages have."""
        traffic = self._scheduler.traffic
        mix = traffic.mix(None)
        shares = dict(zip((traffic.classes[i].name for i in mix), traffic.weights(mix), strict=True))
        return 1.0 if slo.scope is None else shares.get(slo.scope, 1.0)

    def _overload(self) -> None:
        """One step that breaks the service; a rate that turns out not to is raised."""
        if self._upper is None or self._steps.left_s < OVERLOAD_RANGE_S[0] / 2:
            return
        self._steps.phase = "overload"
        carried_rps = max(self._lower or 0.0, *self._throughput.values())
        rate_rps = OVERLOAD_FACTOR * (carried_rps or self._upper)
        ceiling_rps = self._plan.max_rate_rps or math.inf
        for _ in range(OVERLOAD_TRIES):
            rate_rps = min(rate_rps, ceiling_rps)
            max_s = min(self._overload_s, max(self._steps.left_s, STEP_RANGE_S[0]))
            if self.on_overload:
                self.on_overload(max_s)
            if self._step(_neat(rate_rps), kind="overload", max_s=max_s, decide_early=False) != "mild":
                break
            if rate_rps >= ceiling_rps:
                break
            rate_rps *= BRACKET_FACTOR
        self._recover()

    def _run_plan_stages(self) -> None:
        self._steps.phase = "load"
        for i, spec in enumerate(self._plan.stages):
            self._plan_stage(spec, spec.name or f"stage {i + 1}")

    def _plan_stage(self, spec: StageSpec, name: str) -> None:
        """One stage as it is written. Decided at its end, and only where every instant was fixed beforehand: the
        requests of the others are sent because others went well."""
        assert self.baseline is not None
        e2e_s = self.baseline.e2e_s
        index = len(self._steps.stages)
        asked = self._scheduler.stage(index, spec, pool=self._pool_rows(spec))
        self._steps.rate_rps = asked.rate_rps
        self._steps.detail = name if asked.concurrency is None else f"{name}: {asked.concurrency} users"
        fixed = asked.slots is None and bool(np.all(asked.schedule.offset_ns != AFTER))
        duration_s = asked.duration_ns / NS_PER_S if asked.duration_ns is not None else 0.0
        settle_s = min(max(0.5, e2e_s), duration_s / 3) if fixed else min(e2e_s, duration_s / 4)
        state, t0_ns = self._steps.begin(asked, "load", settle_ns=round(settle_s * NS_PER_S))
        rows = len(asked.schedule)
        while True:
            self._steps.poll(state)
            since_ns = self._driver.now_ns() - t0_ns
            if asked.duration_ns is not None and since_ns >= asked.duration_ns:
                break
            if not fixed and not asked.endless and self._is_over(state, rows, since_ns):
                break
            if asked.endless and (missing := self._missing_rows(state, rows, since_ns)):
                rows += missing
                self._steps.top_up(state, self._scheduler.more(index, missing))
        end_ns = self._driver.now_ns()
        if asked.duration_ns is not None:
            end_ns = min(end_ns, t0_ns + asked.duration_ns)
        self._driver.stop_issue()
        growth_rps = state.backlog_growth_rps()
        self._steps.drain(state, cancel_after_s=self._drain_s("none") if fixed else max(DRAIN_MAX_S, 3 * e2e_s))
        decision, reason = "none", ""
        if fixed:
            tally = state.tally(self.slos, self._driver.now_ns())
            decision, reason = tally.decide(self.slos)
            rate_rps = asked.rate_rps
            if decision != "fail" and rate_rps is not None and growth_rps > BACKLOG_SHARE * rate_rps:
                decision, reason = "fail", _backlog(growth_rps)
            if decision == "undecided" and not self._leans_pass(tally):
                reason += LEANS_TO_FAIL
            if rate_rps is not None:
                self._steps.lines.append((rate_rps, decision, reason))
        self._steps.end(state, name, decision, reason, t1_ns=end_ns)

    def _pool_rows(self, spec: StageSpec) -> int:
        """Requests that a closed loop begins with: as many as an unloaded service would answer in twice the time that
        the pool is kept ahead of the users."""
        if not isinstance(spec, ClosedStage) or self.baseline is None:
            return 0
        users = max(spec.concurrency, spec.to_concurrency or 0)
        return users + min(math.ceil(users * (1 + 2 * POOL_AHEAD_S / self.baseline.e2e_s)), POOL_FIRST_MAX)

    @staticmethod
    def _missing_rows(state: StepState, rows: int, since_ns: int) -> int:
        """How many requests the pool of a closed loop should have more; 0 while it lasts."""
        taken = len(state.outcomes) + len(state.pending)
        soon = math.ceil(taken * POOL_AHEAD_S * NS_PER_S / max(since_ns, NS_PER_S // 10))
        ahead = soon + (state.asked.concurrency or 0)
        return 2 * ahead if rows - taken < ahead else 0

    @staticmethod
    def _is_over(state: StepState, rows: int, since_ns: int) -> bool:
        if len(state.outcomes) == rows:
            return True
        told = bool(state.unissued) and since_ns >= OVER_AFTER_S * NS_PER_S
        return told and not state.pending and not sum(state.unissued.values())

    def _recover(self) -> None:
        """Single requests until the service answers them as it did unloaded, so that no step inherits a backlog."""
        assert self.baseline is not None
        reference_s = self.baseline.ttft_s or self.baseline.e2e_s
        phase, self._steps.phase = self._steps.phase, "recovery"
        self._steps.rate_rps = None
        asked = self._scheduler.closed_loop(len(self._steps.stages), 1, RECOVERY_REQUESTS_MAX)
        state, t0_ns = self._steps.begin(asked, "recovery")
        recovered = False
        while not recovered and self._steps.since_s(t0_ns) < min(RECOVERY_MAX_S, self._steps.left_s + 4):
            self._steps.poll(state)
            last = [o for o in state.in_order() if o.status == "ok"][-1:]
            recovered = bool(last) and (last[0].ttft_s or last[0].e2e_s) <= RECOVERY_FACTOR * reference_s
        self._driver.stop_issue()
        self._steps.drain(state, cancel_after_s=0.0)
        took_s = self._steps.since_s(t0_ns)
        reason = f"itself again after {took_s:.1f} s" if recovered else f"not itself again after {took_s:.1f} s"
        self._steps.end(state, "recovery", "none", reason)
        self._steps.phase = phase

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(
        self,
        rate_rps: float,
        *,
        kind: StageKind = "search",
        max_s: float | None = None,
        decide_early: bool = True,
        prove: bool = False,
        drain: bool = True,
        carry: bool = False,
    ) -> str:
        """Runs one open-loop step and returns its decision: pass or fail (undecided ones lean), mild for an overload
        step that was ended because it does not break the service.

        drain=False: a step that clearly passes does not wait for its last answers; they go on under the next step.
        carry=True: no step waits, but for a queue that grew to go down, so that the next one does not begin with an
        idle service; and it ends when the capacity is surely elsewhere.
        """
        assert self.baseline is not None
        max_s = max_s or max(self._step_max_s(), min(STEP_REQUESTS_MIN / rate_rps, self._search_left_s))
        settle_s = min(max(0.5, self.baseline.e2e_s), max_s / 3)
        min_s = settle_s + min(max(2.0, 2 * self.baseline.e2e_s), max_s / 2)
        self._steps.rate_rps = rate_rps
        self._steps.detail = f"{'proving ' if prove else ''}{rate_rps:g} req/s"
        if carry:
            settle_s = min(max(settle_s, self._loaded_e2e_s), SETTLE_MAX_SHARE * max_s)
        asked = self._scheduler.open_loop(len(self._steps.stages), rate_rps, max_s, lengths_from=self._requests_sent)
        earlier, earlier_here = self._seen(), self._pooled(rate_rps)
        state, t0_ns = self._steps.begin(asked, kind, settle_ns=round(settle_s * NS_PER_S))
        decision, reason = "undecided", ""
        look_s = rethink_s = 0.0
        settled, buried = not carry, False
        while True:
            self._steps.poll(state)
            now_ns = self._driver.now_ns()
            elapsed_s = (now_ns - t0_ns) / NS_PER_S
            if elapsed_s >= max_s:
                break
            if not settled:
                # What was inherited from the step before must be gone, or this step would be judged by that one's rate.
                inherited = self._steps.in_flight - len(state.pending)
                settled = elapsed_s >= settle_s and not inherited
                state.resettle(now_ns - t0_ns)
                min_s = rethink_s = elapsed_s + max(2.0, self._loaded_e2e_s)
                if inherited and elapsed_s >= SETTLE_MAX_SHARE * max_s:
                    buried = True
                    break
                continue
            if elapsed_s < look_s:
                continue
            look_s = elapsed_s * (1 + LOOK_RATIO)
            if decide_early:
                counts = state.counts(self.slos, now_ns, until_ns=now_ns)
                pooled = counts.tally.plus(earlier_here)
                growth_rps = state.backlog_growth_rps()
                decision, reason = pooled.decide(self.slos)
                if decision != "fail" and elapsed_s >= min_s and growth_rps > BACKLOG_SHARE * rate_rps:
                    decision, reason = "fail", _backlog(growth_rps)
                if self._steps.loses_contact:
                    continue
                if carry:
                    if elapsed_s >= rethink_s:
                        rethink_s = elapsed_s + max(RETHINK_MIN_S, RETHINK_RATIO * max_s)
                        if self._is_elsewhere([*earlier, counts]) or self._is_hopeless(pooled, TOLD_ENOUGH_FACTOR):
                            break
                    continue
                if decision == "fail":
                    break
                if elapsed_s >= min_s and growth_rps == 0.0 and self._may_stop(pooled, prove):
                    break
                if elapsed_s >= min_s and self._is_hopeless(pooled):
                    break
            elif (
                kind == "overload"
                and elapsed_s >= min_s + self._patience_s
                and self._is_mild(state.tally(self.slos, now_ns))
            ):
                state.kind, decision = "search", "mild"
                break
        end_ns = min(self._driver.now_ns(), t0_ns + round(max_s * NS_PER_S))
        self._driver.stop_issue()
        throughput = self._throughput_of(state, end_ns)
        growth_rps = state.backlog_growth_rps()
        mild, early = decision == "mild", decision == "fail"
        calm = carry and not buried and not self._is_hopeless(state.tally(self.slos, end_ns), TOLD_ENOUGH_FACTOR)
        if calm:
            calm = self._steps.ease(state, in_flight=self._bearable(state), within_s=self._drain_s("none"))
        if (carry and not calm) or (
            not carry and (drain or early or not self._is_known(state.tally(self.slos, end_ns)))
        ):
            self._steps.drain(state, cancel_after_s=self._drain_s("fail" if carry else decision))
        taken = _Taken(state, end_ns, sustained=growth_rps <= BACKLOG_SHARE * rate_rps)
        self._taken.append(taken)
        self._requests_sent += len(state.outcomes) + len(state.pending)
        self._loaded_e2e_s = max(self.baseline.e2e_s, _median([o.e2e_s for o in state.outcomes.values()]) or 0.0)
        tally = taken.counts(self.slos, self._driver.now_ns()).tally
        if kind == "search":
            tally = tally.plus(earlier_here)
            self._throughput[rate_rps] = throughput
            self._slowed = self._is_slower_than_unloaded(state)
        if not early or carry:
            decision, reason = tally.decide(self.slos)
        if decision != "fail" and growth_rps > BACKLOG_SHARE * rate_rps:
            decision, reason = "fail", _backlog(growth_rps)
        taken.sustained = not reason.startswith(BACKLOG_PREFIX)
        if decision == "undecided" and not self._leans_pass(tally):
            reason += LEANS_TO_FAIL
        self._steps.end(state, state.kind, decision, reason, t1_ns=end_ns)
        leaning = decision if decision != "undecided" else ("pass" if self._leans_pass(tally) else "fail")
        self._steps.lines.append((rate_rps, decision, reason))
        if mild:
            return "mild"
        if kind == "search":
            self._steps.interval, _ = estimate_of(self._seen(), self.slos)
            if (carry and not calm) or (not carry and leaning == "fail"):
                self._recover()
        return leaning

    def _is_elsewhere(self, steps: Sequence[StepCounts]) -> bool:
        """Whether the capacity is surely above or below the rate of the last of these steps."""
        posterior = posterior_of(steps, self.slos)
        below = posterior.below(steps[-1].rate_rps) if posterior is not None else 0.5
        return not 1 - ELSEWHERE_PROBABILITY < below < ELSEWHERE_PROBABILITY

    def _bearable(self, state: StepState) -> float:
        """Requests in flight that the next step may inherit: EASE_FACTOR times what the rate keeps there when none of
        them waits, by Little's law, with answers as much slower than the idle service's as their tokens came slower."""
        assert self.baseline is not None
        slower = 1.0
        tpot_s = _median([o.tpot_s for o in state.outcomes.values()])
        if tpot_s is not None and self.baseline.tpot_s:
            slower = max(1.0, tpot_s / self.baseline.tpot_s)
        return EASE_FACTOR * slower * self.baseline.e2e_s * (state.asked.rate_rps or 0.0) + 1

    def _step_max_s(self) -> float:
        assert self.baseline is not None
        low, high = STEP_RANGE_S
        planned_s = (self._plan.budget_s * (1 - OVERLOAD_BUDGET_RATIO - WARMUP_BUDGET_RATIO)) / STEP_COUNT_PLANNED
        wanted_s = max(planned_s, 4 * self.baseline.e2e_s)
        return max(low, min(wanted_s, high, max(self._search_left_s, low)))

    def _may_stop(self, pooled: Tally, prove: bool) -> bool:
        """Whether enough is known to end a step that does not fail.

        A proof ends when every latency SLO is decided and the errors SLO either is, too, or cannot be in the time left.
        Other steps run their whole length: near the capacity a queue takes long to show what it does.
        """
        if not prove:
            return False
        undecided = [slo for slo in self.slos if pooled.decide_slo(slo, self.slos) == "undecided"]
        if any(slo.metric != "errors" for slo in undecided):
            return False
        needed_s = self._prove_s(self._steps.rate_rps or 1.0, latency_only=False)
        return not undecided or needed_s > self._search_left_s

    def _leans_pass(self, tally: Tally) -> bool:
        """A step in which nothing was decided says nothing against its rate."""
        return tally.leans_pass(self.slos) or not any(map(tally.counted, self.slos))

    @property
    def _patience_s(self) -> float:
        """Longest limit of an SLO on a whole request: a queue shows in it no sooner."""
        return max((slo.limit for slo in self.slos if slo.metric in ("ttft", "e2e")), default=0.0)

    def _is_mild(self, tally: Tally) -> bool:
        if max(map(tally.counted, self.slos)) < MILD_REQUESTS:
            return False
        counts = [tally.attainment[slo.text] for slo in self.slos]
        return all(counted - met < MILD_MISS_RATIO * counted for met, counted in counts if counted)

    def _is_known(self, tally: Tally) -> bool:
        """Whether the step passes so far and enough of its requests have ended to say so for every SLO."""
        return self._leans_pass(tally) and min(map(tally.counted, self.slos)) >= STEP_REQUESTS_MIN

    def _is_hopeless(self, tally: Tally, factor: float = HOPELESS_FACTOR) -> bool:
        """Far more misses than allowed, though not yet proven, because they come in runs: the time is better spent."""
        for slo in self.slos:
            met, counted = tally.attainment.get(slo.text, (0, 0))
            misses = counted - met
            if misses >= HOPELESS_MISSES and misses > factor * (1 - slo.attainment_ratio) * counted:
                return True
        return False

    def _is_slower_than_unloaded(self, state: StepState) -> bool:
        """While nothing slows down, the bracket may take strides of twice the usual length (in the logarithm)."""
        assert self.baseline is not None
        ttft_s = _median([o.ttft_s for o in state.outcomes.values()])
        tpot_s = _median([o.tpot_s for o in state.outcomes.values()])
        pairs = ((ttft_s, self.baseline.ttft_s), (tpot_s, self.baseline.tpot_s))
        return any(now_s is not None and base_s and now_s > SLOWED_FACTOR * base_s for now_s, base_s in pairs)

    def _throughput_of(self, state: StepState, end_ns: int) -> float:
        """Successful completions per second after settling."""
        start_ns = state.t0_ns + state.settle_ns
        ended = sum(
            1
            for o in state.outcomes.values()
            if o.status == "ok" and start_ns <= o.scheduled_ns + round(o.e2e_s * NS_PER_S) < end_ns
        )
        return ended / max((end_ns - start_ns) / NS_PER_S, 1e-6)

    def _drain_s(self, decision: str) -> float:
        assert self.baseline is not None
        if decision == "fail" or self._steps.phase == "overload":
            return min(1.0, self.baseline.e2e_s)
        return min(DRAIN_MAX_S, max(2.0, 4 * self.baseline.e2e_s))

    def _client_is_limit(self) -> bool:
        busy_ratio = self._steps.client_busy_ratio
        if busy_ratio is None or busy_ratio <= CLIENT_BUSY_MAX:
            return False
        self._observer.on_event("client-limit", busy_ratio=busy_ratio)
        return True


def _backlog(growth_rps: float) -> str:
    return f"{BACKLOG_PREFIX} by {growth_rps:.2g} requests per second: the rate is not sustained"


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _neat(rate_rps: float) -> float:
    """Three significant digits: a rate that a person can read, type and compare."""
    return float(f"{rate_rps:.3g}")
