"""Outputs of vendors' tools: captures of real machines, and documented forms of those that no capture is at hand of."""

import gzip
import itertools
import math
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.errors import UsageError
from pinchpoint.telemetry import collect, smi
from pinchpoint.telemetry.config import CollectorConfig, Reading
from pinchpoint.telemetry.smi import Parser, Smi, Tool, find_smi, recognise
from pinchpoint.telemetry.smi_values import quantity

DATA = Path(__file__).parents[2] / "data" / "smi"
PATIENT_S = 60.0
"""For tools that answer: a stalled host must not make one look hung."""

NPU_TABLE = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 101.8       43                0    / 0             |
| 0                         | 0000:C1:00.0  | 57          0    / 0          59318/ 65536         |
+===========================+===============+====================================================+
| 5     910B3               | Alarm         | NA          39                0    / 0             |
| 0                         | 0000:42:00.0  | 0           0    / 0          3314 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 4711          | python                   | 55960                   |
+===========================+===============+====================================================+
| No running processes found in NPU 5                                                            |
+===========================+===============+====================================================+
"""
NPU_SMALL = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 23.0.rc3                                   Version: 23.0.rc3                                   |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 3       310P3                 | OK              | NA           66                15    / 15            |
| 0       0                     | 0000:01:00.0    | 12           957   / 10810                           |
+-------------------------------+-----------------+------------------------------------------------------+
| 3       310P3                 | OK              | NA           64                15    / 15            |
| 1       1                     | 0000:01:00.0    | 13           958   / 10810                           |
+===============================+=================+======================================================+
"""
NPU_WATCH = """\
NpuID(Idx)  ChipId(Idx) Pwr(W)      Temp(C)     AI Core(%)  AI Cpu(%)   Ctrl Cpu(%) Memory(%)   Memory BW(%)
0           0           100.2       45          10          0           0           3           20
0           0           113.4       46          90          0           0           4           70
"""
NPU_COMMON = """\
        NPU ID                         : 2
        Chip Count                     : 2

        Chip ID                        : 0
        HBM Usage Rate(%)              : 25
        HBM Capacity(MB)               : 65536
        Aicore Usage Rate(%)           : 37
        Aicore Freq(MHZ)               : 1800
        Aicore curFreq(MHZ)            : 1650
        Temperature(C)                 : 46
        NPU Real-time Power(W)         : 203.3

        Chip ID                        : 1
        Aicore Usage Rate(%)           : 3
        Temperature(C)                 : 47

        Chip Name                      : mcu
        Temperature(C)                 : 41
        NPU Real-time Power(W)         : 13.4
"""
NPU_POWER = """\
        NPU ID                         : 0
        Chip Count                     : 2

        NPU Real-time Power(W)         : 103.5
        Chip ID                        : 0

        NPU Real-time Power(W)         : 98.5
        Chip ID                        : 1
"""
AMD_SMI = """\
WARNING: User is missing the following required groups: render
[
  {"gpu": 1, "usage": {"gfx_activity": {"value": 73, "unit": "%"}, "umc_activity": {"value": 12, "unit": "%"}},
   "power": {"socket_power": {"value": 542, "unit": "W"}},
   "clock": {"gfx_0": {"clk": {"value": 2100, "unit": "MHz"}, "max_clk": {"value": 2100, "unit": "MHz"}}},
   "temperature": {"edge": "N/A", "hotspot": {"value": 71, "unit": "C"}, "mem": {"value": 58, "unit": "C"}},
   "mem_usage": {"total_vram": {"value": 196592, "unit": "MB"}, "used_vram": {"value": 49148, "unit": "MB"}},
   "pcie": {"width": 16, "replay_count": 0},
   "energy": {"total_energy_consumption": {"value": 12345.5, "unit": "J"}},
   "ecc": {"total_correctable_count": 2, "total_uncorrectable_count": 0}}
]
"""
HL_SMI = """\
index, uuid, name, driver_version, utilization.aip [%], memory.used [MiB], memory.total [MiB], power.draw [W], \
temperature.aip [C]
0, 01P4-HL3090A0-18-U4V193-22-07-00, HL-325L, 1.21.0, 85 %, 90112 MiB, 131072 MiB, 512 W, 41 C
1, 01P4-HL3090A0-18-U4V193-22-07-01, HL-325L, 1.21.0, N/A, 672 MiB, 131072 MiB, 220 W, 30 C
"""
HL_SMI_NO_UNITS = """\
name, power.draw [W], temperature.aip [C], utilization.aip [%], memory.used [MiB], memory.total [MiB]
HL-205, 102, 29, 14, 512, 32768
"""
TPU_INFO = """\
TPU Chips
┏━━━━━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━┓
┃ Chip        ┃ Type         ┃ Devices ┃ PID  ┃
┡━━━━━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━┩
│ /dev/vfio/0 │ TPU v6e chip │ 1       │ 1052 │
│ /dev/vfio/1 │ TPU v6e chip │ 1       │ 1052 │
└─────────────┴──────────────┴─────────┴──────┘
TPU Runtime Utilization
┏━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━┓
┃ Device ┃ Memory usage          ┃ Duty cycle ┃
┡━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━┩
│ 8      │ 18.45 GiB / 31.25 GiB │    100.00% │
│ 9      │ 10.40 GiB / 31.25 GiB │     12.50% │
└────────┴───────────────────────┴────────────┘
TensorCore Utilization
┏━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ Chip ID ┃ TensorCore Utilization ┃
┡━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━┩
│ 0       │                 13.60% │
│ 1       │                 14.81% │
└─────────┴────────────────────────┘
"""

