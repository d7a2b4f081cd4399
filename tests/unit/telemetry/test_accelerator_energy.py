"""Power and energy mean the same whoever tells them: joules per request are made of them."""

from pathlib import Path

import pytest

from pinchpoint.catalog import load_catalog
from pinchpoint.telemetry import smi
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.nvml_tables import FAST_FIELDS

WATTS, JOULES = 412.5, 1_234_567.0


def exposed(name: str, value: float, **labels: str) -> tuple[str | None, float]:
    """A sample of a metrics page, as the catalogue takes it."""
    series, scale = load_catalog().resolve(name, labels)
    return series, value * scale


def told(found: list[Reading], series: str) -> list[float]:
    return [reading.value for reading in found if reading.series == series]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", JOULES * 1e3),
        ("gpu_energy_consumed", JOULES * 1e6),
        ("nv_energy_consumption", JOULES),
    ],
)
def test_energy_of_every_exporter_is_in_joules(name: str, value: float) -> None:
    series, joules = exposed(name, value)
    assert series == "gpu.energy_j_total"
    assert joules == pytest.approx(JOULES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DCGM_FI_DEV_POWER_USAGE", WATTS),
        ("gpu_package_power", WATTS),
        ("npu_chip_info_power", WATTS),
        ("habanalabs_power_mW", WATTS * 1e3),
        ("nv_gpu_power_usage", WATTS),
    ],
)
def test_power_of_every_exporter_is_in_watts(name: str, value: float) -> None:
    series, watts = exposed(name, value)
    assert series == "gpu.power_watts"
    assert watts == pytest.approx(WATTS)


def test_energy_and_power_of_the_local_ways_are_in_the_same_units() -> None:
    (energy,) = (field for field in FAST_FIELDS if field.series == "gpu.energy_j_total")
    assert JOULES * 1e3 * energy.scale == pytest.approx(JOULES)  # NVML counts mJ
    micro = f"{JOULES * 1e6:.1f}"
    rocm = f'{{"card0": {{"Average Graphics Package Power (W)": "{WATTS}", "Accumulated Energy (uJ)": "{micro}"}}}}'
    amd = (
        f'[{{"gpu": 0, "power": {{"socket_power": {{"value": {WATTS}, "unit": "W"}}}},'
        f'"energy": {{"total_energy_consumption": {{"value": {JOULES}, "unit": "J"}}}}}}]'
    )
    for found in (smi.ROCM_SMI(rocm.encode()), smi.AMD_SMI(amd.encode())):
        assert told(found, "gpu.power_watts") == [WATTS]
        assert told(found, "gpu.energy_j_total") == pytest.approx([JOULES])
    drawn = f"<power_readings><power_draw>{WATTS} W</power_draw></power_readings>"
    xml = f"<nvidia_smi_log><gpu>{drawn}</gpu></nvidia_smi_log>"
    assert told(smi.NVIDIA_XML(xml.encode()), "gpu.power_watts") == [WATTS]
    gaudi = f"index, power.draw [W], temperature.aip [C]\n0, {WATTS} W, 40 C\n"
    assert told(smi.HL_SMI(gaudi.encode()), "gpu.power_watts") == [WATTS]


def test_a_counter_of_energy_and_a_draw_of_power_agree_over_a_second() -> None:
    captures = Path(__file__).parents[2] / "data" / "smi"
    drawn = told(smi.NVIDIA_TEXT((captures / "nvidia-smi-q_h100.txt").read_bytes()), "gpu.power_watts")
    _, grown = exposed("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 629_450.0)  # mJ in one second at 629.45 W
    assert drawn == pytest.approx([grown])
