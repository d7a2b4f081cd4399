"""How long one engine step takes: a roofline over its matrix multiplications, attention and small kernels.

Not a profile of any kernel. The surprising part: the two sides of the roofline are joined by a root of squares, not
by the larger of both. Measured A100 GEMM sums of Llama-3-8B (Vidur's published profiles: 1, 64, 128, 256, 512, 2048
tokens take 8.8, 10.4, 12.1, 17.7, 31.8, 133.9 ms) follow the root within 8 %; the larger of both is 30 % low at 128.
"""

import math

import msgspec

from pinchpoint.lab.params import BF16_BYTES, LabParams

ACTIVATION_PASSES = 35
"""Reads and writes of the hidden state per layer by norms, rotary embedding, activation and residual adds. Fitted to
the same profiles: 22.8 ms for 4096 tokens over 32 layers on A100."""

ALL_REDUCES_PER_LAYER = 2
"""After attention and after the MLP (Megatron-LM partitioning)."""

ALL_REDUCE_LATENCY_S = 10e-6
"""Per call; fits of serving data give 2 to 15 us."""

LINK_EFFICIENCY_RATIO = 0.67
"""Of the link's peak in a large all-reduce; fits of serving data give 0.56 to 0.88."""


class StepWork(msgspec.Struct):
    """What one step computes, summed over its batch.

    tokens: rows of the matrix multiplications. sequences: requests in the batch. attention_pairs: query-key pairs,
    sum of n x (past + n/2). kv_tokens: cached tokens that attention reads.
    """

    tokens: int = 0
    sequences: int = 0
    attention_pairs: float = 0.0
    kv_tokens: int = 0


class CostModel:
    """step_s(work) for one GPU, model and set of efficiencies. Deterministic: noise is the engine's."""

    def __init__(self, params: LabParams) -> None:
        gpu, shape, ways = params.gpu_spec, params.model_shape, params.tensor_parallel
        streamed = shape.parameters - shape.embedding_parameters
        in_layers = streamed - shape.embedding_parameters  # the output head multiplies only sampled rows
        flops_per_s = params.compute_efficiency_ratio * gpu.bf16_flops_per_s * ways
        bandwidth = gpu.bandwidth_bytes_per_s * ways
        self._weights_s = streamed * BF16_BYTES / (params.weight_bandwidth_efficiency_ratio * bandwidth)
        self._linear_s_per_token = 2 * in_layers / flops_per_s
        self._head_s_per_sequence = 2 * shape.embedding_parameters / flops_per_s
        self._small_s_per_token = (
            shape.layers * ACTIVATION_PASSES * shape.hidden * BF16_BYTES
            / (params.weight_bandwidth_efficiency_ratio * bandwidth)
        )  # fmt: skip
        # Per query-key pair: a dot product and a weighted sum, 2 FLOP each per head dimension.
        self._attention_s_per_pair = 4 * shape.heads * shape.head_dim * shape.layers / flops_per_s
        self._kv_s_per_token = (
            shape.kv_bytes_per_token * params.kv_reads_per_token / (params.kv_bandwidth_efficiency_ratio * bandwidth)
        )
        self._overhead_s = params.step_overhead_s
        self._sequence_s = params.sequence_overhead_s
        self._reduce_s = self._reduce_s_per_token = 0.0
        if ways > 1:
            calls = ALL_REDUCES_PER_LAYER * shape.layers
            self._reduce_s = calls * ALL_REDUCE_LATENCY_S
            # Ring: each GPU sends 2 (p-1)/p of the message (Patarasuk and Yuan 2009).
            sent_bytes_per_token = 2 * (ways - 1) / ways * shape.hidden * BF16_BYTES
            self._reduce_s_per_token = calls * sent_bytes_per_token / (LINK_EFFICIENCY_RATIO * gpu.link_bytes_per_s)

    def step_s(self, work: StepWork) -> float:
        linear_s = math.hypot(
            self._weights_s, self._linear_s_per_token * work.tokens + self._head_s_per_sequence * work.sequences
        )
        attention_s = max(self._attention_s_per_pair * work.attention_pairs, self._kv_s_per_token * work.kv_tokens)
        per_token_s = (self._small_s_per_token + self._reduce_s_per_token) * work.tokens
        return (
            linear_s + attention_s + per_token_s + self._reduce_s + self._overhead_s + self._sequence_s * work.sequences
        )
