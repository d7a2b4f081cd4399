"""Which runs a data set has, and what may be known of them."""

import itertools
import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from pinchpoint.lab.faults import FAULTS, HEALTHY
from pinchpoint.lab.hardware import GPUS
from pinchpoint.labbench.case import make_case, plan_of, sized_scenario
from pinchpoint.labbench.matrix import SIZES, Case, Size, cases_of, healthy_twin
from pinchpoint.labbench.split import PARTS, held_out
from pinchpoint.plan import OpenStage

SMALL = cases_of(SIZES["small"], 1)
HELD = held_out(1)


def test_every_fault_is_in_both_parts() -> None:
    for part in PARTS:
        names = {case.fault for case in SMALL if HELD.part(case.setting()) == part}
        assert {name for name in FAULTS if name != HEALTHY} <= names, part


@pytest.mark.parametrize("seed", range(4))
def test_every_class_is_in_both_parts(seed: int) -> None:
    held = held_out(seed)
    counts = Counter((case.label, held.part(case.setting())) for case in cases_of(SIZES["small"], seed))
    size = SIZES["small"]
    for part in PARTS:
        assert counts["healthy", part] == size.healthy
        assert counts["underloaded", part] == size.underloaded
        assert counts["limit", part] == size.limit
        assert counts["fault", part] >= len(FAULTS) - 1


def test_what_is_held_out_is_never_tuned_on() -> None:
    settings = {case.setting() for case in SMALL}
    tuning = {setting for setting in settings if HELD.part(setting) == "tuning"}
    assert tuning and not any(
        HELD.gpu == one.gpu or HELD.model == one.model or HELD.workload == one.workload for one in tuning
    )
    assert {HELD.gpu, HELD.model, HELD.workload} <= {value for setting in settings for value in setting}


def test_a_part_depends_on_the_setting_and_never_on_the_run() -> None:
    parts: dict[object, set[str]] = {}
    for case in SMALL:
        parts.setdefault(case.setting(), set()).add(HELD.part(case.setting()))
    assert all(len(found) == 1 for found in parts.values())


def test_names_are_all_different_and_tell_nothing() -> None:
    assert len({case.id for case in SMALL}) == len(SMALL)
    assert all(len(case.id) == 12 and int(case.id, 16) >= 0 for case in SMALL)
    ordered = [case.label for case in sorted(SMALL, key=lambda case: case.id)]
    runs = sum(a != b for a, b in itertools.pairwise(ordered))
    shuffled = list(ordered)
    random.Random(1).shuffle(shuffled)
    expected = sum(a != b for a, b in itertools.pairwise(shuffled))
    assert runs > expected / 2


def test_a_seed_fixes_all_cases_and_another_gives_others() -> None:
    assert cases_of(SIZES["small"], 1) == SMALL
    assert cases_of(SIZES["small"], 2) != SMALL


def test_look_alikes_differ_in_their_fault_alone() -> None:
    pairs: dict[int, list] = {}
    for case in SMALL:
        if case.pair is not None:
            pairs.setdefault(case.pair, []).append(case)
    assert len(pairs) >= SIZES["small"].pairs
    for a, b in pairs.values():
        assert b.fault in FAULTS[a.fault].look_alikes or a.fault in FAULTS[b.fault].look_alikes
        assert {f: getattr(a, f) for f in a.__struct_fields__ if f not in ("id", "fault")} == {
            f: getattr(b, f) for f in b.__struct_fields__ if f not in ("id", "fault")
        }
        assert a.scenario().before == b.scenario().before


def test_two_faults_are_two_changes_of_one_service() -> None:
    doubles = [case.scenario() for case in SMALL if "+" in case.fault]
    assert len(doubles) == 2 * SIZES["small"].two_faults
    assert all(len(scenario.faults) == 2 and scenario.before != scenario.after for scenario in doubles)


