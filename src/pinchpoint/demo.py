"""The demo: the lab with a hidden bottleneck, the main job against it, and the truth afterwards.

The lab is another process that draws the fault by itself and writes it to a file; this process starts it, runs the
main job, and opens the file only when the answer has been given.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pinchpoint.errors import EXIT_OK, EXIT_SLO_FAILED, PinchpointError

PINCHPOINT = (sys.executable, "-m", "pinchpoint")
STOP_TIMEOUT_S = 5.0


class DemoError(PinchpointError):
    """The lab could not be started."""


def run_demo(*, fault: str, budget: str, seed: int | None, out: Path | None, as_json: bool) -> int:
    """Returns 0 when the main job gave an answer, whatever the answer; otherwise its exit code."""
    seed = seed if seed is not None else random.SystemRandom().randrange(1, 2**31)
    with tempfile.TemporaryDirectory(prefix="pinchpoint-demo-") as directory:
        truth_path = Path(directory) / "truth.json"
        hidden = ["--fault", fault, "--seed", str(seed), "--truth-file", str(truth_path)]
        lab = subprocess.Popen(
            [*PINCHPOINT, "lab", "serve", "--port", "0", "--json", *hidden], stdout=subprocess.PIPE, text=True
        )
        try:
            url = _await_url(lab)
            words = ["run", url, "--budget", budget, "--seed", str(seed)]
            words += ["--out", str(out)] if out is not None else []
            words += ["--json"] if as_json else []
            if not as_json:
                print(f"The lab serves at {url}; what limits it is hidden. Running: pinchpoint run {url}\n", flush=True)
            main_job = subprocess.run(
                [*PINCHPOINT, *words], check=False, text=True, stdout=subprocess.PIPE if as_json else None
            )
        finally:
            lab.terminate()
            try:
                lab.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                lab.kill()
                lab.wait()
        if main_job.returncode not in (EXIT_OK, EXIT_SLO_FAILED):
            print(main_job.stdout or "", end="")
            return main_job.returncode
        truth = json.loads(truth_path.read_text(encoding="utf-8"))
    if as_json:
        document = {"schema": "pinchpoint.demo/1", "verdict": json.loads(main_job.stdout), "truth": truth}
        print(json.dumps(document, indent=2))
    else:
        _reveal(truth)
    return EXIT_OK


def _reveal(truth: dict[str, Any]) -> None:
    print(f"\nThe truth, opened only now: {truth['fault']}.", end="")
    print("".join(f" {fault['physics']}" for fault in truth["faults"]))
    if not truth["faults"]:
        print("Nothing is wrong with this service: whatever gave way is its physical limit.")
    for fault in truth["faults"]:
        if rule := fault["expected_rule"]:
            print(f"The rule that finds it: {rule} (see `pinchpoint rules {rule}`).")
        else:
            print(f"No rule is meant to name {fault['fault']} yet; it should be seen as: {fault['signature']}")


def _await_url(lab: "subprocess.Popen[str]") -> str:
    """The lab prints one JSON document when it listens. Raises DemoError when it ends before."""
    assert lab.stdout is not None
    document = ""
    for line in lab.stdout:
        document += line
        if line.startswith("}") and "url" in (told := json.loads(document)):
            return str(told["url"])
    raise DemoError(f"the lab ended before it listened (exit code {lab.wait()}); see its message above")
