"""The analysis of real profiles against what others computed from the same files.

    python bench/profile_references.py DIR

DIR holds captures (`kineto/*.json.gz`, `nsys/*.sqlite.gz`, `rocprof/*`), reports of TraceLens for some of them
(`kineto_reference/NAME.tar.gz`) and kernel summaries of the exports (`nsys/NAME.cuda_gpu_kern_sum.DERIVED.csv`).
Prints a Markdown table: capture, quantity, our figure, the other's, and the difference. Where no report stands beside a
capture the other figure is a plain count in this file, which shares no code with the analysis: the whole file parsed at
once, one sweep over sorted intervals.

The exit code is 1 if anything differs by more than 0.1 %.
"""

import argparse
import csv
import gzip
import io
import json
import sqlite3
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pinchpoint.profiles import Limits, analysis, kineto
from pinchpoint.profiles import analyse as analyse_files
from pinchpoint.profiles.stepping import launch_rows
from pinchpoint.profiles.trace import MEMSET, Gpu, Trace

AGREE = 1e-3
Row = tuple[str, str, float, float, str]
"""quantity, unit, ours, theirs, who."""
WIDE = Limits(kernels=100_000, roofline_rows=10_000)


def swept(pairs: list[tuple[float, float]]) -> float:
    """The length of the union of intervals, one at a time."""
    total, reach = 0.0, float("-inf")
    for start, end in sorted(pairs):
        if end > reach:
            total += end - max(start, reach)
            reach = end
    return total


def counted(intervals: dict[str, list[tuple[float, float]]]) -> tuple[float, float]:
    """Span and busy time, added up over devices."""
    spans = sum(max(end for _, end in rows) - min(start for start, _ in rows) for rows in intervals.values() if rows)
    return spans, sum(swept(rows) for rows in intervals.values())


def of_counts(path: Path, intervals: dict[str, list[tuple[float, float]]], kernel_s: float) -> Iterator[Row]:
    found = analyse_files([path], WIDE)
    gpus = [rank.gpu for rank in found.ranks if rank.gpu is not None]
    spans, busy = counted(intervals)
    yield "span", "ms", sum(gpu.span_s for gpu in gpus) * 1e3, spans * 1e3, "count"
    yield "busy", "ms", sum(gpu.busy_s for gpu in gpus) * 1e3, busy * 1e3, "count"
    copies = ("memcpy", "memset")
    ours = sum(row.total_s for rank in found.ranks for row in rank.kernels if not row.name.lower().startswith(copies))
    yield "sum of kernels", "ms", ours * 1e3, kernel_s * 1e3, "count"


def kineto_counts(path: Path) -> Iterator[Row]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    intervals = defaultdict(list)
    for event in work:
        intervals[event["args"]["device"]].append((event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6))
    kernel_s = sum(event["dur"] for event in work if event["cat"] == "kernel") / 1e6
    if not work:
        ops = swept([(row["ts"] / 1e6, (row["ts"] + row["dur"]) / 1e6) for row in events if row.get("cat") == "cpu_op"])
        host = analyse_files([path]).ranks[0].host
        yield "CPU operators", "ms", (host.ops_busy_s if host else 0.0) * 1e3, ops * 1e3, "count"
        return
    yield from of_counts(path, intervals, kernel_s)


def table(archive: tarfile.TarFile, name: str) -> list[dict[str, str]]:
    member = next((one for one in archive.getmembers() if Path(one.name).name == name), None)
    content = archive.extractfile(member) if member else None
    return list(csv.DictReader(io.TextIOWrapper(content, "utf-8"))) if content else []


def tracelens(path: Path, report: Path) -> Iterator[Row]:
    """TraceLens leaves out GPU work that no call of the file launched; so does this comparison."""
    trace = kineto.read(path, WIDE, 0).traces[0]
    kept = launch_rows(trace.calls, trace.gpu.link) >= 0
    trace.gpu = Gpu(**{name: getattr(trace.gpu, name)[kept] for name in Gpu.__slots__})
    rank = analysis.of_trace(trace, WIDE)[0]
    gpu = rank.gpu
    assert gpu is not None
    with tarfile.open(report) as archive:
        theirs = {row["type"]: float(row["time ms"]) for row in table(archive, "gpu_timeline.csv")}
        for quantity, ours, name in (
            ("span", gpu.span_s, "total_time"),
            ("busy", gpu.busy_s, "busy_time"),
            ("idle", gpu.idle_s, "idle_time"),
            ("computation", gpu.compute_s, "computation_time"),
            ("exposed communication", gpu.exposed_communication_s, "exposed_comm_time"),
            ("exposed copies", gpu.exposed_copy_s, "exposed_memcpy_time"),
            ("all copies", gpu.copy_s, "total_memcpy_time"),
        ):
            yield quantity, "ms", ours * 1e3, theirs[name], "TraceLens"
        yield from categories(rank, fills_of_products(trace) * 1e3, archive)
        yield from products(rank, archive)


