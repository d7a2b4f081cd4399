"""Source `host`: the machine the collector runs on. It is the service's machine only when the target is local.

What the machine does not offer (PSI on old kernels, connection tracking without its module) gives no samples: absence
is not zero. Ratios compare with the reading before, so the first reading has none. Files are kept open and only what
is asked for is parsed; nothing here walks the processes of the machine.
"""

from pathlib import Path
from typing import Protocol

from pinchpoint.clock import monotonic_ns
from pinchpoint.telemetry.cgroups import Cgroups
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.host.cpu import Cpu, cpu_readings
from pinchpoint.telemetry.host.disk import Disks
from pinchpoint.telemetry.host.limits import Limits
from pinchpoint.telemetry.host.memory import Memory
from pinchpoint.telemetry.host.network import Network
from pinchpoint.telemetry.host.pressure import Pressure
from pinchpoint.telemetry.host.sockets import Sockets

__all__ = ["Host", "cpu_readings"]


class _Part(Protocol):
    def read(self, now_ns: int) -> list[Reading]: ...


class Host:
    """proc and sys: where the kernel's file trees are; tests give their own."""

    name = "host"

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._parts: tuple[_Part, ...] = (
            Cpu(proc),
            Pressure(proc),
            Memory(proc),
            Disks(proc, sys),
            Network(proc, sys),
            Sockets(proc),
            Cgroups("host", proc / "self", sys / "fs" / "cgroup"),
            Limits(proc),
        )

    def read(self) -> tuple[int, list[Reading]]:
        readings: list[Reading] = []
        for part in self._parts:
            readings += part.read(monotonic_ns())
        return monotonic_ns(), readings
