"""Plan files: what is accepted, and what an error says."""

from pathlib import Path

import msgspec
import pytest

from pinchpoint.errors import UsageError
from pinchpoint.plan import (
    ClosedStage,
    OnOffStage,
    OpenStage,
    RampStage,
    ReplayStage,
    SessionsStage,
    SineStage,
    SpikeStage,
    StageSpec,
    StepsStage,
    build_plan,
    read_plan,
)


def plan_of(tmp_path: Path, text: str, **defaults: object):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return read_plan(path, {"seed": 1, **defaults})


GOOD = """
name = "nightly"
seed = 7
budget = "90s"
slos = ["ttft p95 < 500ms"]
[target]
url = "http://127.0.0.1:8000"
model = "m"
[workload]
preset = "chat-short"
output_tokens = 20
[[stages]]
kind = "open"
rate = "4rps"
duration = "20s"
[[stages]]
kind = "closed"
concurrency = 8
think = "500ms"
duration = "1m"
"""


def test_a_whole_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GOOD)
    assert (plan.name, plan.seed, plan.budget_s, plan.url, plan.model) == (
        "nightly",
        7,
        90,
        "http://127.0.0.1:8000",
        "m",
    )
    assert plan.stages == (OpenStage(rate_rps=4, duration_s=20), ClosedStage(8, 60, "500ms"))
    assert plan.workload.output_tokens == 20


