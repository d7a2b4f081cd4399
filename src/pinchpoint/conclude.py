"""From a run directory to its answer: judge it, write `verdict.json` and `report.html`.

Works on any run directory, also on one whose run was killed or that another host made. What cannot be written (a
read-only directory) does not keep the answer from being given.
"""

from pathlib import Path

from pinchpoint.cost import cost_of
from pinchpoint.delivered import delivered
from pinchpoint.diagnose.check import check
from pinchpoint.diagnose.features import Features
from pinchpoint.errors import EXIT_OK, EXIT_UNREACHABLE, EXIT_UNSUPPORTED, UsageError
from pinchpoint.judge import judge
from pinchpoint.measure import measure
from pinchpoint.model import Slo, ValidityReason, Verdict
from pinchpoint.outcomes import read_outcomes
from pinchpoint.report.html import write_html
from pinchpoint.report.json import verdict_json
from pinchpoint.report.load_answer import LoadAnswer
from pinchpoint.rundir import seal_unsealed, write_atomically
from pinchpoint.series import RunView

UNREACHED = ("transport_error:connect", "transport_error:tls", "timeout:connect")


def judge_directory(path: Path, slos: tuple[Slo, ...] | None = None) -> tuple[RunView, Verdict]:
    """Raises RunFormatError for a directory that cannot be read, UsageError for an SLO of a class that the run does not
    have. slos: None = those of the run."""
    view = RunView(seal_unsealed(path))
    known = view.manifest.classes
    for slo in slos or ():
        if slo.scope is not None and slo.scope not in known:
            there = f"choose from {', '.join(known)}" if known else "it has no classes"
            raise UsageError(f"SLO {slo.text!r}: the run has no class {slo.scope!r}; {there}")
    return view, judge(view, slos)


def write_answer(view: RunView, verdict: Verdict, html_path: Path | None = None) -> Path:
    """Writes the cached verdict and the report; returns where the report is. Raises UsageError when it cannot."""
    target = html_path or view.run.path / "report.html"
    cost = cost_of(view, verdict.slos, capacity=verdict.capacity)
    try:
        if html_path is None:
            write_atomically(view.run.path / "verdict.json", verdict_json(verdict, cost))
        write_html(view, verdict, target, cost)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}; give a writable file with --out") from None
    return target


def judge_load(path: Path) -> tuple[LoadAnswer, int]:
    """The answer of a plain load and its exit code: 3 when the run supports no figures, 4 when nothing was reached.

    Raises RunFormatError for a directory that cannot be read.
    """
    view = RunView(seal_unsealed(path))
    outcomes = read_outcomes(view)
    results = tuple(view.stage_result(stage, ()) for stage in view.stages)
    validity, reasons = check(Features(view, (), results))
    result = measure(view, outcomes)
    if not result.total.completed:
        nothing = ValidityReason("completed", "invalid", "no request was completed, so no latency was measured")
        validity, reasons = "INVALID", (nothing, *reasons)
    cost = cost_of(view, view.manifest.slos)
    answer = LoadAnswer(view.manifest, validity, reasons, result, delivered(view, outcomes), cost)
    total = answer.result.total
    unreached = sum(n for kind, n in total.errors.items() if kind in UNREACHED)
    if total.offered and unreached == total.offered:
        return answer, EXIT_UNREACHABLE
    return answer, EXIT_UNSUPPORTED if validity == "INVALID" or not total.completed else EXIT_OK
