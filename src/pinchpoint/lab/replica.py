"""One replica: a machine with API processes, what stands before its engines, and the engines.

A request enters as an attempt when its bytes have arrived (`begin`), and leaves when its last chunk is written, when it
is refused, when somebody gives it up (`abandon`), or when the replica dies (`kill`). On its way: a thread, where the
endpoint is synchronous; parsing in the API process; the tokenizer; the dependency; the engines; the API process again.
Not here: the path to the client, gateway and router (service.py).
"""

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.accelerator import AcceleratorModel
from pinchpoint.lab.events import NULL_REQUEST_ID, ClientEvent, ReplicaState
from pinchpoint.lab.front import EventLoop, Limiter, Servers
from pinchpoint.lab.gateway import Refusal, too_many
from pinchpoint.lab.group import EngineGroup, engine_count
from pinchpoint.lab.host import (
    BASE_RSS_BYTES,
    ENGINE_RSS_BYTES,
    LISTENING_FILES,
    PAGES_PER_CHUNK,
    PAGES_PER_REQUEST,
    RSS_PER_CONNECTION_BYTES,
    Host,
    Process,
)
from pinchpoint.lab.outbox import Lane, Outbox
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.path import BYTES_PER_TOKEN, CHUNK_BYTES, HEAD_BYTES, Connection, HostNetwork
from pinchpoint.lab.readings import ProcessReading
from pinchpoint.lab.requests import Attempt, Request
from pinchpoint.lab.sequence import EngineRequest, Sequence

HTTP_OK = 200
UNCOUNTED_PATHS = ("/health", "/metrics")
"""Pages that the API server's own HTTP counters leave out."""


class Outside(Protocol):
    """What a replica asks of the service around it."""

    outbox: Outbox
    dependency: Servers
    holds_headers: bool
    """The gateway passes headers on only with the first byte of the answer."""
    holds_back: bool
    """The proxy passes an answer on only as a whole."""

    def schedule(self, t_ns: int, call: Callable[[int], None]) -> None: ...

    def send(self, request: Request, t_ns: int, events: list[ClientEvent], size_bytes: float) -> None: ...

    def left(self, t_ns: int, attempt: Attempt) -> None:
        """The attempt has been answered to the end."""
        ...

    def broken(self, t_ns: int, attempt: Attempt) -> None:
        """The replica has died under it, or its engine has given it up."""
        ...

    def out_of_memory(self, t_ns: int, replica: "Replica") -> None:
        """Its host's memory is full."""
        ...

    def refused_connection(self, t_ns: int, request: Request) -> None:
        """Accepted for want of a file only to be closed."""
        ...


