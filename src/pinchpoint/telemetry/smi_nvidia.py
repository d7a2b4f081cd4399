"""What `nvidia-smi` prints, as readings: `-q -x` (XML), `-q` (text), `--query-gpu=... --format=csv`, the plain table.

XML and text say the same under different names, and both were renamed over the years; ROWS has all the names. A file
that holds several text logs, as a capture of a session does, is read for its last one.

The surprising thing: the index of a GPU stands in none of the long forms. Devices are listed in the order of the
index, which is the order of the PCI bus.
"""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pinchpoint.errors import UsageError
from pinchpoint.telemetry.accelerator import CLOCK_EVENTS, bus_id, clock_events, device_labels, info
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.smi_values import quantity, words

KIND = "nvidia"
MAX_DEVICES = 64
MAX_PROCESSES = 64
MAX_DEPTH = 4
"""Of paths in the XML; the log has no deeper ones that are read."""
LISTS = ("processes", "mig_devices", "supported_clocks", "accounted_processes")
LOG_HEAD = "==============NVSMI LOG=============="


class _Row(NamedTuple):
    """Where a series stands. `|` parts names of different versions, the first that has a value counts; `+` adds up."""

    series: str
    xml: str
    text: str
    csv: str = ""
    labels: tuple[tuple[str, str], ...] = ()


