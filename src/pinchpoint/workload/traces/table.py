"""The table that every reader of a trace makes."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pinchpoint.errors import UsageError

SPAN_MAX_NS = 10**18
"""Thirty years."""
GRID_MAX_NS = 10**10
"""Ten seconds: a coarser grid of instants says nothing about single requests."""
GRID_MIN_NS = 1_000_000
"""A grid finer than a millisecond is as good as none."""
GRID_GAPS_MIN = 10
GRID_LOW = 0.02
"""Share of the gaps that may be shorter than the step, by accident."""
GRID_TOGETHER, GRID_JITTER = 0.1, 0.01
"""Requests at one instant with another, of all, by which a grid is seen; and how far its steps may be
off, of a step."""
GRID_SHARE = 0.98
"""Of the gaps that are whole multiples of a grid: a few may have been moved by a time zone or a leap second."""


@dataclass(frozen=True)
class RequestLog:
    """Recorded requests in the order of time; shape (n,) each.

    t_ns: from the first request; None: the trace has no instants. session: numbered from 0; None: not told. blocks:
    for each request the identities of the blocks of `block_tokens` that its prompt begins with; equal ones at the same
    place mean equal text; None: not told. resolution_ns: instants lie on a grid of so much; 0: on none that matters.
    left_out: rows that are no requests to be repeated, by reason. notes: what else is to be known, such as lengths that
    were estimated.
    """

    format: str
    t_ns: np.ndarray | None  # int64
    input_tokens: np.ndarray  # int64
    output_tokens: np.ndarray  # int64
    session: np.ndarray | None = None  # int64
    blocks: Sequence[Sequence[Hashable]] | None = None
    block_tokens: int = 0
    resolution_ns: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.input_tokens)

    @property
    def span_s(self) -> float:
        """From the first to the last request, seconds; 0 without instants."""
        return float(self.t_ns[-1]) / 1e9 if self.t_ns is not None and len(self.t_ns) else 0.0


class LogBuilder:
    """Takes one request after another. Instants may come in any order; they are sorted in the end, and it is told."""

    def __init__(self, name: str, where: str) -> None:
        self._format = name
        self._where = where
        self._t_ns: list[int] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._sessions: list[str | None] = []
        self._blocks: list[Sequence[Hashable]] = []
        self._left_out: Counter[str] = Counter()
        self.notes: list[str] = []

    def add(
        self,
        t_ns: int | None,
        input_tokens: int,
        output_tokens: int,
        session: str | None = None,
        blocks: Sequence[Hashable] | None = None,
    ) -> None:
        if t_ns is not None:
            self._t_ns.append(t_ns)
        self._inputs.append(input_tokens)
        self._outputs.append(output_tokens)
        self._sessions.append(session)
        if blocks is not None:
            self._blocks.append(blocks)

    def leave_out(self, why: str) -> None:
        self._left_out[why] += 1

    def build(self, block_tokens: int = 0) -> RequestLog:
        """Raises UsageError when there are no requests, or some have an instant and some have none."""
        count = len(self._inputs)
        if not count:
            gone = "; ".join(f"{n} left out: {why}" for why, n in self._left_out.items())
            raise UsageError(f"{self._where} holds no requests" + (f" ({gone})" if gone else ""))
        if self._t_ns and len(self._t_ns) != count:
            raise UsageError(f"{self._where}: {len(self._t_ns)} of {count} requests have an instant; give it for all")
        order = np.arange(count)
        t_ns = None
        if self._t_ns:
            t_ns = np.array(self._t_ns, np.int64)
            order = np.argsort(t_ns, kind="stable")
            if np.any(np.diff(t_ns) < 0):
                self.notes.append("the file was not in the order of time and was sorted")
            t_ns = t_ns[order] - t_ns[order[0]]
            if t_ns[-1] > SPAN_MAX_NS:
                raise UsageError(f"{self._where} spans more than thirty years; are its times in another unit?")
        sessions = None
        if any(one is not None for one in self._sessions):
            numbers: dict[str, int] = {}
            named = [self._sessions[i] for i in order.tolist()]
            lone = iter(range(len(named)))
            keys = [one if one is not None else f"\0{next(lone)}" for one in named]
            sessions = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
        whole = len(self._blocks) == count
        return RequestLog(
            self._format,
            t_ns,
            np.array(self._inputs, np.int64)[order],
            np.array(self._outputs, np.int64)[order],
            sessions,
            [self._blocks[i] for i in order.tolist()] if whole and block_tokens else None,
            block_tokens if whole else 0,
            grid_ns(t_ns) if t_ns is not None else 0,
            dict(self._left_out),
            tuple(self.notes),
        )


def grid_ns(t_ns: np.ndarray) -> int:
    """The grid on which instants lie, nanoseconds: the largest step that nearly all gaps are multiples of; 0: none.

    A step may be a little longer or shorter each time, as of a recorder that wakes up every three seconds.
    """
    gaps = np.diff(t_ns)
    together = float(np.mean(gaps == 0)) if len(gaps) else 0.0
    gaps = gaps[gaps > 0]
    if len(gaps) < GRID_GAPS_MIN:
        return 0
    low = np.quantile(gaps, GRID_LOW)
    smallest = int(np.median(gaps[gaps <= 1.5 * low]))
    if together >= GRID_TOGETHER and GRID_MIN_NS <= smallest <= GRID_MAX_NS:
        steps = np.maximum(np.rint(gaps / smallest), 1)
        if np.mean(np.abs(gaps / smallest - steps) <= GRID_JITTER * steps) >= GRID_SHARE:
            return round(float(gaps.sum() / steps.sum()))
    for step in (smallest, *(10**k * m for k in range(10, 5, -1) for m in (5, 3, 2, 1))):
        if GRID_MIN_NS <= step <= GRID_MAX_NS and np.mean(gaps % step == 0) >= GRID_SHARE:
            return step
    return 0
