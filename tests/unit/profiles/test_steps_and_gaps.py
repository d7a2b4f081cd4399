"""Steps are found, told apart by kind, and each idle gap is put down to what the GPU waited for."""

import pytest
from tests.unit.profiles.captures import launch, span, work, written

from pinchpoint.lab.cost import CostModel
from pinchpoint.lab.kineto import StepRecord, encode, trace
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.work import StepWork
from pinchpoint.profiles import analyse
from pinchpoint.profiles.stepping import shape_of

DECODE = "void vllm::paged_attention_v1_kernel"
GEMM = "nvjet_tst_128x256"


@pytest.mark.parametrize(
    ("name", "kind", "prefill", "decode", "sequences"),
    [
        ("execute_context_1(47)_generation_0(0)", "prefill", 47, 0, 1),
        ("execute_context_3(141)_generation_1(1)", "mixed", 141, 1, 4),
        ("execute_context_0(0)_generation_4(4)", "decode", 0, 4, 4),
        ("execute_context_0(0)_generation_0(0)", "unknown", 0, 0, 0),
        ("execute_32_context_0(sq0sk0sqsq0sqsk0)_generation_32(sq32sk55086sqsq32sqsk55086)", "decode", 0, 32, 32),
        ("step[EXTEND bs=15 toks=15360]", "prefill", 15360, 0, 15),
        ("step[DECODE bs=8 toks=8]", "decode", 0, 8, 8),
        ("step[MIXED bs=3]", "mixed", None, None, 3),
    ],
)
def test_an_engines_name_of_a_step_says_what_it_works_on(name, kind, prefill, decode, sequences):
    shape = shape_of(name)
    assert shape is not None
    assert (shape.kind, shape.prefill_tokens, shape.decode_tokens, shape.sequences) == (
        kind,
        prefill,
        decode,
        sequences,
    )


@pytest.mark.parametrize("name", ["Optimizer.step#SGD.step", "aten::step", "nccl:all_reduce", "## forward ##", ""])
def test_other_ranges_are_no_steps(name):
    assert shape_of(name) is None


def one(events, folder, **around):
    (rank,) = analyse([written(folder, events, **around)]).ranks
    return rank


def kinds(rank):
    return {row.kind: (row.gaps, pytest.approx(row.total_s)) for row in rank.idle}


def test_a_gap_within_a_step_whose_launch_came_late_is_launch_bound_and_one_between_steps_host_bound(tmp_path):
    events = [
        span("execute_context_0(0)_generation_1(1)", 0, 100), launch(0, 5, 1), work(GEMM, 10, 20, call=1),
        launch(50, 5, 2), work(DECODE, 60, 20, call=2),
        span("execute_context_0(0)_generation_1(1)", 500, 100), launch(500, 5, 3), work(GEMM, 510, 20, call=3),
    ]  # fmt: skip
    rank = one(events, tmp_path)
    assert kinds(rank) == {"launch_bound": (1, 30e-6), "host_bound": (1, 430e-6)}
    assert [(step.kind, step.kernels, step.gpu_busy_s) for step in rank.steps] == [
        ("decode", 2, pytest.approx(40e-6)), ("decode", 1, pytest.approx(20e-6))
    ]  # fmt: skip
    assert rank.step_summary[0].period_s == pytest.approx(500e-6)
    gap = rank.largest_gaps[0]
    assert (gap.kind, gap.before, gap.after) == ("host_bound", DECODE, GEMM)


def test_a_gap_before_work_that_was_queued_already_is_the_devices_own(tmp_path):
    events = [launch(0, 5, 1), launch(6, 5, 2), work(GEMM, 10, 20, call=1), work(GEMM, 32, 20, call=2)]
    assert kinds(one(events, tmp_path)) == {"queued": (1, 2e-6)}


def test_a_gap_in_which_the_host_sat_in_a_collective_or_a_copy_is_put_down_to_that(tmp_path):
    events = [
        launch(0, 5, 1), work(GEMM, 10, 20, call=1),
        span("gloo:all_reduce", 30, 900), launch(940, 5, 2), work(GEMM, 950, 50, call=2),
        launch(1000, 800, 3, "cudaMemcpyAsync"), launch(1810, 5, 4), work(GEMM, 1850, 10, call=4),
    ]  # fmt: skip
    assert kinds(one(events, tmp_path)) == {"communication_wait": (1, 920e-6), "data_copy": (1, 850e-6)}


def test_gaps_of_work_that_nothing_links_to_a_launch_are_unknown(tmp_path):
    rank = one([work(GEMM, 0, 10), work(GEMM, 50, 10)], tmp_path)
    assert kinds(rank) == {"unknown": (1, 40e-6)}
    assert "not linked" in rank.notes[0]


def test_busy_time_of_streams_side_by_side_is_a_union(tmp_path):
    rank = one([work(GEMM, 0, 100, stream=1), work(GEMM, 50, 100, stream=2)], tmp_path)
    assert rank.gpu.busy_s == pytest.approx(150e-6)
    (category,) = rank.categories
    assert (category.busy_s, category.total_s) == (pytest.approx(150e-6), pytest.approx(200e-6))


def test_communication_is_hidden_where_compute_runs(tmp_path):
    events = [work(GEMM, 0, 100), work("ncclDevKernel_AllReduce_Sum_bf16", 60, 100, stream=2)]
    rank = one(events, tmp_path)
    assert rank.overlap.hidden_s == pytest.approx(40e-6)
    assert rank.overlap.exposed_s == pytest.approx(60e-6)
    assert rank.gpu.exposed_communication_s == pytest.approx(60e-6)
    assert rank.overlap.by_kind == {"all_reduce": pytest.approx(100e-6)}


