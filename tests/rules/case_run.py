"""Builds a run directory from a case: a small queueing model for the requests, compact notation for the readings.

The requests come from a model of a service that is much cruder than the lab (whole requests, no steps): slots, a token
pool, one server for prompts, one for the event loop, limits, a buffering proxy. The readings are written by hand in the
case, so a case can also say what does not happen together in nature.

Notation of readings, one per second from the start of the run; a stage lasts `seconds`, then comes a gap of GAP_S:
    5          one reading of 5
    5x40       forty readings of 5
    5~2x40     forty readings within 5 +- 2 (seeded)
    5+0.1x40   forty readings, each 0.1 above the one before
    +2x40      the same, going on from the reading before (counters)
    _x40       no reading for forty seconds
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from tests.support.runs import named_row

from pinchpoint.model import RECORD_COLUMNS, SCHEDULE_COLUMNS, Limits, Manifest, Stage, TargetFacts
from pinchpoint.rundir import Run, RunWriter, read_run
from pinchpoint.slo import parse_slos

NS_PER_S = 1_000_000_000
GAP_S = 10
T0_NS = 1_000 * NS_PER_S
SETTLE_S = 4
TOKEN = re.compile(r"(?P<value>_|-?[0-9.]+)?(?:(?P<kind>[~+])(?P<step>-?[0-9.]+))?(?:x(?P<n>[0-9]+))?")

SERVICE_DEFAULTS: dict[str, Any] = {
    "slots": None,
    "pool_tokens": None,
    "prefill_s_per_token": 1e-4,
    "prefill_is_shared": False,
    "a": 0.01,
    "b": 0.0,
    "loop_s": 0.0,
    "rate_limit": None,
    "in_flight_limit": None,
    "status": 429,
    "buffered": False,
    "slow_streams": 0.0,
    "isl": 256,
    "osl": 64,
}


def parse_readings(text: str, seed: int = 0) -> list[float | None]:
    """Readings of the notation above, one per second; None = none taken."""
    rng = np.random.default_rng(seed)
    readings: list[float | None] = []
    for token in text.split():
        match = TOKEN.fullmatch(token)
        if match is None:
            raise ValueError(f"{token!r} in {text!r} is not a reading")
        n = int(match["n"] or 1)
        if match["value"] == "_":
            readings += [None] * n
            continue
        step = float(match["step"] or 0)
        before = next((v for v in reversed(readings) if v is not None), 0.0)
        value = float(match["value"]) if match["value"] is not None else before + step
        if match["kind"] == "~":
            readings += [float(v) for v in np.round(value + rng.uniform(-step, step, n), 3)]
        else:
            readings += [value + step * i for i in range(n)]
    return readings


def simulate(
    service: dict[str, Any], arrivals: list[tuple[float, int]], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One row per arrival (instant, stage): first come, first served through each of the service's limits."""
    s = {**SERVICE_DEFAULTS, **service}
    unknown = set(service) - set(SERVICE_DEFAULTS)
    assert not unknown, f"a case names service fields that do not exist: {unknown}"
    rows: list[dict[str, Any]] = []
    open_: list[dict[str, Any]] = []
    loop_free = prompt_free = slot_order = 0.0
    bucket, bucket_at = 1.0, 0.0
    for at, stage in arrivals:
        isl, osl = int(s["isl"] * rng.uniform(0.5, 1.5)), max(int(s["osl"] * rng.uniform(0.7, 1.3)), 2)
        row = {"at": at, "stage": stage, "isl": isl, "osl": osl, "status": "ok"}
        rows.append(row)
        open_ = [o for o in open_ if o["end"] > at]
        if s["rate_limit"]:
            bucket = min(bucket + (at - bucket_at) * s["rate_limit"], 3.0)
            bucket_at = at
            if bucket < 1:
                row["status"] = "rejected"
                continue
            bucket -= 1
        if s["in_flight_limit"] and len(open_) >= s["in_flight_limit"]:
            row["status"] = "rejected"
            continue
        loop_free = max(loop_free, at) + s["loop_s"]
        start = max(loop_free, slot_order)
        while _full(s, [o for o in open_ if o["start"] <= start < o["end"]], isl + osl):
            start = min(o["end"] for o in open_ if o["start"] <= start < o["end"])
        slot_order = start
        prefill_s = isl * s["prefill_s_per_token"]
        if s["prefill_is_shared"]:
            prompt_free = max(prompt_free, start) + prefill_s
            first = prompt_free + s["a"]
        else:
            first = start + prefill_s + s["a"]
        beside = 1 + sum(o["first"] <= first < o["end"] for o in open_)
        step_s = (s["a"] + s["b"] * beside) * rng.uniform(0.97, 1.03)
        if rng.random() < s["slow_streams"]:
            step_s *= 3
        end = first + step_s * (osl - 1)
        row |= {"start": start, "first": first, "end": end}
        open_.append(row)
    return rows


