"""How far the capacity interval is from the truth, in virtual time.

    python bench/capacity.py --fault slot-cap --truth 6.6 --budgets 90 180 480 --seeds 12

Searches the lab's service with each seed and budget and counts how often the interval, widened by `--within`, holds the
true capacity. The truth comes from long fixed stages: `--find-truth RATE...` runs 15 minutes at each rate and prints
the share of requests that met each SLO.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from pinchpoint.judge import judge
from pinchpoint.model import Verdict
from pinchpoint.plan import build_plan
from pinchpoint.rundir import read_run
from pinchpoint.series import RunView
from pinchpoint.synth import run_virtual

SLOS = ("ttft p95 < 500ms", "tpot p95 < 30ms")
TRUTH_STAGE_S = 900.0


def verdict_of(fault: str, seed: int, **plan: Any) -> Verdict:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run"
        run_virtual(build_plan({"url": "http://lab.invalid", "seed": seed, "slos": SLOS, **plan}), fault, path)
        return judge(RunView(read_run(path)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fault", default="slot-cap")
    parser.add_argument("--truth", type=float, default=6.6)
    parser.add_argument("--within", type=float, default=0.1)
    parser.add_argument("--budgets", type=float, nargs="*", default=[90, 180, 480])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--find-truth", type=float, nargs="*", default=[])
    arguments = parser.parse_args()
    for rate_rps in arguments.find_truth:
        stages = [{"kind": "open", "rate_rps": rate_rps, "duration_s": TRUTH_STAGE_S}]
        stage = next(s for s in verdict_of(arguments.fault, 100, stages=stages).stages if s.rate_rps)
        shares = {text: f"{met / n:.4f}" for text, (met, n) in stage.attainment.items()}
        print(f"{arguments.fault} at {rate_rps:g} req/s for {TRUTH_STAGE_S:g} s: {shares}", flush=True)
    for budget_s in arguments.budgets:
        intervals, rules, proven, near = [], set(), 0, 0
        for seed in range(1, arguments.seeds + 1):
            verdict = verdict_of(arguments.fault, seed, budget_s=budget_s)
            capacity = verdict.capacity
            assert capacity is not None
            low, high = capacity.lower_rps or 0.0, capacity.upper_rps or float("inf")
            near += low * (1 - arguments.within) <= arguments.truth <= high * (1 + arguments.within)
            proven += capacity.proven
            intervals.append(f"{low:g}-{high:g}")
            rules.add(verdict.findings[0].rule)
        print(
            f"{arguments.fault}, budget {budget_s:g} s: {near} of {arguments.seeds} within {arguments.within:.0%} of "
            f"{arguments.truth:g} req/s, {proven} proven; first rule {sorted(rules)}; {' '.join(intervals)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