SAVED: dict[str, tuple[bytes, Parser]] = {
    "nvidia-smi-q_h100.txt": (b"", smi.NVIDIA_TEXT),
    "nvidia-smi-csv_h100.csv": (b"", smi.NVIDIA_CSV),
    "nvidia-smi-table_h100.txt": (b"", smi.NVIDIA_TABLE),
    "nvidia-smi-xml_a100-sxm4-v12.xml": (b"", smi.NVIDIA_XML),
    "nvidia-smi-xml_tesla-t4.xml": (b"", smi.NVIDIA_XML),
    "rocm-smi_mi100.json": (b"", smi.ROCM_SMI),
    "rocm-smi_rx6700xt.json": (b"", smi.ROCM_SMI),
    "amd-smi": (AMD_SMI.encode(), smi.AMD_SMI),
    "npu-smi info": (NPU_TABLE.encode(), smi.NPU_TABLE),
    "npu-smi info, small": (NPU_SMALL.encode(), smi.NPU_TABLE),
    "npu-smi watch": (NPU_WATCH.encode(), smi.NPU_WATCH),
    "npu-smi common": (NPU_COMMON.encode(), smi.NPU_KEYS),
    "npu-smi power": (NPU_POWER.encode(), smi.NPU_KEYS),
    "hl-smi": (HL_SMI.encode(), smi.HL_SMI),
    "hl-smi nounits": (HL_SMI_NO_UNITS.encode(), smi.HL_SMI),
    "tpu-info": (TPU_INFO.encode(), smi.TPU_INFO),
}


def saved(name: str) -> bytes:
    text, _ = SAVED[name]
    return text or (DATA / name).read_bytes()


def readings(name: str) -> list[Reading]:
    return SAVED[name][1](saved(name))


def value(found: list[Reading], series: str, **labels: str) -> float | None:
    """The one value with these labels among its own; None when there is none."""
    values = [r.value for r in found if r.series == series and labels.items() <= parse_labels(r.labels).items()]
    assert len(values) <= 1, (series, values)
    return values[0] if values else None


@pytest.mark.parametrize("name", SAVED)
def test_an_output_is_recognised_and_read_into_series_of_the_catalogue(name: str) -> None:
    parser = recognise(saved(name))
    assert parser == SAVED[name][1]
    found = parser(saved(name))
    assert found
    for reading in found:
        assert reading.series is not None
        assert load_catalog().entry(reading.series) is not None, reading.series
        labels = parse_labels(reading.labels)
        assert labels["kind"] == parser.kind
        assert labels["gpu"]
        assert math.isfinite(reading.value)
        assert reading.value >= 0
        if reading.series.endswith("_ratio"):
            assert reading.value <= 1


