"""What every way of reading accelerators has in common: labels, names of clock events, who made which PCI device.

The surprising thing: a Gaudi, a TPU or an NPU is a `gpu` in the names of series, and its maker stands in the label
`kind`. One name per quantity is worth more than a right name per maker.
"""

import re
from collections.abc import Mapping

import msgspec

from pinchpoint.catalog import format_labels
from pinchpoint.telemetry.config import Reading, own

MIB_BYTES = float(1 << 20)
KIB_BYTES = float(1 << 10)
HZ_PER_MHZ = 1e6
PERCENT = 0.01

CLOCK_EVENTS = (
    (0x001, "gpu_idle"),
    (0x002, "applications_clocks_setting"),
    (0x004, "sw_power_cap"),
    (0x008, "hw_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "sw_thermal_slowdown"),
    (0x040, "hw_thermal_slowdown"),
    (0x080, "hw_power_brake_slowdown"),
    (0x100, "display_clocks_setting"),
)
"""NVML's bits of clock event reasons (nvml.h, nvmlClocksEventReasons), in the names that nvidia-smi prints."""

PCI_VENDORS = {"10de": "nvidia", "1002": "amd", "19e5": "ascend", "1da3": "gaudi", "1ae0": "tpu"}
"""Makers by PCI vendor id (pci.ids): NVIDIA, AMD/ATI, Huawei, Habana Labs, Google."""


class Accelerator(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device as it is known before anything is measured. None: not known."""

    kind: str
    """nvidia, amd, ascend, gaudi or tpu."""
    index: int
    """As the maker's tool counts; the label `gpu` of its series."""
    name: str | None = None
    uuid: str | None = None
    bus_id: str | None = None
    """domain:bus:device.function, lower case, four digits of domain."""
    numa_node: int | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    mig: bool | None = None
    source: str = ""
    """Who said so: nvml, the name of a tool, or sysfs."""


def device_labels(kind: str, index: int | str, **more: str) -> str:
    """The labels of one device's readings, formatted."""
    return format_labels({"gpu": str(index), "kind": kind, **more})


def info(kind: str, index: int | str, facts: Mapping[str, str | None]) -> Reading:
    """`gpu.info` with those facts that are known as labels."""
    return own("gpu.info", 1.0, device_labels(kind, index, **{key: value for key, value in facts.items() if value}))


def clock_events(kind: str, index: int | str, bits: int) -> list[Reading]:
    """The mask, and one reading of 0 or 1 for each reason."""
    readings = [own("gpu.throttle_reasons", float(bits), device_labels(kind, index))]
    for bit, reason in CLOCK_EVENTS:
        label = device_labels(kind, index, reason=reason)
        readings.append(own("gpu.clock_event_ratio", float(bool(bits & bit)), label))
    return readings


_BUS_ID = re.compile(r"(?:([0-9a-f]+):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.IGNORECASE)


def bus_id(text: str) -> str | None:
    """A PCI address in one spelling: NVML writes eight digits of domain, lspci four or none. None: not an address."""
    match = _BUS_ID.fullmatch(text.strip())
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function}"
