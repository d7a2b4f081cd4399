"""How far operators with known shapes are from what the device could do.

FLOPs count a multiplication and an addition as two; bytes count each operand once. Causal attention over as many keys
as queries does half of the products.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pinchpoint.profiles.model import Device, RooflineRow
from pinchpoint.profiles.trace import NO_LINK, Gpu, Trace

NS_PER_S = 1e9
ELEMENT_BYTES = {
    "c10::BFloat16": 2, "c10::Half": 2, "float": 4, "double": 8, "c10::Float8_e4m3fn": 1, "c10::Float8_e4m3fnuz": 1,
    "c10::Float8_e5m2": 1, "signed char": 1,
}  # fmt: skip
HALF_PRECISION = frozenset({"c10::BFloat16", "c10::Half"})
"""What the data-sheet rates of peaks.toml are for."""


@dataclass(frozen=True, slots=True)
class Work:
    """Of one call."""

    flops: float
    bytes: float
    half_precision: bool


def work_of(op: str, dims: list[Any], types: list[Any], values: list[Any]) -> Work | None:
    """What one call does, None for an operator or shapes that no formula covers."""
    try:
        if op in ("aten::mm", "aten::_scaled_mm"):
            return _product(dims[0], dims[1], types[0], bias=0)
        if op == "aten::addmm":
            return _product(dims[1], dims[2], types[1], bias=_elements(dims[0]))
        if op == "aten::bmm":
            return _batched(dims[0], dims[1], types[0])
        if op == "aten::baddbmm":
            return _batched(dims[1], dims[2], types[1])
        if op == "aten::_flash_attention_forward":
            causal = len(values) > FLASH_CAUSAL and str(values[FLASH_CAUSAL]).lower() == "true"
            return _attention(dims, types, causal=causal)
    except (IndexError, KeyError, ValueError, TypeError):
        return None
    return None


FLASH_CAUSAL = 8
"""aten::_flash_attention_forward(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, ...)"""


def _elements(dims: list[int]) -> int:
    return int(np.prod(dims)) if dims else 0


def _product(left: list[int], right: list[int], kind: str, bias: int) -> Work:
    (m, k), (inner, n) = left, right
    if k != inner:
        raise ValueError
    flops = 2.0 * m * n * k + (m * n if bias else 0)
    return Work(flops, ELEMENT_BYTES[kind] * float(m * k + k * n + m * n + bias), kind in HALF_PRECISION)


def _batched(left: list[int], right: list[int], kind: str) -> Work:
    (batch, m, k), (_, inner, n) = left, right
    if k != inner:
        raise ValueError
    moved = ELEMENT_BYTES[kind] * float(batch * (m * k + k * n + m * n))
    return Work(2.0 * batch * m * n * k, moved, kind in HALF_PRECISION)


def _attention(dims: list[Any], types: list[Any], *, causal: bool) -> Work:
    batch, queries, heads, head_dim = dims[0]
    _, keys, key_heads, _ = dims[1]
    value_dim = dims[2][3]
    flops = 2.0 * batch * heads * queries * keys * (head_dim + value_dim)
    if causal and queries == keys:
        flops /= 2
    size = ELEMENT_BYTES[types[0]]
    moved = batch * (queries * heads * (head_dim + value_dim) + keys * key_heads * (head_dim + value_dim))
    return Work(flops, size * float(moved), types[0] in HALF_PRECISION)


def rows(trace: Trace, gpu: Gpu, device: Device | None, limit: int) -> tuple[RooflineRow, ...]:
    """The operators with the longest kernels first. Kernels are found by the operator that launched them."""
    ops = trace.ops
    shaped = np.flatnonzero((ops.shape >= 0) & (ops.link != NO_LINK))
    if not len(shaped) or not len(gpu.op):
        return ()
    order = shaped[np.argsort(ops.link[shaped], kind="stable")]
    links = ops.link[order]
    at = np.minimum(np.searchsorted(links, gpu.op), len(links) - 1)
    hit = (gpu.op != NO_LINK) & (links[at] == gpu.op)
    op_rows = order[at[hit]]
    durations = gpu.end[hit] - gpu.start[hit]
    keys = ops.name[op_rows].astype(np.int64) << 32 | ops.shape[op_rows].astype(np.int64)
    found: list[RooflineRow] = []
    for key in np.unique(keys).tolist():
        mine = keys == key
        op, shape = trace.names[key >> 32], trace.shapes[key & 0xFFFFFFFF]
        try:
            dims, types, values = msgspec.json.decode(shape)
        except (msgspec.DecodeError, ValueError, RecursionError):
            continue
        work = work_of(op, dims, types, values)
        total_s = int(durations[mine].sum()) / NS_PER_S
        if work is None or total_s <= 0:
            continue
        calls = len(np.unique(op_rows[mine]))
        found.append(_row(op, dims, calls, total_s, work, device))
    return tuple(sorted(found, key=lambda row: -row.kernel_total_s)[:limit])


def _row(op: str, dims: list[Any], calls: int, total_s: float, work: Work, device: Device | None) -> RooflineRow:
    bound, share = None, None
    if device is not None and device.peak_flops and device.peak_bytes_per_s and work.half_precision:
        by_compute, by_memory = work.flops / device.peak_flops, work.bytes / device.peak_bytes_per_s
        bound = "compute" if by_compute >= by_memory else "memory"
        share = max(by_compute, by_memory) * calls / total_s
    shapes = " ".join("x".join(str(size) for size in one) for one in dims[:3] if isinstance(one, list) and one)
    return RooflineRow(
        op=op, shapes=shapes, calls=calls, kernel_total_s=total_s, flops=work.flops, bytes=work.bytes,
        flops_per_s=work.flops * calls / total_s, bytes_per_s=work.bytes * calls / total_s, bound=bound,
        share_of_peak=share,
    )  # fmt: skip