@pytest.mark.parametrize("name", SAVED)
def test_no_series_of_a_device_is_told_twice(name: str) -> None:
    told = [(reading.series, reading.labels) for reading in readings(name)]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("name", SAVED)
def test_a_compressed_output_is_read_like_a_plain_one(name: str) -> None:
    packed = gzip.compress(saved(name))
    parser = recognise(packed)
    assert parser == SAVED[name][1]
    assert parser(packed) == readings(name)


def test_an_h100_under_load_is_read_from_the_last_of_two_logs() -> None:
    found = readings("nvidia-smi-q_h100.txt")
    for series, expected in {
        "gpu.util_ratio": 1.0,
        "gpu.memory_util_ratio": 0.11,
        "gpu.power_watts": 629.45,
        "gpu.power_limit_watts": 700.0,
        "gpu.memory_used_bytes": 19818 * 2**20,
        "gpu.sm_clock_hz": 1.98e9,
        "gpu.temperature_celsius": 59.0,
        "gpu.memory_temperature_celsius": 55.0,
        "gpu.pcie_rx_bytes_per_s": 6.346e6,
        "gpu.pcie_replay_total": 9.0,
        "gpu.processes": 3.0,
        "gpu.throttle_reasons": 0.0,
    }.items():
        assert value(found, series) == pytest.approx(expected), series
    assert value(found, "gpu.process_memory_bytes", pid="11345") == 15690 * 2**20
    idle = smi.NVIDIA_TEXT(saved("nvidia-smi-q_h100.txt").split(b"# load :: query")[0])
    assert value(idle, "gpu.util_ratio") == 0.0
    assert value(idle, "gpu.clock_event_ratio", reason="gpu_idle") == 1.0
    assert value(idle, "gpu.processes") == 0.0


def test_three_forms_of_one_tool_agree_on_one_moment() -> None:
    text, table, csv = (
        readings(name) for name in ("nvidia-smi-q_h100.txt", "nvidia-smi-table_h100.txt", "nvidia-smi-csv_h100.csv")
    )
    for series in ("gpu.memory_used_bytes", "gpu.memory_total_bytes", "gpu.power_limit_watts", "gpu.util_ratio"):
        assert value(text, series) == value(table, series) == value(csv, series), series
    assert value(csv, "gpu.power_watts") == 631.95
    infos = [parse_labels(reading.labels) for form in (text, csv) for reading in form if reading.series == "gpu.info"]
    assert infos[0] == infos[1]
    assert (infos[0]["name"], infos[0]["bus_id"]) == ("NVIDIA H100 80GB HBM3", "0000:00:09.0")


def test_an_a100_with_mig_has_no_utilisation_and_four_mig_devices() -> None:
    found = readings("nvidia-smi-xml_a100-sxm4-v12.xml")
    assert value(found, "gpu.util_ratio") is None
    assert value(found, "gpu.mig_devices") == 4.0
    assert value(found, "gpu.power_watts") == 67.03
    assert value(found, "gpu.memory_temperature_celsius") == 44.0
    assert value(found, "gpu.pcie_tx_bytes_per_s") == 4e6


def test_a_t4_with_older_names_is_read_too() -> None:
    found = readings("nvidia-smi-xml_tesla-t4.xml")
    assert value(found, "gpu.power_watts") == 26.78
    assert value(found, "gpu.pcie_link_width") == 8.0
    assert value(found, "gpu.pcie_link_width_max") == 16.0
    assert value(found, "gpu.memory_temperature_celsius") is None
    assert value(found, "gpu.clock_event_ratio", reason="sw_power_cap") == 0.0
    assert value(found, "gpu.processes") == 1.0  # the desktop's is not counted
    assert value(found, "gpu.process_memory_bytes", pid="5762") == 1005 * 2**20


