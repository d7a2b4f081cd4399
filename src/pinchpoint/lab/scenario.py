"""One labelled situation: the healthy service, what it is turned into, when, and the truth about it for a judge.

The service under test is driven with `before` and, from onset_s on, with `after`. The truth never goes where a
diagnosis reads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.faults import HEALTHY, SEVERITIES, Fault, Severity, choose_fault
from pinchpoint.lab.params import GROUPS, LabParams

PLUS = "+"
"""Joins the names of faults that are there together."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """faults: none for the healthy service. onset_s: on the service's clock; 0: from the beginning."""

    faults: tuple[Fault, ...]
    severity: Severity
    onset_s: float
    before: LabParams
    after: LabParams
    seed: int

    @property
    def name(self) -> str:
        return PLUS.join(fault.name for fault in self.faults) or HEALTHY

    @property
    def workload(self) -> str:
        """The preset whose traffic brings the first fault out."""
        return self.faults[0].workload if self.faults else "chat"

    def at_start(self) -> LabParams:
        return self.before if self.onset_s > 0 else self.after

    def truth(self) -> dict[str, Any]:
        """What is really wrong, as plain data."""
        return {
            "schema": "pinchpoint.truth/1",
            "fault": self.name,
            "severity": self.severity if self.faults else None,
            "onset_s": self.onset_s,
            "seed": self.seed,
            "faults": [
                {
                    "fault": fault.name,
                    "cause": fault.cause,
                    "layer": fault.layer,
                    "expected_rule": fault.expected_rule,
                    "physics": fault.physics,
                    "signature": fault.signature,
                    "indicator": fault.indicator,
                    "knobs": {
                        key: {"healthy": self.before.value(key), "faulty": self.after.value(key)}
                        for key in fault.changes(self.severity)
                    },
                }
                for fault in self.faults
            ],
            "expected_rule": self.faults[0].expected_rule if self.faults else None,
            "layer": self.faults[0].layer if self.faults else "none",
            "params": msgspec.to_builtins(self.after),
        }


def choose_scenario(
    names: str | Sequence[str],
    severity: Severity = "moderate",
    onset_s: float = 0.0,
    base: LabParams | None = None,
    seed: int = 0,
) -> Scenario:
    """names: one fault, several joined by "+", or a list of them; see faults.choose_fault for draws.

    Raises UsageError for unknown names and severities, for faults that change the same parameter, and for a service
    that cannot be.
    """
    if severity not in SEVERITIES:
        raise UsageError(f"the lab knows no severity {severity!r}; choose one of {', '.join(SEVERITIES)}")
    if onset_s < 0:
        raise UsageError(f"the onset is {onset_s:g} s; it must be 0 or later")
    wanted = names.split(PLUS) if isinstance(names, str) else list(names)
    faults = tuple(fault for name in wanted if (fault := choose_fault(name.strip(), seed)).name != HEALTHY)
    before = base or LabParams()
    before.validate()
    for fault in faults:
        before = before.changed({key: value for key, value in fault.base.items() if _is_default(before, key)})
    after, changed_by = before, {}
    for fault in faults:
        for key in fault.changes(severity):
            if key in changed_by:
                raise UsageError(
                    f"{changed_by[key]} and {fault.name} both change {key}, so they cannot be there together"
                )
            changed_by[key] = fault.name
        after = fault.spoil(after, severity)
    return Scenario(faults=faults, severity=severity, onset_s=onset_s, before=before, after=after, seed=seed)


def resized(scenario: Scenario, loads: Sequence[Mapping[str, float]]) -> Scenario:
    """The same with faults as strong as the load makes them.

    loads: for each fault, by LoadMeasure without /, the load over the one that the fault's absolute values are meant
    for. A knob that is not tied to a load, and a value that is off (None or 0), stay.
    """
    values: dict[str, Any] = {}
    for fault, load in zip(scenario.faults, loads, strict=True):
        for key, measure in fault.sized_by.items():
            value = scenario.after.value(key)
            if key in fault.changes(scenario.severity) and isinstance(value, int | float) and value:
                over = load[measure.removeprefix("/")]
                scaled = value / over if measure.startswith("/") else value * over
                values[key] = max(1, round(scaled)) if isinstance(value, int) else scaled
    return msgspec.structs.replace(scenario, after=scenario.after.changed(values))


def _is_default(params: LabParams, key: str) -> bool:
    """What the user has set stays, even where a fault would rather have another healthy service."""
    group = key.partition(".")[0]
    if group in GROUPS and getattr(params, group) is None:
        return True
    return params.value(key) == LabParams().value(key)


def write_truth(path: Path, scenario: Scenario) -> None:
    """Writes the truth as JSON, for whoever scores a diagnosis later.

    Raises UsageError when the file cannot be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(scenario.truth())) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot write the truth file {path}: {error.strerror}; choose another path") from error
