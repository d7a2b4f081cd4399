"""The page of NVIDIA's dcgm-exporter.

The default counters, and those that a larger counters.csv adds for diagnosis (SM and tensor activity, violations,
power limit, clock event reasons, ECC, NVLink errors). Left out, since the lab does not model them: remapped rows,
retired pages, SM occupancy, FP pipes, p-states, fans, slowdown temperature, BAR1. Always 0: encoder and decoder,
vGPU licence, FB_RESERVED (used and free add up to the total). The profiling fields of PCIe and NVLink are bytes a
second, as DCGM gives them, and gauges, as current exporters say; older ones called the same rates counters. As in the
exporter, profiling ratios have six decimals and whole numbers none; DCGM's utilisation is in whole per cent.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pinchpoint.lab.hardware import GPUS
from pinchpoint.lab.pages.text import Labels
from pinchpoint.lab.readings import GpuReading

MIB_BYTES = float(1 << 20)
HZ_PER_MHZ = 1e6
MJ_PER_J = 1e3
NS_PER_S = 1e9
PERCENT = 100
DRIVER_VERSION = "570.133.20"
HOSTNAME = "gpu-node-0"


def _driver_name(gpu: str) -> str:
    """One that the lab does not know goes under the name that it was given."""
    known = GPUS.get(gpu)
    return known.product_name if known else gpu


def _uuid(index: int) -> str:
    """Of no real device, and the same in every run."""
    return f"GPU-{0x5EED0000 + index:08x}-9a3c-4f1e-8b27-{0x00C0FFEE0000 + index:012x}"


def _bus_id(index: int) -> str:
    return f"00000000:{0x17 + 0x21 * index % 0xE0:02X}:00.0"


class _Field(NamedTuple):
    name: str
    kind: str
    help_text: str
    value: Callable[[GpuReading], int | float]
    """int is printed whole, float with six decimals."""


# fmt: off
FIELDS = (
    _Field("DCGM_FI_DEV_SM_CLOCK", "gauge", "SM clock, MHz.", lambda r: round(r.sm_clock_hz / HZ_PER_MHZ)),
    _Field("DCGM_FI_DEV_MEM_CLOCK", "gauge", "Memory clock, MHz.", lambda r: round(r.memory_clock_hz / HZ_PER_MHZ)),
    _Field("DCGM_FI_DEV_MEMORY_TEMP", "gauge", "Memory temperature, C.", lambda r: round(r.memory_temperature_c)),
    _Field("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature, C.", lambda r: round(r.temperature_c)),
    _Field("DCGM_FI_DEV_POWER_USAGE", "gauge", "Power draw, W.", lambda r: float(r.power_w)),
    _Field("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "Energy since boot, mJ.",
           lambda r: int(r.energy_j_total * MJ_PER_J)),
    _Field("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "PCIe retries.", lambda r: r.pcie_replay_total),
    _Field("DCGM_FI_DEV_GPU_UTIL", "gauge", "GPU utilisation, %.", lambda r: round(r.busy_ratio * PERCENT)),
    _Field("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "Memory utilisation, %.",
           lambda r: round(r.dram_active_ratio * PERCENT)),
    _Field("DCGM_FI_DEV_ENC_UTIL", "gauge", "Encoder utilisation, %.", lambda _: 0),
    _Field("DCGM_FI_DEV_DEC_UTIL", "gauge", "Decoder utilisation, %.", lambda _: 0),
    _Field("DCGM_FI_DEV_XID_ERRORS", "gauge", "Last XID error.", lambda r: r.last_xid),
    _Field("DCGM_FI_DEV_POWER_VIOLATION", "counter", "Time throttled for power, ns.",
           lambda r: int(r.power_violation_s_total * NS_PER_S)),
    _Field("DCGM_FI_DEV_THERMAL_VIOLATION", "counter", "Time throttled for heat, ns.",
           lambda r: int(r.thermal_violation_s_total * NS_PER_S)),
    _Field("DCGM_FI_DEV_FB_FREE", "gauge", "Framebuffer free, MiB.",
           lambda r: int((r.memory_total_bytes - r.memory_used_bytes) / MIB_BYTES)),
    _Field("DCGM_FI_DEV_FB_USED", "gauge", "Framebuffer used, MiB.", lambda r: int(r.memory_used_bytes / MIB_BYTES)),
    _Field("DCGM_FI_DEV_FB_RESERVED", "gauge", "Framebuffer reserved, MiB.", lambda _: 0),
    _Field("DCGM_FI_DEV_FB_TOTAL", "gauge", "Framebuffer, MiB.", lambda r: int(r.memory_total_bytes / MIB_BYTES)),
    _Field("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "counter", "Double-bit ECC errors since boot.",
           lambda r: r.ecc_uncorrected_total),
    _Field("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "counter", "NVLink traffic of all lanes, MiB.",
           lambda r: int((r.link_tx_bytes_total + r.link_rx_bytes_total) / MIB_BYTES)),
    _Field("DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "counter", "NVLink CRC errors.",
           lambda r: r.link_errors_total),
    _Field("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "gauge", "vGPU licence.", lambda _: 0),
    _Field("DCGM_FI_DEV_POWER_MGMT_LIMIT", "gauge", "Power limit, W.", lambda r: float(r.power_limit_w)),
    _Field("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "gauge", "Reasons for a lowered clock, bits.",
           lambda r: r.clock_event_reasons),
    _Field("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", "Share of time an engine was active.",
           lambda r: float(r.busy_ratio)),
    _Field("DCGM_FI_PROF_SM_ACTIVE", "gauge", "Share of cycles an SM has a warp.", lambda r: float(r.sm_active_ratio)),
    _Field("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gauge", "Share of cycles the tensor pipe is active.",
           lambda r: float(r.tensor_active_ratio)),
    _Field("DCGM_FI_PROF_DRAM_ACTIVE", "gauge", "Share of cycles the memory interface is active.",
           lambda r: float(r.dram_active_ratio)),
    _Field("DCGM_FI_PROF_PCIE_TX_BYTES", "gauge", "Bytes a second sent over PCIe.",
           lambda r: int(r.pcie_tx_bytes_per_s)),
    _Field("DCGM_FI_PROF_PCIE_RX_BYTES", "gauge", "Bytes a second received over PCIe.",
           lambda r: int(r.pcie_rx_bytes_per_s)),
    _Field("DCGM_FI_PROF_NVLINK_TX_BYTES", "gauge", "Bytes a second sent over NVLink.",
           lambda r: int(r.link_tx_bytes_per_s)),
    _Field("DCGM_FI_PROF_NVLINK_RX_BYTES", "gauge", "Bytes a second received over NVLink.",
           lambda r: int(r.link_rx_bytes_per_s)),
)
# fmt: on


def page(gpus: Sequence[GpuReading], gpu: str, hostname: str = HOSTNAME) -> str:
    """gpu: the lab's name of the device, such as A100. No GPUs: an empty page."""
    heads = [_labels(reading.index, _driver_name(gpu), hostname) for reading in gpus]
    out: list[str] = []
    for field in FIELDS if gpus else ():
        out.append(f"# HELP {field.name} {field.help_text}\n# TYPE {field.name} {field.kind}\n")
        for head, reading in zip(heads, gpus, strict=True):
            value = field.value(reading)
            out.append(f"{field.name}{head} {value if isinstance(value, int) else f'{value:.6f}'}\n")
    return "".join(out)


def _labels(index: int, model: str, hostname: str) -> str:
    """In the exporter's own order."""
    pairs: Labels = (
        ("gpu", str(index)),
        ("UUID", _uuid(index)),
        ("pci_bus_id", _bus_id(index)),
        ("device", f"nvidia{index}"),
        ("modelName", model),
        ("Hostname", hostname),
        ("DCGM_FI_DRIVER_VERSION", DRIVER_VERSION),
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}"
