"""What NVML's numbers mean: fields, profiling metrics, reasons why it could not start. No behaviour.

Numbers and units are those of NVIDIA's header nvml.h; the names there are in the docstrings.
"""

from typing import NamedTuple

from pinchpoint.telemetry.accelerator import KIB_BYTES, MIB_BYTES, PERCENT

ALL_LINKS = 0xFFFF_FFFF
"""Scope of a field that is counted per NVLink: the sum over all (nvml.h, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX)."""
VALUE_MEMBER = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
"""Member of the value union by nvmlValueType_t."""
U32_VALUE = 1


class Field(NamedTuple):
    """A value that nvmlDeviceGetFieldValues gives; one call brings many. Ids and units: nvml.h, NVML_FI_*."""

    number: int
    series: str
    scale: float = 1.0
    labels: tuple[tuple[str, str], ...] = ()
    scope: int = 0


FAST_FIELDS = (
    Field(83, "gpu.energy_j_total", 1e-3),
    Field(82, "gpu.memory_temperature_celsius"),
    Field(74, "gpu.power_violation_s_total", 1e-9),
    Field(75, "gpu.thermal_violation_s_total", 1e-9),
    Field(197, "gpu.pcie_tx_bytes_total"),
    Field(198, "gpu.pcie_rx_bytes_total"),
    Field(138, "gpu.link_tx_bytes_total", KIB_BYTES, scope=ALL_LINKS),
    Field(139, "gpu.link_rx_bytes_total", KIB_BYTES, scope=ALL_LINKS),
)
SLOW_FIELDS = (
    Field(94, "gpu.pcie_replay_total"),
    Field(3, "gpu.ecc_corrected_total"),
    Field(4, "gpu.ecc_uncorrected_total"),
    Field(142, "gpu.remapped_rows_corrected"),
    Field(143, "gpu.remapped_rows_uncorrected"),
    Field(145, "gpu.row_remap_failure"),
    Field(29, "gpu.retired_pages", labels=(("cause", "single_bit"),)),
    Field(30, "gpu.retired_pages", labels=(("cause", "double_bit"),)),
    Field(38, "gpu.link_errors_total", labels=(("error", "crc_flit"),)),
    Field(45, "gpu.link_errors_total", labels=(("error", "crc_data"),)),
    Field(52, "gpu.link_errors_total", labels=(("error", "replay"),)),
    Field(59, "gpu.link_errors_total", labels=(("error", "recovery"),)),
)

GPM_METRICS = (
    (1, "gpu.engine_active_ratio", PERCENT),
    (2, "gpu.sm_active_ratio", PERCENT),
    (3, "gpu.sm_occupancy_ratio", PERCENT),
    (5, "gpu.tensor_active_ratio", PERCENT),
    (10, "gpu.dram_active_ratio", PERCENT),
    (20, "gpu.pcie_tx_bytes_per_s", MIB_BYTES),
    (21, "gpu.pcie_rx_bytes_per_s", MIB_BYTES),
    (60, "gpu.link_rx_bytes_per_s", MIB_BYTES),
    (61, "gpu.link_tx_bytes_per_s", MIB_BYTES),
)
"""Id, series and factor of the profiling metrics (nvml.h, NVML_GPM_METRIC_*): per cent, and MiB a second."""
RATES = {
    "gpu.pcie_tx_bytes_per_s": "gpu.pcie_tx_bytes_total",
    "gpu.pcie_rx_bytes_per_s": "gpu.pcie_rx_bytes_total",
    "gpu.link_tx_bytes_per_s": "gpu.link_tx_bytes_total",
    "gpu.link_rx_bytes_per_s": "gpu.link_rx_bytes_total",
}
"""A rate is told only where the device does not count; a counter misses nothing between two readings."""

INIT_WORDS = {
    4: "may not be used by this user; run as a user who may open /dev/nvidiactl, or use dcgm-exporter",
    9: "is there but the driver is not loaded; load the kernel module nvidia, or run nvidia-smi once as root",
    13: "is too old for nvmlInitWithFlags (driver before 384); update the driver",
    18: "and the loaded driver are of different versions, as after an update; restart the machine or reload the driver",
    999: "could not start (unknown error); see what nvidia-smi says",
}
"""Why NVML could not start, by its code: NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, LIB_RM_VERSION_MISMATCH,
UNKNOWN. LIBRARY_NOT_FOUND has no words: most machines have no NVIDIA GPU."""
