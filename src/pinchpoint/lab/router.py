"""Which replica gets a request, and when there should be more of them."""

import math
import random
from collections.abc import Sequence
from typing import Protocol

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.params import Autoscaler, LabParams


class Backend(Protocol):
    """What a router sees of a replica."""

    up: bool
    draining: bool

    @property
    def in_flight(self) -> int: ...


class Router:
    """Chooses among the replicas that are up."""

    def __init__(self, params: LabParams, seed: int) -> None:
        self._random = random.Random(f"{seed}/router")
        self._turn = 0
        self.change(params)

    def change(self, params: LabParams) -> None:
        self._policy = params.front.router
        self._skew_ratio = params.front.router_skew_ratio

    def choose(self, backends: Sequence[Backend], session: int | None) -> int | None:
        """Index of a replica; None when none is up.

        sticky: a session has one home, of the replicas that exist; a request without one is a session of its own.
        """
        live = [i for i, backend in enumerate(backends) if backend.up and not backend.draining]
        if not live:
            return None
        if len(live) == 1:
            return live[0]
        if self._policy == "least_loaded":
            return min(live, key=lambda i: backends[i].in_flight)
        if self._policy == "round_robin":
            self._turn += 1
            return live[self._turn % len(live)]
        draw = self._random if session is None else random.Random(session)
        return live[0] if draw.random() < self._skew_ratio else live[draw.randrange(len(live))]


def wanted_replicas(autoscaler: Autoscaler, in_flight: int, replicas: int) -> int:
    """How many replicas the rule asks for, never fewer than there are: the horizontal autoscaler's formula."""
    wanted = math.ceil(in_flight / autoscaler.target_in_flight_per_replica)
    return min(max(wanted, replicas), max(autoscaler.replicas_max, replicas))


def next_look_ns(autoscaler: Autoscaler, t_ns: int) -> int:
    period_ns = max(1, round(autoscaler.look_every_s * NS_PER_S))
    return (t_ns // period_ns + 1) * period_ns


SCALED_BY_SPEED = (
    "compute_efficiency_ratio",
    "weight_bandwidth_efficiency_ratio",
    "kv_bandwidth_efficiency_ratio",
)
DIVIDED_BY_SPEED = ("step_overhead_s", "sequence_overhead_s", "kernel_launch_s")


def replica_params(params: LabParams, index: int) -> LabParams:
    """What replica `index` is like: all that a step takes is slower by its speed ratio."""
    speeds = params.front.replica_speed_ratios
    speed = speeds[index] if index < len(speeds) else 1.0
    if speed == 1.0:
        return params
    values: dict[str, object] = {field: getattr(params, field) * speed for field in SCALED_BY_SPEED}
    values |= {field: getattr(params, field) / speed for field in DIVIDED_BY_SPEED}
    return params.changed(values)
