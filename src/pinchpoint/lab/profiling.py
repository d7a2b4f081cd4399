"""/start_profile and /stop_profile: records the steps of the engines and writes them as Kineto traces."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.cost import CostModel
from pinchpoint.lab.engine import Engine
from pinchpoint.lab.kineto import StepRecord, encode, trace
from pinchpoint.lab.sequence import Step

PROFILING_DIALECTS = ("vllm", "sglang")
"""The others have no such routes."""
PROFILED_STEPS_MAX = 100
"""Per engine; further steps are not recorded. A step with prompts makes some 1,500 events, a profile of a hundred some
tens of megabytes before it is packed. What is asked of a profile is in its first steps."""

OK = 200
BAD_REQUEST = 400
SERVER_ERROR = 500
WORDS = {
    "vllm": ("", ""),
    "sglang": ("Start profiling.\n", "Stop profiling. This will take some time.\n"),
}
"""What the engines answer."""


class Profiler:
    """One profile at a time. Files go to `directory`, one for each engine: its first GPU."""

    def __init__(self, directory: Path, dialect: str, engines: Callable[[], list[Engine]], now_ns: int) -> None:
        """engines: those there are now; a restart makes new ones. now_ns: on the service's clock, for telling dates.
        The directory is made when the first profile is written."""
        self._directory = directory
        self._words = WORDS[dialect]
        self._find_engines = engines
        self._origin_unix_ns = time.time_ns() - now_ns
        self._profiled: list[tuple[Engine, list[Step]]] = []
        self._began_s: float | None = None

    def start(self, now_ns: int) -> tuple[int, str]:
        """Status and words of the answer."""
        if self._began_s is not None:
            return BAD_REQUEST, "Profiling is already in progress. Call /stop_profile first.\n"
        self._began_s = now_ns / NS_PER_S
        self._profiled = [(engine, []) for engine in self._find_engines()]
        for engine, steps in self._profiled:
            engine.observer = _recorder(steps)
        return OK, self._words[0]

    async def stop(self, now_ns: int) -> tuple[int, str]:
        """Writes the files, in a thread, and then says so."""
        if self._began_s is None:
            return BAD_REQUEST, "Profiling is not in progress. Call /start_profile first.\n"
        window_s = self._began_s, now_ns / NS_PER_S
        profiled, self._profiled, self._began_s = self._profiled, [], None
        for engine, _ in profiled:
            engine.observer = None
        try:
            await asyncio.to_thread(self._write, profiled, window_s)
        except OSError as error:
            return SERVER_ERROR, f"the profile cannot be written into {self._directory}: {error.strerror}\n"
        return OK, self._words[1]

    def _write(self, profiled: list[tuple[Engine, list[Step]]], window_s: tuple[float, float]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        stamp = time.time_ns()
        for index, (engine, steps) in enumerate(profiled):
            healthy = CostModel(msgspec.structs.replace(engine.params, first_shape_s=0.0))
            records = [
                StepRecord(step.started_s, step.duration_s, step.work, step.cost or healthy.step(step.work))
                for step in steps
            ]
            content = trace(
                records,
                engine.params,
                origin_unix_ns=self._origin_unix_ns,
                pid=os.getpid() + 1 + index,
                window_s=window_s,
            )
            (self._directory / f"rank{index}.{stamp}.pt.trace.json.gz").write_bytes(encode(content))


def _recorder(steps: list[Step]) -> Callable[[Step], None]:
    def record(step: Step) -> None:
        if len(steps) < PROFILED_STEPS_MAX:
            steps.append(step)

    return record
