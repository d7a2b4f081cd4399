"""Keeps what a search tells: schedule, stages, SLOs and events go into the run directory, progress to the screen."""

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import psutil

from pinchpoint import __version__
from pinchpoint.clock import realtime_offset_ns
from pinchpoint.model import FORMAT_VERSION, Manifest, Progress, Slo, Stage, TargetFacts
from pinchpoint.plan import Plan
from pinchpoint.rundir import RunWriter
from pinchpoint.schedule import AFTER, NEVER, UNSHARED, Schedule

ProgressSink = Callable[[Progress], None]


class Recorder:
    """A search.Observer. `now_ns` gives the instant of events, real or virtual."""

    def __init__(self, writer: RunWriter, now_ns: Callable[[], int], on_progress: ProgressSink) -> None:
        self._writer = writer
        self._now_ns = now_ns
        self._schedule = writer.part("schedule", "0")
        self._on_progress = on_progress

    def on_schedule(self, schedule: Schedule) -> None:
        self._schedule.append_columns(schedule_columns(schedule))

    def on_running(self, stage: Stage) -> None:
        """A stage as it is meant to be; `on_stage` puts what it was in its place.

        A killed run keeps what was meant, and rundir.seal_unsealed cuts it to what was recorded.
        """
        self._writer.manifest.stages.append(stage)
        self._writer.write_manifest()

    def on_stage(self, stage: Stage) -> None:
        stages = self._writer.manifest.stages
        stages[:] = sorted(
            [*(known for known in stages if known.index != stage.index), stage], key=lambda known: known.index
        )
        self._writer.write_manifest()
        self.on_event("stage", stage=msgspec.to_builtins(stage))

    def on_slos(self, slos: tuple[Slo, ...], derived: bool) -> None:
        self._writer.manifest.slos = slos
        self._writer.manifest.slos_derived = derived
        self._writer.write_manifest()
        self.on_event("slos", slos=[slo.text for slo in slos], derived=derived)

    def on_workload(self, title: str, classes: tuple[str, ...]) -> None:
        """classes: names by class_id."""
        self._writer.manifest.workload = title
        self._writer.manifest.classes = classes
        self._writer.write_manifest()

    def on_host(self, facts: Mapping[str, Any]) -> None:
        """What is known of this host beyond what every manifest says."""
        self._writer.manifest.host |= facts
        self._writer.write_manifest()

    def on_progress(self, progress: Progress) -> None:
        self._on_progress(progress)

    def on_event(self, kind: str, **fields: Any) -> None:
        self._writer.event(self._now_ns(), kind, **fields)

    def close(self) -> None:
        self._schedule.close()


def schedule_columns(schedule: Schedule) -> dict[str, np.ndarray]:
    """The columns of model.SCHEDULE_COLUMNS, masked where a row has no instant or no patience of its own."""
    return {
        "request_id": schedule.request_id,
        "stage": np.full(len(schedule), schedule.stage, np.uint16),
        "session_id": schedule.session_id,
        "turn": schedule.turn,
        "offset_ns": np.ma.masked_equal(schedule.offset_ns, AFTER),
        "think_ns": schedule.think_ns,
        "input_tokens": schedule.input_tokens,
        "max_output_tokens": schedule.max_output_tokens,
        "patience_ns": np.ma.masked_equal(schedule.patience_ns, NEVER),
        "class_id": schedule.class_id,
        "prefix_id": np.ma.masked_equal(schedule.prefix_id, UNSHARED),
    }


def new_manifest(
    plan: Plan,
    facts: TargetFacts,
    run_id: str,
    *,
    t0_ns: int,
    started_wall: str,
    virtual: bool,
    command: Sequence[str] = (),
) -> Manifest:
    offset_ns, error_ns = realtime_offset_ns()
    process = psutil.Process()
    host: dict[str, Any] = {
        "node": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cpus": psutil.cpu_count() or 0,
        "memory_bytes": psutil.virtual_memory().total,
        "pid": process.pid,
        "pid_started_s": process.create_time(),
    }
    return Manifest(
        format_version=FORMAT_VERSION,
        run_id=run_id,
        pinchpoint_version=__version__,
        status="running",
        abort_reason=None,
        started_wall=started_wall,
        t0_ns=t0_ns,
        virtual=virtual,
        seed=plan.seed,
        plan=msgspec.to_builtins(plan),
        target=facts,
        slos=(),
        slos_derived=False,
        stages=[],
        host=host,
        clock={"realtime_minus_monotonic_ns": offset_ns, "error_ns": error_ns} if not virtual else {},
        files={},
        command=tuple(command),
    )
