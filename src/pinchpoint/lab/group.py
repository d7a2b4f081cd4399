"""All engines of one replica behind one interface, whatever their topology.

One engine; several that share the requests (data parallel); several in lock-step (data parallel with experts spread
over all ranks); or prefill and decode engines. Requests go to the engine with the least load. Not here: routers between
replicas, API processes.
"""

import random
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Literal

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.lab.disaggregation import PrefillDecode
from pinchpoint.lab.engine import AcceleratorLike, Engine
from pinchpoint.lab.grammar import Cpu
from pinchpoint.lab.lockstep import LockstepTimeline
from pinchpoint.lab.metrics import EngineState
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.sequence import EngineRequest, Sequence
from pinchpoint.lab.timeline import Timeline

Emit = Callable[[int, list[Sequence]], None]
"""Called with an instant and the requests that got tokens in a step that ended there (`new_tokens`, `finished`), or
that the engine has given up (`failed`, no new tokens)."""


def engine_count(params: LabParams) -> int:
    """How many engines a group of these parameters has, and so how many accelerators it is given."""
    split = params.disaggregation
    return params.data_parallel + (0 if split is None else split.prefill_engines)


class EngineGroup:
    """The engines of one replica along one time axis in ns, which never goes back.

    emit: gets tokens and failures, in time order. accelerators: one per engine (`engine_count`), the prefill engines'
    first; None: nobody looks at the GPUs. cpu: how long CPU time of an engine process takes on its host. Requests that
    name no adapter or schema get one as params.lora and params.grammar say. Deterministic for a seed and a sequence of
    calls.
    """

    def __init__(
        self,
        params: LabParams,
        seed: int,
        emit: Emit,
        accelerators: Items[AcceleratorLike] | None = None,
        cpu: Cpu | None = None,
    ) -> None:
        count = engine_count(params)
        if accelerators is not None and len(accelerators) != count:
            raise ValueError(f"{count} engines were given {len(accelerators)} accelerators")
        self.params = params
        self.engines = [
            Engine(params, seed, None, None if accelerators is None else accelerators[i], cpu, index=i)
            for i in range(count)
        ]
        self._emit = emit
        self._split = PrefillDecode(params.disaggregation, self.engines) if params.disaggregation is not None else None
        self._timelines = self._make_timelines()
        self._engine_of: dict[int, int] = {}
        self._random = random.Random(f"{seed}/requests")

    @property
    def next_ns(self) -> int | None:
        """When something happens by itself next; None when nothing will."""
        if len(self._timelines) == 1:
            return self._timelines[0].next_ns
        instants = [t.next_ns for t in self._timelines if t.next_ns is not None]
        if self._split is not None and self._split.next_ns is not None:
            instants.append(self._split.next_ns)
        return min(instants, default=None)

    @property
    def out_of_memory(self) -> bool:
        """An engine has found no memory: its process is dead, and whoever runs it calls `fail`."""
        return any(engine.out_of_memory for engine in self.engines)

    @property
    def requests(self) -> int:
        """Inside, running and waiting."""
        return len(self._engine_of)

    def advance(self, to_ns: int) -> None:
        """Everything that is due at or before to_ns happens, in time order over all engines."""
        if len(self._timelines) == 1:
            self._timelines[0].advance(to_ns)
            return
        while True:
            t_ns = self.next_ns
            if t_ns is None or t_ns > to_ns:
                return
            if self._split is not None:
                for index in self._split.arrive(t_ns):
                    self._timelines[index].poke(t_ns)
            for timeline in self._timelines:
                if timeline.next_ns is not None and timeline.next_ns <= t_ns:
                    timeline.advance(t_ns)

    def submit(self, t_ns: int, request: EngineRequest) -> None:
        """A request reaches the waiting line of an engine; an idle engine starts at once.

        Raises ValueError for a request that could never finish (longer than params.max_model_len_tokens(), or without
        tokens) and for one that is here already.
        """
        self.advance(t_ns)
        if request.request_id in self._engine_of:
            raise ValueError(f"request {request.request_id} is already in the engine")
        request = self._detailed(request)
        if self._split is None:
            self._put(t_ns, request, self._least_loaded(range(len(self.engines))))
            return
        if request.prompt_tokens + request.max_output_tokens > self.params.max_model_len_tokens():
            raise ValueError(f"request {request.request_id} is longer than the model's context or the whole KV pool")
        index = self._least_loaded(range(self._split.prefill_engines))
        self._put(t_ns, self._split.prompt_part(request, index), index, hold=True)

    def abort(self, t_ns: int, request_id: int) -> bool:
        """The client has gone; False if the request is not here."""
        self.advance(t_ns)
        index = self._engine_of.pop(request_id, None)
        if index is None:
            return False
        self.engines[index].abort(request_id)
        self._timeline(index).poke(t_ns)
        self._end(t_ns, request_id)
        return True

    def change(self, t_ns: int, params: LabParams) -> None:
        """New limits and costs from the next step on. Requests too long for them are emitted as failed.

        Raises UsageError for another topology or block size: that takes a restart.
        """
        if _fixed(params) != _fixed(self.params):
            raise UsageError(
                "data_parallel, expert_parallel, disaggregation and block_size_tokens of a running replica cannot "
                "change; change another parameter, or set these from the start"
            )
        split = params.disaggregation
        self.advance(t_ns)
        self.params = params
        if self._split is not None and split is not None:
            self._split.change(split)
        failed = [s for engine in self.engines for s in engine.change(t_ns / NS_PER_S, params)]
        for timeline in self._timelines:
            timeline.poke(t_ns)
        if failed:
            for sequence in failed:
                self._engine_of.pop(sequence.request_id, None)
                self._end(t_ns, sequence.request_id)
            self._emit(t_ns, failed)

    def fail(self, t_ns: int) -> list[Sequence]:
        """All engines restart, empty and with counters at zero. Returns, and does not emit, the requests that were
        here."""
        self.advance(t_ns)
        lost = [s for engine in self.engines for s in engine.fail(t_ns / NS_PER_S)]
        for timeline in self._timelines:
            timeline.drop_step()
        if self._split is not None:
            self._split.forget()
        self._engine_of.clear()
        return lost

    def states(self, now_s: float) -> list[EngineState]:
        """What pages are made from, one per engine."""
        return [EngineState(self.params, e.metrics, e.gauges(now_s), e.index, self._role(e)) for e in self.engines]

    def _role(self, engine: Engine) -> Literal["unified", "prefill", "decode"]:
        if self._split is None:
            return "unified"
        return "prefill" if engine.index < self._split.prefill_engines else "decode"

    def _make_timelines(self) -> list[Timeline] | list[LockstepTimeline]:
        if _in_lockstep(self.params):
            return [LockstepTimeline(self.engines, self._on_tokens)]
        if self._split is None:
            return [Timeline(engine, self._on_tokens) for engine in self.engines]
        prefill = self._split.prefill_engines
        return [
            Timeline(engine, self._on_prompts if engine.index < prefill else self._on_tokens) for engine in self.engines
        ]

    def _timeline(self, index: int) -> Timeline | LockstepTimeline:
        return self._timelines[index] if len(self._timelines) > 1 else self._timelines[0]

    def _least_loaded(self, indices: range) -> int:
        return min(indices, key=lambda i: self.engines[i].load)

    def _put(self, t_ns: int, request: EngineRequest, index: int, hold: bool = False) -> None:
        engine = self.engines[index]
        engine.submit(t_ns / NS_PER_S, request)
        if hold:
            engine.hold(request.request_id)
        self._engine_of[request.request_id] = index
        self._timeline(index).poke(t_ns)

    def _detailed(self, request: EngineRequest) -> EngineRequest:
        """With adapter and schema, where the parameters spread them over the requests."""
        lora, grammar = self.params.lora, self.params.grammar
        if lora.adapters and request.adapter is None:
            request = msgspec.structs.replace(request, adapter=self._random.randrange(lora.adapters))
        if grammar.share_ratio and request.schema is None and self._random.random() < grammar.share_ratio:
            request = msgspec.structs.replace(request, schema=self._random.randrange(grammar.schemas))
        return request

    def _on_tokens(self, t_ns: int, tokens: list[Sequence]) -> None:
        engine_of = self._engine_of
        for sequence in tokens:
            if sequence.finished:
                del engine_of[sequence.request_id]
                self._end(t_ns, sequence.request_id)
        self._emit(t_ns, tokens)

    def _on_prompts(self, t_ns: int, done: list[Sequence]) -> None:
        """Prompts are computed; their requests go on to the engines that decode."""
        split = self._split
        assert split is not None
        longest = self.params.max_model_len_tokens()
        failed: list[Sequence] = []
        for sequence in done:
            request = split.of(sequence.request_id)
            if request.prompt_tokens + request.max_output_tokens > longest:
                # Limits have become tighter while its prompt was computed.
                sequence.fail()
                del self._engine_of[sequence.request_id]
                self._end(t_ns, sequence.request_id)
                failed.append(sequence)
                continue
            index = self._least_loaded(range(split.prefill_engines, len(self.engines)))
            self._put(t_ns, split.answer_part(sequence.request_id, index), index)
        if failed:
            self._emit(t_ns, failed)

    def _end(self, t_ns: int, request_id: int) -> None:
        if self._split is not None:
            freed = self._split.end(request_id)
            if freed is not None:
                self._timelines[freed].poke(t_ns)


def _in_lockstep(params: LabParams) -> bool:
    return params.expert_parallel and params.data_parallel > 1 and params.disaggregation is None


def _fixed(params: LabParams) -> tuple[object, ...]:
    """What a running group is built on."""
    split = params.disaggregation
    prefill_engines = 0 if split is None else split.prefill_engines
    return params.data_parallel, prefill_engines, _in_lockstep(params), params.block_size_tokens
