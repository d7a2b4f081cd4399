"""Plan files: what is accepted, and what an error says."""

from pathlib import Path

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.plan import ClosedStage, OpenStage, build_plan, read_plan


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
