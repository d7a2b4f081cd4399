"""From flags to keys of the plan: what requests are."""

from pathlib import Path
from typing import Any

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.requestflags import request_values


def values(**given: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(
        ("workload", "input_tokens", "output_tokens", "api", "template", "tokenizer")
    )
    return request_values(**{**nothing, "exact": False, "api_options": (), **given})


def test_nothing_given_says_nothing() -> None:
    assert values() == {}


def test_a_workload_is_a_name_with_lengths_of_its_own() -> None:
    assert values(workload="rag", output_tokens=5) == {"workload": {"preset": "rag", "output_tokens": 5}}
    assert values(input_tokens=9, exact=True) == {"workload": {"input_tokens": 9, "exact": True}}


@pytest.mark.parametrize("head", ["", "[workload]\n"])
def test_a_workload_file_holds_the_keys_of_a_workload_or_a_table_of_that_name(tmp_path: Path, head: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{head}preset = "chat"\ninput_tokens = 7\n')
    assert values(workload=str(path)) == {"workload": {"preset": "chat", "input_tokens": 7}}


def test_a_template_is_the_custom_targets(tmp_path: Path) -> None:
    path = tmp_path / "api.toml"
    path.write_text('path = "/ask"\n')
    assert values(template=path) == {"api": "custom", "api_options": {"path": "/ask"}}
    with pytest.raises(UsageError, match="--template"):
        values(template=path, api="chat")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [("shape=[1, 3]", "shape", [1, 3]), ("input = x", "input", " x"), ("n=3", "n", 3), ("a=b=c", "a", "b=c")],
)
def test_an_option_is_a_toml_value_where_it_is_one_and_text_where_not(text: str, name: str, value: object) -> None:
    assert values(api="kserve", api_options=(text,))["api_options"] == {name: value}


@pytest.mark.parametrize(
    ("given", "tokenizer"),
    [
        ("service", {"source": "service"}),
        ("estimate", {"source": "estimate"}),
        ("a/tokenizer.json", {"source": "file", "file": "a/tokenizer.json"}),
    ],
)
def test_tokens_are_counted_by_whom_the_flag_says(given: str, tokenizer: dict[str, str]) -> None:
    assert values(tokenizer=given) == {"tokenizer": tokenizer}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workload": "missing.toml"}, "cannot read the workload missing.toml"),
        ({"api_options": ("nothing",)}, "NAME=VALUE"),
        ({"template": Path("missing.toml")}, "cannot read the template"),
    ],
)
def test_what_cannot_be_used_is_said(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        values(**given)


def test_a_file_that_is_no_toml_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("preset = \n")
    with pytest.raises(UsageError, match="line 1"):
        values(workload=str(path))
