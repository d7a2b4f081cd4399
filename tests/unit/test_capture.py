"""A profile on demand against engines that behave in every way they might."""

import gzip
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pinchpoint import capture as module
from pinchpoint.capture import Capture, check_profile, split_command
from pinchpoint.errors import UsageError
from pinchpoint.model import TargetFacts
from pinchpoint.plan import ProfileSpec
from pinchpoint.report.profile_section import profile_section

TRACE = Path(__file__).parents[1] / "data" / "profiles" / "mi300x_vllm_decode_cudagraph.json.gz"
SHORT = ProfileSpec(window_s=0.1)


class Events:
    """In place of a recorder."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def on_event(self, kind: str, **fields: Any) -> None:
        self.told.append({"kind": kind, **fields})


class Engine:
    """start, stop: called with the request; give the status. calls: (path, headers, body) in their order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.started = threading.Event()
        self.start: Callable[[], int] = lambda: 200
        self.stop: Callable[[], int] = lambda: 200


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            engine.calls.append((self.path, dict(self.headers), body))
            status = engine.start() if self.path == "/start_profile" else engine.stop()
            engine.started.set()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"said <b>something</b>")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELAY_DEFAULT_S", 0.0)
    monkeypatch.setattr(module, "FILES_LIMIT_S", 0.3)
    monkeypatch.setattr(module, "LOOK_PERIOD_S", 0.01)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    (tmp_path / "traces").mkdir()
    return tmp_path / "traces"


def writes(path: Path, content: Callable[[Path], object] = lambda path: shutil.copy(TRACE, path)) -> Callable[[], int]:
    def stop() -> int:
        content(path)
        return 200

    return stop


def taken(capture: Capture, events: Events | None = None) -> tuple[str, ...]:
    """The notes of a capture whose window has passed."""
    capture.start()
    assert capture._thread is not None
    capture._thread.join()
    return capture.finish(events or Events())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("engine_name", ["vllm", "sglang"])
def test_the_trace_is_kept_analysed_and_part_of_the_run(engine_name: str, run: Path, traces: Path) -> None:
    shutil.copy(TRACE, traces / "older.json.gz")
    engine, events = Engine(), Events()
    engine.stop = writes(traces / "rank0.pt.trace.json.gz")
    spec = ProfileSpec(window_s=0.1, directory=str(traces))
    with serving(engine) as url:
        facts = TargetFacts(url=url + "/v1", engine=engine_name)
        capture = Capture(spec, facts, run, headers={"Authorization": "Bearer secret"}, local=True)
        notes = taken(capture, events)
    assert [path for path, _, _ in engine.calls] == ["/start_profile", "/stop_profile"]
    assert {headers["Authorization"] for _, headers, _ in engine.calls} == {"Bearer secret"}
    asked = engine.calls[0][2].decode()
    assert (str(traces) in asked) is (engine_name == "sglang")
    assert len(notes) == 1 and ": 1 file, 10.7 ms of trace" in notes[0]
    assert sorted(path.name for path in (run / "profile").iterdir()) == [
        "analysis.json", "profile.html", "rank0.pt.trace.json.gz",
    ]  # fmt: skip
    section = profile_section(run)
    assert section is not None and section.link == "profile/profile.html"
    window, said = events.told
    assert window["began_ns"] < window["stopped_ns"] <= window["ended_ns"]
    assert said == {"kind": "profile", "message": notes[0]}


def test_sglang_on_this_host_is_told_to_write_into_the_run(run: Path) -> None:
    engine = Engine()
    engine.stop = writes(run / "profile" / "rank0.trace.json.gz")
    with serving(engine) as url:
        notes = taken(Capture(SHORT, TargetFacts(url=url, engine="sglang"), run, local=True))
    assert str(run.resolve() / "profile").encode() in engine.calls[0][2]
    assert len(notes) == 1 and "1 file" in notes[0]


