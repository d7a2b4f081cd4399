"""Stacks of Python processes: what is found, and what is said when nothing can be."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinchpoint.errors import UnsupportedMeasurementError, UsageError
from pinchpoint.telemetry import stacks
from pinchpoint.telemetry.stacks import (
    Frame,
    StackSampling,
    explain,
    find_py_spy,
    read_collapsed,
    top_frames,
)

BUSY = """
import sys, threading
def inner():
    return sum(i * i for i in range(20_000))
def spin():
    while True:
        inner()
threading.Thread(target=spin, name="spinner", daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def busy() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def fake_py_spy(directory: Path, script: str) -> Path:
    program = directory / "py-spy"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.mark.skipif(find_py_spy() is None, reason="py-spy is not installed")
def test_a_thread_that_spins_is_found_by_the_name_of_its_function(
    busy: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    seen = StackSampling([busy.pid], tmp_path, duration_s=1, rate_hz=100).finish()
    if any("may not be traced" in problem for problem in seen.problems):
        pytest.skip("this system does not let one process trace another")
    assert seen.problems == ()
    assert seen.samples > 0
    assert any(frame.name.startswith(("inner", "spin", "<genexpr>")) for frame in seen.frames)
    text = (tmp_path / "stacks.txt").read_text()
    assert "spinner" in text
    assert f" {busy.pid};" in text


def test_without_py_spy_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stacks, "find_py_spy", lambda: None)
    with pytest.raises(UnsupportedMeasurementError, match=r"pip install 'pinchpoint\[stacks\]'"):
        StackSampling([1], tmp_path, 1)


@pytest.mark.parametrize(("duration_s", "rate_hz"), [(0, 20), (1e6, 20), (1, 0), (1, 10_000)])
def test_rate_and_window_are_bounded(duration_s: float, rate_hz: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        StackSampling([1], tmp_path, duration_s, rate_hz)


def test_a_process_that_may_not_be_traced_is_told_in_words(busy: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    program = fake_py_spy(tmp_path, "echo 'Error: Permission Denied: Try running again' >&2; exit 1")
    seen = StackSampling([busy.pid], tmp_path, 1, program=program).finish()
    assert seen.samples == 0
    assert seen.path is None
    assert "may not be traced by this user" in seen.problems[0]


def test_a_process_that_has_ended_is_told_in_words(tmp_path: Path) -> None:
    short = subprocess.Popen([sys.executable, "-c", "pass"])
    short.wait()
    seen = StackSampling([short.pid], tmp_path, 1, program=fake_py_spy(tmp_path, "exit 1")).finish()
    assert seen.problems == (f"process {short.pid} has ended; no stacks of it",)


def test_descendants_are_sampled_too_and_what_cannot_be_seen_of_them_is_no_problem(
    tmp_path: Path,
) -> None:
    code = "import subprocess; subprocess.run(['sh', '-c', 'echo up; read line'])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    seen = StackSampling(
        [parent.pid], tmp_path, 1, program=fake_py_spy(tmp_path, f"echo $3 >> {tmp_path}/asked; exit 1")
    ).finish()
    parent.communicate(b"\n")
    assert len(seen.problems) == 1
    assert f"process {parent.pid} " in seen.problems[0]
    assert len((tmp_path / "asked").read_text().split()) == 2


def test_a_sampler_that_hangs_is_ended(
    busy: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "GRACE_S", -0.9)
    seen = StackSampling([busy.pid], tmp_path, 1, program=fake_py_spy(tmp_path, "exec sleep 60")).finish()
    assert len(seen.problems) == 1


def test_a_program_that_cannot_be_run_is_told_in_words(busy: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    seen = StackSampling([busy.pid], tmp_path, 1, program=tmp_path / "absent").finish()
    assert "cannot be run" in seen.problems[0]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("Error: Failed to find python version from target process", "runs no Python"),
        ("Error: No such file or directory (os error 2)", "has ended"),
        ("Error: something \x1b[31m new", "py-spy says Error: something ?[31m new"),
        ("py-spy> Wrote raw flamegraph data. Samples: 0 Errors: 0", "never seen awake"),
    ],
)
def test_complaints_become_sentences(said: str, sentence: str) -> None:
    assert sentence in explain(said, 7, "x")


def test_lines_of_one_function_count_together_and_recursion_once() -> None:
    counts = Counter(
        {
            ("p 1", "thread (1): a", "f (a.py:1)", "f (a.py:2)", "g (a.py:9)"): 3,
            ("p 1", "thread (1): a", "f (a.py:5)"): 1,
        }
    )
    assert top_frames(counts) == (Frame("g (a.py)", 0.75, 0.75), Frame("f (a.py)", 0.25, 1.0))


def test_text_from_the_process_stays_text(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"thread (1): \x1b]0;x;f (a.py:1) 3\nno count\n\xff\xfe 2\n 5\n")
    counts = read_collapsed(raw)
    assert sum(counts.values()) == 5
    assert not any("\x1b" in frame for stack in counts for frame in stack)
    assert read_collapsed(tmp_path / "absent") == Counter()
