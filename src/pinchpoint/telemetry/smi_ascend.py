"""What Ascend's `npu-smi` prints, as readings: `info` (the table), `info watch`, `info -t common|usages|...`.

Read as the documentation and public examples of versions 23 to 26 have it; not on a device of our own.

The use of the AI cores is the series that npu-exporter feeds with the same number, `gpu.sm_active_ratio`. A card with
one chip goes under its NPU number; further chips of a card go under NPU.CHIP, as 3.1.

The surprising thing: `npu-smi info` writes two lines per chip, whose columns have two lines of headings. Which second
number is memory and which HBM stands in the heading alone; a chip with HBM reports no other memory.
"""

import re
from collections.abc import Iterable

from pinchpoint.telemetry.accelerator import bus_id, device_labels, info
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.smi_values import quantity, words

KIND = "ascend"
MAX_DEVICES = 64
MAX_PROCESSES = 64
MIB_BYTES = float(1 << 20)

_PAIR = re.compile(r"(\d+)\s*/\s*(\d+)")
_VERSION = re.compile(r"npu-smi\s+\S+\s+Version:\s*(\S+)")

KEYS = {
    "Aicore Usage Rate(%)": ("gpu.sm_active_ratio", "%"),
    "Aicube Usage Rate(%)": ("gpu.tensor_active_ratio", "%"),
    "Aivector Usage Rate(%)": ("gpu.vector_active_ratio", "%"),
    "NPU Utilization(%)": ("gpu.util_ratio", "%"),
    "HBM Bandwidth Usage Rate(%)": ("gpu.dram_active_ratio", "%"),
    "HBM Usage Rate(%)": ("gpu.memory_used_ratio", "%"),
    "HBM Capacity(MB)": ("gpu.memory_total_bytes", "MB"),
    "HBM Temperature(C)": ("gpu.memory_temperature_celsius", "C"),
    "Aicore curFreq(MHZ)": ("gpu.sm_clock_hz", "MHz"),
    "Aicore Freq(MHZ)": ("gpu.sm_clock_max_hz", "MHz"),
    "Temperature(C)": ("gpu.temperature_celsius", "C"),
    "Temperature (C)": ("gpu.temperature_celsius", "C"),
    "NPU Temperature (C)": ("gpu.temperature_celsius", "C"),
    "NPU Real-time Power(W)": ("gpu.power_watts", "W"),
    "Power Dissipation(W)": ("gpu.power_watts", "W"),
}
"""Of `npu-smi info -t common` and its siblings: one `key : value` a line, chip after chip."""


CONTROLLERS = ("mcu", "3559")
"""Chips of a card that are no NPU: its controller, and the host CPU of some."""


def read_table(text: str) -> list[Reading]:
    """`npu-smi info`: power, temperature, AI cores, memory or HBM, health, processes."""
    version = _VERSION.search(text)
    readings: list[Reading] = []
    with_hbm = "HBM-Usage" in text
    cards: list[str] = []
    processes: dict[str, list[tuple[str, str]]] = {}
    npu: tuple[str, str, str, list[str]] | None = None
    in_processes = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.lstrip().startswith("|") else []
        if len(cells) < 3:
            continue
        if "Process id" in line:
            in_processes = True
        elif in_processes:
            _note_process(cells, processes)
        elif npu is None:
            head = re.fullmatch(r"(\d+)\s+(\S.*)", cells[0])
            if head is not None:
                npu = head.group(1), head.group(2), cells[1], cells[2].split()
        else:
            chip = cells[0].split()
            if chip and chip[0].isdecimal():
                index = npu[0] if chip[0] == "0" else f"{npu[0]}.{chip[0]}"
                cards.append(index)
                readings += _chip(index, npu, cells[1], cells[2], with_hbm, version.group(1) if version else None)
            npu = None
    if in_processes:
        for index in cards[:MAX_DEVICES]:
            readings += _processes(index, processes.get(index, []))
    return readings


def read_watch(text: str) -> list[Reading]:
    """`npu-smi info watch`: one line per chip and moment; the last line of each chip counts."""
    latest: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = line.split()
        if len(cells) >= 9 and cells[0].isdecimal() and cells[1].isdecimal():
            latest[cells[0] if cells[1] == "0" else f"{cells[0]}.{cells[1]}"] = cells
    readings: list[Reading] = []
    for index, cells in list(latest.items())[:MAX_DEVICES]:
        readings.append(info(KIND, index, {}))
        readings += _known(
            index,
            (
                ("gpu.power_watts", quantity(cells[2], "W")),
                ("gpu.temperature_celsius", quantity(cells[3], "C")),
                ("gpu.sm_active_ratio", quantity(cells[4], "%")),
                ("gpu.memory_used_ratio", quantity(cells[7], "%")),
                ("gpu.dram_active_ratio", quantity(cells[8], "%")),
            ),
        )
    return readings


