"""A run and a verdict for the report's tests; built once, because building takes a second."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.support.runs import build_run, example_verdict, open_view  # noqa: E402

from pinchpoint.model import Verdict  # noqa: E402
from pinchpoint.series import RunView  # noqa: E402


@pytest.fixture(scope="session")
def report_view(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return open_view(build_run(tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture(scope="session")
def report_verdict(report_view: RunView) -> Verdict:
    return example_verdict(report_view)
