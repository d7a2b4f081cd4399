"""What each scheduled request asks of the lab's service: its whole prompt, and what of it others have asked before.

The live load writes texts, and the service finds out what they share. Here nothing is written: each full block of a
prompt gets a number that is the same exactly when all text up to its end is the same.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from pinchpoint.lab.events import Details
from pinchpoint.schedule import UNSHARED, ScheduledRequest
from pinchpoint.workload.classes import Traffic, TrafficClass
from pinchpoint.workload.prefixes import PrefixTree

PATCH_PIXELS = 28
"""A side of the square of an image that is one token, as the served lab counts (Qwen2-VL: 14, merged 2 x 2)."""
BLOCKS_BITS = 20
"""Of a block's number: its place in the prompt; above them, whose text it is."""
TURN_BITS = 12
ID_BITS = 46
SESSIONS, REQUESTS = 1, 2
"""Whose own text it is; 0 is that of repeated prompts."""
SYSTEM = -1
"""Node of a shared beginning that is the system prompt."""


class Asked(msgspec.Struct, frozen=True):
    """prompt_tokens: of the whole prompt, without further texts. input_tokens: with them. shared_tokens: of them, those
    that other requests begin with, by design."""

    prompt_tokens: int
    input_tokens: int
    shared_tokens: int
    details: Details


class _Said(msgspec.Struct):
    """A conversation so far. turns: tokens of each message with its answer, oldest first. forgotten: turns left out.
    prefix_id, begins: the shared beginning of the first message, and its tokens."""

    prefix_id: int
    begins: int
    turns: list[int] = []
    forgotten: int = 0


class Asks:
    """Follows conversations. `ask` before a request is sent, `answered` when it has ended well."""

    def __init__(
        self, traffic: Traffic, tree: PrefixTree | None, block_tokens: int, *, repeated_prompts: int | None = None
    ) -> None:
        self._classes = traffic.classes
        self._tree = tree
        self._block_tokens = block_tokens
        self._repeated = repeated_prompts
        self._repeated_tokens: dict[int, int] = {}
        self._said: dict[int, _Said] = {}
        self._shared: dict[tuple[int, int, int], tuple[int, ...]] = {}

    def repeat(self, prompts: int | None) -> None:
        """From now on only so many different prompts are sent; None: each is another."""
        self._repeated = prompts
        self._repeated_tokens.clear()

    def ask(self, row: ScheduledRequest) -> Asked:
        one = self._classes[row.class_id]
        if self._repeated is not None:  # the same prompt has the same length
            tokens = self._repeated_tokens.setdefault(row.request_id % self._repeated, row.input_tokens)
            row = msgspec.structs.replace(row, input_tokens=tokens)
        said = self._said.get(row.session_id) if one.remembers else None
        history = 0
        if said is not None:
            self._forget_oldest(one, row, said)
            history = sum(said.turns)
        prefix_id, begins = row.prefix_id, 0
        if not history:
            begins = self._beginning(one, row)
        elif said is not None and not said.forgotten:
            prefix_id, begins = said.prefix_id, said.begins
        message = row.input_tokens
        extra: tuple[int, ...] = ()
        if one.documents is not None:
            if row.max_output_tokens > 0:
                message += one.documents.count * one.documents.tokens
            elif one.paired:
                own = message
                message += one.documents.tokens
                extra = (own + one.documents.tokens,) * (one.documents.count - 1)
            else:
                extra = (one.documents.tokens,) * one.documents.count
        prompt = one.system_tokens + history + message
        planned = prompt + row.max_output_tokens
        details = Details(
            block_keys=self._keys(row, said, prefix_id, one.system_tokens + begins, planned),
            session=row.session_id,
            schema=row.class_id if one.schema is not None else None,
            image_tokens=_image_tokens(one),
            extra_prompts=extra,
        )
        shared = one.system_tokens + (history or begins)
        return Asked(prompt, prompt + sum(extra), shared, details)

    def answered(self, row: ScheduledRequest, output_tokens: int) -> None:
        one = self._classes[row.class_id]
        if one.remembers:
            said = self._said.get(row.session_id)
            if said is None:
                said = self._said[row.session_id] = _Said(row.prefix_id, self._beginning(one, row))
            said.turns.append(row.input_tokens + output_tokens)

    def forget(self, session_id: int) -> None:
        self._said.pop(session_id, None)

    def _forget_oldest(self, one: TrafficClass, row: ScheduledRequest, said: _Said) -> None:
        """As content.ContentWriter: the oldest turns are left out when the whole request would not fit."""
        if one.context_tokens is None:
            return
        room = one.context_tokens - row.max_output_tokens - one.system_tokens - row.input_tokens
        while said.turns and sum(said.turns) > room:
            del said.turns[0]
            said.forgotten += 1

    def _beginning(self, one: TrafficClass, row: ScheduledRequest) -> int:
        """Tokens of the shared beginning behind the system prompt."""
        if row.prefix_id == UNSHARED:
            return 0
        if one.prefix is not None:
            return min(one.prefix.tokens, row.input_tokens)
        return min(self._tree.tokens_to(row.prefix_id), row.input_tokens) if self._tree is not None else 0

    def _keys(
        self, row: ScheduledRequest, said: _Said | None, prefix_id: int, shared_tokens: int, planned_tokens: int
    ) -> Sequence[int]:
        """Numbers of the full blocks. What is the session's own is told by the session and by the turn it begins with;
        a conversation only grows, so its later requests continue the numbers of the earlier ones."""
        blocks = planned_tokens // self._block_tokens
        one = self._classes[row.class_id]
        if self._repeated is not None:
            own = (row.request_id % self._repeated) << BLOCKS_BITS
        elif one.remembers:
            turn = said.forgotten if said is not None else 0
            own = (SESSIONS << ID_BITS | row.session_id << TURN_BITS | turn) << BLOCKS_BITS
        else:
            own = (REQUESTS << ID_BITS | row.request_id) << BLOCKS_BITS
        full = min(shared_tokens // self._block_tokens, blocks)
        if not full:
            return range(own, own + blocks)
        return (*self._shared_keys(row.class_id, one, prefix_id, full), *range(own + full, own + blocks))

    def _shared_keys(self, class_id: int, one: TrafficClass, prefix_id: int, blocks: int) -> tuple[int, ...]:
        known = self._shared.get((class_id, prefix_id, blocks))
        if known is not None:
            return known
        nodes, sizes = [SYSTEM], [one.system_tokens]
        if prefix_id != UNSHARED and one.prefix is None and self._tree is not None:
            path = self._tree.path(prefix_id)
            nodes += path
            sizes += [int(self._tree.tokens[node]) for node in path]
        else:
            nodes.append(prefix_id)
            sizes.append(math.inf)  # pyright: ignore[reportArgumentType]
        ends = list(accumulate(sizes))
        keys, place = [], 0
        for i in range(blocks):
            last_token = (i + 1) * self._block_tokens
            while place < len(nodes) - 1 and ends[place] < last_token:
                place += 1
            keys.append(-1 - ((class_id << 32 | nodes[place] + 1) << BLOCKS_BITS | i))
        found = self._shared[class_id, prefix_id, blocks] = tuple(keys)
        return found


def _image_tokens(one: TrafficClass) -> int:
    if one.images is None:
        return 0
    across, down = (math.ceil(side / PATCH_PIXELS) for side in (one.images.width, one.images.height))
    return one.images.count * across * down
