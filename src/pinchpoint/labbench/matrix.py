"""Which runs a data set has: faults, severities, services, workloads and seeds; healthy, idle and overloaded services;
two faults at once; look-alikes side by side; telemetry as it should be and as it is in the field.

Everything is drawn from one seed. Cases come in an order of chance and are numbered in it, so that neither the number
nor the name that is made of it tells what a case is.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.faults import FAULTS, HEALTHY, SEVERITIES, Fault, Severity
from pinchpoint.lab.hardware import GPUS
from pinchpoint.lab.scenario import PLUS, Scenario, choose_scenario
from pinchpoint.lab.services import service_of
from pinchpoint.labbench.split import PARTS, HeldOut, Part, Setting, held_out
from pinchpoint.labbench.split import WORKLOADS as HELD_WORKLOADS
from pinchpoint.plan import SEED_MAX
from pinchpoint.synth.degrade import DEGRADATIONS

Label = Literal["fault", "healthy", "underloaded", "limit"]

SINGLE = (("A100", "llama-3-8b"), ("H100", "llama-3-8b"), ("L40S", "qwen2.5-7b"), ("910B2", "qwen2.5-7b"))
SEVERAL = (("H200", "qwen3-32b"), ("A100", "llama-3-70b"), ("H100", "llama-3-70b"), ("L40S", "qwen3-32b"))
EXPERTS = tuple((gpu, "mixtral-8x7b") for gpu in ("H100", "A100", "H200", "L40S", "910B2"))
"""(GPU, model) that take one GPU, several, and several with experts to spread."""
OVER_PCIE = (("L40S", "qwen3-32b"), ("L40S", "llama-3-70b"), ("RTX4090", "llama-3-70b"))
"""Several GPUs without links of their own; enough that one of each may be held out."""
FEW_SERVICES = 3
WORKLOADS = {"chat": ("chat", "chat", "assistant"), "summarise": ("summarise", "summarise", "rag")}
"""Workload that brings a fault out -> those it may have in the data set, the likelier one twice."""
DIALECTS = ("vllm", "vllm", "vllm", "sglang", "tgi", "llama.cpp")
TIERS: tuple[tuple[str, ...], ...] = ((), (), (), *((name,) for name in DEGRADATIONS))
"""A quarter to a third of the runs has telemetry as it should be."""
ONSET_RATIO = 0.25
"""Of the runs with a fault, those in which it sets in under load."""
ONSET_RANGE_S = (25.0, 45.0)
LIMIT_LOAD_RATIO = 1.0
"""A service at its limit is offered this times its rough capacity, and less and more around it."""
IDLE_LOAD_RATIO = 0.08
TRIES = 60


class Size(msgspec.Struct, frozen=True):
    """severities, seeds: of each fault in each part. settings: different services or workloads of each of them.
    Others: runs in each part. faults: names; empty: all."""

    name: str
    severities: int
    settings: int
    seeds: int
    healthy: int
    underloaded: int
    limit: int
    two_faults: int
    pairs: int
    faults: tuple[str, ...] = ()


SIZES = {
    "small": Size("small", 1, 1, 1, healthy=12, underloaded=6, limit=8, two_faults=8, pairs=5),
    "full": Size("full", 3, 2, 2, healthy=60, underloaded=20, limit=40, two_faults=50, pairs=40),
}


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One run to make. seed: of arrivals, lengths and noise. load_ratio: of the rough capacity of the healthy service,
    at the middle one of three stages. pair: look-alikes with the same number have all but the fault in common."""

    id: str
    label: Label
    fault: str
    severity: Severity
    onset_s: float
    gpu: str
    model: str
    dialect: str
    workload: str
    degrade: tuple[str, ...]
    seed: int
    load_ratio: float
    duration_s: float
    pair: int | None = None
    twin_of: str | None = None
    """Of a healthy run: the fault beside which it stands, whose healthy service it is."""

    def scenario(self) -> Scenario:
        """As it is run; a healthy twin has what its fault's service has by itself."""
        made = choose_scenario(
            self.twin_of or self.fault,
            self.severity,
            self.onset_s,
            service_of(self.gpu, self.model, self.dialect),
            self.seed,
        )
        return healthy_twin(made) if self.twin_of else made

    def setting(self) -> Setting:
        before = self.scenario().before
        return Setting(before.gpu, before.model, self.workload)


def healthy_twin(scenario: Scenario) -> Scenario:
    """The same service without its faults."""
    return msgspec.structs.replace(scenario, faults=(), after=scenario.before, onset_s=0.0)


def cases_of(size: Size, seed: int) -> list[Case]:
    """All cases of a data set, in the order of their making."""
    draw = _Draw(seed, held_out(seed))
    names = [name for name in FAULTS if name != HEALTHY and (not size.faults or name in size.faults)]
    found: list[Case] = []
    for place, name in enumerate(names):
        for part_place, part in enumerate(PARTS):
            for i in range(size.severities):
                severity = SEVERITIES[(place + part_place + i) % len(SEVERITIES)]
                for _ in range(size.settings * size.seeds):
                    found.append(draw.fault(name, severity, part))
    for part in PARTS:
        kinds = _kinds(names, draw.chance)
        found += [draw.healthy(kinds[i % len(kinds)], part) for i in range(size.healthy)]
        found += [draw.plain("underloaded", IDLE_LOAD_RATIO, part) for _ in range(size.underloaded)]
        found += [draw.plain("limit", LIMIT_LOAD_RATIO, part) for _ in range(size.limit)]
        found += [draw.two(names, part) for _ in range(size.two_faults)]
        for i in range(size.pairs):
            found += draw.look_alikes(names, part, len(PARTS) * i + PARTS.index(part))
    draw.chance.shuffle(found)
    return [msgspec.structs.replace(case, id=_id(seed, number)) for number, case in enumerate(found)]


