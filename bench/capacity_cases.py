"""Services whose capacity is searched for: drawn by a seeded generator, half of them for tuning, half held out.

Not a list that somebody chose: a family says what gives way (slots, KV pool, prefill, a token bucket ...), the
generator draws sizes, GPU, model, lengths, noise, drift and SLOs. A case that can't be (a model that does not fit, an
SLO that the idle service misses, a capacity outside of CAPACITY_RANGE_RPS) is drawn again by capacity_truth.py.
"""

import math
import random
from typing import Any

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.service import ClientEvent, VirtualService
from pinchpoint.plan import Plan, build_plan

GENERATOR_SEED = 20_250_301
CASES_PER_FAMILY = 4
CAPACITY_RANGE_RPS = (2.5, 30.0)
"""Below, five minutes hold too few requests for any method; above, a simulated minute takes too long."""
DRIFT_UPDATE_S = 1.0
"""A drifting service changes its speed so often."""

MODELS = (("A100", "llama-3-8b", 1), ("L40S", "qwen2.5-7b", 1), ("H100", "llama-3-8b", 1), ("H100", "llama-3-70b", 4))


class Drift(msgspec.Struct, frozen=True):
    """Step time over its nominal value. ramp_ratio: by how much it grows from the begin of the search to its end,
    around 1 in its middle. wave_ratio, wave_period_s: a sine on top."""

    ramp_ratio: float = 0.0
    wave_ratio: float = 0.0
    wave_period_s: float = 60.0

    def factor(self, t_s: float, over_s: float) -> float:
        ramp = self.ramp_ratio * (min(t_s / over_s, 1.0) - 0.5)
        return 1 + ramp + self.wave_ratio * math.sin(2 * math.pi * t_s / self.wave_period_s)


