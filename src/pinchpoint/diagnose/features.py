"""What all rules share, computed once from a run: windows to compare, growth factors, cost lines, shares of misses.

Not for judgement: no number here is compared with a threshold, except to choose windows.

How it works. Three windows matter: `base` (light load that passed), `last_pass` (highest rate that passed) and
`stressed` (the overload stage, else the worst stage that failed, else the highest rate tested). A cause must show in
`stressed` and not, or less, in `base`.

The surprising thing: the cost of prefill comes from *light* load (slope of TTFT against prompt tokens), because under
load the same slope also contains queueing.
"""

from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np

from pinchpoint.capacity import decide, leans_pass
from pinchpoint.diagnose.fits import ActiveCount, CostLine, FlatTop, Slope, cost_line, median_slope
from pinchpoint.diagnose.stage_features import StageFeatures, stage_features, uncached_tokens, usable_window_s
from pinchpoint.model import Slo, Stage, StageResult
from pinchpoint.series import RunView

BURST_SPAN_MAX_RATIO = 0.1
"""A stream whose text all arrives within a tenth of an answer's unqueued life was held back; a real one spreads over
decoding."""
BURST_TOKENS_MIN = 8
"""Shorter answers may fit one read without anybody buffering."""
BURSTY_SHARE_MIN = 0.5
LIGHT_LOAD_OTHERS_MAX = 2
"""A prompt that arrives beside at most this many others is processed almost alone."""
LIGHT_LOAD_REQUESTS_MIN = 20
LIGHT_LOAD_QUANTILE = 0.25
BASE_REQUESTS_MIN = 8
"""A median of fewer is not steady enough to be the denominator of every growth factor."""
BASE_RATE_MAX_RATIO = 1 / 3
"""Light load is at most a third of the stressed rate: a queue adds half a service time there (M/M/1), or less."""
STRESSED_REQUESTS_MIN = 20
STRESSED_MIN_S = 4.0
"""Eight readings of gauges scraped twice a second."""
LOAD_KINDS = ("search", "overload", "load")
PREFILL_SHARE_MAX = 0.95
"""An estimate of prefill above this leaves no time to decode, although tokens came: cap it."""
BACKLOG_REASON = "backlog"
"""Reasons of stages that could not be sustained begin with this word."""


def unsustained_stages(stages: Sequence[Stage]) -> frozenset[int]:
    return frozenset(s.index for s in stages if s.decision == "fail" and s.reason.startswith(BACKLOG_REASON))


def _span_s(stage: StageFeatures) -> float:
    return stage.window_s[1] - stage.window_s[0]


class PrefillCost(msgspec.Struct, frozen=True):
    """Seconds of engine time per uncached prompt token at light load; `high` bounds it from above."""

    value: float | None
    low: float
    high: float
    source: str


class Streaming(msgspec.Struct, frozen=True):
    """How the text of answers arrived. Shares are of answers with at least BURST_TOKENS_MIN tokens."""

    answers: int
    bursty_share: float
    bursty_share_light: float
    """Among requests that had the service nearly to themselves: buffering does not need load."""
    first_token_share: float
    """Median of TTFT / e2e."""
    per_output_token_s: Slope | None
    """Slope of TTFT (from the send) against output tokens."""


