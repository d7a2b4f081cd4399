"""Chat traffic and what a client makes of the answers, for the tests of the virtual service."""

from dataclasses import dataclass, field

import numpy as np

from pinchpoint.lab.params import LabParams
from pinchpoint.lab.service import ClientEvent, VirtualService

NS_PER_S = 1_000_000_000


@dataclass
class Outcome:
    service: VirtualService
    duration_s: float
    sent_ns: dict[int, int] = field(default_factory=dict)
    output_tokens: dict[int, int] = field(default_factory=dict)
    events: list[ClientEvent] = field(default_factory=list)

    def by_request(self) -> dict[int, list[ClientEvent]]:
        grouped: dict[int, list[ClientEvent]] = {}
        for event in self.events:
            if event.kind != "null":
                grouped.setdefault(event.request_id, []).append(event)
        return grouped

    def ttft_s(self) -> np.ndarray:
        first: dict[int, int] = {}
        for event in self.events:
            if event.kind == "chunk":
                first.setdefault(event.request_id, event.t_ns)
        return np.array([(t - self.sent_ns[i]) / NS_PER_S for i, t in first.items()])

    def tpot_s(self) -> np.ndarray:
        values = []
        for events in self.by_request().values():
            times = [e.t_ns for e in events if e.kind == "chunk"]
            if len(times) > 1:
                values.append((times[-1] - times[0]) / NS_PER_S / (len(times) - 1))
        return np.array(values)

    def null_s(self) -> np.ndarray:
        return np.array([e.latency_s for e in self.events if e.kind == "null"])

    def rejected(self) -> int:
        return sum(e.kind == "headers" and e.status in (429, 503) for e in self.events)


def chat_run(params: LabParams, rate_rps: float, duration_s: float, *, seed: int = 1, drain: bool = True) -> Outcome:
    """Poisson arrivals, log-normal lengths around 256 and 128 tokens, /health twice a second."""
    rng = np.random.default_rng(seed)
    outcome = Outcome(VirtualService(params, seed), duration_s)
    t_s, request_id = 0.0, 0
    while (t_s := t_s + rng.exponential(1 / rate_rps)) < duration_s:
        prompt = int(np.clip(268 * rng.lognormal(0, 0.4), 16, 2000))
        output = int(np.clip(128 * rng.lognormal(0, 0.4), 2, 800))
        outcome.sent_ns[request_id] = int(t_s * NS_PER_S)
        outcome.output_tokens[request_id] = output
        outcome.service.submit(outcome.sent_ns[request_id], request_id, prompt, output)
        request_id += 1
    for index in range(int(2 * duration_s)):
        outcome.service.null_request(index * NS_PER_S // 2)
    outcome.events = outcome.service.advance(int(duration_s * NS_PER_S))
    if drain:
        outcome.events += outcome.service.advance(int(100 * duration_s * NS_PER_S))
    return outcome
