"""The published measurements beside this file, as records. What they are and where they come from: data/README.md."""

import csv
from pathlib import Path
from typing import TypeVar

import msgspec

DATA = Path(__file__).parent / "data"


class ServingPoint(msgspec.Struct, frozen=True):
    """One level of a closed loop on a real service. Mean times."""

    engine: str
    version: str
    gpu: str
    model: str
    precision: str
    tensor_parallel: int
    expert_parallel: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float


class PromptAndToken(msgspec.Struct, frozen=True):
    """One batch that starts together, alone on the GPUs: medians over `runs` repeats."""

    gpu: str
    tensor_parallel: int
    prompt_tokens: int
    batch: int
    output_tokens: int
    runs: int
    prompt_ms: float
    token_ms: float
    mean_power_ratio: float
    peak_power_ratio: float


class BatchLatency(msgspec.Struct, frozen=True):
    """One batch that starts together: time until its last answer is complete."""

    gpu: str
    tensor_parallel: int
    engine: str
    model: str
    prompt_and_output_tokens: int
    batch: int
    latency_s: float
    tokens_per_s: float


class RateStage(msgspec.Struct, frozen=True):
    """One stage of an open-loop sweep."""

    configuration: str
    stage: int
    requested_rps: float
    sent_rps: float
    finished_rps: float
    requests: int
    prompt_tokens: float
    output_tokens: float
    ttft_mean_s: float
    ttft_median_s: float
    latency_mean_s: float
    latency_median_s: float
    latency_p99_s: float


class RunRequest(msgspec.Struct, frozen=True):
    """One request of a real run. Times but queued_s count from the moment it entered the engine's line."""

    prompt_tokens: int
    output_tokens: int
    queued_s: float
    wait_s: float
    first_token_s: float
    last_token_s: float


class RunState(msgspec.Struct, frozen=True):
    """The engine's scheduler, once a second."""

    t: float
    prompt_throughput: float
    gen_throughput: float
    running: int
    waiting: int
    kv_cache_pct: float


class LlamaRequest(msgspec.Struct, frozen=True):
    """One request to llama.cpp on the machine this was measured on."""

    slots: int
    concurrency: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    sent_s: float
    ttft_s: float
    tpot_s: float
    latency_s: float


Record = TypeVar("Record", bound=msgspec.Struct)


def read(kind: type[Record], name: str) -> list[Record]:
    """Rows of data/NAME, whose columns are the fields of `kind`."""
    with (DATA / name).open(newline="") as file:
        return msgspec.convert(list(csv.DictReader(file)), list[kind], strict=False)
