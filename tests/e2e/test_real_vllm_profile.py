"""Real vLLM on the CPU is profiled while it answers (`make test-vllm`)."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.support.real_engines import MODEL_NAME, needs, records_of_load, vllm

from pinchpoint.capture import Capture
from pinchpoint.model import TargetFacts
from pinchpoint.plan import ProfileSpec
from pinchpoint.report.profile_section import profile_of

pytestmark = needs("vllm")

ANSWERS_LIMIT_S = 120.0


class Events:
    def on_event(self, kind: str, **fields: Any) -> None: ...


def test_its_own_profiler_is_started_and_stopped_and_its_traces_are_part_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinchpoint.capture.DELAY_DEFAULT_S", 0.0)
    monkeypatch.setattr("pinchpoint.capture.START_LIMIT_S", ANSWERS_LIMIT_S)
    traces, run = tmp_path / "traces", tmp_path / "run"
    traces.mkdir()
    run.mkdir()
    config = {"profiler": "torch", "torch_profiler_dir": str(traces), "torch_profiler_with_stack": False}
    with vllm("--profiler-config", json.dumps(config)) as url:
        spec = ProfileSpec(window_s=60.0, directory=str(traces))
        capture = Capture(spec, TargetFacts(url=url, engine="vllm"), run, local=True)
        capture.start()
        over = threading.Event()
        while not capture._taken and capture._stopped_ns is None:  # until it has said that it profiles
            over.wait(0.05)
        words = ("--model", MODEL_NAME, "--concurrency", 2, "--requests", 4, "--seed", 7, "--api", "chat")
        records_of_load(tmp_path / "load", url, *words, "--input-tokens", 60, "--output-tokens", 8)
        notes = capture.finish(Events())  # pyright: ignore[reportArgumentType]
    assert "profiled for" in notes[0], notes
    analysis = profile_of(run)
    assert analysis is not None
    worker = next(rank for rank in analysis.ranks if rank.host is not None and rank.step_summary)
    assert {"prefill", "decode"} & {one.kind for one in worker.step_summary}
    assert worker.host is not None and any("onednn_mm" in op.name for op in worker.host.ops)
