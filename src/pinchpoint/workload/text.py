"""Text that looks like language: English prose and Python-like code from grammars of our own, seeded.

Text is a sequence of pieces: a word with the space before it, a punctuation mark, a line break with its indentation.
Tokenizers cut between pieces, not across them (words are common and short), so the tokens of a text are the sum of its
pieces' tokens; `tokens.TokenTable` holds what each piece counts and whether that is so.
"""

import random
from collections.abc import Callable, Iterator

NOUNS = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work number night point home water room mother area money
    story fact month lot right study book eye job word business issue side kind head house service friend father power
    hour game line end member law car city name president team minute idea body back parent face level office door
    health person art war history party result change morning reason research girl guy moment air teacher force
    river market garden bridge letter engine window table street island winter summer village harbor forest station
    paper picture doctor lawyer driver farmer worker manager neighbor customer machine answer message report meeting
    plan price cost tax bank loan product project design model test sample method figure volume weight speed size
    color sound light heat energy battery motor wheel road train plane ship boat map tower wall floor roof kitchen
    bread milk coffee sugar salt fish bird horse dog cat tree flower grass stone sand snow rain wind storm cloud sun
    moon star sky sea lake mountain valley field farm town nation border army police court judge crime prison church
    """.split()
)
ADJECTIVES = tuple(
    """
    green blue red white black small large long short high low early late young old good new first last great little
    own other big different important few public bad same able cold warm dry wet dark bright quiet loud quick slow
    strong weak heavy light rich poor safe open closed full empty clean simple hard easy deep wide narrow fresh sharp
    soft flat round local foreign common rare recent main modern ancient careful happy sad proud
    """.split()
)
VERBS = tuple(
    """
    made took saw found gave told asked left called kept let began helped showed heard played ran moved held brought
    wrote lost paid met included continued set learned led understood watched followed stopped created read allowed
    added opened walked won offered remembered loved considered bought waited served sent expected built cut reached
    carried changed crossed covered counted closed checked caught chose broke raised passed pulled pushed painted
    """.split()
)
PREPOSITIONS = "in on at by near under over behind after before with without from for through across along".split()
ADVERBS = "again often never always soon later together alone quickly slowly almost already finally perhaps".split()
NAMES = "Anna Ben Carl David Emma Frank Grace Henry Jack Kate Laura Mark Nina Oscar Paul Rose Sam Tom".split()
OPENERS = ("However", "Then", "Today", "Later", "Still", "After that", "In the end", "For example", "At first")

FUNCTIONS = "read write load save parse build check find send open close count merge sort split update".split()
OBJECTS = "file line row user item name value list data index table key record event request page order".split()


def sentence(rng: random.Random) -> list[str]:
    """Pieces of one sentence, the first word with its space and a capital letter."""
    pick = rng.choice

    def noun_phrase(depth: int = 0) -> Iterator[str]:
        yield pick(("the", "a", "the", "this", "every", "another", "our", "their"))
        if rng.random() < 0.6:
            yield pick(ADJECTIVES)
        yield pick(NOUNS)
        if depth == 0 and rng.random() < 0.35:
            yield pick(PREPOSITIONS)
            yield from noun_phrase(1)

    words: list[str] = []
    roll = rng.random()
    if roll < 0.2:
        words += [*pick(OPENERS).split(), ","]
    words += [pick(NAMES)] if rng.random() < 0.25 else list(noun_phrase())
    words.append(pick(VERBS))
    words += list(noun_phrase())
    if rng.random() < 0.4:
        words += [pick(PREPOSITIONS), *noun_phrase(1)]
    if rng.random() < 0.25:
        words += [",", pick(("and", "but", "so", "while")), *noun_phrase(1), pick(VERBS), *noun_phrase(1)]
    if rng.random() < 0.15:
        words.append(pick(ADVERBS))
    words[0] = words[0].capitalize()
    return [*(word if word == "," else " " + word for word in words), "?" if roll > 0.9 else "."]


def opening(rng: random.Random) -> list[str]:
    """Pieces that say at once what no other prompt says: about 2^55 beginnings within the first sixteen pieces."""
    pick = rng.choice
    words = ["The", pick(ADJECTIVES), pick(NOUNS), pick(VERBS), "the", pick(ADJECTIVES), pick(NOUNS)]
    words += [pick(PREPOSITIONS), "the", pick(ADJECTIVES), pick(NOUNS), pick(PREPOSITIONS), "a", pick(NOUNS)]
    return [*(" " + word for word in words), "."]


def prose(rng: random.Random) -> Iterator[str]:
    """Pieces of sentences in paragraphs, without end."""
    while True:
        for _ in range(rng.randint(3, 7)):
            yield from sentence(rng)
        yield "\n\n"


def code(rng: random.Random) -> Iterator[str]:
    """Pieces of short functions, without end."""
    pick = rng.choice
    while True:
        verb, thing, other = pick(FUNCTIONS), pick(OBJECTS), pick(OBJECTS)
        yield from ("def", " " + verb, "_", thing, "(", thing, ",", " " + other, "):", "\n   ")
        for _ in range(rng.randint(2, 5)):
            roll = rng.random()
            if roll < 0.3:
                yield from (" if", " " + thing, " is", " not", " None", ":", "\n       ")
                yield from (" " + other, " =", " " + pick(FUNCTIONS), "(", thing, ")", "\n   ")
            elif roll < 0.6:
                yield from (" for", " " + pick(OBJECTS), " in", " " + thing, ":", "\n       ")
                yield from (" " + pick(FUNCTIONS), "(", other, ",", " " + pick(OBJECTS), ")", "\n   ")
            else:
                yield from (" " + pick(OBJECTS), " =", " " + pick(FUNCTIONS), "(", pick(OBJECTS), ")", "\n   ")
        yield from (" return", " " + other, "\n\n")


GRAMMARS: dict[str, Callable[[random.Random], Iterator[str]]] = {"prose": prose, "code": code}
WORDS = tuple(
    dict.fromkeys(
        " " + word
        for word in (*NOUNS, *ADJECTIVES, *VERBS, *PREPOSITIONS, *ADVERBS, "the", "a", "this", "every", "our")
    )
)
"""Words with the space before them, all lower-case: any of them may complete a text."""


def vocabulary(kind: str) -> tuple[str, ...]:
    """Every piece that the grammar of this kind has been seen to make, most common first."""
    rng = random.Random(0)
    counts: dict[str, int] = {}
    for piece, _ in zip(GRAMMARS[kind](rng), range(VOCABULARY_SAMPLE), strict=False):
        counts[piece] = counts.get(piece, 0) + 1
    return tuple(sorted(counts, key=lambda piece: -counts[piece]))


VOCABULARY_SAMPLE = 60_000
"""Pieces: each word of the lists then comes up a hundred times."""
