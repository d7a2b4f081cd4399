"""How many tokens a text has for the target's tokenizer, and how that is known.

A text's tokens are the sum of those of its pieces (see `text`). `measured` learns them from anything that counts whole
texts, a local tokenizer file or the service itself. Most pieces are one token, so many are asked about at once: where a
joined text has as many tokens as pieces, each piece is one token; where not, it is halved until the odd pieces stand
alone. Whole sentences are counted then, and a piece whose tokens depend on its neighbours is used no more.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.plan import ContentKind
from pinchpoint.workload.text import first_pieces, long_text, marks_before, vocabulary, words

TokenSource = Literal["file", "service", "estimate"]
Counter = Callable[[str], int]
Splitter = Callable[[str], list[int] | None]
"""Where each token of a text ends, in characters; None where that cannot be told."""
CHECK_PIECES = (40, 400, 2000)
"""Lengths of the texts that a table is checked on at last."""
CHECK_ERROR_MAX_RATIO = 0.002
"""A table that is off by more is an estimate."""
SEARCH_PIECES = 6000
"""Of sentences in which pieces that do not add up are searched for: a common word comes a few times."""
SEARCH_ROUNDS = 4
SEARCH_SEED, CHECK_SEED = 1, 2
REFUSED_MAX = 200
"""When more pieces do not add up, the others are not to be trusted either."""
CHARS_PER_TOKEN = 4.0
"""Of English text, for an answer whose tokens nobody counted. The usual rule of thumb of tokenizers with 50 to 200
thousand entries."""
USUAL_MESSAGE_TOKENS = 5.0
"""A role, its marks and a line break, in the ChatML template and its kin."""


class TokenTable(msgspec.Struct, frozen=True):
    """tokens: of each piece that may be used; empty: of every piece per_piece. overhead_tokens: what the service adds
    to one user's message. message_tokens: what it adds to each further message. source: who counted; `note` says it in
    words, with how far it can be off. file: the tokenizer that can count answers."""

    source: TokenSource
    note: str
    per_piece: float = 1.0
    """Tokens of a piece that is not in `tokens`, where nobody counted."""
    tokens: dict[str, int] = {}
    overhead_tokens: float = 0.0
    message_tokens: float = 0.0
    system_overhead_tokens: float | None = None
    """In place of overhead_tokens where there is a system message: what is added to it and the user's together; some
    templates put in one of their own else. None: overhead_tokens and message_tokens together."""
    plain_overhead_tokens: float = 0.0
    """What is added to a text that goes without roles, as a first token of its own."""
    tools_tokens: tuple[float | None, ...] = ()
    """What the functions of each class add, by class_id; None or missing: not counted."""
    file: str | None = None

    @property
    def exact(self) -> bool:
        return self.source != "estimate"

    def added(self, *, system: bool) -> float:
        """Tokens beside the texts of a first turn."""
        if not system:
            return self.overhead_tokens
        if self.system_overhead_tokens is not None:
            return self.system_overhead_tokens
        return self.overhead_tokens + self.message_tokens

    def knows(self, piece: str) -> bool:
        """Whether the piece may stand in a text."""
        return not self.tokens or piece in self.tokens

    def of(self, piece: str) -> float:
        return self.tokens.get(piece, self.per_piece)


def estimated(tokens_per_word: float | None, overhead_tokens: float | None, why: str = "") -> TokenTable:
    """By words: from the probe's two prompts of known length, else one token each and nothing added."""
    if tokens_per_word is None:
        note = "estimated: one token per word and mark, and nothing added by a chat template"
    else:
        note = f"estimated from two prompts that the service counted: {tokens_per_word:.3g} tokens per word"
    return TokenTable(
        "estimate",
        f"{note} ({why})" if why else note,
        per_piece=tokens_per_word or 1.0,
        overhead_tokens=overhead_tokens or 0.0,
        message_tokens=min(overhead_tokens or 0.0, USUAL_MESSAGE_TOKENS),
    )


