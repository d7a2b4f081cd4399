"""Natural-looking English and code, made by a small grammar from seeded draws.

The grammar gives a sentence or a function at a time, made of *pieces*: a word with the space
before it, a mark of punctuation, a line's end with the indentation behind it. Pieces end only where the pre-tokenizers
in use split a text anyway, so that their tokens add up (`tokens`).
"""

import math
import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from itertools import pairwise

import msgspec

from pinchpoint.plan import ContentKind

_PUNCTUATION = r"!-/:-@\[-`{-~"
PIECE = re.compile(
    rf" ?[A-Za-z]+|[{_PUNCTUATION}][A-Za-z]+| ?[{_PUNCTUATION}]+(?:\n+(?: +(?= ))?)?|\n+(?: +(?= ))?| ?[0-9]+"
)
"""A mark directly before letters goes with them, marks in a row stay together, and so do a line's end and the marks
before it; the last space of an indentation goes with what follows. These are the splits that the regular expressions
of byte-pair tokenizers and the word marks of SentencePiece have in common."""
TEXT_END: dict[ContentKind, str] = {"prose": ".\n\n", "code": "\n\n\n"}
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

    def paragraph_sentences(self) -> int:
        """How many sentences the next paragraph has."""
        low, high = SENTENCES_IN_PARAGRAPH
        return low + int(self._random() * (high - low + 1))

    def sentence(self) -> str:
        """Begins with a capital, ends with a mark."""
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
        base, _ = self._deed()
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
        base, past = self._deed()
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

    def _deed(self) -> tuple[str, str]:
        return self._words.deeds[int(self._random() * len(self._words.deeds))]

    def _one(self, among: tuple[str, ...]) -> str:
        return among[int(self._random() * len(among))]


