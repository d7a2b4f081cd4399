"""What this host is made of, before anything is measured: processors, NUMA nodes, memory, accelerators.

For the facts about the host in a run's manifest. Accelerators are known from up to three sides, put together by their
PCI address: NVML (names, memory), a vendor's tool (likewise), and the kernel's list of PCI devices, which needs neither
driver nor rights and so says of a GPU that is there but cannot be read that it is there.

The surprising thing: inside a container the kernel's list shows devices that the container may not use. `source` says
which side saw a device; one that only `sysfs` saw may be somebody else's.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from pinchpoint.catalog import parse_labels
from pinchpoint.telemetry.accelerator import PCI_VENDORS, Accelerator, bus_id
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.nvml import find_nvml

KIB_BYTES = 1 << 10
MAX_DEVICES = 256
DISPLAY_CLASS, ACCELERATOR_CLASS = "03", "12"
"""Base classes of PCI devices (PCI code and ID assignment): display controllers, processing accelerators."""
TPU_CLASSES = ("08", "ff")
"""What Google's devices register as; without a driver's word nothing better is known."""


class NumaNode(msgspec.Struct, frozen=True):
    """One node: its CPUs as the kernel lists them (`0-15,64-79`), and its memory."""

    node: int
    cpus: str
    memory_bytes: int | None = None


class Inventory(msgspec.Struct, frozen=True, omit_defaults=True):
    """The host. None and empty: not known, or not there."""

    cpu_model: str | None = None
    cpus: int | None = None
    """Logical processors that are online."""
    sockets: int | None = None
    memory_bytes: int | None = None
    kernel: str | None = None
    numa: tuple[NumaNode, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()


def take_inventory(
    known: Iterable[Accelerator] = (), proc: Path = Path("/proc"), sys: Path = Path("/sys")
) -> Inventory:
    """known: what NVML (`Nvml.accelerators`) or a tool (`from_readings`) says; the kernel's list fills in the rest."""
    model, sockets, cpus = _processors(_text(proc / "cpuinfo"))
    return Inventory(
        cpu_model=model,
        cpus=cpus or os.cpu_count(),
        sockets=sockets,
        memory_bytes=_memory_bytes(_text(proc / "meminfo"), "MemTotal:"),
        kernel=_text(proc / "sys/kernel/osrelease").strip() or None,
        numa=tuple(_numa_nodes(sys / "devices/system/node")),
        accelerators=merged(known, pci_accelerators(sys / "bus/pci/devices")),
    )


def describe_host() -> Inventory:
    """This host, with what NVML says of its GPUs where it can be had. Starts no process; NVML may take a second."""
    nvml = find_nvml()
    if nvml is None:
        return take_inventory()
    try:
        return take_inventory(nvml.accelerators())
    finally:
        nvml.close()


def from_readings(readings: Iterable[Reading], source: str) -> list[Accelerator]:
    """Devices that a tool's readings speak of. source: the tool's name. Chips of one card come after it."""
    found: dict[tuple[str, str], Accelerator] = {}
    for reading in readings:
        if reading.series not in ("gpu.info", "gpu.memory_total_bytes"):
            continue
        labels = parse_labels(reading.labels)
        key = labels.get("kind", ""), labels.get("gpu", "")
        device = found.get(key) or Accelerator(key[0], len(found), source=source)
        if reading.series == "gpu.info":
            device = msgspec.structs.replace(
                device,
                name=labels.get("name"),
                uuid=labels.get("uuid"),
                bus_id=labels.get("bus_id"),
                driver=labels.get("driver"),
                mig={"on": True, "off": False}.get(labels.get("mig", "")),
            )
        else:
            device = msgspec.structs.replace(device, memory_bytes=int(reading.value))
        if key[1].isdecimal():
            device = msgspec.structs.replace(device, index=int(key[1]))
        found[key] = device
    return list(found.values())


def pci_accelerators(devices: Path) -> list[Accelerator]:
    """Display controllers and accelerators of known makers, by address; none when there is no such directory."""
    found: list[Accelerator] = []
    count: dict[str, int] = {}
    try:
        addresses = sorted(path.name for path in devices.iterdir())
    except OSError:
        return []
    for address in addresses:
        vendor = _text(devices / address / "vendor").strip().removeprefix("0x").lower()
        base_class = _text(devices / address / "class").strip().removeprefix("0x")[:2].lower()
        kind = PCI_VENDORS.get(vendor)
        classes = (DISPLAY_CLASS, ACCELERATOR_CLASS, *(TPU_CLASSES if kind == "tpu" else ()))
        if kind is None or base_class not in classes or len(found) >= MAX_DEVICES:
            continue
        device_id = _text(devices / address / "device").strip().removeprefix("0x").lower()
        index = count.get(kind, 0)
        count[kind] = index + 1
        found.append(
            Accelerator(
                kind,
                index,
                name=f"{vendor}:{device_id}" if device_id else None,
                bus_id=bus_id(address),
                numa_node=_node(devices / address),
                source="sysfs",
            )
        )
    return found


def merged(known: Iterable[Accelerator], seen: Iterable[Accelerator]) -> tuple[Accelerator, ...]:
    """Each device once. What a driver says goes before what the PCI list says, which adds the NUMA node."""
    told = list(known)
    by_address = {device.bus_id: device for device in seen if device.bus_id is not None}
    out: list[Accelerator] = []
    for device in told:
        twin = by_address.pop(device.bus_id, None) if device.bus_id is not None else None
        if twin is not None and device.numa_node is None:
            device = msgspec.structs.replace(device, numa_node=twin.numa_node)
        out.append(device)
    used = {(device.kind, device.index) for device in out}
    addresses = {device.bus_id for device in out}
    for device in by_address.values():
        if device.bus_id in addresses:  # a second chip at the address of one that was told
            continue
        index = device.index
        while (device.kind, index) in used:
            index += 1
        used.add((device.kind, index))
        out.append(msgspec.structs.replace(device, index=index))
    return tuple(sorted(out, key=lambda device: (device.kind, device.index)))


def _processors(text: str) -> tuple[str | None, int | None, int | None]:
    """Model, sockets and logical processors of /proc/cpuinfo. ARM kernels give no model and no sockets."""
    model: str | None = None
    packages: set[str] = set()
    count = 0
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            count += 1
        elif key == "model name" and model is None:
            model = value or None
        elif key == "physical id":
            packages.add(value)
    return model, len(packages) or None, count or None


def _numa_nodes(directory: Path) -> list[NumaNode]:
    nodes: list[NumaNode] = []
    try:
        names = [path.name for path in directory.iterdir() if path.name.startswith("node")]
    except OSError:
        return []
    for number in sorted(int(name[4:]) for name in names if name[4:].isdecimal()):
        place = directory / f"node{number}"
        total = _memory_bytes(_text(place / "meminfo"), "MemTotal:")
        nodes.append(NumaNode(number, _text(place / "cpulist").strip(), total))
    return nodes


def _memory_bytes(text: str, name: str) -> int | None:
    """`MemTotal:  1024 kB`, also with `Node 0` before it."""
    for line in text.splitlines():
        before, found, after = line.partition(name)
        words = after.split()
        if found and (not before or before.startswith("Node ")) and words and words[0].isdecimal():
            return int(words[0]) * KIB_BYTES
    return None


def _node(device: Path) -> int | None:
    """-1 is the kernel's word for unknown."""
    text = _text(device / "numa_node").strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """Empty when there is no such file or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
