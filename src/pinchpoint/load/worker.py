"""One load process: takes steps from a pipe, runs the issuer, writes records to its own part file.

Every tenth of a second it tells the controller what has ended and what is in flight, so that a search can decide while
the step runs. Records are written between due instants, not at them.

Interrupts are the controller's business: the process ignores SIGINT and ends when the pipe closes or says so.
"""

import gc
import itertools
import signal
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.fetch import tls_context
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Outcome, Pending, StepOrder, Update, WorkerConfig
from pinchpoint.model import RECORD_COLUMNS, SAMPLE_COLUMNS
from pinchpoint.rundir import PartWriter
from pinchpoint.targets.openai import OpenAITarget

PUBLISH_PERIOD_NS = NS_PER_S // 10
WRITE_PERIOD_NS = NS_PER_S
WRITE_ROOM_NS = 5_000_000
"""A write takes a few milliseconds: it waits for a gap of this length between due instants, at most a second."""


def work(pipe: Pipe) -> None:
    """Process entry. The first message is a WorkerConfig; then StepOrder and Command until quit or end of pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config: WorkerConfig = pipe.recv()
        _Worker(config, pipe).run()
    except (EOFError, ConnectionError):
        return  # the controller is gone; the part files are already whole


class _Worker:
    def __init__(self, config: WorkerConfig, pipe: Pipe) -> None:
        self._config = config
        self._pipe = pipe
        self._target = OpenAITarget(
            config.api_path, config.model, config.engine, stream=config.stream, usage=config.usage
        )
        self._issuer = Issuer(
            config.address,
            self._target,
            self._on_done,
            headers=config.headers,
            tls=tls_context(config.ca_file) if config.address.tls else None,
            timeouts=config.timeouts,
        )
        parts = Path(config.run_path) / "parts"
        self._records = PartWriter(parts / f"records-{config.index}.arrows", RECORD_COLUMNS)
        self._samples = PartWriter(parts / f"telemetry-client{config.index}.arrows", SAMPLE_COLUMNS)
        self._rows: list[tuple[Any, ...]] = []
        self._outcomes: list[Outcome] = []
        self._tokens = 0
        self._running = True
        self._busy_ratio = 0.0

    def run(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        published_ns = written_ns = monotonic_ns()
        poll_ns = self._issuer.poll_ns
        cpu_s = time.process_time()
        try:
            while self._running:
                self._issuer.run_once(published_ns + PUBLISH_PERIOD_NS)
                now_ns = monotonic_ns()
                if now_ns - published_ns >= PUBLISH_PERIOD_NS:
                    waited_ns = self._issuer.poll_ns - poll_ns
                    busy_ratio = max(0.0, 1 - waited_ns / (now_ns - published_ns))
                    poll_ns, published_ns = self._issuer.poll_ns, now_ns
                    self._publish(now_ns, busy_ratio)
                    self._obey()
                    now_ns = monotonic_ns()
                if now_ns - written_ns >= WRITE_PERIOD_NS:
                    due_ns = self._issuer.next_due_ns
                    overdue = now_ns - written_ns >= 2 * WRITE_PERIOD_NS
                    if due_ns is None or due_ns - now_ns > WRITE_ROOM_NS or overdue:
                        used_s = time.process_time()
                        self._sample(now_ns, (used_s - cpu_s) * NS_PER_S / (now_ns - written_ns))
                        cpu_s, written_ns = used_s, now_ns
                        self._write()
        finally:
            self._issuer.cancel_all("the run ended")
            self._write()
            self._records.close()
            self._samples.close()
            self._issuer.close()

    def _obey(self) -> None:
        while self._pipe.poll():
            order = self._pipe.recv()
            if isinstance(order, StepOrder):
                if not self._issuer.in_flight:
                    gc.collect()
                self._issuer.start(order.stage, order.t0_ns, order.intents)
            elif order.verb == "stop-issue":
                self._issuer.stop_issue()
            elif order.verb == "cancel":
                self._issuer.stop_issue()
                self._issuer.cancel_all(order.reason)
            elif order.verb == "flush":
                self._write()
            else:
                self._running = False

    def _publish(self, now_ns: int, busy_ratio: float) -> None:
        outcomes, self._outcomes = self._outcomes, []
        pending = [
            Pending(
                request_id=request_id,
                stage=self._issuer.stage_of(request_id),
                scheduled_ns=exchange.scheduled_ns,
                first_token_ns=exchange.first_token_ns,
                has_first_byte=exchange.first_byte_ns is not None,
                max_output_tokens=exchange.row.max_output_tokens,
            )
            for request_id, exchange in self._issuer.in_flight.items()
        ]
        in_flight_tokens = sum(len(exchange.chunk_ns) for exchange in self._issuer.in_flight.values())
        self._pipe.send(
            Update(
                worker=self._config.index,
                t_ns=now_ns,
                outcomes=outcomes,
                pending=pending,
                unissued=self._issuer.unissued,
                tokens=self._tokens + in_flight_tokens,
                busy_ratio=busy_ratio,
            )
        )
        self._busy_ratio = busy_ratio

    def _sample(self, now_ns: int, cpu_cores: float) -> None:
        labels = f"worker={self._config.index}"
        readings = {
            "client.loop_busy_ratio": self._busy_ratio,
            "client.worker_cpu_cores": cpu_cores,
            "client.in_flight": float(len(self._issuer.in_flight)),
        }
        self._samples.append((now_ns, 0, "client", name, name, labels, value) for name, value in readings.items())

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        self._records.append(rows)
        self._records.flush()
        self._samples.flush()

    def _on_done(self, exchange: Exchange, stage: int) -> None:
        self._tokens += len(exchange.chunk_ns)
        error = exchange.error
        for secret in self._config.secrets:
            error = error.replace(secret, "[redacted]") if error else error
        usage = exchange.usage
        output_tokens = usage.output_tokens if usage and usage.output_tokens is not None else len(exchange.chunk_ns)
        last_token_ns = exchange.chunk_ns[-1] if exchange.chunk_ns else None
        self._rows.append(
            (
                exchange.row.request_id,
                stage,
                self._config.index,
                exchange.scheduled_ns,
                exchange.sent_ns,
                None,
                None,
                exchange.connected_ns,
                exchange.headers_ns,
                exchange.first_byte_ns,
                exchange.first_token_ns,
                exchange.first_content_ns,
                last_token_ns,
                exchange.end_ns,
                exchange.chunk_ns,
                _tokens_per_chunk(len(exchange.chunk_ns), output_tokens),
                exchange.coalesced_count,
                _source(exchange),
                exchange.stamp_error_ns + exchange.first_token_error_ns if exchange.bytes_in else None,
                exchange.stamp_error_ns + exchange.coalesced_error_ns if exchange.bytes_in else None,
                usage.input_tokens if usage else None,
                output_tokens,
                usage.cached_tokens if usage else None,
                usage.reasoning_tokens if usage else None,
                "usage" if usage else "events",
                exchange.row.input_tokens,
                exchange.row.max_output_tokens,
                exchange.bytes_in,
                exchange.http_status,
                exchange.status,
                error,
                exchange.finish_reason,
                exchange.retry_after_s,
                exchange.connection_id,
                None,
                1,
                None,
            )
        )
        self._outcomes.append(_outcome(exchange, stage, error, output_tokens))


def _source(exchange: Exchange) -> str:
    if exchange.stamps_kernel and exchange.stamps_user:
        return "mixed"
    return "kernel" if exchange.stamps_kernel else "user"


def _tokens_per_chunk(chunks: int, output_tokens: int) -> list[int]:
    """One token per event unless the service counted more tokens than there were events.

    Which event carried the surplus is not known, so it is spread evenly; the per-request mean (TPOT) is exact anyway.
    """
    if chunks == 0:
        return []
    if output_tokens <= chunks:
        return [1] * chunks
    each, rest = divmod(output_tokens, chunks)
    return [each + (i < rest) for i in range(chunks)]


def _outcome(exchange: Exchange, stage: int, error: str | None, output_tokens: int) -> Outcome:
    end_ns = exchange.end_ns or monotonic_ns()
    first_ns = exchange.first_token_ns
    chunk_ns = exchange.chunk_ns
    gaps = output_tokens - 1
    return Outcome(
        request_id=exchange.row.request_id,
        stage=stage,
        status=exchange.status or "transport_error",
        error=error,
        scheduled_ns=exchange.scheduled_ns,
        send_lag_s=(exchange.sent_ns - exchange.scheduled_ns) / NS_PER_S if exchange.sent_ns else None,
        ttft_s=(first_ns - exchange.scheduled_ns) / NS_PER_S if first_ns else None,
        tpot_s=(chunk_ns[-1] - chunk_ns[0]) / NS_PER_S / gaps if chunk_ns and gaps >= 1 else None,
        e2e_s=(end_ns - exchange.scheduled_ns) / NS_PER_S,
        itl_max_s=max((b - a for a, b in itertools.pairwise(chunk_ns)), default=0) / NS_PER_S
        if len(chunk_ns) > 1
        else None,
        input_tokens=exchange.usage.input_tokens if exchange.usage else None,
        output_tokens=output_tokens,
        has_first_byte=exchange.first_byte_ns is not None,
        since_first_token_s=(end_ns - first_ns) / NS_PER_S if first_ns else None,
        max_output_tokens=exchange.row.max_output_tokens,
        http_status=exchange.http_status,
    )
