"""The lab's calibrations, and the way in which they are found and held against measurements."""

from statistics import median

import pytest
from bench.validate_lab.closed_loop import Loop, run_loop, tpot_estimate_s
from bench.validate_lab.fitting import OUTSIDE_FIELD, START, Observation, fit, tuning_points
from bench.validate_lab.groups import GROUPS
from bench.validate_lab.scoring import tuning_indices
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.lab.calibrations import calibration, load_calibrations
from pinchpoint.lab.engine import Engine
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.sequence import EngineRequest


@pytest.mark.parametrize("name", load_calibrations())
def test_a_calibration_is_a_service_that_could_be(name: str) -> None:
    one = calibration(name)
    params = one.applied(LabParams())
    params.validate()
    assert one.points >= 8
    assert params.num_kv_blocks() > 0
    for field, (_, low, high) in START.items():
        if field in one.params:
            assert low <= float(str(one.params[field])) <= high * 1.001


def test_an_unknown_calibration_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="vllm-qwen3-32b-bf16-h100"):
        calibration("gpt-5")


def test_every_calibrated_group_is_stored_and_was_not_scored_on_what_it_was_fitted_to() -> None:
    tuned = [group for group in GROUPS if group.tuned]
    assert {group.name for group in tuned} == set(load_calibrations())
    for group in tuned:
        cases = group.cases()
        used = tuning_indices(cases)
        assert len(set(used)) == len(used) < len(cases)
        assert used == tuning_indices(group.cases())


def test_constants_of_one_model_hold_for_another_on_the_same_engine() -> None:
    values = {
        key: value
        for key, value in calibration("vllm-qwen3-32b-bf16-h100").params.items()
        if key in START and key != OUTSIDE_FIELD
    }
    group = next(group for group in GROUPS if group.name == "vllm-llama-3.1-70b-fp8-h100")
    cases = [case for case in group.cases() if case.kind == "tpot" and case.loop and case.loop.output_tokens == 1024]
    errors = [abs(case.lab_s(case.params.changed(values)) / case.measured_s - 1) for case in cases]
    assert len(errors) > 20
    assert median(errors) <= 0.20


@settings(max_examples=10, deadline=None)
@given(
    users=st.integers(1, 48), prompt=st.integers(64, 3000), output=st.integers(64, 400), ways=st.sampled_from([1, 2, 4])
)
def test_the_formula_that_fits_agrees_with_the_engine_that_counts(
    users: int, prompt: int, output: int, ways: int
) -> None:
    params = LabParams(gpu="H100", model="llama-3.1-8b", tensor_parallel=ways, max_num_batched_tokens=8192)
    loop = Loop(users, prompt, output)
    assert tpot_estimate_s(params, loop) == pytest.approx(run_loop(params, loop).tpot_s, rel=0.1)


def test_fitting_finds_the_constants_that_made_the_points() -> None:
    truth = {"weight_bandwidth_efficiency_ratio": 0.6, "sequence_overhead_s": 90e-6}
    params = LabParams(gpu="H100", model="llama-3.1-8b")
    loops = [Loop(users, 200, 400) for users in (1, 4, 16, 64, 128)]
    observations = [
        Observation(params, lambda p, loop=loop: tpot_estimate_s(p, loop), tpot_estimate_s(params.changed(truth), loop))
        for loop in loops
    ]
    found = fit(observations, tuple(truth))
    assert found == pytest.approx(truth, rel=0.2)
    for loop in loops:
        expected = tpot_estimate_s(params.changed(truth), loop)
        assert tpot_estimate_s(params.changed(found), loop) == pytest.approx(expected, rel=0.03)


def test_tuning_points_are_even_over_their_classes_and_the_same_each_time() -> None:
    points = [(ways, n) for ways in (1, 2, 4, 8) for n in range(30)]
    drawn = tuning_points(points, lambda point: point[0], 12)
    assert [sum(ways == of for ways, _ in drawn) for of in (1, 2, 4, 8)] == [3, 3, 3, 3]
    assert drawn == tuning_points(points, lambda point: point[0], 12)
    assert tuning_points([], lambda point: point, 5) == []


def test_without_mixed_batches_prompts_have_steps_of_their_own_and_come_first() -> None:
    engine = Engine(LabParams(mixed_batches=False, max_num_batched_tokens=512, step_noise_ratio=0), 0)
    engine.submit(0.0, EngineRequest(0, 100, 4, 0.0))
    kinds, now_s = [], 0.0
    while engine.has_work:
        step = engine.start_step(now_s)
        assert step is not None
        kinds.append((step.work.prefill_tokens, step.tokens - step.work.prefill_tokens))
        now_s += step.duration_s
        if len(kinds) == 2:
            engine.submit(now_s, EngineRequest(1, 700, 2, now_s))
        engine.end_step(now_s)
    assert kinds == [(100, 0), (0, 1), (512, 0), (188, 0), (0, 2), (0, 1)]
    assert engine.pool.free == engine.pool.total
