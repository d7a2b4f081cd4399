"""The items of one long array inside a JSON text, decoded in batches while the text streams by.

A decoder that wants the whole text needs several times its size in memory. Here the text is cut at places that look
like the border between two objects of the array, and a batch is decoded at once. A cut in the wrong place (within a
string, or within a nested array) leaves a batch that is no JSON, so a batch that decodes was cut rightly; one that does
not is walked through object by object, which finds the true borders and the damage.
"""

import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from pinchpoint.profiles.source import Source

Item = TypeVar("Item")

BATCH_BYTES = 4 << 20
LARGEST_ITEM_BYTES = 64 << 20
"""A single object larger than this is given up."""
LARGEST_HEAD_BYTES = 64 << 20
"""What stands before the array."""
LONGEST_WALK_BYTES = 1 << 20
"""How far the end of an object is looked for where batches do not decode."""
DAMAGES_TOLD = 10
"""Of one file, one by one."""
OTHER_TYPE = "a field is of another type than the format says"
NO_JSON = "it is not JSON"
UNFINISHED = "an object has no end"
_BORDER = re.compile(rb"\}\s*,\s*(?=\{)")
_BORDER_WINDOW_BYTES = 64 << 10
_BORDERS_TRIED = 4
_NOT_JSON_NUMBERS = re.compile(rb"(?<=[:,\[\s])[-+]?(?:nan|inf(?:inity)?)(?=[,\]\}\s])", re.IGNORECASE)
"""Written by older profilers where a quotient had no denominator."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_RESUME = re.compile(rb'\{\s*"(?:ph|cat|name|ts|pid|tid|size|kind)"\s*:')
"""How an object of a trace begins; where reading goes on behind damage."""


NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no JSON: the second for text that is no UTF-8."""


class Damage(msgspec.Struct, frozen=True):
    """Bytes that could not be read. byte_offset: from the begin of the text. bytes: how many were passed over."""

    byte_offset: int
    bytes: int
    reason: str


