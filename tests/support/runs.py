"""Builds a small, complete run directory without a service, a clock or a network.

A queue in front of eight sequence slots is played through in virtual time, so the run has a true knee: below about
6 req/s requests find a free slot, above it they wait. `example_verdict` says what a judge would say of it; it is
written by hand, so tests of the report depend neither on the rules nor on the statistics of a decision.
"""

import heapq
import random
from collections.abc import Sequence
from pathlib import Path

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import (
    FORMAT_VERSION,
    RECORD_COLUMNS,
    SCHEDULE_COLUMNS,
    Capacity,
    Evidence,
    Finding,
    Limits,
    Manifest,
    NotEvaluable,
    Remedy,
    Slo,
    Stage,
    StageKind,
    TargetFacts,
    ValidityReason,
    Verdict,
)
from pinchpoint.rundir import RunWriter, read_run
from pinchpoint.series import RunView
from pinchpoint.slo import parse_slos

SLOTS = 8
PREFILL_S = 0.055
STEP_S = 0.0235
STEP_PER_SEQUENCE_S = 0.0003
OUTPUT_TOKENS = 48
INPUT_TOKENS = 220
SAMPLE_PERIOD_S = 0.5
WARMUP_S = 12.0
STEP_SEQUENCE: tuple[tuple[StageKind, float, float], ...] = (
    ("search", 1.5, 75.0),
    ("search", 3.0, 40.0),
    ("search", 6.0, 26.0),
    ("search", 4.0, 36.0),
    ("search", 5.0, 36.0),
    ("search", 5.5, 24.0),
    ("overload", 8.0, 18.0),
)
"""Kind, offered rate in req/s and length in s, in the order a bracketing search would take."""
SLO_TEXTS = ("ttft p90 < 800ms", "tpot p95 < 60ms", "errors < 5%")
T0_NS = 1_000 * NS_PER_S

Served = tuple[float, float, float, str]
"""Scheduled, first token and end in seconds since t0, and the status."""


def named_row(columns: dict[str, str], **values: object) -> tuple[object, ...]:
    """A row in the order of `columns`, from values by name. Columns not named are null; an unknown name is an error."""
    unknown = set(values) - set(columns)
    assert not unknown, f"no such columns: {sorted(unknown)}"
    return tuple(values.get(name) for name in columns)


def _serve(arrivals_s: Sequence[float], rng: random.Random, reject_ratio: float) -> list[Served]:
    """First come, first served over SLOTS slots; a step takes longer the more slots are busy."""
    busy_until: list[float] = []
    served: list[Served] = []
    for arrival_s in arrivals_s:
        if rng.random() < reject_ratio:
            served.append((arrival_s, float("nan"), arrival_s + 0.004, "rejected"))
            continue
        while busy_until and busy_until[0] <= arrival_s:
            heapq.heappop(busy_until)
        start_s = heapq.heappop(busy_until) if len(busy_until) >= SLOTS else arrival_s
        prefill_s = PREFILL_S * rng.uniform(0.85, 1.25)
        step_s = (STEP_S + STEP_PER_SEQUENCE_S * (len(busy_until) + 1)) * rng.uniform(0.97, 1.05)
        first_s = start_s + prefill_s
        end_s = first_s + step_s * (OUTPUT_TOKENS - 1)
        heapq.heappush(busy_until, end_s)
        served.append((arrival_s, first_s, end_s, "ok"))
    return served