def read_keys(text: str) -> list[Reading]:
    """`npu-smi info -t common|usages|power|temp|memory -i N`. What a card's controller (mcu) says is left out."""
    npu, chip = "0", "0"
    chips: dict[str, dict[str, float]] = {}
    before: bool | None = None
    """Whether values of this card stand before the id of their chip, as `-t power` prints them, or after it."""
    pending: dict[str, float] = {}
    ours = True
    for line in text.splitlines():
        key, colon, value = (part.strip() for part in line.partition(" : "))
        if not colon:
            continue
        if key == "NPU ID" and value.isdecimal():
            _flush(chips, _index(npu, chip), pending)
            npu, chip, before, ours = value, "0", None, True
        elif key == "Chip ID" and value.isdecimal():
            before = bool(before)
            chip, ours = value, True
            _flush(chips, _index(npu, chip), pending)
        elif key == "Chip Name":
            ours = value.lower() not in CONTROLLERS
            if not ours:
                pending.clear()
        elif key in KEYS and (before is None or before or ours):
            before = True if before is None else before
            series, unit = KEYS[key]
            known = quantity(value, unit)
            if known is not None:
                (pending if before else chips.setdefault(_index(npu, chip), {}))[series] = known
    _flush(chips, _index(npu, chip), pending)
    readings: list[Reading] = []
    for index, values in list(chips.items())[:MAX_DEVICES]:
        readings.append(info(KIND, index, {}))
        readings += _known(index, values.items())
        total, share = values.get("gpu.memory_total_bytes"), values.get("gpu.memory_used_ratio")
        if total is not None and share is not None:
            readings.append(own("gpu.memory_used_bytes", total * share, device_labels(KIND, index)))
    return readings


def _flush(chips: dict[str, dict[str, float]], index: str, pending: dict[str, float]) -> None:
    if pending:
        chips.setdefault(index, {}).update(pending)
        pending.clear()


def _index(npu: str, chip: str) -> str:
    return npu if chip == "0" else f"{npu}.{chip}"


def _chip(
    index: str, npu: tuple[str, str, str, list[str]], address: str, use: str, with_hbm: bool, driver: str | None
) -> list[Reading]:
    _, name, health, of_card = npu
    name = name.split()[0]
    pairs = [(float(used), float(total)) for used, total in _PAIR.findall(use)]
    memory = (pairs[1:2] if with_hbm else pairs[:1]) or [None]
    used, total = memory[0] or (None, None)
    cores = use.split()[0] if use.split() else ""
    facts = {"name": name, "bus_id": bus_id(address), "driver": driver}
    known_health = words(health)
    return [
        info(KIND, index, facts),
        *_known(
            index,
            (
                ("gpu.power_watts", quantity(of_card[0], "W") if of_card else None),
                ("gpu.temperature_celsius", quantity(of_card[1], "C") if len(of_card) > 1 else None),
                ("gpu.sm_active_ratio", quantity(cores, "%")),
                ("gpu.memory_used_bytes", None if not total or used is None else used * MIB_BYTES),
                ("gpu.memory_total_bytes", None if not total else total * MIB_BYTES),
                ("gpu.healthy", None if known_health is None else float(known_health.upper() == "OK")),
            ),
        ),
    ]


def _note_process(cells: list[str], processes: dict[str, list[tuple[str, str]]]) -> None:
    where = cells[0].split()
    if len(where) == 2 and where[0].isdecimal() and where[1].isdecimal() and len(cells) >= 4:
        processes.setdefault(_index(where[0], where[1]), []).append((cells[1], cells[3]))


def _processes(index: str, processes: list[tuple[str, str]]) -> list[Reading]:
    readings = [own("gpu.processes", float(len(processes)), device_labels(KIND, index))]
    for pid, memory in processes[:MAX_PROCESSES]:
        used = quantity(memory, "MB")
        if used is not None and pid.isdecimal():
            readings.append(own("gpu.process_memory_bytes", used, device_labels(KIND, index, pid=pid)))
    return readings


def _known(index: str, values: Iterable[tuple[str, float | None]]) -> list[Reading]:
    labels = device_labels(KIND, index)
    return [own(series, value, labels) for series, value in values if value is not None]
