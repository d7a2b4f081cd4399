"""How many tokens a text has for the target's tokenizer, and how that is known.

A text's tokens are the sum of those of its pieces (see `text`). `measured` learns them from anything that counts whole
texts, a local tokenizer file or the service itself, in a few dozen questions: where a joined text has as many tokens as
pieces, each piece is one token; where not, it is halved until the odd pieces stand alone.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec

from pinchpoint.errors import UsageError

TokenSource = Literal["file", "service", "estimate"]
Counter = Callable[[str], int]
CHECK_PIECES = (40, 400, 2000)
"""Lengths of the texts that a table is checked on."""
CHECK_ERROR_MAX_RATIO = 0.002
"""A table that is off by more is an estimate."""
QUESTIONS_MAX = 2000
CHARS_PER_TOKEN = 4.0
"""Of English text, for an answer whose tokens nobody counted. The usual rule of thumb of tokenizers with 50 to 200
thousand entries."""


class TokenTable(msgspec.Struct, frozen=True):
    """odd: tokens of the pieces that have another number than `per_piece`. overhead_tokens: what the service adds to
    one user's message. message_tokens: what it adds to each further message. source: who counted; `note` says it in
    words, with how far it can be off. file: the tokenizer that can count answers."""

    source: TokenSource
    note: str
    per_piece: float = 1.0
    odd: dict[str, int] = {}
    overhead_tokens: float = 0.0
    message_tokens: float = 0.0
    system_overhead_tokens: float | None = None
    """In place of overhead_tokens where there is a system message: what is added to it and the user's together; some
    templates put in one of their own else. None: overhead_tokens and message_tokens together."""
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

    def of(self, piece: str) -> float:
        return self.odd.get(piece, self.per_piece)


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


USUAL_MESSAGE_TOKENS = 5.0
"""A role, its marks and a line break, in the ChatML template and its kin."""


def measured(
    count: Counter,
    pieces: Sequence[str],
    samples: Sequence[Sequence[str]],
    *,
    source: TokenSource,
    told_by: str,
    file: str | None = None,
) -> TokenTable:
    """A table from a counter of whole texts, without any template. pieces: the vocabulary. samples: texts to check on.

    When the parts do not add up, the table is an estimate with the mean error taken into `per_piece`. Whatever `count`
    raises is passed on.
    """
    alone = count(ANCHOR)
    odd: dict[str, int] = {}
    questions = 0

    def split(group: Sequence[str]) -> None:
        nonlocal questions
        questions += 1
        total = count(ANCHOR + "".join(ANCHOR_PIECE + piece for piece in group)) - alone - len(group) * each
        if total == len(group) or questions > QUESTIONS_MAX:
            return
        if len(group) == 1:
            odd[group[0]] = max(0, total)
            return
        middle = len(group) // 2
        split(group[:middle])
        split(group[middle:])

    each = count(ANCHOR + ANCHOR_PIECE) - alone
    split(list(pieces))
    table = TokenTable(source, "", odd=odd, file=file)
    expected = [sum(table.of(piece) for piece in sample) for sample in samples]
    counted = [count("".join(sample)) for sample in samples]
    off = max(abs(have - want) for have, want in zip(counted, expected, strict=True))
    ratio = max(abs(have / want - 1) for have, want in zip(counted, expected, strict=True))
    if ratio > CHECK_ERROR_MAX_RATIO and off > 1:
        note = f"estimated: tokens of words do not add up for {told_by} (off by {ratio:.1%} on whole texts)"
        scale = sum(counted) / sum(expected)
        scaled = {piece: max(0, round(tokens * scale)) for piece, tokens in odd.items()}
        return TokenTable("estimate", note, per_piece=scale, odd=scaled, file=file)
    checked = f"checked on texts of {', '.join(f'{n:,.0f}' for n in expected)} tokens"
    return msgspec.structs.replace(table, note=f"counted by {told_by}, {checked}" + (f", off by {off}" if off else ""))


ANCHOR, ANCHOR_PIECE = "The", " time"
"""Stand around pieces that are counted, so that each has a word before it as in a text."""


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
        with open(path, "rb") as file:  # noqa: PTH123 - only to tell a missing file from a bad one
            data = file.read()
    except OSError as error:
        raise UsageError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every bad file
        raise UsageError(f"{path} is not a tokenizer.json ({str(error)[:100]})") from None
