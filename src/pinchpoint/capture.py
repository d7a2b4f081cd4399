"""A profile on demand: while the service is overloaded, its engine's own profiler (or a command) runs for a moment.

A profiler slows down what it looks at, and writing its trace may stop the engine for seconds; so there is one bounded
window, within the step that overloads the service on purpose, and its instants become an event of the run.
Whatever goes wrong with it costs the profile only and is told in a sentence.

A window that was begun is always ended, also when the run is: an engine that is left profiling fills its memory.
"""

import contextlib
import os
import shlex
import shutil
import signal
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.fetch import FetchError, exchange
from pinchpoint.model import TargetFacts
from pinchpoint.plan import ProfileSpec
from pinchpoint.profiles import Limits, analyse
from pinchpoint.profiles.source import GIB_BYTES
from pinchpoint.recorder import Recorder
from pinchpoint.report.literal import visible
from pinchpoint.report.profile_html import write_profile_page
from pinchpoint.report.profile_section import ANALYSIS_FILE, DIRECTORY, PAGE_FILE
from pinchpoint.rundir import write_atomically
from pinchpoint.units import counted, format_duration

DELAY_RATIO = 0.4
"""Of the step that passes before the window: queues have grown by then, and what the writing of the trace does to the
service still happens within the step."""
WINDOW_RATIO_MAX = 0.4
DELAY_DEFAULT_S = 2.0
"""Where nobody knows how long the step takes."""
START_LIMIT_S = 20.0
STOP_LIMIT_S = 180.0
"""vLLM writes its traces before it answers; with stacks that took half a minute for 64 tokens."""
FILES_LIMIT_S = 60.0
"""From the end of the window until the files must be there: SGLang answers before it has written."""
LOOK_PERIOD_S = 0.5
ANSWER_BYTES_MAX = 1 << 16
FILES_MAX = 64
COPY_BYTES_MAX = 512 << 20
"""More than that stays where it is; the analysis is kept all the same."""
COMMAND_GRACE_S = 30.0
"""Beyond the window, for a command to write what it saw; then it is asked to end."""
COMMAND_END_S = 10.0
COMMAND_LOG = "command.txt"
COMPLAINT_BYTES = 4_096
LIMITS = Limits(file_bytes=GIB_BYTES)
"""A run waits for the analysis."""
SUFFIXES = (".json", ".json.gz", ".sqlite", ".sqlite.gz", ".csv", ".csv.gz", ".db")
"""What profilers write that can be analysed; others in the directory are left alone."""
HOW_TO = {
    "vllm": """start vLLM with --profiler-config '{"profiler": "torch", "torch_profiler_dir": "/DIR", """
    """"torch_profiler_with_stack": false}' and give the directory with --profile-dir /DIR""",
    "sglang": "the server must allow POST /start_profile; a proxy may hide it, then give the engine's own URL",
}
HTTP_OK = 200
HTTP_NOT_FOUND = 404


class _Stamp(NamedTuple):
    """What tells that a file was written since."""

    size: int
    modified_ns: int


class Trouble(NamedTuple):
    """What went wrong. may_profile: the profiler may have begun all the same, and must be ended."""

    what: str
    may_profile: bool = False


class Profiler(Protocol):
    """Begins and ends a window. Both return None, or what went wrong; neither raises."""

    def begin(self, window_s: float) -> Trouble | None: ...
    def end(self) -> Trouble | None: ...


class EngineProfiler:
    """POST /start_profile and /stop_profile of vLLM and SGLang."""

    def __init__(
        self, url: str, engine: str, directory: Path | None, headers: Mapping[str, str], tls: ssl.SSLContext | None
    ) -> None:
        """directory: where SGLang is told to write; None leaves it to the server. vLLM is told when it is started."""
        self._url = url.rstrip("/").removesuffix("/v1")
        self._engine = engine
        self._headers = dict(headers)
        self._tls = tls
        self._body: bytes | None = None
        if engine == "sglang":
            # Without stacks the trace is a tenth of the size; the server's default is to record them.
            asked: dict[str, object] = {"activities": ["CPU", "GPU"], "with_stack": False}
            if directory is not None:
                asked["output_dir"] = str(directory.resolve())
            self._body = msgspec.json.encode(asked)

    def begin(self, window_s: float) -> Trouble | None:
        return self._post("/start_profile", self._body, START_LIMIT_S)

    def end(self) -> Trouble | None:
        return self._post("/stop_profile", None, STOP_LIMIT_S)

    def _post(self, path: str, body: bytes | None, limit_s: float) -> Trouble | None:
        headers = {**self._headers, **({"Content-Type": "application/json"} if body is not None else {})}
        url = self._url + path
        try:
            answer = exchange(
                "POST", url, headers=headers, timeout_s=limit_s, max_bytes=ANSWER_BYTES_MAX, body=body or b"",
                tls=self._tls,
            )  # fmt: skip
        except FetchError as error:
            return Trouble(f"POST {url} was not answered ({error.reason})", may_profile=True)
        if answer.status == HTTP_OK:
            return None
        if answer.status == HTTP_NOT_FOUND:
            return Trouble(f"{url} is not there: {HOW_TO[self._engine]}")
        said = visible(answer.body.decode(errors="replace"))
        return Trouble(f"POST {url} was answered with HTTP {answer.status}: {said or 'nothing'}")


