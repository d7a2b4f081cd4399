"""Which part of the data set a run is in: fixed by what is served on what and under which workload, never by the run.

A diagnosis that was tuned on one part meets GPUs, models and workloads in the other that it has never seen. One of each
is held out: everything with it is for testing.
"""

import random
from typing import Literal, NamedTuple

import msgspec

Part = Literal["tuning", "test"]
PARTS: tuple[Part, ...] = ("tuning", "test")

GPUS = ("H200", "L40S", "910B2")
MODELS = ("qwen2.5-7b", "qwen3-32b")
WORKLOADS = ("assistant", "rag")
"""From which the held-out one is drawn; what is not here is needed in both parts."""


class Setting(NamedTuple):
    gpu: str
    model: str
    workload: str


class HeldOut(msgspec.Struct, frozen=True):
    gpu: str
    model: str
    workload: str

    def part(self, setting: Setting) -> Part:
        held = setting.gpu == self.gpu or setting.model == self.model or setting.workload == self.workload
        return "test" if held else "tuning"


def held_out(seed: int) -> HeldOut:
    chance = random.Random(f"split {seed}")
    return HeldOut(chance.choice(GPUS), chance.choice(MODELS), chance.choice(WORKLOADS))
