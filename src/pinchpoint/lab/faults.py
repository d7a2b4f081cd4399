"""The faults the lab can have: changes of mechanism, read from faults.toml beside this file.

A fault is nothing but other parameters. `expected_rule` is the label a test compares with; the lab itself never imports
a rule.
"""

import random
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.params import LabParams
from pinchpoint.model import Layer

RANDOM, ANY = "random", "any"
"""Names that stand for a draw by the seed: among the faults that a rule is meant to name and the healthy service, or
among all."""
TIMES = "x"
"""Begins a value that multiplies the healthy one."""
CLIENT_PREFIX = "client."

Severity = Literal["mild", "moderate", "severe"]
SEVERITIES: tuple[Severity, ...] = ("mild", "moderate", "severe")

LoadMeasure = Literal["rate", "tokens", "requests", "in_flight", "/rate", "/tokens", "/requests"]
"""Of a limit, which grows with a load: requests/s, output tokens/s, requests in all, requests at once. With / of a cost
per request or token, which shrinks as there are more of them."""

Change = Mapping[str, Any]
"""Parameter -> value, or "x0.5" for half of the healthy value."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault in three severities. See the head of faults.toml for what each field means."""

    name: str
    cause: str
    layer: Layer
    physics: str
    signature: str
    indicator: str
    expected_rule: str | None = None
    """Code of the rule that should name it; None for the healthy service, and where no rule knows it."""
    look_alikes: tuple[str, ...] = ()
    workload: str = "chat"
    load_ratio: float = 0.45
    duration_s: float = 60.0
    sized_by: Mapping[str, LoadMeasure] = {}
    """Knob -> the load to which its absolute values belong, for `scenario.resized`."""
    base: Change = {}
    mild: Change = {}
    moderate: Change = {}
    severe: Change = {}

    @property
    def knobs(self) -> tuple[str, ...]:
        """Every parameter that some severity changes."""
        return tuple(dict.fromkeys(key for severity in SEVERITIES for key in getattr(self, severity)))

    @property
    def virtual_only(self) -> bool:
        """It is a fault of the load generator itself, which a service cannot have over HTTP."""
        return any(knob.startswith(CLIENT_PREFIX) for knob in self.knobs)

    def healthy(self, params: LabParams) -> LabParams:
        """The service that this fault is held against."""
        return params.changed(self.base)

    def apply(self, params: LabParams, severity: Severity = "moderate") -> LabParams:
        """The service with the fault. Raises UsageError for parameters that describe no possible service."""
        return self.spoil(self.healthy(params), severity)

    def spoil(self, healthy: LabParams, severity: Severity) -> LabParams:
        """healthy: has the base of this fault already."""
        return healthy.changed({key: _value(healthy, key, wanted) for key, wanted in self.changes(severity).items()})

    def changes(self, severity: Severity) -> Change:
        return getattr(self, severity)


def _value(healthy: LabParams, key: str, wanted: Any) -> Any:
    if isinstance(wanted, list):
        return tuple(wanted)
    if not (isinstance(wanted, str) and wanted.startswith(TIMES) and wanted[1:2].isdigit()):
        return wanted
    current = healthy.num_kv_blocks() if key == "kv_blocks" else healthy.value(key)
    assert isinstance(current, int | float), key
    scaled = current * float(wanted.removeprefix(TIMES))
    return max(1, round(scaled)) if isinstance(current, int) else scaled


def _read() -> dict[str, Fault]:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {name: msgspec.convert({"name": name, **table}, Fault) for name, table in tables.items()}


FAULTS: dict[str, Fault] = _read()
HEALTHY = "none"


def choose_fault(name: str, seed: int) -> Fault:
    """The fault called `name`, or one drawn by the seed for RANDOM and ANY.

    A draw never gives a fault of the load generator. Raises UsageError for a name that is not in the table.
    """
    if name in (RANDOM, ANY):
        drawn = [f for f in FAULTS.values() if not f.virtual_only]
        if name == RANDOM:
            drawn = [f for f in drawn if f.expected_rule or f.name == HEALTHY]
        return random.Random(seed).choice(drawn)
    if name not in FAULTS:
        raise UsageError(f"the lab has no fault {name!r}; choose one of {', '.join(FAULTS)}, {RANDOM} or {ANY}")
    return FAULTS[name]
