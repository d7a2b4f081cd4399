"""Prompts: as long as asked, fixed by seed and request, each with a beginning of its own."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.workload.prompts import LONG_TEXT_WORDS, VOCABULARY, PromptWriter


def test_prompts_are_fixed_by_seed_and_request_and_begin_differently() -> None:
    writer = PromptWriter(7, 1.0, 10.0)
    assert writer.write(3, 100) == PromptWriter(7, 1.0, 10.0).write(3, 100)
    assert writer.write(3, 100) != PromptWriter(8, 1.0, 10.0).write(3, 100)
    starts = {" ".join(writer.write(i, 100).split()[:4]) for i in range(5000)}
    assert len(starts) == 5000


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**63), st.integers(1, 3000) | st.just(LONG_TEXT_WORDS * 2 + 77))
def test_a_prompt_has_exactly_the_words_asked_for(seed: int, request_id: int, tokens: int) -> None:
    words = PromptWriter(seed % 2, 1.0, None).write(request_id, tokens).split(" ")
    assert len(words) == tokens
    assert set(words) <= set(VOCABULARY)


def test_prompt_length_follows_the_measured_tokens_per_word() -> None:
    assert PromptWriter(1, 1.25, 20.0).words_for(120) == 80
    assert PromptWriter(1, None, None).words_for(120) == 120
    assert PromptWriter(1, 1.0, 50.0).words_for(20) == 1
    assert len(PromptWriter(1, 1.25, 20.0).write(0, 120).split()) == 80


def test_a_writer_travels_light_and_writes_the_same_elsewhere() -> None:
    writer = PromptWriter(5, 1.3, 7.0)
    text = writer.write(9, 4000)
    data = pickle.dumps(writer)
    assert len(data) < 1000
    assert pickle.loads(data).write(9, 4000) == text


def test_what_follows_the_beginning_differs_too() -> None:
    writer = PromptWriter(1, None, None)
    tails = {writer.write(i, 40).split(" ", 12)[12] for i in range(300)}
    assert len(tails) > 290
