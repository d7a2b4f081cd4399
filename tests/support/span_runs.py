"""Runs whose requests went through a gateway, a dependency and an engine, and left spans: with known times in each.

Every service may have a clock of its own; what its spans bear is the truth plus its error.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import RECORD_COLUMNS, SPAN_COLUMNS, Manifest, Stage, TargetFacts
from pinchpoint.rundir import RunWriter, read_run
from pinchpoint.series import RunView
from pinchpoint.traceids import salt_of, span_id, trace_id
from tests.support.runs import named_row

RUN_ID = "spans"
SALT = salt_of(RUN_ID)
T0_NS = 1_000 * NS_PER_S
EXPORT_DELAY_NS = 5 * NS_PER_S


def ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)


@dataclass(frozen=True)
class Times:
    """Seconds of one request in each part, in their order. out_s: from the engine's end back to us, half of it on each
    side of the gateway."""

    way_in_s: float = 0.01
    gateway_s: float = 0.02
    retrieve_s: float = 0.1
    hop_s: float = 0.005
    tokenise_s: float = 0.004
    queue_s: float = 0.2
    prefill_s: float = 0.15
    decode_s: float = 0.5
    out_s: float = 0.02


@dataclass
class SpanRun:
    """Rows of a run to be. clocks: service -> seconds its wall clock is ahead of ours."""

    clocks: Mapping[str, float] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)

    def request(self, number: int, at_s: float, first_token_s: float | None, end_s: float, status: str = "ok") -> None:
        at_ns = T0_NS + ns(at_s)
        self.records.append(
            {
                "request_id": number,
                "stage": 0,
                "worker": 0,
                "scheduled_ns": at_ns,
                "sent_ns": at_ns,
                "first_byte_ns": T0_NS + ns(first_token_s if first_token_s is not None else end_s),
                "first_token_ns": T0_NS + ns(first_token_s) if first_token_s is not None else None,
                "end_ns": T0_NS + ns(end_s),
                "chunk_ns": [],
                "coalesced_count": 0,
                "timestamp_source": "kernel",
                "requested_input_tokens": 1,
                "requested_output_tokens": 1,
                "bytes_in": 0,
                "status": status,
            }
        )

    def span(
        self,
        request: int,
        number: int,
        parent: int | None,
        name: str,
        service: str,
        start_s: float,
        end_s: float,
        kind: str = "server",
        **attributes: Any,
    ) -> None:
        """number 1 and parent None: the outermost one, whose parent is the span that we play."""
        ahead_ns = ns(self.clocks.get(service, 0.0))
        self.spans.append(
            {
                "trace_id": trace_id(SALT, request),
                "span_id": f"{request * 1000 + number:016x}",
                "parent_id": span_id(SALT, request) if parent is None else f"{request * 1000 + parent:016x}",
                "name": name,
                "service": service,
                "instance": "",
                "kind": kind,
                "start_ns": T0_NS + ns(start_s) + ahead_ns,
                "end_ns": T0_NS + ns(end_s) + ahead_ns,
                "status": "unset",
                "received_ns": T0_NS + ns(end_s) + EXPORT_DELAY_NS,
                "request_id": request,
                "attributes_json": json.dumps({key.replace("__", "."): value for key, value in attributes.items()}),
            }
        )

    def through_all(self, number: int, at_s: float, times: Times) -> None:
        """Client -> gateway -> retrieve, then gateway -> engine, as a service with RAG before vLLM does."""
        enter_s = at_s + times.way_in_s
        retrieve_s = enter_s + times.gateway_s
        call_s = retrieve_s + times.retrieve_s
        engine_s = call_s + times.hop_s
        first_s = engine_s + times.tokenise_s + times.queue_s + times.prefill_s
        done_s = first_s + times.decode_s
        back_s = done_s + times.out_s / 2
        self.request(number, at_s, first_s + times.out_s, back_s + times.out_s / 2)
        self.span(number, 1, None, "POST /ask", "gateway", enter_s, back_s)
        self.span(number, 2, 1, "retrieve", "gateway", retrieve_s, call_s, "client", db__system="postgresql")
        self.span(number, 3, 1, "POST /v1/chat/completions", "gateway", call_s, back_s, "client")
        self.span(
            number, 4, 3, "llm_request", "vllm", engine_s, done_s,
            gen_ai__latency__time_in_queue=times.queue_s,
            gen_ai__latency__time_in_model_prefill=times.prefill_s,
            gen_ai__latency__time_in_model_decode=times.decode_s,
            gen_ai__latency__time_to_first_token=times.tokenise_s + times.queue_s + times.prefill_s,
            gen_ai__latency__e2e=done_s - engine_s,
        )  # fmt: skip

    def view(self, path: Path, stages: Sequence[Stage] = ()) -> RunView:
        manifest = Manifest(
            1,
            RUN_ID,
            "0",
            "running",
            None,
            "",
            T0_NS,
            False,
            1,
            {},
            TargetFacts("u"),
            (),
            False,
            list(stages),
            {},
            {},
            {},
        )
        writer = RunWriter(path, manifest)
        for table, columns, rows in (("records", RECORD_COLUMNS, self.records), ("spans", SPAN_COLUMNS, self.spans)):
            if rows:
                part = writer.part(table, "0")
                part.append(named_row(columns, **row) for row in rows)
                part.close()
        return RunView(read_run(path))
