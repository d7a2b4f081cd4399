"""Builds run directories of plain loads from a few lines: what was due, what came of it. No service, clock or network.

Instants are seconds since the run's t0. `Answer` says what the service did with one request; `even` and `poisson` make
the schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import (
    FORMAT_VERSION,
    RECORD_COLUMNS,
    SCHEDULE_COLUMNS,
    Manifest,
    Stage,
    TargetFacts,
)
from pinchpoint.rundir import RunWriter, read_run
from pinchpoint.series import RunView

T0_NS = 5_000 * NS_PER_S
NOTHING: dict[str, Any] = {
    "worker": 0,
    "chunk_ns": [],
    "coalesced_count": 0,
    "timestamp_source": "kernel",
    "timestamp_error_ns": 10_000,
    "chunk_error_ns": 20_000,
    "requested_input_tokens": 100,
    "requested_output_tokens": 20,
    "bytes_in": 1000,
    "attempts": 1,
}
"""Columns of a record that say nothing special."""


def ns(instant_s: float | None) -> int | None:
    return None if instant_s is None else T0_NS + round(instant_s * NS_PER_S)


@dataclass
class Answer:
    """One request and what came of it. tokens_s: arrivals of its tokens; a request without any got no answer."""

    due_s: float
    sent_s: float | None = None
    tokens_s: Sequence[float] = ()
    status: str = "ok"
    stage: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    """Columns of the record that differ."""
    recorded: bool = True
    closed: bool = False
    """Due when a slot was free, and not at an instant of its own."""

    def record(self, request_id: int) -> dict[str, Any]:
        first_s, last_s = (self.tokens_s[0], self.tokens_s[-1]) if len(self.tokens_s) else (None, None)
        ok = self.status == "ok"
        told = {"input_tokens": 100, "output_tokens": len(self.tokens_s), "token_source": "usage", "cached_tokens": 0}
        return {
            **NOTHING,
            "request_id": request_id,
            "stage": self.stage,
            "scheduled_ns": ns(self.due_s),
            "sent_ns": ns(self.sent_s),
            "headers_ns": ns(first_s),
            "first_byte_ns": ns(first_s),
            "first_token_ns": ns(first_s),
            "first_content_ns": ns(first_s),
            "last_token_ns": ns(last_s),
            "end_ns": ns(last_s if last_s is not None else self.sent_s),
            "chunk_ns": [ns(token_s) for token_s in self.tokens_s],
            "http_status": 200 if first_s is not None else None,
            "status": self.status,
            **(told if ok else {}),
            **self.fields,
        }


def served(due_s: float, *, ttft_s: float = 0.05, itl_s: float = 0.01, tokens: int = 20, **more: Any) -> Answer:
    """A request that was sent at once and answered evenly."""
    lag_s = more.pop("lag_s", 0.0)
    start_s = due_s + lag_s + ttft_s
    return Answer(due_s, due_s + lag_s, [start_s + itl_s * i for i in range(tokens)], **more)


def even(rate_rps: float, length_s: float, start_s: float = 0.0) -> np.ndarray:
    return start_s + np.arange(round(rate_rps * length_s)) / rate_rps


def poisson(rate_rps: float, length_s: float, seed: int = 1, start_s: float = 0.0) -> np.ndarray:
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_rps, int(rate_rps * length_s * 2) + 50)
    at_s = np.cumsum(gaps_s)
    return start_s + at_s[at_s < length_s]


def load_stage(index: int = 0, start_s: float = 0.0, length_s: float = 10.0, **more: Any) -> Stage:
    t0_ns, t1_ns = ns(start_s), ns(start_s + length_s)
    assert t0_ns is not None and t1_ns is not None
    values: dict[str, Any] = {"kind": "load", "name": f"stage {index + 1}", "drained_ns": t1_ns, "settle_ns": 0, **more}
    return Stage(index=index, t0_ns=t0_ns, t1_ns=t1_ns, **values)


def build_load(
    path: Path, stages: Sequence[Stage], answers: Sequence[Answer], *, plan: dict[str, Any] | None = None, **more: Any
) -> RunView:
    """Writes and opens the run.

    `more` replaces fields of the manifest, such as status and abort_reason; events: kinds of events to write.
    """
    events = more.pop("events", ())
    status, abort_reason = more.pop("status", "complete"), more.pop("abort_reason", None)
    slos = more.pop("slos", ())
    fields: dict[str, Any] = {
        "run_id": "20261124-0800-calm-otter",
        "pinchpoint_version": "0.2.0",
        "started_wall": "2026-11-24T08:00:00Z",
        "target": TargetFacts(url="http://127.0.0.1:8000", engine="vllm", model="llama", api="/v1/chat/completions"),
        **more,
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        status="running",
        abort_reason=None,
        t0_ns=T0_NS,
        virtual=False,
        seed=1,
        plan=plan or {},
        slos=slos,
        slos_derived=False,
        stages=list(stages),
        host={},
        clock={},
        files={},
        **fields,
    )
    writer = RunWriter(path, manifest)
    starts_ns = {stage.index: stage.t0_ns for stage in stages}
    schedule, records = writer.part("schedule", "0"), writer.part("records", "0")
    for request_id, answer in enumerate(answers):
        due_ns = ns(answer.due_s)
        assert due_ns is not None
        row = {
            "request_id": request_id,
            "stage": answer.stage,
            "session_id": request_id,
            "turn": 0,
            "offset_ns": None if answer.closed else due_ns - starts_ns.get(answer.stage, T0_NS),
            "think_ns": 0,
            "input_tokens": 100,
            "max_output_tokens": 20,
            "class_id": answer.fields.get("class_id", 0),
        }
        schedule.append([[row.get(name) for name in SCHEDULE_COLUMNS]])
        if answer.recorded:
            record = answer.record(request_id)
            records.append([[record.get(name) for name in RECORD_COLUMNS]])
    schedule.close()
    records.close()
    writer.part("telemetry", "none").close()
    for event in events:
        writer.event(T0_NS, event)
    writer.seal(status, abort_reason)
    return RunView(read_run(path))
