"""What prompts share: a beginning that all have, beginnings out of a pool, and how much a prefix cache could reuse."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pinchpoint.plan import PrefixSpec
from pinchpoint.workload.traces.table import RequestLog

SYSTEM_SHARE = 0.9
"""Of the requests that must begin with a block for it to be called the system prompt of all."""
POOL_SHARE_MIN = 0.02
"""Of first messages: fewer that share a beginning are not worth a pool."""
SKEWS = np.arange(0, 2.01, 0.1)
"""Exponents of Zipf that are tried; published traces lie within."""


@dataclass(frozen=True)
class BlockPaths:
    """rows: for each request the nodes of a tree of blocks, int64, from the first block on; equal nodes mean equal text
    from the beginning of the prompt. seen: how many of them an earlier request had."""

    rows: Sequence[np.ndarray]
    seen: np.ndarray  # int64
    nodes: int


@dataclass(frozen=True)
class Sharing:
    """system_tokens: that nearly all share; 0: none. prefix: of first messages, behind the system prompt."""

    system_tokens: int
    prefix: PrefixSpec | None


def block_paths(log: RequestLog) -> BlockPaths | None:
    """None for a log without blocks."""
    if log.blocks is None:
        return None
    known: dict[tuple[int, object], int] = {}
    rows: list[np.ndarray] = []
    seen = np.zeros(len(log), np.int64)
    for row, blocks in enumerate(log.blocks):
        node, path = -1, np.empty(len(blocks), np.int64)
        for place, block in enumerate(blocks):
            key = (node, block)
            found = known.get(key)
            if found is None:
                found = known[key] = len(known)
            else:
                seen[row] += 1
            path[place] = node = found
        rows.append(path)
    return BlockPaths(rows, seen, len(known))


def sharing_of(log: RequestLog, paths: BlockPaths, first: np.ndarray, chosen: np.ndarray) -> Sharing:
    """first: rows that begin a conversation. chosen: rows to learn from, bool; what they share with others counts."""
    visits = np.zeros(paths.nodes, np.int64)
    for path in paths.rows:
        visits[path] += 1
    common = 0
    while True:
        nodes = [int(path[common]) for path in paths.rows if len(path) > common]
        if not nodes or np.bincount(nodes).max() < SYSTEM_SHARE * len(log):
            break
        common += 1
    visits[:] = 0
    for row in first.tolist():
        visits[paths.rows[row]] += 1
    groups: dict[int, int] = {}
    depths: list[int] = []
    learnt = first[chosen[first]]
    for row in learnt.tolist():
        path = paths.rows[row]
        shared = int(np.count_nonzero(visits[path] > 1))  # visits never grow along a path
        if shared > common:
            depths.append(shared - common)
            groups[int(path[common])] = groups.get(int(path[common]), 0) + 1
    system_tokens = common * log.block_tokens
    if len(depths) < POOL_SHARE_MIN * len(learnt) or not depths:
        return Sharing(system_tokens, None)
    sizes = np.sort(np.array(list(groups.values())))[::-1]
    tokens = round(float(np.mean(depths)) * log.block_tokens)
    ratio = len(depths) / len(learnt)
    return Sharing(system_tokens, PrefixSpec(tokens, len(sizes), round(ratio, 3), _skew(sizes)))


def _skew(sizes: np.ndarray) -> float:
    """Exponent of Zipf under which groups of these sizes, largest first, are the likeliest."""
    ranks = np.log(np.arange(1, len(sizes) + 1))
    likelihoods = [float(-s * (sizes @ ranks) - sizes.sum() * np.log(np.exp(-s * ranks).sum())) for s in SKEWS]
    return round(float(SKEWS[int(np.argmax(likelihoods))]), 1)
