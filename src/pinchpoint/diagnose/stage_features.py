"""What one stage of load looked like: from the client, from the engine, from the host. Numbers only, no judgement.

A time to first token that never came is not missing at random: the requests withdrawn from an overloaded stage are the
slowest ones. `ttft_bound_s` therefore counts them with the wait they had already had, a lower bound.
"""

import msgspec
import numpy as np

from pinchpoint.diagnose.fits import ActiveCount, FlatTop, flat_top
from pinchpoint.model import Stage, StageResult
from pinchpoint.series import RunView
from pinchpoint.slo import WITHDRAWN_STATUSES
from pinchpoint.stats import theil_sen_slope

GRID_POINTS = 200
CLIENT_TOP_TOLERANCE = 1.0
"""Seen by the client a slot is empty while the next prompt in it is processed, so the count dips by one."""
CLIENT_TOP_TOLERANCE_RATIO = 0.1
ENGINE_TOP_TOLERANCE = 0.5
WINDOW_MIN_S = 1.0


class StageFeatures(msgspec.Struct, frozen=True):
    """One stage. None = not measured. `_mean` over the steady window, `_p90` of its readings."""

    stage: Stage
    result: StageResult
    passed: bool
    failed: bool
    window_s: tuple[float, float]
    requests: int
    status_share: dict[str, float]
    offered_rps: float
    accepted_rps: float
    ttft_s: float | None
    """Median, requests that never got a token counted with the wait they had."""
    ttft_p95_s: float | None
    tpot_s: float | None
    tpot_p95_s: float | None
    e2e_s: float | None
    in_flight_mean: float
    in_flight_slope_per_s: float
    in_flight_slope_low_per_s: float
    streams_mean: float
    streams_top: FlatTop | None
    running_mean: float | None
    running_p90: float | None
    running_cv: float | None
    running_top: FlatTop | None
    waiting_mean: float | None
    waiting_p90: float | None
    waiting_capacity_mean: float | None
    kv_p90: float | None
    kv_mean: float | None
    preemptions: float | None
    preemptions_per_request: float | None
    recomputed_ratio: float | None
    null_s: float | None
    null_failed: int
    pre_engine_gap_s: float | None
    """Mean client TTFT (from the send) minus mean engine TTFT, of first tokens in the window."""
    engine_ttft_s: float | None
    engine_itl_s: float | None
    engine_queue_s: float | None
    engine_prefill_s: float | None
    engine_decode_s: float | None
    outside_engine_mean: float | None
    """Little residual: requests in flight that the engine has neither running nor waiting."""
    prompt_tokens_per_s: float | None
    """Uncached prompt tokens of the requests that got their first token in the window."""
    engine_prompt_tokens_per_s: float | None
    generation_tokens_per_s: float | None
    tokens_per_step: float | None
    prefill_busy: float | None
    """Slot-seconds of prompt processing per second (llama.cpp)."""
    decode_busy: float | None
    listener_cores: float | None
    thread_cores: float | None
    server_cores: float | None
    host_cpu_p90: float | None


def usable_window_s(view: RunView, stage: Stage) -> tuple[float, float]:
    """Steady window of a stage; its second half when it was cut short before it had settled."""
    start_s, end_s = view.window_s(stage)
    if end_s - start_s < WINDOW_MIN_S:
        start_ns = (stage.t0_ns + stage.t1_ns) // 2
        start_s = view.window_s(msgspec.structs.replace(stage, t0_ns=start_ns, settle_ns=0))[0]
    return start_s, end_s


def ttft_bound_s(view: RunView) -> np.ndarray:
    """TTFT per request; for those without a token the time they waited before they ended, NaN for rejected ones."""
    r = view.requests
    waited = np.isin(r.status.astype(str), (*WITHDRAWN_STATUSES, "timeout")) & ~np.isfinite(r.first_token_s)
    return np.where(waited, r.end_s - r.scheduled_s, r.ttft_s)