def _full(s: dict[str, Any], running: list[dict[str, Any]], tokens: int) -> bool:
    slots = s["slots"] is not None and len(running) >= s["slots"]
    used = sum(o["isl"] + o["osl"] for o in running)
    return slots or (s["pool_tokens"] is not None and bool(running) and used + tokens > s["pool_tokens"])


def build_case(path: Path, case: dict[str, Any], *, seed: int = 7) -> Run:
    """case: rates (the last is the overload), seconds, service, series, limits, engine, slos, client, ..."""
    rng = np.random.default_rng(seed)
    seconds = case.get("seconds", 30)
    rates: list[float] = case["rates"]
    kinds = case.get("kinds") or ["search"] * (len(rates) - 1) + [
        "overload" if case.get("overload", True) else "search"
    ]
    arrivals: list[tuple[float, int]] = []
    stages: list[Stage] = []
    for i, (rate, kind) in enumerate(zip(rates, kinds, strict=True)):
        t0_s = i * (seconds + GAP_S)
        arrivals += [(t0_s + float(t), i) for t in np.sort(rng.uniform(0, seconds, round(rate * seconds)))]
        stages.append(
            Stage(
                index=i,
                kind=kind,  # pyright: ignore[reportArgumentType]
                name=f"{kind} {rate:g}/s",
                t0_ns=T0_NS + t0_s * NS_PER_S,
                t1_ns=T0_NS + (t0_s + seconds) * NS_PER_S,
                drained_ns=T0_NS + (t0_s + seconds + GAP_S) * NS_PER_S,
                settle_ns=SETTLE_S * NS_PER_S,
                rate_rps=rate,
            )
        )
    client = case.get("client", {})
    facts = TargetFacts(
        url="http://127.0.0.1:8000",
        engine=case.get("engine", "vllm"),
        streaming=case.get("streaming", True),
        limits=Limits(**case.get("limits", {})),
        server_pids=tuple(case.get("server_pids", ())),
    )
    slos = parse_slos(case.get("slos", ["ttft p95 < 500ms", "tpot p95 < 40ms", "errors < 1%"]))
    manifest = Manifest(
        format_version=1,
        run_id=path.name,
        pinchpoint_version="0",
        status="running",
        abort_reason=None,
        started_wall="2026-01-01T00:00:00Z",
        t0_ns=T0_NS,
        virtual=False,
        seed=seed,
        plan=case.get("plan", {}),
        target=facts,
        slos=slos,
        slos_derived=case.get("slos_derived", True),
        stages=stages,
        host={},
        clock={},
        files={},
    )
    writer = RunWriter(path, manifest)
    records = writer.part("records", "0")
    rows = simulate(case.get("service", {}), arrivals, rng)
    stage_end_s = {stage.index: (stage.drained_ns - T0_NS) / NS_PER_S for stage in stages}
    s = {**SERVICE_DEFAULTS, **case.get("service", {})}
    keeps = np.random.default_rng(seed + 1).random(len(rows)) >= client.get("lost", 0.0)
    records.append(_record(i, row, s, client, stage_end_s[row["stage"]], rng) for i, row in enumerate(rows) if keeps[i])
    records.close()
    schedule = writer.part("schedule", "0")
    schedule.append(
        named_row(
            SCHEDULE_COLUMNS,
            request_id=i,
            stage=row["stage"],
            session_id=i,
            turn=0,
            offset_ns=None if case.get("closed") else T0_NS + round(row["at"] * NS_PER_S) - stages[row["stage"]].t0_ns,
            input_tokens=row["isl"],
            max_output_tokens=row["osl"],
        )
        for i, row in enumerate(rows)
    )
    schedule.close()
    for event in case.get("events", ()):
        writer.event(T0_NS, **event)
    samples = writer.part("telemetry", "case")
    for name, text in case.get("series", {}).items():
        readings = parse_readings(text, seed)
        samples.append(
            (T0_NS + t * NS_PER_S, 0, name.split(".")[0], name, name, "", value)
            for t, value in enumerate(readings)
            if value is not None
        )
    samples.close()
    status = case.get("status", "complete")
    writer.seal(status, None if status == "complete" else "stopped by the user")
    return read_run(path)