def test_flags_fill_what_the_file_leaves_out_and_do_not_replace_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "seed = 3\n", url="http://h:1", budget_s=30.0)
    assert (plan.seed, plan.url, plan.budget_s) == (3, "http://h:1", 30)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = ", "not valid TOML"),
        ("sed = 3", "sed"),
        ("budget = 'soon'", "budget"),
        ("budget = '1s'", "budget must be at least"),
        ("seed = -1", "seed"),
        ("[[stages]]\nkind = 'open'\nrate = -4\nduration = '5s'", r"stages\[0\]: rate"),
        ("[[stages]]\nkind = 'sideways'\n", "stages"),
        ("[[stages]]\nkind = 'closed'\nconcurrency = 0\nduration = 5", r"stages\[0\].concurrency"),
        ("[[stages]]\nkind = 'open'\nrate = 4\nduration = 0", r"stages\[0\].duration"),
        ("stages = 3", "stages"),
        ("target = 'x'", "target"),
        ("[workload]\ninput_tokens = 0", "input_tokens"),
        ("[workload]\ninput_tokens = 'many'", "input_tokens"),
        ("api_key = 'sk-123'", "api_key"),
        ("api_key_env = 'A'\napi_key_file = 'b'", "not both"),
        ("max_rate = 0", "max_rate"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        plan_of(tmp_path, text, url="http://h:1")
    assert "plan.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_binary_rubbish_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_plan(tmp_path / "none.toml", {"seed": 1})
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_plan(tmp_path / "bad.toml", {"seed": 1})


def test_a_key_inside_the_url_is_refused() -> None:
    with pytest.raises(UsageError, match="--api-key-env"):
        build_plan({"url": "http://user:secret@h:1", "seed": 1})


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (
            "kind = 'open'\nrate = '600rpm'\nrequests = 50\narrivals = 'gamma:2'",
            OpenStage(rate_rps=10, requests=50, arrivals="gamma:2"),
        ),
        ("kind = 'ramp'\nfrom = 0\nto = '20rps'\nduration = '2m'", RampStage(from_rps=0, to_rps=20, duration_s=120)),
        ("kind = 'steps'\nrates = ['1rps', 0, 2.5]\neach = '30s'", StepsStage(rates_rps=(1, 0, 2.5), each_s=30)),
        (
            "kind = 'steps'\nrates = [1, 2]\ndurations = ['30s', '1m']",
            StepsStage(rates_rps=(1, 2), durations_s=(30, 60)),
        ),
        (
            "kind = 'spike'\nbase = 2\npeak = '50rps'\nat = '10s'\nfor = '5s'\nduration = '1m'",
            SpikeStage(base_rps=2, peak_rps=50, at_s=10, for_s=5, duration_s=60),
        ),
        (
            "kind = 'sine'\nmean = 5\namplitude_ratio = 0.5\nperiod = '20s'\nduration = '1m'",
            SineStage(mean_rps=5, amplitude_ratio=0.5, period_s=20, duration_s=60),
        ),
        (
            "kind = 'on-off'\nrate = 5\non = '2s'\noff = '8s'\nduration = '1m'",
            OnOffStage(rate_rps=5, on_s=2, off_s=8, duration_s=60),
        ),
        (
            "kind = 'replay'\nfile = 't.csv'\nscale = 2\nstart = '1m'\nduration = '1h'\nunit = 'ms'",
            ReplayStage(file="t.csv", scale=2, start_s=60, duration_s=3600, unit="ms"),
        ),
        (
            "kind = 'sessions'\nrate = 2\nsessions = 9\nturns = 'geometric:3'\nthink = 'exponential:5s'",
            SessionsStage(rate_rps=2, sessions=9, turns="geometric:3", think="exponential:5s"),
        ),
        (
            "kind = 'closed'\nconcurrency = 2\nto_concurrency = 8\nduration = '1m'",
            ClosedStage(2, 60, to_concurrency=8),
        ),
        ("kind = 'closed'\nconcurrency = 2\nrequests = 100", ClosedStage(2, requests=100)),
        ("kind = 'closed'\nconcurrency = 7\nrequests = 7", ClosedStage(7, requests=7)),
    ],
)
def test_each_kind_of_stage_is_read_and_stored_as_written(tmp_path: Path, text: str, stage: StageSpec) -> None:
    plan = plan_of(tmp_path, f"[[stages]]\n{text}", url="http://h:1")
    assert plan.stages == (stage,)
    assert build_plan(msgspec.to_builtins(plan)) == plan


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind = 'open'\nrate = 4", r"stages\[0\].duration or requests"),
        ("kind = 'open'\nrate = 4\nduration = 5\nrequests = 5", r"stages\[0\].duration or requests .* not both"),
        ("kind = 'open'\nrate = 0\nduration = 5", r"stages\[0\].rate is 0; a rate must be above 0"),
        ("kind = 'open'\nrate = 4\nrequests = 0", r"stages\[0\].requests is 0"),
        ("kind = 'open'\nrate = 4\nduration = 'soon'", r"stages\[0\]: duration: 'soon'"),
        ("kind = 'open'\nrate = 4\nduration = 5\nthink = '1s'", "think"),
        ("kind = 'ramp'\nfrom = 0\nto = 0\nduration = 5", r"stages\[0\].to must be above 0"),
        (
            "kind = 'ramp'\nfrom = 5\nto = 0\nduration = 5\nrequests = 9",
            r"stages\[0\].to must be above 0 when requests",
        ),
        ("kind = 'ramp'\nfrom = 5\nto = 9", "duration_s"),
        ("kind = 'steps'\nrates = [0, 0]\neach = 5", r"stages\[0\].rates must hold"),
        ("kind = 'steps'\nrates = []\neach = 5", r"stages\[0\].rates must hold"),
        ("kind = 'steps'\nrates = [1, 2]", r"stages\[0\].each or durations"),
        ("kind = 'steps'\nrates = [1, 2]\ndurations = [5]", r"stages\[0\].durations has 1 values for 2 rates"),
        ("kind = 'steps'\nrates = [1, 2]\ndurations = [5, 0]", r"stages\[0\].durations is 0"),
        ("kind = 'steps'\nrates = [1, 'x']\neach = 5", r"stages\[0\]: rates: 'x'"),
        ("kind = 'spike'\nbase = 0\npeak = 9\nat = 1\nfor = 1\nrequests = 90", r"stages\[0\].base must be above 0"),
        (
            "kind = 'sine'\nmean = 5\namplitude_ratio = 1.5\nperiod = 2\nduration = 9",
            r"stages\[0\].amplitude_ratio is 1.5",
        ),
        ("kind = 'on-off'\nrate = 5\non = 0\noff = 1\nduration = 9", r"stages\[0\].on is 0"),
        ("kind = 'replay'\nfile = 'x.csv'\nloop = true", r"stages\[0\].loop needs a duration"),
        ("kind = 'replay'\nfile = 'x.csv'\nscale = 0", r"stages\[0\].scale is 0"),
        ("kind = 'replay'\nfile = 'x.csv'\nunit = 'days'", "days"),
        ("kind = 'sessions'\nrate = 5", r"stages\[0\].duration or sessions"),
        ("kind = 'sessions'\nrate = 5\nsessions = 5\nturns = 0", r"stages\[0\].turns must be"),
        ("kind = 'closed'\nconcurrency = 5", r"stages\[0\].duration or requests"),
        ("kind = 'closed'\nconcurrency = 5\nrequests = 4", r"stages\[0\].requests is 4; .* number of users, 5"),
        (
            "kind = 'closed'\nconcurrency = 2\nto_concurrency = 9\nduration = 5\nrequests = 8",
            r"stages\[0\].requests is 8; .* number of users, 9",
        ),
        (
            "kind = 'closed'\nconcurrency = 5\nrequests = 9\nto_concurrency = 9",
            r"stages\[0\].duration must be given with",
        ),
        ("kind = 'closed'\nconcurrency = 5\nduration = 9\nto_concurrency = 0", r"stages\[0\].to_concurrency must be"),
    ],
)
def test_a_stage_that_makes_no_sense_is_told_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_of(tmp_path, f"[[stages]]\n{text}", url="http://h:1")


@pytest.mark.parametrize("url", ["http://me:key@h:1", "http://h:1?key=1", "http://h:1#x", "http://[h:1"])
def test_a_backend_is_held_to_what_the_url_is_held_to(url: str) -> None:
    with pytest.raises(UsageError, match=r"URL|cannot be read"):
        build_plan({"url": "http://h:1", "seed": 1, "backends": [{"url": url}]})
