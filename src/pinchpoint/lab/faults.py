"""The faults the lab can have, each a change of mechanism with the signature textbooks give it.

A table, not code: a fault sets or scales fields of LabParams. `expected_rule` is the label a test compares with; the
lab itself never imports a rule. Values are chosen for chat traffic (about 256 prompt and 128 output tokens) on the
default service, so that the fault gives way first at a few requests per second.
"""

import random
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.params import LabParams
from pinchpoint.model import Layer

RANDOM = "random"


class Fault(msgspec.Struct, frozen=True):
    """set: fields that take this value. scale: fields that are multiplied by this factor, on any GPU and model."""

    name: str
    layer: Layer
    physics: str
    expected_rule: str | None
    """Code of the rule that should name it; None for the healthy service."""
    signature: str
    indicator: str
    """What a paired run must show to have moved, see tests."""
    set: Mapping[str, object] = {}
    scale: Mapping[str, float] = {}

    @property
    def knobs(self) -> tuple[str, ...]:
        return (*self.set, *self.scale)

    def apply(self, params: LabParams) -> LabParams:
        scaled = {field: getattr(params, field) * factor for field, factor in self.scale.items()}
        changed = msgspec.structs.replace(params, **self.set, **scaled)
        changed.validate()
        return changed


_ALL = (
    Fault(
        name="none",
        layer="none",
        physics="A healthy service: its limit is what the GPU can compute.",
        expected_rule=None,
        signature="no queue, no preemption, latency flat until prefill and decode fill the steps",
        indicator="",
    ),
    Fault(
        name="slot-cap",
        layer="model inference",
        physics="max_num_seqs is far below what the KV pool and the GPU could batch, so requests wait for a slot.",
        expected_rule="SEQ001",
        signature="running flat at the cap, waiting grows, KV pool nearly empty, TTFT explodes, TPOT flat",
        indicator="waiting",
        set={"max_num_seqs": 12},
    ),
    Fault(
        name="kv-exhausted",
        layer="model inference",
        physics="Too few KV blocks for what is admitted: running requests are evicted and computed again.",
        expected_rule="KV001",
        signature="KV pool full, preemptions climb, gaps inside streams, running saw-tooths, goodput falls",
        indicator="preemptions",
        set={"kv_blocks": 280, "admission": "optimistic"},
    ),
    Fault(
        name="kv-admission",
        layer="model inference",
        physics="Too few KV blocks, each request reserves its whole length: new ones wait, running ones are safe.",
        expected_rule="KV002",
        signature="KV pool full, waiting grows, no preemption, running below max_num_seqs, TTFT explodes, TPOT flat",
        indicator="kv_used",
        set={"kv_blocks": 340, "admission": "reserve_full"},
    ),
    Fault(
        name="prefill-bound",
        layer="model inference",
        # A100 data sheet: bf16 without tensor cores is 39 of 312 TFLOP/s, of which plain cores reach about 0.93.
        physics="Matrix products run without tensor cores (a sixth of the rate); memory bandwidth is untouched.",
        expected_rule="PRE001",
        signature="waiting grows with KV pool nearly empty, prefill time large and proportional to prompt tokens",
        indicator="prefill",
        scale={"compute_efficiency_ratio": 1 / 6},
    ),
    Fault(
        name="decode-bound",
        layer="model inference",
        physics=(
            "Memory bandwidth is halved and a fallback attention kernel reads the cache once per query head, "
            "uncoalesced: each decode step pays for every token of every context."
        ),
        expected_rule="DEC001",
        signature="TPOT rises with batch and context while nothing waits; running grows, TTFT modest",
        indicator="tpot",
        set={"kv_reads_per_token": 4.0},
        scale={"weight_bandwidth_efficiency_ratio": 0.6, "kv_bandwidth_efficiency_ratio": 0.12},
    ),
    Fault(
        name="api-bound",
        layer="application",
        physics="One event loop spends tens of ms of CPU on each request and a third of a ms on each chunk.",
        expected_rule="API001",
        signature="/health slows with load, API process at one core, engine running low and nothing waiting in it",
        indicator="null_request",
        set={"api_request_s": 0.05, "api_chunk_s": 0.3e-3},
    ),
    Fault(
        name="rate-limit",
        layer="infrastructure",
        physics="A token bucket in front of the service admits a fixed rate.",
        expected_rule="LIM001",
        signature="HTTP 429 with Retry-After, goodput clamped, engine far from any limit",
        indicator="rejected",
        set={"rate_limit_rps": 6.0, "rate_limit_burst_requests": 10.0},
    ),
    Fault(
        name="admission-limit",
        layer="application",
        physics="The API server refuses requests beyond a fixed number in flight.",
        expected_rule="LIM001",
        signature="HTTP 503, latency of the admitted flat, engine far from any limit",
        indicator="rejected",
        set={"in_flight_limit": 16},
    ),
    Fault(
        name="sse-buffering",
        layer="infrastructure",
        physics="A proxy collects the event stream and hands it on when it is complete.",
        expected_rule="NET001",
        signature="client TTFT equals E2E and grows with output length; the server's own TTFT is normal",
        indicator="client_ttft",
        set={"proxy_buffering": True},
    ),
)

FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}


def choose_fault(name: str, seed: int) -> Fault:
    """The fault called `name`; for "random" one of all, the healthy service among them, fixed by the seed.

    Raises UsageError for a name that is not in the table.
    """
    if name == RANDOM:
        return random.Random(seed).choice(_ALL)
    if name not in FAULTS:
        raise UsageError(f"the lab has no fault {name!r}; choose one of {', '.join(FAULTS)} or {RANDOM}")
    return FAULTS[name]


def write_truth(path: Path, fault: Fault, params: LabParams, seed: int) -> None:
    """Writes what is really wrong as JSON, for whoever scores a diagnosis later.

    Raises UsageError when the file cannot be written.
    """
    truth = {
        "fault": fault.name,
        "expected_rule": fault.expected_rule,
        "layer": fault.layer,
        "physics": fault.physics,
        "knobs": {knob: getattr(params, knob) for knob in fault.knobs},
        "seed": seed,
        "params": msgspec.to_builtins(params),
    }
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(truth)) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write the truth file {path}: {error.strerror}; choose another path") from error
