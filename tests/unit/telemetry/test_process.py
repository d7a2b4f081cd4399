"""What is told of processes: who belongs to the service, what they use, and what cannot be seen."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pinchpoint.catalog import load_catalog
from pinchpoint.telemetry import process_files
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.process import Client, Server, _ProcessCores, _Threads, spent_between
from pinchpoint.telemetry.process_files import ProcessStat, ThreadTimes
from pinchpoint.telemetry.process_tree import ProcessTree

TREE = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"])
child.wait()
"""


def by_series(readings: list[Reading]) -> dict[str, float]:
    return {reading.series: reading.value for reading in readings if reading.series is not None}


def events(readings: list[Reading]) -> list[str]:
    return [f"{reading.raw} {reading.labels}" for reading in readings if reading.series is None]


@pytest.fixture
def tree() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def stat(pid: int, started: int = 0, cpu_s: float = 0.0) -> ProcessStat:
    return ProcessStat(pid, "x", 1, started, cpu_s, 1, 0, 0)


class FakeProc:
    """A /proc of a few processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def process(
        self,
        pid: int,
        parent: int = 1,
        name: str = "python",
        ticks: int = 0,
        started: int = 100,
        state: str = "S",
        threads: dict[int, tuple[int, int]] | None = None,
        rss_pages: int = 0,
    ) -> None:
        """threads: nanoseconds run and waited by thread; None where the scheduler counts nothing."""
        line = f"{pid} ({name}) {state} {parent} 0 0 0 0 0 0 0 2 0 {ticks} 0 0 0 20 0 1 0 {started} 0 {rss_pages} 0\n"
        for tid in threads or {pid: (0, 0)}:
            task = self.root / str(pid) / "task" / str(tid)
            task.mkdir(parents=True, exist_ok=True)
            (task / "stat").write_text(line)
            (task / "comm").write_text(f"thread-{tid}\n")
            if threads is not None:
                (task / "schedstat").write_text(f"{threads[tid][0]} {threads[tid][1]} 1\n")
        (self.root / str(pid) / "stat").write_text(line)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def test_a_service_is_its_listeners_and_their_descendants(tree: "subprocess.Popen[bytes]") -> None:
    source = Server([tree.pid])
    first = by_series(source.read()[1])
    assert first["server.processes"] == 2.0
    assert first["server.rss_bytes"] > 0
    assert first["server.threads"] >= 2
    assert first["server.open_files"] >= 3
    assert "server.cpu_cores" not in first  # nothing to compare with yet
    second = by_series(source.read()[1])
    assert {"server.cpu_cores", "server.listener_cpu_cores", "server.thread_cpu_max_cores"} <= set(second)
    assert all(load_catalog().entry(name) is not None for name in first | second)


def test_cores_are_the_increase_over_the_time_between_readings() -> None:
    cores = _ProcessCores()
    assert cores.since(0, [stat(1, cpu_s=10.0), stat(2, cpu_s=5.0)]) == {}
    # 2 ended, 3 is new, 4 has the number of one that ended: none of them was there at both readings
    spent = cores.since(500_000_000, [stat(1, cpu_s=10.4), stat(3, cpu_s=99.0), stat(2, started=7, cpu_s=50.0)])
    assert spent == pytest.approx({1: 0.8})


def test_threads_are_told_by_what_they_used_and_waited_for() -> None:
    before = _Threads(0, {(1, "1"): ThreadTimes(10.0, 1.0, True), (1, "2"): ThreadTimes(1.0, 0.0, False)})
    after = _Threads(
        500_000_000,
        {
            (1, "1"): ThreadTimes(10.3, 1.1, True),
            (1, "2"): ThreadTimes(9.0, 0.5, True),  # counted in another way now
            (1, "3"): ThreadTimes(7.0, 0.0, True),  # new
        },
    )
    [thread] = spent_between(before, after)
    assert (thread.tid, thread.cores, thread.waited) == ("1", pytest.approx(0.6), pytest.approx(0.2))


def test_the_busiest_threads_are_named(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000_000_000, 500_000_000))
    monkeypatch.setattr("pinchpoint.telemetry.process.monotonic_ns", lambda: next(clock))
    idle = dict.fromkeys(range(10, 30), (0, 0))
    proc.process(7, threads={7: (0, 0), 8: (0, 0), **idle})
    source = Server([7], proc.root, proc.root / "sys")
    source.read()  # each reading looks at the clock twice: a second goes by between readings
    proc.process(
        7, threads={7: (100_000_000, 0), 8: (900_000_000, 300_000_000), **dict.fromkeys(range(10, 30), (0, 0))}
    )
    readings = source.read()[1]
    told = {r.labels: r.value for r in readings if r.series == "server.thread_cpu_cores"}
    assert told == pytest.approx({"pid=7,thread=thread-8,tid=8": 0.9, "pid=7,thread=thread-7,tid=7": 0.1})
    series = by_series(readings)
    assert series["server.thread_cpu_max_cores"] == pytest.approx(0.9)
    assert series["server.run_delay_cores"] == pytest.approx(0.3)
    assert series["server.thread_run_delay_max_ratio"] == pytest.approx(0.3)


def test_threads_of_idle_descendants_are_not_looked_at(proc: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = process_files.thread_ids
    monkeypatch.setattr(
        "pinchpoint.telemetry.process.thread_ids",
        lambda root, pid, most: looked.append(pid) or real(root, pid, most),
    )
    proc.process(7)
    proc.process(8, parent=7)
    source = Server([7], proc.root, proc.root / "sys")
    source.read()
    source.read()
    assert set(looked) == {7}


def test_a_kernel_that_counts_no_waiting_gives_cores_in_ticks_and_no_delay(proc: FakeProc) -> None:
    proc.process(7, ticks=0)
    source = Server([7], proc.root, proc.root / "sys")
    source.read()
    proc.process(7, ticks=1000)
    series = by_series(source.read()[1])
    assert series["server.thread_cpu_max_cores"] > 0
    assert "server.run_delay_cores" not in series


def test_descendants_are_found_where_the_kernel_lists_no_children(proc: FakeProc) -> None:
    for pid, parent in ((7, 1), (8, 7), (9, 8), (20, 1)):
        proc.process(pid, parent)
    roots, below = ProcessTree([7], proc=proc.root).members(0)
    assert [p.pid for p in roots] == [7]
    assert [p.pid for p in below] == [8, 9]


def test_descendants_are_found_where_the_kernel_lists_children(proc: FakeProc) -> None:
    for pid, parent in ((7, 1), (8, 7), (9, 8)):
        proc.process(pid, parent)
        (proc.root / str(pid) / "task" / str(pid) / "children").write_text(f"{pid + 1} " if pid < 9 else "")
    _, below = ProcessTree([7], proc=proc.root).members(0)
    assert [p.pid for p in below] == [8, 9]


def test_a_number_given_to_another_program_counts_as_gone(proc: FakeProc) -> None:
    proc.process(7, started=100)
    tree = ProcessTree([7], proc=proc.root)
    proc.process(7, started=101)
    assert tree.members(0) == ([], [])
    assert tree.gone == [7]


def test_a_process_that_nobody_waited_for_is_gone(proc: FakeProc) -> None:
    proc.process(7)
    tree = ProcessTree([7], proc=proc.root)
    proc.process(7, state="Z")
    assert tree.members(0) == ([], [])


def test_a_name_may_hold_brackets_and_blanks(proc: FakeProc) -> None:
    proc.process(7, name="a) R 1 (b")
    found = process_files.process_stat(str(proc.root), 7)
    assert found is not None
    assert (found.name, found.parent) == ("a) R 1 (b", 1)


def test_what_is_hidden_is_left_out(proc: FakeProc) -> None:
    proc.process(7)  # no io, status, fd, limits or smaps_rollup, as of another user's process
    series = by_series(Server([7], proc.root, proc.root / "sys").read()[1])
    assert set(series) == {"server.rss_bytes", "server.threads", "server.processes", "server.major_faults_total"}


def test_the_proportional_memory_of_a_large_process_is_not_read(proc: FakeProc) -> None:
    rollup = proc.root / "7" / "smaps_rollup"
    proc.process(7, rss_pages=1000)
    rollup.write_text("Rss: 4000 kB\nPss: 3000 kB\nPss_Dirty: 1 kB\n")
    small = by_series(Server([7], proc.root, proc.root / "sys").read()[1])
    assert small["server.pss_bytes"] == 3000 * 1024
    proc.process(7, rss_pages=(8 << 30) // process_files.PAGE_BYTES)
    assert "server.pss_bytes" not in by_series(Server([7], proc.root, proc.root / "sys").read()[1])


def test_a_process_that_ended_is_an_event(tree: "subprocess.Popen[bytes]") -> None:
    short = subprocess.Popen([sys.executable, "-c", "pass"])
    short.wait()
    _, readings = Server([short.pid, tree.pid]).read()
    assert events(readings) == [f"process_gone pid={short.pid}"]
    assert by_series(readings)["server.processes"] == 2.0


def test_the_collector_is_not_counted_as_load_generator(tree: "subprocess.Popen[bytes]") -> None:
    children = [child.pid for child in psutil.Process().children()]  # the tree, and what other tests left running
    assert tree.pid in children
    before = by_series(Client(children).read()[1])["client.rss_bytes"]
    with_us = by_series(Client([*children, os.getpid()]).read()[1])["client.rss_bytes"]
    after = by_series(Client(children).read()[1])["client.rss_bytes"]  # they may still be starting
    assert 0.9 * min(before, after) < with_us < 1.1 * max(before, after)
