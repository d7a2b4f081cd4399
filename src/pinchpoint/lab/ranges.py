"""Which numbers a service can have. Names are those of LabParams, `host.cores` for a field of a group."""

import math
from collections.abc import Mapping

from pinchpoint.errors import UsageError

POSITIVE = frozenset("""
    tensor_parallel pipeline_parallel data_parallel max_num_seqs max_num_batched_tokens block_size_tokens kv_blocks
    gpu_memory_utilization_ratio cudagraph_max_sequences expert_imbalance_ratio kv_reads_per_token
    compute_efficiency_ratio weight_bandwidth_efficiency_ratio kv_bandwidth_efficiency_ratio encoder_efficiency_ratio
    link_efficiency_ratio rate_limit_rps rate_limit_burst_requests in_flight_limit
    lora.max_loras lora.slowdown_ratio grammar.schemas speculation.num_speculative_tokens
    disaggregation.prefill_engines disaggregation.transfer_bytes_per_s
    front.replicas front.api_processes front.thread_pool_threads front.dependency_slots front.gateway_timeout_s
    front.replica_speed_ratios
    autoscaler.replicas_max autoscaler.target_in_flight_per_replica autoscaler.look_every_s
    path.bandwidth_bytes_per_s
    host.cores host.memory_bytes host.cpu_quota_cores host.disk_write_bytes_per_s host.accept_backlog
    host.conntrack_max host.nofile
    accelerator.sm_clock_ratio accelerator.memory_clock_ratio accelerator.power_limit_ratio accelerator.cooling_ratio
    accelerator.link_ratio accelerator.pcie_ratio accelerator.neighbour_slice_s accelerator.fault_every_s
    application.output_factor
    client.pool_connections client.ports client.users client.repeated_prompts
""".split())  # fmt: skip
SHARES = frozenset("""
    gpu_memory_utilization_ratio grammar.share_ratio speculation.acceptance_ratio front.router_skew_ratio
    host.numa_remote_ratio
""".split())  # fmt: skip
"""At most 1."""
PARTS = frozenset("path.loss_ratio host.steal_ratio accelerator.neighbour_share_ratio".split())
"""Below 1: of all packets, of all of a core, of all of a GPU, nothing would ever be left."""
ANY_SIGN = frozenset({"accelerator.ambient_c"})


def check_ranges(values: Mapping[str, object]) -> None:
    """values: parameter -> value; what is no number is skipped. Raises UsageError for the first impossible one."""
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check(name, number)


def _check(name: str, number: float) -> None:
    wrong = [
        (not math.isfinite(number), "it must be a finite number"),
        (name in POSITIVE and number <= 0, "it must be greater than 0"),
        (name not in ANY_SIGN and number < 0, "it cannot be negative"),
        (name in SHARES and number > 1, "it is a share and can be 1 at most"),
        (name in PARTS and number >= 1, "it must be below 1, or nothing would be left"),
    ]
    for is_wrong, why in wrong:
        if is_wrong:
            raise UsageError(f"lab parameter {name} is {number:g}; {why}")