def test_a_healthy_run_has_the_service_that_a_fault_is_held_against() -> None:
    for case in SMALL:
        scenario = case.scenario()
        if case.label != "fault":
            assert not scenario.faults and scenario.after == scenario.before
        twin = healthy_twin(scenario)
        assert twin.before == scenario.before and twin.after == scenario.before


def test_all_severities_and_all_states_of_telemetry_occur() -> None:
    assert {case.severity for case in SMALL if case.label == "fault"} == {"mild", "moderate", "severe"}
    tiers = Counter(case.degrade for case in SMALL)
    assert len(tiers) == 9 and min(tiers.values()) >= 10
    assert any(case.onset_s for case in SMALL)


def test_a_full_data_set_has_each_fault_in_each_severity_in_several_settings() -> None:
    full = cases_of(SIZES["full"], 1)
    counts = Counter((case.fault, case.severity) for case in full if case.label == "fault" and case.pair is None)
    assert all(counts[name, severity] >= 8 for name in FAULTS if name != HEALTHY for severity in ("mild", "severe"))


def test_a_size_can_be_of_a_few_faults() -> None:
    few = cases_of(Size("few", 1, 1, 1, 0, 0, 0, 0, 0, ("slot-cap",)), 1)
    assert [case.fault for case in few] == ["slot-cap", "slot-cap"]


def _case(fault: str, gpu: str, model: str, workload: str = "chat") -> Case:
    return Case(
        id="x", label="fault", fault=fault, severity="moderate", onset_s=0.0, gpu=gpu, model=model, dialect="vllm",
        workload=workload, degrade=(), seed=3, load_ratio=FAULTS[fault].load_ratio,
        duration_s=FAULTS[fault].duration_s,
    )  # fmt: skip


@pytest.mark.parametrize(("gpu", "model"), [("H100", "llama-3-8b"), ("L40S", "qwen3-32b"), ("A100", "llama-3-70b")])
def test_a_limit_lies_at_the_same_share_of_the_load_whatever_the_service_carries(gpu: str, model: str) -> None:
    case = _case("rate-limit", gpu, model)
    plan = plan_of(case, case.scenario())
    limit_rps = sized_scenario(case, plan).after.rate_limit_rps
    offered_rps = sorted(stage.rate_rps for stage in plan.stages if isinstance(stage, OpenStage))[1]
    assert limit_rps is not None and 0.35 < limit_rps / offered_rps < 0.5
    ports = _case("client-ports", gpu, model)
    plan = plan_of(ports, ports.scenario())
    requests = sum(s.rate_rps * (s.duration_s or 0) for s in plan.stages if isinstance(s, OpenStage))
    assert (sized_scenario(ports, plan).after.client.ports or requests) < requests / 2


def test_what_is_off_or_not_tied_to_a_load_stays_as_the_fault_says() -> None:
    case = _case("slot-cap", "H100", "llama-3-8b")
    assert sized_scenario(case, plan_of(case, case.scenario())) == case.scenario()


def test_a_fault_of_a_link_is_put_where_there_is_such_a_link() -> None:
    for case in SMALL:
        link = GPUS[case.scenario().before.gpu].peer_link
        if case.fault == "pcie-degraded":
            assert link == "pcie"
        if case.fault == "nvlink-degraded":
            assert link != "pcie"


def test_every_knob_that_is_sized_by_a_load_is_one_of_its_fault() -> None:
    assert all(set(fault.sized_by) <= set(fault.knobs) for fault in FAULTS.values())


@pytest.mark.parametrize(
    ("fault", "gpu", "model"),
    [("gpu-memory-leak", "L40S", "qwen3-32b"), ("gpu-memory-leak", "H100", "llama-3-8b"),
     ("nic-saturated", "H100", "llama-3-8b")],
)  # fmt: skip
def test_a_service_that_goes_away_or_answers_nothing_has_an_impact(
    fault: str, gpu: str, model: str, tmp_path: Path
) -> None:
    case = msgspec.structs.replace(_case(fault, gpu, model), severity="severe", degrade=("client-only",))
    (told,) = make_case(case, tmp_path).label["faults"]
    assert told["impact"]["has_impact"]
