"""The suite that is proposed for a service: what it holds, that it can be read again, and what its numbers follow."""

import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pinchpoint.errors import UsageError
from pinchpoint.model import Limits, TargetFacts
from pinchpoint.plan import ClassSpec, JointSpec, Plan, WorkloadSpec, read_plan
from pinchpoint.suite import Look, TraceShape, propose, shape_of
from pinchpoint.workload.classes import resolve, slos_of
from pinchpoint.workload.schedule import Scheduler, check_stages

SEEN = Look(
    ttft_s=0.02, tpot_s=0.01, e2e_s=1.2, input_tokens=220.0, output_tokens=120.0, crowd_users=16, crowd_rps=10.0
)
STAGES = ["baseline", "normal", "peak", "beyond-peak", "spike", "long-context", "mixed", "soak"]
PLAN = Plan("http://127.0.0.1:8000", 7)


def facts(context_tokens: int | None = 8192) -> TargetFacts:
    return TargetFacts(PLAN.url, model="llama", limits=Limits(context_tokens=context_tokens))


def proposed(tmp_path: Path, text: str) -> Plan:
    file = tmp_path / "suite.toml"
    file.write_text(text, encoding="utf-8")
    return read_plan(file, {})


@pytest.mark.parametrize("context_tokens", [None, 1024, 2048, 8192, 131_072])
def test_the_suite_can_be_read_again_and_fits_the_context(tmp_path: Path, context_tokens: int | None) -> None:
    plan = proposed(tmp_path, propose(PLAN, facts(context_tokens), SEEN, stage_s=2.0))
    check_stages(plan)
    expected = [name for name in STAGES if name != "long-context" or (context_tokens or 8192) > 4096]
    assert [stage.name for stage in plan.stages] == expected
    traffic = resolve(plan, context_tokens)
    assert slos_of(plan, traffic)
    scheduler = Scheduler.of(plan, resolve(plan, None))  # as a plain load makes it, which knows no context
    for i, stage in enumerate(plan.stages):
        schedule = scheduler.stage(i, stage).schedule
        if context_tokens is not None and len(schedule):
            assert (schedule.input_tokens + schedule.max_output_tokens).max() <= context_tokens


def test_rates_follow_what_the_crowd_got_answered(tmp_path: Path) -> None:
    slow = msgspec.structs.replace(SEEN, crowd_rps=1.0)
    fast, few = (tomllib.loads(propose(PLAN, facts(), seen, stage_s=2.0))["stages"] for seen in (SEEN, slow))
    rates = {
        stage["name"]: (stage["rate"], other["rate"]) for stage, other in zip(fast, few, strict=True) if "rate" in stage
    }
    assert rates["normal"] == ("5rps", "0.5rps")
    assert rates["beyond-peak"] == ("15rps", "1.5rps")


def test_long_prompts_come_at_a_rate_that_asks_for_as_much_work(tmp_path: Path) -> None:
    plan = proposed(tmp_path, propose(PLAN, facts(131_072), SEEN, stage_s=2.0))
    rates = {stage.name: getattr(stage, "rate_rps", 0.0) for stage in plan.stages}
    assert 0 < rates["long-context"] < rates["normal"] / 2


def test_a_trace_takes_the_place_of_the_guess(tmp_path: Path) -> None:
    joint = JointSpec((10, 100, 1000), ((5, 50), (50, 500)))
    shape = TraceShape("azure.csv", 3.0, 9.0, "gamma:2", ClassSpec(name="traced", joint=joint))
    text = propose(PLAN, facts(), SEEN, stage_s=2.0, trace=shape)
    plan = proposed(tmp_path, text)
    assert "azure.csv" in text
    stages = {stage.name: stage for stage in plan.stages}
    assert (stages["normal"].rate_rps, stages["peak"].rate_rps) == (3.0, 9.0)  # pyright: ignore
    assert stages["normal"].arrivals == "gamma:2"  # pyright: ignore
    (traced,) = resolve(plan, None).classes[:1]
    assert traced.name == "traced" and traced.joint == joint


def test_slos_that_are_given_are_kept_and_others_come_from_the_idle_service(tmp_path: Path) -> None:
    given = msgspec.structs.replace(PLAN, slos=("e2e p95 < 9s",), workload=WorkloadSpec("chat-short"))
    assert proposed(tmp_path, propose(given, facts(), SEEN)).slos == ("e2e p95 < 9s",)
    assert proposed(tmp_path, propose(PLAN, facts(), SEEN)).slos == (
        "ttft p95 < 500ms",
        "tpot p95 < 30ms",
        "errors < 1%",
    )


def test_a_service_that_does_not_stream_gets_a_suite_too(tmp_path: Path) -> None:
    seen = msgspec.structs.replace(SEEN, ttft_s=None, tpot_s=None)
    plan = proposed(tmp_path, propose(PLAN, facts(), seen))
    assert [stage.name for stage in plan.stages] == STAGES
    assert plan.slos[0] == "e2e p95 < 4.8s"


def test_a_trace_gives_its_rates_its_scatter_and_its_lengths(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    calm = np.cumsum(rng.gamma(0.25, 4 / 10, 6000))  # 10 requests/s, CV 2
    busy = calm[-1] + np.cumsum(rng.gamma(0.25, 4 / 40, 4000))
    inputs = rng.integers(10, 1000, 10_000)
    instants_s = np.concatenate([calm, busy]).tolist()
    rows = [f"{t_s * 1000:.3f},{n},{n // 2 + 1}" for t_s, n in zip(instants_s, inputs.tolist(), strict=True)]
    file = tmp_path / "trace.jsonl"
    lines = (row.split(",") for row in rows)
    file.write_text(
        "\n".join(f'{{"timestamp": {t}, "input_length": {n}, "output_length": {m}}}' for t, n, m in lines) + "\n"
    )
    shape = shape_of(file)
    assert shape.mean_rps == pytest.approx(10_000 / (calm[-1] + 4000 / 40), rel=0.1)
    assert shape.peak_rps == pytest.approx(40, rel=0.35)
    assert float(shape.arrivals.removeprefix("gamma:")) == pytest.approx(2, rel=0.15)
    joint = shape.traffic.joint
    assert joint is not None and joint.input_tokens[10] == pytest.approx(505, rel=0.1)
    assert joint.output_tokens[0][-1] < joint.output_tokens[4][0]


def test_a_trace_without_instants_says_nothing_about_rates(tmp_path: Path) -> None:
    file = tmp_path / "lengths.csv"
    file.write_text("input_length,output_length\n" + "10,20\n" * 200)
    with pytest.raises(UsageError, match="holds no instants"):
        shape_of(file)
