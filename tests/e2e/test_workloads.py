"""The library of workloads and the suite for a service, as a user runs them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.test_cli import Lab, pinchpoint

from pinchpoint.errors import EXIT_OK, EXIT_UNSUPPORTED
from pinchpoint.workload.library import presets

MEASURED = (EXIT_OK, EXIT_UNSUPPORTED)
"""A busy host may make the figures invalid; what they are of is told all the same."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("none") as running:
        yield running


def test_workloads_are_listed_and_explained() -> None:
    listed = pinchpoint("workloads")
    assert listed.returncode == 0 and all(name in listed.stdout for name in presets())
    one = pinchpoint("workloads", "dialogue")
    assert one.returncode == 0 and '[[workload.classes]]\nname = "dialogue"' in one.stdout
    fields = json.loads(pinchpoint("workloads", "mixed", "--json").stdout)
    assert fields["schema"] == "pinchpoint.workload/1" and len(fields["classes"]) == len(presets()["mixed"].classes)
    unknown = pinchpoint("workloads", "chess")
    assert unknown.returncode == 2 and "there is no workload 'chess'" in unknown.stderr


def test_a_mix_is_told_by_class(lab: Lab, tmp_path: Path) -> None:
    flags = ("--workload", "mixed", "--rate", "12", "--duration", "2s", "--seed", "1")
    done = pinchpoint("load", lab.url, *flags, "--slo", "chat: e2e p95 < 9s", "--out", tmp_path / "run", "--json")
    assert done.returncode in MEASURED, done.stderr
    fields = json.loads(done.stdout)
    classes = {each["name"]: each for each in fields["classes"]}
    assert set(classes) <= {"chat", "rag", "code-completion", "summarise"} and len(classes) > 2
    assert sum(each["offered"] for each in classes.values()) == fields["offered"]
    slos = [each["slo"] for each in classes["chat"]["slos"]]
    assert slos[0] == "chat: e2e p95 < 9s" and "chat: ttft p95 < 500ms" in slos
    wrong = pinchpoint("load", lab.url, *flags, "--slo", "chess: e2e p95 < 9s", "--out", tmp_path / "other")
    assert wrong.returncode == 2 and "there is no class 'chess'" in wrong.stderr


def test_a_suite_is_proposed_and_can_be_run(lab: Lab, tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    made = pinchpoint("plan", "generate", lab.url, "--workload", "chat-short", "--duration", "300ms", "--out", suite)
    assert made.returncode == 0, made.stderr
    again = pinchpoint("plan", "generate", lab.url, "--out", suite)
    assert again.returncode == 2 and "already exists" in again.stderr
    done = pinchpoint("load", "--plan", suite, "--out", tmp_path / "run", "--json")
    assert done.returncode in MEASURED, done.stderr
    names = [stage["name"] for stage in json.loads(done.stdout)["stages"]]
    assert names == ["baseline", "normal", "peak", "beyond-peak", "spike", "long-context", "mixed", "soak"]
