"""Which runs a data set has, and what may be known of them."""

import itertools
import random
from collections import Counter

import pytest

from pinchpoint.lab.faults import FAULTS, HEALTHY
from pinchpoint.labbench.matrix import SIZES, Size, cases_of, healthy_twin
from pinchpoint.labbench.split import PARTS, held_out

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
