"""Natural-looking English and code, made by a small grammar from seeded draws.

The text comes in units, a sentence or a function at a time, and every unit is made of *pieces*: a word with the space
before it, a mark of punctuation, a line's end with the indentation behind it. Pieces end only where the pre-tokenizers
in use split a text anyway, so that their tokens add up (`tokens`).
"""

import random
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files

import msgspec

from pinchpoint.plan import ContentKind

_PUNCTUATION = r"!-/:-@\[-`{-~"
PIECE = re.compile(
    rf" ?[A-Za-z]+|[{_PUNCTUATION}][A-Za-z]+| ?[{_PUNCTUATION}]+(?:\n+(?: +(?= ))?)?|\n+(?: +(?= ))?| ?[0-9]+"
)
"""A mark directly before letters goes with them, marks in a row stay together, and so do a line's end and the marks
before it; the last space of an indentation goes with what follows. These are the splits that the regular expressions
of byte-pair tokenizers and the word marks of SentencePiece have in common."""
PARAGRAPH_END = {"prose": ".\n\n", "code": "\n\n\n"}
"""What stands behind a whole text that another one follows."""
SENTENCES_IN_PARAGRAPH = (3, 7)


def pieces_of(text: str) -> list[str]:
    """The text in pieces; joined they are the text again."""
    return PIECE.findall(text)


class Words(msgspec.Struct, frozen=True):
    """Lists of words.toml; deeds as (base, past)."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    stuff: tuple[str, ...]
    qualities: tuple[str, ...]
    deeds: tuple[tuple[str, str], ...]
    manners: tuple[str, ...]
    links: tuple[str, ...]
    relations: tuple[str, ...]
    openers: tuple[str, ...]
    code_verbs: tuple[str, ...]
    code_nouns: tuple[str, ...]


@cache
def words() -> Words:
    raw = tomllib.loads(files("pinchpoint.workload").joinpath("words.toml").read_text(encoding="utf-8"))
    lists = {key: value.split() for key, value in raw.items()}
    lists["deeds"] = [deed.split("/") for deed in lists["deeds"]]
    return msgspec.convert(lists, Words)


def article(word: str) -> str:
    """The indefinite article before a word of the lists."""
    by_sound = {"hour": "an", "union": "a", "unique": "a", "unit": "a", "universal": "a", "useful": "a", "user": "a"}
    by_sound |= {"usual": "a", "unusual": "an", "one": "a"}
    return by_sound.get(word, "an" if word[0] in "aeiou" else "a")


def plural(thing: str) -> str:
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return thing[:-1] + "ies"
    return thing + ("es" if thing.endswith(("s", "x", "ch", "sh")) else "s")


class Prose:
    """Sentences of a seeded stream of draws."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._words = words()

    def units(self) -> Iterator[str]:
        """Sentence after sentence, for ever. One that begins a paragraph has no space before it; one that ends a
        paragraph has the empty line behind it. Every paragraph is whole."""
        low, high = SENTENCES_IN_PARAGRAPH
        while True:
            count = low + int(self._random() * (high - low + 1))
            for i in range(count):
                yield ("" if i == 0 else " ") + self.sentence() + ("\n\n" if i == count - 1 else "")

    def sentence(self) -> str:
        draw = self._random()
        if draw < 0.14:
            text = self._question()
        elif draw < 0.34:
            text = f"{self._one(self._words.openers)}, {self._clause()}."
        elif draw < 0.52:
            text = f"{self._clause()} {self._one(self._words.links)} {self._clause()}."
        elif draw < 0.64:
            text = f"{self._clause()}, and {self._clause()}."
        elif draw < 0.72:
            text = f"{self._who()} said that {self._clause()}."
        else:
            text = f"{self._clause()}."
        return text[0].upper() + text[1:]

    def _question(self) -> str:
        shape = int(self._random() * 5)
        base, _ = self._one(self._words.deeds)
        if shape == 0:
            return f"what is the best way to {base} {self._thing()}?"
        if shape == 1:
            return f"why did {self._who()} {base} {self._thing()}?"
        if shape == 2:
            return f"how can we {base} {self._thing()} {self._where()}?"
        if shape == 3:
            return f"could you explain how {self._clause()}?"
        return f"do you know when {self._clause()}?"

    def _clause(self) -> str:
        who, what = self._who(), self._thing()
        base, past = self._one(self._words.deeds)
        draw = self._random()
        if draw < 0.2:
            return f"{who} {self._one(self._words.manners)} {past} {what}"
        if draw < 0.5:
            return f"{who} {past} {what} {self._where()}"
        if draw < 0.62:
            return f"{who} had to {base} {what}"
        if draw < 0.74:
            return f"{who} was more {self._one(self._words.qualities)} than {what}"
        if draw < 0.84:
            return f"{who} could not {base} {what} {self._where()}"
        return f"{who} {past} {what}"

    def _who(self) -> str:
        draw = self._random()
        if draw < 0.25:
            return self._one(self._words.names)
        if draw < 0.4:
            return ("we", "they", "she", "he", "it", "you")[int(self._random() * 6)]
        return self._thing()

    def _thing(self) -> str:
        draw = self._random()
        if draw < 0.12:
            return f"{('the', 'some', 'more', 'their', 'our')[int(self._random() * 5)]} {self._one(self._words.stuff)}"
        if draw < 0.3:
            number = ("the", "many", "two", "three", "several", "most", "these", "few")[int(self._random() * 8)]
            return f"{number} {self._maybe_quality()}{plural(self._one(self._words.things))}"
        if draw < 0.45:
            noun = f"{self._maybe_quality()}{self._one(self._words.things)}"
            return f"{article(noun.split(' ')[0])} {noun}"
        if draw < 0.58:
            return f"the {self._one(self._words.things)} of the {self._one(self._words.things)}"
        the = ("the", "this", "his", "her", "every")[min(4, int(self._random() * 8))] if draw < 0.7 else "the"
        return f"{the} {self._maybe_quality()}{self._one(self._words.things)}"

    def _maybe_quality(self) -> str:
        return f"{self._one(self._words.qualities)} " if self._random() < 0.4 else ""

    def _where(self) -> str:
        if self._random() < 0.2:
            return f"in {self._one(self._words.places)}"
        return f"{self._one(self._words.relations)} the {self._one(self._words.things)}"

    def _one[T](self, among: tuple[T, ...]) -> T:
        return among[int(self._random() * len(among))]


