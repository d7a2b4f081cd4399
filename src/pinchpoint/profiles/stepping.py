"""Finds the steps of an engine in a trace: which ranges are steps, what they work on, which GPU work is theirs."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles.intervals import Instants, latest_started
from pinchpoint.profiles.kernels import category_ids
from pinchpoint.profiles.model import StepKind
from pinchpoint.profiles.trace import NO_LINK, Gpu, Host, Trace

NO_STEP = -1


@dataclass(frozen=True, slots=True)
class Shape:
    """What a range's name says of its step; None where it does not."""

    kind: StepKind
    prefill_tokens: int | None = None
    decode_tokens: int | None = None
    sequences: int | None = None


@dataclass(slots=True)
class Steps:
    """Steps in the order they began on the host. of_gpu: the step of each row of GPU work, NO_STEP for none."""

    names: list[str]
    shapes: list[Shape]
    host_start: Instants
    host_end: Instants
    of_gpu: NDArray[np.int32]
    told_by: str | None


_VLLM = re.compile(r"^execute_(?:(\d+)_)?context_(\d+)\(([^)]*)\)_generation_(\d+)\(([^)]*)\)")
"""vLLM: execute_context_1(47)_generation_3(3); with attention's sums execute_32_context_0(sq0sk0)_generation_32(sq32).
The first number, where there is one, is all tokens."""
_SQ = re.compile(r"^sq(\d+)")
_SGLANG = re.compile(r"^step\[\s*(\w+)([^\]]*)\]")
"""SGLang: step[EXTEND bs=15 toks=15360]."""
_SGLANG_SEQUENCES, _SGLANG_TOKENS = re.compile(r"\bbs=(\d+)"), re.compile(r"\btoks=(\d+)")
_PROFILER = re.compile(r"^ProfilerStep\s*#?\s*\d+")
_NUMBERED = re.compile(
    r"^(?:[\w .:]*[ _.:/])?(?:step|iter|iteration|batch|sample|forward|decode|prefill|execute_model|engine_step)"
    r"[ _#:=/-]*\d+\b", re.IGNORECASE,
)  # fmt: skip
_WHOLE = re.compile(
    r"(?:^|[.:/ ])(?:execute_model|engine_step|forward_pass|model_forward|run_batch|run_model)$", re.IGNORECASE
)
ROUNDING_NS = 1_000
"""Stamps of microseconds since 1970 in floating point are good to a quarter of one; begin and duration are rounded
apart."""
_PREFILL = re.compile(r"prefill|extend|context", re.IGNORECASE)
_DECODE = re.compile(r"decode|generation", re.IGNORECASE)
SGLANG_KINDS: dict[str, StepKind] = {
    "EXTEND": "prefill", "PREFILL": "prefill", "DECODE": "decode", "MIXED": "mixed", "TARGET_VERIFY": "decode",
}  # fmt: skip
"""SGLang's forward modes; the check of drafted tokens reads the cache as decode does."""


def shape_of(name: str) -> Shape | None:
    """What an engine's own name of a step says, None for a name that is not one."""
    if found := _VLLM.match(name):
        all_tokens, context, context_text, generation, generation_text = found.groups()
        prompts, generating = int(context), int(generation)
        prefill_tokens = _tokens(context_text)
        decode_tokens = _tokens(generation_text)
        if all_tokens is not None and prefill_tokens is None and decode_tokens is not None:
            prefill_tokens = int(all_tokens) - decode_tokens
        kind: StepKind = "unknown"
        if prompts or generating:
            kind = "mixed" if prompts and generating else "prefill" if prompts else "decode"
        return Shape(kind, prefill_tokens, decode_tokens, prompts + generating)
    if found := _SGLANG.match(name):
        mode, rest = found.groups()
        sequences, tokens = _SGLANG_SEQUENCES.search(rest), _SGLANG_TOKENS.search(rest)
        kind = SGLANG_KINDS.get(mode.upper(), "unknown")
        count = int(tokens[1]) if tokens else None
        return Shape(
            kind,
            prefill_tokens=count if kind == "prefill" else 0 if kind == "decode" else None,
            decode_tokens=count if kind == "decode" else 0 if kind == "prefill" else None,
            sequences=int(sequences[1]) if sequences else None,
        )
    return None