def stage_features(
    view: RunView, stage: Stage, result: StageResult, streams: ActiveCount, *, passed: bool, failed: bool, void: bool
) -> StageFeatures:
    """void: the streams do not stream (buffered or off), so times within them mean nothing and are left out."""
    r = view.requests
    window = usable_window_s(view, stage)
    span_s = max(window[1] - window[0], 1e-9)
    mask = (r.stage == stage.index) & (r.scheduled_s >= window[0]) & (r.scheduled_s < window[1] + 1e-9)
    n = int(mask.sum())
    statuses, counts = np.unique(r.status[mask].astype(str), return_counts=True)
    grid_s = np.linspace(window[0], window[1], GRID_POINTS)
    in_flight = view.in_flight(grid_s)
    slope, slope_low, _ = theil_sen_slope(grid_s[::4], in_flight[::4].astype(float))
    active = streams.at(grid_s)
    ttft = _finite(ttft_bound_s(view)[mask])
    tpot = _finite(r.tpot_s[mask]) if not void else np.empty(0)

    def gauge(name: str) -> np.ndarray:
        return view.series(name, window).value

    def per_s(name: str) -> float | None:
        return view.rate(name, window)

    def ratio(over: float | None, under: float | None) -> float | None:
        return over / under if over is not None and under else None

    running, waiting = gauge("engine.requests_running"), gauge("engine.requests_waiting")
    kv, null = gauge("engine.kv_used_ratio"), gauge("probe.null_request_s")
    in_window = np.isfinite(r.first_token_s) & (r.first_token_s >= window[0]) & (r.first_token_s < window[1])
    started = in_window & np.isfinite(r.ttft_from_send_s)
    engine_ttft = view.histogram_mean("engine.ttft_s", window)
    gap = float(r.ttft_from_send_s[started].mean()) - engine_ttft if engine_ttft is not None and started.any() else None
    uncached = uncached_tokens(view)[in_window]
    preemptions = view.increase("engine.preemptions_total", window)
    finished = view.increase("engine.requests_finished_total", window)
    if finished is None:
        finished = float(((r.end_s >= window[0]) & (r.end_s < window[1]) & (r.status == "ok")).sum())
    steps, step_tokens = per_s("engine.steps_total"), per_s("engine.step_tokens_total")
    return StageFeatures(
        stage=stage,
        result=result,
        passed=passed,
        failed=failed,
        window_s=window,
        requests=n,
        status_share=dict(zip(statuses.tolist(), (counts / n).tolist(), strict=True)) if n else {},
        offered_rps=stage.rate_rps if stage.rate_rps is not None else n / span_s,
        accepted_rps=float((mask & ~np.isin(r.status.astype(str), ("rejected", "dropped"))).sum() / span_s),
        ttft_s=_median(ttft),
        ttft_p95_s=float(np.quantile(ttft, 0.95)) if len(ttft) else None,
        tpot_s=_median(tpot),
        tpot_p95_s=float(np.quantile(tpot, 0.95)) if len(tpot) else None,
        e2e_s=_median(_finite(r.e2e_s[mask])),
        in_flight_mean=float(in_flight.mean()),
        in_flight_slope_per_s=slope,
        in_flight_slope_low_per_s=slope_low,
        streams_mean=float(active.mean()),
        streams_top=None
        if void
        else flat_top(active, "client", max(CLIENT_TOP_TOLERANCE, CLIENT_TOP_TOLERANCE_RATIO * active.max())),
        running_mean=_mean(running),
        running_p90=_p90(running),
        running_cv=float(running.std() / running.mean()) if len(running) > 1 and running.mean() > 0 else None,
        running_top=flat_top(running, "engine", ENGINE_TOP_TOLERANCE),
        waiting_mean=_mean(waiting),
        waiting_p90=_p90(waiting),
        waiting_capacity_mean=_mean(gauge("engine.requests_waiting_capacity")),
        kv_p90=_p90(kv),
        kv_mean=_mean(kv),
        preemptions=preemptions,
        preemptions_per_request=preemptions / max(finished, 1.0) if preemptions is not None else None,
        recomputed_ratio=ratio(per_s("engine.recomputed_prompt_tokens_total"), per_s("engine.prompt_tokens_total")),
        null_s=_median(null),
        null_failed=view.raw_count("null_request_failed", window),
        pre_engine_gap_s=gap,
        engine_ttft_s=engine_ttft,
        engine_itl_s=view.histogram_mean("engine.itl_s", window),
        engine_queue_s=view.histogram_mean("engine.queue_time_s", window),
        engine_prefill_s=view.histogram_mean("engine.prefill_time_s", window),
        engine_decode_s=view.histogram_mean("engine.decode_time_s", window),
        outside_engine_mean=_outside_engine(view, window),
        prompt_tokens_per_s=float(uncached.sum() / span_s) if in_window.any() else None,
        engine_prompt_tokens_per_s=per_s("engine.prompt_tokens_total"),
        generation_tokens_per_s=per_s("engine.generation_tokens_total"),
        tokens_per_step=ratio(step_tokens, steps),
        prefill_busy=per_s("engine.prefill_busy_s_total"),
        decode_busy=per_s("engine.decode_busy_s_total"),
        listener_cores=_mean(gauge("server.listener_cpu_cores")),
        thread_cores=_mean(gauge("server.thread_cpu_max_cores")),
        server_cores=_mean(gauge("server.cpu_cores")),
        host_cpu_p90=_p90(gauge("host.cpu_used_ratio")),
    )


def uncached_tokens(view: RunView) -> np.ndarray:
    """Prompt tokens that had to be computed, per request.

    The service counts them at the end of an answer. Requests withdrawn before that were computed all the same: theirs
    are what was asked for, times what the counted ones had per token asked for.
    """
    r = view.requests
    computed = r.input_tokens - np.nan_to_num(r.cached_tokens)
    known = np.isfinite(computed) & (r.requested_input_tokens > 0)
    asked = float(r.requested_input_tokens[known].sum())
    per_asked = float(computed[known].sum()) / asked if asked else 1.0
    return np.where(np.isfinite(computed), computed, r.requested_input_tokens * per_asked)


def _outside_engine(view: RunView, window: tuple[float, float]) -> float | None:
    """Mean over readings of in-flight (sent, not ended) minus running minus waiting."""
    running, waiting = view.series("engine.requests_running", window), view.series("engine.requests_waiting", window)
    if not len(running) or not len(waiting):
        return None
    r = view.requests
    sent = ActiveCount(r.sent_s, np.where(np.isfinite(r.end_s), r.end_s, window[1] + 1))
    engine = running.value + np.interp(running.t_s, waiting.t_s, waiting.value)
    return float((sent.at(running.t_s) - engine).mean())


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _p90(values: np.ndarray) -> float | None:
    return float(np.quantile(values, 0.9)) if len(values) else None
