"""What each request asks: texts of exact lengths, unique where nothing is to be shared, and conversations that hold the
model's real answers.

Everything is a function of the seed and the row, but for the answers. A prompt costs a hash and a few copies, whatever
its length: texts are cut from one long text per kind, which is made when it is first needed and stays behind when a
writer is sent to another process. What makes a text unique is its first sentence, which says the request's number in
words: two requests of a run never begin alike, and no block of a prefix cache fits both.
"""

import base64
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import prod
from typing import Any

import msgspec

from pinchpoint.plan import ContentKind
from pinchpoint.prompt import Image, Message, Prompt
from pinchpoint.schedule import UNSHARED, ScheduledRequest
from pinchpoint.workload.classes import Traffic, TrafficClass
from pinchpoint.workload.images import VARIANTS, picture
from pinchpoint.workload.prefixes import PrefixTree
from pinchpoint.workload.schemas import load_schema
from pinchpoint.workload.text import (
    DOCUMENT_FRAMES,
    FRAMES,
    SHARED_FRAMES,
    SYSTEM_FRAMES,
    TEXT_END,
    Frame,
    long_text,
    opening,
    slots,
    usable,
    words,
)
from pinchpoint.workload.tokens import CHARS_PER_TOKEN, TokenTable, counter_of_file
from pinchpoint.workload.tools import functions

LONG_TEXT_PIECES = 1 << 17
"""Of the text that prompts are cut from; longer prompts go around it."""
OWN_TOKENS_MIN = 16
"""Of a message beside its shared beginning: enough to differ from all others, one block of a prefix cache."""
STRIDE = 2**61 - 1
"""A prime: neighbouring numbers get first sentences that are far apart, and none gets that of another."""
DOCUMENTS_STRIDE = 1 << 16
CLASS_STRIDE = 1 << 24
SHARED_KEPT = 4096
"""Shared texts that are kept ready."""
MESSAGE_END: dict[ContentKind, str] = {"prose": ".", "code": ""}
"""Behind the last word of a whole message."""


@dataclass(frozen=True)
class Source:
    """A long text to cut from.

    ends, units: characters and units before each piece and, last, in all; shape (pieces + 1,). A unit is a token, or a
    piece where tokens are estimated. word_end: for each piece, the last place up to there at which a word ends. heads,
    joints: as in text.LongText. fillers: words of one unit, to make a number whole. slots: words of first sentences.
    """

    text: str
    ends: array
    units: array
    word_end: array
    heads: array
    joints: array
    fillers: tuple[tuple[str, ...], tuple[str, ...]]
    slots: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=4)
def _source(seed: int, kind: ContentKind, tokens: bytes) -> Source:
    """tokens: TokenTable.tokens as MessagePack, so that the same table finds the same text."""
    table: dict[str, int] = msgspec.msgpack.decode(tokens)
    knows = table.__contains__ if table else lambda _: True
    made = long_text(kind, seed, LONG_TEXT_PIECES, knows)
    ends, units, word_end = array("q", [0]), array("q", [0]), array("q", [0])
    characters = total = last = 0
    for place, piece in enumerate(made.pieces, 1):
        characters += len(piece)
        total += table.get(piece, 1)
        if piece[-1].isalnum():
            last = place
        ends.append(characters)
        units.append(total)
        word_end.append(last)

    def of_one_unit(among: Sequence[str]) -> tuple[str, ...]:
        return tuple(" " + word for word in among if knows(" " + word) and table.get(" " + word, 1) == 1)

    lists = words()
    one_unit = slots(lambda piece: knows(piece) and table.get(piece, 1) == 1)
    return Source(
        "".join(made.pieces),
        ends,
        units,
        word_end,
        array("q", made.heads),
        array("q", made.joints),
        (of_one_unit(lists.relations), of_one_unit(lists.stuff) or of_one_unit(lists.things)),
        one_unit if min(map(len, one_unit)) >= SLOT_WORDS_MIN else slots(knows),
    )