def test_several_gpus_of_one_log_are_numbered_in_their_order() -> None:
    log = saved("nvidia-smi-q_h100.txt").decode()
    head, _, body = log.rpartition("GPU 00000000:00:09.0\n")
    two = f"{head}GPU 00000000:00:09.0\n{body}GPU 00000000:00:0A.0\n{body.replace('629.45 W', '300.00 W')}"
    found = smi.NVIDIA_TEXT(two.encode())
    assert value(found, "gpu.power_watts", gpu="0") == 629.45
    assert value(found, "gpu.power_watts", gpu="1") == 300.0
    xml = saved("nvidia-smi-xml_tesla-t4.xml").decode()
    gpu = xml[xml.index("<gpu id") : xml.index("</gpu>") + len("</gpu>")]
    found = smi.NVIDIA_XML(xml.replace(gpu, gpu + gpu.replace("26.78 W", "60.00 W")).encode())
    assert value(found, "gpu.power_watts", gpu="0") == 26.78
    assert value(found, "gpu.power_watts", gpu="1") == 60.0


def test_rocm_cards_are_read_in_their_own_words() -> None:
    found = readings("rocm-smi_mi100.json")
    assert value(found, "gpu.power_watts", gpu="1") == 44.0
    assert value(found, "gpu.power_limit_watts", gpu="0") == 290.0
    assert value(found, "gpu.temperature_celsius", gpu="1") == 58.0
    assert value(found, "gpu.sm_clock_hz", gpu="0") == 3e8
    assert value(found, "gpu.memory_total_bytes", gpu="0") == 34342961152.0
    assert value(found, "gpu.pcie_link_generation", gpu="0") == 4.0
    (facts,) = (parse_labels(r.labels) for r in found if r.series == "gpu.info" and "gpu=0" in r.labels)
    assert facts["name"] == "Arcturus GL-XL [Instinct MI100]"
    assert (facts["bus_id"], facts["driver"]) == ("0000:83:00.0", "6.3.6")


def test_amd_smi_is_read_with_its_warnings_and_in_both_of_its_shapes() -> None:
    found = readings("amd-smi")
    assert value(found, "gpu.util_ratio", gpu="1") == 0.73
    assert value(found, "gpu.power_watts") == 542.0
    assert value(found, "gpu.temperature_celsius") == 71.0
    assert value(found, "gpu.memory_used_bytes") == 49148 * 2**20
    assert value(found, "gpu.energy_j_total") == 12345.5
    assert value(found, "gpu.ecc_corrected_total") == 2.0
    devices = AMD_SMI.partition("\n")[2]
    wrapped = f'{{"gpu_data": {devices}}}'.encode()
    assert recognise(wrapped) == smi.AMD_SMI
    assert smi.AMD_SMI(wrapped) == found
    bare = b'{"gpu_data": [{"gpu": 0, "usage": {"gfx_activity": 50}, "power": {"socket_power": 100}}]}'
    assert value(smi.AMD_SMI(bare), "gpu.util_ratio") == 0.5


def test_an_npu_is_read_with_its_hbm_health_and_processes() -> None:
    found = readings("npu-smi info")
    assert value(found, "gpu.sm_active_ratio", gpu="0") == pytest.approx(0.57)
    assert value(found, "gpu.power_watts", gpu="0") == 101.8
    assert value(found, "gpu.power_watts", gpu="5") is None
    assert value(found, "gpu.memory_used_bytes", gpu="0") == 59318 * 2**20
    assert value(found, "gpu.memory_total_bytes", gpu="5") == 65536 * 2**20
    assert value(found, "gpu.healthy", gpu="0") == 1.0
    assert value(found, "gpu.healthy", gpu="5") == 0.0
    assert value(found, "gpu.process_memory_bytes", gpu="0", pid="4711") == 55960 * 2**20
    assert value(found, "gpu.processes", gpu="5") == 0.0


def test_chips_of_one_card_are_told_apart() -> None:
    found = readings("npu-smi info, small")
    assert value(found, "gpu.sm_active_ratio", gpu="3") == pytest.approx(0.12)
    assert value(found, "gpu.sm_active_ratio", gpu="3.1") == pytest.approx(0.13)
    assert value(found, "gpu.memory_used_bytes", gpu="3.1") == 958 * 2**20
    assert value(found, "gpu.processes", gpu="3") is None


def test_the_last_line_of_a_watch_counts() -> None:
    found = readings("npu-smi watch")
    assert value(found, "gpu.sm_active_ratio") == pytest.approx(0.9)
    assert value(found, "gpu.dram_active_ratio") == pytest.approx(0.7)


