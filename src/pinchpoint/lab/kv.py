"""The KV block pool: how many blocks are free, which hold a known text, and which of the free ones go first.

Not here: who holds which block; a sequence knows its own. How it works. A block is anonymous (a number among others)
or keyed (the prefix cache knows its text). Keyed blocks are shared by reference count. What is given back goes to the
end of one line of free blocks, a sequence's last blocks before its first, and new blocks are taken from the front of
that line, so the least recently used text is forgotten first (vLLM's rule). Anonymous free blocks need no identity, so
the line keeps them as runs with a count.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence


class BlockPool:
    """`total` blocks of `block_size_tokens` tokens; free counts those that nobody holds, cached or not."""

    __slots__ = ("_free_keys", "_holders", "_owed", "_runs", "_stamp", "block_size_tokens", "evicted", "free", "total")

    def __init__(self, total: int, block_size_tokens: int) -> None:
        self.total = total
        self.free = total
        self.block_size_tokens = block_size_tokens
        self.evicted = 0
        """Keyed blocks whose text was forgotten for a new one."""
        self._owed = 0
        """Blocks withdrawn by `resize` while they were held; they leave as they become free."""
        self._holders: dict[Hashable, int] = {}
        self._free_keys: OrderedDict[Hashable, int] = OrderedDict()
        """Keyed blocks without a holder, least recently used first, with the stamp of their return."""
        self._runs: deque[list[int]] = deque([[0, total]])
        """[stamp, blocks] of anonymous free blocks, oldest first. A run came back after the keys of its stamp."""
        self._stamp = 0

    @property
    def used(self) -> int:
        """Blocks held, withdrawn ones included."""
        return self.total + self._owed - self.free

    @property
    def used_ratio(self) -> float:
        return min(1.0, self.used / self.total)

    @property
    def shared_keys(self) -> int:
        """Keyed blocks that somebody holds."""
        return len(self._holders) - len(self._free_keys)

    @property
    def cached_free(self) -> int:
        """Keyed blocks that nobody holds."""
        return len(self._free_keys)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size_tokens)

    def cached(self, keys: Sequence[Hashable], most: int) -> int:
        """How many of the first keys, `most` at the most, are cached without a gap."""
        holders = self._holders
        found = 0
        while found < most and keys[found] in holders:
            found += 1
        return found

    def take(self, blocks: int) -> bool:
        """That many anonymous blocks, all or none."""
        if blocks > self.free:
            return False
        self.free -= blocks
        runs, free_keys = self._runs, self._free_keys
        while blocks > 0:
            if runs and (not free_keys or runs[0][0] < next(iter(free_keys.values()))):
                run = runs[0]
                if run[1] > blocks:
                    run[1] -= blocks
                    break
                blocks -= run[1]
                runs.popleft()
            else:
                key, _ = free_keys.popitem(last=False)
                del self._holders[key]
                self.evicted += 1
                blocks -= 1
        return True

    def claim(self, keys: Sequence[Hashable], blocks: int) -> bool:
        """Cached blocks (all of keys must be cached) and so many anonymous ones, all or nothing."""
        free_keys, holders = self._free_keys, self._holders
        unheld = len({key for key in keys if key in free_keys}) if keys else 0
        if blocks + unheld > self.free:
            return False
        for key in keys:
            if holders[key] == 0:
                del free_keys[key]
            holders[key] += 1
        self.free -= unheld
        return self.take(blocks)

    def register(self, key: Hashable) -> bool:
        """An anonymous block of the caller's now holds this text. False: another block does already, nothing changes
        and the caller's stays anonymous."""
        if key in self._holders:
            return False
        self._holders[key] = 1
        return True

    def give(self, blocks: int, keys: Sequence[Hashable] = ()) -> None:
        """Anonymous blocks come back, and holds on keyed ones end."""
        if blocks:
            leaving = min(self._owed, blocks)
            self._owed -= leaving
            self._free_anonymous(blocks - leaving)
        if keys:
            self._stamp += 1
            holders = self._holders
            for key in reversed(keys):
                holders[key] -= 1
                if holders[key]:
                    continue
                if self._owed:
                    self._owed -= 1
                    del holders[key]
                else:
                    self._free_keys[key] = self._stamp
                    self.free += 1
        if self.free > self.total:
            raise AssertionError(f"{self.free} of {self.total} KV blocks are free: a block was given back twice")

    def resize(self, total: int) -> None:
        """More blocks are there at once; of fewer, the free ones go now and the others as they become free."""
        added = total - self.total
        self.total = total
        if added >= 0:
            returned = min(self._owed, added)
            self._owed -= returned
            self._free_anonymous(added - returned)
        else:
            withdrawn = min(self.free, -added)
            self.take(withdrawn)
            self._owed += -added - withdrawn

    def forget(self) -> None:
        """No text is cached any more. Nobody may hold a keyed block."""
        self._free_anonymous(len(self._free_keys))
        self.free -= len(self._free_keys)
        self._free_keys.clear()
        self._holders.clear()

    def _free_anonymous(self, blocks: int) -> None:
        if not blocks:
            return
        self.free += blocks
        if self._runs and self._runs[-1][0] == self._stamp:
            self._runs[-1][1] += blocks
        else:
            self._runs.append([self._stamp, blocks])
