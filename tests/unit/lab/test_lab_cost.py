"""The step time against published measurements and first-order predictions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.lab.cost import CostModel, StepWork
from pinchpoint.lab.params import LabParams

# Vidur's profile of Llama-3-8B on A100 (TP 1): sum over 32 layers of all matrix products, and of norms, rotary
# embedding, activation and adds, in ms. The model's own launch overhead is in the second figure.
VIDUR_A100_LLAMA3_8B_MS = {
    1: (8.83, 0.86),
    64: (10.37, 0.86),
    128: (12.06, 1.12),
    256: (17.73, 1.76),
    512: (31.81, 2.83),
    1024: (69.6, 5.54),
    2048: (133.86, 11.71),
    4096: (250.85, 22.72),
}


@pytest.mark.parametrize("tokens", VIDUR_A100_LLAMA3_8B_MS)
def test_step_time_follows_measured_kernel_sums(tokens: int) -> None:
    matrix_ms, small_ms = VIDUR_A100_LLAMA3_8B_MS[tokens]
    step_ms = 1e3 * CostModel(LabParams(sequence_overhead_s=0)).step_s(StepWork(tokens=tokens, sequences=1))
    assert step_ms == pytest.approx(matrix_ms + small_ms, rel=0.10)


# Roofline arithmetic with MBU 0.8, MFU 0.7 and no overheads: decode of one sequence at 1k context, prefill of 1k.
FIRST_ORDER_MS = [
    ("A100", "llama-3-8b", 1, 9.9, 77),
    ("H100", "llama-3-8b", 1, 6.0, 24),
    ("L40S", "llama-3-8b", 1, 23.4, 66),
    ("A100", "qwen2.5-7b", 1, 9.4, 72),
    ("A100", "llama-3-70b", 4, 21.7, 167),
]


@pytest.mark.parametrize(("gpu", "model", "ways", "decode_ms", "prefill_ms"), FIRST_ORDER_MS)
def test_unloaded_step_times_are_near_first_order_predictions(
    gpu: str, model: str, ways: int, decode_ms: float, prefill_ms: float
) -> None:
    cost = CostModel(LabParams(gpu=gpu, model=model, tensor_parallel=ways))
    decode = StepWork(tokens=1, sequences=1, attention_pairs=1024, kv_tokens=1024)
    prefill = StepWork(tokens=1024, sequences=1, attention_pairs=1024 * 512, kv_tokens=1024)
    assert 1e3 * cost.step_s(decode) == pytest.approx(decode_ms, rel=0.12)
    # Small kernels and all-reduce are not in the first-order figure: most on little bandwidth (L40S), and with TP 4.
    assert 1e3 * cost.step_s(prefill) == pytest.approx(prefill_ms, rel=0.16 if ways == 1 else 0.25)


def test_weight_reads_are_flat_in_batch_and_cache_reads_are_not() -> None:
    cost = CostModel(LabParams(step_overhead_s=0, sequence_overhead_s=0))
    one, eight = StepWork(tokens=1, sequences=1), StepWork(tokens=8, sequences=8)
    assert cost.step_s(eight) < 1.02 * cost.step_s(one)
    long_context = StepWork(tokens=8, sequences=8, attention_pairs=8 * 8000, kv_tokens=8 * 8000)
    assert cost.step_s(long_context) > 1.4 * cost.step_s(eight)


@given(
    tokens=st.integers(1, 4096),
    more=st.integers(1, 512),
    kv_tokens=st.integers(0, 100_000),
    efficiency=st.floats(0.05, 1.0),
)
def test_more_work_never_takes_less_time(tokens: int, more: int, kv_tokens: int, efficiency: float) -> None:
    cost = CostModel(LabParams(compute_efficiency_ratio=efficiency))
    base = cost.step_s(StepWork(tokens=tokens, sequences=1, kv_tokens=kv_tokens))
    assert cost.step_s(StepWork(tokens=tokens + more, sequences=1, kv_tokens=kv_tokens)) >= base
    assert cost.step_s(StepWork(tokens=tokens, sequences=1, kv_tokens=kv_tokens + more)) > base


def test_default_pool_has_about_440_thousand_tokens() -> None:
    params = LabParams()
    assert params.num_kv_blocks() * params.block_size_tokens == pytest.approx(441_000, rel=0.01)


def test_a_model_that_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="raise tensor_parallel"):
        LabParams(model="llama-3-70b").validate()


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (LabParams(gpu="B300"), "A100"),
        (LabParams(model="gpt-2"), "llama-3-8b"),
        (LabParams(max_num_seqs=0), "max_num_seqs"),
        (LabParams(max_num_batched_tokens=8), "max_num_batched_tokens"),
    ],
)
def test_impossible_parameters_name_the_field_or_the_choices(params: LabParams, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        params.validate()
