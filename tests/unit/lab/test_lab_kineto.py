"""Traces that the lab writes: their form is that of real captures, their times are those of the simulated steps."""

import gzip
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.lab.cost import CostModel
from pinchpoint.lab.kineto import LAUNCH_TO_START_S, StepRecord, encode, trace
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.work import StepWork

US = 1e6
ROUNDING_US = 0.002
"""Instants and durations have three decimals."""

DECODE = StepWork(tokens=32, sequences=32, attention_pairs=32 * 500.0, kv_tokens=32 * 500, sampled_rows=32)
PREFILL = StepWork(
    tokens=1024, sequences=2, attention_pairs=1024 * 512.0, kv_tokens=1024, prefill_tokens=1024, sampled_rows=2
)


def record(params: LabParams, work: StepWork, start_s: float = 1.0, stretch: float = 1.0) -> StepRecord:
    cost = CostModel(params).step(work)
    return StepRecord(start_s, cost.total_s * stretch, work, cost)


def made(params: LabParams, *steps: StepRecord) -> dict[str, Any]:
    end_s = max((step.start_s + step.duration_s for step in steps), default=1.0) + 0.5
    content = trace(list(steps), params, origin_unix_ns=1_790_000_000 * 10**9, pid=4242, window_s=(0.5, end_s))
    return json.loads(gzip.decompress(encode(content)))


def on_gpu(content: dict[str, Any]) -> list[dict[str, Any]]:
    events = [e for e in content["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy")]
    return sorted(events, key=lambda e: e["ts"])


PARAMS = st.builds(
    LabParams,
    gpu=st.sampled_from(["A100", "H100", "L40S", "910B2"]),
    model=st.sampled_from(["llama-3-8b", "mixtral-8x7b", "llama-3-70b"]),
    tensor_parallel=st.sampled_from([4, 8]),
    cuda_graphs=st.booleans(),
    kernel_launch_s=st.sampled_from([7e-6, 60e-6]),
    cast_passes=st.sampled_from([0.0, 1.0]),
    dialect=st.sampled_from(["vllm", "sglang"]),
)


@settings(max_examples=25, deadline=None)
@given(PARAMS, st.sampled_from([DECODE, PREFILL]), st.floats(0.9, 1.5))
def test_kernels_take_the_time_of_the_step_one_after_the_other_and_inside_it(
    params: LabParams, work: StepWork, stretch: float
) -> None:
    step = record(params, work, stretch=stretch)
    content = made(params, step)
    kernels = on_gpu(content)
    (annotation,) = [e for e in content["traceEvents"] if e.get("cat") == "user_annotation"]
    total_us = sum(e["dur"] for e in kernels)
    assert total_us == pytest.approx(step.cost.busy_s * stretch * US, abs=ROUNDING_US * len(kernels))
    for before, after in itertools.pairwise(kernels):
        assert before["ts"] + before["dur"] <= after["ts"] + 2 * ROUNDING_US
    assert annotation["dur"] == pytest.approx(step.duration_s * US, abs=ROUNDING_US)
    assert annotation["ts"] <= kernels[0]["ts"]
    slack_us = ROUNDING_US * len(kernels)
    assert kernels[-1]["ts"] + kernels[-1]["dur"] <= annotation["ts"] + annotation["dur"] + slack_us
    # Before the first kernel the GPU waits for the host, and between kernels for their launches.
    lead_us = (step.cost.host_s + step.cost.compile_s) * stretch * US
    assert kernels[0]["ts"] - annotation["ts"] == pytest.approx(lead_us, abs=2 * ROUNDING_US)


@settings(max_examples=25, deadline=None)
@given(PARAMS, st.sampled_from([DECODE, PREFILL]))
def test_every_kernel_was_launched_before_it_began_and_is_joined_to_its_launch(
    params: LabParams, work: StepWork
) -> None:
    content = made(params, record(params, work))
    events = content["traceEvents"]
    launches = {e["args"]["correlation"]: e for e in events if e.get("cat") == "cuda_runtime"}
    begins = {e["id"] for e in events if e.get("cat") == "ac2g" and e["ph"] == "s"}
    assert begins == set(launches)
    for kernel in on_gpu(content):
        launch = launches[kernel["args"]["correlation"]]
        assert launch["ts"] <= kernel["ts"] - LAUNCH_TO_START_S * US + 2 * ROUNDING_US
    operators = [e["args"]["External id"] for e in events if e.get("cat") in ("cpu_op", "user_annotation")]
    assert len(operators) == len(set(operators))


