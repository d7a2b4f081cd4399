"""How long one engine step takes: a roofline over its matrix multiplications, attention, small kernels and transfers.

Not a profile of any kernel. The surprising part: the two sides of the roofline are joined by a root of squares, not
by the larger of both. Measured A100 GEMM sums of Llama-3-8B (Vidur's published profiles: 1, 64, 128, 256, 512, 2048
tokens take 8.8, 10.4, 12.1, 17.7, 31.8, 133.9 ms) follow the root within 8 %; the larger of both is 30 % low at 128.
Measured H100 products with vLLM (aiconfigurator's published table, shapes of 30 to 300 M weights) take 1.00, 1.01,
0.96, 0.80, 0.87 of the root at 1, 64, 128, 512, 2048 tokens in bf16, and 1.14, 1.21, 1.27, 1.11, 1.13 in fp8. Attention
of single prompts below 4096 tokens is up to twice as slow as here (it then is a tenth of the step), decode attention
within 10 % from 60 us per layer on and below that never under 10 us, which layer_overhead_s is for.

How it works. Everything that does not depend on the batch is worked out once, in seconds of a healthy GPU; `step`
adds up the terms, slowed by the state of the GPU: its core clock slows arithmetic in proportion and memory hardly, its
memory clock slows memory, its links slow transfers.

Pipeline parallelism. The batch goes through the stages in micro-batches, no more than it has sequences. A step is the
time in which each micro-batch has passed every stage once: weights are streamed once per micro-batch and stage, so
their time does not shrink with the stages, while what grows with tokens shrinks with the micro-batches. With fewer
micro-batches than stages, stages stand empty.
"""

from math import hypot

from pinchpoint.lab.hardware import Gpu
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.shapes import BF16_BYTES, BYTES_PER_VALUE, ModelShape
from pinchpoint.lab.work import HEALTHY_STATE, AcceleratorState, StepCost, StepWork

__all__ = ["CostModel", "StepWork", "capture_sizes"]

SHARED_PASSES, SPLIT_PASSES = 13, 22
"""Reads and writes of the hidden state per layer: by norms and residual adds, which every tensor-parallel GPU does for
itself, and by rotary embedding and activation, which they share. Fitted to the same profiles: 22.8 ms for 4096 tokens
over 32 layers on A100 with one GPU, 9.0 ms with four."""

ALL_REDUCES_PER_LAYER = 2
"""After attention and after the MLP (Megatron-LM partitioning)."""

ALL_TO_ALLS_PER_LAYER = 2
"""With experts spread over GPUs: to the experts and back."""

PCIE_LATENCY_FACTOR = 3.0
"""Of a collective over PCIe to one over NVLink: no one-shot kernel, copies through several hops (30 us and more)."""

SEND_LATENCY_S = 20e-6
"""From one pipeline stage to the next; published profiles of two A100 give 24 us for 2 kB."""

CLOCK_ON_BANDWIDTH_EXPONENT = 0.15
"""Memory bandwidth goes with core clock to this power: decode on clocks locked at a sixth is a few tens of per cent
slower in total, at two thirds a few per cent."""

SAMPLER_BYTES_PER_LOGIT = 10
"""Softmax and draw over float32 logits, 2.5 passes: published RTX 4090 profiles have 0.31 ms for 256 rows of 128 k."""

ENCODER_PARAMETERS = 0.63e9
ENCODER_PATCHES_PER_TOKEN = 4
ENCODER_LAYERS = 32
"""Of a vision transformer as in Qwen2-VL: 32 layers, four patches merged into each token."""

KERNELS_PER_LAYER = 11
"""Two norms, four products, rotary embedding, cache write, two for attention, activation."""
EAGER_LAUNCH_S = 27e-6
"""CPU time per kernel where nothing is compiled or captured: every layer runs through Python. Fits of vLLM without
graphs give 27.5 and 30.2 us (lab-validation)."""
KERNELS_PER_EXPERT_LAYER = 7
"""More for routed experts: gate, top-k, sort, gather, scatter, second product, sum."""
KERNELS_PER_STEP = 20
"""Embedding, final norm, head, sampler, copies."""
ATTENTION_KERNELS_PER_LAYER = 3
"""Launched one by one where graphs cover all but attention (vLLM's piecewise graphs, steps with prompts)."""

