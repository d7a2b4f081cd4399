"""Prompt text of a wanted length in tokens.

Without the service's tokenizer the length is an estimate: common short English words are one token in most
vocabularies, and the probe measures tokens per word and the template's overhead on the service itself. What the
service then reports is recorded and compared (`usage`).

Every prompt begins differently, so that a prefix cache cannot answer for the model: its first words are drawn from the
whole vocabulary by seed and request. What follows is a piece of one long seeded text, from a place that is drawn, too:
so a prompt costs a hash and a copy, whatever its length. The long text is made when it is first needed, and stays
behind when a writer is sent to another process.
"""

import hashlib
import struct
from array import array
from functools import lru_cache

import numpy as np

UNIQUE_WORDS = 12
"""Drawn for each prompt: about 200^12 beginnings. A prefix cache of blocks of 16 tokens never sees one again."""
LONG_TEXT_WORDS = 1 << 17
"""Of the text that prompts are cut from; longer prompts go around it."""
_PLACE_BYTES = 4

VOCABULARY = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work number night point home water room mother area money
    story fact month lot right study book eye job word business issue side kind head house service friend father power
    hour game line end member law car city name president team minute idea body back parent face level office door
    health person art war history party result change morning reason research girl guy moment air teacher force order
    green blue red white black small large long short high low early late young old good new first last great little
    own other big different important few public bad same able make know take see come think look want give use find
    tell ask seem feel try leave call keep let begin help show hear play run move live believe bring happen write sit
    stand lose pay meet include continue set learn lead understand watch follow stop create speak read allow add spend
    grow open walk win offer remember love consider appear buy wait serve die send expect build stay fall cut reach
    """.split()
)
_PAIRS = struct.Struct(f">{UNIQUE_WORDS}H")
_WORD_OF = [VOCABULARY[pair % len(VOCABULARY)] for pair in range(1 << 16)]
"""The word that two bytes of a digest stand for."""


@lru_cache(maxsize=2)
def _long_text(seed: int) -> tuple[str, array]:
    """The text, with a space after each word, and where each word begins (and, last, where the text ends)."""
    picks = np.random.default_rng(seed).integers(0, len(VOCABULARY), LONG_TEXT_WORDS)
    lengths = np.array([len(word) + 1 for word in VOCABULARY])[picks]
    starts = array("q", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64).tobytes())
    return " ".join([VOCABULARY[pick] for pick in picks.tolist()]) + " ", starts


class PromptWriter:
    """Writes prompts. tokens_per_word and overhead_tokens come from the probe or from answers already received."""

    def __init__(self, seed: int, tokens_per_word: float | None, overhead_tokens: float | None) -> None:
        self._seed = seed
        self.tokens_per_word = tokens_per_word or 1.0
        self.overhead_tokens = overhead_tokens or 0.0

    def words_for(self, input_tokens: int) -> int:
        return max(1, round((input_tokens - self.overhead_tokens) / self.tokens_per_word))

    def write(self, request_id: int, input_tokens: int) -> str:
        """`words_for(input_tokens)` words with single spaces; the same for the same seed and request."""
        words = self.words_for(input_tokens)
        digest = hashlib.blake2b(b"%d %d" % (self._seed, request_id), digest_size=2 * UNIQUE_WORDS + _PLACE_BYTES)
        drawn = digest.digest()
        beginning = [_WORD_OF[pair] for pair in _PAIRS.unpack_from(drawn)][:words]
        left = words - len(beginning)
        if left == 0:
            return " ".join(beginning)
        text, starts = _long_text(self._seed)
        pieces = [" ".join(beginning), " "]
        place = int.from_bytes(drawn[-_PLACE_BYTES:], "little") % LONG_TEXT_WORDS
        while left > 0:
            end = min(place + left, LONG_TEXT_WORDS)
            pieces.append(text[starts[place] : starts[end]])
            left -= end - place
            place = 0
        return "".join(pieces)[:-1]
