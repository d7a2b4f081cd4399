"""What one step of the engine computes, and how long each part of it takes. Words between scheduler, cost and GPU."""

import msgspec


class StepWork(msgspec.Struct):
    """What one step computes, summed over its batch.

    tokens: rows of the matrix multiplications. sequences: requests in the batch. attention_pairs: query-key pairs,
    sum of n x (past + n/2). kv_tokens: cached tokens that attention reads.
    """

    tokens: int = 0
    sequences: int = 0
    attention_pairs: float = 0.0
    kv_tokens: int = 0
    prefill_tokens: int = 0
    """Of the tokens, those of prompts (or recomputed); 0 in a step that only decodes, which a graph may replay."""
    sampled_rows: int = 0
    """Sequences that get a token, with speculation every verified position."""
    masked_sequences: int = 0
    """Held to a schema."""
    adapters: int = 0
    """Different LoRA adapters in the batch; 0 when no sequence has one."""
    loaded_adapters: int = 0
    """Copied to the GPU before this step."""
    image_tokens: int = 0
    """Through the vision encoder in this step."""
    draft_tokens: int = 0
    """Drawn by the draft model before this step."""


class StepCost(msgspec.Struct, gc=False):
    """Seconds of one step by where they go, noise not included. total_s is what the engine waits.

    The GPU is busy for gemm_s + attention_s + small_s + communication_s + sampling_s + encoder_s + copy_s (busy_s);
    the rest of total_s it waits for the host (host_s, launch_s, compile_s) or for another process (neighbour_s).
    """

    total_s: float
    gemm_s: float
    attention_s: float
    small_s: float
    communication_s: float
    sampling_s: float
    encoder_s: float
    copy_s: float
    host_s: float
    """CPU time of the engine's process that the GPU waits for: scheduling, masks, input preparation."""
    launch_s: float
    """By which launching kernels took longer than running them; 0 with graphs."""
    compile_s: float
    flops: float
    """Of the model, for the share of tensor cores."""
    dram_bytes: float
    """Read and written in HBM per GPU."""
    link_bytes: float
    """Sent between GPUs, per GPU."""
    pcie_bytes: float
    graphed: bool
    """Replayed as a captured graph."""
    neighbour_s: float = 0.0
    """In which another process had the GPU."""
    occupied_ratio: float = 1.0
    """Share of the pipeline's stages that work at a time; 1 without pipeline parallelism."""

    @property
    def busy_s(self) -> float:
        """Kernels of this engine run somewhere in the pipeline."""
        return (
            self.gemm_s
            + self.attention_s
            + self.small_s
            + self.communication_s
            + self.sampling_s
            + self.encoder_s
            + self.copy_s
        )


class AcceleratorState(msgspec.Struct, frozen=True, gc=False):
    """What slows an engine's GPUs now, each as a share of the healthy; of the slowest of them."""

    clock_ratio: float = 1.0
    """Core clock over the highest, while memory is streamed."""
    tensor_clock_ratio: float | None = None
    """The same while the tensor cores are busy, which a power limit may make another one; None: the same."""
    memory_clock_ratio: float = 1.0
    link_ratio: float = 1.0
    """Bandwidth to the other GPUs."""
    pcie_ratio: float = 1.0
    available_ratio: float = 1.0
    """Share of the time that no other process takes."""


HEALTHY_STATE = AcceleratorState()
