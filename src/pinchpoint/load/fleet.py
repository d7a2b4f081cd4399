"""The load processes, seen from the controller: start them, hand out steps, hear what came of them.

A step's requests are dealt to the workers by session, so that turns of one user stay together. All workers begin at one
instant. A worker that dies is noticed at the next poll; the others go on.
"""

import multiprocessing
import threading
import time
from multiprocessing.connection import wait

from pinchpoint.errors import PinchpointError
from pinchpoint.load.messages import Command, Intent, StepOrder, Update, WorkerConfig
from pinchpoint.load.worker import work

SEND_TURN_S = 0.001
"""How often a worker is listened to while an order to it is still being written."""


class WorkerDiedError(PinchpointError):
    """All load processes are gone."""

    exit_code = 3


class Fleet:
    """`poll` returns the updates that arrived; `lost` names workers that died and why it matters."""

    def __init__(self, configs: list[WorkerConfig]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = {}
        self._processes = {}
        self._early: list[Update] = []
        """Updates that came while an order was being sent, for the next poll."""
        self.lost: list[str] = []
        for config in configs:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,), name=f"pinchpoint-load-{config.index}", daemon=True)
            process.start()
            theirs.close()
            ours.send(config)
            self._pipes[config.index] = ours
            self._processes[config.index] = process

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values() if process.pid is not None]

    @property
    def size(self) -> int:
        return len(self._pipes)

    def start_step(self, stage: int, t0_ns: int, intents: list[Intent]) -> None:
        workers = sorted(self._pipes)
        for position, index in enumerate(workers):
            share = [intent for intent in intents if intent.session_id % len(workers) == position]
            self._send(index, StepOrder(stage, t0_ns, share))

    def command(self, command: Command) -> None:
        for index in list(self._pipes):
            self._send(index, command)

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
                    updates.append(self._pipes[index].recv())
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
            while process.is_alive() and time.monotonic() < deadline_s:
                pipe = self._pipes.get(index)
                try:
                    while pipe is not None and pipe.poll():
                        pipe.recv()
                except (EOFError, OSError):
                    pipe = None
                process.join(0.05)
            if process.is_alive():
                process.kill()
                process.join(1.0)
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes.clear()

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
                    self._early.append(pipe.recv())
            except (EOFError, OSError):
                sender.join()  # the worker is gone, so writing fails too
        if failures:
            self._lose(index)

    def _lose(self, index: int) -> None:
        process = self._processes[index]
        process.join(0.2)
        self.lost.append(f"load process {index} died (exit code {process.exitcode}); its part of the load is missing")
        self._pipes.pop(index).close()
