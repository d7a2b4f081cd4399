"""The step time against published measurements and first-order predictions."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.lab.cost import CostModel, capture_sizes
from pinchpoint.lab.hardware import GPUS
from pinchpoint.lab.params import Accelerator, Grammar, LabParams, Lora, Speculation
from pinchpoint.lab.shapes import MODELS
from pinchpoint.lab.work import AcceleratorState, StepCost, StepWork

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


# --- work of one kind or the other ---------------------------------------------------------------------------------


def decode(sequences: int, context: int = 1000) -> StepWork:
    pairs = sequences * context
    return StepWork(
        tokens=sequences, sequences=sequences, attention_pairs=pairs, kv_tokens=pairs, sampled_rows=sequences
    )


def prompt(tokens: int) -> StepWork:
    return StepWork(
        tokens=tokens,
        sequences=1,
        attention_pairs=tokens**2 / 2,
        kv_tokens=tokens,
        prefill_tokens=tokens,
        sampled_rows=1,
    )


LARGE = LabParams(model="llama-3-70b", gpu="H100", tensor_parallel=4)
EXPERTS = LabParams(model="mixtral-8x7b", gpu="H100", tensor_parallel=4, expert_parallel=True)


def step(params: LabParams, work: StepWork, state: AcceleratorState | None = None) -> StepCost:
    cost = CostModel(params)
    return cost.step(work) if state is None else cost.step(work, state)


ANY_PARAMS = [
    LabParams(),
    LARGE,
    EXPERTS,
    LabParams(model="deepseek-v3", gpu="H200", tensor_parallel=8, expert_parallel=True, weight_precision="fp8"),
    LabParams(model="llama-3-70b", gpu="L40S", tensor_parallel=4, pipeline_parallel=2),
    LabParams(model="qwen3-32b", gpu="910B2", tensor_parallel=2),
]
params_of_any_kind = st.sampled_from(ANY_PARAMS)
works_of_any_kind = st.builds(
    StepWork,
    tokens=st.integers(1, 4096),
    sequences=st.integers(1, 256),
    attention_pairs=st.floats(0, 1e7),
    kv_tokens=st.integers(0, 400_000),
    prefill_tokens=st.sampled_from([0, 1, 512]),
    sampled_rows=st.integers(0, 256),
    masked_sequences=st.integers(0, 16),
    adapters=st.integers(0, 4),
    loaded_adapters=st.integers(0, 2),
    image_tokens=st.sampled_from([0, 256]),
)
ratios = st.floats(0.05, 1.0)
states = st.builds(
    AcceleratorState,
    clock_ratio=ratios,
    memory_clock_ratio=ratios,
    link_ratio=ratios,
    pcie_ratio=ratios,
)


@given(params=params_of_any_kind, work=works_of_any_kind, state=states)
def test_the_parts_of_a_step_add_up_to_it(params: LabParams, work: StepWork, state: AcceleratorState) -> None:
    cost = step(params, work, state)
    waiting_s = cost.host_s + cost.launch_s + cost.compile_s + cost.neighbour_s
    assert cost.total_s == pytest.approx(cost.busy_s + waiting_s)
    assert min(cost.gemm_s, cost.attention_s, cost.small_s, cost.communication_s, cost.launch_s, cost.dram_bytes) >= 0


@given(
    params=params_of_any_kind,
    work=works_of_any_kind,
    state=states,
    part=st.sampled_from(["clock_ratio", "memory_clock_ratio", "link_ratio", "pcie_ratio"]),
    more=st.floats(1.0, 20.0),
)
def test_faster_hardware_never_makes_a_step_longer(
    params: LabParams, work: StepWork, state: AcceleratorState, part: str, more: float
) -> None:
    better = msgspec.structs.replace(state, **{part: getattr(state, part) * more})
    assert step(params, work, better).total_s <= step(params, work, state).total_s * (1 + 1e-9)


@given(
    work=works_of_any_kind,
    part=st.sampled_from(["compute", "weight_bandwidth", "kv_bandwidth"]),
    low=ratios,
    high=ratios,
)
def test_higher_efficiency_never_makes_a_step_longer(work: StepWork, part: str, low: float, high: float) -> None:
    low, high = sorted((low, high))
    slow, fast = (LabParams().changed({f"{part}_efficiency_ratio": value}) for value in (low, high))
    assert step(fast, work).total_s <= step(slow, work).total_s * (1 + 1e-9)


@given(tokens=st.integers(1024, 8192), ways=st.sampled_from([2, 4]))
def test_more_gpus_on_nvlink_are_never_slower_on_long_prompts(tokens: int, ways: int) -> None:
    few, many = (msgspec.structs.replace(LARGE, gpu="H200", tensor_parallel=n) for n in (ways, 2 * ways))
    assert step(many, prompt(tokens)).total_s < step(few, prompt(tokens)).total_s


def test_small_models_gain_little_from_more_gpus_while_decoding() -> None:
    one, eight = (LabParams(gpu="H100", tensor_parallel=n, model="qwen2.5-7b") for n in (1, 8))
    assert step(eight, decode(1)).total_s > step(one, decode(1)).total_s / 4


# --- experts -------------------------------------------------------------------------------------------------------


def test_few_tokens_read_few_experts_and_many_read_all() -> None:
    one, all_of_them = step(EXPERTS, decode(1)), step(EXPERTS, decode(64))
    weights_per_gpu = MODELS["mixtral-8x7b"].weights_bytes() / 4
    assert one.dram_bytes < 0.35 * weights_per_gpu
    assert all_of_them.dram_bytes > 0.95 * weights_per_gpu


@pytest.mark.parametrize("name", [name for name, shape in MODELS.items() if shape.experts])
def test_experts_are_most_but_not_all_of_a_model(name: str) -> None:
    shape = MODELS[name]
    assert shape.experts is not None
    assert 0.5 * shape.parameters < shape.experts.all_parameters < shape.parameters
    assert shape.dense_parameters > 0


# Published totals of active parameters, embedding included: Mixtral 12.9e9, DeepSeek-V3 37e9, Qwen3-235B 22e9.
@pytest.mark.parametrize(
    ("name", "active"),
    [("mixtral-8x7b", 12.9e9), ("deepseek-v3", 37e9), ("deepseek-v2-lite", 2.4e9), ("qwen3-235b-a22b", 22e9)],
)
def test_active_parameters_are_those_that_were_published(name: str, active: float) -> None:
    shape = MODELS[name]
    assert shape.active_parameters + shape.embedding_parameters == pytest.approx(active, rel=0.05)


def test_others_wait_for_the_fullest_experts() -> None:
    even = step(EXPERTS, prompt(2048))
    skewed = step(msgspec.structs.replace(EXPERTS, expert_imbalance_ratio=2.0), prompt(2048))
    assert skewed.communication_s > 2 * even.communication_s
    assert skewed.gemm_s == even.gemm_s
    without = msgspec.structs.replace(EXPERTS, expert_parallel=False)
    assert step(msgspec.structs.replace(without, expert_imbalance_ratio=2.0), prompt(2048)) == step(
        without, prompt(2048)
    )


# --- cache, precision ----------------------------------------------------------------------------------------------

# Published: config.json of each model; 2 x layers x key-value heads x 128 x 2 bytes, or layers x (512 + 64) x 2.
KV_BYTES = {"llama-3-8b": 131_072, "llama-3-70b": 327_680, "qwen2.5-7b": 57_344, "mixtral-8x7b": 131_072}


@pytest.mark.parametrize("name", KV_BYTES)
def test_cache_per_token_is_as_published(name: str) -> None:
    assert MODELS[name].kv_bytes_per_token() == KV_BYTES[name]
    assert MODELS[name].kv_bytes_per_token("fp8") == KV_BYTES[name] // 2


def test_latent_attention_caches_a_twentieth_and_cannot_be_cut_between_gpus() -> None:
    deepseek = LabParams(model="deepseek-v3", gpu="H200", tensor_parallel=8, weight_precision="fp8")
    assert deepseek.kv_bytes_per_token == 61 * (512 + 64) * 2
    assert deepseek.kv_block_bytes == deepseek.kv_bytes_per_token * deepseek.block_size_tokens
    llama = LabParams(model="llama-3-70b", gpu="H200", tensor_parallel=8)
    assert llama.kv_block_bytes == llama.kv_bytes_per_token * llama.block_size_tokens / 8


def test_half_the_bytes_are_half_the_time_and_nearly_twice_the_pool() -> None:
    fp8 = LabParams(gpu="H100", weight_precision="fp8", kv_precision="fp8")
    bf16 = LabParams(gpu="H100")
    assert step(fp8, decode(1)).gemm_s < 0.6 * step(bf16, decode(1)).gemm_s
    assert step(fp8, decode(64)).attention_s == pytest.approx(step(bf16, decode(64)).attention_s / 2)
    assert fp8.num_kv_blocks() > 2 * bf16.num_kv_blocks()
    assert step(fp8, prompt(2048)).gemm_s < 0.6 * step(bf16, prompt(2048)).gemm_s


def test_without_tensor_cores_for_it_fp8_saves_bytes_and_no_arithmetic() -> None:
    fp8 = LabParams(gpu="A100", weight_precision="fp8")
    assert step(fp8, decode(1)).gemm_s < 0.6 * step(LabParams(), decode(1)).gemm_s
    assert step(fp8, prompt(8192)).gemm_s == pytest.approx(step(LabParams(), prompt(8192)).gemm_s, rel=0.02)


# Published block counts of vLLM, utilisation 0.9: Llama-3.1-8B on an RTX 4090 with vLLM 0.19, 2588 blocks of 16.
def test_the_pool_of_a_small_card_is_as_published_with_its_overhead() -> None:
    card = LabParams(gpu="RTX4090", model="llama-3.1-8b", non_kv_bytes=1.24e9)
    assert card.num_kv_blocks() == pytest.approx(2588, rel=0.02)


# --- pipeline ------------------------------------------------------------------------------------------------------


def test_one_sequence_gains_nothing_from_a_pipeline() -> None:
    piped = LabParams(model="llama-3-70b", gpu="H200", pipeline_parallel=4)
    single = LabParams(model="llama-3-70b", gpu="H200", tensor_parallel=1, kv_blocks=1000)
    assert step(piped, decode(1)).total_s > step(single, decode(1)).total_s
    assert step(piped, decode(1)).occupied_ratio == 1 / 4


def test_a_full_pipeline_computes_as_fast_as_its_gpus_together() -> None:
    piped = LabParams(model="llama-3-70b", gpu="H200", pipeline_parallel=4)
    single = LabParams(model="llama-3-70b", gpu="H200", kv_blocks=1000)
    work = StepWork(tokens=8192, sequences=8, attention_pairs=8 * 1024**2 / 2, kv_tokens=8192, prefill_tokens=8192)
    assert step(piped, work).occupied_ratio == 1.0
    assert step(piped, work).busy_s == pytest.approx(step(single, work).busy_s / 4, rel=0.1)


# --- graphs and launches -------------------------------------------------------------------------------------------


def test_captured_sizes_are_vllms() -> None:
    sizes = capture_sizes(512)
    assert sizes[:6] == [1, 2, 4, 8, 16, 24]
    assert sizes[-3:] == [480, 496, 512]
    assert len(sizes) == 51
    assert capture_sizes(0) == []


def test_a_batch_is_padded_to_its_graph() -> None:
    cost = CostModel(LabParams(sequence_overhead_s=0, compute_efficiency_ratio=0.01))
    assert cost.step(StepWork(tokens=17, sequences=17)).gemm_s == cost.step(StepWork(tokens=24, sequences=17)).gemm_s
    assert cost.step(StepWork(tokens=25, sequences=17)).gemm_s > cost.step(StepWork(tokens=24, sequences=17)).gemm_s


def test_graphs_cover_decode_steps_up_to_the_largest() -> None:
    cost = CostModel(LabParams(cudagraph_max_sequences=64))
    assert cost.step(decode(64)).graphed
    assert not cost.step(decode(65)).graphed
    assert not cost.step(prompt(64)).graphed


def test_without_graphs_launching_sets_a_floor_that_no_small_batch_can_move() -> None:
    eager = LabParams(cuda_graphs=False, kernel_launch_s=60e-6, sequence_overhead_s=0)
    one, eight = step(eager, decode(1)), step(eager, decode(8, context=500))
    assert one.total_s == pytest.approx(eight.total_s)
    assert one.launch_s > one.busy_s
    assert step(LabParams(kernel_launch_s=60e-6), decode(1)).launch_s == 0
    long = step(eager, prompt(2048))
    assert long.launch_s == 0


def test_the_first_step_of_each_shape_compiles_and_no_other() -> None:
    cost = CostModel(LabParams(first_shape_s=2.0))
    times = [cost.step(work).compile_s for work in (decode(1), decode(2), decode(9), decode(1), prompt(300))]
    assert times == [2.0, 0.0, 2.0, 0.0, 2.0]
    assert cost.step(prompt(400)).compile_s == 0.0
    assert cost.step(prompt(1000)).compile_s == 2.0


# --- what requests bring -------------------------------------------------------------------------------------------


def test_what_a_request_brings_is_charged_where_it_is_done() -> None:
    work = decode(8)
    plain = step(LabParams(), work)

    def with_(params: LabParams, **fields: int) -> StepCost:
        return step(params, msgspec.structs.replace(work, **fields))

    masked = with_(LabParams(grammar=Grammar(mask_s_per_sequence=1e-3)), masked_sequences=8)
    assert masked.host_s - plain.host_s == pytest.approx(8e-3)
    pictures = with_(LabParams(), image_tokens=1024)
    # A vision transformer of 0.63e9 parameters, four patches to a token, at half of A100's rate.
    assert pictures.encoder_s == pytest.approx(2 * 0.63e9 * 4 * 1024 / 156e12)
    adapted = with_(LabParams(lora=Lora(slowdown_ratio=1.5, load_s=0.05)), adapters=2, loaded_adapters=1)
    assert adapted.busy_s - adapted.copy_s - plain.busy_s == pytest.approx(
        0.5 * (plain.gemm_s + plain.attention_s + plain.small_s)
    )
    assert adapted.copy_s == pytest.approx(0.05)
    assert adapted.pcie_bytes > plain.pcie_bytes + 1e8
    drafted = with_(LabParams(speculation=Speculation(draft_cost_ratio=0.05)), draft_tokens=24)
    assert drafted.gemm_s == pytest.approx(1.15 * plain.gemm_s, rel=0.02)
    sorted_ = step(LabParams(sampling_s_per_sequence=1e-3), work)
    assert sorted_.sampling_s - plain.sampling_s == pytest.approx(8e-3)
    cast = step(LabParams(cast_passes=1.0), work)
    # Read and written once more, at 0.8 of A100's bandwidth.
    assert cast.small_s - plain.small_s == pytest.approx(2 * 16.06e9 / (0.8 * 2.039e12), rel=0.01)


def test_adapters_come_over_a_slow_bus_slowly() -> None:
    work = msgspec.structs.replace(decode(8), loaded_adapters=1)
    slow = step(LabParams(), work, AcceleratorState(pcie_ratio=0.1))
    assert slow.copy_s > 1.5 * step(LabParams(), work).copy_s


# --- links ---------------------------------------------------------------------------------------------------------


def test_without_peer_links_sums_go_over_the_bus() -> None:
    healthy = step(LARGE, prompt(2048))
    assert healthy.link_bytes > 1e9
    assert healthy.pcie_bytes < 1e6
    over_bus = step(msgspec.structs.replace(LARGE, accelerator=Accelerator(peer_links=False)), prompt(2048))
    assert over_bus.link_bytes == 0
    assert over_bus.pcie_bytes > 1e9
    assert over_bus.communication_s > 4 * healthy.communication_s


def test_links_matter_only_where_there_is_more_than_one_gpu() -> None:
    cut = AcceleratorState(link_ratio=0.05)
    assert step(LabParams(), prompt(2048), cut) == step(LabParams(), prompt(2048))
    assert step(LARGE, prompt(2048), cut).total_s > 2 * step(LARGE, prompt(2048)).total_s


# Measured on eight H100 (aiconfigurator's published NCCL 2.27 table, half precision): sums over 4 and 8 GPUs of
# 1, 8 and 64 Mi values take 27, 99 and 615 and 39, 122 and 578 us; of 256 values, 10 and 16 us, which is the latency.
@pytest.mark.parametrize(
    ("ways", "values", "measured_us"),
    [(4, 1 << 20, 27), (4, 1 << 23, 99), (4, 1 << 26, 615), (8, 1 << 20, 39), (8, 1 << 23, 122), (8, 1 << 26, 578)],
)
def test_sums_between_gpus_take_about_the_measured_time(ways: int, values: int, measured_us: float) -> None:
    params = LabParams(
        model="llama-3-70b",
        gpu="H100",
        tensor_parallel=ways,
        link_efficiency_ratio=0.88,
        all_reduce_latency_s={4: 10e-6, 8: 16e-6}[ways],
    )
    tokens = values // 8192
    calls = 2 * 80
    per_call_us = 1e6 * step(params, StepWork(tokens=tokens, prefill_tokens=tokens)).communication_s / calls
    assert per_call_us == pytest.approx(measured_us, rel=0.4)


# --- state of the GPU ----------------------------------------------------------------------------------------------


def test_a_low_core_clock_slows_prompts_in_proportion_and_decoding_little() -> None:
    low = AcceleratorState(clock_ratio=0.5)
    assert step(LabParams(), prompt(2048), low).gemm_s == pytest.approx(
        2 * step(LabParams(), prompt(2048)).gemm_s, rel=0.02
    )
    assert step(LabParams(), decode(16), low).total_s < 1.15 * step(LabParams(), decode(16)).total_s


def test_a_low_memory_clock_slows_decoding_in_proportion_and_prompts_little() -> None:
    low = AcceleratorState(memory_clock_ratio=0.5)
    assert step(LabParams(), decode(1), low).gemm_s == pytest.approx(2 * step(LabParams(), decode(1)).gemm_s, rel=0.01)
    assert step(LabParams(), prompt(2048), low).total_s < 1.15 * step(LabParams(), prompt(2048)).total_s


def test_a_neighbour_takes_its_share_in_slices_so_that_equal_steps_take_two_times() -> None:
    params = LabParams(accelerator=Accelerator(neighbour_slice_s=2e-3))
    cost = CostModel(params)
    state = AcceleratorState(available_ratio=0.75)
    steps = [cost.step(decode(16), state) for _ in range(400)]
    times = {round(one.neighbour_s, 9) for one in steps}
    assert len(times) == 2
    assert max(times) - min(times) == pytest.approx(2e-3)
    waited, busy = sum(one.neighbour_s for one in steps), sum(one.busy_s for one in steps)
    assert waited / (waited + busy) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_has_a_plausible_data_sheet(gpu: str) -> None:
    spec = GPUS[gpu]
    assert spec.name == gpu
    assert 50 < spec.bf16_flops_per_s / spec.bandwidth_bytes_per_s < 500  # FLOP per byte
    assert (spec.peer_link == "pcie") == (spec.link_bytes_per_s == spec.pcie_bytes_per_s)
    assert spec.slowdown_c < spec.hardware_slowdown_c
