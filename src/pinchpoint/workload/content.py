"""What each request asks: texts of exact lengths, unique where nothing is to be shared, and conversations that hold the
model's real answers.

Everything is a function of the seed and the row, but for the answers. A prompt costs a hash and a few copies, whatever
its length: texts are cut from one long text per kind, which is made when it is first needed and stays behind when a
writer is sent to another process.
"""

import base64
import random
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from pinchpoint.plan import ContentKind
from pinchpoint.prompt import Image, Message, Prompt
from pinchpoint.schedule import UNSHARED, ScheduledRequest
from pinchpoint.workload.classes import Traffic, TrafficClass
from pinchpoint.workload.images import VARIANTS, picture
from pinchpoint.workload.schemas import load_schema
from pinchpoint.workload.text import GRAMMARS, WORDS, opening
from pinchpoint.workload.tokens import CHARS_PER_TOKEN, TokenTable, counter_of_file
from pinchpoint.workload.tools import functions

LONG_TEXT_PIECES = 1 << 17
"""Of the text that prompts are cut from; longer prompts go around it."""
SENTENCE_ENDS = (".", "?", "\n\n")


@dataclass(frozen=True)
class LongText:
    """ends, tokens: where each piece ends in `text`, and how many tokens there are up to there; first of all 0."""

    text: str
    ends: array  # of int64, len pieces + 1
    tokens: array  # of float64, len pieces + 1
    starts: array  # of int64: pieces that a sentence, or a function, begins with


@lru_cache(maxsize=4)
def _long_text(seed: int, kind: ContentKind, table_key: bytes) -> LongText:
    table = msgspec.msgpack.decode(table_key, type=TokenTable)
    pieces = list(islice(GRAMMARS[kind](random.Random(seed)), LONG_TEXT_PIECES))
    ends, tokens = array("q", [0]), array("d", [0.0])
    starts = array("q", [0])
    at, total = 0, 0.0
    for i, piece in enumerate(pieces):
        at += len(piece)
        if piece in SENTENCE_ENDS and i + 1 < len(pieces):
            starts.append(i + 1)
        total += table.of(piece)
        ends.append(at)
        tokens.append(total)
    return LongText("".join(pieces), ends, tokens, starts)


@dataclass
class _Said:
    """A conversation so far. tokens: of each message, with what the service adds to it."""

    messages: list[Message] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