def test_an_engine_that_was_not_started_for_it_is_told_how(run: Path) -> None:
    engine = Engine()
    engine.start = lambda: 404
    with serving(engine) as url:
        (note,) = taken(Capture(SHORT, TargetFacts(url=url, engine="vllm"), run, local=True))
    assert note.startswith("no profile was taken") and "--profiler-config" in note
    assert len(engine.calls) == 1


def test_what_an_engine_complains_of_is_told(run: Path) -> None:
    engine = Engine()
    engine.start = lambda: 500
    with serving(engine) as url:
        (note,) = taken(Capture(SHORT, TargetFacts(url=url, engine="sglang"), run, local=True))
    assert "HTTP 500: said <b>something</b>" in note


def test_an_engine_that_does_not_answer_in_time_is_stopped_all_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, over = Engine(), threading.Event()
    engine.start = lambda: 200 if over.wait(30) else 500
    monkeypatch.setattr(module, "START_LIMIT_S", 0.2)
    with serving(engine) as url:
        try:
            (note,) = taken(Capture(SHORT, TargetFacts(url=url, engine="vllm"), run, local=True))
        finally:
            over.set()
    assert "was not answered (timeout)" in note
    assert [path for path, _, _ in engine.calls] == ["/start_profile", "/stop_profile"]


def test_an_engine_that_is_gone_costs_the_profile_only(run: Path) -> None:
    with serving(Engine()) as url:
        pass
    (note,) = taken(Capture(SHORT, TargetFacts(url=url, engine="vllm"), run, local=True))
    assert note.startswith("no profile was taken") and "refused" in note


def test_files_that_never_come_and_files_that_are_no_traces_are_told(run: Path, traces: Path) -> None:
    spec = ProfileSpec(window_s=0.1, directory=str(traces))
    engine = Engine()
    with serving(engine) as url:
        facts = TargetFacts(url=url, engine="vllm")
        (nothing,) = taken(Capture(spec, facts, run, local=True))
        engine.stop = writes(traces / "rank0.json", lambda path: path.write_text("no trace"))
        (odd,) = taken(Capture(spec, facts, run, local=True))
    assert "no trace appeared" in nothing
    assert "not read" in odd and "no profile of a known format" in odd


