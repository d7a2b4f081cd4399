"""What Intel Gaudi's `hl-smi` (CSV) and Google's `tpu-info` print, as readings.

Both as documented and as in public examples; not read on a device of our own.
"""

import re

from pinchpoint.errors import UsageError
from pinchpoint.telemetry.accelerator import bus_id, device_labels, info
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.smi_values import quantity, words

MAX_DEVICES = 64
GAUDI, TPU = "gaudi", "tpu"

GAUDI_COLUMNS = {
    "utilization.aip": "gpu.util_ratio",
    "memory.used": "gpu.memory_used_bytes",
    "memory.total": "gpu.memory_total_bytes",
    "power.draw": "gpu.power_watts",
    "power.max": "gpu.power_limit_watts",
    "temperature.aip": "gpu.temperature_celsius",
    "clocks.current.soc": "gpu.sm_clock_hz",
    "ecc.errors.uncorrected.volatile.total": "gpu.ecc_uncorrected_total",
    "ecc.errors.corrected.volatile.total": "gpu.ecc_corrected_total",
}
_USAGE = re.compile(r"^\W*(\S+)\W+([\d.]+) GiB / ([\d.]+) GiB\W+([\d.]+)\s*%", re.MULTILINE)
_CORE = re.compile(r"^\W*(\d+)\W+([\d.]+)\s*%", re.MULTILINE)
_CHIP = re.compile(r"^\W*(/dev/\S+)\W+(TPU \S+)", re.MULTILINE)


def read_gaudi(text: str) -> list[Reading]:
    """`hl-smi --query-aip=... --format=csv`, with or without units; the header must be there."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or "." not in lines[0]:
        raise UsageError("there is no header in this output; save `hl-smi --query-aip=... --format=csv` again")
    columns: list[tuple[str, str]] = []
    for column in lines[0].split(","):
        name, _, unit = column.strip().partition(" [")
        columns.append((name, unit.rstrip("]")))
    readings: list[Reading] = []
    for place, line in enumerate(lines[1 : MAX_DEVICES + 1]):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(columns):
            continue
        values = {name: (cell, unit) for (name, unit), cell in zip(columns, cells, strict=True)}
        said = values.get("index", ("", ""))[0]
        index = said if said.isdecimal() else str(place)
        facts = {
            "name": words(values.get("name", ("", ""))[0]),
            "uuid": words(values.get("uuid", ("", ""))[0]),
            "bus_id": bus_id(values.get("bus_id", ("", ""))[0]),
            "driver": words(values.get("driver_version", ("", ""))[0]),
        }
        readings.append(info(GAUDI, index, facts))
        for name, series in GAUDI_COLUMNS.items():
            cell, unit = values.get(name, ("", ""))
            value = quantity(cell, unit)
            if value is not None:
                readings.append(own(series, value, device_labels(GAUDI, index)))
    return readings


def read_tpu(text: str) -> list[Reading]:
    """`tpu-info`: memory and duty cycle of each chip, and the use of the tensor cores where it is told.

    Chips are numbered in the order of the listing: the ids of the runtime table are not those of the chips.
    """
    readings: list[Reading] = []
    names = [match.group(2) for match in _CHIP.finditer(text)]
    _, _, usage = text.partition("TPU Runtime Utilization")
    usage, _, cores = usage.partition("TensorCore Utilization")
    found = [match.groups() for match in _USAGE.finditer(usage)]
    cores, _, _ = cores.partition("Latency")
    active = [match.group(2) for match in _CORE.finditer(cores)]
    for place, (_, used, total, duty) in enumerate(found[:MAX_DEVICES]):
        labels = device_labels(TPU, place)
        readings.append(info(TPU, place, {"name": names[place] if place < len(names) else None}))
        for series, value in (
            ("gpu.memory_used_bytes", quantity(used, "GiB")),
            ("gpu.memory_total_bytes", quantity(total, "GiB")),
            ("gpu.util_ratio", quantity(duty, "%")),
            ("gpu.tensor_active_ratio", quantity(active[place], "%") if len(active) == len(found) else None),
        ):
            if value is not None:
                readings.append(own(series, value, labels))
    return readings
