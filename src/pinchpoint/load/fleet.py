"""The load processes, seen from the controller: start them, hand out steps, hear what came of them.

A step's requests are dealt to the workers by session, so that turns of one user stay together. All workers begin at one
instant. A worker that dies is noticed at the next poll; the others go on.
"""

import multiprocessing
import time
from multiprocessing.connection import wait

from pinchpoint.errors import PinchpointError
from pinchpoint.load.messages import Command, Intent, StepOrder, Update, WorkerConfig
from pinchpoint.load.worker import work


class WorkerDiedError(PinchpointError):
    """All load processes are gone."""

    exit_code = 3


class Fleet:
    """`poll` returns the updates that arrived; `lost` names workers that died and why it matters."""

    def __init__(self, configs: list[WorkerConfig]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = {}
        self._processes = {}
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
        updates: list[Update] = []
        by_pipe = {pipe: index for index, pipe in self._pipes.items()}
        for pipe in wait(list(by_pipe), timeout_s):
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
        try:
            self._pipes[index].send(message)
        except OSError:
            self._lose(index)

    def _lose(self, index: int) -> None:
        process = self._processes[index]
        process.join(0.2)
        self.lost.append(f"load process {index} died (exit code {process.exitcode}); its part of the load is missing")
        self._pipes.pop(index).close()
