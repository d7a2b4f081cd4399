"""A FastAPI service, its own JSON, and a template: `pinchpoint load` without a line of code. And a plug-in."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "custom"
LIMIT_S = 60.0
LENGTHS = ("--input-tokens", 12, "--output-tokens", 6)
REQUESTS = 8
MEASURED = (0, 3)
"""Exit codes of a load that went through; 3 where this host was too busy for the numbers to count."""

Load = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fastapi_app"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.stdin.close()
    process.wait(10)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def run(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = ["load", *map(str, words), "--requests", str(REQUESTS), "--rate", "40", "--workers", "1", "--json"]
        return subprocess.run(
            [sys.executable, "-m", "pinchpoint", *command, "--out", str(tmp_path / "run")],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **(env or {})},
            check=False,
        )

    return run


def records_of(tmp_path: Path) -> list[dict[str, Any]]:
    return pq.read_table(tmp_path / "run" / "records.parquet").to_pylist()


def values(records: list[dict[str, Any]], column: str) -> set[Any]:
    return {record[column] for record in records}


def test_events_of_an_asynchronous_endpoint_are_measured_token_by_token(
    service: str, load: Load, tmp_path: Path
) -> None:
    done = load(service, "--template", EXAMPLES / "json-and-events.toml", *LENGTHS)
    assert done.returncode in MEASURED, done.stderr
    records = records_of(tmp_path)
    assert len(records) == REQUESTS
    assert values(records, "status") == {"ok"}
    assert values(records, "output_tokens") == {6}
    assert values(records, "token_source") == {"usage"}
    assert values(records, "finish_reason") == {"length"}
    assert {len(record["chunk_ns"]) for record in records} == {6}
    assert all(record["input_tokens"] > 0 and record["first_token_ns"] for record in records)


def test_the_same_service_unstreamed_is_measured_as_a_whole(service: str, load: Load, tmp_path: Path) -> None:
    done = load(service, "--template", EXAMPLES / "json-and-events.toml", "--no-stream", *LENGTHS)
    assert done.returncode in MEASURED, done.stderr
    records = records_of(tmp_path)
    assert values(records, "status") == {"ok"}
    assert values(records, "output_tokens") == {6}
    assert values(records, "first_token_ns") == {None}


def test_a_synchronous_endpoint_that_answers_with_bare_text_can_be_loaded(
    service: str, load: Load, tmp_path: Path
) -> None:
    done = load(service, "--template", EXAMPLES / "plain-text.toml", *LENGTHS)
    assert done.returncode in MEASURED, done.stderr
    assert values(records_of(tmp_path), "status") == {"ok"}


def test_lines_that_repeat_the_text_so_far_are_measured_token_by_token(
    service: str, load: Load, tmp_path: Path
) -> None:
    done = load(service, "--template", EXAMPLES / "lines-so-far.toml", *LENGTHS)
    assert done.returncode in MEASURED, done.stderr
    records = records_of(tmp_path)
    assert values(records, "status") == {"ok"}
    assert values(records, "output_tokens") == {6}
    assert {len(record["chunk_ns"]) for record in records} == {6}


def test_embeddings_have_no_output(service: str, load: Load, tmp_path: Path) -> None:
    done = load(service, "--template", EXAMPLES / "embeddings.toml", "--workload", "embeddings")
    assert done.returncode in MEASURED, done.stderr
    records = records_of(tmp_path)
    assert values(records, "status") == {"ok"}
    assert values(records, "requested_output_tokens") == {0}
    assert all(record["input_tokens"] > 0 for record in records)


def test_a_conversation_goes_on_with_the_answers_that_really_came(service: str, load: Load, tmp_path: Path) -> None:
    """The service counts what it was sent: history of earlier turns makes later questions longer."""
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'seed = 3\napi = "custom"\n[[workload.classes]]\nname = "talk"\nturns = 2\nthink = "10ms"\n'
        "input_tokens = 12\noutput_tokens = 6\n"
        '[[stages]]\nkind = "sessions"\nrate = 20\nsessions = 4\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "pinchpoint", "load", service, "--plan", str(plan), "--template",
         str(EXAMPLES / "json-and-events.toml"), "--out", str(tmp_path / "run"), "--json"],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode in MEASURED, done.stderr
    counts = sorted(record["input_tokens"] for record in records_of(tmp_path))
    assert values(records_of(tmp_path), "status") == {"ok"}
    assert counts[-1] >= counts[0] + 6


BAD_TEMPLATES = [
    ("another member", 'text = "answer.text"', 'text = "answer.txt"', "no 'txt', but an object with text, tokens"),
    ("another path", 'path = "/ask"', 'path = "/aks"', "HTTP 404"),
    ("a failing endpoint", 'path = "/ask"', 'path = "/fail"', "HTTP 500: {\"detail\":\"the model is not loaded\"}"),
    ("another request", '"limit"', '"limits"', "HTTP 422"),
]  # fmt: skip


@pytest.mark.parametrize(("remark", "before", "after", "says"), BAD_TEMPLATES, ids=[bad[0] for bad in BAD_TEMPLATES])
def test_a_template_that_does_not_fit_the_service_says_where(
    service: str, load: Load, tmp_path: Path, remark: str, before: str, after: str, says: str
) -> None:
    template = tmp_path / "template.toml"
    template.write_text((EXAMPLES / "json-and-events.toml").read_text().replace(before, after))
    done = load(service, "--template", template, "--no-stream", *LENGTHS)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    records = records_of(tmp_path)
    assert "ok" not in values(records, "status")
    assert all(says in record["error"] for record in records), values(records, "error")


def test_a_wrong_template_is_told_before_any_load(service: str, load: Load, tmp_path: Path) -> None:
    template = tmp_path / "template.toml"
    template.write_text('path = "/say"\nrequest = \'{"text": {{ promt | json }}}\'\n[answer]\ntext = "$"\n')
    done = load(service, "--template", template, *LENGTHS)
    assert done.returncode == 2
    assert "request uses promt, which does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# -- a plug-in of a distribution of its own ------------------------------------------------------------------------

PLUGIN = """
from pinchpoint.targets.target import Chunk, Target, TargetSpec
import json


