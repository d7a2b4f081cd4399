"""Pressure stall information: time in which tasks waited for a resource (Documentation/accounting/psi.rst)."""

from pathlib import Path

from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.kept_file import KeptFile

US_PER_S = 1e6
TOLD = {"cpu": ("some",), "memory": ("some", "full"), "io": ("some", "full"), "irq": ("full",)}
"""By resource. "full" of the CPU means nothing for a whole machine, "some" of interrupts does not exist."""


class Pressure:
    def __init__(self, proc: Path) -> None:
        self._files = {resource: KeptFile(proc / "pressure" / resource) for resource in TOLD}

    def read(self, now_ns: int) -> list[Reading]:
        readings: list[Reading] = []
        for resource, kinds in TOLD.items():
            stalled_s = parse_pressure(self._files[resource].read())
            readings += [
                own(f"host.psi_{resource}_{kind}_s_total", stalled_s[kind]) for kind in kinds if kind in stalled_s
            ]
        return readings


def parse_pressure(text: bytes) -> dict[str, float]:
    """The `total=` of each line of a /proc/pressure file, in seconds, by "some" and "full"."""
    stalled_s: dict[str, float] = {}
    for line in text.decode("ascii", "replace").splitlines():
        kind, _, rest = line.partition(" ")
        total = rest.rpartition("total=")[2]
        if total.isdigit():
            stalled_s[kind] = int(total) / US_PER_S
    return stalled_s
