"""What is known of one step while it runs: outcomes by request, the decided prefix per SLO, the backlog over time."""

import math
from collections.abc import Sequence

import numpy as np

from pinchpoint.capacity import StepCounts, Tally
from pinchpoint.clock import NS_PER_S
from pinchpoint.load.messages import Outcome, Pending
from pinchpoint.model import Slo, StageKind
from pinchpoint.schedule import AFTER
from pinchpoint.slo import WITHDRAWN_STATUSES, request_meets, surely_missed
from pinchpoint.stats import effective_ratio
from pinchpoint.workload.schedule import StageLoad

BACKLOG_POINTS_MIN = 20
"""Two seconds of readings."""


class StepState:
    """What is known of the running step: outcomes by request, decided prefix per SLO, backlog over time."""

    def __init__(
        self,
        asked: StageLoad,
        t0_ns: int,
        settle_ns: int,
        kind: StageKind,
    ) -> None:
        self.asked = asked
        self.kind: StageKind = kind
        self.t0_ns = t0_ns
        self.settle_ns = settle_ns
        self.outcomes: dict[int, Outcome] = {}
        self.pending: dict[int, Pending] = {}
        self.backlog: list[tuple[float, int]] = []
        self.unissued: dict[int, int] = {}
        """worker -> requests it may still send, as it said last since t0."""
        self.resettle(settle_ns)

    def resettle(self, settle_ns: int) -> None:
        """Requests due before t0_ns + settle_ns do not count."""
        self.settle_ns = settle_ns
        schedule = self.asked.schedule
        settled = (schedule.offset_ns != AFTER) & (schedule.offset_ns >= settle_ns)
        self._order: list[int] = schedule.request_id[settled].tolist()
        self._offsets_ns: np.ndarray = np.sort(schedule.offset_ns[settled])
        self._class_ids: list[int] = schedule.class_id[settled].tolist()

    def tally(self, slos: Sequence[Slo], now_ns: int) -> Tally:
        """The counts as a Tally."""
        counts = self.counts(slos, now_ns, until_ns=now_ns)
        return Tally.of(counts.attainment, counts.effective)

    def counts(self, slos: Sequence[Slo], now_ns: int, *, until_ns: int, sustained: bool = True) -> StepCounts:
        """Counts per SLO over the longest decided prefix, of its class where it has one. until_ns: when the step
        stopped sending; arrivals are counted from where it had settled up to there."""
        attainment: dict[str, tuple[int, int]] = {}
        effective: dict[str, float] = {}
        for slo in slos:
            outcomes: list[bool] = []
            for request_id in self._of(slo):
                known, verdict = self._verdict(slo, request_id, now_ns)
                if not known:
                    break
                if verdict is not None:
                    outcomes.append(verdict)
            attainment[slo.text] = (outcomes.count(True), len(outcomes))
            effective[slo.text] = effective_ratio(outcomes)
        rate_rps = self.asked.rate_rps or 0.0
        window_ns = until_ns - self.t0_ns - self.settle_ns
        arrived = int(np.searchsorted(self._offsets_ns, until_ns - self.t0_ns))
        came_rps = arrived / window_ns * NS_PER_S if arrived and window_ns > 0 else rate_rps
        return StepCounts(rate_rps, came_rps, attainment, effective, sustained, arrived or None, window_ns / NS_PER_S)

    def _of(self, slo: Slo) -> list[int]:
        """Settled requests that the SLO is about, in order."""
        if slo.scope is None:
            return self._order
        wanted = self.asked.classes.index(slo.scope)
        return [request_id for request_id, i in zip(self._order, self._class_ids, strict=True) if i == wanted]

    def _verdict(self, slo: Slo, request_id: int, now_ns: int) -> tuple[bool, bool | None]:
        """(decided, met). A request that was withdrawn undecided is decided and does not count."""
        if (outcome := self.outcomes.get(request_id)) is not None:
            if outcome.status in WITHDRAWN_STATUSES:
                missed = surely_missed(
                    slo,
                    age_s=outcome.e2e_s,
                    has_first_byte=outcome.has_first_byte,
                    since_first_token_s=outcome.since_first_token_s,
                    max_output_tokens=outcome.max_output_tokens,
                )
                return True, False if missed else None
            return True, request_meets(
                slo,
                status=outcome.status,
                ttft_s=outcome.ttft_s,
                tpot_s=outcome.tpot_s,
                e2e_s=outcome.e2e_s,
                itl_max_s=outcome.itl_max_s,
            )
        pending = self.pending.get(request_id)
        if pending is None:
            return False, None
        if slo.metric == "ttft" and pending.first_token_ns is not None:
            return True, (pending.first_token_ns - pending.scheduled_ns) / NS_PER_S < slo.limit
        first_ns = pending.first_token_ns
        missed = surely_missed(
            slo,
            age_s=(now_ns - pending.scheduled_ns) / NS_PER_S,
            has_first_byte=pending.has_first_byte,
            since_first_token_s=(now_ns - first_ns) / NS_PER_S if first_ns is not None else None,
            max_output_tokens=pending.max_output_tokens,
        )
        return (True, False) if missed else (False, None)

    def backlog_growth_rps(self) -> float:
        """Requests per second by which the backlog grows, clearly above noise; 0 otherwise.

        Compares the end of the step with the middle of its settled part: by then a stable service has filled up to
        what the rate needs. In a stable queue two counts some service times apart differ by the square root of twice
        their mean (Poisson, independent). Four of those are called clear, because one looks at every reading.
        """
        settle_s = self.settle_ns / NS_PER_S
        points = [(t_s, n) for t_s, n in self.backlog if t_s >= settle_s]
        if len(points) < BACKLOG_POINTS_MIN:
            return 0.0
        edge = max(1, len(points) // 10)
        middle = points[len(points) // 2 - edge : len(points) // 2 + edge]
        (t_middle_s, n_middle), (t_end_s, n_end) = _mean_point(middle), _mean_point(points[-2 * edge :])
        grown, (_, n_mean) = n_end - n_middle, _mean_point(points)
        return grown / (t_end_s - t_middle_s) if grown > 4 * math.sqrt(2 * max(n_mean, 1.0)) else 0.0

    def in_order(self) -> list[Outcome]:
        """Ended requests in the order they were scheduled."""
        return sorted(self.outcomes.values(), key=lambda outcome: outcome.scheduled_ns)


def _mean_point(points: list[tuple[float, int]]) -> tuple[float, float]:
    return sum(t_s for t_s, _ in points) / len(points), sum(n for _, n in points) / len(points)