# fmt: off
ROWS = (
    _Row("gpu.util_ratio", "utilization/gpu_util", "Utilization/GPU|Utilization/Gpu", "utilization.gpu"),
    _Row("gpu.memory_util_ratio", "utilization/memory_util", "Utilization/Memory", "utilization.memory"),
    _Row("gpu.memory_used_bytes", "fb_memory_usage/used", "FB Memory Usage/Used", "memory.used"),
    _Row("gpu.memory_total_bytes", "fb_memory_usage/total", "FB Memory Usage/Total", "memory.total"),
    _Row("gpu.power_watts",
         "gpu_power_readings/average_power_draw|gpu_power_readings/power_draw|gpu_power_readings/instant_power_draw"
         "|power_readings/power_draw",
         "GPU Power Readings/Average Power Draw|GPU Power Readings/Power Draw"
         "|GPU Power Readings/Instantaneous Power Draw|Power Readings/Power Draw",
         "power.draw.average|power.draw|power.draw.instant"),
    _Row("gpu.power_limit_watts",
         "gpu_power_readings/current_power_limit|power_readings/enforced_power_limit|power_readings/power_limit",
         "GPU Power Readings/Current Power Limit|Power Readings/Enforced Power Limit|Power Readings/Power Limit",
         "enforced.power.limit|power.limit"),
    _Row("gpu.sm_clock_hz", "clocks/sm_clock", "Clocks/SM", "clocks.current.sm|clocks.sm"),
    _Row("gpu.sm_clock_max_hz", "max_clocks/sm_clock", "Max Clocks/SM", "clocks.max.sm"),
    _Row("gpu.memory_clock_hz", "clocks/mem_clock", "Clocks/Memory", "clocks.current.memory|clocks.mem"),
    _Row("gpu.memory_clock_max_hz", "max_clocks/mem_clock", "Max Clocks/Memory", "clocks.max.memory|clocks.max.mem"),
    _Row("gpu.temperature_celsius", "temperature/gpu_temp", "Temperature/GPU Current Temp", "temperature.gpu"),
    _Row("gpu.memory_temperature_celsius", "temperature/memory_temp", "Temperature/Memory Current Temp",
         "temperature.memory"),
    _Row("gpu.power_violation_s_total",
         "clocks_event_reasons_counters/clocks_event_reasons_counters_sw_power_cap",
         "Clocks Event Reasons Counters/SW Power Capping", "clocks_event_reasons_counters.sw_power_cap"),
    _Row("gpu.thermal_violation_s_total",
         "clocks_event_reasons_counters/clocks_event_reasons_counters_sw_therm_slowdown"
         "+clocks_event_reasons_counters/clocks_event_reasons_counters_hw_therm_slowdown",
         "Clocks Event Reasons Counters/SW Thermal Slowdown+Clocks Event Reasons Counters/HW Thermal Slowdown",
         "clocks_event_reasons_counters.sw_thermal_slowdown+clocks_event_reasons_counters.hw_thermal_slowdown"),
    _Row("gpu.pcie_tx_bytes_per_s", "pci/tx_util", "PCI/Tx Throughput"),
    _Row("gpu.pcie_rx_bytes_per_s", "pci/rx_util", "PCI/Rx Throughput"),
    _Row("gpu.pcie_replay_total", "pci/replay_counter", "PCI/Replays Since Reset"),
    _Row("gpu.pcie_link_generation", "pci/pci_gpu_link_info/pcie_gen/current_link_gen",
         "PCI/GPU Link Info/PCIe Generation/Current", "pcie.link.gen.current|pcie.link.gen.gpucurrent"),
    _Row("gpu.pcie_link_generation_max", "pci/pci_gpu_link_info/pcie_gen/max_link_gen",
         "PCI/GPU Link Info/PCIe Generation/Max", "pcie.link.gen.max"),
    _Row("gpu.pcie_link_width", "pci/pci_gpu_link_info/link_widths/current_link_width",
         "PCI/GPU Link Info/Link Width/Current", "pcie.link.width.current"),
    _Row("gpu.pcie_link_width_max", "pci/pci_gpu_link_info/link_widths/max_link_width",
         "PCI/GPU Link Info/Link Width/Max", "pcie.link.width.max"),
    _Row("gpu.ecc_corrected_total",
         "ecc_errors/volatile/sram_correctable+ecc_errors/volatile/dram_correctable"
         "|ecc_errors/volatile/single_bit/total",
         "ECC Errors/Volatile/SRAM Correctable+ECC Errors/Volatile/DRAM Correctable"
         "|ECC Errors/Volatile/Single Bit/Total",
         "ecc.errors.corrected.volatile.total"),
    _Row("gpu.ecc_uncorrected_total",
         "ecc_errors/volatile/sram_uncorrectable+ecc_errors/volatile/sram_uncorrectable_parity"
         "+ecc_errors/volatile/sram_uncorrectable_secded+ecc_errors/volatile/dram_uncorrectable"
         "|ecc_errors/volatile/double_bit/total",
         "ECC Errors/Volatile/SRAM Uncorrectable+ECC Errors/Volatile/SRAM Uncorrectable Parity"
         "+ECC Errors/Volatile/SRAM Uncorrectable SEC-DED+ECC Errors/Volatile/DRAM Uncorrectable"
         "|ECC Errors/Volatile/Double Bit/Total",
         "ecc.errors.uncorrected.volatile.total"),
    _Row("gpu.remapped_rows_corrected", "remapped_rows/remapped_row_corr", "Remapped Rows/Correctable Error",
         "remapped_rows.correctable"),
    _Row("gpu.remapped_rows_uncorrected", "remapped_rows/remapped_row_unc", "Remapped Rows/Uncorrectable Error",
         "remapped_rows.uncorrectable"),
    _Row("gpu.row_remap_failure", "remapped_rows/remapped_row_failure", "Remapped Rows/Remapping Failure Occurred",
         "remapped_rows.failure"),
    _Row("gpu.retired_pages", "retired_pages/multiple_single_bit_retirement/retired_count",
         "Retired Pages/Single Bit ECC", "retired_pages.single_bit_ecc.count", (("cause", "single_bit"),)),
    _Row("gpu.retired_pages", "retired_pages/double_bit_retirement/retired_count", "Retired Pages/Double Bit ECC",
         "retired_pages.double_bit.count", (("cause", "double_bit"),)),
)

TEXT_EVENTS = {
    "Idle": "gpu_idle", "Applications Clocks Setting": "applications_clocks_setting",
    "SW Power Cap": "sw_power_cap", "HW Slowdown": "hw_slowdown", "Sync Boost": "sync_boost",
    "SW Thermal Slowdown": "sw_thermal_slowdown", "HW Slowdown/HW Thermal Slowdown": "hw_thermal_slowdown",
    "HW Slowdown/HW Power Brake Slowdown": "hw_power_brake_slowdown",
    "Display Clock Setting": "display_clocks_setting",
}
# fmt: on

FACTS = {
    "name": "product_name|Product Name|name",
    "uuid": "uuid|GPU UUID",
    "persistence": "persistence_mode|Persistence Mode",
    "compute_mode": "compute_mode|Compute Mode",
    "mig": "mig_mode/current_mig|MIG Mode/Current|mig.mode.current",
}

Values = dict[str, str]
"""Path to text of one device, in the spelling of one of the forms."""