def _tokens(text: str) -> int | None:
    """Of the brackets in vLLM's name: a number, or sq<tokens>sk<...>."""
    if text.isdigit():
        return int(text)
    found = _SQ.match(text)
    return int(found[1]) if found else None


def find(trace: Trace, gpu: Gpu) -> Steps:
    """gpu: the rows that are asked about (one device's). Work belongs to the step in whose range its launch began."""
    names = trace.names
    families: list[tuple[str, NDArray[np.bool_]]] = []
    numbers = np.unique(trace.ranges.name)
    for told_by, test in (
        ("the engine's own ranges", lambda text: shape_of(text) is not None),
        ("ranges with a step's number", lambda text: bool(_NUMBERED.match(text)) and not _PROFILER.match(text)),
        ("ranges named as a step", lambda text: bool(_WHOLE.search(text))),
        ("the profiler's steps", lambda text: bool(_PROFILER.match(text))),
    ):
        chosen = [number for number in numbers.tolist() if test(names[number])]
        if chosen:
            families.append((told_by, np.isin(trace.ranges.name, chosen)))
    for told_by, rows in families:
        steps = _outermost(trace, rows)
        steps.told_by = told_by
        steps.of_gpu = _owners(trace, gpu, steps)
        return steps
    steps = _by_graphs(trace, gpu)
    return steps if steps is not None else _none(gpu)


def _none(gpu: Gpu) -> Steps:
    empty = np.empty(0, np.int64)
    return Steps([], [], empty, empty, np.full(len(gpu.start), NO_STEP, np.int32), None)


def _outermost(trace: Trace, rows: NDArray[np.bool_]) -> Steps:
    """Ranges of one thread that lie in another count with it; the shape is that of whichever says most. One that begins
    a moment before the end of the one before it, as rounded stamps of ranges back to back do, is a step of its own."""
    ranges = trace.ranges
    index = np.flatnonzero(rows)
    order = index[np.lexsort((-ranges.end[index], ranges.start[index]))]
    names, shapes, starts, ends = [], [], [], []
    open_at: dict[int, int] = {}
    for row in order.tolist():
        start, end, thread = int(ranges.start[row]), int(ranges.end[row]), int(ranges.thread[row])
        name = trace.names[ranges.name[row]]
        shape = shape_of(name) or _kind_in(name)
        outer = open_at.get(thread)
        if outer is not None and start < ends[outer]:
            if end <= ends[outer] + ROUNDING_NS:
                shapes[outer] = _richer(shapes[outer], shape)
                continue
            ends[outer] = start
        open_at[thread] = len(names)
        names.append(name)
        shapes.append(shape)
        starts.append(start)
        ends.append(end)
    return Steps(
        names, shapes, np.array(starts, np.int64), np.array(ends, np.int64), np.empty(0, np.int32), told_by=None
    )


def _kind_in(name: str) -> Shape:
    prefill, decode = bool(_PREFILL.search(name)), bool(_DECODE.search(name))
    if prefill and not decode:
        return Shape("prefill")
    if decode and not prefill:
        return Shape("decode")
    return Shape("unknown")


def _richer(first: Shape, second: Shape) -> Shape:
    return Shape(
        kind=first.kind if first.kind != "unknown" else second.kind,
        prefill_tokens=first.prefill_tokens if first.prefill_tokens is not None else second.prefill_tokens,
        decode_tokens=first.decode_tokens if first.decode_tokens is not None else second.decode_tokens,
        sequences=first.sequences if first.sequences is not None else second.sequences,
    )


