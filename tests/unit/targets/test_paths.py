"""Path expressions: what they find, and what is said when they find nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.targets.paths import Path

ANSWER: dict[str, Any] = {
    "choices": [{"text": "one"}, {"text": "two"}],
    "usage": {"out put": 7, "in-put": 3, "none": None},
    "by": {"a": {"n": 1}, "b": {"n": 2}},
    "list": [],
}

FOUND = [
    ("$", [ANSWER]),
    ("choices[0].text", ["one"]),
    ("$.choices[-1].text", ["two"]),
    ("choices[*].text", ["one", "two"]),
    ('usage["out put"]', [7]),
    ('$["usage"].in-put', [3]),
    ("usage.none", [None]),
    ("by[*].n", [1, 2]),
    ("list[*].text", []),
    ("choices[2].text", []),
    ("choices[-3]", []),
    ("choices.text", []),
    ("usage[0]", []),
    ("usage.none.deeper", []),
]


@pytest.mark.parametrize(("path", "values"), FOUND)
def test_a_path_finds_what_stands_there(path: str, values: list[Any]) -> None:
    assert Path(path).find(ANSWER) == values


WRONG = ["", "  ", "a..b", "a b", "a[", "a[x]", "a[0]b", "$a", "a[1:2]", "a.", '["open]', "..a", "a[?(@.b)]", '["\\x"]']


@pytest.mark.parametrize("path", WRONG)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError):
        Path(path)


MISSING = [
    ("chioces[0].text", "at $ there is no 'chioces', but an object with choices, usage, by, list"),
    ("choices[5].text", "at $.choices there is no element 5, but a list of 2"),
    ("choices[0].txt", "at $.choices[0] there is no 'txt', but an object with text"),
    ("choices[0].text.more", "at $.choices[0].text there is no 'more', but a text"),
    ("list[*].text", "at $.list there is no element, but a list of 0"),
]


@pytest.mark.parametrize(("path", "says"), MISSING)
def test_a_path_that_leads_nowhere_says_how_far_it_went(path: str, says: str) -> None:
    assert says in Path(path).missing(ANSWER)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


def _all(value: Any, path: str = "$") -> list[tuple[str, Any]]:
    """Every place of a document with its path, written by an independent walk."""
    found = [(path, value)]
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found += _all(inner, f"{path}[{index}]") + _all(inner, f"{path}[{index - len(value)}]")
    elif isinstance(value, dict):
        for name, inner in value.items():
            found += _all(inner, f"{path}[{json.dumps(name)}]")
    return found


@given(json_values)
def test_every_place_of_every_document_can_be_named(document: Any) -> None:
    for path, value in _all(document):
        assert Path(path).find(document) == [value]