class Plain(Target):
    name, path, stream = "plain", "/say-plainly", False

    def build(self, prompt):
        return json.dumps({"text": prompt.text, "words": prompt.max_output_tokens}).encode()

    def parse_event(self, event, data):
        raise ValueError("this service does not stream")

    def parse_answer(self, body):
        return Chunk(content=True, text=body.decode(), finish_reason="stop")


def make(spec: TargetSpec) -> Target:
    return Plain()
"""


FAILS_AT_TIMES = """written = 0

    def build(self, prompt):
        self.written += 1
        if self.written % 3 == 0: raise KeyError("every third")"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    """A directory with an installed distribution that offers the plug-in `plain`."""
    site = tmp_path / "site"
    info = site / "tiny_target-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "tiny_target.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-target\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pinchpoint.targets]\nplain = tiny_target:make\n")
    return {"PYTHONPATH": str(site)}


@pytest.mark.parametrize("api", ["plugin:plain", "plugin:tiny_target:make"])
def test_a_plug_in_is_loaded_here_and_in_the_load_processes(
    service: str, load: Load, tmp_path: Path, site: dict[str, str], api: str
) -> None:
    done = load(service, "--api", api, *LENGTHS, env=site)
    assert done.returncode in MEASURED, done.stderr
    records = records_of(tmp_path)
    assert values(records, "status") == {"ok"}
    assert values(records, "finish_reason") == {"stop"}


def test_a_request_that_a_plug_in_cannot_write_is_dropped_and_the_load_goes_on(
    service: str, load: Load, tmp_path: Path, site: dict[str, str]
) -> None:
    module = tmp_path / "site" / "tiny_target.py"
    module.write_text(PLUGIN.replace("def build(self, prompt):", FAILS_AT_TIMES))
    done = load(service, "--api", "plugin:plain", *LENGTHS, env=site)
    assert "Traceback" not in done.stderr
    records = records_of(tmp_path)
    assert len(records) == REQUESTS
    assert values(records, "status") == {"ok", "dropped"}
    assert {record["error"] for record in records if record["status"] == "dropped"} == {
        "the plug-in plain: build raised KeyError: 'every third' (tiny_target.py, line 13)"
    }


def test_a_plug_in_that_is_not_there_is_told_with_those_that_are(
    service: str, load: Load, site: dict[str, str]
) -> None:
    done = load(service, "--api", "plugin:plane", *LENGTHS, env=site)
    assert done.returncode == 2
    assert "there is no plug-in 'plane': installed are plain" in done.stderr
    assert "Traceback" not in done.stderr
