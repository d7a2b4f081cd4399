"""Every fault moves its own indicator in a paired run, and has a label that a score can be kept with."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lab_traffic import NS_PER_S, Outcome, chat_run

from pinchpoint.errors import UsageError
from pinchpoint.lab.faults import FAULTS, choose_fault, write_truth
from pinchpoint.lab.params import LabParams


def waiting(outcome: Outcome) -> float:
    return outcome.service.engine.gauges().requests_waiting


def kv_used(outcome: Outcome) -> float:
    return outcome.service.engine.gauges().kv_used_ratio


INDICATORS: dict[str, Callable[[Outcome], float]] = {
    "waiting": waiting,
    "kv_used": kv_used,
    "preemptions": lambda o: o.service.engine.metrics.preemptions,
    "prefill": lambda o: o.service.engine.metrics.prefill_s.sum / o.service.engine.metrics.prefill_s.count,
    "tpot": lambda o: float(np.median(o.tpot_s())),
    "null_request": lambda o: float(np.quantile(o.null_s(), 0.95)),
    "rejected": lambda o: o.rejected(),
    "client_ttft": lambda o: float(np.median(o.ttft_s())),
}

OVERLOAD_RPS = 12.0
FACTOR = 3.0
"""How much an indicator must move; 10 % would do for an effect, but here the fault must be what gives way first."""


@pytest.fixture(scope="module")
def runs() -> dict[str, Outcome]:
    healthy = LabParams()
    return {name: chat_run(fault.apply(healthy), OVERLOAD_RPS, 60, drain=False) for name, fault in FAULTS.items()}


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "none"])
def test_a_fault_moves_its_indicator(runs: dict[str, Outcome], name: str) -> None:
    indicator = INDICATORS[FAULTS[name].indicator]
    healthy, faulty = indicator(runs["none"]), indicator(runs[name])
    assert faulty > FACTOR * healthy
    assert faulty > 0


@pytest.mark.parametrize("name", FAULTS)
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


@pytest.mark.parametrize("name", [n for n in FAULTS if n not in ("none", "sse-buffering")])
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
        assert (fault.expected_rule is None) == (name == "none")
        assert fault.physics and fault.signature
        assert (fault.indicator in INDICATORS) != (name == "none")
        assert set(fault.knobs) <= set(LabParams.__struct_fields__)


def test_random_is_fixed_by_the_seed_and_reaches_every_fault() -> None:
    assert choose_fault("random", 5) is choose_fault("random", 5)
    assert {choose_fault("random", seed).name for seed in range(200)} == set(FAULTS)


def test_an_unknown_fault_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="slot-cap"):
        choose_fault("gremlins", 0)


def test_the_truth_file_says_what_is_wrong(tmp_path: Path) -> None:
    fault = choose_fault("slot-cap", 0)
    write_truth(tmp_path / "truth.json", fault, fault.apply(LabParams()), 7)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert (truth["fault"], truth["expected_rule"], truth["seed"]) == ("slot-cap", "SEQ001", 7)
    assert truth["knobs"] == {"max_num_seqs": 12}
    with pytest.raises(UsageError, match="truth file"):
        write_truth(tmp_path / "absent" / "truth.json", fault, LabParams(), 7)


def test_a_quarter_hour_of_chat_runs_in_virtual_time_without_losing_a_token() -> None:
    outcome = chat_run(LabParams(), 3.0, 900)
    assert sum(e.tokens for e in outcome.events) == sum(outcome.output_tokens.values())
    assert max(e.t_ns for e in outcome.events) < 910 * NS_PER_S
