"""The page of Ascend's npu-exporter, whose samples carry the time of their collection.

Families of the exporter's reference page, and those of later versions for Atlas A2 that the lab can fill. -1 is what
that exporter writes for a value it could not read; the lab writes it where it models nothing: voltage, and the traffic
of the RoCE ports. Left out: names of link peers, optical, MAC and RoCE packet counters, HCCS statistics, containers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pinchpoint.lab.pages.text import GO, Labels, Page, labelled
from pinchpoint.lab.readings import GpuReading

MIB_BYTES = float(1 << 20)
HZ_PER_MHZ = 1e6
PERCENT = 100
MS_PER_S = 1e3
UNREAD = -1
HEALTHY = 1
EXPORTER_VERSION = "v6.0.0"
DEVICE_NAMES = {"910B2": "910B2-Ascend-V1", "910B": "910B-Ascend-V1"}
XID_CODE = 0x80E0_1801
"""An error code of the form the driver reports for a hardware fault; which one is of no meaning."""


class _Field(NamedTuple):
    name: str
    help_text: str
    value: Callable[[GpuReading], float]


def _health(reading: GpuReading) -> int:
    return HEALTHY if not reading.last_xid and not reading.ecc_uncorrected_total else 0


# fmt: off
FIELDS = (
    _Field("aicore_current_freq", "clock of the AI cores, MHz", lambda r: round(r.sm_clock_hz / HZ_PER_MHZ)),
    _Field("bandwidth_rx", "speed of receiving, MB/s", lambda _: UNREAD),
    _Field("bandwidth_tx", "speed of sending, MB/s", lambda _: UNREAD),
    _Field("error_code", "error code", lambda r: XID_CODE if r.last_xid else 0),
    _Field("hbm_ecc_double_bit_error_cnt", "double-bit errors of the HBM", lambda r: r.ecc_uncorrected_total),
    _Field("hbm_temperature", "temperature of the HBM, C", lambda r: round(r.memory_temperature_c)),
    _Field("hbm_total_memory", "HBM, MB", lambda r: int(r.memory_total_bytes / MIB_BYTES)),
    _Field("hbm_used_memory", "HBM in use, MB", lambda r: int(r.memory_used_bytes / MIB_BYTES)),
    _Field("hbm_utilization", "HBM in use, %", lambda r: round(r.memory_used_bytes / r.memory_total_bytes * PERCENT)),
    _Field("hbm_bandwidth_utilization", "bandwidth of the HBM in use, %",
           lambda r: round(r.dram_active_ratio * PERCENT)),
    _Field("health_status", "health, 1 is healthy", _health),
    _Field("link_status", "link, 1 is up", lambda _: 1),
    _Field("network_status", "network, 1 is healthy", lambda _: 1),
    _Field("overall_utilization", "use of the whole chip, %", lambda r: round(r.busy_ratio * PERCENT)),
    _Field("power", "power, W", lambda r: round(r.power_w, 1)),
    _Field("process_info_num", "processes on the chip", lambda r: r.processes),
    _Field("temperature", "temperature, C", lambda r: round(r.temperature_c)),
    _Field("total_memory", "DDR memory, MB", lambda _: 0),
    _Field("used_memory", "DDR memory in use, MB", lambda _: 0),
    _Field("utilization", "use of the AI cores, %", lambda r: round(r.sm_active_ratio * PERCENT)),
    _Field("voltage", "voltage, V", lambda _: UNREAD),
)
# fmt: on


def page(npus: Sequence[GpuReading], npu: str, unix_s: float | None = None) -> str:
    """npu: the lab's name of the device. unix_s: wall clock of the readings, stamped on samples; None: no stamps."""
    model = DEVICE_NAMES.get(npu, npu)
    stamp = "\n" if unix_s is None else f" {int(unix_s * MS_PER_S)}\n"
    out = Page(GO)
    out.family("machine_npu_nums", "gauge", "NPUs of the machine.", [((), len(npus))])
    for field in FIELDS:
        samples = [(_labels(reading.index, model_name=model), field.value(reading)) for reading in npus]
        out.family(f"npu_chip_info_{field.name}", "gauge", field.help_text, samples, stamp)
    names = [(_labels(reading.index, name=model), 1) for reading in npus]
    out.family("npu_chip_info_name", "gauge", "name of the NPU, value 1", names, stamp)
    version = labelled(exporterVersion=EXPORTER_VERSION)
    out.family("npu_exporter_version_info", "gauge", "version of the exporter, value 1", [(version, 1)])
    return out.text()


def _labels(index: int, **name: str) -> Labels:
    return labelled(id=index, pcie_bus_info=f"0000:{0xC1 + index:02X}:00.0", vdie_id=f"{index:08X}-0-0-0-0", **name)
