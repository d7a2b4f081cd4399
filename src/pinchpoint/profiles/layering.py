"""Which layer of the model launched what, by the ranges of modules (PyTorch's with_stack or NVTX) on the host."""

import re

import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles.intervals import latest_started, union
from pinchpoint.profiles.model import LayerTime
from pinchpoint.profiles.stepping import at, launch_rows
from pinchpoint.profiles.trace import Gpu, Host, Trace

NS_PER_S = 1e9
LAYERS = ("attention", "moe", "ffn", "norm", "embedding", "head", "other")
OTHER = LAYERS.index("other")
NO_LAYER = -1
_PATTERNS = tuple(
    (LAYERS.index(layer), re.compile(pattern, re.IGNORECASE))
    for layer, pattern in (
        ("moe", r"moe|experts?\b|router|mixture|SparseMLP"),
        ("attention", r"attention|attn|\bmla\b"),
        ("ffn", r"mlp|feed_?forward|ffn|intermediate|fc[12]\b|swiglu"),
        ("norm", r"norm"),
        ("embedding", r"embed"),
        ("head", r"lm_?head|logits|sampler|classifier|PredictionHead|\bOnlyMLMHead"),
    )
)
_CONTAINER = re.compile(r"(?:(?:De|En)coder(?:Layer)?|Model|For[A-Z]\w*|GraphModule)(?:_\d+)?$")
"""Modules that hold all kinds of layers, whatever else their names say (Qwen3MoeDecoderLayer)."""


def layer_of(name: str) -> int | None:
    """The number of a module's or range's kind of layer in LAYERS, None for a name that says nothing."""
    if _CONTAINER.search(name):
        return None
    for number, pattern in _PATTERNS:
        if pattern.search(name):
            return number
    return None


def assign(trace: Trace, gpu: Gpu) -> NDArray[np.int8] | None:
    """For each row of GPU work the layer in LAYERS, NO_LAYER where no range encloses its launch. None if no range of
    the file names a layer. The outermost layer that names one of attention, MoE or FFN wins over the norms and
    projections within it."""
    rows = launch_rows(trace.calls, gpu.link)
    linked = rows >= 0
    if not linked.any():
        return None
    found = np.full(len(gpu.start), NO_LAYER, np.int8)
    any_layer = False
    for host in (trace.modules, trace.ranges):
        if not len(host.start):
            continue
        kinds = {number: layer_of(trace.names[number]) for number in np.unique(host.name).tolist()}
        if all(kind is None for kind in kinds.values()):
            continue
        any_layer = True
        _assign_from(host, kinds, trace, rows, linked, found, others=host is trace.modules)
    return found if any_layer else None


def _assign_from(
    host: Host, kinds: dict[int, int | None], trace: Trace, rows: NDArray[np.int64], linked: NDArray[np.bool_],
    found: NDArray[np.int8], *, others: bool,
) -> None:  # fmt: skip
    """kinds: of each number of a name. others: whether what is enclosed by a range of no layer is "other". The weakest
    come first: others, then norms, embedding and head, then the three kinds of blocks."""
    by_name = np.full(len(trace.names), NO_LAYER, np.int8)
    for number, kind in kinds.items():
        by_name[number] = NO_LAYER if kind is None else kind
    strong = {LAYERS.index(layer) for layer in ("attention", "ffn", "moe")}
    weak = {LAYERS.index(layer) for layer in ("norm", "embedding", "head")}
    for wanted in (None, weak, strong) if others else (weak, strong):
        names = [number for number, kind in kinds.items() if (wanted is None or (kind is not None and kind in wanted))]
        of_layer = np.isin(host.name, names)
        for thread in np.unique(host.thread[of_layer]).tolist():
            mine = np.flatnonzero(of_layer & (host.thread == thread))
            asked = np.flatnonzero(linked & (at(trace.calls.thread, rows) == thread))
            if not len(asked):
                continue
            within = latest_started(host.start[mine], host.end[mine], trace.calls.start[rows[asked]])
            hit = asked[within >= 0]
            if wanted is None:
                found[hit] = np.where(found[hit] == NO_LAYER, OTHER, found[hit])
            else:
                found[hit] = by_name[host.name[mine[within[within >= 0]]]]


def times(gpu: Gpu, layers: NDArray[np.int8], busy_ns: int, calls: NDArray[np.int64]) -> tuple[LayerTime, ...]:
    """One row per layer that launched something. calls: the row of the launch of each, to count launches."""
    rows = []
    for number, layer in enumerate(LAYERS):
        mine = layers == number
        if not mine.any():
            continue
        total = union(gpu.start[mine], gpu.end[mine]).total_ns
        rows.append(
            LayerTime(
                layer=layer, launches=len(np.unique(calls[mine])), kernels=int(mine.sum()), busy_s=total / NS_PER_S,
                share=total / busy_ns if busy_ns else 0.0,
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda row: -row.busy_s))