def build_run(
    path: Path,
    *,
    seed: int = 8,
    steps: Sequence[tuple[StageKind, float, float]] = STEP_SEQUENCE,
    slo_texts: Sequence[str] = SLO_TEXTS,
    telemetry: bool = True,
    reject_ratio: float = 0.0,
    error_text: str = "429 Too Many Requests",
    model_name: str = "meta-llama/Llama-3.1-8B-Instruct",
    status: str = "complete",
) -> Path:
    """Writes a sealed run of fewer than 1500 requests and returns its directory.

    reject_ratio: share of the requests answered with HTTP 429 and `error_text`. telemetry=False leaves the telemetry
    table empty, as for a remote service without metrics. `model_name` and `error_text` are where a hostile service
    would speak.
    """
    rng = random.Random(seed)
    slos = parse_slos(tuple(slo_texts))
    stages: list[Stage] = []
    served_by_stage: list[list[Served]] = []
    start_s = 1.0
    for index, (kind, rate_rps, length_s) in enumerate((("warmup", 1.0, WARMUP_S), *steps)):
        arrivals_s, at_s = [], start_s
        while (at_s := at_s + rng.expovariate(rate_rps)) < start_s + length_s:
            arrivals_s.append(at_s)
        served = _serve(arrivals_s, rng, reject_ratio if kind != "warmup" else 0.0)
        served_by_stage.append(served)
        drained_s = max([end_s for _, _, end_s, _ in served], default=start_s + length_s)
        drained_s = max(drained_s, start_s + length_s)
        stages.append(
            Stage(
                index=index,
                kind=kind,  # pyright: ignore[reportArgumentType]
                name="warm-up" if kind == "warmup" else f"{kind} {rate_rps:g} req/s",
                t0_ns=T0_NS + int(start_s * NS_PER_S),
                t1_ns=T0_NS + int((start_s + length_s) * NS_PER_S),
                drained_ns=T0_NS + int(drained_s * NS_PER_S),
                settle_ns=2 * NS_PER_S,
                rate_rps=rate_rps,
            )
        )
        start_s = drained_s + 1.0
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        run_id="20261124-0500-amber-heron",
        pinchpoint_version="0.1.0",
        status="running",
        abort_reason=None,
        started_wall="2026-11-24T05:00:00Z",
        t0_ns=T0_NS,
        virtual=True,
        seed=seed,
        plan={"name": "example", "target": "http://127.0.0.1:8000", "budget_s": 300},
        target=TargetFacts(
            url="http://127.0.0.1:8000",
            engine="vllm",
            engine_version="0.11.0",
            engine_evidence=("/version answers {'version': '0.11.0'}", "/metrics names start with vllm:"),
            api="/v1/chat/completions",
            models=(model_name,),
            model=model_name,
            streaming=True,
            usage_in_stream=True,
            limits=Limits(max_sequences=SLOTS, kv_tokens=98_304, context_tokens=8192),
            limit_sources={"max_sequences": "given by the user", "kv_tokens": "vllm:cache_config_info"},
            metrics_url="http://127.0.0.1:8000/metrics",
            health_path="/health",
            server_pids=(4242,),
            prompt_overhead_tokens=11.0,
            tokens_per_word=1.3,
            unknown=("GPU model: no GPU metrics were found on this host",),
        ),
        slos=slos,
        slos_derived=False,
        stages=stages,
        host={"hostname": "bench-1", "cpu": "2 x 2.4 GHz", "kernel": "6.8", "python": "3.11.7"},
        clock={"realtime_offset_error_ns": 240},
        files={},
    )
    writer = RunWriter(path, manifest)
    _write_requests(writer, stages, served_by_stage, rng, error_text)
    if telemetry:
        _write_telemetry(writer, start_s, served_by_stage, rng)
    else:
        writer.part("telemetry", "none").close()
    writer.event(T0_NS, "started")
    writer.seal(status, None if status == "complete" else "stopped by a guard: errors above 50 %")
    _decide_stages(path, slos)
    return path


