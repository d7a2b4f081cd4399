"""LoRA slots: which adapters are on the GPU, and who must wait for a slot.

A batch holds at most max_loras different adapters. An adapter without running requests stays in its slot until another
needs it; the least recently used goes first. Not here: what a copy costs (cost.py).
"""

from collections import OrderedDict


class AdapterSlots:
    """Counts running requests per adapter."""

    def __init__(self, max_loras: int) -> None:
        self.max_loras = max_loras
        self._running: dict[int, int] = {}
        self._resident: OrderedDict[int, None] = OrderedDict()
        """Least recently used first."""
        self.left = 0
        """How often an adapter lost its last running request: whoever waits for a slot may try again."""

    @property
    def running(self) -> list[int]:
        """Adapters in the batch."""
        return sorted(self._running)

    @property
    def in_batch(self) -> int:
        return len(self._running)

    def may_enter(self, adapter: int) -> bool:
        return adapter in self._running or len(self._running) < self.max_loras

    def enter(self, adapter: int) -> bool:
        """A request of this adapter joins the batch; True when the adapter must be copied to the GPU first."""
        self._running[adapter] = self._running.get(adapter, 0) + 1
        if adapter in self._resident:
            self._resident.move_to_end(adapter)
            return False
        idle = [a for a in self._resident if a not in self._running]
        for victim in idle[: max(0, len(self._resident) + 1 - self.max_loras)]:
            del self._resident[victim]
        self._resident[adapter] = None
        return True

    def leave(self, adapter: int) -> None:
        self._running[adapter] -= 1
        if self._running[adapter] == 0:
            del self._running[adapter]
            self.left += 1
