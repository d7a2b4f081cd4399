"""One load process: takes steps from a pipe, runs the issuer, writes records to its own part file.

Every tenth of a second it writes its counters, obeys orders, and tells a search that follows a step what has ended and
what is in flight, so that it can decide while the step runs. Records are written between due instants, not at them.

Interrupts are the controller's business: the process ignores SIGINT and ends when the pipe closes or says so.
"""

import contextlib
import gc
import itertools
import os
import signal
import ssl
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.fetch import tls_context
from pinchpoint.load.counters import BUCKETS, COUNTERS_FILE, FIELDS, PPM, LiveCounters, bucket_of
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.health import ClientHealth
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Calibration, Hello, Outcome, Pending, StepOrder, Update, WorkerConfig
from pinchpoint.load.rpc import Rpc, over_grpc, trusted
from pinchpoint.load.tcp_info import TcpSampler
from pinchpoint.model import ERROR_STATUSES, RECORD_COLUMNS, SAMPLE_COLUMNS
from pinchpoint.prompt import Prompt
from pinchpoint.rundir import PartWriter
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import Target

PUBLISH_PERIOD_NS = NS_PER_S // 10
WRITE_PERIOD_NS = NS_PER_S
WRITE_ROOM_NS = 5_000_000
"""A write takes a few milliseconds: it waits for a gap of this length between due instants, at most a second."""
REALTIME_PRIORITY = 1
"""The lowest of SCHED_FIFO: above everything ordinary, below the kernel's own threads that run at 50."""
REHEARSED_TOKENS = 100
ROWS_AT_ONCE = 8
"""About a tenth of a millisecond of work."""
PUT_AWAY_ROOM_NS = 200_000
ROWS_WAITING_MAX = 256
"""With more, they are put away whether or not something is due."""
FAILED = frozenset((*ERROR_STATUSES, "timeout"))


