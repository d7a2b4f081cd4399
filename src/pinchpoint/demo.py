"""The demo: the lab with a hidden bottleneck, the main job against it, and the truth afterwards.

The lab is another process that draws the fault by itself and writes it to a file; this process starts it, runs the
main job, and opens the file only when the answer has been printed.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from pinchpoint.errors import EXIT_OK, PinchpointError

_PINCHPOINT = (sys.executable, "-m", "pinchpoint")
LAB_READY_S = 15.0
STOP_TIMEOUT_S = 5.0


class DemoError(PinchpointError):
    """The lab could not be started."""


def run_demo(*, fault: str, budget: str, seed: int | None, out: Path | None) -> int:
    """Returns 0 when the main job gave an answer, whatever the answer; otherwise its exit code."""
    seed = seed if seed is not None else random.SystemRandom().randrange(1, 2**31)
    with tempfile.TemporaryDirectory(prefix="pinchpoint-demo-") as directory:
        truth_path = Path(directory) / "truth.json"
        hidden = ["--fault", fault, "--seed", str(seed), "--truth-file", str(truth_path)]
        lab = subprocess.Popen(
            [*_PINCHPOINT, "lab", "serve", "--port", "0", "--json", *hidden],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            url = _await_url(lab)
            print(f"The lab serves at {url} with one hidden bottleneck. Running: pinchpoint run {url}\n", flush=True)
            command = [*_PINCHPOINT, "run", url, "--budget", budget, "--seed", str(seed)]
            if out is not None:
                command += ["--out", str(out)]
            code = subprocess.run(command, check=False).returncode
        finally:
            lab.terminate()
            try:
                lab.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                lab.kill()
                lab.wait()
        if code not in (EXIT_OK, 1):
            return code
        truth = json.loads(truth_path.read_text(encoding="utf-8"))
        print(f"\nThe truth, opened only now: {truth['fault']} - {truth['physics']}")
        if truth["expected_rule"]:
            print(f"The rule that should have found it: {truth['expected_rule']}")
    return EXIT_OK


def _await_url(lab: "subprocess.Popen[str]") -> str:
    """The lab prints one JSON document when it listens. Raises DemoError when it ends before."""
    assert lab.stdout is not None
    document = ""
    for line in lab.stdout:
        document += line
        if line.startswith("}"):
            return str(json.loads(document)["url"])
    raise DemoError(f"the lab ended before it listened (exit code {lab.wait(LAB_READY_S)}); see its message above")
