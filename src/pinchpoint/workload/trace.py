"""Traces: recorded requests from a file, and their replay.

CSV with a header or JSON lines (an object per line), plain or gzipped. Instants are kept as whole nanoseconds from
decimal text, so that a replay at scale 1 is exact.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.plan import STAGE_REQUESTS_MAX, TURNS_MAX, ReplayStage, StageSpec, TimeUnit
from pinchpoint.workload.prefixes import PrefixTree, PrefixTreeBuilder
from pinchpoint.workload.traces.files import decimal, instant_ns, opened, rows, tokens, value
from pinchpoint.workload.traces.read import read_log
from pinchpoint.workload.traces.table import RequestLog

SHARED_BY_MIN = 2
"""Requests that have a block in common, for it to be a shared one."""
SPAN_MAX_NS = 10**18
"""Thirty years."""


@dataclass(frozen=True)
class Trace:
    """Columns of shape (n,), in the order of the file. None where the file was not asked for them."""

    t_ns: np.ndarray  # int64, from the first request
    input_tokens: np.ndarray | None  # int32
    output_tokens: np.ndarray | None  # int32
    session: np.ndarray | None  # int64, numbered from 0 in the order of their first requests
    node: np.ndarray | None = None  # int32: where in `tree` the beginning that a request shares ends; -1: nowhere
    tree: PrefixTree | None = None

    def __len__(self) -> int:
        return len(self.t_ns)


@dataclass(frozen=True)
class Replay:
    """Rows of a trace as they are due again.

    `row` points into the trace, `lap` counts the passes of a loop. end_ns: where the stage was cut, or just after the
    last request.
    """

    offset_ns: np.ndarray  # int64
    row: np.ndarray  # int64
    lap: np.ndarray  # int64
    end_ns: int


@lru_cache(maxsize=4)
def read_trace(
    path: Path, *, time: str, unit: TimeUnit, input_name: str | None, output_name: str | None, session_name: str | None
) -> Trace:
    """Raises UsageError with the line of what cannot be used, such as an instant before the one above it."""
    instants: list[int] = []
    lengths: dict[str, list[int]] = {name: [] for name in (input_name, output_name) if name is not None}
    sessions: list[int] = []
    known: dict[str, int] = {}
    for line, row in rows(path):
        t_ns = instant_ns(value(row, time, path, line), unit, path, line)
        if instants and t_ns < instants[-1]:
            raise UsageError(f"{path}, line {line}: {time} is before that of the line above; sort the file by {time}")
        instants.append(t_ns)
        for name, values in lengths.items():
            values.append(tokens(value(row, name, path, line), name, path, line))
        if session_name is not None:
            sessions.append(known.setdefault(str(value(row, session_name, path, line)), len(known)))
    if not instants:
        raise UsageError(f"{path} holds no requests")
    if instants[-1] - instants[0] > SPAN_MAX_NS:
        raise UsageError(f"{path} spans more than thirty years; see whether its times are really in {unit}")
    return Trace(
        np.array([t_ns - instants[0] for t_ns in instants], np.int64),
        None if input_name is None else np.array(lengths[input_name], np.int32),
        None if output_name is None else np.array(lengths[output_name], np.int32),
        None if session_name is None else np.array(sessions, np.int64),
    )


@lru_cache(maxsize=4)
def trace_of_format(path: Path, name: str) -> Trace:
    """A trace of a known format, with the beginnings that its requests share. Raises UsageError."""
    log = read_log(path, name)
    if log.t_ns is None:
        raise UsageError(f"{path} has no instants, so it cannot be replayed; learn from it with workload fit")
    node, tree = shared_nodes(log)
    inputs, outputs = log.input_tokens.astype(np.int32), log.output_tokens.astype(np.int32)
    return Trace(log.t_ns, inputs, outputs, log.session, node, tree)


def shared_nodes(log: RequestLog) -> tuple[np.ndarray | None, PrefixTree | None]:
    """For each request the end of the longest beginning that another request has, too, and the tree of those; what only
    one request has is no part of it."""
    if log.blocks is None:
        return None, None
    uses: dict[tuple[int, Hashable], list[int]] = {}
    paths: list[list[tuple[int, Hashable]]] = []
    for one in log.blocks:
        node, path = -1, []
        for block in one:
            key = (node, block)
            found = uses.setdefault(key, [len(uses), 0])
            found[1] += 1
            node = found[0]
            path.append(key)
        paths.append(path)
    builder = PrefixTreeBuilder()
    ends = []
    for one, path in zip(log.blocks, paths, strict=True):
        depth = next((i for i, key in enumerate(path) if uses[key][1] < SHARED_BY_MIN), len(path))
        ends.append(builder.add(one[:depth], log.block_tokens))
    return np.array(ends, np.int32), builder.tree()


def forest(stages: Sequence[StageSpec]) -> tuple[PrefixTree | None, dict[str, int]]:
    """One tree of the beginnings of all traces that the stages replay, and what is added to the nodes of each trace's
    own. None: no trace tells any. Raises UsageError as trace_of."""
    parents: list[np.ndarray] = []
    tokens_of_nodes: list[np.ndarray] = []
    roots: dict[str, int] = {}
    total = 0
    for stage in stages:
        if not isinstance(stage, ReplayStage) or stage.file in roots:
            continue
        tree = trace_of(stage).tree if stage.format else None
        if tree is not None:
            roots[stage.file] = total
            parents.append(moved(tree.parent, total))
            tokens_of_nodes.append(tree.tokens)
            total += len(tree.tokens)
    if not parents:
        return None, {}
    return PrefixTree(np.concatenate(parents), np.concatenate(tokens_of_nodes)), roots


def moved(nodes: np.ndarray, by: int) -> np.ndarray:
    """Nodes of one tree as those of a larger one; -1 stays."""
    return np.where(nodes < 0, nodes, nodes + by)


def trace_of(stage: ReplayStage) -> Trace:
    """The file of a replay stage; read once however often it is asked for."""
    if stage.format:
        return trace_of_format(Path(stage.file), stage.format)
    return read_trace(
        Path(stage.file),
        time=stage.time,
        unit=stage.unit,
        input_name=stage.input,
        output_name=stage.output,
        session_name=stage.session,
    )


def replay(trace: Trace, stage: ReplayStage) -> Replay:
    """When each row of the trace is due. Raises UsageError when the cut leaves too little for what is asked."""
    start_ns = round(stage.start_s * NS_PER_S)
    first = int(np.searchsorted(trace.t_ns, start_ns, side="left"))
    count = len(trace) - first
    if count == 0:
        length_s = trace.t_ns[-1] / NS_PER_S
        raise UsageError(f"{stage.file} is {length_s:g} s long; a start at {stage.start_s:g} s leaves nothing of it")
    since_ns = trace.t_ns[first:] - start_ns
    wanted = stage.requests
    laps = 1
    lap_ns = 0
    if stage.loop:
        span_ns = int(since_ns[-1] - since_ns[0])
        if span_ns == 0:
            raise UsageError(f"{stage.file}: a loop needs requests at two instants at least, to know its length")
        lap_ns = span_ns + round(span_ns / (count - 1))
        if wanted is not None:
            laps = -(-wanted // count)
        elif stage.duration_s is not None:
            laps = int(stage.duration_s * NS_PER_S * stage.scale // lap_ns) + 1
    elif wanted is not None and wanted > count:
        raise UsageError(f"{stage.file} holds {count} requests from its start on, {wanted} are asked; say loop = true")
    if laps * count > STAGE_REQUESTS_MAX:
        raise UsageError(f"{laps * count} requests are more than the {STAGE_REQUESTS_MAX} that a stage can have")
    lap = np.repeat(np.arange(laps), count)
    traced_ns = np.tile(since_ns, laps) + lap * lap_ns
    offset_ns = traced_ns if stage.scale == 1 else np.rint(traced_ns / stage.scale).astype(np.int64)
    rows = len(offset_ns) if wanted is None else wanted
    end_ns = int(offset_ns[rows - 1]) + 1
    if stage.duration_s is not None:
        duration_ns = round(stage.duration_s * NS_PER_S)
        # A loop goes on: between its last request and the end nothing happens to be due.
        if end_ns > duration_ns or (stage.loop and wanted is None):
            rows, end_ns = int(np.searchsorted(offset_ns[:rows], duration_ns, side="left")), duration_ns
    row = np.tile(np.arange(first, len(trace)), laps)
    return Replay(offset_ns[:rows], row[:rows], lap[:rows], end_ns)


def turns_of(session: np.ndarray) -> np.ndarray:
    """How often the session of each row was there before: its turn, int64. Raises UsageError beyond TURNS_MAX."""
    order = np.argsort(session, kind="stable")
    grouped = session[order]
    starts = np.flatnonzero(np.concatenate([[True], grouped[1:] != grouped[:-1]])) if len(grouped) else np.empty(0, int)
    sizes = np.diff(np.append(starts, len(grouped)))
    if len(sizes) and sizes.max() > TURNS_MAX:
        raise UsageError(f"a session of the trace has {sizes.max()} requests; at most {TURNS_MAX} can be played")
    turn = np.empty(len(session), np.int64)
    turn[order] = np.arange(len(grouped)) - np.repeat(starts, sizes)
    return turn


def read_numbers(path: Path, column: str | None) -> np.ndarray:
    """One column of a file as float64; without a column, a file of one number per line. Raises UsageError."""
    numbers: list[float] = []
    if column is None:
        with opened(path) as file:
            numbers += [float(decimal(text, path, line)) for line, text in enumerate(file, 1) if text.strip()]
    else:
        for line, row in rows(path):
            numbers.append(float(decimal(value(row, column, path, line), path, line)))
    if not numbers:
        raise UsageError(f"{path} holds no numbers")
    return np.array(numbers)