def measured(
    count: Counter,
    kinds: Iterable[ContentKind],
    *,
    source: TokenSource,
    told_by: str,
    split: Splitter | None = None,
    file: str | None = None,
) -> TokenTable:
    """A table from a counter of whole texts, without any template, for content of these kinds. split: spares most of
    the questions.

    When the parts do not add up, the table is an estimate whose `per_piece` is the mean. Whatever `count` raises is
    passed on.
    """
    wanted: tuple[ContentKind, ...] = tuple(
        dict.fromkeys(("prose", *kinds))
    )  # system prompts and first sentences are prose always
    often = {piece: n for kind in wanted for piece, n in vocabulary(kind).items()}
    alone = _Alone(count, split)
    marks = {piece: mark for kind in wanted for piece, mark in marks_before(kind).items()}
    tokens = alone.of_each(list(often), marks)
    _leave_out_moody(alone, tokens)
    for kind in wanted:
        _search(alone, kind, tokens, often)
    checks = [_sample(kind, CHECK_SEED, length, tokens) for kind in wanted for length in CHECK_PIECES]
    expected = [sum(tokens[piece] for piece in sample) for sample in checks]
    if not all(checks) or len(often) - len(tokens) > REFUSED_MAX:
        sample = long_text("prose", CHECK_SEED, CHECK_PIECES[-1], lambda _: True).pieces
        mean = count("".join(sample)) / len(sample)
        note = f"estimated: tokens of words do not add up for {told_by}; {mean:.3g} tokens per word on average"
        return TokenTable("estimate", note, per_piece=mean, file=file)
    errors = [alone.error(sample, tokens) for sample in checks]
    off = max(abs(error) for error in errors)
    ratio = max(abs(error) / want for error, want in zip(errors, expected, strict=True))
    if off > 1 and ratio > CHECK_ERROR_MAX_RATIO:
        note = f"estimated: tokens of words do not add up for {told_by} (off by {ratio:.1%} on whole texts)"
        return TokenTable("estimate", note, per_piece=(sum(expected) + sum(errors)) / sum(map(len, checks)), file=file)
    checked = f"counted by {told_by}, checked on texts of {', '.join(f'{n:,}' for n in expected)} tokens"
    if off:
        checked += f", off by up to {off}"
    if all(tokens.get(" " + word) != 1 for word in words().things):
        checked += "; no word is one token, so texts may be a few tokens short"
    return TokenTable(source, checked, tokens=tokens, file=file)


WORD = " time"
"""Stands around pieces that are counted, so that each has a word before it as in a text."""
FIRST = "The"
"""Stands where a text or a line begins."""


LINE_COMMENT = "#"


def _leave_out_moody(alone: "_Alone", tokens: dict[str, int]) -> None:
    """First pieces stand at the beginning of a message or behind a line's end, as the template has it; SentencePiece
    may count them differently. Where the first few do not, no more are asked about."""
    known = [piece for piece in first_pieces() if piece in tokens]
    moody = [piece for piece in known[-FIRST_LOOK:] if alone.at_start(piece) != tokens[piece]]
    if moody:
        moody += [piece for piece in known[:-FIRST_LOOK] if alone.at_start(piece) != tokens[piece]]
    for piece in moody:
        del tokens[piece]


FIRST_LOOK = 16
"""About half of the names depend on where they stand for the tokenizer of Mistral 7B."""