def read_xml(text: str) -> list[Reading]:
    """`nvidia-smi -q -x`. Raises UsageError when it is cut off or no such log."""
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise UsageError(
            f"nvidia-smi's XML breaks off or is damaged ({error}); save `nvidia-smi -q -x` again"
        ) from error
    driver = words(root.findtext("driver_version"))
    readings: list[Reading] = []
    for index, gpu in enumerate(root.findall("gpu")[:MAX_DEVICES]):
        values = dict(_leaves(gpu, ""))
        readings.append(_info(index, values, driver, gpu.get("id")))
        readings += _rows(index, values, lambda row: row.xml)
        bits = 0
        told = False
        for bit, reason in CLOCK_EVENTS:
            for form in ("clocks_event_reason", "clocks_throttle_reason"):
                active = quantity(values.get(f"{form}s/{form}_{reason}"))
                told = told or active is not None
                bits |= bit if active else 0
        readings += clock_events(KIND, index, bits) if told else []
        processes = gpu.find("processes")
        if processes is not None and words(processes.text) is None and (processes.text or "").strip() != "N/A":
            readings += _processes(
                index,
                (
                    (process.findtext("type") or "", process.findtext("pid") or "", process.findtext("used_memory"))
                    for process in processes.findall("process_info")
                ),
            )
        if (words(values.get("mig_mode/current_mig")) or "").lower() == "enabled":
            count = len(gpu.findall("mig_devices/mig_device"))
            readings.append(own("gpu.mig_devices", float(count), device_labels(KIND, index)))
    return readings


def read_text(text: str) -> list[Reading]:
    """`nvidia-smi -q`; the last log in the text. Raises UsageError when there is none."""
    _, head, log = text.rpartition(LOG_HEAD)
    if not head:
        raise UsageError("this is no output of `nvidia-smi -q`: its first line is missing; save it again")
    driver: str | None = None
    devices: list[tuple[str, list[tuple[str, str]]]] = []
    stack: list[tuple[int, str]] = []
    for line in log.splitlines():
        if line.startswith("####"):  # the next part of a capture
            break
        key, colon, value = (part.strip() for part in line.partition(" : "))
        if not key:
            continue
        depth = len(line) - len(line.lstrip())
        if depth == 0:
            if not colon and line.startswith("GPU "):
                devices.append((line.removeprefix("GPU ").strip(), []))
                stack = []
            elif key == "Driver Version":
                driver = words(value)
            continue
        while stack and stack[-1][0] >= depth:
            stack.pop()
        path = "/".join([name for _, name in stack] + [key])
        if devices and colon:
            devices[-1][1].append((path, value))
        stack.append((depth, key))
    readings: list[Reading] = []
    for index, (address, lines) in enumerate(devices[:MAX_DEVICES]):
        values: Values = {}
        for path, value in lines:
            values.setdefault(path, value)
        readings.append(_info(index, values, driver, address))
        readings += _rows(index, values, lambda row: row.text)
        readings += _text_events(index, values)
        readings += _text_processes(index, lines)
    return readings