SLOT_WORDS_MIN = 16
"""With fewer words of one token, first sentences take longer ones."""


@dataclass
class _Said:
    """A conversation so far. tokens: of each message, with what the service adds to it."""

    messages: list[Message] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


class ContentWriter:
    """Writes prompts; see load.messages.Content.

    tree: what prefix_id means for classes without a `prefix` of their own. roles: by class_id, whether its API has
    roles and so a chat template; empty: all have.
    """

    def __init__(
        self,
        seed: int,
        traffic: Traffic,
        table: TokenTable,
        tree: PrefixTree | None = None,
        roles: tuple[bool, ...] = (),
    ) -> None:
        self._seed = seed
        self._classes = traffic.classes
        self._table = table
        self._tree = tree
        self._roles = roles
        self._tokens_key = msgspec.msgpack.encode(table.tokens)
        self._start = self._number(b"start")
        self._empty()
        self.counts_answers = table.file is not None

    def _empty(self) -> None:
        self._said: dict[int, _Said] = {}
        self._pending: dict[int, tuple[Message, float]] = {}
        """session_id -> the turn that is under way."""
        self._sources: dict[ContentKind, Source] = {}
        self._shared: dict[tuple[int, int, int], str] = {}
        """(class, node, tokens) -> text."""
        self._systems: dict[int, Message] = {}
        self._frames: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}

    @property
    def table(self) -> TokenTable:
        return self._table

    def prepare(self) -> None:
        """Makes the texts, pictures and tables of all classes, a few tenths of a second in all. Raises UsageError for a
        schema or a tokenizer file that cannot be read."""
        self._source("prose")
        if self.counts_answers:
            self.count("")
        for class_id, one in enumerate(self._classes):
            self._source(one.content)
            if one.system_tokens:
                self._system(class_id, one)
            if one.schema is not None:
                load_schema(one.schema)
            for number in range(VARIANTS if one.images is not None else 0):
                assert one.images is not None
                picture(number, one.images)

    # -- prompts -----------------------------------------------------------------------------------------------------

    def write(self, row: ScheduledRequest) -> Prompt:
        one = self._classes[row.class_id]
        said = self._said.get(row.session_id) if one.remembers else None
        added = self._added(row.class_id, one)
        has_history = said is not None and bool(said.messages)
        room = row.input_tokens - round(self._message_tokens(row.class_id) if has_history else added)
        shared, shared_tokens = ("", 0) if has_history else self._beginning(one, row, room - OWN_TOKENS_MIN)
        own_tokens = max(1, room - shared_tokens)
        own = self._unique(one.content, row.request_id, own_tokens, FRAMES[one.content], MESSAGE_END[one.content])
        documents = self._documents(one, row)
        documents_tokens = one.documents.count * one.documents.tokens if one.documents is not None else 0
        if one.paired and one.documents is not None:  # the message is read once with each of them
            documents_tokens += (one.documents.count - 1) * own_tokens
        inside = documents if row.max_output_tokens > 0 else ()  # what generates reads them as part of the message
        user = Message("user", "".join([shared, *inside, own]))
        tokens = own_tokens + shared_tokens + documents_tokens
        messages = [user]
        if one.remembers:
            if said is not None:
                self._forget_oldest(one, row, said, added + tokens)
                messages = [*said.messages, user]
            self._pending[row.session_id] = (user, tokens)
            tokens += sum(said.tokens) if said is not None else 0
        if one.system_tokens:
            messages.insert(0, self._system(row.class_id, one))
        planned = round(tokens + added + one.system_tokens + self._tools_tokens(row.class_id))
        return Prompt(
            tuple(messages),
            planned if self._counts(row.class_id, one) else 0,
            row.max_output_tokens,
            round(tokens + added + one.system_tokens - own_tokens - documents_tokens),
            images=self._images(one, row),
            tools=functions(self._seed, row.class_id, one.tools) if one.tools else (),
            schema=load_schema(one.schema) if one.schema is not None else None,
            documents=() if inside else documents,
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
        added = self._message_tokens(row.class_id)
        said = self._said.setdefault(row.session_id, _Said())
        said.messages += [asked[0], Message("assistant", answer)]
        said.tokens += [asked[1] + added, known + added]

    def forget(self, session_id: int) -> None:
        self._said.pop(session_id, None)
        self._pending.pop(session_id, None)

    def count(self, text: str) -> int | None:
        return None if self._table.file is None else counter_of_file(self._table.file)(text)

    def calibrate(self, tokens_per_word: float, overhead_tokens: float) -> None:
        if self._table.exact:
            return
        self._table = msgspec.structs.replace(
            self._table, per_piece=tokens_per_word, overhead_tokens=overhead_tokens, tokens={}
        )
        self._systems.clear()
        self._shared.clear()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _has_roles(self, class_id: int) -> bool:
        return not self._roles or self._roles[class_id if class_id < len(self._roles) else 0]

    def _added(self, class_id: int, one: TrafficClass) -> float:
        """What the service adds to a first message."""
        if self._has_roles(class_id):
            return self._table.added(system=one.system_tokens > 0)
        return self._table.plain_overhead_tokens

    def _message_tokens(self, class_id: int) -> float:
        return self._table.message_tokens if self._has_roles(class_id) else 0.0

    def _counts(self, class_id: int, one: TrafficClass) -> bool:
        """Whether the tokens of a whole request can be told beforehand. What a picture is worth is the model's own
        matter, and so are functions where the service does not count them."""
        tools = self._table.tools_tokens[class_id] if class_id < len(self._table.tools_tokens) else None
        return one.images is None and (not one.tools or tools is not None)

    def _tools_tokens(self, class_id: int) -> float:
        known = self._table.tools_tokens
        return (known[class_id] or 0.0) if class_id < len(known) else 0.0

    def _beginning(self, one: TrafficClass, row: ScheduledRequest, room: int) -> tuple[str, int]:
        """The shared beginning of a message and its tokens, cut where it does not fit."""
        if row.prefix_id == UNSHARED or room <= 0:
            return "", 0
        if one.prefix is not None:
            tokens = min(one.prefix.tokens, room)
            return self._shared_text(one, row.class_id, row.prefix_id, tokens), tokens
        if self._tree is None:
            return "", 0
        parts, total = [], 0
        for node in self._tree.path(row.prefix_id):
            tokens = min(int(self._tree.tokens[node]), room - total)
            if tokens <= 0:
                break
            parts.append(self._shared_text(one, row.class_id, node, tokens))
            total += tokens
        return "".join(parts), total

    def _shared_text(self, one: TrafficClass, class_id: int, node: int, tokens: int) -> str:
        key = (class_id, node, tokens)
        found = self._shared.get(key)
        if found is None:
            if len(self._shared) >= SHARED_KEPT:
                self._shared.clear()
            number = class_id * CLASS_STRIDE + node
            kind = one.content
            found = self._shared[key] = self._unique(kind, number, tokens, SHARED_FRAMES[kind], TEXT_END[kind])
        return found

    def _system(self, class_id: int, one: TrafficClass) -> Message:
        found = self._systems.get(class_id)
        if found is None:
            text = self._unique("prose", class_id, one.system_tokens, SYSTEM_FRAMES, MESSAGE_END["prose"])
            found = self._systems[class_id] = Message("system", text)
        return found

    def _documents(self, one: TrafficClass, row: ScheduledRequest) -> tuple[str, ...]:
        if one.documents is None:
            return ()
        first = row.request_id * DOCUMENTS_STRIDE
        end = TEXT_END["prose"] if row.max_output_tokens > 0 else MESSAGE_END["prose"]
        return tuple(
            self._unique("prose", first + i, one.documents.tokens, DOCUMENT_FRAMES, end)
            for i in range(one.documents.count)
        )

    def _images(self, one: TrafficClass, row: ScheduledRequest) -> tuple[Image, ...]:
        if one.images is None:
            return ()
        shape = one.images
        numbers = (self._number(b"%d image %d" % (row.request_id, i)) for i in range(shape.count))
        return tuple(Image("image/png", base64.b64encode(picture(number, shape)).decode()) for number in numbers)

    def _forget_oldest(self, one: TrafficClass, row: ScheduledRequest, said: _Said, asked_tokens: float) -> None:
        """Leaves out the oldest turns while the whole request would not fit, as chat applications do."""
        if one.context_tokens is None:
            return
        room = one.context_tokens - row.max_output_tokens - one.system_tokens - asked_tokens
        while said.messages and sum(said.tokens) > room:
            del said.messages[:2], said.tokens[:2]

    # -- texts -------------------------------------------------------------------------------------------------------

    def _source(self, kind: ContentKind) -> Source:
        found = self._sources.get(kind)
        if found is None:
            found = self._sources[kind] = _source(self._seed, kind, self._tokens_key)
        return found

    def _unique(self, kind: ContentKind, number: int, tokens: int, frames: tuple[Frame, ...], end: str) -> str:
        """A text of so many tokens that ends as `end` and begins as no other of another number or other frames does.

        First sentence, then a stretch of the long text up to a word's end, then words of one token for what is left. A
        text that is too short for its first sentence has the beginning of it.
        """
        table = self._table
        source = self._source(kind)
        left = tokens if table.tokens else round(tokens / table.per_piece)
        closing = table.tokens.get(end, 1) if end else 0
        if closing < left:
            left -= closing
        else:
            end = ""
        frames = self._usable(frames)
        said = (number * STRIDE + self._start) % (len(frames) * prod(map(len, source.slots)))
        parts: list[str] = []
        first = opening(said, source.slots, frames)
        for piece in first:
            cost = table.tokens.get(piece, 1)
            if cost > left:
                break
            parts.append(piece)
            left -= cost
        if len(parts) == len(first):
            left -= self._stretch(source, number, left, parts)
        while parts and not parts[-1][-1].isalnum():
            left += table.tokens.get(parts.pop(), 1)
        self._fill(source, number, left, parts)
        return "".join(parts) + end

    def _usable(self, frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
        found = self._frames.get(frames)
        if found is None:
            found = self._frames[frames] = usable(frames, self._table.knows)
        return found

    def _stretch(self, source: Source, number: int, left: int, parts: list[str]) -> int:
        """Adds a stretch of the long text of at most so many units, to a word's end; tells how many it has."""
        if not source.joints:
            return 0
        place = source.joints[self._number(b"%d" % number) % len(source.joints)]
        units, taken, whole = source.units, 0, len(source.units) - 1
        while units[whole] - units[place] <= left - taken:
            parts.append(source.text[source.ends[place] :])
            taken += units[whole] - units[place]
            place = 0
        end = source.word_end[bisect_right(units, units[place] + left - taken) - 1]
        if end > place:
            parts.append(source.text[source.ends[place] : source.ends[end]])
            return taken + units[end] - units[place]
        if taken > 0:  # the way around ends where the text does; it shall end with a word, too
            last = source.word_end[whole]
            parts[-1] = parts[-1][: source.ends[last] - source.ends[whole]]
            taken -= units[whole] - units[last]
        return taken

    @staticmethod
    def _fill(source: Source, number: int, left: int, parts: list[str]) -> None:
        """Adds words of one unit each: `with time`, `over water`."""
        relations, things = source.fillers
        if not things:
            return
        for i in range(left, 0, -1):
            among = relations if i % 2 == 0 and relations else things
            word = among[(number + i) % len(among)]
            parts.append(word if parts else word.strip())

    def _number(self, key: bytes) -> int:
        return int.from_bytes(blake2b(key, digest_size=8, key=b"%d" % self._seed).digest(), "little")

    def __getstate__(self) -> dict[str, Any]:
        """Without texts and conversations: they are made anew where the writer arrives."""
        kept = ("_seed", "_classes", "_table", "_tree", "_roles", "_tokens_key", "_start", "counts_answers")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._empty()
