"""Beginnings that requests share, as a tree: what a trace of prefix blocks says about its requests.

A node is a stretch of text behind that of its parent. Two requests that end in the same node begin with the same text;
two that part at a node share what is above it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

ROOT = -1


@dataclass(frozen=True)
class PrefixTree:
    """Shape (n,) each; a parent comes before its children. ROOT has no text."""

    parent: np.ndarray  # int32
    tokens: np.ndarray  # int32; of the node alone

    def path(self, node: int) -> list[int]:
        """Nodes from the first to this one."""
        found: list[int] = []
        while node != ROOT:
            found.append(node)
            node = int(self.parent[node])
        return found[::-1]

    def tokens_to(self, node: int) -> int:
        """With everything above it."""
        return sum(int(self.tokens[one]) for one in self.path(node))


class PrefixTreeBuilder:
    """Makes a tree from lists of blocks, of which equal ones mean equal text at the same place."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, Hashable], int] = {}
        self._parent: list[int] = []
        self._tokens: list[int] = []

    def add(self, blocks: Sequence[Hashable], block_tokens: int) -> int:
        """The node in which these blocks end; ROOT for none."""
        node = ROOT
        for block in blocks:
            known = self._nodes.get((node, block))
            if known is None:
                known = self._nodes[node, block] = len(self._parent)
                self._parent.append(node)
                self._tokens.append(block_tokens)
            node = known
        return node

    def tree(self) -> PrefixTree:
        return PrefixTree(np.array(self._parent, np.int32), np.array(self._tokens, np.int32))
