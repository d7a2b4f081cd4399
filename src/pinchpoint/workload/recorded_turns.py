"""Which recorded requests belong to one conversation, and what each of them adds to it.

Where the trace names its sessions, they are taken. Where it only tells the blocks of the prompts, a request whose
blocks go on where those of one earlier request end is its next turn: an engine with a prefix cache sees just that.
"""

from dataclasses import dataclass

import numpy as np

from pinchpoint.workload.sharing import BlockPaths
from pinchpoint.workload.traces.table import RequestLog

HISTORY_SHARE = 0.8
"""Of the later turns whose prompt must be as long as all that was said before, to take it that prompts hold it. Some
services strip parts of an answer, such as its reasoning, so not all of them are."""


@dataclass(frozen=True)
class RecordedTurns:
    """Shape (n,) each, int64. session: numbered from 0. turn: from 0. previous: row of the turn before; -1: none.
    message_tokens: what is new in this turn. source: "sessions", "blocks" or "" (every request stands alone).
    has_history: whether input_tokens of the trace holds what was said before."""

    session: np.ndarray
    turn: np.ndarray
    previous: np.ndarray
    message_tokens: np.ndarray
    source: str
    has_history: bool


def turns_in(log: RequestLog, paths: BlockPaths | None) -> RecordedTurns:
    """paths: of the blocks of the log; None where it has none."""
    n = len(log)
    if log.session is not None:
        previous = _previous_in(log.session)
        source = "sessions"
    elif paths is not None:
        previous = _continued(log, paths)
        source = "blocks"
    else:
        return RecordedTurns(
            np.arange(n), np.zeros(n, np.int64), np.full(n, -1), log.input_tokens.astype(np.int64), "", False
        )
    session, turn = np.arange(n), np.zeros(n, np.int64)
    for row in np.flatnonzero(previous >= 0).tolist():  # rows come in the order of time, so the one before is done
        session[row], turn[row] = session[previous[row]], turn[previous[row]] + 1
    _, session = np.unique(session, return_inverse=True)
    later = previous >= 0
    before = np.where(later, log.input_tokens[previous] + log.output_tokens[previous], 0)
    # Messages of the session so far, for traces that tell each message alone.
    has_history = bool(later.any()) and float(np.mean(_grew(log, previous)[later])) >= HISTORY_SHARE
    message = np.maximum(log.input_tokens - before, 1) if has_history else log.input_tokens
    return RecordedTurns(session, turn, previous, message.astype(np.int64), source, has_history)


def _grew(log: RequestLog, previous: np.ndarray) -> np.ndarray:
    """Whether the prompt is at least as long as the one before it with half of its answer."""
    return log.input_tokens >= log.input_tokens[previous] + log.output_tokens[previous] // 2


def _previous_in(session: np.ndarray) -> np.ndarray:
    order = np.argsort(session, kind="stable")
    grouped = session[order]
    previous = np.full(len(session), -1, np.int64)
    same = grouped[1:] == grouped[:-1]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def _continued(log: RequestLog, paths: BlockPaths) -> np.ndarray:
    """The row that each request goes on from. A block counts as the mark of one request when no other had it until the
    next turn came: what many share is a beginning, and no conversation."""
    previous = np.full(len(log), -1, np.int64)
    last_row: dict[int, int] = {}
    """Node of the last whole block of a request -> its row, as long as nobody went on from it."""
    visits = np.zeros(paths.nodes, np.int64)
    full = (log.input_tokens // log.block_tokens).tolist()
    inputs = log.input_tokens.tolist()
    for row, path in enumerate(paths.rows):
        for node in reversed(path):
            before = last_row.get(node)
            if before is not None:
                if visits[node] == 1 and inputs[row] > inputs[before]:
                    previous[row] = before
                    del last_row[node]
                break
        visits[path] += 1
        if 0 < full[row] <= len(path):
            last_row[int(path[full[row] - 1])] = row
    return previous
