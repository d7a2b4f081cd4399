"""Call stacks of the service's Python processes over a bounded window, with py-spy where it is installed.

What a thread that is full does all day, no counter says. py-spy reads the memory of the process from outside; it does
not stop it (`--nonblocking`), so a sample may now and then be torn and is then left out. It needs the right to trace
the process: the same user, and no Yama setting or container that forbids it.

The result is a file of collapsed stacks, `PROCESS;THREAD;outermost;...;innermost COUNT` a line, which flame graph tools
read, and the frames in which most time was spent.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from pinchpoint.clock import monotonic_ns
from pinchpoint.errors import UnsupportedMeasurementError, UsageError
from pinchpoint.telemetry.process_files import ProcessStat
from pinchpoint.telemetry.process_tree import ProcessTree

PROGRAM = "py-spy"
EXTRA = "stacks"
FILE_NAME = "stacks.txt"
RATE_HZ = 20
"""Samples a second: 600 in half a minute tell a share of 10 % to about 1 %, and cost little."""
MAX_RATE_HZ = 200
MAX_DURATION_S = 600.0
MAX_PROCESSES = 16
TOP_FRAMES = 10
GRACE_S = 20.0
"""Beyond the window, for py-spy to find its way through a large process and to write."""
MAX_RAW_BYTES = 64 << 20
MAX_LINES = 200_000
MAX_COMPLAINT_BYTES = 4_096


class Frame(msgspec.Struct, frozen=True):
    """A function, and the shares of all samples in which it ran."""

    name: str
    own_ratio: float
    """Innermost."""
    total_ratio: float
    """Anywhere on the stack, once however deep it calls itself."""


class Stacks(msgspec.Struct, frozen=True):
    """What was sampled. `problems` are sentences, one for each process that could not be looked at."""

    samples: int
    """Of threads that were not asleep."""
    frames: tuple[Frame, ...]
    """By own share, the largest first."""
    problems: tuple[str, ...] = ()
    path: str | None = None
    """The file of collapsed stacks; None when there is nothing in it."""


class _Running(NamedTuple):
    pid: int
    given: bool
    """False: found as a descendant; what cannot be seen of it is no problem."""
    name: str
    process: "subprocess.Popen[bytes]"
    raw: Path
    complaint: IO[bytes]


def find_py_spy() -> Path | None:
    """The program beside this interpreter, or on the PATH; None when it is not installed."""
    beside = Path(sys.executable).with_name(PROGRAM)
    if beside.is_file():
        return beside
    found = shutil.which(PROGRAM)
    return Path(found) if found else None


class StackSampling:
    """Sampling that goes on by itself for `duration_s`; `finish` waits for it. One py-spy for each process.

    pids: of the service; their descendants are sampled too, the first 16 of all.

    Raises UnsupportedMeasurementError when py-spy is not installed; UsageError for a rate or window out of bounds.
    """

    def __init__(
        self,
        pids: Sequence[int],
        out_dir: Path,
        duration_s: float,
        rate_hz: int = RATE_HZ,
        program: Path | None = None,
    ) -> None:
        if not 0 < rate_hz <= MAX_RATE_HZ or not 0 < duration_s <= MAX_DURATION_S:
            raise UsageError(
                f"stacks at {rate_hz}/s over {duration_s:g} s cannot be sampled; give at most {MAX_RATE_HZ}/s and "
                f"{MAX_DURATION_S:g} s"
            )
        program = program or find_py_spy()
        if program is None:
            raise UnsupportedMeasurementError(
                f"{PROGRAM} is not installed, so no stacks can be sampled; pip install 'pinchpoint[{EXTRA}]'"
            )
        self._path = out_dir / FILE_NAME
        self._window_s = duration_s
        self._problems: list[str] = []
        self._directory = tempfile.TemporaryDirectory(prefix="pinchpoint-stacks-")
        self._running: list[_Running] = []
        tree = ProcessTree(pids)
        roots, below = tree.members(monotonic_ns())
        self._problems += [f"process {pid} has ended; no stacks of it" for pid in tree.gone]
        for stat in (roots + below)[:MAX_PROCESSES]:
            self._start(program, stat, stat in roots, duration_s, rate_hz)

    def _start(self, program: Path, stat: ProcessStat, given: bool, duration_s: float, rate_hz: int) -> None:
        pid = stat.pid
        raw = Path(self._directory.name) / f"{pid}.txt"
        complaint = tempfile.TemporaryFile()  # noqa: SIM115 - lives until finish; a pipe could fill and block
        command = [program, "record", "--pid", str(pid), "--duration", str(max(1, round(duration_s)))]
        command += ["--rate", str(rate_hz), "--format", "raw", "--threads", "--nonblocking", "--output", str(raw)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaint, process_group=0
            )
        except OSError as error:
            complaint.close()
            self._problems.append(f"{program} cannot be run ({error.strerror}); no stacks of process {pid}")
            return
        self._running.append(_Running(pid, given, stat.name, process, raw, complaint))

    def finish(self) -> Stacks:
        """Waits for the end of the window, writes the file, and says what was seen. Call it once."""
        counts: Counter[tuple[str, ...]] = Counter()
        for running in self._running:
            self._wait(running)
            stacks = read_collapsed(running.raw)
            if stacks:
                process = f"{_plain(running.name)} {running.pid}"
                counts.update({(process, *stack): count for stack, count in stacks.items()})
            elif running.given:
                running.complaint.seek(0)
                said = running.complaint.read(MAX_COMPLAINT_BYTES).decode("utf-8", "replace")
                self._problems.append(explain(said, running.pid, running.name))
            running.complaint.close()
        self._running.clear()
        self._directory.cleanup()
        path = self._write(counts) if counts else None
        return Stacks(sum(counts.values()), top_frames(counts), tuple(self._problems), path)

    def stop(self) -> None:
        """Ends the sampling early; what py-spy has is still read by `finish`."""
        for running in self._running:
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGINT)  # py-spy then writes and ends

    def _wait(self, running: _Running) -> None:
        try:
            running.process.wait(self._window_s + GRACE_S)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()

    def _write(self, counts: Counter[tuple[str, ...]]) -> str | None:
        lines = (f"{';'.join(stack)} {count}\n" for stack, count in counts.most_common())
        try:
            self._path.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            self._problems.append(
                f"cannot write {self._path} ({error.strerror}); the stacks are lost, the frames are not"
            )
            return None
        return str(self._path)


def read_collapsed(path: Path) -> Counter[tuple[str, ...]]:
    """Stacks, outermost frame first, and counts. Empty when there is no file; lines that are none are left out."""
    counts: Counter[tuple[str, ...]] = Counter()
    with contextlib.suppress(OSError), path.open("rb") as file:
        text = file.read(MAX_RAW_BYTES).decode("utf-8", "replace")
        for line in text.splitlines()[:MAX_LINES]:
            stack, _, count = line.rpartition(" ")
            if stack and count.isdigit():
                counts[tuple(_plain(frame) for frame in stack.split(";"))] += int(count)
    return counts


def top_frames(counts: Counter[tuple[str, ...]]) -> tuple[Frame, ...]:
    """Functions by own share. The first two entries of a stack are its process and thread, and no functions."""
    total = sum(counts.values())
    own: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for stack, count in counts.items():
        functions = [_function(frame) for frame in stack[2:]]
        if functions:
            own[functions[-1]] += count
            for function in set(functions):
                anywhere[function] += count
    return tuple(Frame(name, count / total, anywhere[name] / total) for name, count in own.most_common(TOP_FRAMES))


def explain(said: str, pid: int, name: str) -> str:
    """py-spy's complaint as a sentence that says what to do."""
    process = f"process {pid} ({_plain(name)})"
    words = said.lower()
    if "permission denied" in words or "operation not permitted" in words:
        return (
            f"{process} may not be traced by this user; run as its user or as root, and in a container with the "
            "capability SYS_PTRACE"
        )
    if "no such file or directory" in words or "no such process" in words:
        return f"{process} has ended; no stacks of it"
    if "python" in words and ("failed to find" in words or "version" in words):
        return f"{process} runs no Python that {PROGRAM} knows; no stacks of it"
    first = next((line.strip() for line in _lines(said) if line.strip().startswith("Error")), "")
    return f"{process} was never seen awake; no stacks of it" if not first else f"{process}: {PROGRAM} says {first}"


def _lines(said: str) -> Iterable[str]:
    return (_plain(line) for line in said.splitlines())


def _function(frame: str) -> str:
    """`name (file:line)` without the line, so that one function counts once."""
    head, colon, line = frame.rpartition(":")
    return f"{head})" if colon and line.rstrip(")").isdigit() else frame


def _plain(text: str) -> str:
    """Names come from the process: what a terminal would obey, or the format would mistake, is left out."""
    return "".join(char if char.isprintable() and char != ";" else "?" for char in text)[:500]