def _write_requests(
    writer: RunWriter,
    stages: list[Stage],
    served_by_stage: list[list[Served]],
    rng: random.Random,
    error_text: str,
) -> None:
    records, schedule = writer.part("records", "0"), writer.part("schedule", "0")
    request_id = 0
    for stage, served in zip(stages, served_by_stage, strict=True):
        for scheduled_s, first_s, end_s, status in served:

            def at(instant_s: float) -> int:
                return T0_NS + int(instant_s * NS_PER_S)

            ok = status == "ok"
            sent_ns = at(scheduled_s) + rng.randrange(20_000, 90_000)
            step_s = (end_s - first_s) / (OUTPUT_TOKENS - 1) if ok else 0.0
            chunk_ns = [at(first_s + step_s * i) for i in range(OUTPUT_TOKENS)] if ok else []
            schedule.append(
                [
                    named_row(
                        SCHEDULE_COLUMNS,
                        request_id=request_id,
                        stage=stage.index,
                        session_id=request_id,
                        turn=0,
                        offset_ns=at(scheduled_s) - stage.t0_ns,
                        input_tokens=INPUT_TOKENS,
                        max_output_tokens=OUTPUT_TOKENS,
                    )
                ]
            )
            answer: dict[str, object] = {
                "headers_ns": at(end_s),
                "first_byte_ns": at(end_s),
                "bytes_in": 120,
                "http_status": 429,
                "error": error_text,
                "retry_after_s": 1.0,
            }
            if ok:
                answer = {
                    "headers_ns": chunk_ns[0] - 200_000,
                    "first_byte_ns": chunk_ns[0] - 100_000,
                    "first_token_ns": chunk_ns[0],
                    "first_content_ns": chunk_ns[0],
                    "last_token_ns": chunk_ns[-1],
                    "input_tokens": INPUT_TOKENS,
                    "output_tokens": OUTPUT_TOKENS,
                    "cached_tokens": 0,
                    "token_source": "usage",
                    "bytes_in": 9_000,
                    "http_status": 200,
                    "finish_reason": "stop",
                }
            records.append(
                [
                    named_row(
                        RECORD_COLUMNS,
                        request_id=request_id,
                        stage=stage.index,
                        worker=0,
                        scheduled_ns=at(scheduled_s),
                        sent_ns=sent_ns,
                        end_ns=at(end_s) + 300_000,
                        chunk_ns=chunk_ns,
                        coalesced_count=0,
                        timestamp_source="kernel",
                        timestamp_error_ns=10_000,
                        chunk_error_ns=10_000,
                        requested_input_tokens=INPUT_TOKENS,
                        requested_output_tokens=OUTPUT_TOKENS,
                        status=status,
                        connection_id=request_id % SLOTS,
                        attempts=1,
                        **answer,
                    )
                ]
            )
            request_id += 1
    records.close()
    schedule.close()


def _write_telemetry(writer: RunWriter, end_s: float, served_by_stage: list[list[Served]], rng: random.Random) -> None:
    served = [entry for stage in served_by_stage for entry in stage if entry[3] == "ok"]
    parts = {name: writer.part("telemetry", name) for name in ("engine", "host", "server", "client", "null-request")}
    for i in range(int(end_s / SAMPLE_PERIOD_S)):
        t_s = i * SAMPLE_PERIOD_S
        running = sum(first_s - PREFILL_S <= t_s < last_s for _, first_s, last_s, _ in served)
        waiting = sum(scheduled_s <= t_s < first_s - PREFILL_S for scheduled_s, first_s, _, _ in served)
        tokens = sum(
            OUTPUT_TOKENS * min(1.0, (t_s - first_s) / (last_s - first_s))
            for _, first_s, last_s, _ in served
            if t_s > first_s
        )
        running = min(running, SLOTS)
        rows = [
            ("engine", "vllm:num_requests_running", "engine.requests_running", float(running)),
            ("engine", "vllm:num_requests_waiting", "engine.requests_waiting", float(waiting)),
            ("engine", "vllm:kv_cache_usage_perc", "engine.kv_used_ratio", 0.02 + 0.03 * running),
            ("engine", "vllm:num_preemptions_total", "engine.preemptions_total", 0.0),
            ("engine", "vllm:generation_tokens_total", "engine.generation_tokens_total", float(int(tokens))),
            ("host", "cpu", "host.cpu_used_ratio", 0.18 + 0.02 * running + rng.uniform(0, 0.03)),
            ("server", "cpu", "server.cpu_cores", 0.25 + 0.05 * running + rng.uniform(0, 0.02)),
            ("server", "listener", "server.listener_cpu_cores", 0.15 + 0.02 * running),
            ("client", "loop_busy", "client.loop_busy_ratio", 0.01 + 0.004 * running),
            ("client", "cpu", "client.cpu_cores", 0.02 + 0.006 * running),
            ("null-request", "latency", "probe.null_request_s", 0.0021 + rng.uniform(0, 0.0004)),
        ]
        for source, raw, series, value in rows:
            parts[source].append(
                [(T0_NS + int(t_s * NS_PER_S), rng.randrange(50, 400), source, raw, series, "", value)]
            )
    for part in parts.values():
        part.close()