def test_one_kernel_for_both_kinds_of_attention_is_told_by_the_step(tmp_path):
    events = []
    for at, name in ((0, "execute_context_1(9)_generation_0(0)"), (100, "execute_context_0(0)_generation_1(1)")):
        events += [
            span(name, at, 50),
            launch(at, 5, at + 1),
            work("kernel_unified_attention_2d", at + 10, 10, call=at + 1),
        ]
    rank = one(events, tmp_path)
    assert {row.category for row in rank.categories} == {"attention_prefill", "attention_decode"}
    assert [list(step.categories) for step in rank.steps] == [["attention_prefill"], ["attention_decode"]]


def test_without_ranges_each_launch_of_a_whole_graph_is_a_step_of_the_kind_of_its_kernels(tmp_path):
    events = []
    for turn in range(4):
        at = 1000 * turn
        events.append(launch(at, 20, turn + 1, "cudaGraphLaunch"))
        names = [DECODE, *[GEMM] * 59]
        events += [
            work(name, at + 30 + 10 * place, 9, call=turn + 1, **{"graph node id": place + 1})
            for place, name in enumerate(names)
        ]
    rank = one(events, tmp_path)
    assert rank.steps_from == "launches of graphs"
    assert [(step.kind, step.kind_from, step.kernels) for step in rank.steps] == [("decode", "kernels", 60)] * 4
    assert (rank.launch.graph_launches, rank.launch.kernels_in_graphs) == (4, 240)
    assert rank.launch.queue_delay.p50_s == pytest.approx(10e-6)


def test_modules_tell_the_layer_and_containers_do_not(tmp_path):
    def module(name, start, duration):
        return span(f"nn.Module: {name}", start, duration, category="python_function")

    events = [
        module("Qwen3MoeForCausalLM_0", 0, 1000), module("Qwen3MoeDecoderLayer_0", 0, 900),
        module("Qwen3Attention_0", 0, 100), module("RMSNorm_1", 10, 20), launch(12, 2, 1),
        work("rms_norm", 20, 5, call=1),
        launch(50, 2, 2), work(GEMM, 60, 5, call=2),
        module("Qwen3MoeSparseMoeBlock_0", 200, 100), launch(210, 2, 3), work("fused_moe_kernel", 220, 5, call=3),
        module("RMSNorm_2", 400, 20), launch(402, 2, 4), work("rms_norm", 410, 5, call=4),
        launch(500, 2, 5), work(GEMM, 510, 5, call=5),
    ]  # fmt: skip
    layers = {row.layer: row.kernels for row in one(events, tmp_path).layers}
    assert layers == {"attention": 2, "moe": 1, "norm": 1, "other": 1}


PARAMS = LabParams(gpu="H100", model="llama-3-8b", tensor_parallel=4, cuda_graphs=True)
DECODE_WORK = StepWork(tokens=32, sequences=32, attention_pairs=32 * 500.0, kv_tokens=32 * 500, sampled_rows=32)
PREFILL_WORK = StepWork(
    tokens=1024, sequences=2, attention_pairs=1024 * 512.0, kv_tokens=1024, prefill_tokens=1024, sampled_rows=2
)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
@pytest.mark.parametrize("graphs", [True, False])
def test_the_labs_own_traces_say_what_the_lab_simulated(tmp_path, dialect, graphs):
    params = LabParams(
        gpu="H100", model="llama-3-8b", tensor_parallel=4, cuda_graphs=graphs, dialect=dialect,
        kernel_launch_s=7e-6 if graphs else 60e-6,
    )  # fmt: skip
    steps, at_s = [], 1.0
    for step_work in (PREFILL_WORK, DECODE_WORK, DECODE_WORK):
        cost = CostModel(params).step(step_work)
        steps.append(StepRecord(at_s, cost.total_s, step_work, cost))
        at_s += cost.total_s + 0.002
    content = trace(steps, params, origin_unix_ns=1_790_000_000 * 10**9, pid=4242, window_s=(0.5, at_s))
    path = tmp_path / "rank0.pt.trace.json.gz"
    path.write_bytes(encode(content))
    rank = analyse([path]).ranks[0]
    assert [step.kind for step in rank.steps] == ["prefill", "decode", "decode"]
    assert (rank.steps[0].prefill_tokens, rank.steps[1].decode_tokens) == (1024, 32)
    assert rank.device.peak_flops == 989e12
    assert rank.gpu.busy_s == pytest.approx(sum(step.cost.busy_s for step in steps), rel=1e-3)
    assert rank.unclassified_share == 0.0
    idle = {row.kind: row for row in rank.idle}
    assert idle["host_bound"].gaps == 2
    if not graphs:
        assert idle["launch_bound"].total_s > 0.5 * sum(step.cost.launch_s for step in steps)
    talk_us = sum(event["dur"] for event in content["traceEvents"] if "cross_device_reduce" in event["name"])
    assert rank.gpu.communication_s == pytest.approx(talk_us / 1e6, rel=1e-6)


def test_steps_back_to_back_whose_rounded_stamps_overlap_are_all_steps(tmp_path):
    name = "execute_context_0(0)_generation_1(1)"
    events = []
    for number in range(4):
        start = 100.0 * number - 0.004 * (number > 0)
        events += [span(name, start, 100), launch(start + 5, 5, number + 1)]
        events += [work(GEMM, start + 10, 80, call=number + 1)]
        events += [span(name, start + 50, 50.3)]  # one within it, rounded too
    rank = one(events, tmp_path)
    assert [step.kernels for step in rank.steps] == [1, 1, 1, 1]
    assert rank.step_summary[0].period_s == pytest.approx(100e-6, rel=1e-3)