class CommandProfiler:
    """A command of the user's: run without a shell, ended by its process when it takes too long."""

    def __init__(self, command: str, directory: Path, log: Path, pid: int | None) -> None:
        """directory, pid: for the placeholders. log: what the command prints. Raises UsageError for no command."""
        self._words = split_command(command)
        self._directory = directory
        self._log = log
        self._pid = pid
        self._process: subprocess.Popen[bytes] | None = None
        self._until_s = 0.0

    def begin(self, window_s: float) -> Trouble | None:
        filled = {"{seconds}": f"{window_s:g}", "{directory}": str(self._directory.resolve())}
        if self._pid is not None:
            filled["{pid}"] = str(self._pid)
        elif any("{pid}" in word for word in self._words):
            return Trouble("the command asks for {pid}, but no process of the service is seen on this host")
        words = [_filled(word, filled) for word in self._words]
        self._until_s = time.monotonic() + window_s + COMMAND_GRACE_S
        try:
            with self._log.open("wb") as output:
                self._process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
        except OSError as error:
            return Trouble(f"{words[0]} cannot be started: {error.strerror}")
        return None

    def end(self) -> Trouble | None:
        process = self._process
        if process is None:
            return None
        try:
            code = process.wait(max(0.0, self._until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            _put_an_end(process)
            return Trouble(f"the command still ran {COMMAND_GRACE_S:g} s after its window and was ended")
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started and left behind is in its session
                os.killpg(process.pid, signal.SIGKILL)
        return Trouble(f"the command ended with code {code}: {self._complaint()}") if code else None

    def _complaint(self) -> str:
        with contextlib.suppress(OSError), self._log.open("rb") as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - COMPLAINT_BYTES))
            lines = output.read().decode(errors="replace").strip().splitlines()
            if lines:
                return visible(lines[-1])
        return "it said nothing"


