"""Tokens of pieces: learnt from anything that counts whole texts, and told as an estimate where they do not add up."""

import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.workload.text import long_text, pieces_of, vocabulary
from pinchpoint.workload.tokens import TokenTable, counter_of_file, estimated, measured

GPT2 = re.compile(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
"""As byte-level tokenizers of the first generation split a text."""
MODERN = re.compile(r"[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
"""As those of today do: a mark goes with the letters behind it, a line's end with the marks before it."""


def split_by(pattern: re.Pattern[str], long: int) -> Callable[[str], list[str]]:
    """Words of more than `long` letters are two tokens; a space goes with its word."""

    def split(text: str) -> list[str]:
        parts = (part for found in pattern.findall(text) for part in (found[:long], found[long:]))
        return [part for part in parts if part]

    return split


def sentencepiece(text: str) -> list[str]:
    """A word at the very beginning gets a mark that one behind a line's end lacks: there, names are two tokens."""
    found = []
    for part in re.findall(r"\n| *[^\n ]+| +", " " + text):
        inner = re.findall(r" ?[A-Za-z]+|[^A-Za-z]", part)
        for word in inner:
            odd = word[0].isupper() and len(word) > 4
            found += [word[:2], word[2:]] if odd else [word]
    return found


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "gpt2": split_by(GPT2, 7),
    "modern": split_by(MODERN, 7),
    "sentencepiece": sentencepiece,
    "words": str.split,
}


def table_of(split: Callable[[str], list[str]], *, shows: bool = False) -> tuple[TokenTable, int]:
    asked = 0

    def count(text: str) -> int:
        nonlocal asked
        asked += 1
        return len(split(text))

    def ends(text: str) -> list[int]:
        nonlocal asked
        asked += 1
        return list(accumulate(map(len, split(text))))

    kinds = ("prose", "code")
    table = measured(count, kinds, source="service", told_by="the test", split=ends if shows else None)
    return table, asked


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("kind", ["prose", "code"])
def test_the_tokens_of_a_text_are_those_of_its_pieces(name: str, kind: str) -> None:
    split = TOKENIZERS[name]
    table, _ = table_of(split)
    assert table.source == "service" and table.exact, table.note
    text = long_text(kind, 99, 5000, table.knows).pieces  # type: ignore[arg-type]
    assert len(split("".join(text) + "The")) - len(split("The")) == sum(table.of(piece) for piece in text)


def test_a_service_that_shows_its_tokens_is_asked_less_and_gives_the_same() -> None:
    table, asked = table_of(TOKENIZERS["modern"])
    same, less = table_of(TOKENIZERS["modern"], shows=True)
    assert (same.tokens, same.note) == (table.tokens, table.note)
    assert less < 100 < asked


def test_what_depends_on_its_neighbours_is_used_no_more() -> None:
    def merging(text: str) -> list[str]:  # a token of its own for two words that stand together
        return re.findall(r" of the| ?[A-Za-z_]+|[^A-Za-z_]", text)

    plain = re.findall(r" ?[A-Za-z_]+|[^A-Za-z_]", "One part of the whole.")
    assert len(merging("One part of the whole.")) == len(plain) - 1
    table, _ = table_of(merging)
    assert not (table.exact and table.knows(" of") and table.knows(" the"))


def test_names_that_count_differently_at_the_beginning_are_left_out() -> None:
    def capricious(text: str) -> list[str]:
        split = TOKENIZERS["gpt2"](text)
        return [*split, "more"] if text.startswith(("Adam", "William", "Walter")) else split

    table, _ = table_of(capricious)
    assert table.exact and table.knows("Thomas")
    assert not table.knows("Walter") and not table.knows("Adam")
    assert table.knows(" Walter")


def test_a_tokenizer_that_does_not_add_up_gives_an_estimate_near_the_mean() -> None:
    table, _ = table_of(lambda text: [""] * (len(text) // 4))
    assert not table.exact and "do not add up" in table.note
    sample = long_text("prose", 5, 2000, table.knows).pieces
    assert table.per_piece == pytest.approx(len("".join(sample)) / 4 / len(sample), rel=0.05)


def test_a_tokenizer_without_words_of_one_token_is_told_to_leave_texts_short() -> None:
    table, _ = table_of(list)
    assert table.exact and "a few tokens short" in table.note
    assert "short" not in table_of(TOKENIZERS["gpt2"])[0].note


def test_an_estimate_says_what_it_rests_on() -> None:
    assert "one token per word" in estimated(None, None).note
    table = estimated(1.25, 20.0)
    assert "1.25 tokens per word" in table.note
    assert (table.of(" anything"), table.added(system=False), table.added(system=True)) == (1.25, 20.0, 25.0)
    assert estimated(1.0, 3.0).message_tokens == 3.0  # a template of three tokens cannot add five to each message


def test_a_tokenizer_file_counts(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    file = tmp_path / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    text = "".join(long_text("prose", 1, 20_000, lambda piece: True).pieces)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(file))
    count = counter_of_file(str(file))
    table = measured(count, ["prose", "code"], source="file", told_by="the file", file=str(file))
    assert table.exact and table.file == str(file), table.note
    for kind in ("prose", "code"):
        made = long_text(kind, 77, 3000, table.knows).pieces[:-1]
        assert count("".join(made)) == sum(table.of(piece) for piece in made)
    assert set(table.tokens.values()) > {1, 2}


def test_a_file_that_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(UsageError, match=r"cannot read the tokenizer .*missing"):
        counter_of_file(str(tmp_path / "missing"))
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    with pytest.raises(UsageError, match=r"is not a tokenizer\.json"):
        counter_of_file(str(wrong))


def test_every_word_of_the_vocabulary_is_known_in_an_estimate() -> None:
    assert all(estimated(None, None).knows(piece) for piece in vocabulary("prose"))
    assert pieces_of("The end.") == ["The", " end", "."]