class Features:
    """The shared features of a run. `results` come from the same SLOs, one per stage."""

    def __init__(self, view: RunView, slos: Sequence[Slo], results: Sequence[StageResult]) -> None:
        self.view = view
        self.slos = tuple(slos)
        self.results = tuple(results)
        self.facts = view.facts
        self.limits = view.facts.limits
        self.engine = view.facts.engine

    # -- stages ----------------------------------------------------------------------------------------------------

    @cached_property
    def streaming(self) -> Streaming | None:
        """None when the service does not stream or no answer was long enough to tell."""
        if self.facts.streaming is False:
            return None
        r = self.view.requests
        span_s = r.last_token_s - r.first_token_s
        life_s = r.end_s - r.sent_s
        long = (r.status == "ok") & (np.nan_to_num(r.output_tokens) >= BURST_TOKENS_MIN) & np.isfinite(span_s)
        long &= life_s > 0
        if not long.any():
            return None
        light = long & (self.others_at_send <= LIGHT_LOAD_OTHERS_MAX)
        # A long wait in a queue makes every stream short beside it; the life of an unqueued answer does not.
        quiet_life_s = float(np.quantile(life_s[light if light.any() else long], LIGHT_LOAD_QUANTILE))
        bursty = long & (span_s <= BURST_SPAN_MAX_RATIO * np.minimum(life_s, quiet_life_s))
        slope = median_slope(r.output_tokens[light], r.ttft_from_send_s[light], "light load") or median_slope(
            r.output_tokens[long], r.ttft_from_send_s[long], "all loads"
        )
        return Streaming(
            answers=int(long.sum()),
            bursty_share=float(bursty.sum() / long.sum()),
            bursty_share_light=float(bursty[light].sum() / light.sum()) if light.any() else float("nan"),
            first_token_share=float(np.median((r.first_token_s - r.sent_s)[long] / life_s[long])),
            per_output_token_s=slope,
        )

    @cached_property
    def streams_void(self) -> bool:
        """Times within a stream mean nothing: it was held back, or the service does not stream."""
        if self.facts.streaming is False:
            return True
        return self.streaming is not None and self.streaming.bursty_share > BURSTY_SHARE_MIN

    @cached_property
    def streams(self) -> ActiveCount:
        """Requests between first token and end, as the client sees it."""
        r = self.view.requests
        end_s = np.where(np.isfinite(r.end_s), r.end_s, r.last_token_s)
        return ActiveCount(r.first_token_s, end_s)

    @cached_property
    def stages(self) -> tuple[StageFeatures, ...]:
        unsustained = unsustained_stages(self.view.stages)
        by_index = {result.index: result for result in self.results}
        entries: list[StageFeatures] = []
        for stage in self.view.stages:
            result = by_index.get(stage.index)
            if result is None or not result.requests:
                continue
            decision, _ = decide(result.attainment, self.slos, result.effective) if self.slos else ("undecided", "")
            passed = decision == "pass" or (decision == "undecided" and leans_pass(result.attainment, self.slos))
            passed = passed and stage.index not in unsustained
            counted = any(n for _, n in result.attainment.values())
            entries.append(
                stage_features(
                    self.view,
                    stage,
                    result,
                    self.streams,
                    passed=passed,
                    failed=counted and not passed and stage.kind in LOAD_KINDS,
                    void=self.streams_void,
                )
            )
        return tuple(entries)

    @cached_property
    def tested(self) -> tuple[StageFeatures, ...]:
        """Stages of load (no warm-up, no recovery), lightest first, of one rate the better sampled last."""
        tested = [s for s in self.stages if s.stage.kind in LOAD_KINDS]
        return tuple(sorted(tested, key=lambda s: (s.offered_rps, s.requests)))

    @cached_property
    def base(self) -> StageFeatures | None:
        """Lightest passing stage that is light and has enough requests, else the warm-up, else the lightest of two."""
        passed = [s for s in self.tested if s.passed]
        warmup = [s for s in self.stages if s.stage.kind == "warmup"]
        lightest = self.tested[:1] if len(self.tested) > 1 else []
        ceiling_rps = BASE_RATE_MAX_RATIO * self.stressed.offered_rps if self.stressed is not None else 0.0
        light = [s for s in passed if s.requests >= BASE_REQUESTS_MIN and s.offered_rps <= ceiling_rps]
        for stages in (light[:1], warmup[-1:], passed[:1], lightest):
            if stages:
                return stages[0]
        return None

    @cached_property
    def last_pass(self) -> StageFeatures | None:
        """Highest passing rate below the lowest failing one, as the capacity counts it."""
        ceiling = min((s.offered_rps for s in self.failing), default=float("inf"))
        passed = [s for s in self.tested if s.passed and s.offered_rps < ceiling]
        return passed[-1] if passed else None

    @cached_property
    def failing(self) -> tuple[StageFeatures, ...]:
        return tuple(s for s in self.tested if s.failed)

    @cached_property
    def first_fail(self) -> StageFeatures | None:
        return self.failing[0] if self.failing else None

    @cached_property
    def stressed(self) -> StageFeatures | None:
        """The overload stage if it failed, else the failing stage of highest rate that lasted, else the highest rate.

        A stage that was cut short within seconds shows how a queue begins, not what holds it up.
        """
        for stages in (
            [s for s in self.failing if s.stage.kind == "overload"],
            [s for s in self.failing if s.requests >= STRESSED_REQUESTS_MIN and _span_s(s) >= STRESSED_MIN_S],
            self.failing,
            self.tested,
        ):
            if stages:
                return stages[-1]
        return None

    # -- growth ----------------------------------------------------------------------------------------------------

    def growth(self, field: str) -> float | None:
        """Stressed over base of a StageFeatures field; None when either is unknown or the base is zero."""
        if self.base is None or self.stressed is None or self.base is self.stressed:
            return None
        low, high = getattr(self.base, field), getattr(self.stressed, field)
        return high / low if low and high is not None else None

    def excess(self, field: str) -> float | None:
        """Stressed minus base of a StageFeatures field."""
        if self.base is None or self.stressed is None or self.base is self.stressed:
            return None
        low, high = getattr(self.base, field), getattr(self.stressed, field)
        return high - low if low is not None and high is not None else None

    @cached_property
    def others_at_send(self) -> np.ndarray:
        """Other requests in flight when each was sent."""
        r = self.view.requests
        end_s = np.where(np.isfinite(r.end_s), r.end_s, np.inf)
        sent = np.sort(r.sent_s[np.isfinite(r.sent_s)])
        ended = np.sort(end_s[np.isfinite(r.sent_s)])
        at = np.nan_to_num(r.sent_s)
        return np.searchsorted(sent, at, side="right") - np.searchsorted(ended, at, side="right") - 1

    # -- costs -----------------------------------------------------------------------------------------------------

    @cached_property
    def token_cost(self) -> CostLine | None:
        """TPOT of each request against the streams that were active beside it; None when streams are void."""
        if self.streams_void:
            return None
        r = self.view.requests
        ok = (r.status == "ok") & np.isfinite(r.tpot_s) & (r.tpot_s > 0)
        return cost_line(self.streams.mean_over(r.first_token_s[ok], r.last_token_s[ok]), r.tpot_s[ok])

    @cached_property
    def decode_cost(self) -> CostLine | None:
        """As token_cost, less the time that the prompts of others took meanwhile: what decoding alone costs.

        While prompts take a share u of engine time, a decode step that needs s appears as s / (1 - u). None when
        streams are void or the cost of a prompt token is not known.
        """
        cost = self.prefill_cost
        if self.streams_void or cost is None or cost.value is None:
            return None
        r = self.view.requests
        ok = (r.status == "ok") & np.isfinite(r.tpot_s) & (r.tpot_s > 0)
        started = np.isfinite(r.first_token_s)
        order = np.argsort(r.first_token_s[started])
        instants_s = r.first_token_s[started][order]
        uncached = uncached_tokens(self.view)[started][order]
        total = np.concatenate([[0.0], np.cumsum(uncached)])
        prompts = (
            total[np.searchsorted(instants_s, r.last_token_s[ok], side="right")]
            - total[np.searchsorted(instants_s, r.first_token_s[ok], side="right")]
        )
        share = np.clip(cost.value * prompts / (r.last_token_s - r.first_token_s)[ok], 0.0, PREFILL_SHARE_MAX)
        return cost_line(self.streams.mean_over(r.first_token_s[ok], r.last_token_s[ok]), r.tpot_s[ok] * (1 - share))

    @cached_property
    def prefill_cost(self) -> PrefillCost | None:
        """Seconds per uncached prompt token, from the engine's own clock if it has one, else from TTFT at light load.

        The engine's clock (llama.cpp: prompt seconds over prompt tokens) is read in warm-up, recovery and base, where
        few prompts overlap with decoding.
        """
        value = self._engine_prefill_cost
        if value is not None:
            return PrefillCost(value, value, value, "the engine's prompt seconds per prompt token at light load")
        if self.streams_void:
            return None
        r = self.view.requests
        uncached = r.input_tokens - np.nan_to_num(r.cached_tokens)
        usable = (r.status == "ok") & np.isfinite(r.ttft_from_send_s) & (uncached > 0)
        light = usable & (self.others_at_send <= LIGHT_LOAD_OTHERS_MAX)
        if light.sum() < LIGHT_LOAD_REQUESTS_MIN and usable.any():
            quiet = np.quantile(self.others_at_send[usable], LIGHT_LOAD_QUANTILE)
            light = usable & (self.others_at_send <= quiet)
        if not light.any():
            return None
        ceiling = float(np.quantile(r.ttft_from_send_s[light] / uncached[light], LIGHT_LOAD_QUANTILE))
        slope = median_slope(uncached[light], r.ttft_from_send_s[light], "TTFT against prompt tokens at light load")
        if slope is None or slope.high <= 0:
            return PrefillCost(None, 0.0, ceiling, "whole TTFT per prompt token at light load, an upper bound")
        high = min(slope.high, ceiling) if ceiling > slope.value else slope.high
        return PrefillCost(max(slope.value, 0.0), max(slope.low, 0.0), max(high, 0.0), slope.source)

    @cached_property
    def _engine_prefill_cost(self) -> float | None:
        quiet = [s for s in self.stages if s.stage.kind in ("warmup", "recovery") or s is self.base]
        seconds = [self.view.increase("engine.prefill_busy_s_total", s.window_s) or 0.0 for s in quiet]
        tokens = [self.view.increase("engine.prompt_tokens_total", s.window_s) or 0.0 for s in quiet]
        return sum(seconds) / sum(tokens) if sum(seconds) > 0 and sum(tokens) > 0 else None

    def prefill_utilisation(self, stage: StageFeatures | None) -> tuple[float | None, float, float] | None:
        """Share of engine time that prompts took: cost per prompt token x prompt tokens per second.

        (estimate or None, low, high); None when a factor is unknown. Can exceed 1 by the error of the cost.
        """
        cost = self.prefill_cost
        if cost is None or stage is None:
            return None
        rate = stage.prompt_tokens_per_s
        if cost.source.startswith("the engine") and stage.engine_prompt_tokens_per_s is not None:
            rate = stage.engine_prompt_tokens_per_s
        if rate is None:
            return None
        return cost.value * rate if cost.value is not None else None, cost.low * rate, cost.high * rate

    @cached_property
    def running_top(self) -> FlatTop | None:
        """Flat top of the batch in the stressed window: the engine's gauge, else the client's count of streams."""
        if self.stressed is None:
            return None
        return self.stressed.running_top or self.stressed.streams_top

    # -- damage ----------------------------------------------------------------------------------------------------

    @cached_property
    def misses(self) -> dict[str, int]:
        """SLO misses in failing and overload stages by SLO metric."""
        counts: dict[str, int] = {}
        for s in self._damaged:
            for slo in self.slos:
                met, counted = s.result.attainment.get(slo.text, (0, 0))
                counts[slo.metric] = counts.get(slo.metric, 0) + counted - met
        return counts

    @cached_property
    def _damaged(self) -> tuple[StageFeatures, ...]:
        return tuple(s for s in self.tested if s.failed or s.stage.kind == "overload")

    def explained_ratio(self, metrics: tuple[str, ...]) -> float | None:
        """Share of the misses that are of these metrics; `rejected` stands for errors that were refusals."""
        total = sum(self.misses.values())
        if not total:
            return None
        explained = sum(n for metric, n in self.misses.items() if metric in metrics)
        if "rejected" in metrics and "errors" not in metrics:
            explained += min(
                sum(s.result.errors.get("rejected", 0) for s in self._damaged), self.misses.get("errors", 0)
            )
        return explained / total

    def miss_share(self, metric: str) -> float | None:
        total = sum(self.misses.values())
        return self.misses.get(metric, 0) / total if total else None

    def requests_in(self, stage: StageFeatures) -> np.ndarray:
        """Mask of the requests scheduled in the window of a stage."""
        r = self.view.requests
        start_s, end_s = usable_window_s(self.view, stage.stage)
        return (r.stage == stage.stage.index) & (r.scheduled_s >= start_s) & (r.scheduled_s < end_s + 1e-9)

    @cached_property
    def lengths(self) -> tuple[float | None, float | None]:
        """Mean prompt and output tokens of the answers that ended well."""
        r = self.view.requests
        ok = r.status == "ok"
        isl, osl = r.input_tokens[ok], r.output_tokens[ok]
        return (
            float(np.nanmean(isl)) if np.isfinite(isl).any() else None,
            float(np.nanmean(osl)) if np.isfinite(osl).any() else None,
        )