class Capture:
    """The one window of a run. `start` when the step begins, `finish` after the load, whatever happened."""

    def __init__(
        self,
        spec: ProfileSpec,
        facts: TargetFacts,
        run_path: Path,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        local: bool,
    ) -> None:
        """local: the service runs on this host, so files that it writes can be found here.

        Raises UsageError as check_profile does.
        """
        check_profile(spec)
        self._spec = spec
        self._facts = facts
        self._kept = run_path / DIRECTORY
        self._notes: list[str] = []
        self._watched: Path | None = None
        if spec.directory is not None:
            self._watched = Path(spec.directory)
        elif spec.command is not None or (facts.engine == "sglang" and local):
            self._watched = self._kept
        self._headers, self._tls = headers or {}, tls
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._began_ns: int | None = None
        self._stopped_ns: int | None = None
        self._ended_ns: int | None = None
        self._taken = False
        self._before: dict[Path, _Stamp] = {}

    def start(self, planned_s: float | None = None) -> None:
        """Begins the wait for the window, in a thread. planned_s: how long the step is meant to take.

        Called again, when a step turned out not to overload the service and another one follows, it opens another
        window, of which alone is kept; not while the first is still open or written."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._notes.clear()
        self._taken, self._began_ns, self._stopped_ns, self._ended_ns = False, None, None, None
        window_s, delay_s = self._spec.window_s, DELAY_DEFAULT_S
        if planned_s is not None:
            window_s, delay_s = min(window_s, WINDOW_RATIO_MAX * planned_s), DELAY_RATIO * planned_s
        self._thread = threading.Thread(target=self._run, args=(delay_s, window_s), name="profile", daemon=True)
        self._thread.start()

    def _run(self, delay_s: float, window_s: float) -> None:
        if self._over.wait(delay_s):
            self._notes.append("no profile was taken: the load ended before its window")
            return
        try:
            self._kept.mkdir(exist_ok=True)
        except OSError as error:
            self._notes.append(f"no profile was taken: {self._kept} cannot be made ({error.strerror})")
            return
        profiler = self._make_profiler()
        if profiler is None:
            return
        self._before = _listing(self._watched) if self._watched is not None else {}
        self._began_ns = monotonic_ns()
        trouble = profiler.begin(window_s)
        if trouble is None:
            self._taken = True
            self._over.wait(window_s)
        else:
            self._notes.append(f"no profile was taken: {trouble.what}")
        self._stopped_ns = monotonic_ns()
        if trouble is None or trouble.may_profile:
            trouble = profiler.end()
            if trouble is not None and self._taken:
                self._notes.append(f"the profile may be incomplete: {trouble.what}")
        self._ended_ns = monotonic_ns()

    def _make_profiler(self) -> Profiler | None:
        facts = self._facts
        if self._spec.command is not None:
            pid = facts.server_pids[0] if facts.server_pids else None
            return CommandProfiler(self._spec.command, self._watched or self._kept, self._kept / COMMAND_LOG, pid)
        if facts.engine in HOW_TO:
            return EngineProfiler(facts.url, facts.engine, self._watched, self._headers, self._tls)
        self._notes.append(
            f"no profile was taken: {facts.engine} has no profiler that can be started over HTTP; give a command with "
            "--profile-command, such as 'nsys profile ...'"
        )
        return None

    def finish(self, recorder: Recorder) -> tuple[str, ...]:
        """Ends the window if it is still open, waits for the files, keeps and analyses them. Returns what is to be
        said of it, in sentences; they are events of the run, too."""
        self._over.set()
        if self._thread is None:
            self._notes.append("no profile was taken: the run had no step that overloads the service")
            recorder.on_event("profile", message=self._notes[0])
            return tuple(self._notes)
        self._thread.join(START_LIMIT_S + STOP_LIMIT_S)
        if self._thread.is_alive():
            self._notes.append("the profiler did not come to an end in time; see whether the service still profiles")
        elif self._taken:
            self._collect()
        notes = tuple(self._notes)
        if self._began_ns is not None:
            recorder.on_event("profile", began_ns=self._began_ns, stopped_ns=self._stopped_ns, ended_ns=self._ended_ns)
        for note in notes:
            recorder.on_event("profile", message=note)
        return notes

    def _collect(self) -> None:
        if self._watched is None:
            self._notes.append(
                "a profile was taken, but where its files are is not known; name the directory with --profile-dir, or "
                "read them with `pinchpoint profile FILE`"
            )
            return
        files = self._await_files(self._watched)
        if not files:
            self._notes.append(
                f"a profile was taken, but no trace appeared in {self._watched} within {FILES_LIMIT_S:g} s; check that "
                "the engine writes there, and that it is this host's directory"
            )
            return
        kept = self._keep(files)
        try:
            analysis = analyse(kept, LIMITS)
        except UsageError as error:
            self._notes.append(f"a profile was taken, but not read: {error}")
            return
        try:
            write_atomically(self._kept / ANALYSIS_FILE, msgspec.json.encode(analysis))
            write_profile_page(analysis, self._kept / PAGE_FILE)
        except OSError as error:
            self._notes.append(f"the analysis of the profile cannot be written: {error.strerror}")
            return
        span_s = max((one.span_s for one in analysis.ranks), default=None)
        window_s = ((self._stopped_ns or 0) - (self._began_ns or 0)) / NS_PER_S
        self._notes.append(
            f"profiled for {format_duration(window_s)}: {counted(len(kept), 'file')}, "
            f"{format_duration(span_s)} of trace"
        )
        self._notes += [f"{Path(one.file).name}: {one.what}" for one in analysis.problems]

    def _await_files(self, directory: Path) -> list[Path]:
        """What was written since the window began, once it no longer changes."""
        until_s = time.monotonic() + FILES_LIMIT_S
        seen: dict[Path, _Stamp] = {}
        while True:
            now = {path: stamp for path, stamp in _listing(directory).items() if self._before.get(path) != stamp}
            if now and now == seen and all(stamp.size for stamp in now.values()):
                break
            seen = now
            if time.monotonic() > until_s:
                break
            time.sleep(LOOK_PERIOD_S)
        found = sorted(seen)
        if len(found) > FILES_MAX:
            self._notes.append(f"of {len(found)} files of the profile the first {FILES_MAX} were read")
        return found[:FILES_MAX]

    def _keep(self, files: list[Path]) -> list[Path]:
        """Copies into the run directory, within a bound; else the files where they are."""
        if self._watched == self._kept:
            return files
        with contextlib.suppress(OSError):
            if sum(file.stat().st_size for file in files) <= COPY_BYTES_MAX:
                return [Path(shutil.copy2(file, self._kept / file.name)) for file in files]
        self._notes.append(f"the files of the profile stay in {self._watched}: they are too large to be copied")
        return files


def check_profile(spec: ProfileSpec | None) -> None:
    """Before a run. Raises UsageError for a directory that is not there, and for a command that is none."""
    if spec is None:
        return
    if spec.directory is not None and not Path(spec.directory).is_dir():
        raise UsageError(
            f"{spec.directory} is no directory on this host; name the one that the engine writes its traces into"
        )
    if spec.command is not None:
        split_command(spec.command)


def split_command(command: str) -> list[str]:
    """Words as a shell splits them; nothing is expanded. Raises UsageError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--profile-command {command!r} cannot be split into words: {error}") from None
    if not words:
        raise UsageError("--profile-command is empty; name a program")
    return words


def _put_an_end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):  # profilers write what they have on SIGINT
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(COMMAND_END_S)
            return
    process.wait()


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _listing(directory: Path) -> dict[Path, _Stamp]:
    """Profiles in the directory, regular files only; links of an untrusted writer could name any file."""
    found: dict[Path, _Stamp] = {}
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.name.endswith(SUFFIXES) and path.name != ANALYSIS_FILE:
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        found[path] = _Stamp(status.st_size, status.st_mtime_ns)
    return found
