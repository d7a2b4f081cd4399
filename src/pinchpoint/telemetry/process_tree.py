"""Which processes belong to the given ones: they and their descendants, looked for again now and then.

A number that was given to another program meanwhile counts as gone, and so does a process that has ended but was not
yet waited for.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.process_files import ProcessStat, children, children_by_parent, process_stat

TREE_PERIOD_S = 2.0
"""How often descendants are looked for: services rarely fork under load."""
MAX_SHARE = 1 / 500
"""Of one core: what looking for descendants may cost, where it needs a walk over all processes."""


class ProcessTree:
    def __init__(self, pids: Sequence[int], leave_out: Sequence[int] = (), proc: Path = Path("/proc")) -> None:
        self._proc = os.fspath(proc)
        self._leave_out = frozenset(leave_out)
        self._roots = {pid: process_stat(self._proc, pid) for pid in pids}
        self._below: dict[int, int] = {}
        """Descendants: number and when it started."""
        self._due_ns = 0

    @property
    def gone(self) -> list[int]:
        return [pid for pid, root in self._roots.items() if root is None]

    def members(self, now_ns: int) -> tuple[list[ProcessStat], list[ProcessStat]]:
        """Living roots, and living descendants, as they are now."""
        for pid, root in self._roots.items():
            now = process_stat(self._proc, pid) if root is not None else None
            self._roots[pid] = now if root is not None and now and now.started_ticks == root.started_ticks else None
        roots = [root for root in self._roots.values() if root is not None]
        if now_ns >= self._due_ns:
            began_ns = time.thread_time_ns()
            below = [stat for pid in self._descendants(roots) if (stat := process_stat(self._proc, pid)) is not None]
            self._below = {stat.pid: stat.started_ticks for stat in below}
            cost_ns = time.thread_time_ns() - began_ns
            self._due_ns = now_ns + int(max(TREE_PERIOD_S * NS_PER_S, cost_ns / MAX_SHARE))
        else:
            stats = [process_stat(self._proc, pid) for pid in self._below]
            below = [stat for stat in stats if stat is not None and stat.started_ticks == self._below[stat.pid]]
        return self._kept(roots), self._kept(below)

    def _kept(self, stats: Sequence[ProcessStat]) -> list[ProcessStat]:
        return [stat for stat in stats if stat.pid not in self._leave_out]

    def _descendants(self, roots: Sequence[ProcessStat]) -> list[int]:
        """In the order found, nearest first; roots that descend from others are not repeated."""
        everyone: dict[int, list[int]] | None = None
        known = dict.fromkeys(root.pid for root in roots)
        todo = list(known)
        for pid in todo:
            below = children(self._proc, pid) if everyone is None else everyone.get(pid, [])
            if below is None:
                everyone = children_by_parent(self._proc)
                below = everyone.get(pid, [])
            new = [child for child in below if child not in known]
            known.update(dict.fromkeys(new))
            todo += new
        return list(known)[len(roots) :]
