"""Text of the grammars: it reads like language, and comes apart into pieces that are the text again."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.plan import ContentKind
from pinchpoint.workload.text import (
    DOCUMENT_FRAMES,
    FRAMES,
    SHARED_FRAMES,
    SYSTEM_FRAMES,
    TEXT_END,
    article,
    long_text,
    opening,
    openings,
    pieces_of,
    plural,
    slots,
    usable,
    vocabulary,
    words,
)

KINDS: tuple[ContentKind, ...] = ("prose", "code")
EVERY_WORD = slots(lambda piece: True)


def everything(piece: str) -> bool:
    return True


@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_a_text_is_its_pieces_and_is_fixed_by_its_seed(kind: ContentKind, seed: int) -> None:
    text = long_text(kind, seed, 300, everything)
    assert pieces_of("".join(text.pieces)) == text.pieces
    assert text == long_text(kind, seed, 300, everything)
    assert len(text.pieces) >= 300 and text.pieces[-1].endswith(TEXT_END[kind])


@given(st.integers(0, 2**32 - 1))
def test_prose_has_sentences_and_paragraphs(seed: int) -> None:
    text = "".join(long_text("prose", seed, 400, everything).pieces)
    for paragraph in text.strip().split("\n\n"):
        sentences = re.findall(r"[^.?]+[.?]", paragraph)
        assert "".join(sentences) == paragraph and len(sentences) >= 3
        for sentence in sentences:
            assert re.fullmatch(r" ?[A-Z][A-Za-z]*(,? [A-Za-z]+)+[.?]", sentence), sentence


@given(st.integers(0, 2**32 - 1))
def test_code_is_python_that_compiles(seed: int) -> None:
    for function in "".join(long_text("code", seed, 400, everything).pieces).split("\n\n\n"):
        compile(function, "made", "exec")


def test_the_vocabulary_is_that_of_a_language() -> None:
    spoken = {piece.strip().lower() for piece in vocabulary("prose") if piece.strip().isalpha()}
    assert len(spoken) > 1200
    assert len(vocabulary("code")) > 1000


def test_places_of_a_text_are_beginnings() -> None:
    text = long_text("prose", 3, 2000, everything)
    assert all(text.pieces[head][0].isupper() for head in text.heads)
    assert all(re.match(" [A-Z]", text.pieces[joint]) for joint in text.joints)
    code = long_text("code", 3, 2000, everything)
    assert all(code.pieces[head] == "def" for head in code.heads)


def test_what_a_tokenizer_refuses_is_not_in_the_text() -> None:
    text = long_text("prose", 1, 3000, lambda piece: "b" not in piece)
    assert len(text.pieces) >= 3000 and not any("b" in piece for piece in text.pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_refuses_nearly_everything_gets_a_short_text_and_no_endless_search(kind: ContentKind) -> None:
    assert len(long_text(kind, 1, 1000, lambda piece: len(piece) > 9 or piece == TEXT_END[kind]).pieces) < 1000
    assert long_text(kind, 1, 1000, lambda piece: False).pieces == []


@given(st.sets(st.integers(0, openings(EVERY_WORD, FRAMES["prose"]) - 1), min_size=2, max_size=2))
def test_two_numbers_never_get_the_same_first_sentence(numbers: set[int]) -> None:
    one, other = (opening(number, EVERY_WORD, FRAMES["prose"]) for number in numbers)
    assert one != other
    assert one[:14] != other[:14]  # they differ within one block of a prefix cache


def test_kinds_of_first_sentences_are_told_apart_by_their_beginning() -> None:
    apart = [FRAMES["prose"], SHARED_FRAMES["prose"], SYSTEM_FRAMES, DOCUMENT_FRAMES]
    firsts = [{frame.texts[0] for frame in frames} for frames in apart]
    assert all(not one & other for i, one in enumerate(firsts) for other in firsts[i + 1 :])


def test_first_sentences_use_known_words_where_there_are_any() -> None:
    frames = FRAMES["prose"]
    assert usable(frames, lambda piece: piece != "Did") == tuple(frame for frame in frames if frame.texts[0] != "Did")
    assert usable(frames, lambda piece: False) == frames


@pytest.mark.parametrize(
    ("word", "expected"), [("hour", "an hour"), ("user", "a user"), ("apple", "an apple"), ("house", "a house")]
)
def test_the_article_goes_by_the_sound(word: str, expected: str) -> None:
    assert f"{article(word)} {word}" == expected


@pytest.mark.parametrize(
    ("thing", "many"),
    [("day", "days"), ("city", "cities"), ("box", "boxes"), ("church", "churches"), ("word", "words")],
)
def test_plurals(thing: str, many: str) -> None:
    assert plural(thing) == many


def test_no_list_has_a_word_twice() -> None:
    lists = words()
    for name in lists.__struct_fields__:
        found = getattr(lists, name)
        assert len(set(found)) == len(found), name
