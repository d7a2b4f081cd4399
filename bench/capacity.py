"""How far off a capacity search is, in virtual time, where the truth can be computed.

    python bench/capacity.py            the table; --write puts it into docs/explanation/capacity.md
    python bench/capacity.py --quick    a look at eight cases

Cases are drawn by a seeded generator (capacity_cases.py), half of them held out: no constant of the search was chosen
by looking at those. The truth of each comes from long fixed stages (capacity_truth.py) and is kept in
capacity_truth.json; a case whose service answers otherwise than when that was written is computed again. Then every
case is searched once by the product, from an empty run directory to the verdict, and by what other tools do
(capacity_rivals.py). On one quiet core the truth takes a quarter of an hour, the search of all cases three minutes, and
the others a quarter of an hour.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from unittest import mock

import msgspec
from capacity_cases import service_class
from capacity_rivals import BISECTION_RATIO, SWEEP_LEVELS, Found, bisection, sweep
from capacity_truth import SEEDS, STAGE_REQUESTS, Truth, median_error, truths

from pinchpoint.judge import judge
from pinchpoint.rundir import read_run
from pinchpoint.series import RunView
from pinchpoint.synth import run_virtual

DOC = Path(__file__).parents[1] / "docs" / "explanation" / "capacity.md"
BEGIN, END = "<!-- begin: python bench/capacity.py --write -->", "<!-- end -->"
BUDGET_S = 300.0
RIVAL_REQUESTS = (300, 1000)
QUICK_CASES = 8
SEED_RANGE = 10_000
HALVES = ("tuning", "held-out")
TRUTH_ERRORS = 2.0
"""The truth is known to so many standard errors: an interval that ends within them is not said to miss it."""


class Scored(msgspec.Struct, frozen=True):
    """One search of one case. proven: see Capacity."""

    truth: Truth
    found: Found
    proven: bool

    @property
    def error_ratio(self) -> float:
        best_rps = self.found.best_rps
        return float("inf") if best_rps is None else abs(best_rps / self.truth.capacity_rps - 1)

    def holds(self, errors: float = 0.0) -> bool:
        """Whether the interval holds the truth, or comes within so many of its standard errors."""
        low_rps, high_rps = self.found.lower_rps or 0.0, self.found.upper_rps or float("inf")
        margin_rps = errors * self.truth.error_rps
        return low_rps - margin_rps <= self.truth.capacity_rps <= high_rps + margin_rps

    @property
    def width_ratio(self) -> float:
        low_rps, high_rps = self.found.lower_rps, self.found.upper_rps
        return float("inf") if not low_rps or not high_rps else high_rps / low_rps - 1


def searched(truth: Truth, budget_s: float) -> Scored:
    """By the product. seconds: of the simulated clock, with warm-up, overload step and recovery."""
    case = truth.case
    seed = case.seed % SEED_RANGE
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run"
        with mock.patch("pinchpoint.synth.run.VirtualService", service_class(case.drift, budget_s)):
            run_virtual(case.plan(truth.slos, seed, budget_s=budget_s), "none", path, params=case.lab())
        view = RunView(read_run(path))
        capacity = judge(view).capacity
        requests = len(view.requests.status)
        seconds = view.stages[-1].drained_ns / 1e9
    if capacity is None:
        return Scored(truth, Found(None, None, None, requests, seconds), False)
    found = Found(capacity.best_rps, capacity.lower_rps, capacity.upper_rps, requests, seconds)
    return Scored(truth, found, capacity.proven)


def summary_row(name: str, rows: Sequence[Scored], *, interval: bool) -> str:
    errors = sorted(row.error_ratio for row in rows)
    cells = [name, f"{len(rows)}", f"{median(errors):.1%}", f"{errors[int(0.9 * (len(errors) - 1))]:.1%}"]
    without = sum(error == float("inf") for error in errors)
    cells.append(f"{without} without an answer" if without else f"{errors[-1]:.1%}")
    if interval:
        held = f"{sum(row.holds() for row in rows)}, {sum(row.holds(TRUTH_ERRORS) for row in rows)}"
        cells += [held, f"{median(row.width_ratio for row in rows):.0%}"]
    else:
        cells += ["", ""]
    cells.append(f"{median(row.found.requests for row in rows):,.0f}".replace(",", " "))
    cells.append(f"{median(row.found.seconds for row in rows):.0f}")
    return "| " + " | ".join(cell.replace("%", " %") for cell in cells) + " |"


SUMMARY_HEAD = """\
| method | cases | median error | 9 of 10 below | largest | hold the truth: strictly, within its error | \
median width | requests | seconds |
|---|---|---|---|---|---|---|---|---|"""


def summary(ours: Sequence[Scored], rivals: dict[str, list[Scored]], budget_s: float) -> str:
    lines = [SUMMARY_HEAD]
    for half in HALVES:
        rows = [row for row in ours if row.truth.case.half == half]
        if rows:
            lines.append(summary_row(f"Pinchpoint, {budget_s:g} s, {half} half", rows, interval=True))
    lines.append(summary_row(f"Pinchpoint, {budget_s:g} s, all", ours, interval=True))
    lines += [summary_row(f"{name}, all", rows, interval=False) for name, rows in rivals.items()]
    return "\n".join(lines)


def details(ours: Sequence[Scored]) -> str:
    lines = [
        "| case | half | SLO that breaks | truth, req/s | best | interval | error | proven |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ours:
        truth, found = row.truth, row.found
        best = "none" if found.best_rps is None else f"{found.best_rps:g}"
        interval = f"{_end(found.lower_rps)} to {_end(found.upper_rps)}"
        if not row.holds():
            interval = f"**{interval}**"
        known = f"{truth.capacity_rps:.3g} ± {truth.error_rps / truth.capacity_rps:.1%}"
        error = "" if found.best_rps is None else f"{found.best_rps / truth.capacity_rps - 1:+.1%}"
        cells = [truth.case.name, truth.case.half, truth.limiting, known, best, interval, error]
        lines.append(
            "| " + " | ".join(cell.replace("%", " %") for cell in cells) + f" | {'yes' if row.proven else ''} |"
        )
    return "\n".join(lines)


def _end(rate_rps: float | None) -> str:
    return "open" if rate_rps is None else f"{rate_rps:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_CASES} cases, rivals with few requests")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of each search")
    parser.add_argument("--rivals", type=int, nargs="*", default=None, help="requests per level of the other methods")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOC.name}")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    cases = truths(QUICK_CASES if arguments.quick else None)
    print(f"# truth of {len(cases)} cases: {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    ours: list[Scored] = []
    for truth in cases:
        ours.append(searched(truth, arguments.budget))
        print(f"# {details(ours[-1:]).splitlines()[-1]}", file=sys.stderr, flush=True)
    counts = arguments.rivals if arguments.rivals is not None else RIVAL_REQUESTS[: 1 if arguments.quick else None]
    methods: dict[str, Callable[[Truth, int, int], Found]] = {"bisection": bisection, "sweep": sweep}
    rivals: dict[str, list[Scored]] = {}
    for name, method in methods.items():
        for requests in counts:
            rows = [Scored(t, method(t, requests, t.case.seed % SEED_RANGE), False) for t in cases]
            rivals[f"{name}, {requests} requests per level"] = rows
            print(f"# {summary_row(f'{name} {requests}', rows, interval=False)}", file=sys.stderr, flush=True)
    text = f"""\
{len(cases)} cases. The truth has a standard error of {median_error(cases):.1%} in the median, from {len(SEEDS)} seeds \
of {STAGE_REQUESTS} requests at each of three rates or more. Sweep: {SWEEP_LEVELS} levels; bisection: down to a ratio \
of {BISECTION_RATIO:g}. Requests and seconds are medians.

{summary(ours, rivals, arguments.budget)}

{details(ours)}"""
    print(text)
    print(f"# {time.monotonic() - began_s:.0f} s in all", file=sys.stderr)
    if arguments.write:
        page = DOC.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END, 1)[1]
        DOC.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
