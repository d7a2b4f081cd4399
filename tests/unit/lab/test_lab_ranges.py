"""Numbers that no service can have are refused, in words."""

import math

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.lab.params import GROUPS, LabParams
from pinchpoint.lab.ranges import ANY_SIGN, PARTS, POSITIVE, SHARES

ALL_GROUPS = LabParams().changed(
    {
        "speculation.acceptance_ratio": 0.5,
        "disaggregation.prefill_engines": 1,
        "autoscaler.replicas_max": 2,
    }
)


def test_every_rule_is_about_a_parameter_that_there_is() -> None:
    assert set(ALL_GROUPS.flat()) >= POSITIVE | SHARES | PARTS | ANY_SIGN
    assert all(getattr(ALL_GROUPS, group) is not None for group in GROUPS)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("front.replicas", 0, "greater than 0"),
        ("host.cores", 0, "greater than 0"),
        ("front.replica_speed_ratios", (1.0, 0.0), "greater than 0"),
        ("kv_blocks", 0, "greater than 0"),
        ("path.rtt_s", -1.0, "negative"),
        ("front.dependency_s", -2.0, "negative"),
        ("path.loss_ratio", 1.0, "below 1"),
        ("host.steal_ratio", 1.5, "below 1"),
        ("grammar.share_ratio", 2.0, "1 at most"),
        ("step_noise_ratio", math.nan, "finite"),
        ("accelerator.cooling_ratio", math.inf, "finite"),
    ],
)
def test_an_impossible_number_is_refused(key: str, value: object, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        LabParams().changed({key: value})


@pytest.mark.parametrize("key", sorted(POSITIVE))
def test_what_must_be_there_cannot_be_zero(key: str) -> None:
    value = (0,) if key == "front.replica_speed_ratios" else 0
    with pytest.raises(UsageError, match="greater than 0"):
        ALL_GROUPS.changed({key: value})


def test_the_cold_is_allowed_to_be_below_zero() -> None:
    assert LabParams().changed({"accelerator.ambient_c": -5.0}).accelerator.ambient_c == -5.0
