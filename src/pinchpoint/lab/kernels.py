"""What kernels a step is made of, in order and with their shares of its time, named as in real engines' profiles.

The cost of a step (cost.py) knows how long matrix products, attention, small kernels and so on take together. Here each
of these sums is spread over the kernels of every layer, by the work that each of them does. Not when they run
(kineto.py).
"""

from collections.abc import Iterator
from typing import Literal

import msgspec

from pinchpoint.lab.params import LabParams
from pinchpoint.lab.shapes import BF16_BYTES
from pinchpoint.lab.work import StepCost, StepWork

Part = Literal["gemm", "attention", "small", "communication", "sampling", "encoder", "copy"]
"""Fields of StepCost, without their _s."""

CUSTOM_REDUCE_BYTES_MAX = 8 << 20
"""Larger sums go through NCCL (vLLM's custom all-reduce, default of its largest message)."""
ONE_STAGE_BYTES_MAX = 256 << 10
"""Up to here each GPU reads all the others' rows itself (the same kernel's choice for four GPUs and more)."""
ENCODER_KERNELS = 32
"""One pair of names for each layer of a Qwen2-VL-like vision encoder would say no more than one for each."""
CACHE_WRITE_SHARE, ACTIVATION_SHARE, ROUTING_SHARE = 0.5, 1.5, 0.3
"""Time of small kernels relative to a norm: by bytes read and written; the MLP's activation is 2 to 3 hidden sizes
wide, half of which are written."""


class Kernel(msgspec.Struct, frozen=True, gc=False):
    """op: the CPU operator that launches it. weight: its share among those of the same part, once divided by their
    sum. copy_bytes: for copies."""

    name: str
    op: str
    part: Part
    weight: float
    copy_bytes: int = 0


class Names(msgspec.Struct, frozen=True):
    """How one family of GPUs and one engine spell their kernels."""

    gemm: str
    small_gemm: str
    decode_attention: str
    prefill_attention: str
    cache_write: str
    norm: str
    rope: str
    activation: str
    experts: str
    routing: str
    align: str
    combine: str
    reduce_one_stage: str
    reduce_two_stage: str
    nccl_reduce: str
    nccl_exchange: str
    cast: str
    softmax: str
    argmax: str
    sort: str


_HOPPER = Names(
    gemm="nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT",
    small_gemm="nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT",
    decode_attention="void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>, true, false>",
    prefill_attention="void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>, false, true>",
    cache_write="void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, __nv_bfloat16, (vllm::Fp8KVCacheDataType)0>",
    norm="void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>",
    rope="void vllm::rotary_embedding_kernel<c10::BFloat16, true>",
    activation="void vllm::act_and_mul_kernel<c10::BFloat16, vllm::silu_kernel<c10::BFloat16>, true>",
    experts="fused_moe_kernel",
    routing="void vllm::moe::topkGatingSoftmax<8, 8, 4, 16, 32, int>",
    align="void vllm::moe::moe_align_block_size_kernel<int>",
    combine="void vllm::moe::moe_sum_kernel<c10::BFloat16, 2>",
    reduce_one_stage="void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>",
    reduce_two_stage="void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>",
    nccl_reduce="ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    nccl_exchange="ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)",
    cast="void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>",
    softmax="void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float>",
    argmax="void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>>>",
    sort="void at_cuda_detail::cub::DeviceSegmentedRadixSortKernel<float, long>",
)
_AMPERE = msgspec.structs.replace(
    _HOPPER,
    gemm="ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn",
    small_gemm="ampere_bf16_s16816gemm_bf16_64x64_sliced1x2_ldg8_f2f_stages_64x5_tn",
)
_SGLANG = {
    "decode_attention": "void flashinfer::BatchDecodeWithPagedKVCacheKernel<flashinfer::PosEncodingMode, 2, 8, 16, 8>",
    "prefill_attention": "void flashinfer::BatchPrefillWithPagedKVCacheKernel<flashinfer::KernelTraits, true>",
    "cache_write": "void store_kvcache<__nv_bfloat16, 256>",
    "norm": "void flashinfer::norm::FusedAddRMSNormKernel<8, __nv_bfloat16>",
    "rope": "void flashinfer::BatchQKApplyRotaryPosIdsCosSinCacheHeadParallelismKernel<true, 128, 8, 16>",
    "activation": "void flashinfer::activation::act_and_mul_kernel<__nv_bfloat16, silu>",
    "reduce_one_stage": "void sglang::cross_device_reduce_1stage<__nv_bfloat16, 8>",
    "reduce_two_stage": "void sglang::cross_device_reduce_2stage<__nv_bfloat16, 8>",
}
_ASCEND = Names(
    gemm="MatMulV2",
    small_gemm="MatMulV2",
    decode_attention="PagedAttentionMaskNdKernel",
    prefill_attention="FlashAttentionScore",
    cache_write="ReshapeAndCacheNdKernel",
    norm="AddRmsNorm",
    rope="RotaryPosEmb",
    activation="SwiGlu",
    experts="GroupedMatmul",
    routing="MoeGatingTopKSoftmax",
    align="MoeInitRouting",
    combine="MoeFinalizeRouting",
    reduce_one_stage="hcom_allReduce_",
    reduce_two_stage="hcom_allReduce_",
    nccl_reduce="hcom_allReduce_",
    nccl_exchange="hcom_alltoallv_",
    cast="Cast",
    softmax="SoftmaxV2",
    argmax="ArgMaxV2",
    sort="Sort",
)