class ArrayReader(Generic[Item]):
    """Reads one array of objects. After items() is exhausted, head and tail are the text around the array, found tells
    whether there was one, closed whether its end was seen, damages what was passed over."""

    def __init__(self, decoder: "msgspec.json.Decoder[list[Item]]", one: "msgspec.json.Decoder[Item]") -> None:
        self._decoder = decoder
        self._one = one
        self.head = b""
        self.tail = b""
        self.found = False
        self.closed = False
        self.damages: list[Damage] = []

    def items(self, pieces: Iterator[bytes], start: Callable[[bytes], int | None]) -> Iterator[list[Item]]:
        """start: given the text so far, where the array's first item begins (behind its bracket), None if not yet."""
        text = bytearray()
        at: int | None = None
        for piece in pieces:
            text += piece
            at = start(bytes(text))
            if at is not None or len(text) > LARGEST_HEAD_BYTES:
                break
        if at is None:
            self.head = bytes(text)
            return
        self.found = True
        self.head = bytes(text[:at])
        del text[:at]
        offset = at
        for piece in pieces:
            text += piece
            if len(text) < BATCH_BYTES:
                continue
            batch, used = self._batch(bytes(text), offset)
            if batch:
                yield batch
            del text[:used]
            offset += used
            if self.closed:
                break
            if len(text) > LARGEST_ITEM_BYTES:
                self.damages.append(Damage(offset, len(text), "an object larger than 64 MiB"))
                offset += len(text)
                text.clear()
        if not self.closed:
            rest = bytes(text)
            batch, used = self._batch(rest, offset)
            if batch:
                yield batch
            rest, offset = rest[used:], offset + used
            if not self.closed:
                batch, used = self._walk(rest, offset, final=True)
                if batch:
                    yield batch
                rest = rest[used:]
            text = bytearray(rest)
        self.tail = bytes(text)
        for piece in pieces:
            if len(self.tail) < LARGEST_HEAD_BYTES:
                self.tail += piece

    def _batch(self, text: bytes, offset: int) -> tuple[list[Item], int]:
        """Decodes as many whole items from the begin as a likely border allows. Returns them, and how many bytes were
        used including the comma behind the last."""
        window = max(0, len(text) - _BORDER_WINDOW_BYTES)
        borders = list(_BORDER.finditer(text, window))
        if not borders:
            borders = list(_BORDER.finditer(text))
        for border in reversed(borders[-_BORDERS_TRIED:]):
            whole = b"[" + text[: border.start() + 1] + b"]"
            try:
                return self._decoder.decode(whole), border.end()
            except msgspec.ValidationError:
                break  # the cut is right, an item is not
            except NOT_JSON:
                pass
            try:
                return self._decoder.decode(_NOT_JSON_NUMBERS.sub(b"null", whole)), border.end()
            except NOT_JSON:
                pass
        return self._walk(text, offset, final=False) if borders else ([], 0)

    def _walk(self, text: bytes, offset: int, *, final: bool) -> tuple[list[Item], int]:
        """Object by object from the begin, to the end of the array or of the text. final: nothing will follow."""
        items: list[Item] = []
        at = 0
        while True:
            opening = _skip_separators(text, at)
            if opening >= len(text):
                return items, opening if final else at
            if text[opening : opening + 1] == b"]":
                self.closed = True
                return items, opening + 1
            item, end, reason = self._object(text, opening)
            if item is not None:
                items.append(item)
                at = end
                continue
            if reason == OTHER_TYPE:
                self.damages.append(Damage(offset + opening, end - opening, reason))
                at = end
                continue
            if reason == UNFINISHED and not final and len(text) - opening < LONGEST_WALK_BYTES:
                return items, at
            resume = _RESUME.search(text, opening + 1)
            if resume is None and not final:
                return items, at
            end = resume.start() if resume else len(text)
            self.damages.append(Damage(offset + opening, end - opening, reason))
            at = end

    def _object(self, text: bytes, at: int) -> tuple[Item | None, int, str]:
        """The object that begins here, behind it, and if there is none why. Where the next object seems to begin is
        tried first: a stray quotation mark hides the true end from whoever counts brackets."""
        if text[at : at + 1] != b"{":
            return None, at, NO_JSON
        for count, following in enumerate(_RESUME.finditer(text, at + 1)):
            if count == _BORDERS_TRIED:
                break
            item, reason = self._item(text[at : following.start()].rstrip(b", \t\r\n"))
            if reason != NO_JSON:
                return item, following.start(), reason
        end = _end_of_object(text, at)
        if end is None:
            return None, at, UNFINISHED
        item, reason = self._item(text[at:end])
        return item, end, reason

    def _item(self, text: bytes) -> tuple[Item | None, str]:
        for attempt in (text, None):
            try:
                return self._one.decode(_NOT_JSON_NUMBERS.sub(b"null", text) if attempt is None else text), ""
            except (msgspec.ValidationError, RecursionError):
                return None, OTHER_TYPE
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
        return None, NO_JSON


_SEPARATORS = re.compile(rb"[\s,]*")


def _skip_separators(text: bytes, at: int) -> int:
    found = _SEPARATORS.match(text, at)
    return found.end() if found else at


def _end_of_object(text: bytes, at: int) -> int | None:
    """Behind the brace that closes the one at this place, None if the text (or patience) ends before."""
    depth = 0
    for token in _TOKEN.finditer(text, at, at + LONGEST_WALK_BYTES):
        first = text[token.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
            if depth == 0:
                return token.end()
    return None


def note_damages(source: Source, damages: list[Damage]) -> None:
    """Tells each of the first, and the rest in one sentence."""
    for damage in damages[:DAMAGES_TOLD]:
        source.lost(f"{damage.bytes:,} bytes were passed over: {damage.reason}", byte_offset=damage.byte_offset)
    rest = damages[DAMAGES_TOLD:]
    if rest:
        lost_bytes = sum(damage.bytes for damage in rest)
        source.lost(
            f"{lost_bytes:,} more bytes were passed over in {len(rest):,} places", byte_offset=rest[0].byte_offset
        )