class ContentWriter:
    """Writes prompts; see load.messages.Content. `table` may be replaced until the first prompt is written."""

    def __init__(self, seed: int, traffic: Traffic, table: TokenTable) -> None:
        self._seed = seed
        self._classes = traffic.classes
        self._table = table
        self._key = msgspec.msgpack.encode(table)
        self._said: dict[int, _Said] = {}
        self._pending: dict[int, tuple[Message, float]] = {}
        """session_id -> the turn that is under way."""
        self._fillers: tuple[str, ...] | None = None
        self._systems: dict[int, Message] = {}
        self.counts_answers = table.file is not None

    @property
    def table(self) -> TokenTable:
        return self._table

    def prepare(self) -> None:
        """Makes the texts, the pictures and the like of every class, a tenth of a second for each kind of text."""
        for class_id, one in enumerate(self._classes):
            row = ScheduledRequest(0, 0, 0, 0, 0, 0, LONG_TEXT_PIECES, 1, class_id=class_id)
            self.write(row)
            for number in range(VARIANTS if one.images is not None else 0):
                assert one.images is not None
                picture(number, one.images)
        self.forget(0)

    # -- prompts -----------------------------------------------------------------------------------------------------

    def write(self, row: ScheduledRequest) -> Prompt:
        one = self._classes[row.class_id]
        overhead = self._table.added(system=one.system_tokens > 0)
        said = self._said.get(row.session_id) if one.remembers else None
        begins = said is None or not said.messages
        shared = self._shared(one, row) if begins else 0
        own = max(1, round(row.input_tokens - shared - (overhead if begins else self._table.message_tokens)))
        text = self._unique(one, b"%d" % row.request_id, own)
        if shared:
            text = self._cut(one.content, b"shared %d %d" % (row.class_id, row.prefix_id), shared) + "\n\n" + text
        user = Message("user", text.lstrip())
        planned = float(max(row.input_tokens, own + shared + overhead) if begins else row.input_tokens)
        messages = [user]
        if said is not None:
            self._forget_oldest(one, row, said, planned)
            messages = [*said.messages, user]
            self._pending[row.session_id] = (user, planned)
            planned += sum(said.tokens)
        elif one.remembers:
            self._pending[row.session_id] = (user, planned)
        if one.system_tokens:
            messages.insert(0, self._system(row.class_id, one))
            planned += one.system_tokens
        shared_tokens = planned - own
        documents = self._documents(one, row)
        if one.documents is not None:
            planned += one.documents.count * one.documents.tokens
        return Prompt(
            tuple(messages),
            round(planned),
            row.max_output_tokens,
            round(max(0.0, shared_tokens)),
            images=self._images(one, row),
            tools=functions(self._seed, row.class_id, one.tools) if one.tools else (),
            schema=load_schema(one.schema) if one.schema is not None else None,
            documents=documents,
        )

    def remembers(self, row: ScheduledRequest) -> bool:
        return self._classes[row.class_id].remembers

    def remember(self, row: ScheduledRequest, answer: str, tokens: int | None = None) -> None:
        """tokens: of the answer as the service counted them; None: counted or estimated here."""
        asked = self._pending.pop(row.session_id, None)
        if asked is None:
            return
        counted = tokens if tokens is not None else self.count(answer)
        known = counted if counted is not None else len(answer) / CHARS_PER_TOKEN
        said = self._said.setdefault(row.session_id, _Said())
        said.messages += [asked[0], Message("assistant", answer)]
        said.tokens += [asked[1], known + self._table.message_tokens]

    def forget(self, session_id: int) -> None:
        self._said.pop(session_id, None)
        self._pending.pop(session_id, None)

    def count(self, text: str) -> int | None:
        return None if self._table.file is None else counter_of_file(self._table.file)(text)

    def calibrate(self, tokens_per_word: float, overhead_tokens: float) -> None:
        if self._table.exact:
            return
        self._table = msgspec.structs.replace(
            self._table, per_piece=tokens_per_word, overhead_tokens=overhead_tokens, odd={}
        )
        self._key = msgspec.msgpack.encode(self._table)
        self._fillers = None
        self._systems.clear()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _shared(self, one: TrafficClass, row: ScheduledRequest) -> int:
        """Tokens of the shared beginning; of a short message all but one."""
        if row.prefix_id == UNSHARED or one.prefix is None:
            return 0
        added = self._table.added(system=one.system_tokens > 0)
        return max(0, min(one.prefix.tokens, row.input_tokens - round(added) - 1))

    def _system(self, class_id: int, one: TrafficClass) -> Message:
        found = self._systems.get(class_id)
        if found is None:
            text = self._cut("prose", b"system %d" % class_id, one.system_tokens)
            found = self._systems[class_id] = Message("system", text.lstrip())
        return found

    def _documents(self, one: TrafficClass, row: ScheduledRequest) -> tuple[str, ...]:
        if one.documents is None:
            return ()
        keys = (b"%d document %d" % (row.request_id, i) for i in range(one.documents.count))
        return tuple(self._unique(one, key, one.documents.tokens).lstrip() for key in keys)

    def _images(self, one: TrafficClass, row: ScheduledRequest) -> tuple[Image, ...]:
        if one.images is None:
            return ()
        shape = one.images
        return tuple(
            Image(
                "image/png",
                base64.b64encode(picture(self._number(b"%d image %d" % (row.request_id, i)), shape)).decode(),
            )
            for i in range(shape.count)
        )

    def _forget_oldest(self, one: TrafficClass, row: ScheduledRequest, said: _Said, asked_tokens: float) -> None:
        """Leaves out the oldest turns while the whole request would not fit, as chat applications do."""
        if one.context_tokens is None:
            return
        room = one.context_tokens - row.max_output_tokens - one.system_tokens - asked_tokens
        while said.messages and sum(said.tokens) > room:
            del said.messages[:2], said.tokens[:2]

    def _unique(self, one: TrafficClass, key: bytes, tokens: int) -> str:
        """A text that no other key has the beginning of. With the space before its first word."""
        number = self._number(key)
        first = opening(random.Random(number))
        return self._cut(one.content, key, tokens, first, number)

    def _cut(
        self, kind: ContentKind, key: bytes, tokens: int, first: Sequence[str] = (), number: int | None = None
    ) -> str:
        """Exactly so many tokens: `first`, then a piece of the long text, then words to make the number whole."""
        table = self._table
        number = self._number(key) if number is None else number
        parts: list[str] = []
        left = float(tokens)
        for piece in first:
            if table.of(piece) > left:
                break
            parts.append(piece)
            left -= table.of(piece)
        long = _long_text(self._seed, kind, self._key)
        place = long.starts[number % len(long.starts)]
        while left > 0:
            there = long.tokens[-1] - long.tokens[place]
            end = LONG_TEXT_PIECES if there <= left else bisect_right(long.tokens, long.tokens[place] + left) - 1
            parts.append(long.text[long.ends[place] : long.ends[end]])
            left -= long.tokens[end] - long.tokens[place]
            if end < LONG_TEXT_PIECES:
                break
            place = 0
        parts += self._words(number, left)
        return "".join(parts)

    def _words(self, number: int, left: float) -> list[str]:
        """Words of one unit each for what is left."""
        if self._fillers is None:
            self._fillers = tuple(word for word in WORDS if word not in self._table.odd)
        words = round(left / self._table.per_piece)
        return [self._fillers[(number + i) % len(self._fillers)] for i in range(words)] if self._fillers else []

    def _number(self, key: bytes) -> int:
        return int.from_bytes(blake2b(key, digest_size=8, key=b"%d" % self._seed).digest(), "little")

    def __getstate__(self) -> dict[str, Any]:
        """Without texts and conversations: they are made anew where the writer arrives."""
        return {**self.__dict__, "_said": {}, "_pending": {}, "_systems": {}, "_fillers": None}