def names_of(params: LabParams) -> Names:
    if params.gpu_spec.peer_link == "hccs":
        return _ASCEND
    names = _AMPERE if params.gpu in ("A100", "L40S", "RTX4090") else _HOPPER
    return msgspec.structs.replace(names, **_SGLANG) if params.dialect == "sglang" else names


def kernels_of(params: LabParams, work: StepWork, cost: StepCost) -> list[Kernel]:
    """Of one step on one GPU, in the order in which they run."""
    return [*_before(params, work, cost), *_layers(params, work, cost), *_after(params, work, cost)]


def _before(params: LabParams, work: StepWork, cost: StepCost) -> Iterator[Kernel]:
    if cost.copy_s:
        each = int(cost.pcie_bytes // max(1, work.loaded_adapters))
        for _ in range(max(1, work.loaded_adapters)):
            yield Kernel("Memcpy HtoD (Pinned -> Device)", "aten::copy_", "copy", 1.0, each)
    if cost.encoder_s:
        names = names_of(params)
        for index in range(ENCODER_KERNELS):
            name = names.gemm if index % 2 else names.prefill_attention
            yield Kernel(name, "aten::linear" if index % 2 else "vllm::flash_attn_varlen_func", "encoder", 1.0)


def _layers(params: LabParams, work: StepWork, cost: StepCost) -> Iterator[Kernel]:
    shape, names = params.model_shape, names_of(params)
    layers = -(-shape.layers // params.pipeline_parallel)
    width = shape.heads * shape.head_dim
    qkv = shape.hidden * (width + 2 * shape.kv_heads * shape.head_dim)
    out = width * shape.hidden
    mlp = max(0.0, shape.dense_parameters / shape.layers - qkv - out)
    gemm = names.gemm if work.tokens > 64 else names.small_gemm
    attention = names.prefill_attention if work.prefill_tokens else names.decode_attention
    reduce = _reduce_name(params, work, names)
    cast_weight = _cast_weight(params, cost)
    routed = shape.experts
    expert_layers = routed.layers if routed is not None else 0
    for layer in range(layers):
        has_experts = routed is not None and layer >= layers - expert_layers
        yield Kernel(names.norm, "_C::fused_add_rms_norm", "small", 1.0)
        yield Kernel(gemm, "aten::mm", "gemm", qkv)
        yield Kernel(names.rope, "_C::rotary_embedding", "small", 1.0)
        yield Kernel(names.cache_write, "_C_cache_ops::reshape_and_cache_flash", "small", CACHE_WRITE_SHARE)
        yield Kernel(attention, "vllm::unified_attention_with_output", "attention", 1.0)
        yield Kernel(gemm, "aten::mm", "gemm", out)
        if reduce:
            yield Kernel(reduce, "vllm::all_reduce", "communication", 1.0)
        if cast_weight:
            yield Kernel(names.cast, "aten::to", "small", cast_weight)
        yield Kernel(names.norm, "_C::fused_add_rms_norm", "small", 1.0)
        if has_experts and routed is not None:
            touched = routed.touched_ratio(work.tokens) * routed.count * routed.parameters
            yield Kernel(names.routing, "_moe_C::topk_softmax", "small", ROUTING_SHARE)
            yield Kernel(names.align, "_moe_C::moe_align_block_size", "small", ROUTING_SHARE)
            if params.expert_parallel:
                yield Kernel(names.nccl_exchange, "vllm::all_to_all", "communication", 1.0)
            yield Kernel(names.experts, "vllm::moe_forward", "gemm", touched * 2 / 3)
            yield Kernel(names.activation, "_C::silu_and_mul", "small", ACTIVATION_SHARE)
            yield Kernel(names.experts, "vllm::moe_forward", "gemm", touched / 3)
            yield Kernel(names.combine, "_moe_C::moe_sum", "small", ROUTING_SHARE)
            if params.expert_parallel:
                yield Kernel(names.nccl_exchange, "vllm::all_to_all", "communication", 1.0)
        if mlp and not (has_experts and mlp < shape.hidden * shape.hidden):
            yield Kernel(gemm, "aten::mm", "gemm", mlp * 2 / 3)
            yield Kernel(names.activation, "_C::silu_and_mul", "small", ACTIVATION_SHARE)
            yield Kernel(gemm, "aten::mm", "gemm", mlp / 3)
        if reduce and not (has_experts and params.expert_parallel):
            yield Kernel(reduce, "vllm::all_reduce", "communication", 1.0)
    if params.pipeline_parallel > 1:
        yield Kernel(names.nccl_exchange, "c10d::send", "communication", 1.0)


def _after(params: LabParams, work: StepWork, cost: StepCost) -> Iterator[Kernel]:
    shape, names = params.model_shape, names_of(params)
    yield Kernel(names.norm, "_C::fused_add_rms_norm", "small", 1.0)
    yield Kernel(names.small_gemm, "aten::linear", "gemm", shape.embedding_parameters)
    if cost.sampling_s:
        if params.sampling_s_per_sequence:
            yield Kernel(names.sort, "aten::sort", "sampling", 3.0)
        yield Kernel(names.softmax, "aten::softmax", "sampling", 2.0)
        yield Kernel(names.argmax, "aten::argmax", "sampling", 1.0)


def _reduce_name(params: LabParams, work: StepWork, names: Names) -> str | None:
    if params.tensor_parallel == 1:
        return None
    message_bytes = work.tokens * params.model_shape.hidden * BF16_BYTES
    over_pcie = params.gpu_spec.peer_link == "pcie" or not params.accelerator.peer_links
    if over_pcie or message_bytes > CUSTOM_REDUCE_BYTES_MAX:
        return names.nccl_reduce
    return names.reduce_one_stage if message_bytes <= ONE_STAGE_BYTES_MAX else names.reduce_two_stage


def _cast_weight(params: LabParams, cost: StepCost) -> float:
    """Of the converting kernel of each layer beside its other small kernels, by their shares of the time."""
    if not params.cast_passes:
        return 0.0
    shape, gpu = params.model_shape, params.gpu_spec
    rate = params.weight_bandwidth_efficiency_ratio * gpu.bandwidth_bytes_per_s * params.tensor_parallel
    cast_s = params.cast_passes * 2 * shape.weights_bytes(params.weight_precision) / rate
    ratio = min(0.99, cast_s / cost.small_s)
    others = 3.0 + CACHE_WRITE_SHARE + ACTIVATION_SHARE
    return others * ratio / (1 - ratio)
