"""The accelerators that the lab knows, by their data sheets. Not here: what a fault does to them (accelerator.py)."""

from typing import Literal

import msgspec

GIB_BYTES = 1 << 30
MIB_BYTES = 1 << 20

Precision = Literal["bf16", "fp8"]


class Gpu(msgspec.Struct, frozen=True):
    """Vendor figures, healthy.

    link_bytes_per_s: per direction to its peers, by peer_link; where that is pcie, it equals pcie_bytes_per_s.
    fp8_flops_per_s None: no such tensor cores; fp8 weights are then widened on the way and multiplied in bf16.
    idle, memory and stream power: shares of TDP with a process resident, for all of the memory bandwidth, and for
    warps resident on every SM; what is left of TDP is the tensor cores'. uncertain: sources contradict each other.
    """

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    bf16_flops_per_s: float
    link_bytes_per_s: float
    fp8_flops_per_s: float | None
    peer_link: Literal["nvlink", "hccs", "pcie"]
    pcie_bytes_per_s: float
    tdp_w: float
    sm_clock_max_hz: float
    memory_clock_hz: float
    slowdown_c: float = 85.0
    """From here on the driver lowers the clock (NVML: maximum operating temperature)."""
    hardware_slowdown_c: float = 92.0
    """Here the hardware halves it (NVML: slowdown temperature)."""
    idle_power_ratio: float = 0.10
    memory_power_ratio: float = 0.35
    stream_power_ratio: float = 0.12
    product_name: str = ""
    """As its driver calls it."""
    uncertain: bool = False

    def flops_per_s(self, precision: Precision) -> float:
        """Dense peak of the tensor cores for weights of that precision."""
        if precision == "fp8" and self.fp8_flops_per_s is not None:
            return self.fp8_flops_per_s
        return self.bf16_flops_per_s


# Data sheets: dense rates without sparsity; NVLink figures are half of the bidirectional sum; PCIe per direction.
# Memory and stream power of A100: a line through Llama-2-70B decode at TP 2, 4, 8, which drew 0.72, 0.59, 0.43 of TDP
# at 0.64, 0.42, 0.20 of the bandwidth (Splitwise's published profiles). H200 decode drew 137 to 300 of 700 W.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 80 * GIB_BYTES, 2.039e12, 312e12, 300e9, None, "nvlink", 32e9, 400.0, 1.410e9, 1.593e9,
            idle_power_ratio=0.14, memory_power_ratio=0.60, stream_power_ratio=0.16,
            product_name="NVIDIA A100-SXM4-80GB"),
        Gpu("H100", 81_559 * MIB_BYTES, 3.35e12, 989e12, 450e9, 1979e12, "nvlink", 64e9, 700.0, 1.980e9, 2.619e9,
            product_name="NVIDIA H100 80GB HBM3"),
        Gpu("H200", 141e9, 4.8e12, 989e12, 450e9, 1979e12, "nvlink", 64e9, 700.0, 1.980e9, 3.201e9,
            product_name="NVIDIA H200"),
        # NVIDIA's DGX B200 data sheet, an eighth of the system: 180 GB, 8 TB/s, 4.5 PFLOP/s dense in fp8, 1 kW.
        Gpu("B200", 180e9, 8.0e12, 2250e12, 900e9, 4500e12, "nvlink", 64e9, 1000.0, 1.965e9, 3.996e9,
            product_name="NVIDIA B200"),
        Gpu("L40S", 46_068 * MIB_BYTES, 0.864e12, 362e12, 32e9, 733e12, "pcie", 32e9, 350.0, 2.520e9, 9.001e9,
            idle_power_ratio=0.11, memory_power_ratio=0.40,
            product_name="NVIDIA L40S"),
        Gpu("RTX4090", 25_250_627_584, 1.008e12, 165.2e12, 32e9, 330.3e12, "pcie", 32e9, 450.0, 2.520e9,
            10.501e9, slowdown_c=84.0, hardware_slowdown_c=90.0, idle_power_ratio=0.08, memory_power_ratio=0.40,
            product_name="NVIDIA GeForce RTX 4090"),
        Gpu("RTXPRO6000", 97_887 * MIB_BYTES, 1.792e12, 503.8e12, 64e9, 1007.6e12, "pcie", 64e9, 600.0, 2.617e9,
            14.001e9, idle_power_ratio=0.08, memory_power_ratio=0.40,
            product_name="NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
        # Public figures for the 910B family contradict each other: 256 to 376 TFLOP/s, 0.4 to 1.6 TB/s; HCCS and PCIe
        # rates are those of one secondary source each.
        Gpu("910B2", 64 * GIB_BYTES, 1.6e12, 353.9e12, 196e9, None, "hccs", 32e9, 400.0, 1.8e9, 1.6e9,
            slowdown_c=88.0, hardware_slowdown_c=100.0, idle_power_ratio=0.22, uncertain=True,
            product_name="910B2"),
    )
}  # fmt: skip
