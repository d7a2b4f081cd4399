"""The KV block pool: how many blocks are free, and who holds how many.

Counts only. Which block holds what does not matter without a prefix cache, and there is none yet.
"""


class BlockPool:
    """`total` blocks of `block_size_tokens` tokens."""

    __slots__ = ("block_size_tokens", "free", "total")

    def __init__(self, total: int, block_size_tokens: int) -> None:
        self.total = total
        self.free = total
        self.block_size_tokens = block_size_tokens

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size_tokens)

    def take(self, blocks: int) -> bool:
        """All or nothing."""
        if blocks > self.free:
            return False
        self.free -= blocks
        return True

    def give(self, blocks: int) -> None:
        self.free += blocks
        if self.free > self.total:
            raise AssertionError(f"{self.free} of {self.total} KV blocks are free: a block was given back twice")

    @property
    def used_ratio(self) -> float:
        return (self.total - self.free) / self.total