def _id(seed: int, number: int) -> str:
    return hashlib.sha256(f"{seed}:{number}".encode()).hexdigest()[:12]


class _Draw:
    def __init__(self, seed: int, held: HeldOut) -> None:
        self.chance = random.Random(f"cases {seed}")
        self._held = held
        self._tier = 0

    def fault(self, name: str, severity: Severity, part: Part, degrade: tuple[str, ...] | None = None) -> Case:
        """name: one fault, or two joined by a plus. Raises UsageError for two that cannot be there together."""
        fault = FAULTS[name.partition(PLUS)[0]]
        late = fault.duration_s <= 60 and self.chance.random() < ONSET_RATIO
        onset_s = round(self.chance.uniform(*ONSET_RANGE_S), 1) if late else 0.0
        services = _services([FAULTS[one] for one in name.split(PLUS)])
        workloads = WORKLOADS.get(fault.workload, (fault.workload,))
        if len(services) <= FEW_SERVICES:  # too few for what is held out to be among them
            workloads = (*workloads, *HELD_WORKLOADS)
        return self._in_part(
            part,
            services,
            workloads,
            Case(
                **self._common(degrade),
                label="fault",
                fault=name,
                severity=severity,
                onset_s=onset_s,
                load_ratio=fault.load_ratio,
                duration_s=fault.duration_s,
            ),
        )

    def healthy(self, names: Sequence[str], part: Part) -> Case:
        """What one of these faults is held against: the same service and load, and nothing is wrong."""
        twin = self.fault(self.chance.choice(names), "moderate", part)
        return msgspec.structs.replace(twin, label="healthy", twin_of=twin.fault, fault=HEALTHY, onset_s=0.0)

    def plain(self, label: Label, load_ratio: float, part: Part) -> Case:
        workloads = (*WORKLOADS["chat"], *WORKLOADS["summarise"])
        case = Case(
            **self._common(None),
            label=label,
            fault=HEALTHY,
            severity="moderate",
            onset_s=0.0,
            load_ratio=load_ratio,
            duration_s=60.0,
        )
        return self._in_part(part, (*SINGLE, *SEVERAL), workloads, case)

    def two(self, names: Sequence[str], part: Part) -> Case:
        """Two faults of different layers, if there are any."""
        for _ in range(TRIES):
            first, second = self.chance.choice(names), self.chance.choice(names)
            if first == second or (FAULTS[first].layer == FAULTS[second].layer and self.chance.random() < 3 / 4):
                continue
            try:
                return self.fault(first + PLUS + second, self.chance.choice(SEVERITIES), part)
            except UsageError:  # both change the same parameter
                continue
        return self.fault(names[0], "moderate", part)

    def look_alikes(self, names: Sequence[str], part: Part, pair: int) -> list[Case]:
        """Two runs that differ in their fault alone, and in nothing that telemetry of the healthy service shows."""
        for _ in range(TRIES):
            fault = FAULTS[self.chance.choice(names)]
            others = [name for name in fault.look_alikes if name in names]
            if not others or fault.base != FAULTS[other := self.chance.choice(others)].base:
                continue
            first = msgspec.structs.replace(
                self.fault(fault.name, "moderate", part, ()),
                onset_s=0.0,
                duration_s=max(fault.duration_s, FAULTS[other].duration_s),
            )
            return [
                msgspec.structs.replace(first, pair=pair),
                msgspec.structs.replace(first, pair=pair, fault=other),
            ]
        return []

    def _common(self, degrade: tuple[str, ...] | None) -> dict[str, Any]:
        if degrade is None:
            degrade = TIERS[self._tier % len(TIERS)]
            self._tier += 1
        return {
            "id": "",
            "gpu": "",
            "model": "",
            "workload": "",
            "dialect": self.chance.choice(DIALECTS),
            "degrade": degrade,
            "seed": self.chance.randrange(1, SEED_MAX),
        }

    def _in_part(self, part: Part, services: Sequence[tuple[str, str]], workloads: Sequence[str], case: Case) -> Case:
        """The case in a setting of this part; in any setting where the part has none."""
        found = case
        for _ in range(TRIES):
            gpu, model = self.chance.choice(services)
            found = msgspec.structs.replace(case, gpu=gpu, model=model, workload=self.chance.choice(workloads))
            if self._held.part(found.setting()) == part:
                break
        return found


def _kinds(names: Sequence[str], chance: random.Random) -> list[list[str]]:
    """The faults by what is peculiar to their runs, in an order of chance: healthy runs have it, too, or it would give
    the fault away."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        fault = FAULTS[name]
        kinds.setdefault((fault.workload, _services([fault]), fault.duration_s), []).append(name)
    found = list(kinds.values())
    chance.shuffle(found)
    return found


def _services(faults: Sequence[Fault]) -> tuple[tuple[str, str], ...]:
    base = {key for fault in faults for key in fault.base}
    if "expert_parallel" in base:
        return EXPERTS
    links = {GPUS[str(fault.base["gpu"])].peer_link for fault in faults if "tensor_parallel" in fault.base}
    if links == {"pcie"}:  # a fault of PCIe does nothing where GPUs have links of their own, and the other way round
        return OVER_PCIE
    if any("accelerator.link_ratio" in fault.knobs for fault in faults):
        return tuple((gpu, model) for gpu, model in SEVERAL if GPUS[gpu].peer_link != "pcie")
    return SEVERAL if "tensor_parallel" in base else (*SINGLE, *SINGLE, *SEVERAL)