def test_keys_belong_to_their_chip_and_not_to_the_controller() -> None:
    found = readings("npu-smi common")
    assert value(found, "gpu.power_watts", gpu="2") == 203.3
    assert value(found, "gpu.sm_clock_hz", gpu="2") == 1.65e9
    assert value(found, "gpu.memory_used_bytes", gpu="2") == 16384 * 2**20
    assert value(found, "gpu.temperature_celsius", gpu="2.1") == 47.0
    assert value(found, "gpu.power_watts", gpu="2.1") is None
    power = readings("npu-smi power")
    assert (value(power, "gpu.power_watts", gpu="0"), value(power, "gpu.power_watts", gpu="0.1")) == (103.5, 98.5)


def test_gaudi_and_tpu_are_read() -> None:
    gaudi = readings("hl-smi")
    assert value(gaudi, "gpu.util_ratio", gpu="0") == 0.85
    assert value(gaudi, "gpu.util_ratio", gpu="1") is None
    assert value(gaudi, "gpu.memory_used_bytes", gpu="0") == 90112 * 2**20
    assert value(readings("hl-smi nounits"), "gpu.util_ratio") == pytest.approx(0.14)
    tpu = readings("tpu-info")
    assert value(tpu, "gpu.memory_used_bytes", gpu="0") == pytest.approx(18.45 * 2**30)
    assert value(tpu, "gpu.util_ratio", gpu="1") == pytest.approx(0.125)
    assert value(tpu, "gpu.tensor_active_ratio", gpu="1") == pytest.approx(0.1481)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("629.45 W", "", 629.45), ("34 %", "", 0.34), ("16x", "", 16.0), ("(300Mhz)", "", 3e8), ("0 us", "", 0.0),
        ("Not Active", "", 0.0), ("Yes", "", 1.0), ("12", "MiB", 12 * 2**20), (5, "W", 5.0), ("4000 KB/s", "", 4e6),
        ("N/A", "", None), ("[N/A]", "W", None), ("", "", None), ("12 parsec", "", None), (None, "", None),
        (True, "", None), (float("nan"), "W", None), ("9" * 400, "", None), ("Requested", "", None),
    ],
)  # fmt: skip
def test_a_value_is_read_in_the_unit_of_series_or_not_at_all(text: object, unit: str, expected: float | None) -> None:
    assert quantity(text, unit) == (None if expected is None else pytest.approx(expected))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(SAVED)), st.data())
def test_an_output_that_breaks_off_or_is_disturbed_is_read_in_part_or_refused_in_words(
    name: str, data: st.DataObject
) -> None:
    whole = saved(name)
    cut = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=20))
    damaged = whole[:cut] + noise + (whole[cut:] if data.draw(st.booleans()) else b"")
    recognise(damaged)
    try:
        found = SAVED[name][1](damaged)
    except UsageError as error:
        assert "again" in str(error)
    else:
        assert all(math.isfinite(reading.value) for reading in found)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_what_no_tool_printed_is_not_recognised_or_at_least_does_no_harm(data: bytes) -> None:
    recognise(data)


def test_a_bomb_of_entities_and_one_of_brackets_are_refused() -> None:
    entities = ['<!ENTITY a "aaaaaaaaaa">']
    entities += [f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in itertools.pairwise("abcdefghij")]
    bomb = f"<!DOCTYPE n [{''.join(entities)}]><nvidia_smi_log><gpu><uuid>&j;</uuid></gpu></nvidia_smi_log>"
    with pytest.raises(UsageError):
        smi.NVIDIA_XML(bomb.encode())
    assert recognise(b"[" * 100_000) is None
    assert recognise(gzip.compress(b"x" * 1000)[:-9]) is None


# --- the source ---------------------------------------------------------------------------------------------------