def fills_of_products(trace: Trace) -> float:
    """TraceLens counts what an operator launches with the operator: fills of a product's workspace are GEMM to it."""
    ops = dict(zip(trace.ops.link.tolist(), trace.ops.name.tolist(), strict=True))
    names = [trace.names[ops[op]] if op in ops else "" for op in trace.gpu.op.tolist()]
    rows = np.isin(names, ["aten::mm", "aten::addmm", "aten::bmm"]) & (trace.gpu.kind == MEMSET)
    return float((trace.gpu.end - trace.gpu.start)[rows].sum()) / 1e9


def categories(rank, fills_ms: float, archive: tarfile.TarFile) -> Iterator[Row]:
    """Where both sort the same kernels together."""
    theirs: dict[str, float] = defaultdict(float)
    for row in table(archive, "ops_summary_by_category.csv"):
        theirs[row["op category"]] += float(row["total_direct_kernel_time_ms"])
    ours = {row.category: row.total_s * 1e3 for row in rank.categories}
    yield "GEMM and its fills", "ms", ours.get("gemm", 0.0) + fills_ms, theirs["GEMM"], "TraceLens"
    for our, their in (("norm", "NORM_fwd"), ("norm", "RMSNorm"), ("rope", "RoPE_fwd")):
        if their in theirs:
            yield our, "ms", ours.get(our, 0.0), theirs[their], "TraceLens"
    if "InferenceAttention" in theirs:
        attention = sum(ours.get(name, 0.0) for name in ("attention_prefill", "attention_decode", "kv_write"))
        yield "attention and KV write", "ms", attention, theirs["InferenceAttention"], "TraceLens"
    by_name: dict[str, float] = defaultdict(float)
    kernels = table(archive, "kernel_summary.csv")
    for row in kernels:
        if row["Parent cpu_op"]:
            by_name[row["Kernel name"]] += float(row["Kernel duration (µs)_sum"]) / 1e3
    mine: dict[str, float] = defaultdict(float)
    for row in rank.kernels:
        mine[row.name] += row.total_s * 1e3
    if by_name:
        worst = max(by_name, key=lambda name: abs(mine[name] - by_name[name]))
        yield f"kernel that differs most, of {len(by_name)}", "ms", mine[worst], by_name[worst], "TraceLens"


def products(rank, archive: tarfile.TarFile) -> Iterator[Row]:
    """FLOPs, bytes and rates of matrix products with known shapes."""
    rows = {}
    for row in table(archive, "GEMM.csv"):
        if row["name"].startswith("aten::"):
            dims = [one for one in json.loads(row["Input Dims_first"]) if one][:3]
            rows[row["name"], " ".join("x".join(map(str, one)) for one in dims)] = row
    ours = {(row.op, row.shapes): row for row in rank.roofline}
    both = [key for key in rows if key in ours]
    if not both:
        return
    for quantity, unit, mine, their in (
        ("FLOPs of products", "GFLOP", lambda row: row.flops / 1e9, "GFLOPS_first"),
        ("bytes of products", "MiB", lambda row: row.bytes / (1 << 20), "Data Moved (MB)_first"),
        ("kernel time of products", "us", lambda row: row.kernel_total_s * 1e6, "Kernel Time (µs)_sum"),
    ):
        yield (
            f"{quantity}, {len(both)} of {len(rows)}", unit,
            sum(mine(ours[key]) for key in both), sum(float(rows[key][their]) for key in both), "TraceLens",
        )  # fmt: skip