def _record(
    i: int,
    row: dict[str, Any],
    service: dict[str, Any],
    client: dict[str, Any],
    stage_end_s: float,
    rng: np.random.Generator,
) -> tuple[object, ...]:
    def ns(t_s: float | None) -> int | None:
        return None if t_s is None else T0_NS + round(t_s * NS_PER_S)

    sent = row["at"] + client.get("lag_s", 0.0002)
    stopped_s, resumed_s = client.get("stop", (0.0, 0.0))
    if stopped_s <= sent < resumed_s:
        sent = resumed_s
    dropped = rng.random() < client.get("dropped", 0.0)
    values: dict[str, Any] = {
        "request_id": i,
        "stage": row["stage"],
        "worker": 0,
        "scheduled_ns": ns(row["at"]),
        "sent_ns": None if dropped else ns(sent),
        "chunk_ns": [],
        "coalesced_count": 0,
        "timestamp_source": client.get("timestamps", "kernel"),
        "timestamp_error_ns": 50_000,
        "chunk_error_ns": 50_000,
        "requested_input_tokens": row["isl"],
        "requested_output_tokens": row["osl"],
        "bytes_in": client.get("bytes_in", 0),
        "status": row["status"],
        "attempts": None if dropped else 1,
    }
    if dropped:
        values |= {"status": "dropped", "error": client.get("dropped_error", "no connection left")}
    elif row["status"] == "rejected":
        values |= {"end_ns": ns(sent + 0.003), "http_status": service["status"], "retry_after_s": 1.0}
    elif row["first"] > stage_end_s:
        values |= {"status": "cancelled", "end_ns": ns(stage_end_s), "http_status": 200}
    else:
        first, end, osl = row["first"], row["end"], round(row["osl"] * client.get("output_ratio", 1.0))
        if service["buffered"]:
            times = np.linspace(end, end + 0.002, osl)
        else:
            times = np.linspace(first, end, osl)
        lag = client.get("lag_s", 0.0)
        chunk_ns = [ns(float(t) + lag) for t in times]
        values |= {
            "headers_ns": chunk_ns[0],
            "first_byte_ns": chunk_ns[0],
            "first_token_ns": chunk_ns[0],
            "first_content_ns": chunk_ns[0],
            "last_token_ns": chunk_ns[-1],
            "end_ns": chunk_ns[-1],
            "chunk_ns": chunk_ns,
            "input_tokens": round(row["isl"] * client.get("input_ratio", 1.0)),
            "output_tokens": osl,
            "cached_tokens": round(row["isl"] * client.get("cached", 0.0)),
            "token_source": "usage",
            "http_status": 200,
            "finish_reason": "length",
        }
    return named_row(RECORD_COLUMNS, **values)