def tool_that(tmp_path: Path, script: str, parser: Parser = smi.NVIDIA_XML) -> Tool:
    """A command that runs this Python."""
    path = tmp_path / "tool"
    path.write_text(f"#!{sys.executable}\nimport sys, time, os\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Tool((str(path),), parser)


def events(found: list[Reading]) -> list[str]:
    return [reading.raw for reading in found if reading.series is None]


def printing(name: str) -> str:
    return f"sys.stdout.write(open({str(DATA / name)!r}).read())"


def test_a_tool_is_asked_and_says_what_its_devices_are_once(tmp_path: Path) -> None:
    source = Smi(tool_that(tmp_path, printing("nvidia-smi-xml_tesla-t4.xml")), PATIENT_S)
    assert (source.name, source.kind) == ("smi-nvidia", "nvidia")
    first, second = source.read()[1], source.read()[1]
    assert value(first, "gpu.power_watts") == value(second, "gpu.power_watts") == 26.78
    assert [reading.series for reading in first].count("gpu.info") == 1
    assert [reading.series for reading in second].count("gpu.info") == 0


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("sys.exit(9)", "smi_failed"),
        (printing("nvidia-smi-xml_tesla-t4.xml") + "; sys.exit(1)", "smi_failed"),
        ("print('NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.')", "smi_unreadable"),
        ("print('<nvidia_smi_log/>')", "smi_empty"),
        ("[sys.stdout.write('x' * 100000) for _ in range(1000)]", "smi_too_long"),
    ],
)
def test_a_tool_that_fails_is_an_event_and_no_zero(tmp_path: Path, script: str, name: str) -> None:
    source = Smi(tool_that(tmp_path, script), PATIENT_S, max_output_bytes=1_000_000)
    (reading,) = source.read()[1]
    assert (reading.raw, reading.series) == (name, None)
    assert parse_labels(reading.labels)["kind"] == "nvidia"


def test_a_tool_that_is_not_there_is_an_event(tmp_path: Path) -> None:
    source = Smi(Tool((str(tmp_path / "none"),), smi.NVIDIA_XML))
    assert events(source.read()[1]) == ["smi_not_started"]


@pytest.mark.parametrize("script", ["time.sleep(600)", "os.close(1); time.sleep(600)"])
def test_a_tool_that_hangs_is_ended_with_its_children(tmp_path: Path, script: str) -> None:
    source = Smi(tool_that(tmp_path, f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{script}"), 1.5)
    assert events(source.read()[1]) == ["smi_timeout"]
    assert source._hung is None  # it was ended and waited for
    pid_file = tmp_path / "pid"
    if pid_file.exists() and pid_file.read_text():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)


def test_while_one_hangs_that_cannot_be_ended_no_other_is_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    source = Smi(tool_that(tmp_path, f"open({str(started)!r}, 'a').write('x'); print('<nvidia_smi_log/>')"), PATIENT_S)

    class Stuck:
        done = False

        def poll(self) -> int | None:
            return 0 if self.done else None

    stuck = Stuck()
    source._hung = stuck  # type: ignore[assignment]
    assert events(source.read()[1]) == ["smi_still_running"]
    assert not started.exists()
    stuck.done = True
    assert events(source.read()[1]) == ["smi_empty"]
    assert started.exists()


def test_tools_that_are_here_are_found_one_for_each_vendor_and_none_for_what_is_covered() -> None:
    def everything(command: str) -> str:
        return f"/usr/bin/{command}"

    assert [source.name for source in find_smi(which=everything)] == [
        "smi-nvidia", "smi-amd", "smi-ascend", "smi-gaudi", "smi-tpu",
    ]  # fmt: skip
    assert "smi-nvidia" not in [source.name for source in find_smi(("nvidia",), everything)]
    assert find_smi(which=lambda command: "/x" if command == "amd-smi" else None)[0].command == "amd-smi metric --json"
    assert find_smi(which=lambda _: None) == []


def test_the_collector_asks_a_tool_less_often_than_its_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "find_nvml", lambda tell: None)
    monkeypatch.setattr(collect, "find_smi", lambda covered: [Smi(smi.TOOLS[0])])
    config = CollectorConfig(out_dir="", accelerators=True, period_s=0.5)
    periods = {source.name: period_s for source, period_s in collect.sources(config, None, lambda _: None)}
    assert periods["smi-nvidia"] == smi.SMI_PERIOD_S
    assert periods["host"] == 0.5
