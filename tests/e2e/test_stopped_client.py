"""A client that was stopped for a while does not pass its own delay off as the service's."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from pinchpoint.judge import judge
from pinchpoint.load.trial import null_service
from pinchpoint.loadrun import run_load
from pinchpoint.model import Progress
from pinchpoint.plan import build_plan
from pinchpoint.rundir import read_run
from pinchpoint.series import RunView

LOAD_S = 4.0
STOP_S = 1.0


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
def test_a_stopped_load_process_makes_the_run_invalid_in_words(tmp_path: Path) -> None:
    stopped = threading.Event()

    def stop_once(progress: Progress) -> None:
        """With the first answers the load is under way."""
        if progress.completed < 10 or stopped.is_set():
            return
        stopped.set()
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        pids = [event["pid"] for event in events if event["kind"] == "worker"]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        threading.Timer(STOP_S, lambda: [os.kill(pid, signal.SIGCONT) for pid in pids]).start()

    out = tmp_path / "run"
    with null_service() as url:
        stage = {"kind": "open", "rate_rps": 20.0, "duration_s": LOAD_S}
        plan = build_plan({"url": url, "seed": 1, "model": "null", "workload": {"output_tokens": 5}, "stages": [stage]})
        outcome = run_load(plan, out=out, on_progress=stop_once, force=True)
    assert outcome.error is None
    assert stopped.is_set()
    verdict = judge(RunView(read_run(out)))
    assert verdict.validity == "INVALID"
    reasons = {reason.check: reason for reason in verdict.validity_reasons}
    assert reasons["loop-stall"].level == "invalid"
    assert "stopped the client" in reasons["loop-stall"].statement or "other work" in reasons["loop-stall"].statement
