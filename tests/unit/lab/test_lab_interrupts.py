"""What the lab's verbs say when they are interrupted, and while they work without a terminal."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pinchpoint import __main__ as entry
from pinchpoint import labbench, synth
from pinchpoint.cli import main
from pinchpoint.labbench.make import Bench


def ended(words: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(("written", "says"), [(True, "pinchpoint report"), (False, "before anything was written")])
def test_an_interrupted_synth_says_what_is_left(
    written: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"

    def interrupted(*_: Any, **__: Any) -> Path:
        if written:
            out.mkdir()
            (out / "run.json").write_text("{}")
        signal.raise_signal(signal.SIGTERM)  # taken as Ctrl-C
        return out

    monkeypatch.setattr(synth, "run_virtual", interrupted)
    assert ended(["lab", "synth", "--out", str(out)]) == 130
    assert says in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_data_set_tells_every_tenth_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(out: Path, *_: Any, on_made: Any, **__: Any) -> Bench:
        for done in range(201):
            on_made(done, 200)
        return Bench(out, {}, {}, False, 0, 0.0)

    monkeypatch.setattr(labbench, "make_bench", make)
    assert ended(["lab", "bench", "--out", str(tmp_path / "set")]) == 130
    told = [line for line in capsys.readouterr().err.splitlines() if line.endswith("of 200 runs")]
    assert told == [f"{done} of 200 runs" for done in range(0, 201, 20)]


def test_ctrl_c_while_the_program_is_being_loaded_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "pinchpoint.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "pinchpoint.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 130
    assert "interrupted" in capsys.readouterr().err