ADAPTER_BYTES = 0.17e9
"""Rank 32 on all linear layers of an 8B model, in bf16."""

INPUT_BYTES_PER_TOKEN, INPUT_BYTES_PER_SEQUENCE = 16, 600
"""Over PCIe per step: token ids, positions, slots; block tables, lengths, sampled ids."""


def capture_sizes(largest: int) -> list[int]:
    """Batch sizes with a captured graph, as vLLM chooses them: 1, 2, 4, then every 8 below 256, then every 16."""
    return [n for n in (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)) if n <= largest]


def _padding(largest: int) -> list[int]:
    """Index: tokens; value: the captured size that holds them."""
    sizes = capture_sizes(largest)
    padded, size = [], 0
    for tokens in range((sizes[-1] if sizes else 0) + 1):
        if tokens > sizes[size]:
            size += 1
        padded.append(sizes[size])
    return padded


class CostModel:
    """step(work, state) for one engine: its GPUs, model and efficiencies. Noise is the engine's.

    Deterministic for a sequence of calls. It remembers two things: which shapes were compiled (first_shape_s), and
    where in the neighbour's time slices the GPU is.
    """

    def __init__(self, params: LabParams) -> None:
        gpu, shape = params.gpu_spec, params.model_shape
        self._stages = params.pipeline_parallel
        self._set_linear(params, gpu, shape)
        self._set_attention(params, gpu, shape)
        self._set_communication(params, gpu, shape)
        self._set_host(params, shape)
        self._set_encoder(params, gpu)
        lora = params.lora
        self._adapter_slowdown = lora.slowdown_ratio - 1.0
        self._adapter_load_s = lora.load_s
        self._pcie_bytes_per_s = gpu.pcie_bytes_per_s
        self._draft_ratio = params.speculation.draft_cost_ratio if params.speculation else 0.0
        self._neighbour_slice_s = params.accelerator.neighbour_slice_s
        self._neighbour_debt_s = 0.0

    def _set_linear(self, params: LabParams, gpu: Gpu, shape: ModelShape) -> None:
        ways = params.tensor_parallel
        weight_bytes = BYTES_PER_VALUE[params.weight_precision]
        flops_per_s = params.compute_efficiency_ratio * gpu.flops_per_s(params.weight_precision) * ways
        bandwidth = params.weight_bandwidth_efficiency_ratio * gpu.bandwidth_bytes_per_s * ways
        per_gpu = ways * self._stages
        head_bytes = shape.embedding_parameters * BF16_BYTES
        dense_bytes = shape.dense_parameters * weight_bytes + head_bytes
        self._dense_s = dense_bytes / bandwidth
        self._dense_bytes_per_gpu = dense_bytes / per_gpu
        self._dense_s_per_token = 2 * shape.dense_parameters / flops_per_s
        bf16_flops_per_s = params.compute_efficiency_ratio * gpu.bf16_flops_per_s * ways
        self._head_s_per_row = 2 * shape.embedding_parameters / bf16_flops_per_s
        self._flops_per_token = 2 * shape.active_parameters
        self._flops_per_row = 2 * shape.embedding_parameters
        self._experts = shape.experts
        self._imbalance = params.expert_imbalance_ratio if params.expert_parallel and ways > 1 else 1.0
        self._untouched_ratio = 1.0
        self._experts_s = self._experts_s_per_token = self._expert_bytes_per_gpu = 0.0
        if shape.experts:
            expert_bytes = shape.experts.all_parameters * weight_bytes
            self._untouched_ratio = 1.0 - shape.experts.active / shape.experts.count
            self._experts_s = expert_bytes / bandwidth
            self._expert_bytes_per_gpu = expert_bytes / per_gpu
            active = shape.experts.active * shape.experts.layers * shape.experts.parameters
            self._experts_s_per_token = 2 * active / flops_per_s
        passes = SHARED_PASSES + SPLIT_PASSES / ways
        small_bytes = shape.layers * passes * shape.hidden * BF16_BYTES
        one_gpu_bandwidth = bandwidth / ways
        self._small_s_per_token = small_bytes / one_gpu_bandwidth
        self._small_bytes_per_token = small_bytes / self._stages
        cast_bytes = params.cast_passes * 2 * shape.weights_bytes(params.weight_precision)
        self._cast_s = cast_bytes / bandwidth
        self._cast_bytes_per_gpu = cast_bytes / per_gpu
        self._layers_s = params.layer_overhead_s * shape.layers
        self._sampling_s_per_row = (
            params.sampling_s_per_sequence + SAMPLER_BYTES_PER_LOGIT * shape.vocabulary / one_gpu_bandwidth
        )

    def _set_attention(self, params: LabParams, gpu: Gpu, shape: ModelShape) -> None:
        ways = params.tensor_parallel
        flops_per_s = params.compute_efficiency_ratio * gpu.bf16_flops_per_s * ways
        self._decode_flops_per_pair = shape.decode_flops_per_pair()
        self._prefill_flops_per_pair = shape.prefill_flops_per_pair()
        self._s_per_attention_flop = 1 / flops_per_s
        kv_bytes = params.kv_bytes_per_token * params.kv_reads_per_token / min(ways, shape.kv_shards)
        self._kv_s_per_token = kv_bytes / (params.kv_bandwidth_efficiency_ratio * gpu.bandwidth_bytes_per_s)
        self._kv_bytes_per_token = kv_bytes / self._stages

    def _set_communication(self, params: LabParams, gpu: Gpu, shape: ModelShape) -> None:
        ways, accelerator = params.tensor_parallel, params.accelerator
        self._over_pcie = gpu.peer_link == "pcie" or not accelerator.peer_links
        link_bytes_per_s = gpu.pcie_bytes_per_s if self._over_pcie else gpu.link_bytes_per_s
        link_bytes_per_s *= params.link_efficiency_ratio
        latency_s = params.all_reduce_latency_s * (PCIE_LATENCY_FACTOR if self._over_pcie else 1)
        row_bytes = shape.hidden * BF16_BYTES
        self._calls_s = self._sent_s_per_token = self._sent_bytes_per_token = 0.0
        if ways > 1:
            calls = ALL_REDUCES_PER_LAYER * shape.layers
            # Ring: each GPU sends 2 (p-1)/p of the message (Patarasuk and Yuan 2009).
            sent_bytes = calls * 2 * (ways - 1) / ways * row_bytes
            if params.expert_parallel and shape.experts:
                # No sum after the experts; each GPU sends its share of the rows to their experts and back.
                calls -= shape.experts.layers
                sent_bytes = calls * 2 * (ways - 1) / ways * row_bytes
                exchanges = ALL_TO_ALLS_PER_LAYER * shape.experts.layers
                copies = shape.experts.active / ways * (ways - 1) / ways * self._imbalance
                sent_bytes += exchanges * copies * row_bytes
                calls += exchanges
            self._calls_s = calls * latency_s
            self._sent_s_per_token = sent_bytes / link_bytes_per_s
            self._sent_bytes_per_token = sent_bytes / self._stages
        self._hops = self._stages - 1
        self._hop_s_per_token = row_bytes / link_bytes_per_s
        self._hop_bytes_per_token = row_bytes * self._hops / self._stages

    def _set_host(self, params: LabParams, shape: ModelShape) -> None:
        self._host_s = params.step_overhead_s
        self._host_s_per_sequence = params.sequence_overhead_s
        self._mask_s = params.grammar.mask_s_per_sequence
        self._padded = _padding(params.cudagraph_max_sequences) if params.cuda_graphs else []
        kernels = KERNELS_PER_STEP + KERNELS_PER_LAYER * shape.layers
        kernels += KERNELS_PER_EXPERT_LAYER * (shape.experts.layers if shape.experts else 0)
        kernels += ALL_REDUCES_PER_LAYER * shape.layers * (params.tensor_parallel > 1)
        # Each stage has a process of its own, and launches only its share of the kernels.
        launch_s = params.kernel_launch_s if params.cuda_graphs else max(params.kernel_launch_s, EAGER_LAUNCH_S)
        self._eager_launch_s = kernels / self._stages * launch_s
        self._piecewise_launch_s = ATTENTION_KERNELS_PER_LAYER * shape.layers / self._stages * params.kernel_launch_s
        self._encoder_launch_s = KERNELS_PER_LAYER * ENCODER_LAYERS * params.kernel_launch_s
        self._first_shape_s = params.first_shape_s
        self._compiled: set[tuple[str, int]] = set()

    def _set_encoder(self, params: LabParams, gpu: Gpu) -> None:
        self._encoder_flops_per_token = 2 * ENCODER_PARAMETERS * ENCODER_PATCHES_PER_TOKEN
        rate = params.encoder_efficiency_ratio * gpu.bf16_flops_per_s * params.tensor_parallel
        self._encoder_s_per_token = self._encoder_flops_per_token / rate

    def step_s(self, work: StepWork) -> float:
        """Seconds on healthy GPUs."""
        return self.step(work).total_s

    def step(self, work: StepWork, state: AcceleratorState = HEALTHY_STATE) -> StepCost:
        """state: of the slowest of the engine's GPUs, on which the others wait."""
        tokens, sequences, prefill_tokens = work.tokens, work.sequences, work.prefill_tokens
        rows = work.sampled_rows
        core_clock, bandwidth = state.clock_ratio, state.memory_clock_ratio
        clock = state.tensor_clock_ratio or core_clock
        if core_clock != 1.0:
            bandwidth *= core_clock**CLOCK_ON_BANDWIDTH_EXPONENT
        micro_batches = 1
        if self._stages > 1:
            micro_batches = min(self._stages, sequences) or 1

        padded = self._padded
        covered = tokens < len(padded)
        graphed = covered and not prefill_tokens
        computed = (padded[tokens] if covered else tokens) / micro_batches
        rows_each = rows / micro_batches

        gemm_s = hypot(
            self._dense_s / bandwidth, (self._dense_s_per_token * computed + self._head_s_per_row * rows_each) / clock
        )
        dram_bytes = self._dense_bytes_per_gpu * micro_batches
        waiting_s = 0.0
        if self._experts is not None and tokens:
            touched = 1.0 - self._untouched_ratio**computed
            experts_s = hypot(self._experts_s * touched / bandwidth, self._experts_s_per_token * computed / clock)
            dram_bytes += self._expert_bytes_per_gpu * touched * micro_batches
            imbalance = self._imbalance
            if imbalance != 1.0:
                touched = 1.0 - self._untouched_ratio ** (computed * imbalance)
                fullest_s = hypot(
                    self._experts_s * touched / bandwidth, self._experts_s_per_token * computed * imbalance / clock
                )
                waiting_s = fullest_s - experts_s
            gemm_s += experts_s

        pair_flops = self._prefill_flops_per_pair if prefill_tokens else self._decode_flops_per_pair
        attention_flops = pair_flops * work.attention_pairs
        arithmetic_s = attention_flops * self._s_per_attention_flop / (clock * micro_batches)
        reading_s = self._kv_s_per_token * work.kv_tokens / (bandwidth * micro_batches)
        # Prompts compute while decoding sequences read, and neither waits less for the other: in published RTX 4090
        # profiles mixed batches take even longer than the sum.
        attention_s = arithmetic_s + reading_s if prefill_tokens else max(arithmetic_s, reading_s)
        dram_bytes += self._kv_bytes_per_token * work.kv_tokens + self._small_bytes_per_token * tokens
        flops = self._flops_per_token * tokens + self._flops_per_row * rows + attention_flops
        small_s = self._layers_s / core_clock + (self._small_s_per_token * computed + self._cast_s) / bandwidth
        dram_bytes += self._cast_bytes_per_gpu * micro_batches

        link_ratio = state.pcie_ratio * state.link_ratio if self._over_pcie else state.link_ratio
        communication_s = waiting_s + self._calls_s + self._sent_s_per_token * computed / link_ratio
        if self._hops:
            communication_s += self._hops * (SEND_LATENCY_S + self._hop_s_per_token * computed / link_ratio)
        sent_bytes = (self._sent_bytes_per_token + self._hop_bytes_per_token) * tokens

        sampling_s = self._sampling_s_per_row * rows / bandwidth
        encoder_s = copy_s = compile_s = launch_s = 0.0
        pcie_bytes = INPUT_BYTES_PER_TOKEN * tokens + INPUT_BYTES_PER_SEQUENCE * sequences
        if work.draft_tokens:
            drafted = sequences or 1
            gemm_s += (
                self._draft_ratio
                * (work.draft_tokens / drafted)
                * hypot(
                    (self._dense_s + self._experts_s * (1.0 - self._untouched_ratio**drafted)) / bandwidth,
                    (self._dense_s_per_token + self._experts_s_per_token) * drafted / clock,
                )
            )
        if work.adapters:
            small_s += self._adapter_slowdown * (gemm_s + attention_s + small_s)
        if work.image_tokens:
            encoder_s = max(self._encoder_s_per_token * work.image_tokens / clock, self._encoder_launch_s)
            flops += self._encoder_flops_per_token * work.image_tokens
        if work.loaded_adapters:
            # load_s is of a healthy bus.
            moving_s = ADAPTER_BYTES / self._pcie_bytes_per_s
            copy_s = work.loaded_adapters * (self._adapter_load_s + moving_s * (1 / state.pcie_ratio - 1))
            pcie_bytes += work.loaded_adapters * ADAPTER_BYTES

        busy_s = gemm_s + attention_s + small_s + communication_s + sampling_s + encoder_s + copy_s
        if not graphed and tokens:
            needed_s = self._piecewise_launch_s if covered else self._eager_launch_s
            if needed_s > busy_s:
                launch_s = needed_s - busy_s
        if self._first_shape_s and tokens:
            compile_s = self._compile_s(sequences, prefill_tokens)
        neighbour_s = 0.0
        if state.available_ratio < 1.0:
            neighbour_s = self._wait_for_neighbour(busy_s, state.available_ratio)
        host_s = self._host_s + self._host_s_per_sequence * sequences + self._mask_s * work.masked_sequences
        if self._over_pcie:
            pcie_bytes += sent_bytes
            sent_bytes = 0.0
        return StepCost(
            busy_s + launch_s + compile_s + neighbour_s + host_s,
            gemm_s,
            attention_s,
            small_s,
            communication_s,
            sampling_s,
            encoder_s,
            copy_s,
            host_s,
            launch_s,
            compile_s,
            flops,
            dram_bytes,
            sent_bytes,
            pcie_bytes,
            graphed,
            neighbour_s,
            micro_batches / self._stages,
        )

    def _compile_s(self, sequences: int, prefill_tokens: int) -> float:
        shape = ("prompt", prefill_tokens.bit_length()) if prefill_tokens else ("decode", -(-sequences // 8))
        if shape in self._compiled:
            return 0.0
        self._compiled.add(shape)
        return self._first_shape_s

    def _wait_for_neighbour(self, busy_s: float, available_ratio: float) -> float:
        """Whole slices of the other process that fall into a step of so much GPU time.

        Ours come to available/(1 - available) of its slices, on average; where a step begins between two of them
        decides how many it meets, so equal steps take one of two times.
        """
        own_slice_s = self._neighbour_slice_s * available_ratio / (1.0 - available_ratio)
        self._neighbour_debt_s += busy_s
        slices = int(self._neighbour_debt_s / own_slice_s)
        self._neighbour_debt_s -= slices * own_slice_s
        return slices * self._neighbour_slice_s
