"""Everything that describes one simulated service: GPU, model, engine limits and the queues in front of it.

Not for faults (faults.py) and not for formulas (cost.py). A fault is nothing but another LabParams.
"""

from typing import Literal

import msgspec

from pinchpoint.errors import UsageError

GIB_BYTES = 1 << 30
MIB_BYTES = 1 << 20


class Gpu(msgspec.Struct, frozen=True):
    """Vendor figures. link_bytes_per_s: per direction to its peers, NVLink or else PCIe."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    bf16_flops_per_s: float
    link_bytes_per_s: float


class ModelShape(msgspec.Struct, frozen=True):
    """A dense decoder-only transformer with grouped-query attention, weights and KV cache in bf16.

    parameters counts everything; the input embedding (vocabulary x hidden) is looked up, not streamed.
    """

    name: str
    parameters: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V, every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16_BYTES


BF16_BYTES = 2

# Vendor data sheets: dense bf16 rate, no sparsity; NVLink figures are half of the bidirectional sum.
GPUS = {
    "A100": Gpu("A100", 80 * GIB_BYTES, 2.039e12, 312e12, 300e9),
    "H100": Gpu("H100", 81_559 * MIB_BYTES, 3.35e12, 989e12, 450e9),
    "L40S": Gpu("L40S", 46_068 * MIB_BYTES, 0.864e12, 362e12, 32e9),
}

# Published config.json of each model; context is what the servers below offer, not the model's longest.
MODELS = {
    "llama-3-8b": ModelShape("llama-3-8b", 8.03e9, 32, 4096, 32, 8, 128, 128_256, 8192),
    "qwen2.5-7b": ModelShape("qwen2.5-7b", 7.62e9, 28, 3584, 28, 4, 128, 152_064, 8192),
    "llama-3-70b": ModelShape("llama-3-70b", 70.6e9, 80, 8192, 64, 8, 128, 128_256, 8192),
}

NON_KV_BYTES = 3.5e9
"""Activations, CUDA context and graphs per GPU. Published vLLM token counts on H100 imply 3.0 to 3.6 GB."""


class LabParams(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated service. The defaults are healthy: Llama-3-8B in bf16 on one A100-80G, vLLM's defaults for it.

    None switches a limit off. Efficiencies are achieved/peak ratios.
    """

    gpu: str = "A100"
    model: str = "llama-3-8b"
    tensor_parallel: int = 1

    # Engine. 256 and 2048 are vLLM's API-server defaults on A100; 16 its block size; 0.9 its memory share.
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size_tokens: int = 16
    gpu_memory_utilization_ratio: float = 0.9
    kv_blocks: int | None = None
    """None: what is left of GPU memory."""
    admission: Literal["optimistic", "reserve_full"] = "optimistic"
    """optimistic: blocks are taken as tokens come, a full pool preempts. reserve_full: prompt and whole output are
    taken at admission, so nothing is ever preempted."""

    # Step time. 0.7 and 0.8 are what published A100 GEMM profiles reach (73 % of FLOPs, 77 % of bandwidth).
    compute_efficiency_ratio: float = 0.7
    weight_bandwidth_efficiency_ratio: float = 0.8
    kv_bandwidth_efficiency_ratio: float = 0.8
    kv_reads_per_token: float = 1.0
    """How often attention reads each cached byte; 1 is a kernel that shares it between the query heads of a group."""
    step_overhead_s: float = 0.8e-3
    """Scheduling, launch and sampling per step; fits of serving data give 1 to 6 ms, profiles of the kernels 0.8."""
    sequence_overhead_s: float = 25e-6
    """Per sequence in a step; fits of serving data give 16 to 55 us."""
    step_noise_ratio: float = 0.03
    """Standard deviation of the step time over its mean."""

    # API process: one event loop, first in first out.
    api_request_s: float = 0.3e-3
    api_chunk_s: float = 15e-6
    """Per chunk written to a client; an answer that is not streamed is one chunk."""
    api_null_s: float = 50e-6
    """For an answer that does not touch the model, such as /health, or a refusal."""

    # In front of it.
    rate_limit_rps: float | None = None
    rate_limit_burst_requests: float = 10
    in_flight_limit: int | None = None
    proxy_buffering: bool = False
    """The proxy hands an answer on only when it is complete."""

    @property
    def gpu_spec(self) -> Gpu:
        if self.gpu not in GPUS:
            raise UsageError(f"the lab knows no GPU {self.gpu!r}; choose one of {', '.join(GPUS)}")
        return GPUS[self.gpu]

    @property
    def model_shape(self) -> ModelShape:
        if self.model not in MODELS:
            raise UsageError(f"the lab knows no model {self.model!r}; choose one of {', '.join(MODELS)}")
        return MODELS[self.model]

    def num_kv_blocks(self) -> int:
        """Blocks in the pool: kv_blocks, or what weights and overhead leave of the GPU's memory.

        Raises UsageError when the weights do not fit.
        """
        if self.kv_blocks is not None:
            return self.kv_blocks
        shape = self.model_shape
        usable_bytes = self.gpu_memory_utilization_ratio * self.gpu_spec.memory_bytes
        weight_bytes = shape.parameters * BF16_BYTES / self.tensor_parallel
        left_bytes = usable_bytes - weight_bytes - NON_KV_BYTES
        block_bytes = shape.kv_bytes_per_token * self.block_size_tokens / self.tensor_parallel
        if left_bytes < block_bytes:
            raise UsageError(
                f"{self.model} does not fit on {self.tensor_parallel} x {self.gpu}: "
                f"weights need {weight_bytes / 1e9:.0f} GB per GPU; raise tensor_parallel"
            )
        return int(left_bytes // block_bytes)

    def max_model_len_tokens(self) -> int:
        """Longest prompt plus output: one request must always fit into the KV pool, or it could never finish."""
        return min(self.model_shape.context_tokens, self.num_kv_blocks() * self.block_size_tokens)

    def validate(self) -> None:
        """Raises UsageError for values no service could have."""
        positive = {
            "tensor_parallel": self.tensor_parallel,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "block_size_tokens": self.block_size_tokens,
            "compute_efficiency_ratio": self.compute_efficiency_ratio,
            "weight_bandwidth_efficiency_ratio": self.weight_bandwidth_efficiency_ratio,
            "kv_bandwidth_efficiency_ratio": self.kv_bandwidth_efficiency_ratio,
            "rate_limit_rps": 1 if self.rate_limit_rps is None else self.rate_limit_rps,
            "rate_limit_burst_requests": self.rate_limit_burst_requests,
            "in_flight_limit": 1 if self.in_flight_limit is None else self.in_flight_limit,
            "kv_blocks": self.num_kv_blocks(),
        }
        for name, value in positive.items():
            if value <= 0:
                raise UsageError(f"lab parameter {name} is {value}; it must be greater than 0")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs {self.max_num_seqs}; "
                "every running sequence needs one token per step"
            )
