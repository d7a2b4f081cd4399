"""The load processes, seen from the controller: start them, hand out steps, hear what came of them.

The schedule of a step is cut into one segment per worker, by session, so that turns of one user stay together; a closed
loop's slots are dealt like cards. All workers begin at one instant, and each writes its own files: there is nothing to
merge but to put them one behind the other. A worker that dies is noticed at the next poll; the others go on.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from pinchpoint.errors import PinchpointError, UnsupportedMeasurementError
from pinchpoint.load.counters import COUNTERS_FILE, LiveCounters, Totals
from pinchpoint.load.messages import Calibration, Command, Hello, StepOrder, Update, WorkerConfig
from pinchpoint.schedule import Schedule, Slots

LOSE_WAIT_S = 0.2
END_TURN_S = 0.02
SEND_TURN_S = 0.001
"""How often a worker is listened to while an order to it is still being written."""
READY_TIMEOUT_S = 20.0


class WorkerDiedError(PinchpointError):
    """All load processes are gone."""

    exit_code = 3


def usable_cpus() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Fleet:
    """`poll` returns the updates that arrived; `lost` names workers that died and why it matters."""

    def __init__(self, workers: int) -> None:
        """Starts the processes; they load their code while the caller goes on. `configure` tells them what to do.

        Each is a program of its own and not a fork or a copy of ours: it shares no lock and no thread with us, and what
        we have imported costs it nothing.
        """
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._early: list[Update] = []
        """Updates that came while an order was being sent, for the next poll."""
        self.lost: list[str] = []
        self.lost_workers: list[int] = []
        self.hellos: dict[int, Hello] = {}
        self._users: dict[int, int] = {}
        """Stage -> users of its closed loop."""
        self._counters_path: Path | None = None
        self._counters: LiveCounters | None = None
        for index in range(workers):
            ours, theirs = multiprocessing.Pipe()
            fd = theirs.fileno()
            self._processes[index] = subprocess.Popen(
                [sys.executable, "-m", "pinchpoint.load", str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(fd,),
            )
            theirs.close()
            self._pipes[index] = ours

    def configure(self, configs: Sequence[WorkerConfig]) -> None:
        """Once, with one config for each worker."""
        assert len(configs) == len(self._processes)
        self._counters_path = Path(configs[0].run_path) / "parts" / COUNTERS_FILE
        self._counters = LiveCounters(self._counters_path, len(configs), create=True)
        for config in configs:
            self._send(config.index, config)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values()]

    @property
    def size(self) -> int:
        return len(self._pipes)

    def await_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Waits until every worker has said hello. Raises UnsupportedMeasurementError when one takes too long."""
        deadline_s = time.monotonic() + timeout_s
        while len(self.hellos) < self.size:
            if time.monotonic() > deadline_s:
                raise UnsupportedMeasurementError(
                    f"a load process did not start within {timeout_s:g} s; this host is overloaded"
                )
            self.poll(0.05)

    def start_step(
        self,
        t0_ns: int,
        schedule: Schedule,
        slots: Slots | None = None,
        *,
        follow: bool = True,
        duration_ns: int | None = None,
    ) -> None:
        """Hands out a step, or for a stage that runs more sessions (then without slots). See messages.StepOrder."""
        workers = sorted(self._pipes)
        if slots is not None:
            self._users[schedule.stage] = len(slots.start_ns)
        # Sessions go to the workers in the proportion of their slots: one without any would keep them for ever.
        users = self._users.get(schedule.stage)
        share_of = (schedule.session_id if users is None else schedule.session_id % users) % max(len(workers), 1)
        for position, index in enumerate(workers):
            share = schedule.select(share_of == position) if len(workers) > 1 else schedule
            theirs = slots and Slots(slots.start_ns[position :: len(workers)], slots.until_ns[position :: len(workers)])
            self._send(index, StepOrder(schedule.stage, t0_ns, share, theirs, follow, duration_ns))

    def calibrate(self, calibration: Calibration) -> None:
        """Tells the workers how long prompts really are."""
        for index in list(self._pipes):
            self._send(index, calibration)

    def command(self, command: Command) -> None:
        for index in list(self._pipes):
            self._send(index, command)

    def totals(self) -> Totals:
        """Live counters of the workers that live."""
        assert self._counters is not None
        return self._counters.totals(sorted(self._pipes))

    def poll(self, timeout_s: float) -> list[Update]:
        """Updates that came within the timeout. Raises WorkerDiedError when no worker is left."""
        if not self._pipes:
            raise WorkerDiedError("every load process has died; see the system log, and try fewer requests per second")
        updates, self._early = self._early, []
        by_pipe = {pipe: index for index, pipe in self._pipes.items()}
        for pipe in wait(list(by_pipe), 0 if updates else timeout_s):
            index = by_pipe[pipe]  # pyright: ignore[reportArgumentType]
            try:
                while self._pipes[index].poll():
                    self._hear(self._pipes[index].recv(), updates)
            except (EOFError, OSError):
                self._lose(index)
        return updates

    def close(self, timeout_s: float = 5.0) -> None:
        """Asks the workers to write what they have and end; kills what does not within the timeout."""
        for index in list(self._pipes):
            self._send(index, Command("quit"))
        deadline_s = time.monotonic() + timeout_s
        for index, process in self._processes.items():
            # A worker blocks on a full pipe, so keep reading while it winds down.
            while process.poll() is None and time.monotonic() < deadline_s:
                pipe = self._pipes.get(index)
                try:
                    while pipe is not None and pipe.poll():
                        pipe.recv()
                except (EOFError, OSError):
                    pipe = None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_TURN_S)
            if process.poll() is None:
                process.kill()
                process.wait()
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes.clear()
        if self._counters_path is not None:
            self._counters_path.unlink(missing_ok=True)

    def _hear(self, message: object, updates: list[Update]) -> None:
        if isinstance(message, Hello):
            self.hellos[message.worker] = message
        elif isinstance(message, Update):
            updates.append(message)

    def _send(self, index: int, message: object) -> None:
        """Writes and listens at the same time: a worker that waits for room for its update does not read its orders."""
        pipe = self._pipes[index]
        failures: list[OSError] = []

        def write() -> None:
            try:
                pipe.send(message)
            except OSError as error:
                failures.append(error)

        sender = threading.Thread(target=write, daemon=True)
        sender.start()
        while sender.is_alive():
            sender.join(SEND_TURN_S)
            try:
                while pipe.poll():
                    self._hear(pipe.recv(), self._early)
            except (EOFError, OSError):
                sender.join()  # the worker is gone, so writing fails too
        if failures:
            self._lose(index)

    def _lose(self, index: int) -> None:
        process = self._processes[index]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOSE_WAIT_S)
        self.lost.append(f"load process {index} died (exit code {process.returncode}); its part of the load is missing")
        self.lost_workers.append(index)
        self._pipes.pop(index).close()