def _decide_stages(path: Path, slos: tuple[Slo, ...]) -> None:
    """Writes a decision for every search step into the manifest: pass when each SLO's observed share is met."""
    import msgspec

    run = read_run(path)
    view = RunView(run)
    decided: list[Stage] = []
    for stage in view.stages:
        if stage.kind != "search":
            decided.append(stage)
            continue
        decision, reason = "pass", "every SLO held"
        for slo in slos:
            met, counted = view.stage_result(stage, slos).attainment[slo.text]
            if met < slo.attainment_ratio * counted:
                decision, reason = "fail", f"{slo.text}: {counted - met} of {counted} requests missed it"
                break
        decided.append(msgspec.structs.replace(stage, decision=decision, reason=reason))
    run.manifest.stages = decided
    (path / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(run.manifest), indent=2))


def _capacity(stages: Sequence[Stage]) -> Capacity | None:
    """The interval that the written decisions span; None when no step was searched."""
    searched = [stage for stage in stages if stage.kind == "search" and stage.rate_rps is not None]
    if not searched:
        return None
    failed = {stage.rate_rps: stage for stage in searched if stage.decision == "fail"}
    upper_rps = min(failed, default=None, key=lambda rate_rps: rate_rps or 0.0)
    passed = [stage.rate_rps or 0.0 for stage in searched if stage.decision == "pass"]
    return Capacity(
        lower_rps=max([rate_rps for rate_rps in passed if upper_rps is None or rate_rps < upper_rps], default=None),
        upper_rps=upper_rps,
        confidence=0.95,
        proven=True,
        limiting_slo=failed[upper_rps].reason.split(":")[0] if upper_rps is not None else None,
    )


def open_view(path: Path) -> RunView:
    return RunView(read_run(path))


SLOT_CAP = Finding(
    rule="SEQ001",
    name="sequence-slot-cap",
    title="Sequence-slot cap: at most 8 sequences run at once",
    layer="model inference",
    kind="fault",
    probability=0.94,
    explains_ratio=0.97,
    evidence=(
        Evidence(
            "running sequences stay flat at 8 while requests wait",
            3.4,
            series=("engine.requests_running", "engine.requests_waiting"),
            observed=8.0,
            reference=8.0,
            unit="sequences",
            source="limit told by the service",
            window="overload 8 req/s",
        ),
        Evidence(
            "TTFT p50 grew 75-fold from the base load to overload",
            2.1,
            series=("ttft",),
            observed=75.0,
            reference=3.0,
            unit="x",
            source="growth expected without a queue",
            window="search 1.5 req/s to overload 8 req/s",
        ),
        Evidence(
            "TPOT p50 hardly moved, so the decode step has room",
            1.6,
            series=("tpot",),
            observed=1.06,
            reference=1.5,
            unit="x",
            source="step time a + b n: doubling n would give 1.8 times the throughput",
            window="search 1.5 req/s to overload 8 req/s",
        ),
        Evidence(
            "the KV cache is never more than a quarter full",
            1.2,
            series=("engine.kv_used_ratio",),
            observed=0.26,
            reference=0.9,
            unit="ratio",
            source="full at 0.9 and above",
            window="overload 8 req/s",
        ),
    ),
    against=(
        Evidence(
            "GPU activity was not measured, so the cost of a larger batch is estimated",
            -0.2,
            series=("gpu.sm_active_ratio",),
            source="no GPU metrics",
        ),
    ),
    remedies=(
        Remedy(
            action="Let more sequences run at once",
            flag="--max-num-seqs 16",
            predicted_effect="about 9.6 req/s at the same SLOs; TPOT p95 rises from 27 ms to about 29 ms",
        ),
        Remedy(action="Add a second replica", predicted_effect="about twice the capacity"),
    ),
    confirm="Run the 8 req/s step again with --max-num-seqs 16: the waiting queue should stay empty.",
)