def nsys(path: Path, summary: Path) -> Iterator[Row]:
    with tempfile.NamedTemporaryFile(suffix=".sqlite") as plain:
        plain.write(gzip.decompress(path.read_bytes()))
        plain.flush()
        connection = sqlite3.connect(plain.name)
        intervals = defaultdict(list)
        kernel_s = 0.0
        for kind in ("KERNEL", "MEMCPY", "MEMSET"):
            query = f"SELECT start, end, deviceId FROM CUPTI_ACTIVITY_KIND_{kind}"
            for start, end, device in connection.execute(query):
                intervals[device].append((start / 1e9, end / 1e9))
                kernel_s += (end - start) / 1e9 if kind == "KERNEL" else 0
        connection.close()
    yield from of_counts(path, intervals, kernel_s)
    mine: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for rank in analyse_files([path], WIDE).ranks:
        for row in rank.kernels:
            mine[row.name] += row.total_s * 1e3
            calls[row.name] += row.calls
    with summary.open() as lines:
        rows = list(csv.DictReader(lines))
    worst = max(rows, key=lambda row: abs(mine[row["Name"]] - float(row["Total Time (ns)"]) / 1e6))
    total = float(worst["Total Time (ns)"]) / 1e6
    yield f"kernel that differs most, of {len(rows)}", "ms", mine[worst["Name"]], total, "SQL"
    yield (
        "calls of all kernels",
        "",
        sum(calls[row["Name"]] for row in rows),
        sum(int(row["Instances"]) for row in rows),
        "SQL",
    )


def rocprofv3(path: Path) -> Iterator[Row]:
    tool = json.loads(gzip.decompress(path.read_bytes()))["rocprofiler-sdk-tool"][0]
    intervals = defaultdict(list)
    kernel_s = 0.0
    copies = {
        row["kernel_id"]
        for row in tool["kernel_symbols"]
        if row["formatted_kernel_name"].lower().startswith(("memcpy", "memset"))
    }
    for row in tool["buffer_records"]["kernel_dispatch"]:
        start, end = row["start_timestamp"] / 1e9, row["end_timestamp"] / 1e9
        intervals[row["dispatch_info"]["agent_id"]["handle"]].append((start, end))
        kernel_s += end - start if row["dispatch_info"]["kernel_id"] not in copies else 0
    yield from of_counts(path, intervals, kernel_s)


def rocprof_table(path: Path) -> Iterator[Row]:
    intervals = defaultdict(list)
    for row in csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())):
        intervals[row["GPU_ID"]].append((float(row["Start_Timestamp"]) / 1e9, float(row["End_Timestamp"]) / 1e9))
    yield from of_counts(path, intervals, sum(end - start for rows in intervals.values() for start, end in rows))


def comparisons(folder: Path) -> Iterator[tuple[str, Row]]:
    for path in sorted(folder.glob("kineto/*.json.gz")):
        name = path.name.removesuffix(".json.gz").removesuffix(".pt.trace")
        report = folder / "kineto_reference" / f"{name}.tar.gz"
        for row in kineto_counts(path):
            yield name, row
        if report.exists():
            for row in tracelens(path, report):
                yield name, row
    for path in sorted(folder.glob("nsys/*.sqlite.gz")):
        name = path.name.removesuffix(".sqlite.gz")
        for row in nsys(path, folder / "nsys" / f"{name}.cuda_gpu_kern_sum.DERIVED.csv"):
            yield name, row
    for path in sorted(folder.glob("rocprof/*.json.gz")):
        for row in rocprofv3(path):
            yield path.name.removesuffix(".json.gz"), row
    for path in sorted(folder.glob("rocprof/*.csv.gz")):
        for row in rocprof_table(path):
            yield path.name.removesuffix(".csv.gz"), row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print("| capture | quantity | unit | here | reference | by | difference |\n|---|---|---|---:|---:|---|---:|")
    worst = 0.0
    rows = 0
    for name, (quantity, unit, ours, theirs, who) in comparisons(arguments.folder):
        difference = abs(ours - theirs) / abs(theirs) if theirs else abs(ours)
        worst = max(worst, difference)
        rows += 1
        print(f"| {name} | {quantity} | {unit} | {ours:,.4f} | {theirs:,.4f} | {who} | {difference:.4%} |")
    print(f"\n{rows} figures; the largest difference is {worst:.4%}.")
    return 0 if np.isfinite(worst) and worst <= AGREE else 1


if __name__ == "__main__":
    sys.exit(main())
