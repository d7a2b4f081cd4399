"""What is told of a workload: true to its laws, and its TOML means the same again."""

import tomllib

import numpy as np
import pytest
from rich.console import Console

from pinchpoint.errors import UsageError
from pinchpoint.plan import LengthSpec, Plan, build_plan
from pinchpoint.report.workloads_text import workload_list, workload_page
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.describe import describe, law_figures, workload_names
from pinchpoint.workload.lengths import draw_lengths
from pinchpoint.workload.library import presets
from pinchpoint.workload.toml_text import toml_lines, toml_value


@pytest.mark.parametrize("name", presets())
def test_the_toml_of_a_workload_gives_its_classes_again(name: str) -> None:
    plan = build_plan({"url": "http://h", "seed": 1, **tomllib.loads(describe(name)["toml"])})
    again = resolve(plan, None).classes
    original = resolve(build_plan({"url": "http://h", "seed": 1, "workload": {"preset": name}}), None).classes
    assert again == original


@pytest.mark.parametrize("law", [LengthSpec(220, 0.5, 32, 1024), LengthSpec(50, 1.2, 40, 60), LengthSpec(9, 0.0, 9, 9)])
def test_figures_of_a_law_are_those_of_what_is_drawn(law: LengthSpec) -> None:
    drawn, told = draw_lengths(law, 200_000, np.random.default_rng(1)), law_figures(law)
    assert told["mean"] == pytest.approx(drawn.mean(), rel=0.01, abs=0.6)
    assert told["p50"] == pytest.approx(np.quantile(drawn, 0.5), rel=0.02, abs=1)
    assert told["p99"] == pytest.approx(np.quantile(drawn, 0.99), rel=0.02, abs=1)


def test_an_unknown_workload_is_told_with_the_choices() -> None:
    with pytest.raises(UsageError, match="there is no workload 'chess'; choose from chat"):
        describe("chess")


def _printed(page: object) -> str:
    console = Console(width=100, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(page)
    return " ".join(captured.get().split())


def test_the_list_names_every_workload_and_a_page_says_what_matters() -> None:
    listed = _printed(workload_list(workload_names()))
    assert all(name in listed for name in presets())
    page = _printed(workload_page(describe("dialogue")))
    for words in ("STRESSES", "SOURCE", "turns geometric:4", "of thought between them", "--workload dialogue"):
        assert words in page
    page = _printed(workload_page(describe("mixed")))
    assert "chat 50 % of the requests" in page and "ttft p95 < 500ms" in page
    page = _printed(workload_page(describe("embeddings")))
    assert "nothing is generated" in page and "pinchpoint run" not in page


def test_values_are_written_as_toml_that_reads_back() -> None:
    table = {"a": 1.5, "b": 2.0, "c": 'say "é"\n', "d": [1, 2], "e": {"x": True, "y": [0.25]}, "f": None}
    told = {key: value for key, value in table.items() if value is not None}
    assert tomllib.loads(toml_lines(table)) == told
    assert toml_value(3.0) == "3.0"


def test_a_plan_of_no_workload_is_chat() -> None:
    assert [one.name for one in resolve(Plan("http://h", 1), None).classes] == ["chat"]