def _rejected(rule: str, name: str, title: str, statement: str, observed: float, unit: str) -> Finding:
    against = Evidence(statement, -2.5, observed=observed, unit=unit, source="rule catalogue", window="overload")
    return Finding(
        rule=rule,
        name=name,
        title=title,
        layer="model inference",
        kind="fault",
        probability=0.01,
        explains_ratio=None,
        evidence=(),
        against=(against,),
    )


REJECTED = (
    _rejected("KV001", "kv-cache-exhausted", "KV cache exhausted", "no preemption in 1044 requests", 0.0, "1/request"),
    _rejected("PRE001", "prefill-compute-bound", "Prefill compute", "prefill is busy 34 % of the time", 0.34, "ratio"),
    _rejected("API001", "api-process-bound", "API process", "null request stays at 2.3 ms under overload", 0.0023, "s"),
)
NOT_EVALUABLE = (
    NotEvaluable(
        "GPU001",
        "gpu-throttled",
        ("gpu.power_watts", "gpu.sm_active_ratio"),
        "no GPU exporter was found; start dcgm-exporter and give --metrics-url",
    ),
)
VALIDITY_REASONS = (
    ValidityReason("send-lag", "ok", "requests left on time", observed=0.00009, limit=0.025, unit="s"),
    ValidityReason("client-busy", "ok", "the load generator was idle 95 % of the time", 0.05, 0.7, "ratio"),
    ValidityReason(
        "sample-size", "ok", "every decided step has enough requests", observed=112, limit=59, unit="requests"
    ),
    ValidityReason("clock", "ok", "arrival times come from the kernel, error below 10 µs", 0.00001, 0.001, "s"),
    ValidityReason("shared-host", "unknown", "whether the service shares this host could not be seen"),
)


def example_verdict(view: RunView, **changes: object) -> Verdict:
    """What a judge would say of `build_run`'s run. `changes` replace fields of the Verdict."""
    import msgspec

    slos = view.manifest.slos
    stages = tuple(view.stage_result(stage, slos) for stage in view.stages)
    capacity = _capacity(view.stages)
    ends = (capacity.lower_rps or 0.0, capacity.upper_rps or 0.0) if capacity else (0.0, 0.0)
    verdict = Verdict(
        format_version=FORMAT_VERSION,
        run_id=view.manifest.run_id,
        status="complete" if view.manifest.status == "complete" else "aborted",
        validity="VALID",
        validity_reasons=VALIDITY_REASONS,
        slos=slos,
        slos_derived=False,
        capacity=capacity,
        stages=stages,
        headline=f"carries {ends[0]:g} to {ends[1]:g} req/s within its SLOs; the sequence-slot cap (8) gives way first",
        findings=(SLOT_CAP,),
        rejected=REJECTED,
        not_evaluable=NOT_EVALUABLE,
        unexplained_ratio=0.03,
        target=view.facts,
        notes=(),
        exit_code=0,
    )
    return msgspec.structs.replace(verdict, **changes)
