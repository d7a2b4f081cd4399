"""What `rocm-smi --json` and `amd-smi metric --json` print, as readings.

`rocm-smi` was read on captures of an MI100 and an RX 6700 XT; `amd-smi` as its documentation has it, in the two shapes
that its versions print: a list of devices, and the same list under `gpu_data`.

The surprising thing: both print warnings before the document, on the same stream.
"""

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from pinchpoint.errors import UsageError
from pinchpoint.telemetry.accelerator import bus_id, device_labels, info
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.smi_values import quantity, words

KIND = "amd"
MAX_DEVICES = 64

# fmt: off
ROCM_ROWS = (
    ("gpu.util_ratio", "%", ("GPU use (%)",)),
    ("gpu.memory_util_ratio", "%", ("GPU Memory Read/Write Activity (%)", "GPU memory use (%)")),
    ("gpu.power_watts", "W", ("Current Socket Graphics Package Power (W)", "Average Graphics Package Power (W)")),
    ("gpu.power_limit_watts", "W", ("Max Graphics Package Power (W)",)),
    ("gpu.temperature_celsius", "C", ("Temperature (Sensor junction) (C)", "Temperature (Sensor edge) (C)")),
    ("gpu.memory_temperature_celsius", "C", ("Temperature (Sensor memory) (C)",)),
    ("gpu.memory_used_bytes", "B", ("VRAM Total Used Memory (B)",)),
    ("gpu.memory_total_bytes", "B", ("VRAM Total Memory (B)",)),
    ("gpu.sm_clock_hz", "MHz", ("sclk clock speed:",)),
    ("gpu.memory_clock_hz", "MHz", ("mclk clock speed:",)),
    ("gpu.pcie_replay_total", "", ("PCIe Replay Count",)),
    ("gpu.energy_j_total", "uJ", ("Accumulated Energy (uJ)",)),
)
AMD_ROWS = (
    ("gpu.util_ratio", "%", (("usage", "gfx_activity"),)),
    ("gpu.memory_util_ratio", "%", (("usage", "umc_activity"), ("usage", "mem_activity"))),
    ("gpu.power_watts", "W", (("power", "socket_power"), ("power", "current_socket_power"),
                              ("power", "average_socket_power"))),
    ("gpu.power_limit_watts", "W", (("power", "power_limit"), ("limit", "max_power"))),
    ("gpu.temperature_celsius", "C", (("temperature", "hotspot"), ("temperature", "edge"))),
    ("gpu.memory_temperature_celsius", "C", (("temperature", "mem"),)),
    ("gpu.memory_used_bytes", "MB", (("mem_usage", "used_vram"),)),
    ("gpu.memory_total_bytes", "MB", (("mem_usage", "total_vram"),)),
    ("gpu.sm_clock_hz", "MHz", (("clock", "gfx_0", "clk"), ("clock", "gfx", "cur_clk"), ("clock", "gfx", "clk"))),
    ("gpu.sm_clock_max_hz", "MHz", (("clock", "gfx_0", "max_clk"), ("clock", "gfx", "max_clk"))),
    ("gpu.memory_clock_hz", "MHz", (("clock", "mem_0", "clk"), ("clock", "mem", "cur_clk"), ("clock", "mem", "clk"))),
    ("gpu.memory_clock_max_hz", "MHz", (("clock", "mem_0", "max_clk"), ("clock", "mem", "max_clk"))),
    ("gpu.pcie_link_width", "", (("pcie", "width"),)),
    ("gpu.pcie_replay_total", "", (("pcie", "replay_count"),)),
    ("gpu.ecc_corrected_total", "", (("ecc", "total_correctable_count"), ("ecc", "total_correctable"))),
    ("gpu.ecc_uncorrected_total", "", (("ecc", "total_uncorrectable_count"), ("ecc", "total_uncorrectable"))),
    ("gpu.energy_j_total", "J", (("energy", "total_energy_consumption"),)),
)
# fmt: on
PCIE_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
"""By transfers a second per lane, in GT/s (PCI-SIG)."""
_LINK = re.compile(r"\((\d+(?:\.\d+)?)GT/s x(\d+)\)")
_OPENING = re.compile(r"^\s*[\[{]", re.MULTILINE)
MAX_STARTS = 20
"""Lines that may begin the document; a warning may begin with a bracket too."""
_CARD = re.compile(r"card(\d{1,3})")