def work(pipe: Pipe) -> None:
    """Process entry. The first message is a WorkerConfig; then orders and commands until quit or end of pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = pipe.recv()
        if isinstance(config, WorkerConfig):  # else there will be no load, and we are told to go
            _Worker(config, pipe).run()
    except (EOFError, ConnectionError):
        return  # the controller is gone; the part files are already whole


class _Worker:
    def __init__(self, config: WorkerConfig, pipe: Pipe) -> None:
        self._config = config
        self._pipe = pipe
        self._targets = [make_target(spec) for spec in config.targets]
        tls = tls_context(config.ca_file) if any(endpoint.tls for endpoint in config.endpoints) else None
        self._issuer = Issuer(
            config.endpoints,
            self._targets,
            config.content,
            self._on_done,
            habits=config.habits,
            tls=tls,
            rpc=_rpc(config, self._targets, tls),
        )
        self._health = ClientHealth()
        self._tcp = TcpSampler()
        parts = Path(config.run_path) / "parts"
        self._records = PartWriter(parts / f"records-{config.index}.arrows", RECORD_COLUMNS)
        self._samples = PartWriter(parts / f"telemetry-client{config.index}.arrows", SAMPLE_COLUMNS)
        self._counters = LiveCounters(parts / COUNTERS_FILE, config.workers, create=False).rows[config.index]
        self._follow = False
        self._rows: list[tuple[Any, ...]] = []
        self._outcomes: list[Outcome] = []
        self._latencies: list[tuple[float, float]] = []
        """(TTFT, TPOT) in seconds since the counters were written; NaN where there is none."""
        self._ok = self._failed = self._withdrawn = self._orders = 0
        self._tokens = self._coalesced = 0
        self._sampled_tokens = self._sampled_coalesced = 0
        self._running = True
        self._busy_ratio = 0.0

    def run(self) -> None:
        self._rehearse()
        self._pipe.send(self._settle_in())
        self._issuer.listen(self._pipe.fileno())
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
                if self._issuer.called:
                    self._issuer.called = False
                    self._obey()
                if now_ns - published_ns >= PUBLISH_PERIOD_NS:
                    waited_ns = self._issuer.poll_ns - poll_ns
                    self._busy_ratio = max(0.0, 1 - waited_ns / (now_ns - published_ns))
                    poll_ns, published_ns = self._issuer.poll_ns, now_ns
                    self._count(now_ns)
                    if self._follow:
                        self._publish(now_ns)
                    now_ns = monotonic_ns()
                if self._rows:
                    self._put_away(now_ns)
                if now_ns - written_ns >= WRITE_PERIOD_NS:
                    due_ns = self._issuer.next_due_ns
                    overdue = now_ns - written_ns >= 2 * WRITE_PERIOD_NS
                    room = due_ns is None or due_ns - now_ns > WRITE_ROOM_NS
                    if room or overdue:
                        if room:  # a loop that is late has better things to do
                            self._sample_tcp(now_ns)
                        used_s = time.process_time()
                        self._sample(now_ns, (used_s - cpu_s) * NS_PER_S / (now_ns - written_ns))
                        cpu_s, written_ns = used_s, now_ns
                        self._write()
        finally:
            self._issuer.cancel_all("the run ended")
            self._sample(monotonic_ns(), None)
            self._write()
            self._records.close()
            self._samples.close()
            self._issuer.close()

    def _rehearse(self) -> None:
        """Does once what would else be slow the first time, under load: the first prompt, the first row, a sample."""
        row = ScheduledRequest(0, 0, 0, 0, 0, 0, REHEARSED_TOKENS, REHEARSED_TOKENS)
        self._config.content.prepare()
        for target in self._targets:
            with contextlib.suppress(ValueError):  # what cannot be written is told of the request that it happens to
                target.build(Prompt.of("", 1))
        self._records.rehearse(self._row_of(Exchange(row, 0, self._targets[0]), None, None, None))
        self._samples.rehearse((0, 0, "client", "", "", "", 0.0))
        self._health.read()

    def _settle_in(self) -> Hello:
        """Takes the core and the priority that the plan wants, as far as the system lets it."""
        config, notes = self._config, []
        cpu, realtime = config.cpu, config.realtime
        if cpu is not None:
            try:
                os.sched_setaffinity(0, {cpu})
            except (OSError, AttributeError) as error:
                notes.append(f"load process {config.index} could not be kept on core {cpu} ({error})")
                cpu = None
        if realtime:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
            except (OSError, AttributeError) as error:
                notes.append(f"load process {config.index} got no real-time priority ({error})")
                realtime = False
        return Hello(config.index, os.getpid(), cpu, realtime, tuple(notes))

    def _obey(self) -> None:
        while self._pipe.poll():
            order = self._pipe.recv()
            if isinstance(order, StepOrder):
                idle = not self._issuer.in_flight
                if idle:
                    gc.collect()
                self._follow = order.follow
                self._issuer.start(order.t0_ns, order.schedule, order.slots, order.duration_ns)
                self._orders += 1
                self._count(monotonic_ns())
                if idle:
                    self._issuer.forget_stall()  # taking the order held up nothing
            elif isinstance(order, Calibration):
                self._config.content.calibrate(order.tokens_per_word, order.overhead_tokens)
            elif order.verb == "stop-issue":
                self._issuer.stop_issue()
            elif order.verb == "cancel":
                self._issuer.stop_issue()
                self._issuer.cancel_all(order.reason)
            elif order.verb == "flush":
                self._write()
            else:
                self._running = False

    # -- telling -----------------------------------------------------------------------------------------------------

    def _count(self, now_ns: int) -> None:
        issuer, row = self._issuer, self._counters
        in_flight_tokens = sum(exchange.tokens_seen for exchange in issuer.in_flight.values())
        values = (
            now_ns,
            issuer.issued,
            len(issuer.in_flight),
            issuer.unissued,
            issuer.pool_left,
            self._ok,
            self._failed,
            self._withdrawn,
            self._tokens + in_flight_tokens,
            int(self._busy_ratio * PPM),
            self._orders,
        )
        row[: len(FIELDS)] = values
        if self._latencies:
            latencies, self._latencies = np.asarray(self._latencies), []
            for column in range(2):
                known = latencies[:, column]
                start = len(FIELDS) + column * BUCKETS
                row[start : start + BUCKETS] += np.bincount(bucket_of(known[np.isfinite(known)]), minlength=BUCKETS)

    def _publish(self, now_ns: int) -> None:
        outcomes, self._outcomes = self._outcomes, []
        pending = [
            Pending(
                request_id=request_id,
                stage=exchange.stage,
                scheduled_ns=exchange.scheduled_ns,
                first_token_ns=exchange.first_token_ns,
                has_first_byte=exchange.first_byte_ns is not None,
                max_output_tokens=exchange.row.max_output_tokens,
            )
            for request_id, exchange in self._issuer.in_flight.items()
        ]
        in_flight_tokens = sum(exchange.tokens_seen for exchange in self._issuer.in_flight.values())
        self._pipe.send(
            Update(
                worker=self._config.index,
                t_ns=now_ns,
                outcomes=outcomes,
                pending=pending,
                unissued=self._issuer.unissued,
                tokens=self._tokens + in_flight_tokens,
                busy_ratio=self._busy_ratio,
            )
        )

    def _sample(self, now_ns: int, cpu_cores: float | None) -> None:
        """cpu_cores: None at the very end, when the time since the last sample is too short to tell."""
        tokens, coalesced = self._tokens - self._sampled_tokens, self._coalesced - self._sampled_coalesced
        self._sampled_tokens, self._sampled_coalesced = self._tokens, self._coalesced
        readings = {
            **self._health.read(),
            "client.loop_stall_max_s": self._issuer.stall_ns / NS_PER_S,
            "client.in_flight": float(len(self._issuer.in_flight)),
            "client.connections": float(self._issuer.connections),
            "client.clock_drift_s": (self._issuer.wall.offset_ns - self._issuer.wall.first_offset_ns) / NS_PER_S,
        }
        if cpu_cores is not None:
            readings["client.loop_busy_ratio"] = self._busy_ratio
            readings["client.worker_cpu_cores"] = cpu_cores
        if tokens:
            readings["client.coalesced_ratio"] = coalesced / tokens
        self._issuer.stall_ns = 0
        labels = f"worker={self._config.index}"
        self._samples.append((now_ns, 0, "client", name, name, labels, value) for name, value in readings.items())

    def _sample_tcp(self, now_ns: int) -> None:
        labels = f"worker={self._config.index}"
        readings = self._tcp.read(self._issuer.sockets)
        self._samples.append((now_ns, 0, "network", name, name, labels, value) for name, value in readings.items())

    def _put_away(self, now_ns: int) -> None:
        """Turns rows into columns, a few at a time and between due instants."""
        due_ns = self._issuer.next_due_ns
        if due_ns is None or due_ns - now_ns > PUT_AWAY_ROOM_NS or len(self._rows) > ROWS_WAITING_MAX:
            rows, self._rows = self._rows[:ROWS_AT_ONCE], self._rows[ROWS_AT_ONCE:]
            self._records.append(rows)

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        self._records.append(rows)
        self._records.flush()
        self._samples.flush()

    # -- ended requests ----------------------------------------------------------------------------------------------

    def _on_done(self, exchange: Exchange) -> None:
        chunk_ns = exchange.chunk_ns
        chunks = len(chunk_ns)
        self._tokens += chunks
        self._coalesced += exchange.coalesced_count
        if exchange.status == "ok":
            self._ok += 1
        elif exchange.status in FAILED:
            self._failed += 1
        else:
            self._withdrawn += 1
        error = exchange.error
        if error is not None:
            for secret in self._config.secrets:
                error = error.replace(secret, "[redacted]")
        output_tokens, token_source = self._output_tokens(exchange)
        last_token_ns = chunk_ns[-1] if chunks else None
        self._rows.append(self._row_of(exchange, error, output_tokens, token_source))
        first_ns = exchange.first_token_ns
        gaps = (output_tokens or 0) - 1
        ttft_s = (first_ns - exchange.scheduled_ns) / NS_PER_S if first_ns else None
        tpot_s = (last_token_ns - first_ns) / NS_PER_S / gaps if first_ns and last_token_ns and gaps >= 1 else None
        if self._follow:
            self._outcomes.append(_outcome(exchange, error, output_tokens, ttft_s, tpot_s))
        elif ttft_s is not None:
            self._latencies.append((ttft_s, tpot_s if tpot_s is not None else float("nan")))

    def _output_tokens(self, exchange: Exchange) -> tuple[int | None, str | None]:
        """Tokens of the answer and who counted them; None where nobody could."""
        usage, chunks = exchange.usage, len(exchange.chunk_ns)
        if usage is not None and usage.output_tokens is not None:
            return usage.output_tokens, "usage"
        content = self._config.content
        if content.counts_answers and exchange.status == "ok" and (text := exchange.text):
            counted = content.count(text)
            if counted is not None:
                return counted, "tokenizer"
        if chunks or exchange.status != "ok":
            return chunks, "events"
        return None, "usage" if usage is not None else None

    def _row_of(
        self, exchange: Exchange, error: str | None, output_tokens: int | None, token_source: str | None
    ) -> tuple[Any, ...]:
        """In the order of model.RECORD_COLUMNS."""
        row, usage, chunk_ns = exchange.row, exchange.usage, exchange.chunk_ns
        chunks, bounded = len(chunk_ns), exchange.bytes_in > 0 and exchange.stamps_bounded
        last_token_ns = chunk_ns[-1] if chunks else None
        return (
            row.request_id,
            exchange.stage,
            self._config.index,
            exchange.scheduled_ns,
            exchange.sent_ns,
            exchange.connect_ns,
            exchange.tls_ns,
            exchange.connected_ns,
            exchange.headers_ns,
            exchange.first_byte_ns,
            exchange.first_token_ns,
            exchange.first_content_ns,
            last_token_ns,
            exchange.end_ns,
            chunk_ns,
            tokens_per_chunk(chunks, output_tokens or 0),
            exchange.coalesced_count,
            source(exchange),
            exchange.stamp_error_ns + exchange.first_token_error_ns if bounded else None,
            exchange.stamp_error_ns + exchange.coalesced_error_ns if bounded else None,
            usage.input_tokens if usage else None,
            output_tokens,
            usage.cached_tokens if usage else None,
            usage.reasoning_tokens if usage else None,
            token_source,
            exchange.input_tokens,
            row.max_output_tokens,
            exchange.bytes_in,
            exchange.http_status,
            exchange.status,
            error,
            exchange.finish_reason,
            exchange.retry_after_s,
            exchange.connection_id,
            exchange.phase,
            exchange.attempts,
            exchange.backend if len(self._config.endpoints) > 1 else None,
            row.class_id,
            exchange.shared_tokens,
        )


def _rpc(config: WorkerConfig, targets: Sequence[Target], tls: ssl.SSLContext | None) -> Rpc | None:
    """For the targets that speak gRPC; None when there is none, and then grpcio is not imported either."""
    channels = [getattr(target, "channels", 1) for target in targets if over_grpc(target)]
    if not channels:
        return None
    habits = config.habits
    return Rpc(
        config.endpoints,
        channels=max(channels),
        root_certificates=trusted(tls) if tls is not None else None,
        new_connections=habits.new_connections,
        connect_s=habits.timeouts.connect_s,
    )


def source(exchange: Exchange) -> str:
    """Where the stamps come from: kernel, user or mixed; a request without an answer counts as kernel."""
    if not exchange.stamps_user:
        return "kernel"
    return "user" if exchange.stamps_user >= exchange.reads else "mixed"


def tokens_per_chunk(chunks: int, output_tokens: int) -> list[int] | None:
    """None: one token in each event. Otherwise the service counted more tokens than there were events.

    Which event carried the surplus is not known, so it is spread evenly; the per-request mean (TPOT) is exact anyway.
    """
    if output_tokens <= chunks or chunks == 0:
        return None
    each, rest = divmod(output_tokens, chunks)
    return [each + (i < rest) for i in range(chunks)]


def _outcome(
    exchange: Exchange, error: str | None, output_tokens: int | None, ttft_s: float | None, tpot_s: float | None
) -> Outcome:
    end_ns = exchange.end_ns or monotonic_ns()
    first_ns = exchange.first_token_ns
    chunk_ns = exchange.chunk_ns
    longest_ns = max((b - a for a, b in itertools.pairwise(chunk_ns)), default=None)
    return Outcome(
        request_id=exchange.row.request_id,
        stage=exchange.stage,
        status=exchange.status or "transport_error",
        error=error,
        scheduled_ns=exchange.scheduled_ns,
        send_lag_s=(exchange.sent_ns - exchange.scheduled_ns) / NS_PER_S if exchange.sent_ns else None,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=(end_ns - exchange.scheduled_ns) / NS_PER_S,
        itl_max_s=longest_ns / NS_PER_S if longest_ns is not None else None,
        planned_input_tokens=exchange.input_tokens,
        input_tokens=exchange.usage.input_tokens if exchange.usage else None,
        output_tokens=output_tokens or 0,
        has_first_byte=exchange.first_byte_ns is not None,
        since_first_token_s=(end_ns - first_ns) / NS_PER_S if first_ns else None,
        max_output_tokens=exchange.row.max_output_tokens,
        http_status=exchange.http_status,
    )
