"""Names of kernels say what they do; the table of patterns is held to the examples in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.lab import kernels as of_lab
from pinchpoint.profiles import kernels

PATTERNS = kernels.catalogue().pattern
MATRIX = kernels.catalogue().matrix_unit


@pytest.mark.parametrize("row", PATTERNS, ids=lambda row: f"{row.category}: {row.example[:40]}")
def test_an_example_is_won_by_its_own_pattern(row):
    assert kernels.category_of(row.example) == row.category
    assert next(one for one in kernels._compiled() if one[0].search(row.example))[0].pattern == row.match


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.example[:40])
def test_use_of_matrix_units_is_told_by_name(row):
    assert kernels.uses_matrix_unit(row.example) is row.used


def test_every_category_has_a_title_and_groups_name_categories():
    found = kernels.catalogue()
    assert {row.category for row in PATTERNS} <= set(found.categories)
    assert {name for names in found.groups.values() for name in names} <= set(found.categories)


@pytest.mark.parametrize(
    ("name", "category"),
    [
        # What a naive table gets wrong.
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>", "all_reduce"),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float, at::native::ArgMaxOps<float>>>", "sampling"),
        ("fused_moe_kernel_gptq_awq", "moe_experts"),
        ("void fbgemm_gpu::permute_2D_data_kernel<false, int>", "data_movement"),
        ("void vllm::moe::moe_align_block_size_kernel<int>", "moe_routing"),
        ("triton_red_fused_add_rms_norm_0", "norm"),
        ("void flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128>>", "attention_decode"),
        ("cutlass::device_kernel<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90>>", "attention_prefill"),
        ("_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi64ELi8EEE", "norm"),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT128x256x32_MI16x16x1", "gemm"),
        ("hcom_allReduce_", "all_reduce"),
        ("MatMulV2", "gemm"),
        ("my_very_own_kernel", "other"),
    ],
)  # fmt: skip
def test_look_alikes_are_told_apart(name, category):
    assert kernels.category_of(name) == category


def test_the_labs_own_spellings_mean_what_the_lab_means():
    spelt = next(value for value in vars(of_lab).values() if isinstance(getattr(value, "decode_attention", None), str))
    meant = {
        "gemm": "gemm", "small_gemm": "gemm", "decode_attention": "attention_decode",
        "prefill_attention": "attention_prefill", "cache_write": "kv_write", "norm": "norm", "rope": "rope",
        "activation": "activation", "experts": "moe_experts", "routing": "moe_routing", "cast": "elementwise",
        "reduce_one_stage": "all_reduce", "nccl_reduce": "all_reduce", "nccl_exchange": "send_recv",
        "argmax": "sampling", "sort": "sampling",
    }  # fmt: skip
    assert {field: kernels.category_of(getattr(spelt, field)) for field in meant} == meant


@given(st.text(max_size=300))
def test_any_text_has_a_category(name):
    assert kernels.category_of(name) in kernels.category_ids()
