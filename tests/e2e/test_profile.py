"""`pinchpoint profile` as a user runs it, and a profile on demand of the lab's services."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pinchpoint.capture import Capture
from pinchpoint.model import TargetFacts
from pinchpoint.plan import ProfileSpec
from pinchpoint.report.profile_section import profile_of

DATA = Path(__file__).parents[1] / "data" / "profiles"
PINCHPOINT = (sys.executable, "-m", "pinchpoint")
LIMIT_S = 120.0


def profile(*words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PINCHPOINT, "profile", *map(str, words)], capture_output=True, text=True, timeout=LIMIT_S, cwd=folder,
        env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip


def test_the_screen_says_where_the_time_went_and_the_page_lies_beside_the_file(tmp_path: Path) -> None:
    shutil.copy(DATA / "mi300x_vllm_decode_cudagraph.json.gz", tmp_path / "rank0.pt.trace.json.gz")
    done = profile(tmp_path / "rank0.pt.trace.json.gz", "--top", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("The GPU was busy 99.8 % of the time; most of that is ")
    assert "top 3 of " in done.stdout and "time by category" in done.stdout
    page = tmp_path / "rank0.profile.html"
    assert done.stdout.rstrip().endswith(f"page  {page}")
    assert page.read_text().startswith("<!doctype html>")


def test_json_is_the_whole_analysis_and_nothing_else(tmp_path: Path) -> None:
    done = profile(DATA / "h100_bert-small.json.gz", "--json", "--out", tmp_path / "page.html")
    document = json.loads(done.stdout)
    assert document["schema"] == "pinchpoint.profile/1"
    assert document["format"] == "kineto" and document["ranks"][0]["gpu"]["busy_s"] > 0
    assert (tmp_path / "page.html").exists()


def test_where_the_files_are_cannot_be_written_the_page_comes_here(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    shutil.copy(DATA / "cpu_only_rank-34.json.gz", there / "cpu.json.gz")
    there.chmod(0o500)
    assert profile(there / "cpu.json.gz", folder=here).returncode == 0
    assert (here / "cpu.profile.html").exists()


def test_what_is_no_trace_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "empty.json").touch()
    own = tmp_path / "own.json.gz"
    shutil.copy(DATA / "cpu_only_rank-34.json.gz", own)
    for words, said in (
        ((), "at least one profile"),
        ((tmp_path / "absent.json",), "cannot be read"),
        ((tmp_path / "text.json",), "no profile of a known format"),
        ((tmp_path / "empty.json",), "is empty"),
        ((tmp_path,), "is a directory"),
        ((own, "--top", 0), "--top 0"),
        ((own, "--out", own), "is one of the profiles"),
        ((own, "--out", tmp_path / "no" / "page.html"), "cannot write"),
    ):
        done = profile(*words)
        assert done.returncode == 2, words
        assert said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert own.read_bytes() == (DATA / "cpu_only_rank-34.json.gz").read_bytes()


@contextmanager
def lab(dialect: str, traces: Path) -> Iterator[str]:
    words = ("lab", "serve", "--port", "0", "--json", "--dialect", dialect, "--profile-dir", str(traces))
    process = subprocess.Popen([*PINCHPOINT, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            break
    try:
        yield json.loads(text)["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)


def chat(url: str) -> None:
    body = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 16}
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        assert answer.status == 200


class Events:
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_event(self, kind: str, **fields: Any) -> None:
        self.told.append(kind)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_a_moment_of_the_labs_service_is_profiled_and_analysed(
    dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinchpoint.capture.DELAY_DEFAULT_S", 0.0)
    traces, run = tmp_path / "traces", tmp_path / "run"
    traces.mkdir()
    run.mkdir()
    with lab(dialect, traces) as url:
        spec = ProfileSpec(window_s=60.0, directory=str(traces))
        capture, events = Capture(spec, TargetFacts(url=url, engine=dialect), run, local=True), Events()
        capture.start()
        while not capture._taken and capture._stopped_ns is None:  # until the engine has said that it profiles
            time.sleep(0.01)
        chat(url)
        (note,) = capture.finish(events)  # pyright: ignore[reportArgumentType]
    assert "1 file" in note
    analysis = profile_of(run)
    assert analysis is not None and analysis.ranks[0].gpu is not None
    assert {"prefill", "decode"} <= {one.kind for one in analysis.ranks[0].step_summary}
    assert (run / "profile" / "profile.html").exists()
    assert set(events.told) == {"profile"}