class Code:
    """Functions of a seeded stream of draws, in the manner of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._words = words()

    def units(self) -> Iterator[str]:
        """Function after function, for ever, each with its empty lines behind it."""
        while True:
            yield self.function() + "\n\n\n"

    def function(self) -> str:
        """Ends with a name."""
        verb, noun, other = self._verb(), self._noun(), self._noun()
        many, limit, found, key = plural(noun), self._noun(), self._noun(), self._noun()
        number = self._number()
        summary = f"{verb.capitalize()} the {other} of all {many} with {article(limit)} {limit}."
        head = f'def {verb}_{noun}_{other}({many}, {limit}):\n    """{summary}"""\n'
        shape = int(self._random() * 6)
        if shape == 0:
            body = (
                f"    {found} = {number}\n    for {noun} in {many}:\n        if {noun}.{key} > {limit}:\n"
                f"            {found} += {noun}.{other}\n    return {found}"
            )
        elif shape == 1:
            body = (
                f"    if not {many}:\n        return None\n    {found} = sorted({many}, key={self._verb()}_{key})\n"
                f"    return {found}[:{number}] or {limit}"
            )
        elif shape == 2:
            body = (
                f"    {found} = {{}}\n    for {noun} in {many}:\n"
                f"        {found}[{noun}.{key}] = {self._verb()}_{key}({noun}, {limit})\n    return {found}"
            )
        elif shape == 3:
            body = (
                f"    {found} = [{noun}.{key} for {noun} in {many} if {noun}.{other} is not {limit}]\n"
                f"    if len({found}) < {number}:\n"
                f'        raise ValueError("too few {many} for the {limit}")\n    return {found}'
            )
        elif shape == 4:
            body = (
                f"    {found}, {key} = {number}, {limit}\n    while {key} > {found}:\n"
                f"        {key} = {key} - {self._verb()}_{noun}({many}[{found}])\n        {found} += 1\n"
                f"    return {key}"
            )
        else:
            body = (
                f"    with {self._verb()}_{key}({limit}) as {key}:\n        for {noun} in {many}:\n"
                f"            {key}.{self._verb()}({noun}.{found})\n    return {key}"
            )
        return head + body

    def _verb(self) -> str:
        return self._words.code_verbs[int(self._random() * len(self._words.code_verbs))]

    def _noun(self) -> str:
        return self._words.code_nouns[int(self._random() * len(self._words.code_nouns))]

    def _number(self) -> int:
        return (0, 1, 2, 3, 5, 8, 10, 16, 64, 100)[int(self._random() * 10)]


def units(kind: ContentKind, seed: int) -> Iterator[str]:
    return Prose(seed).units() if kind == "prose" else Code(seed).units()


def collect(kind: ContentKind, seed: int, pieces: int, accepts: Callable[[str], bool]) -> tuple[list[str], list[int]]:
    """(pieces of a text of at least `pieces` of them, where in that list each unit begins).

    A unit with a piece that `accepts` refuses is left out, and with a sentence its paragraph. The text ends as
    `PARAGRAPH_END` and begins as a text does, so it can be read in a circle. Empty when nearly nothing is accepted.
    """
    found: list[str] = []
    starts: list[int] = []
    refused: dict[str, bool] = {}
    paragraph: list[list[str]] = []
    left_out = 0
    for unit in units(kind, seed):
        if len(found) >= pieces or left_out > GIVE_UP_UNITS + len(starts) * GIVE_UP_RATIO:
            break
        parts = pieces_of(unit)
        for part in parts:
            if part not in refused:
                refused[part] = not accepts(part)
        if any(refused[part] for part in parts):
            left_out += 1
            if kind == "code" or not unit.endswith("\n\n"):
                continue
            if not paragraph or any(refused[part] for part in (".", ".\n\n")):
                continue
            paragraph[-1][-1] = ".\n\n"  # the paragraph ends one sentence earlier
        else:
            paragraph.append(parts)
        if not unit.endswith("\n\n"):
            continue
        if paragraph[0][0].startswith(" "):
            first = paragraph[0][0][1:]
            if refused.setdefault(first, not accepts(first)):
                paragraph.clear()
                continue
            paragraph[0][0] = first
        for parts in paragraph:
            starts.append(len(found))
            found.extend(parts)
        paragraph.clear()
    return found, starts


GIVE_UP_UNITS = 2000
GIVE_UP_RATIO = 50
"""A tokenizer that refuses so many units for each that it takes has no use for this text."""