def test_a_trace_that_was_cut_off_is_read_as_far_as_it_goes(run: Path, traces: Path) -> None:
    engine = Engine()
    whole = gzip.decompress(TRACE.read_bytes())
    engine.stop = writes(traces / "r.json", lambda path: path.write_bytes(whole[: len(whole) * 2 // 3]))
    with serving(engine) as url:
        spec = ProfileSpec(window_s=0.1, directory=str(traces))
        notes = taken(Capture(spec, TargetFacts(url=url, engine="vllm"), run, local=True))
    assert "1 file" in notes[0]
    assert any(note.startswith("r.json: ") and "cut off" in note for note in notes)
    assert profile_section(run) is not None


def test_links_in_the_directory_are_not_followed(run: Path, traces: Path) -> None:
    engine = Engine()
    engine.stop = writes(traces / "r.json.gz", lambda path: path.symlink_to(TRACE))
    with serving(engine) as url:
        spec = ProfileSpec(window_s=0.1, directory=str(traces))
        (note,) = taken(Capture(spec, TargetFacts(url=url, engine="vllm"), run, local=True))
    assert "no trace appeared" in note


def test_the_end_of_the_run_ends_the_window(run: Path) -> None:
    engine = Engine()
    with serving(engine) as url:
        capture = Capture(ProfileSpec(window_s=60.0), TargetFacts(url=url, engine="vllm"), run, local=False)
        capture.start()
        assert engine.started.wait(30)
        (note,) = capture.finish(Events())  # pyright: ignore[reportArgumentType]
    assert [path for path, _, _ in engine.calls] == ["/start_profile", "/stop_profile"]
    assert "where its files are is not known" in note


def test_a_run_that_ends_before_the_window_touches_no_engine(run: Path) -> None:
    engine = Engine()
    with serving(engine) as url:
        capture = Capture(SHORT, TargetFacts(url=url, engine="vllm"), run, local=True)
        capture.start(planned_s=1000.0)
        (note,) = capture.finish(Events())  # pyright: ignore[reportArgumentType]
        (never,) = Capture(SHORT, TargetFacts(url=url, engine="vllm"), run, local=True).finish(Events())  # pyright: ignore[reportArgumentType]
    assert engine.calls == []
    assert "ended before its window" in note and "no step that overloads" in never


def test_another_step_has_another_window_and_only_its_trace_is_kept(run: Path, traces: Path) -> None:
    engine = Engine()
    with serving(engine) as url:
        spec = ProfileSpec(window_s=0.1, directory=str(traces))
        capture = Capture(spec, TargetFacts(url=url, engine="vllm"), run, local=True)
        engine.stop = writes(traces / "first.json.gz")
        capture.start()
        assert capture._thread is not None
        capture._thread.join()
        engine.stop = writes(traces / "second.json.gz")
        notes = taken(capture)
    assert len(notes) == 1 and len(engine.calls) == 4
    assert (run / "profile" / "second.json.gz").exists() and not (run / "profile" / "first.json.gz").exists()


def test_an_engine_without_a_profiler_needs_a_command(run: Path) -> None:
    (note,) = taken(Capture(SHORT, TargetFacts(url="http://127.0.0.1:9", engine="llama.cpp"), run, local=True))
    assert "llama.cpp has no profiler" in note and "--profile-command" in note


def commanded(run: Path, program: str, pids: tuple[int, ...] = (), *words: str) -> tuple[str, ...]:
    script = run / "profiler.py"
    script.write_text(program)
    command = " ".join([sys.executable, str(script), "{seconds}", "{directory}", *words])
    facts = TargetFacts(url="http://127.0.0.1:9", server_pids=pids)
    return taken(Capture(ProfileSpec(window_s=0.1, command=command), facts, run, local=True))


def test_a_command_is_told_where_how_long_and_of_what_and_its_files_are_read(run: Path) -> None:
    program = (
        "import shutil, sys\nassert (sys.argv[1], sys.argv[3]) == ('0.1', '77')\n"
        f"shutil.copy({str(TRACE)!r}, sys.argv[2])\n"
    )
    notes = commanded(run, program, (77,), "{pid}")
    assert len(notes) == 1 and "1 file" in notes[0]


def test_a_command_that_fails_is_told_with_its_last_words(run: Path) -> None:
    notes = commanded(run, "import sys\nsys.exit('no permission\\x1b[31m to trace')\n")
    assert any("ended with code 1: no permission to trace" in note for note in notes)


def test_a_command_that_does_not_end_is_ended(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMAND_GRACE_S", 0.2)
    monkeypatch.setattr(module, "COMMAND_END_S", 0.2)
    stubborn = "import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(600)\n"
    notes = commanded(run, stubborn)
    assert any("was ended" in note for note in notes)


def test_a_command_for_a_process_that_is_not_here_is_not_started(run: Path) -> None:
    (note,) = commanded(run, "raise SystemExit(3)", (), "{pid}")
    assert "no process of the service is seen on this host" in note


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (ProfileSpec(directory="/does/not/exist"), "no directory on this host"),
        (ProfileSpec(command="nsys 'profile"), "cannot be split"),
        (ProfileSpec(command="  "), "is empty"),
    ],
)
def test_what_cannot_work_is_told_before_the_run(spec: ProfileSpec, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_profile(spec)


def test_commands_are_split_as_a_shell_does_and_nothing_is_expanded() -> None:
    assert split_command("nsys profile -o '{directory}/a b' $HOME ; ls") == [
        "nsys", "profile", "-o", "{directory}/a b", "$HOME", ";", "ls",
    ]  # fmt: skip
    check_profile(None)
