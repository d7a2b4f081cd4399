"""Every fault moves its own indicator in a paired run, and has a label that a score can be kept with."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab_traffic import NS_PER_S, Outcome, chat_run

from pinchpoint.errors import UsageError
from pinchpoint.lab.faults import FAULTS, SEVERITIES, Severity, choose_fault
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.scenario import choose_scenario, write_truth


def waiting(outcome: Outcome) -> float:
    return outcome.service.engine.gauges().requests_waiting


def kv_used(outcome: Outcome) -> float:
    return outcome.service.engine.gauges().kv_used_ratio


OWN: dict[str, Callable[[Outcome], float]] = {
    "slot-cap": waiting,
    "kv-exhausted": lambda o: o.service.engine.metrics.preemptions,
    "kv-admission": kv_used,
    "prefill-bound": lambda o: o.service.engine.metrics.prefill_s.sum / o.service.engine.metrics.prefill_s.count,
    "decode-bound": lambda o: float(np.median(o.tpot_s())),
    "api-bound": lambda o: float(np.quantile(o.null_s(), 0.95)),
    "rate-limit": lambda o: o.rejected(),
    "admission-limit": lambda o: o.rejected(),
    "sse-buffering": lambda o: float(np.median(o.ttft_s())),
}
"""What each fault that a rule is meant to name does inside the service, where no client sees it."""

OVERLOAD_RPS = 12.0
FACTOR = 3.0
"""How much an indicator must move; 10 % would do for an effect, but here the fault must be what gives way first."""


@pytest.fixture(scope="module")
def runs() -> dict[str, Outcome]:
    healthy = LabParams()
    return {name: chat_run(FAULTS[name].apply(healthy), OVERLOAD_RPS, 60, drain=False) for name in ("none", *OWN)}


@pytest.mark.parametrize("name", OWN)
def test_a_fault_is_at_work_where_it_was_put(runs: dict[str, Outcome], name: str) -> None:
    indicator = OWN[name]
    healthy, faulty = indicator(runs["none"]), indicator(runs[name])
    assert faulty > FACTOR * healthy
    assert faulty > 0


@pytest.mark.parametrize("name", ["none", *OWN])
def test_a_fault_leaves_the_mechanisms_of_the_others_alone(runs: dict[str, Outcome], name: str) -> None:
    outcome = runs[name]
    if name != "kv-exhausted":
        assert outcome.service.engine.metrics.preemptions == 0
    if name not in ("rate-limit", "admission-limit"):
        assert outcome.rejected() == 0
    if name not in ("kv-exhausted", "kv-admission"):
        assert kv_used(outcome) < 0.5
    if name not in ("slot-cap", "kv-exhausted", "kv-admission", "prefill-bound", "decode-bound"):
        assert waiting(outcome) < 20
    if name != "api-bound":
        assert float(np.quantile(outcome.null_s(), 0.95)) < 0.01


@pytest.mark.parametrize("name", ["slot-cap", "kv-admission"])
def test_limits_on_admission_stretch_ttft_and_leave_tpot(runs: dict[str, Outcome], name: str) -> None:
    assert np.quantile(runs[name].ttft_s(), 0.95) > 10
    assert np.median(runs[name].tpot_s()) < 1.1 * np.median(runs["none"].tpot_s())


def test_decode_bound_breaks_tpot_before_anything_waits() -> None:
    outcome = chat_run(FAULTS["decode-bound"].apply(LabParams()), 4.0, 60, drain=False)
    assert np.quantile(outcome.tpot_s(), 0.95) > 0.04
    assert np.quantile(outcome.ttft_s(), 0.95) < 0.25
    assert outcome.service.engine.metrics.queue_s.sum / outcome.service.engine.metrics.queue_s.count < 0.1


@pytest.mark.parametrize("name", [n for n in OWN if n != "sse-buffering"])
def test_the_healthy_service_carries_at_least_half_as_much_again(name: str) -> None:
    """A fault that the healthy service shows as well at the same load could not be told from no fault."""
    healthy, faulty = (chat_run(FAULTS[n].apply(LabParams()), 16.0, 60, drain=False) for n in ("none", name))

    def good(outcome: Outcome) -> int:
        ttft = outcome.ttft_s() < 0.5
        return int(ttft.sum())

    slow_tpot = np.quantile(faulty.tpot_s(), 0.95) > 2 * np.quantile(healthy.tpot_s(), 0.95)
    assert slow_tpot or good(healthy) > 1.5 * good(faulty)


def test_labels_are_complete() -> None:
    for name, fault in FAULTS.items():
        assert fault.name == name
        assert fault.physics and fault.signature
        assert bool(fault.indicator) == bool(fault.cause) == bool(fault.knobs) == (name != "none")
        assert set(fault.look_alikes) <= set(FAULTS) - {name}


def test_at_least_fifty_causes_of_all_layers_can_be_brought_about() -> None:
    assert len({fault.cause for fault in FAULTS.values() if fault.cause}) >= 50
    assert {fault.layer for fault in FAULTS.values()} == {
        "load generator", "application", "model inference", "hardware", "infrastructure", "none"
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "none"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_every_severity_describes_a_service_that_can_be_and_differs_from_the_healthy_one(
    name: str, severity: Severity
) -> None:
    scenario = choose_scenario(name, severity)
    assert scenario.before != scenario.after
    changed = set(FAULTS[name].changes(severity))
    assert all(
        scenario.before.value(key) == scenario.after.value(key) for key in FAULTS[name].base if key not in changed
    )


def test_the_three_severities_are_three_different_services() -> None:
    for name, fault in FAULTS.items():
        if name not in ("none", "sse-buffering"):  # buffering is there or not
            services = [fault.apply(LabParams(), severity) for severity in SEVERITIES]
            assert services[0] != services[1] != services[2] != services[0]


def test_a_value_with_a_times_sign_multiplies_the_healthy_one() -> None:
    params = LabParams(gpu="H100", compute_efficiency_ratio=0.6)
    assert FAULTS["prefill-bound"].apply(params).compute_efficiency_ratio == pytest.approx(0.1)
    blocks = FAULTS["prefix-thrash"].apply(params, "moderate").num_kv_blocks()
    assert blocks == pytest.approx(0.03 * params.num_kv_blocks(), abs=1)


def test_draws_are_fixed_by_the_seed_and_reach_every_fault_that_a_service_can_have() -> None:
    assert choose_fault("any", 5) is choose_fault("any", 5)
    with_rules = {name for name, fault in FAULTS.items() if fault.expected_rule or name == "none"}
    assert {choose_fault("random", seed).name for seed in range(300)} == with_rules
    served = {name for name, fault in FAULTS.items() if not fault.virtual_only}
    assert {choose_fault("any", seed).name for seed in range(2000)} == served


def test_an_unknown_fault_or_severity_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="slot-cap"):
        choose_fault("gremlins", 0)
    with pytest.raises(UsageError, match="mild, moderate, severe"):
        choose_scenario("slot-cap", "deadly")  # pyright: ignore[reportArgumentType]


def test_two_faults_can_be_there_together_unless_they_change_the_same_parameter() -> None:
    both = choose_scenario("slot-cap+rate-limit", "severe")
    assert (both.after.max_num_seqs, both.after.rate_limit_rps) == (4, 1.5)
    with pytest.raises(UsageError, match=r"kv-exhausted and kv-admission both change kv_blocks"):
        choose_scenario(["kv-exhausted", "kv-admission"])


def test_what_the_user_set_is_not_overridden_by_the_base_of_a_fault() -> None:
    scenario = choose_scenario("nvlink-degraded", base=LabParams(model="llama-3-70b", gpu="L40S", tensor_parallel=8))
    assert (scenario.after.gpu, scenario.after.tensor_parallel) == ("L40S", 8)


def test_before_its_onset_a_fault_is_not_there() -> None:
    scenario = choose_scenario("slot-cap", onset_s=60)
    assert scenario.at_start() == LabParams()
    assert choose_scenario("slot-cap").at_start().max_num_seqs == 12


def test_the_truth_file_says_what_is_wrong(tmp_path: Path) -> None:
    write_truth(tmp_path / "truth.json", choose_scenario("slot-cap", seed=7, onset_s=30))
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert (truth["fault"], truth["expected_rule"], truth["seed"]) == ("slot-cap", "SEQ001", 7)
    assert (truth["severity"], truth["onset_s"]) == ("moderate", 30)
    assert truth["faults"][0]["knobs"] == {"max_num_seqs": {"healthy": 256, "faulty": 12}}
    with pytest.raises(UsageError, match="truth file"):
        write_truth(tmp_path / "absent" / "truth.json", choose_scenario("none"))


def test_a_quarter_hour_of_chat_runs_in_virtual_time_without_losing_a_token() -> None:
    outcome = chat_run(LabParams(), 3.0, 900)
    assert sum(e.tokens for e in outcome.events) == sum(outcome.output_tokens.values())
    assert max(e.t_ns for e in outcome.events) < 910 * NS_PER_S