class Case(msgspec.Struct, frozen=True):
    """One service with its workload and SLO factors (times the latency of the idle service)."""

    name: str
    family: str
    half: str
    """tuning or held-out."""
    params: dict[str, Any]
    input_tokens: int
    output_tokens: int
    ttft_factor: float | None
    tpot_factor: float | None
    e2e_factor: float | None
    percentile: int
    seed: int
    drift: Drift = Drift()

    def lab(self) -> LabParams:
        return LabParams(**self.params)

    def plan(self, slos: tuple[str, ...], seed: int, **more: Any) -> Plan:
        workload = {"preset": "chat", "input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return build_plan({"url": "http://lab.invalid", "seed": seed, "slos": slos, "workload": workload, **more})


class DriftingService(VirtualService):
    """A service whose steps take longer or shorter as time goes by. drift_over_s: length of the ramp."""

    drift: Drift = Drift()
    drift_over_s: float = 300.0

    def __init__(self, params: LabParams, seed: int) -> None:
        super().__init__(params, seed)
        self._nominal = params
        self._next_change_ns = 0

    def advance(self, to_ns: int) -> list[ClientEvent]:
        events: list[ClientEvent] = []
        while self._next_change_ns <= to_ns:
            at_ns = self._next_change_ns
            events += super().advance(at_ns)
            factor = self.drift.factor(at_ns / NS_PER_S, self.drift_over_s)
            self.change(at_ns, slowed(self._nominal, factor))
            self._next_change_ns += round(DRIFT_UPDATE_S * NS_PER_S)
        return events + super().advance(to_ns)


def slowed(params: LabParams, factor: float) -> LabParams:
    """The same service with every part of a step taking `factor` times as long."""
    return msgspec.structs.replace(
        params,
        compute_efficiency_ratio=params.compute_efficiency_ratio / factor,
        weight_bandwidth_efficiency_ratio=params.weight_bandwidth_efficiency_ratio / factor,
        kv_bandwidth_efficiency_ratio=params.kv_bandwidth_efficiency_ratio / factor,
        step_overhead_s=params.step_overhead_s * factor,
        sequence_overhead_s=params.sequence_overhead_s * factor,
    )


def service_class(drift: Drift, over_s: float) -> type[VirtualService]:
    """VirtualService, or one that drifts so."""
    if drift == Drift():
        return VirtualService
    return type("DriftingService", (DriftingService,), {"drift": drift, "drift_over_s": over_s})


def _log(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _whole(rng: random.Random, low: float, high: float) -> int:
    return round(_log(rng, low, high))


def _slots(rng: random.Random) -> dict[str, Any]:
    return {"max_num_seqs": _whole(rng, 4, 40)}


def _preemption(rng: random.Random) -> dict[str, Any]:
    return {"kv_blocks": _whole(rng, 200, 700), "admission": "optimistic"}


def _reservation(rng: random.Random) -> dict[str, Any]:
    return {"kv_blocks": _whole(rng, 200, 700), "admission": "reserve_full"}


def _prefill(rng: random.Random) -> dict[str, Any]:
    return {"compute_efficiency_ratio": 0.7 / _log(rng, 3, 8)}


def _decode(rng: random.Random) -> dict[str, Any]:
    return {
        "kv_reads_per_token": 4.0,
        "weight_bandwidth_efficiency_ratio": 0.8 * rng.uniform(0.5, 0.9),
        "kv_bandwidth_efficiency_ratio": 0.8 * rng.uniform(0.1, 0.3),
    }


def _api(rng: random.Random) -> dict[str, Any]:
    return {"api_request_s": _log(rng, 0.02, 0.09), "api_chunk_s": _log(rng, 0.1e-3, 0.4e-3)}


def _bucket(rng: random.Random) -> dict[str, Any]:
    return {"rate_limit_rps": _log(rng, 3.5, 14), "rate_limit_burst_requests": float(_whole(rng, 4, 40))}


def _refusing(rng: random.Random) -> dict[str, Any]:
    return {"in_flight_limit": _whole(rng, 8, 40)}


def _physics(rng: random.Random) -> dict[str, Any]:
    return {}


def _noisy(rng: random.Random) -> dict[str, Any]:
    return {"max_num_seqs": _whole(rng, 6, 32), "step_noise_ratio": rng.uniform(0.15, 0.4)}


FAMILIES = {
    "slots": _slots,
    "preemption": _preemption,
    "reservation": _reservation,
    "prefill": _prefill,
    "decode": _decode,
    "api": _api,
    "token-bucket": _bucket,
    "in-flight-limit": _refusing,
    "gpu": _physics,
    "gpu-2": _physics,
    "noise": _noisy,
    "ramp": _slots,
    "wave": _slots,
}


def drawn(family: str, index: int, attempt: int) -> Case:
    """Case `index` of a family; another one for each attempt."""
    rng = random.Random(f"{GENERATOR_SEED} {family} {index} {attempt}")
    gpu, model, ways = rng.choice(MODELS)
    params: dict[str, Any] = {"gpu": gpu, "model": model, "tensor_parallel": ways, **FAMILIES[family](rng)}
    if "step_noise_ratio" not in params:
        params["step_noise_ratio"] = rng.choice((0.0, 0.03, 0.1))
    long_prompts = family == "prefill" or rng.random() < 0.3
    drift = Drift()
    if family == "ramp":
        drift = Drift(ramp_ratio=rng.choice((-1, 1)) * rng.uniform(0.06, 0.15))
    if family == "wave":
        drift = Drift(wave_ratio=rng.uniform(0.05, 0.15), wave_period_s=_log(rng, 20, 90))
    shape = rng.random()
    return Case(
        name=f"{family}/{index}",
        family=family,
        half=("tuning", "held-out")[_half(family, index)],
        params=params,
        input_tokens=_whole(rng, 500, 1500) if long_prompts else _whole(rng, 60, 500),
        output_tokens=_whole(rng, 16, 64) if long_prompts else _whole(rng, 32, 200),
        ttft_factor=_log(rng, 3, 12) if shape < 0.8 else None,
        tpot_factor=rng.uniform(1.5, 3) if shape < 0.7 else None,
        e2e_factor=rng.uniform(1.5, 3) if shape >= 0.7 else None,
        percentile=rng.choice((90, 95, 95, 95, 99)),
        seed=rng.randrange(1 << 30),
        drift=drift,
    )


def _half(family: str, index: int) -> int:
    order = list(range(CASES_PER_FAMILY))
    random.Random(f"{GENERATOR_SEED} {family} halves").shuffle(order)
    return order.index(index) % 2
