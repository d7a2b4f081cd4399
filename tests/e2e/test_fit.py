"""`pinchpoint workload fit` from the outside: a trace becomes a plan that `pinchpoint load` can run."""

import json
from pathlib import Path

import pytest

from pinchpoint.cli import main
from pinchpoint.plan import StepsStage, read_plan
from pinchpoint.workload.schedule import check_stages

DATA = Path(__file__).parents[1] / "data" / "traces"
AZURE = str(DATA / "azure2023_conv_1200.csv.gz")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_plan_is_written_that_can_be_run_and_its_quality_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, page = tmp_path / "plan.toml", tmp_path / "fit.html"
    code, out, _ = run(
        capsys, "workload", "fit", AZURE, "-o", str(plan), "--plot", str(page), "--url", "http://127.0.0.1:9"
    )
    assert code == 0
    for words in ("LEARNT", "QUALITY", "gaps between arrivals", "CV of the gaps", "input tokens", "baseline"):
        assert words in out
    found = read_plan(plan, {})
    check_stages(found)
    assert found.url == "http://127.0.0.1:9"
    text = page.read_text()
    assert "<svg" in text and "http://" not in text and "<script" not in text


def test_scale_multiplies_the_rates_beyond_the_observed_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = []
    for i, more in enumerate(((), ("--scale", "1.5x", "--duration", "30s"))):
        path = tmp_path / f"{i}.toml"
        assert run(capsys, "workload", "fit", AZURE, "-o", str(path), "--url", "http://127.0.0.1:9", *more)[0] == 0
        plans.append(read_plan(path, {}).stages[0])
    one, more = (
        (s.rates_rps, s.durations_s) if isinstance(s, StepsStage) else ((s.rate_rps,), (s.duration_s,)) for s in plans
    )
    assert more[0] == pytest.approx([1.5 * rate for rate in one[0]], rel=1e-4)
    assert sum(more[1]) == pytest.approx(30, rel=1e-4)


def test_json_holds_the_quality_and_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "workload", "fit", AZURE, "--json")
    told = json.loads(out)
    assert code == 0 and told["schema"] == "pinchpoint.fit/1"
    assert {"matches", "summary", "plan", "notes"} <= told.keys()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--scale", "much"), "is not a factor"),
        (("--format", "asure"), "is no format of traces"),
        (("--field", "time"), "does not say which column"),
        (("--duration", "0s"), "no time at all"),
    ],
)
def test_what_is_wrong_is_told(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str) -> None:
    code, _, err = run(capsys, "workload", "fit", AZURE, *arguments)
    assert code == 2 and says in err


def test_a_plan_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text("mine")
    code, _, err = run(capsys, "workload", "fit", AZURE, "-o", str(plan))
    assert code == 2 and "already exists" in err and plan.read_text() == "mine"


def test_a_trace_without_instants_has_no_rate_to_scale(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "workload", "fit", str(DATA / "lengths_arxiv_600.csv.gz"), "--scale", "2x")
    assert code == 2 and "no instants" in err