def launch_rows(calls: Host, links: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of calls that each link names, -1 for none."""
    known = np.flatnonzero(calls.link != NO_LINK)
    if len(known) == 0:
        return np.full(len(links), -1, np.int64)
    by_link = known[np.argsort(calls.link[known], kind="stable")]
    place = np.minimum(np.searchsorted(calls.link[by_link], links), len(by_link) - 1)
    found = by_link[place]
    return np.where((links != NO_LINK) & (calls.link[found] == links), found, -1)


def at(column: NDArray, rows: NDArray[np.int64]) -> NDArray:
    """The column at each row, 0 where the row is -1."""
    if not len(column):
        return np.zeros(len(rows), column.dtype)
    return np.where(rows >= 0, column[np.maximum(rows, 0)], column.dtype.type(0))


def _owners(trace: Trace, gpu: Gpu, steps: Steps) -> NDArray[np.int32]:
    """By the begin of the launch; by the begin of the work where the file does not link it and no launch is known."""
    rows = launch_rows(trace.calls, gpu.link)
    linked = rows >= 0
    instants = at(trace.calls.start, rows)
    if not linked.any():
        # A trace without the runtime's calls: the ranges may be of the GPU's own line.
        instants, linked = gpu.start, np.ones(len(gpu.start), bool)
    owners = latest_started(steps.host_start, steps.host_end, instants)
    return np.where(linked, owners, NO_STEP).astype(np.int32)


GRAPH_LAUNCH = re.compile(r"GraphLaunch", re.IGNORECASE)
FEWEST_GRAPH_STEPS = 3
"""Fewer launches of graphs than this do not make a rhythm."""


def _by_graphs(trace: Trace, gpu: Gpu) -> Steps | None:
    """Where no range tells, each launch of a graph is a step: engines replay one graph for a decode step."""
    rows = launch_rows(trace.calls, gpu.link)
    if not (rows >= 0).any():
        return None
    numbers = np.unique(trace.calls.name).tolist()
    graph_names = [number for number in numbers if GRAPH_LAUNCH.search(trace.names[number])]
    launches = np.flatnonzero(np.isin(trace.calls.name, graph_names))
    launches = launches[np.isin(launches, rows)]
    if len(launches) < FEWEST_GRAPH_STEPS:
        return None
    launches = launches[np.argsort(trace.calls.start[launches])]
    place = np.full(len(trace.calls.start), NO_STEP, np.int32)
    place[launches] = np.arange(len(launches), dtype=np.int32)
    owners = np.where(rows >= 0, at(place, rows), NO_STEP).astype(np.int32)
    counts = np.bincount(owners[owners >= 0], minlength=len(launches))
    if np.median(counts) < KERNELS_OF_A_WHOLE_STEP:
        return None  # piecewise graphs: several of them make one step
    names = [trace.names[trace.calls.name[row]] for row in launches.tolist()]
    return Steps(
        names, [Shape("unknown")] * len(names), trace.calls.start[launches], trace.calls.end[launches], owners,
        "launches of graphs",
    )  # fmt: skip


KERNELS_OF_A_WHOLE_STEP = 50
"""A graph of a whole decode step has some ten kernels for each of a dozen layers or more; a piece between two attention
layers has fewer than this."""


def kind_by_kernels(category_counts: NDArray[np.int64]) -> StepKind:
    """Of a step whose range does not tell: by which attention kernels ran. category_counts: kernels per category."""
    ids = category_ids()
    prefill = category_counts[ids.index("attention_prefill")] > 0
    decode = category_counts[ids.index("attention_decode")] > 0
    if prefill and decode:
        return "mixed"
    if prefill or decode:
        return "prefill" if prefill else "decode"
    return "unknown"


ATTENTION = ("attention", "attention_prefill", "attention_decode")


def settle_attention(categories: NDArray[np.int32], steps: Steps) -> NDArray[np.int32]:
    """Attention in a step that is told to be only prefill or only decode is of that kind whatever its kernel is called:
    engines run both through one kernel. Elsewhere the name decides."""
    ids = category_ids()
    attention = np.isin(categories, [ids.index(name) for name in ATTENTION])
    kinds = np.array([{"prefill": 1, "decode": 2}.get(shape.kind, 0) for shape in steps.shapes] + [0], np.int8)
    kind = kinds[steps.of_gpu]  # NO_STEP is -1, the 0 appended above
    settled = categories.copy()
    settled[attention & (kind == 1)] = ids.index("attention_prefill")
    settled[attention & (kind == 2)] = ids.index("attention_decode")
    return settled
