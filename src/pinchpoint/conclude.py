"""From a run directory to its answer: judge it, write `verdict.json` and `report.html`.

Works on any run directory, also on one whose run was killed or that another host made. What cannot be written (a
read-only directory) does not keep the answer from being given.
"""

from pathlib import Path

from pinchpoint.errors import UsageError
from pinchpoint.judge import judge
from pinchpoint.model import Slo, Verdict
from pinchpoint.report.html import write_html
from pinchpoint.report.json import verdict_json
from pinchpoint.rundir import seal_unsealed, write_atomically
from pinchpoint.series import RunView


def judge_directory(path: Path, slos: tuple[Slo, ...] | None = None) -> tuple[RunView, Verdict]:
    """Raises RunFormatError for a directory that cannot be read. slos: None = those of the run."""
    view = RunView(seal_unsealed(path))
    return view, judge(view, slos)


def write_answer(view: RunView, verdict: Verdict, html_path: Path | None = None) -> Path:
    """Writes the cached verdict and the report; returns where the report is. Raises UsageError when it cannot."""
    target = html_path or view.run.path / "report.html"
    try:
        if html_path is None:
            write_atomically(view.run.path / "verdict.json", verdict_json(verdict))
        write_html(view, verdict, target)
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}; give a writable file with --out") from None
    return target
