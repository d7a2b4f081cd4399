"""Ranking laws, and that every rule is complete as documentation and as data."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import load_catalog
from pinchpoint.diagnose.rank import CLUE_CAP, score_of
from pinchpoint.diagnose.rule import Clue, clue, load_rules, ramp, remedies_for, rule_page
from pinchpoint.errors import UsageError

RULES = load_rules()
ENGINES = ("vllm", "sglang", "tgi", "llama.cpp", "tensorrt-llm", "openai-compatible", "unknown")
clues = st.lists(
    st.builds(lambda group, strength: clue(group, strength, "said"), st.sampled_from("abc"), st.floats(-9, 9)),
    max_size=12,
)


@given(clues, st.randoms())
def test_order_of_clues_does_not_matter(found: list[Clue], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert math.isclose(score_of(found), score_of(shuffled), abs_tol=1e-9)


@given(clues)
def test_saying_the_same_thing_twice_adds_nothing(found: list[Clue]) -> None:
    assert math.isclose(score_of(found), score_of(found + found), abs_tol=1e-9)


@given(clues)
def test_a_group_never_weighs_more_than_one_clue_may(found: list[Clue]) -> None:
    groups = {c.group for c in found}
    assert abs(score_of(found)) <= CLUE_CAP * len(groups) + 1e-9


def test_no_clues_are_no_evidence() -> None:
    assert score_of([]) == 0


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_evidence_has_no_jumps_and_stays_between_its_ends(x: float, y: float) -> None:
    assert -1 <= ramp(x, 0, 10, -1, 2) <= 2
    assert abs(ramp(x, 0, 10, -1, 2) - ramp(y, 0, 10, -1, 2)) <= 0.3 * abs(x - y) + 1e-9


@pytest.mark.parametrize("entry", RULES, ids=lambda e: e.rule.code)
def test_every_number_of_a_rule_has_a_unit_and_a_source(entry) -> None:
    assert all(p.unit and p.source for p in entry.rule.params.values())


@pytest.mark.parametrize("entry", RULES, ids=lambda e: e.rule.code)
def test_every_series_a_rule_needs_is_in_the_catalogue(entry) -> None:
    known = load_catalog()
    assert [name for name in entry.rule.needs if known.entry(name) is None] == []


@pytest.mark.parametrize("entry", RULES, ids=lambda e: e.rule.code)
def test_page_of_a_rule_documents_header_numbers_and_remedies(entry) -> None:
    page = rule_page(entry.rule.code.lower())
    for expected in (entry.rule.name, entry.rule.confirm, "What it means", *entry.rule.params):
        assert expected in page
    assert all(spec.action in page for spec in entry.rule.remedies)


@pytest.mark.parametrize("entry", RULES, ids=lambda e: e.rule.code)
def test_remedies_can_be_filled_for_every_engine_without_any_value(entry) -> None:
    for engine in ENGINES:
        for remedy in remedies_for(entry.rule, engine, {}):
            fields = [f for _, f, _, _ in string.Formatter().parse((remedy.flag or "") + remedy.action) if f]
            assert fields == []


def test_unknown_code_is_told_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="SEQ001"):
        rule_page("XYZ999")