class Code:
    """Functions of a seeded stream of draws, in the manner of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random
        self._words = words()

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


class LongText(msgspec.Struct, frozen=True):
    """A text in pieces, whose end may be followed by its beginning.

    heads: places in `pieces` where a whole text can begin (a paragraph, a function). joints: where the text can go on
    after a first sentence of somebody else (a sentence with the space before it; a function).
    """

    pieces: list[str]
    heads: list[int]
    joints: list[int]


def long_text(kind: ContentKind, seed: int, pieces: int, accepts: Callable[[str], bool]) -> LongText:
    """At least `pieces` of them. A sentence or function with a piece that `accepts` refuses is left out; when nearly
    nothing else comes, the text ends early, and may be empty."""
    text = LongText([], [], [])
    refused: dict[str, bool] = {}

    def fits(parts: list[str]) -> bool:
        for part in parts:
            if part not in refused:
                refused[part] = not accepts(part)
        return not any(refused[part] for part in parts)

    if fits([TEXT_END[kind]]):
        (_write_prose if kind == "prose" else _write_code)(text, seed, pieces, fits)
    return text


def _write_code(text: LongText, seed: int, pieces: int, fits: Callable[[list[str]], bool]) -> None:
    code = Code(seed)
    tries = 0
    while len(text.pieces) < pieces and tries < GIVE_UP_TRIES + len(text.heads) * GIVE_UP_RATIO:
        tries += 1
        parts = pieces_of(code.function() + TEXT_END["code"])
        if fits(parts):
            text.heads.append(len(text.pieces))
            text.joints.append(len(text.pieces))
            text.pieces.extend(parts)


def _write_prose(text: LongText, seed: int, pieces: int, fits: Callable[[list[str]], bool]) -> None:
    prose = Prose(seed)
    tries, left = 0, 0  # sentences that the paragraph still gets
    while (len(text.pieces) < pieces or left > 0) and tries < GIVE_UP_TRIES + len(text.joints) * GIVE_UP_RATIO:
        tries += 1
        parts = pieces_of(" " + prose.sentence())
        if not fits(parts) or (left == 0 and not fits([parts[0][1:]])):
            continue
        if left == 0:
            parts[0] = parts[0][1:]
            left = prose.paragraph_sentences()
            text.heads.append(len(text.pieces))
        else:
            text.joints.append(len(text.pieces))
        left -= 1
        if left == 0 and parts[-1] == ".":
            parts[-1] = TEXT_END["prose"]
        elif left == 0:
            left = 1  # a paragraph does not end with a question
        text.pieces.extend(parts)
    if left > 0:  # given up in the middle of a paragraph
        del text.pieces[text.heads.pop() :]
        text.joints[:] = [joint for joint in text.joints if joint < len(text.pieces)]


GIVE_UP_TRIES = 2000
GIVE_UP_RATIO = 50
"""A tokenizer that refuses so many sentences for each that it takes has no use for this text."""


@cache
def vocabulary(kind: ContentKind) -> dict[str, int]:
    """Every piece that the grammar of this kind makes, with how often it came in a sample, and what a prompt begins
    with and is filled up with."""
    found = Counter(_sample(kind))
    for piece in opening_pieces():
        found[piece] += 1
    return dict(found)


@cache
def marks_before(kind: ContentKind) -> dict[str, str]:
    """Pieces that begin with a letter directly behind a mark, with that mark: the first word in quotes."""
    return {piece: mark for mark, piece in pairwise(_sample(kind)) if piece[0].isalpha() and not mark.endswith("\n")}


@cache
def _sample(kind: ContentKind) -> list[str]:
    return long_text(kind, 0, VOCABULARY_SAMPLE_PIECES, lambda _: True).pieces


VOCABULARY_SAMPLE_PIECES = 1 << 17
"""Each word of the lists then comes a few dozen times."""


class Frame(msgspec.Struct, frozen=True):
    """A first sentence: what stands before each of seven words, and behind the last. past: the deed is over."""

    texts: tuple[str, str, str, str, str, str, str, str]
    past: bool = False


FRAMES: dict[ContentKind, tuple[Frame, ...]] = {
    "prose": (
        Frame(("", " and", "", " the", "", " and the", "", "."), past=True),
        Frame(("Could", " and", "", " the", "", " and the", "", "?")),
        Frame(("Did", " and", "", " the", "", " and the", "", "?")),
        Frame(("Should", " and", "", " the", "", " and the", "", "?")),
    ),
    "code": (Frame(("# Functions for", " and", " to", " the", "", " and the", "", ".\n\n")),),
}
SHARED_FRAMES: dict[ContentKind, tuple[Frame, ...]] = {
    "prose": tuple(
        Frame((first, " and", " on how to", " the", "", " and the", "", ".")) for first in ("Notes by", "The book by")
    ),
    "code": (Frame(("# Notes by", " and", " on how to", " the", "", " and the", "", ".\n\n")),),
}
"""Apart from those of single prompts: a text that is shared never begins like one that is not."""
SYSTEM_FRAMES = tuple(
    Frame((first, " and", " to", " the", "", " and the", "", ".")) for first in ("You help", "We help", "Please help")
)
DOCUMENT_FRAMES = tuple(
    Frame((first, " and", " who had to", " the", "", " and the", "", ".")) for first in ("Report of", "The story of")
)


def slots(knows: Callable[[str], bool]) -> tuple[tuple[str, ...], ...]:
    """Words for the seven places of a frame (name, name, deed, quality, thing, quality, thing), each with a space
    before it; a deed is `base/past`. knows: whether a piece may be used."""
    lists = words()
    names = tuple(" " + name for name in lists.names if knows(" " + name) and knows(name))
    deeds = tuple(f" {base}/ {past}" for base, past in lists.deeds if knows(" " + base) and knows(" " + past))
    qualities = tuple(" " + word for word in lists.qualities if knows(" " + word))
    things = tuple(" " + word for word in lists.things if knows(" " + word))
    return names, names, deeds, qualities, things, qualities, things


def opening(number: int, places: tuple[tuple[str, ...], ...], frames: tuple[Frame, ...]) -> list[str]:
    """Pieces of a first sentence that says `number`: two numbers below `openings` never get the same one."""
    number, which = divmod(number, len(frames))
    frame = frames[which]
    chosen = []
    for among in places:
        number, pick = divmod(number, len(among))
        chosen.append(among[pick])
    base, past = chosen[2].split("/")
    chosen[2] = past if frame.past else base
    text = "".join(fixed + word for fixed, word in zip(frame.texts, chosen, strict=False)) + frame.texts[-1]
    return pieces_of(text.lstrip())


def openings(places: tuple[tuple[str, ...], ...], frames: tuple[Frame, ...]) -> int:
    """How many different first sentences there are."""
    return len(frames) * math.prod(len(among) for among in places)


def first_pieces() -> list[str]:
    """Everything that an opening begins with."""
    every = (*FRAMES.values(), *SHARED_FRAMES.values(), SYSTEM_FRAMES, DOCUMENT_FRAMES)
    fixed = [pieces_of(frame.texts[0])[0] for frames in every for frame in frames if frame.texts[0]]
    return [*words().names, *dict.fromkeys(fixed)]


def usable(frames: tuple[Frame, ...], knows: Callable[[str], bool]) -> tuple[Frame, ...]:
    """Those whose own words may be used; all of them where none may."""
    fitting = tuple(frame for frame in frames if all(knows(piece) for text in frame.texts for piece in pieces_of(text)))
    return fitting or frames


def opening_pieces() -> list[str]:
    """Everything that openings are made of."""
    lists = words()
    found = [form for name in lists.names for form in (name, " " + name)]
    found += [" " + word for deed in lists.deeds for word in deed]
    found += [" " + word for word in (*lists.qualities, *lists.things)]
    own, shared = FRAMES.values(), SHARED_FRAMES.values()
    fixed = [text for frames in (*own, *shared, SYSTEM_FRAMES, DOCUMENT_FRAMES) for one in frames for text in one.texts]
    return found + [piece for text in fixed for piece in pieces_of(text)]
