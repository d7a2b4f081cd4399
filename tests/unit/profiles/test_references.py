"""What is computed from real captures is what other tools computed from the same files."""

import csv
import gzip
import json
from collections import defaultdict

import msgspec
import pytest
from tests.unit.profiles.captures import ALEXNET, BERT, CPU_ONLY, DATA, GRAPH_DECODE, NSYS, VLLM_CPU

from pinchpoint.profiles import Limits, analyse

TABLES = {"h100_bert-small": BERT, "mi300x_vllm_decode_cudagraph": GRAPH_DECODE}


def reference(capture, table):
    with (DATA / "tracelens_reference.csv").open() as lines:
        return [row for row in csv.DictReader(lines) if (row["capture"], row["table"]) == (capture, table)]


@pytest.mark.parametrize("capture", TABLES)
def test_busy_idle_and_exposed_times_are_those_of_tracelens(capture):
    theirs = {row["row"]: float(row["value"]) for row in reference(capture, "gpu_timeline")}
    gpu = analyse([TABLES[capture]]).ranks[0].gpu
    assert gpu is not None
    ours = {
        "total_time": gpu.span_s, "busy_time": gpu.busy_s, "idle_time": gpu.idle_s, "computation_time": gpu.compute_s,
        "exposed_comm_time": gpu.exposed_communication_s, "exposed_memcpy_time": gpu.exposed_copy_s,
        "total_comm_time": gpu.communication_s, "total_memcpy_time": gpu.copy_s,
    }  # fmt: skip
    # Their instants are 64-bit floats of microseconds since 1970, good to a quarter of one.
    assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-8)


def test_totals_per_kernel_are_those_of_tracelens():
    theirs = defaultdict(float)
    calls = defaultdict(int)
    for row in reference("h100_bert-small", "kernel"):
        theirs[row["row"]] += float(row["value"])
        calls[row["row"]] += int(row["extra"])
    ours = {row.name: row for row in analyse([BERT]).ranks[0].kernels}
    for name, total_s in theirs.items():
        assert ours[name].total_s == pytest.approx(total_s, rel=1e-6)
        assert ours[name].calls == calls[name]


@pytest.mark.parametrize("capture", TABLES)
def test_flops_and_bytes_of_products_are_those_of_tracelens(capture):
    ours = {(row.op, row.shapes): row for row in analyse([TABLES[capture]]).ranks[0].roofline}
    found = 0
    for row in reference(capture, "gemm_gflops"):
        op, _, dims = row["row"].partition(" ")
        shapes = " ".join("x".join(map(str, one)) for one in [one for one in json.loads(dims) if one][:3])
        if (op, shapes) in ours:
            found += 1
            assert ours[op, shapes].flops == pytest.approx(float(row["value"]) * 1e9, rel=1e-9)
            assert ours[op, shapes].bytes == pytest.approx(float(row["extra"]) * (1 << 20), rel=1e-9)
    assert found >= 1


def counted(path):
    """Busy time by one sweep over all of a trace's work, in seconds; None for none."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    rows = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    )  # fmt: skip
    total, reach = 0.0, float("-inf")
    for start, end in rows:
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total / 1e6 if rows else None


@pytest.mark.parametrize("path", [ALEXNET, BERT, GRAPH_DECODE, CPU_ONLY, VLLM_CPU], ids=lambda path: path.name)
def test_busy_time_is_what_a_plain_sweep_counts(path):
    gpu = analyse([path]).ranks[0].gpu
    assert (gpu and gpu.busy_s) == (None if (busy := counted(path)) is None else pytest.approx(busy, rel=1e-4))


@pytest.mark.parametrize("path", [ALEXNET, BERT, GRAPH_DECODE, CPU_ONLY, VLLM_CPU, NSYS], ids=lambda path: path.name)
def test_parts_add_up_and_the_result_is_json(path):
    found = analyse([path])
    assert found.problems == ()
    for rank in found.ranks:
        gpu = rank.gpu
        if gpu is None:
            continue
        parts = gpu.compute_s + gpu.exposed_communication_s + gpu.exposed_copy_s
        assert parts == pytest.approx(gpu.busy_s)
        assert gpu.busy_s + gpu.idle_s == pytest.approx(gpu.span_s)
        assert sum(row.total_s for row in rank.idle) == pytest.approx(gpu.idle_s)
        assert sum(row.total_s for row in rank.kernels) <= sum(row.total_s for row in rank.categories) + 1e-12
        root = rank.overview[0]
        assert root.duration_s == pytest.approx(gpu.span_s)
        for index, row in enumerate(rank.overview):
            children = [one for one in rank.overview if one.parent == index]
            assert sum(one.duration_s for one in children) == pytest.approx(row.duration_s) or not children
            assert row.parent is None or row.parent < index
        for lane in rank.timeline:
            assert len(lane.intervals) <= Limits().lane_intervals + 1
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


@pytest.mark.parametrize("path", [ALEXNET, BERT, GRAPH_DECODE, NSYS], ids=lambda path: path.name)
def test_no_kernel_of_a_capture_is_unclassified(path):
    assert [rank.unclassified_share for rank in analyse([path]).ranks] == pytest.approx(
        [0.0] * len(analyse([path]).ranks)
    )


def test_a_replayed_graph_is_a_decode_step_with_all_its_kernels():
    rank = analyse([GRAPH_DECODE]).ranks[0]
    (step,) = rank.steps
    assert (step.kind, step.kind_from, step.decode_tokens, step.prefill_tokens, step.sequences) == (
        "decode", "range", 32, 0, 32
    )  # fmt: skip
    assert step.kernels == 434
    assert rank.launch is not None
    assert (rank.launch.graph_launches, rank.launch.kernels_in_graphs) == (1, 421)
    categories = {row.category for row in rank.categories}
    assert {"attention_decode", "moe_experts", "moe_routing", "kv_write", "norm", "rope"} <= categories
    assert "attention_prefill" not in categories


def test_a_launch_bound_run_is_called_so():
    rank = analyse([BERT]).ranks[0]
    assert rank.gpu is not None
    assert rank.gpu.busy_share == pytest.approx(0.079, abs=0.001)
    (idle,) = rank.idle
    assert idle.kind == "launch_bound"
    assert idle.share > 0.9
    assert {row.layer: row.kernels for row in rank.layers} == {
        "attention": 28, "ffn": 8, "norm": 6, "head": 3, "embedding": 5, "other": 11
    }  # fmt: skip


def test_a_trace_without_gpu_says_so_and_gives_the_cpu():
    rank = analyse([VLLM_CPU]).ranks[0]
    assert rank.gpu is None
    assert rank.idle == () and rank.kernels == ()
    assert "no work on a GPU" in rank.notes[0]
    assert rank.host is not None
    assert rank.host.ops[0].name == "_C::onednn_mm"
    assert rank.host.ops_busy_s == pytest.approx(0.10096, rel=1e-3)
    kinds = [(row.kind, row.steps) for row in rank.step_summary]
    assert kinds == [("decode", 15), ("prefill", 1), ("mixed", 1), ("unknown", 1)]
    mixed = next(step for step in rank.steps if step.kind == "mixed")
    assert (mixed.prefill_tokens, mixed.decode_tokens, mixed.sequences) == (141, 1, 4)


def test_the_rank_comes_from_the_file():
    assert analyse([CPU_ONLY]).ranks[0].rank == 34