class _Alone:
    """Counts pieces without their neighbours. A piece with a space or a mark in front stands behind a word; one that
    begins with a letter, behind a line's end or the mark that the grammar has there; and behind one that ends with a
    line's end stands another beginning."""

    def __init__(self, count: Counter, split: Splitter | None) -> None:
        self._count = count
        self._split = split
        two = count(FIRST + 2 * WORD)
        self._word = two - count(FIRST + WORD)
        self._first = two - 2 * self._word
        self._line = count(FIRST + WORD + "\n" + FIRST + WORD) - 2 * (self._word + self._first)

    def of_each(self, pieces: list[str], marks: dict[str, str]) -> dict[str, int]:
        """marks: of pieces that begin with a letter and no line begins with, the piece before them."""
        found: dict[str, int] = {}

        def learn(group: list[str], total: int) -> None:
            if total == len(group) or len(group) == 1:
                found.update(dict.fromkeys(group, 1) if total == len(group) else {group[0]: total})
                return
            half = group[: len(group) // 2]
            first = self._sum(half, marks, found)
            learn(half, first)
            learn(group[len(half) :], total - first)

        for group in ([one for one in pieces if one not in marks], [one for one in pieces if one in marks]):
            for start in range(0, len(group), PIECES_AT_ONCE):
                part = group[start : start + PIECES_AT_ONCE]
                found |= self._read(part, marks)
                part = [piece for piece in part if piece not in found]
                if part:
                    learn(part, self._sum(part, marks, found))
        return {piece: tokens for piece, tokens in found.items() if tokens >= 0}

    def _read(self, group: list[str], marks: dict[str, str]) -> dict[str, int]:
        """Of pieces that begin and end with a token, as far as the splitter can tell."""
        if self._split is None:
            return {}
        text, places = _row_of(group, marks)
        ends = self._split(text)
        if ends is None:
            return {}
        up_to = {end: i for i, end in enumerate(ends, 1)} | {0: 0}
        return {
            piece: up_to[end] - up_to[start]
            for piece, (start, end) in zip(group, places, strict=True)
            if start in up_to and end in up_to
        }

    def at_start(self, piece: str) -> int:
        return self._count(piece + WORD) - self._word

    def error(self, pieces: Sequence[str], tokens: dict[str, int]) -> int:
        """How many tokens more a part of a text has than its pieces; behind a sentence if it begins with a space."""
        expected, before, after = sum(tokens[piece] for piece in pieces), "", ""
        if pieces[0][0] == " ":
            before, expected = FIRST + WORD + ".", expected + self._first + self._word + tokens["."]
        if pieces[-1].endswith("\n"):
            after, expected = FIRST, expected + self._first
        return self._count(before + "".join(pieces) + after) - expected

    def _sum(self, group: list[str], marks: dict[str, str], found: dict[str, int]) -> int:
        around = self._first + (len(group) + 1) * self._word
        for piece in group:
            if piece in marks:
                around += found[marks[piece]]
            elif _begins_line(piece):
                around += self._line
            if piece.endswith("\n"):
                around += self._first
        return self._count(_row_of(group, marks)[0]) - around


PIECES_AT_ONCE = 400
"""In one question: about 900 tokens, for services that count no text beyond their context."""


def _begins_line(piece: str) -> bool:
    return piece[0].isalpha() or piece == LINE_COMMENT


def _row_of(group: list[str], marks: dict[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """The pieces in a row, each with what it needs before and behind it; and where each begins and ends."""
    text = FIRST
    places: list[tuple[int, int]] = []
    for piece in group:
        text += WORD
        if piece in marks:
            text += marks[piece]
        elif _begins_line(piece):
            text += "\n"
        places.append((len(text), len(text) + len(piece)))
        text += piece
        if piece.endswith("\n"):
            text += FIRST
    return text + WORD, places


def _sample(kind: ContentKind, seed: int, pieces: int, tokens: dict[str, int]) -> list[str]:
    return long_text(kind, seed, pieces, tokens.__contains__).pieces


def _search(alone: _Alone, kind: ContentKind, tokens: dict[str, int], often: dict[str, int]) -> None:
    """Takes out of `tokens` what does not add up in the sentences of a sample."""
    for round_ in range(SEARCH_ROUNDS):
        text = long_text(kind, SEARCH_SEED + SEED_STRIDE * round_, SEARCH_PIECES, tokens.__contains__)
        places = sorted({*text.heads, *text.joints, len(text.pieces)})
        units = [text.pieces[a:b] for a, b in pairwise(places)]
        wrong: set[str] = set()
        for start in range(0, len(units), UNITS_AT_ONCE):
            _look(alone, units[start : start + UNITS_AT_ONCE], tokens, often, wrong)
        for piece in wrong:
            tokens.pop(piece, None)
        if not wrong or len(wrong) > REFUSED_MAX:
            return


UNITS_AT_ONCE = 48
"""Sentences or functions in one question: about 800 or 2400 tokens."""
SEED_STRIDE = 16


def _look(
    alone: _Alone, units: Sequence[list[str]], tokens: dict[str, int], often: dict[str, int], wrong: set[str]
) -> None:
    pieces = [piece for unit in units for piece in unit]
    if len(wrong) > REFUSED_MAX or alone.error(pieces, tokens) == 0:
        return
    if len(units) > 1:
        _look(alone, units[: len(units) // 2], tokens, often, wrong)
        _look(alone, units[len(units) // 2 :], tokens, often, wrong)
        return
    fine, bad = 0, len(pieces)  # the first so many add up, the first so many do not
    while bad - fine > 1:
        middle = (fine + bad) // 2
        if alone.error(pieces[:middle], tokens) == 0:
            fine = middle
        else:
            bad = middle
    wrong.add(min(pieces[max(0, bad - 2) : bad], key=lambda piece: often[piece]))  # the rarer one of the two that meet


def counter_of_file(path: str) -> Counter:
    """Counts with a tokenizer.json. Raises UsageError."""
    tokenizer = _tokenizer(path)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError("a tokenizer file needs the tokenizers library; pip install 'pinchpoint[tokenizer]'") from None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every bad file
        raise UsageError(f"{path} is not a tokenizer.json ({str(error)[:100]})") from None
