"""Prefill and decode apart: where a request is, and when its KV travels from one engine to the other.

A request first computes its prompt on a prefill engine, which keeps the blocks. It then waits at a decode engine until
that has blocks for the prompt; only then the KV starts its way, one prompt after the other over one link. The prefill
engine's blocks come free when the KV has arrived. The decode engine computes the last prompt token itself, so the first
token comes from there (vLLM's way with a pulling connector).
"""

import heapq

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.engine import Engine
from pinchpoint.lab.params import Disaggregation
from pinchpoint.lab.sequence import EngineRequest


class KvLink:
    """The link between the engines: first in, first out."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self._free_s = 0.0

    def send(self, now_s: float, size_bytes: float) -> float:
        """Returns when the last byte has arrived."""
        self._free_s = max(self._free_s, now_s) + size_bytes / self.bytes_per_s
        return self._free_s + self.latency_s


class Handover(msgspec.Struct, gc=False):
    """A request between the two kinds of engines. decode: None while its prompt is being computed."""

    request: EngineRequest
    prefill: int
    decode: int | None = None


class PrefillDecode:
    """Which engine holds which request. engines: the prefill engines first, then those that decode."""

    def __init__(self, settings: Disaggregation, engines: list[Engine]) -> None:
        self.prefill_engines = settings.prefill_engines
        self.link = KvLink(settings.transfer_bytes_per_s, settings.transfer_latency_s)
        self._engines = engines
        self._requests: dict[int, Handover] = {}
        self._arrivals: list[tuple[int, int]] = []
        """(instant in ns, request_id) at which KV arrives and the prefill engine's blocks come free."""

    @property
    def next_ns(self) -> int | None:
        return self._arrivals[0][0] if self._arrivals else None

    def change(self, settings: Disaggregation) -> None:
        """The link as it is now; transfers under way keep their time."""
        self.link.bytes_per_s = settings.transfer_bytes_per_s
        self.link.latency_s = settings.transfer_latency_s

    def prompt_part(self, request: EngineRequest, prefill: int) -> EngineRequest:
        """What the prefill engine computes: the prompt, whose end yields one token that nobody sees."""
        self._requests[request.request_id] = Handover(request, prefill)
        return msgspec.structs.replace(request, max_output_tokens=1, finish_reason="length")

    def answer_part(self, request_id: int, decode: int) -> EngineRequest:
        """What the decode engine computes: the request itself, with KV that must be fetched."""
        handover = self._requests[request_id]
        handover.decode = decode
        request = handover.request
        engine = self._engines[decode]

        def fetch_kv(now_s: float) -> float:
            size_bytes = request.prompt_tokens * engine.params.kv_bytes_per_token
            done_s = self.link.send(now_s, size_bytes)
            engine.metrics.count_transfer(done_s - now_s, size_bytes)
            heapq.heappush(self._arrivals, (round(done_s * NS_PER_S), request_id))
            return done_s

        return msgspec.structs.replace(request, fetch_kv=fetch_kv)

    def arrive(self, to_ns: int) -> list[int]:
        """Frees the blocks of the prompts whose KV has arrived; returns the prefill engines concerned."""
        freed: list[int] = []
        while self._arrivals and self._arrivals[0][0] <= to_ns:
            _, request_id = heapq.heappop(self._arrivals)
            handover = self._requests.get(request_id)
            if handover is not None and self._engines[handover.prefill].let_go(request_id):
                freed.append(handover.prefill)
        return freed

    def of(self, request_id: int) -> EngineRequest:
        """The request as it came, while it is in one of the engines."""
        return self._requests[request_id].request

    def end(self, request_id: int) -> int | None:
        """The request is over; blocks still kept for it come free, and their engine is returned."""
        handover = self._requests.pop(request_id, None)
        if handover is None or not self._engines[handover.prefill].let_go(request_id):
            return None
        return handover.prefill

    def forget(self) -> None:
        self._requests.clear()
        self._arrivals.clear()