def document(text: str) -> Any:
    """The JSON in what a tool printed, warnings around it left out. Raises UsageError when there is none."""
    problem = "there is none in it"
    decoder = json.JSONDecoder()
    for start in itertools.islice(_OPENING.finditer(text), MAX_STARTS):
        try:
            found, _ = decoder.raw_decode(text, start.end() - 1)
        except (ValueError, RecursionError) as error:
            problem = str(error)
            continue
        if found:
            return found
    raise UsageError(f"no JSON can be read from this output ({problem[:80]}); save it again with --json")


def is_rocm(found: Any) -> bool:
    return isinstance(found, dict) and any(_CARD.fullmatch(str(key)) for key in found)


def is_amd(found: Any) -> bool:
    devices = _amd_devices(found)
    return bool(devices) and all("gpu" in device for device in devices)


def read_rocm(text: str) -> list[Reading]:
    """`rocm-smi --json` with any of its --show flags."""
    found = document(text)
    if not is_rocm(found):
        raise UsageError("there is no card in this JSON; save the output of `rocm-smi -a --json`")
    system = found.get("system")
    driver = words(system.get("Driver version")) if isinstance(system, dict) else None
    readings: list[Reading] = []
    cards = [(match.group(1), card) for key, card in found.items() if (match := _CARD.fullmatch(str(key)))]
    for index, card in cards[:MAX_DEVICES]:
        if not isinstance(card, dict):
            continue
        labels = device_labels(KIND, index)
        readings.append(info(KIND, index, _rocm_facts(card, driver)))
        for series, unit, keys in ROCM_ROWS:
            value = _first(quantity(card.get(key), unit) for key in keys)
            if value is not None:
                readings.append(own(series, value, labels))
        link = _LINK.search(str(card.get("pcie clock level", "")))
        if link is not None:
            readings.append(own("gpu.pcie_link_width", float(link.group(2)), labels))
            generation = PCIE_GENERATIONS.get(float(link.group(1)))
            if generation is not None:
                readings.append(own("gpu.pcie_link_generation", float(generation), labels))
    return readings


def read_amd(text: str) -> list[Reading]:
    """`amd-smi metric --json`."""
    devices = _amd_devices(document(text))
    if not devices:
        raise UsageError("there is no device in this JSON; save the output of `amd-smi metric --json`")
    readings: list[Reading] = []
    for place, device in enumerate(devices[:MAX_DEVICES]):
        number = device.get("gpu")
        index = number if isinstance(number, int) and not isinstance(number, bool) else place
        labels = device_labels(KIND, index)
        readings.append(info(KIND, index, {}))
        for series, unit, paths in AMD_ROWS:
            value = _first(_at(device, path, unit) for path in paths)
            if value is not None:
                readings.append(own(series, value, labels))
    return readings


def _amd_devices(found: Any) -> list[dict[str, Any]]:
    if isinstance(found, dict):
        found = found.get("gpu_data")
    return [device for device in found if isinstance(device, dict)] if isinstance(found, list) else []


def _at(device: Mapping[str, Any], path: tuple[str, ...], unit: str) -> float | None:
    """A value bare or as {"value": 5, "unit": "W"}."""
    here: Any = device
    for step in path:
        here = here.get(step) if isinstance(here, dict) else None
    if isinstance(here, dict):
        said = here.get("unit")
        return quantity(here.get("value"), said if isinstance(said, str) and said else unit)
    return quantity(here, unit)


def _first(values: Any) -> float | None:
    return next((value for value in values if value is not None), None)


def _rocm_facts(card: Mapping[str, Any], driver: str | None) -> dict[str, str | None]:
    names = ("Card Series", "Card series", "Device Name", "Card model")
    return {
        "name": next((name for key in names if (name := words(card.get(key)))), None),
        "uuid": words(card.get("Unique ID")),
        "bus_id": bus_id(str(card.get("PCI Bus", ""))),
        "driver": driver,
    }