class Replica:
    """Instants in ns. Deterministic for a seed and a sequence of calls."""

    def __init__(self, params: LabParams, seed: int, index: int, outside: Outside, t_ns: int = 0) -> None:
        self.index = index
        self.params = params
        self._seed = seed
        self._outside = outside
        self._random = random.Random(f"{seed}/{index}/front")
        self.draw = random.Random(f"{seed}/{index}/faults")
        """For the instants of its faults."""
        self.network = HostNetwork(params, hash((seed, index, 1)))
        self.host = Host(params, hash((seed, index, 2)), self.network, t_ns)
        self.up = False
        self.draining = False
        """It gets no more requests."""
        self.restarts = 0
        self.live: dict[Attempt, None] = {}
        self._refusing: dict[Attempt, None] = {}
        """Refused, and the API process has not come to say so."""
        self._nulls: dict[int, None] = {}
        """GETs that wait for the API process, by a number."""
        self._null_count = 0
        self._part_of: dict[int, Attempt] = {}
        self._parts = 0
        self._loops: list[EventLoop] = []
        self._lanes: list[Lane] = []
        self._threads: list[Limiter[Attempt]] = []
        self._engine_processes: list[Process] = []
        self._next_loop = 0
        self._last_lane_ns: list[int] = []
        self.group: EngineGroup | None = None
        """None while the replica is down."""
        gpus = params.tensor_parallel * params.pipeline_parallel
        self._accelerators = [
            AcceleratorModel(params, hash((seed, index, 3, i)), i * gpus) for i in range(engine_count(params))
        ]
        """They outlive the processes."""
        self._apply(params)

    @property
    def in_flight(self) -> int:
        return len(self.live)

    def floor_ns(self, attempt: Attempt) -> int:
        """Nothing of this attempt may reach the client before this instant: something earlier is still on its way."""
        return self._last_lane_ns[attempt.loop.index]

    @property
    def loops(self) -> list[EventLoop]:
        """Its API processes; for looking at."""
        return self._loops

    # Life

    def start(self, t_ns: int) -> None:
        """Its processes come up with empty counters."""
        self.up = True
        self._loops = []
        self._threads = []
        self._engine_processes = [
            Process(f"engine-{i}", t_ns, ENGINE_RSS_BYTES, spins=True) for i in range(engine_count(self.params))
        ]
        self._tokenizers: list[Process] = []
        self._tokenizer_line: Limiter[Attempt] = Limiter(0)
        self._fit_loops(t_ns)
        self._list_processes()
        first = self.index == self.restarts == 0
        seed = self._seed if first else hash((self._seed, self.index, self.restarts))
        self.group = EngineGroup(self.params, seed, self._on_tokens, self._accelerators, self._engine_cpu)

    def kill(self, t_ns: int, *, gpu_fault: bool = False) -> None:
        """All its processes end at once; connections are reset."""
        if not self.up:
            return
        for accelerator in self._accelerators:
            if gpu_fault:
                accelerator.note_failure(t_ns / NS_PER_S)
            else:
                accelerator.note_restart(t_ns / NS_PER_S)
        self.up = False
        self.restarts += 1
        for loop in self._loops:
            loop.dead = True
            loop.waiting.clear()
        self.group = None
        self._part_of.clear()
        self.host.forget_processes(t_ns)
        lost = [*self.live, *self._refusing]
        self.live, self._refusing = {}, {}
        for attempt in lost:
            attempt.gone = True
        self.network.reset_all(t_ns)
        for _ in self._nulls:
            seen_ns = t_ns + self.network.one_way_ns
            self._outside.outbox.put(ClientEvent(seen_ns, NULL_REQUEST_ID, "null", error="reset"))
        self._nulls.clear()
        for attempt in lost:
            self._outside.broken(t_ns, attempt)

    def change(self, t_ns: int, params: LabParams) -> None:
        """From now on it has these parameters. Raises UsageError for another number of engines."""
        if self.group is not None:
            self.group.advance(t_ns)
        for accelerator in self._accelerators:
            accelerator.change(t_ns / NS_PER_S, params)
        if self.group is not None:
            self.group.change(t_ns, params)
        self._apply(params)
        self.network.change(params)
        self.host.change(t_ns, params)
        if self.up:
            self._fit_loops(t_ns)
            self._list_processes()
            self._admit_tokenizers(t_ns)
        for attempt in self.live:
            attempt.direct = attempt.direct and self._direct
        for index, threads in enumerate(self._threads):
            threads.size = params.front.thread_pool_threads
            self._admit_threads(t_ns, index)

    def _apply(self, params: LabParams) -> None:
        self.params = params
        front = params.front
        self._request_ns = round(params.api_request_s * NS_PER_S)
        self._null_ns = round(params.api_null_s * NS_PER_S)
        self._chunk_ns = round(params.api_chunk_s * NS_PER_S)
        self._token_ns = round(front.detokenize_s_per_token * NS_PER_S)
        self._tokenize_ns = front.tokenizer_s_per_token * NS_PER_S
        self._log_request_ns = round(front.log_s_per_request * NS_PER_S)
        self._log_chunk_ns = round(front.log_s_per_chunk * NS_PER_S)
        self._longest_tokens = params.max_model_len_tokens()
        self._application = params.application

    @property
    def _direct(self) -> bool:
        return self.network.unhindered and not self._outside.holds_back

    def _fit_loops(self, t_ns: int) -> None:
        count = self.params.front.api_processes
        while len(self._loops) < count:
            index = len(self._loops)
            process = Process(f"api-{index}", t_ns, BASE_RSS_BYTES)
            self._loops.append(EventLoop(process, index, partial(self.host.wake, process)))
            self._threads.append(Limiter(self.params.front.thread_pool_threads))
            if len(self._lanes) <= index:
                self._lanes.append(self._outside.outbox.lane())
                self._last_lane_ns.append(0)
        threads = self.params.front.tokenizer_threads
        while len(self._tokenizers) < threads:
            self._tokenizers.append(Process(f"tokenizer-{len(self._tokenizers)}", t_ns, 0.0))
        self._tokenizer_line.size = threads or None  # without any, those still in line go on at once

    def _list_processes(self) -> None:
        processes = [loop.process for loop in self._loops]
        self.host.processes = [*processes, *self._tokenizers, *self._engine_processes]

    def _engine_cpu(self, now_s: float, cpu_s: float) -> float:
        """CPU time of an engine's process, on its host."""
        t_ns, cpu_ns = round(now_s * NS_PER_S), round(cpu_s * NS_PER_S)
        process = min(self._engine_processes, key=_busy_until)
        end_ns = self.host.elapse(t_ns, cpu_ns, process)
        process.account(t_ns, end_ns, cpu_ns)
        return cpu_s if self.host.unhindered else (end_ns - t_ns) / NS_PER_S

    # API processes

    def _join(self, t_ns: int, loop: EventLoop, job: Callable[[int], int]) -> None:
        if loop.join(t_ns, job):
            self._outside.schedule(loop.busy_until_ns, partial(self._resume, loop))

    def _resume(self, loop: EventLoop, t_ns: int) -> None:
        if not loop.dead and loop.resume(t_ns):
            self._outside.schedule(loop.busy_until_ns, partial(self._resume, loop))

    def _work(self, loop: EventLoop, t_ns: int, cpu_ns: int, pages: int, logs: int = 0) -> int:
        """A piece of work of the API process, page faults and log records included; returns its end."""
        end_ns = self.host.elapse(t_ns, cpu_ns, loop.process) + self.host.fault_ns(pages)
        if logs:
            end_ns = self.host.write_log(end_ns, logs)
        loop.process.account(t_ns, end_ns, cpu_ns)
        return end_ns

    def null(self, t_ns: int, path: str, sent_ns: int) -> None:
        """A GET that touches no model has arrived; its answer is an event of kind "null"."""
        self._next_loop = (self._next_loop + 1) % self.params.front.api_processes
        loop = self._loops[self._next_loop]
        self._null_count += 1
        number = self._null_count
        self._nulls[number] = None

        def answer(began_ns: int) -> int:
            del self._nulls[number]
            end_ns = self._work(loop, began_ns, self._null_ns, 0)
            if path not in UNCOUNTED_PATHS and self.group is not None:
                self.group.engines[0].metrics.count_http(path, "GET", HTTP_OK, (end_ns - began_ns) / NS_PER_S)
            seen_ns = end_ns + self.network.one_way_ns
            latency_s = (seen_ns - sent_ns) / NS_PER_S
            self._outside.outbox.put(ClientEvent(seen_ns, NULL_REQUEST_ID, "null", HTTP_OK, latency_s=latency_s))
            return end_ns

        self._join(t_ns, loop, answer)

    def connect(self, t_ns: int, request: Request, connection: Connection) -> None:
        """A connection of a new client waits to be accepted."""
        loop = self._loops[connection.process]

        def accept(began_ns: int) -> int:
            if not self.network.accept(began_ns, connection, LISTENING_FILES) and not request.over:
                self._outside.refused_connection(began_ns, request)
            return began_ns

        self._join(t_ns, loop, accept)

    def begin(self, t_ns: int, request: Request) -> Attempt | None:
        """A request's bytes have arrived. None: it was refused, and the refusal is being written."""
        connection = request.connection
        own = connection is not None and request.replica is self
        loop = self._loops[connection.process if own and connection is not None else self._turn()]
        refusal = too_many(len(self.live), self.params.in_flight_limit)
        if refusal is not None:
            refused = Attempt(request, self, loop, True)
            self._refusing[refused] = None
            self._join(t_ns, loop, partial(self._refuse, refused, refusal))
            return None
        attempt = Attempt(request, self, loop, not request.stream or request.max_output_tokens == 0)
        self.live[attempt] = None
        if self._threads[loop.index].enter(attempt):
            self._parse_later(t_ns, attempt)
        return attempt

    def _turn(self) -> int:
        self._next_loop = (self._next_loop + 1) % self.params.front.api_processes
        return self._next_loop

    def _refuse(self, attempt: Attempt, refusal: Refusal, began_ns: int) -> int:
        del self._refusing[attempt]
        request = attempt.request
        end_ns = self._work(attempt.loop, began_ns, self._null_ns, 0)
        if self.group is not None:
            metrics = self.group.engines[0].metrics
            metrics.rejected_requests += 1
            metrics.engine_requests += 1
            duration_s = (end_ns - began_ns) / NS_PER_S
            details = request.details
            metrics.count_http(details.path, "POST", refusal.status, duration_s, details.body_bytes)
        self._outside.send(request, end_ns, refusal_events(request, end_ns, refusal), HEAD_BYTES)
        self._outside.schedule(end_ns, partial(self._outside_left, attempt))
        return end_ns

    def _outside_left(self, attempt: Attempt, t_ns: int) -> None:
        if not attempt.request.over:
            self._outside.left(t_ns, attempt)

    def _parse_later(self, t_ns: int, attempt: Attempt) -> None:
        attempt.has_thread = True
        self._join(t_ns, attempt.loop, partial(self._parse, attempt))

    def _parse(self, attempt: Attempt, began_ns: int) -> int:
        request = attempt.request
        attempt.began_ns = began_ns
        image_tokens = request.details.image_tokens + self._application.image_tokens
        attempt.prompt_tokens = request.prompt_tokens + image_tokens
        cpu_ns = self._request_ns + self._log_request_ns
        if not self.params.front.tokenizer_threads:
            cpu_ns += round(self._tokenize_ns * self._text_tokens(request))
        end_ns = self._work(attempt.loop, began_ns, cpu_ns, PAGES_PER_REQUEST, 1 if self._log_request_ns else 0)
        self._outside.schedule(end_ns, partial(self._parsed, attempt))
        return end_ns

    def _text_tokens(self, request: Request) -> int:
        return request.prompt_tokens + sum(request.details.extra_prompts)

    def _parsed(self, attempt: Attempt, t_ns: int) -> None:
        if attempt.gone:
            return
        request = attempt.request
        assert self.group is not None
        metrics = self.group.engines[0].metrics
        metrics.engine_requests += 1
        longest_tokens = attempt.prompt_tokens + max(1, request.max_output_tokens)
        if (
            max(longest_tokens, *request.details.extra_prompts, 0) > self._longest_tokens
            or request.max_output_tokens < 0
            or min(attempt.prompt_tokens, *request.details.extra_prompts, attempt.prompt_tokens) < 1
        ):
            metrics.invalid_requests += 1
            self._answer_short(t_ns, attempt, 400)
            return
        if not attempt.at_once and not self._outside.holds_headers and not self._outside.holds_back:
            self._send_headers(t_ns, attempt)
            attempt.direct = self._direct
        self._tokenize(t_ns, attempt)

    def _tokenize(self, t_ns: int, attempt: Attempt) -> None:
        if not self.params.front.tokenizer_threads:
            self._tokenized(attempt, t_ns)
            return
        if self._tokenizer_line.enter(attempt):
            self._tokenize_on_thread(t_ns, attempt)

    def _tokenize_on_thread(self, t_ns: int, attempt: Attempt) -> None:
        process = min(self._tokenizers, key=_busy_until)
        cpu_ns = round(self._tokenize_ns * self._text_tokens(attempt.request))
        end_ns = self.host.elapse(t_ns, cpu_ns, process)
        process.account(t_ns, end_ns, cpu_ns)
        self._outside.schedule(end_ns, partial(self._thread_tokenized, attempt, self.restarts))

    def _thread_tokenized(self, attempt: Attempt, restarts: int, t_ns: int) -> None:
        if restarts != self.restarts:  # its process is gone
            return
        self._tokenizer_line.leave()
        self._admit_tokenizers(t_ns)
        self._tokenized(attempt, t_ns)

    def _admit_tokenizers(self, t_ns: int) -> None:
        line = self._tokenizer_line
        while (attempt := line.admit()) is not None:
            if attempt.gone:
                line.leave()
            else:
                self._tokenize_on_thread(t_ns, attempt)

    def _tokenized(self, attempt: Attempt, t_ns: int) -> None:
        if attempt.gone:
            return
        assert self.group is not None
        self.group.engines[0].metrics.validation_s.observe((t_ns - attempt.began_ns) / NS_PER_S)
        front = self.params.front
        if front.dependency_s <= 0:
            self._to_engine(attempt, t_ns)
            return
        length_ns = round(_lognormal(self._random, front.dependency_s, front.dependency_cv) * NS_PER_S)
        end_ns = self._outside.dependency.serve(t_ns, lambda began_ns: began_ns + length_ns)
        self._outside.schedule(end_ns, partial(self._to_engine, attempt))

    # Engines

    def _to_engine(self, attempt: Attempt, t_ns: int) -> None:
        group = self.group
        if attempt.gone or group is None:
            return
        request, details = attempt.request, attempt.request.details
        finish_reason = details.finish_reason
        if request.max_output_tokens:
            wanted = max(1, round(request.max_output_tokens * self._application.output_factor))
            attempt.output_tokens = min(wanted, self._longest_tokens - attempt.prompt_tokens)
            if attempt.output_tokens < request.max_output_tokens:
                finish_reason = "stop"
        prompts = [attempt.prompt_tokens, *details.extra_prompts]
        if max(prompts) + max(1, attempt.output_tokens) > self._longest_tokens:  # limits have become tighter
            self._answer_short(t_ns, attempt, 400)
            return
        attempt.parts_left = len(prompts)
        for index, prompt_tokens in enumerate(prompts):
            self._parts += 1
            self._part_of[self._parts] = attempt
            attempt.parts.append(self._parts)
            group.submit(
                t_ns,
                EngineRequest(
                    self._parts,
                    prompt_tokens,
                    attempt.output_tokens or 1,  # the end of a prompt is where its first token comes
                    attempt.began_ns / NS_PER_S,
                    finish_reason,
                    details.block_keys if index == 0 else (),
                    details.priority,
                    details.adapter,
                    details.schema,
                    details.image_tokens + self._application.image_tokens if index == 0 else 0,
                ),
            )

    def _on_tokens(self, t_ns: int, sequences: list[Sequence]) -> None:
        """A step has ended: its tokens are work for the API processes."""
        part_of = self._part_of
        batch = [
            (part_of[s.request_id], s.new_tokens, s if s.finished else None)
            for s in sequences
            if s.request_id in part_of
        ]
        if len(self._loops) == 1:
            loop = self._loops[0]
            self._join(t_ns, loop, partial(self._write, loop, batch))
        else:
            batches: dict[int, list[Written]] = {}
            for item in batch:
                batches.setdefault(item[0].loop.index, []).append(item)
            for index, part in batches.items():
                loop = self._loops[index]
                self._join(t_ns, loop, partial(self._write, loop, part))
        for sequence in sequences:
            if sequence.finished:
                part_of.pop(sequence.request_id, None)

    def _write(self, loop: EventLoop, batch: "list[Written]", began_ns: int) -> int:
        """The API process writes the tokens of one step."""
        if not self._log_chunk_ns and self.host.unhindered and not self.host.swapping:
            return self._write_plain(loop, batch, began_ns)
        at_ns, cpu_total_ns = began_ns, 0
        lane: list[ClientEvent] = []
        for attempt, tokens, last in batch:
            if attempt.gone:
                continue
            streams = not attempt.at_once
            cpu_ns = self._token_ns * tokens + (self._chunk_ns + self._log_chunk_ns if streams or last else 0)
            at_ns = self.host.elapse(at_ns, cpu_ns, loop.process) + self.host.fault_ns(PAGES_PER_CHUNK)
            if self._log_chunk_ns and (streams or last):
                at_ns = self.host.write_log(at_ns)
            cpu_total_ns += cpu_ns
            self._give(at_ns, attempt, tokens, last, lane)
        loop.process.account(began_ns, at_ns, cpu_total_ns)
        self._post(loop, lane)
        return at_ns

    def _write_plain(self, loop: EventLoop, batch: "list[Written]", began_ns: int) -> int:
        """The same where CPU work takes as long as it has CPU time; most tokens of a run come through here."""
        one_way_ns, chunk_ns, token_ns = self.network.one_way_ns, self._chunk_ns, self._token_ns
        lane: list[ClientEvent] = []
        append = lane.append
        at_ns = began_ns
        chunks = sent_tokens = 0
        for attempt, tokens, last in batch:
            if attempt.direct and last is None:
                if attempt.gone:
                    continue
                at_ns += chunk_ns + token_ns * tokens
                attempt.written_tokens += tokens
                chunks += 1
                sent_tokens += tokens
                append(ClientEvent(at_ns + one_way_ns, attempt.request_id, "chunk", None, tokens))
            elif not attempt.gone:
                at_ns += token_ns * tokens + (0 if attempt.at_once and last is None else chunk_ns)
                self._give(at_ns, attempt, tokens, last, lane)
        self.network.count_chunks(chunks, sent_tokens)
        loop.process.account(began_ns, at_ns, at_ns - began_ns)
        self._post(loop, lane)
        return at_ns

    def _post(self, loop: EventLoop, lane: list[ClientEvent]) -> None:
        if not lane:
            return
        floor_ns = self._last_lane_ns[loop.index]
        if lane[0].t_ns < floor_ns:  # the round trip has become shorter; nothing overtakes
            for event in lane:
                event.t_ns = max(event.t_ns, floor_ns)
        self._last_lane_ns[loop.index] = lane[-1].t_ns
        self._lanes[loop.index].append(lane)

    def _give(self, t_ns: int, attempt: Attempt, tokens: int, last: Sequence | None, lane: list[ClientEvent]) -> None:
        """Tokens of one request have been written at t_ns, or counted, where nothing is written before the end."""
        request = attempt.request
        if last is not None and last.failed:
            self._outside.schedule(t_ns, partial(self._engine_gave_up, attempt))
            return
        tokens = min(tokens, attempt.output_tokens - attempt.written_tokens)
        attempt.written_tokens += tokens
        events: list[ClientEvent] = []
        if tokens and not attempt.at_once:
            if not attempt.answered and not self._outside.holds_back:
                if not request.headers_sent:
                    request.headers_sent = True
                    events.append(self._headers(t_ns, request))
                attempt.direct = self._direct and request.seen_ns <= t_ns + self.network.one_way_ns
            attempt.answered = True
            events.append(ClientEvent(t_ns, request.request_id, "chunk", None, tokens))
        if last is not None:
            attempt.parts_left -= 1
            if attempt.parts_left == 0:
                self._finish(t_ns, attempt, last, events)
        if not events:
            return
        if self._outside.holds_back and request.stream and last is None:
            request.held += events
        elif attempt.direct:
            self.network.count_chunks(1, tokens)
            for event in events:
                event.t_ns += self.network.one_way_ns
            lane += events
            if last is not None:
                self._outside.outbox.note_end(events[-1].t_ns)
        else:
            written = tokens if last is None else sum(event.tokens for event in events)
            size_bytes = sum(event.kind == "chunk" for event in events) * CHUNK_BYTES + written * BYTES_PER_TOKEN
            self._outside.send(request, t_ns, events, size_bytes)

    def _finish(self, t_ns: int, attempt: Attempt, last: Sequence, events: list[ClientEvent]) -> None:
        """Adds what the client sees with the last chunk."""
        request = attempt.request
        before: list[ClientEvent] = []
        attempt.answered = True
        if not request.headers_sent:
            before.append(self._headers(t_ns, request))
            request.headers_sent = True
        before += request.held
        request.held = []
        if attempt.at_once and request.max_output_tokens:
            before.append(ClientEvent(t_ns, request.request_id, "chunk", None, attempt.written_tokens))
        events[:0] = before
        prompt_tokens = attempt.prompt_tokens + sum(request.details.extra_prompts)
        output_tokens = attempt.written_tokens if request.max_output_tokens else 0
        events.append(
            ClientEvent(t_ns, request.request_id, "end", None, 0, last.finish_reason, prompt_tokens, output_tokens)
        )
        self._outside.schedule(t_ns, partial(self._leave, attempt, HTTP_OK))

    def _headers(self, t_ns: int, request: Request) -> ClientEvent:
        return ClientEvent(t_ns, request.request_id, "headers", HTTP_OK, connected_ns=request.connected_ns)

    def _send_headers(self, t_ns: int, attempt: Attempt) -> None:
        request = attempt.request
        request.headers_sent = True
        self._outside.send(request, t_ns, [self._headers(t_ns, request)], HEAD_BYTES)

    def _answer_short(self, t_ns: int, attempt: Attempt, status: int) -> None:
        """An answer without the engine."""
        request = attempt.request
        self._outside.send(
            request,
            t_ns,
            [
                ClientEvent(t_ns, request.request_id, "headers", status, connected_ns=request.connected_ns),
                ClientEvent(t_ns, request.request_id, "end"),
            ],
            HEAD_BYTES,
        )
        self._leave(attempt, status, t_ns)

    # Leaving

    def _leave(self, attempt: Attempt, status: int, t_ns: int) -> None:
        """The last byte has been written."""
        if attempt.gone:
            return
        assert self.group is not None
        duration_s = (t_ns - attempt.began_ns) / NS_PER_S
        details = attempt.request.details
        self.group.engines[0].metrics.count_http(details.path, "POST", status, duration_s, details.body_bytes)
        self._drop(t_ns, attempt)
        self._outside.left(t_ns, attempt)

    def abandon(self, t_ns: int, attempt: Attempt) -> None:
        """The client or the gateway has given up; what was computed is thrown away."""
        if attempt.gone:
            return
        if self.group is not None:
            for part in attempt.parts:
                if self._part_of.pop(part, None) is not None:
                    self.group.abort(t_ns, part)
        self._drop(t_ns, attempt)

    def _drop(self, t_ns: int, attempt: Attempt) -> None:
        attempt.gone = True
        self.live.pop(attempt, None)
        process = attempt.loop.process
        leak_bytes = self.params.host.rss_leak_bytes_per_request
        if leak_bytes:
            process.rss_bytes += leak_bytes
            self.host.note_memory()
            if self.host.out_of_memory:
                self._outside.schedule(t_ns, self._out_of_memory)
        if attempt.has_thread:
            self._threads[attempt.loop.index].leave()
            self._admit_threads(t_ns, attempt.loop.index)

    def _out_of_memory(self, t_ns: int) -> None:
        if self.up and self.host.out_of_memory:
            self._outside.out_of_memory(t_ns, self)

    def _admit_threads(self, t_ns: int, index: int) -> None:
        threads = self._threads[index]
        while (attempt := threads.admit()) is not None:
            if attempt.gone:
                threads.leave()
            else:
                self._parse_later(t_ns, attempt)

    def _engine_gave_up(self, attempt: Attempt, t_ns: int) -> None:
        if not attempt.gone:
            self.abandon(t_ns, attempt)
            self._outside.broken(t_ns, attempt)

    # Looking at it

    def process_reading(self, t_ns: int, index: int = 0) -> ProcessReading:
        """Its API process `index`; one that is down has used nothing."""
        if index >= len(self._loops) or not self.up:
            return ProcessReading("api-0", 0.0, 0.0, 0.0, 0, self.params.host.nofile, 0, t_ns / NS_PER_S)
        process = self._loops[index].process
        cpu_s = process.cpu_ns(t_ns) / NS_PER_S
        self.network.established(t_ns)
        connections = self.network.open_files[index]
        return ProcessReading(
            name=process.name,
            cpu_s_total=cpu_s,
            thread_cpu_max_s_total=cpu_s,
            rss_bytes=process.rss_bytes + RSS_PER_CONNECTION_BYTES * connections,
            open_fds=LISTENING_FILES + connections,
            max_fds=self.params.host.nofile,
            threads=1 + min(self._threads[index].inside, self.params.front.thread_pool_threads or 0),
            started_s=process.started_ns / NS_PER_S,
        )

    def state(self, t_ns: int) -> ReplicaState:
        self.network.established(t_ns)
        files = [LISTENING_FILES + connections for connections in self.network.open_files]
        host = self.host.reading(t_ns, files)
        if self.up:
            api = [self.process_reading(t_ns, index) for index in range(len(self._loops))]
            host = msgspec.structs.replace(host, processes=[*api, *host.processes[len(api) :]])
        engines = self.group.states(t_ns / NS_PER_S) if self.group is not None else []
        gpus = [gpu for accelerator in self._accelerators for gpu in accelerator.reading(t_ns / NS_PER_S)]
        return ReplicaState(engines, gpus, host, self.up)


Written = tuple[Attempt, int, Sequence | None]
"""Whose tokens, how many, and the sequence if these were its last."""


def refusal_events(request: Request, t_ns: int, refusal: Refusal) -> list[ClientEvent]:
    return [
        ClientEvent(
            t_ns,
            request.request_id,
            "headers",
            refusal.status,
            retry_after_s=refusal.retry_after_s,
            error=refusal.message,
            connected_ns=request.connected_ns,
        ),
        ClientEvent(t_ns, request.request_id, "end"),
    ]


def _busy_until(process: Process) -> int:
    return process.busy_until_ns


def _lognormal(draw: random.Random, mean: float, cv: float) -> float:
    """A draw with this mean and coefficient of variation."""
    if cv <= 0:
        return mean
    sigma2 = math.log1p(cv * cv)
    return mean * math.exp(draw.gauss(0.0, math.sqrt(sigma2)) - sigma2 / 2)