def read_csv(text: str) -> list[Reading]:
    """`nvidia-smi --query-gpu=... --format=csv`, with or without units; the header must be there."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError("the CSV of nvidia-smi is empty; save it again")
    units: dict[str, str] = {}
    names: list[str] = []
    for column in lines[0].split(","):
        name, _, unit = column.strip().partition(" [")
        names.append(name)
        units[name] = unit.rstrip("]")
    readings: list[Reading] = []
    for place, line in enumerate(lines[1 : MAX_DEVICES + 1]):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(names):
            continue
        values = dict(zip(names, cells, strict=True))
        index = values.get("index", "")
        index = int(index) if index.isdecimal() else place
        readings.append(_info(index, values, words(values.get("driver_version")), values.get("pci.bus_id")))
        readings += _rows(index, values, lambda row: row.csv, units)
        mask = values.get("clocks_event_reasons.active", values.get("clocks_throttle_reasons.active", ""))
        if re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", mask):
            readings += clock_events(KIND, index, int(mask, 16))
    return readings


_TABLE_HEAD = re.compile(r"\|\s+(\d+)\s+(.+?)\s+(?:On|Off|N/A)\s*\|\s*([0-9A-F:.]+)\s+(?:On|Off|N/A)\s*\|\s*(\S+)\s*\|")
_TABLE_BODY = re.compile(
    r"\|\s*\S+\s+(\S+)\s+\S+\s+(\S+)\s*/\s*(\S+)\s*\|\s*(\S+)\s*/\s*(\S+)\s*\|\s*(\S+)\s+\S+.*\|"
)  # fmt: skip


def read_table(text: str) -> list[Reading]:
    """Plain `nvidia-smi`: name, temperature, power and its limit, memory, utilisation."""
    driver = re.search(r"Driver Version:\s*([0-9.]+)", text)
    readings: list[Reading] = []
    lines = text.splitlines()
    for head_line, body_line in itertools.pairwise(lines):
        head, body = _TABLE_HEAD.match(head_line), _TABLE_BODY.match(body_line)
        if head is None or body is None:
            continue
        index, name, address, ecc = head.groups()
        labels = device_labels(KIND, index)
        facts = {"name": words(name), "bus_id": bus_id(address), "driver": driver.group(1) if driver else None}
        readings.append(info(KIND, index, facts))
        temperature, power, limit, used, total, usage = body.groups()
        for series, cell in (
            ("gpu.temperature_celsius", temperature),
            ("gpu.power_watts", power),
            ("gpu.power_limit_watts", limit),
            ("gpu.memory_used_bytes", used),
            ("gpu.memory_total_bytes", total),
            ("gpu.util_ratio", usage),
            ("gpu.ecc_uncorrected_total", ecc),
        ):
            value = quantity(cell)
            if value is not None:
                readings.append(own(series, value, labels))
    return readings


def _leaves(element: ElementTree.Element, path: str) -> Iterable[tuple[str, str]]:
    """Path and text of what has no children, as deep as the log goes. Lists (processes, MIG) are read elsewhere."""
    for child in element:
        here = f"{path}/{child.tag}" if path else child.tag
        if len(child) == 0:
            yield here, (child.text or "").strip()
        elif child.tag not in LISTS and here.count("/") < MAX_DEPTH:
            yield from _leaves(child, here)


def _rows(
    index: int, values: Values, spelling: Callable[[_Row], str], units: dict[str, str] | None = None
) -> list[Reading]:
    readings: list[Reading] = []
    for row in ROWS:
        value = _value(values, spelling(row), units or {})
        if value is not None:
            readings.append(own(row.series, value, device_labels(KIND, index, **dict(row.labels))))
    return readings


def _value(values: Values, names: str, units: dict[str, str]) -> float | None:
    for alternative in names.split("|"):
        parts = [quantity(values.get(name), units.get(name, "")) for name in alternative.split("+")]
        known = [part for part in parts if part is not None]
        if known:
            return sum(known)
    return None


def _info(index: int, values: Values, driver: str | None, address: str | None) -> Reading:
    facts: dict[str, str | None] = {"driver": driver, "bus_id": bus_id(address or "")}
    for fact, names in FACTS.items():
        known = next((text for name in names.split("|") if (text := words(values.get(name)))), None)
        facts[fact] = {"enabled": "on", "disabled": "off"}.get((known or "").lower(), known)
    return info(KIND, index, facts)


def _text_events(index: int, values: Values) -> list[Reading]:
    bits = 0
    told = False
    for head in ("Clocks Event Reasons", "Clocks Throttle Reasons"):
        for name, reason in TEXT_EVENTS.items():
            active = quantity(values.get(f"{head}/{name}"))
            told = told or active is not None
            bits |= next(bit for bit, known in CLOCK_EVENTS if known == reason) if active else 0
    return clock_events(KIND, index, bits) if told else []


def _text_processes(index: int, lines: list[tuple[str, str]]) -> list[Reading]:
    found: list[list[str]] = []
    said = None
    for path, value in lines:
        if path == "Processes":
            said = value
        elif path.endswith("/Process ID"):
            found.append(["", value, ""])
        elif found and path.endswith("Process ID/Type"):
            found[-1][0] = value
        elif found and path.endswith("Process ID/Used GPU Memory"):
            found[-1][2] = value
    if not found and said != "None":  # N/A, or not in this log: unknown
        return []
    return _processes(index, ((kind, pid, memory) for kind, pid, memory in found))


def _processes(index: int, processes: Iterable[tuple[str, str, str | None]]) -> list[Reading]:
    """Those that compute (type C or C+G); the desktop's are none of the service's."""
    computing = [(pid, memory) for kind, pid, memory in processes if "C" in kind]
    readings = [own("gpu.processes", float(len(computing)), device_labels(KIND, index))]
    for pid, memory in computing[:MAX_PROCESSES]:
        used = quantity(memory)
        if used is not None and pid.strip().isdecimal():
            readings.append(own("gpu.process_memory_bytes", used, device_labels(KIND, index, pid=pid.strip())))
    return readings