def test_a_replayed_graph_is_one_launch_and_its_kernels_have_nodes() -> None:
    content = made(LabParams(), record(LabParams(), DECODE))
    launches = [e["name"] for e in content["traceEvents"] if e.get("cat") == "cuda_runtime"]
    assert launches == ["cudaGraphLaunch"]
    nodes = [e["args"]["graph node id"] for e in on_gpu(content)]
    assert nodes == list(range(len(nodes)))
    assert not [e for e in content["traceEvents"] if e.get("cat") == "cpu_op"]


def test_without_graphs_every_kernel_is_launched_and_a_slow_host_leaves_gaps() -> None:
    eager = LabParams(cuda_graphs=False)
    content = made(eager, record(eager, DECODE))
    names = {e["name"] for e in content["traceEvents"] if e.get("cat") == "cuda_runtime"}
    assert names == {"cudaLaunchKernel"}
    slow = LabParams(cuda_graphs=False, kernel_launch_s=100e-6)
    step = record(slow, DECODE)
    assert step.cost.launch_s > 0
    kernels = on_gpu(made(slow, step))
    idle_us = sum(b["ts"] - a["ts"] - a["dur"] for a, b in itertools.pairwise(kernels))
    assert idle_us == pytest.approx(step.cost.launch_s * US, rel=1e-3)


def names(params: LabParams, work: StepWork) -> str:
    return " ".join(e["name"] for e in on_gpu(made(params, record(params, work))))


def test_kernels_are_named_as_profiles_of_real_engines_name_them() -> None:
    plain = names(LabParams(), DECODE)
    assert "flash_fwd_splitkv" in plain and "reshape_and_cache" in plain and "rms_norm" in plain
    assert "ampere_bf16" in plain and "nvjet" in names(LabParams(gpu="H100"), DECODE)
    assert "flash_fwd_kernel" in names(LabParams(), PREFILL)
    assert "reduce" not in plain.replace("reduce_kernel", "")
    assert "cross_device_reduce_1stage" in names(LabParams(tensor_parallel=2), DECODE)
    assert "cross_device_reduce_2stage" in names(LabParams(tensor_parallel=2), PREFILL)
    assert "ncclDevKernel_AllReduce" in names(LabParams(gpu="L40S", tensor_parallel=2), DECODE)
    assert "BatchDecodeWithPagedKVCache" in names(LabParams(dialect="sglang"), DECODE)
    experts = LabParams(model="mixtral-8x7b", tensor_parallel=2)
    assert "fused_moe" in names(experts, DECODE) and "topkGating" in names(experts, DECODE)
    spread = LabParams(model="mixtral-8x7b", tensor_parallel=2, expert_parallel=True)
    assert "ncclDevKernel_SendRecv" in names(spread, DECODE)
    assert "direct_copy_kernel" in names(LabParams(cast_passes=2.0), DECODE)
    assert "RadixSort" in names(LabParams(sampling_s_per_sequence=1e-4), DECODE)
    assert "Memcpy HtoD" in names(LabParams().changed({"lora.adapters": 2}), _loading())


def _loading() -> StepWork:
    return StepWork(
        **{**{f: getattr(DECODE, f) for f in DECODE.__struct_fields__}, "adapters": 1, "loaded_adapters": 1}
    )


def test_a_trace_has_the_head_and_the_threads_of_a_real_one() -> None:
    content = made(LabParams(tensor_parallel=2), record(LabParams(tensor_parallel=2), DECODE))
    assert content["schemaVersion"] == 1
    (device,) = content["deviceProperties"]
    assert (device["name"], device["numSms"], device["computeMajor"]) == ("NVIDIA A100-SXM4-80GB", 108, 8)
    assert content["distributedInfo"]["world_size"] == 2
    kernel = on_gpu(content)[0]
    assert {"device", "context", "stream", "correlation", "grid", "block", "est. achieved occupancy %"} <= set(
        kernel["args"]
    )
    threads = [e["args"]["name"] for e in content["traceEvents"] if e["name"] == "thread_name"]
    assert threads == ["thread 4242", f"stream {kernel['tid']}"]
    (span,) = [e for e in content["traceEvents"] if e.get("cat") == "Trace"]
    assert span["ts"] <= kernel["ts"] <= span["ts"] + span["dur"]


def test_a_trace_of_nothing_is_a_trace() -> None:
    assert on_gpu(made(LabParams())) == []
