"""The one form that all readers bring a profile to: columns of numpy arrays and interned names.

Instants are integer nanoseconds on the clock of the file. A reader fills a Trace; nothing in here knows a format.
"""

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles.intervals import Instants
from pinchpoint.profiles.model import Device, Format, Problem

NAME_CHARS = 2000
"""Longer names are cut: template instances of more than this differ in nothing that an analysis reads."""

KERNEL, MEMCPY, MEMSET = 0, 1, 2
"""Kinds of work on a GPU."""
COPY_KINDS = ("", "h2d", "d2h", "d2d", "p2p", "h2h")
"""What a copy is; a number in Gpu.copy is an index in here, 0 means that the file does not say."""
NO_LINK = -1


_SEPARATORS = str.maketrans("", "", " -_")


def copy_kind(name: str) -> int:
    """What a copy's name says it is, as an index of COPY_KINDS: "Memcpy HtoD (Pinned -> Device)"."""
    words = name.lower().translate(_SEPARATORS)
    for kind, marks in (
        ("p2p", ("ptop", "peertopeer")),
        ("h2d", ("htod", "hosttodevice")),
        ("d2h", ("dtoh", "devicetohost")),
        ("d2d", ("dtod", "devicetodevice")),
        ("h2h", ("htoh", "hosttohost")),
    ):
        if any(mark in words for mark in marks):
            return COPY_KINDS.index(kind)
    return 0


class Names:
    """Gives each different name a number; cut at NAME_CHARS."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        found = self._numbers.get(text)
        if found is None:
            short = text[:NAME_CHARS]
            found = self._numbers.get(short)
            if found is None:
                found = len(self.texts)
                self.texts.append(short)
                self._numbers[short] = found
        return found


@dataclass(slots=True)
class Gpu:
    """Work on devices, one row per kernel, copy or fill. link: shared with the row of Calls that launched it, NO_LINK
    if the file does not say. op: with the row of Ops (its identity). graph: replayed by a graph launch. bytes: of a
    copy or fill, else 0."""

    start: Instants
    end: Instants
    name: NDArray[np.int32]
    kind: NDArray[np.int8]
    copy: NDArray[np.int8]
    device: NDArray[np.int32]
    stream: NDArray[np.int64]
    link: NDArray[np.int64]
    op: NDArray[np.int64]
    bytes: NDArray[np.int64]
    graph: NDArray[np.bool_]


@dataclass(slots=True)
class Host:
    """Ranges of threads: calls of the GPU's runtime (link as in Gpu), operators (link: identity, shape: number of its
    shapes in Trace.shapes, -1 none), annotations or modules (link unused). thread: number of process and thread."""

    start: Instants
    end: Instants
    name: NDArray[np.int32]
    thread: NDArray[np.int32]
    link: NDArray[np.int64]
    shape: NDArray[np.int32]


@dataclass(slots=True)
class Trace:
    """One file, or one process's part of it. files: index in what was given.

    shapes: JSON texts [dimensions, types, values] of operators' arguments.
    """

    format: Format
    file: int
    names: list[str]
    gpu: Gpu
    calls: Host
    ops: Host
    ranges: Host
    modules: Host
    shapes: list[bytes] = field(default_factory=list)
    devices: dict[int, Device] = field(default_factory=dict)
    rank: int | None = None
    world_size: int | None = None
    clock_zero_unix_ns: int | None = None
    """What instant 0 of the clock is on the wall clock, if the file says."""
    matrix_units: dict[int, bool] = field(default_factory=dict)
    """Per number of a name whether it uses tensor cores, where the file itself says so."""
    notes: list[str] = field(default_factory=list)


class GpuRows:
    """Collects rows of Gpu one by one in typed arrays."""

    def __init__(self) -> None:
        self._columns = {name: array("q") for name in Gpu.__slots__}

    def add(
        self, *, start: int, end: int, name: int, kind: int, copy: int = 0, device: int = 0, stream: int = 0,
        link: int = NO_LINK, op: int = NO_LINK, size_bytes: int = 0, graph: bool = False,
    ) -> None:  # fmt: skip
        columns = self._columns
        columns["start"].append(start)
        columns["end"].append(end)
        columns["name"].append(name)
        columns["kind"].append(kind)
        columns["copy"].append(copy)
        columns["device"].append(device)
        columns["stream"].append(stream)
        columns["link"].append(link)
        columns["op"].append(op)
        columns["bytes"].append(size_bytes)
        columns["graph"].append(graph)

    def done(self) -> Gpu:
        columns = {name: np.array(column, np.int64) for name, column in self._columns.items()}
        return Gpu(
            start=columns["start"],
            end=np.maximum(columns["start"], columns["end"]),
            name=columns["name"].astype(np.int32),
            kind=columns["kind"].astype(np.int8),
            copy=columns["copy"].astype(np.int8),
            device=columns["device"].astype(np.int32),
            stream=columns["stream"],
            link=columns["link"],
            op=columns["op"],
            bytes=columns["bytes"],
            graph=columns["graph"].astype(bool),
        )


class HostRows:
    """Collects rows of Host one by one in typed arrays."""

    def __init__(self) -> None:
        self._rows = array("q")

    def add(self, start: int, end: int, name: int, thread: int, link: int = NO_LINK, shape: int = -1) -> None:
        self._rows.extend((start, end, name, thread, link, shape))

    def done(self) -> Host:
        table = np.array(self._rows, np.int64).reshape(-1, 6)
        return Host(
            start=table[:, 0].copy(),
            end=np.maximum(table[:, 0], table[:, 1]),
            name=table[:, 2].astype(np.int32),
            thread=table[:, 3].astype(np.int32),
            link=table[:, 4].copy(),
            shape=table[:, 5].astype(np.int32),
        )


def no_host() -> Host:
    return HostRows().done()


@dataclass(frozen=True, slots=True)
class Totals:
    """A row of a file that holds sums only."""

    name: str
    kind: int
    calls: int
    total_s: float
    min_s: float | None = None
    max_s: float | None = None
    matrix_unit: bool | None = None


@dataclass(slots=True)
class Summary:
    """A file, or one part of it, that holds sums only: rows of work on the GPU and of calls on the CPU."""

    format: Format
    file: int
    gpu: list[Totals]
    calls: list[Totals]
    device: Device | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Reading:
    """What a reader made of one file."""

    format: Format
    traces: list[Trace]
    summaries: list[Summary]
    bytes_read: int
    events_read: int
    problems: list[Problem]
