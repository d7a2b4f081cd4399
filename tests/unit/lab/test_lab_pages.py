"""The imitated pages against recorded ones, the reference parser and the catalogue."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_pages import BLOCKS_FOR_512, BLOCKS_FOR_2048, PROCESS, busy, gpu, host, idle, rich
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.utils import floatToGoString

from pinchpoint.catalog import load_catalog
from pinchpoint.lab.group import EngineGroup
from pinchpoint.lab.metrics import EngineState, Gauges, Histogram, LabMetrics, merged
from pinchpoint.lab.pages import dcgm, engine_page, llamacpp, node, npu, respelled, sglang, tgi, vllm
from pinchpoint.lab.pages.engine import Age, Dialect
from pinchpoint.lab.pages.text import go_number, labelled, python_number, rust_number, stream_number
from pinchpoint.lab.params import Disaggregation, Grammar, LabParams, Lora, Speculation
from pinchpoint.lab.sequence import EngineRequest, Sequence
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.page import Page
from pinchpoint.telemetry.prometheus import PrometheusParser

SHAPES = json.loads((Path(__file__).parents[2] / "data" / "metrics" / "shapes.json").read_text())
PAGES: list[tuple[Dialect, Age]] = [
    ("vllm", "current"), ("vllm", "old"), ("sglang", "current"), ("sglang", "old"), ("tgi", "current"),
    ("llama.cpp", "current"), ("llama.cpp", "old"),
]  # fmt: skip


def shape(page: str) -> dict[str, dict[str, object]]:
    """Per family its kind, label names and bounds, all as they stand on the page."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", page, re.MULTILINE))
    found: dict[str, dict[str, object]] = {n: {"kind": k, "labels": set(), "bounds": []} for n, k in kinds.items()}
    for sample in PrometheusParser().parse(page)[0]:
        name = sample.name if sample.name in kinds else re.sub(r"_(bucket|sum|count)$", "", sample.name)
        labels, bounds = found[name]["labels"], found[name]["bounds"]
        assert isinstance(labels, set) and isinstance(bounds, list)
        labels |= set(sample.labels) - {"le", "quantile"}
        if sample.labels.get("le", bounds) not in (bounds, *bounds):
            bounds.append(sample.labels["le"])
    return found


def readings(page: str) -> list[Reading]:
    return Page("", "engine", load_catalog()).read_page(page.encode())


def canonical(page: str) -> dict[str, float]:
    """Canonical series without buckets, added up over labels."""
    values: dict[str, float] = {}
    for reading in readings(page):
        if reading.series is not None and not reading.series.endswith("_bucket"):
            values[reading.series] = values.get(reading.series, 0.0) + reading.value
    return values


# Against recorded pages --------------------------------------------------------------------------------------------

GC = ("python_gc_objects_collected_total", "python_gc_objects_uncollectable_total", "python_gc_collections_total")
NOT_MODELLED: dict[str, set[str]] = {
    "vllm": {*GC, "python_info", "process_virtual_memory_bytes"},
    "vllm_v0": {
        *GC, "python_info", "process_virtual_memory_bytes",
        "vllm:avg_prompt_throughput_toks_per_s", "vllm:avg_generation_throughput_toks_per_s",
    },
    "sglang_old": {"sglang:func_latency_seconds"},
    "tgi": set(),
    "llamacpp": set(),
    "npu": set(),
    "node": set(),
    "dcgm": {
        "DCGM_FI_DEV_COUNT", "DCGM_FI_DEV_SLOWDOWN_TEMP", "DCGM_FI_DEV_PSTATE", "DCGM_FI_DEV_FB_USED_PERCENT",
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        "DCGM_FI_DEV_ROW_REMAP_FAILURE", "DCGM_FI_DEV_FAN_SPEED", "DCGM_FI_PROF_SM_OCCUPANCY",
        "DCGM_FI_PROF_PIPE_FP64_ACTIVE", "DCGM_FI_PROF_PIPE_FP32_ACTIVE", "DCGM_FI_PROF_PIPE_FP16_ACTIVE",
    },
}  # fmt: skip
MORE = {
    "vllm": {
        "vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_draft_tokens_total", "vllm:lora_requests_info",
        "vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_per_pos_total",
        "vllm:nixl_xfer_time_seconds", "vllm:nixl_bytes_transferred", "vllm:nixl_num_failed_transfers_total",
    },
    "node": {
        "node_memory_MemAvailable_bytes", "node_uname_info", "node_boot_time_seconds", "node_time_seconds",
    },
}  # fmt: skip
"""Of servers that draft, serve adapters and receive KV, and of kernels since 3.14; the recorded ones were not such."""


WITHOUT_SAMPLES = {"node_network_receive_bytes_total", "node_network_transmit_bytes_total"}
"""On the recorded page, from which they were filtered; their label is device, as that of their neighbours."""


def imitation(name: str) -> str:
    at_2048, at_512 = busy(rich(BLOCKS_FOR_2048)), busy(rich(BLOCKS_FOR_512))
    return {
        "vllm": lambda: engine_page("vllm", [at_2048], PROCESS),
        "vllm_v0": lambda: engine_page("vllm", [at_2048], PROCESS, age="old"),
        "sglang_old": lambda: engine_page("sglang", [at_2048], age="old"),
        "tgi": lambda: engine_page("tgi", [at_512]),
        "llamacpp": lambda: engine_page("llama.cpp", [at_2048]),
        "npu": lambda: npu.page([gpu()], "910B2", 1_606_402_000.0),
        "node": lambda: node.page(host()),
        "dcgm": lambda: dcgm.page([gpu()], "A100"),
    }[name]()


@pytest.mark.parametrize("name", ["vllm", "vllm_v0", "sglang_old", "tgi", "llamacpp", "node"])
def test_families_types_labels_and_bounds_are_those_of_the_recorded_page(name: str) -> None:
    recorded, ours = SHAPES[name], shape(imitation(name))
    assert set(recorded) - set(ours) == NOT_MODELLED[name]
    assert set(ours) - set(recorded) == MORE.get(name, set())
    for family in set(ours) & set(recorded):
        assert ours[family]["kind"] == recorded[family]["kind"], family
        if family not in WITHOUT_SAMPLES:
            assert ours[family]["labels"] == set(recorded[family]["labels"]), family
        assert " ".join(ours[family]["bounds"]) == recorded[family].get("bounds", ""), family  # pyright: ignore


RATES_CALLED_COUNTERS = {"DCGM_FI_PROF_PCIE_TX_BYTES", "DCGM_FI_PROF_PCIE_RX_BYTES"}
"""DCGM gives bytes a second; the recorded, older exporter calls them counters, current ones gauges."""


@pytest.mark.parametrize("name", ["npu", "dcgm"])
def test_exporters_of_accelerators_show_the_recorded_families_and_those_of_a_longer_list(name: str) -> None:
    recorded, ours = SHAPES[name], shape(imitation(name))
    assert set(recorded) - set(ours) == NOT_MODELLED[name]
    for family in set(ours) & set(recorded):
        expected = "gauge" if family in RATES_CALLED_COUNTERS else recorded[family]["kind"]
        assert ours[family]["kind"] == expected, family


def test_npu_labels_are_the_recorded_ones() -> None:
    ours = shape(imitation("npu"))
    assert {n: set(f["labels"]) for n, f in SHAPES["npu"].items()} == {n: ours[n]["labels"] for n in SHAPES["npu"]}


def test_dcgm_labels_are_those_of_current_exporters() -> None:
    """The recorded one is old: it has no pci_bus_id, and its own process for a label."""
    recorded = set(SHAPES["dcgm"]["DCGM_FI_DEV_SM_CLOCK"]["labels"]) - {"DCGM_FI_PROCESS_NAME"} | {"pci_bus_id"}
    assert all(family["labels"] == recorded for family in shape(imitation("dcgm")).values())


def test_families_stand_in_the_recorded_order() -> None:
    for name in ("vllm", "vllm_v0", "llamacpp", "sglang_old"):
        ours = [family for family in shape(imitation(name)) if family in SHAPES[name]]
        assert ours == sorted(ours, key=list(SHAPES[name]).index), name


def test_what_is_left_out_is_said() -> None:
    for name, module in (("vllm", vllm), ("vllm_v0", vllm), ("sglang_old", sglang), ("tgi", tgi)):
        text = (module.__doc__ or "").replace("\n", " ")
        for family in NOT_MODELLED[name]:
            bare = family.removeprefix("vllm:").removeprefix("sglang:")
            assert bare in text or bare.startswith(("python_", "avg_")), family


# Against the reference parser --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dialect", "age"), PAGES)
@pytest.mark.parametrize("make", [idle, busy])
def test_every_page_is_valid_text_with_consistent_histograms(
    dialect: Dialect, age: Age, make: Callable[[], EngineState]
) -> None:
    page = engine_page(dialect, [make()], PROCESS, age=age)
    names: list[str] = []
    for family in text_string_to_metric_families(page):
        names.append(family.name)
        if family.type != "histogram":
            continue
        per_labels: dict[tuple[tuple[str, str], ...], list[float]] = {}
        for sample in family.samples:
            key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            if sample.name.endswith("_bucket"):
                per_labels.setdefault(key, []).append(sample.value)
            elif sample.name.endswith("_count"):
                assert per_labels[key][-1] == sample.value
                assert per_labels[key] == sorted(per_labels[key])
    assert len(names) == len(set(names))
    assert PrometheusParser().parse(page)[1] == 0


@pytest.mark.parametrize("page", [dcgm.page([gpu(0), gpu(1)], "A100"), npu.page([gpu(), gpu(1)], "910B2", 1.5e9),
                                  npu.page([gpu()], "910B2"), node.page(host()), node.container_page(host()),
                                  node.container_page(host(), quota_cores=1.5), dcgm.page([], "A100")])  # fmt: skip
def test_pages_of_exporters_parse(page: str) -> None:
    families = list(text_string_to_metric_families(page))
    assert len({family.name for family in families}) == len(families)
    assert all(family.samples for family in families)
    assert PrometheusParser().parse(page)[1] == 0


@given(st.floats(allow_nan=False, min_value=0) | st.integers(0, 10**15))
def test_numbers_are_written_as_the_libraries_write_them(value: float) -> None:
    assert python_number(value) == floatToGoString(value)
    if value != float("inf"):
        assert float(go_number(value)) == float(value)
        assert float(rust_number(value)) == float(value)
        assert float(stream_number(value)) == pytest.approx(float(value), rel=1e-5, abs=1e-300)


@pytest.mark.parametrize(
    ("value", "python", "go", "rust", "stream"),
    [
        (0, "0.0", "0", "0", "0"), (128.0, "128.0", "128", "128", "128"), (674.1142, "674.1142", "674.1142", "674.1142",
         "674.114"), (1_631_329, "1.631329e+06", "1.631329e+06", "1631329", "1631329"),
        (1.5e9, "1.5e+09", "1.5e+09", "1500000000", "1.5e+09"),
    ],
)  # fmt: skip
def test_each_has_its_own_way_with_a_number(value: float, python: str, go: str, rust: str, stream: str) -> None:
    assert (python_number(value), go_number(value), rust_number(value), stream_number(value)) == (
        python, go, rust, stream,
    )  # fmt: skip


@given(st.text())
def test_any_model_name_survives_as_a_label(name: str) -> None:
    state = idle()
    state.params = LabParams(model="llama-3-8b")
    page = vllm.Page(vllm.PYTHON)
    page.family("x", "gauge", "x", [(labelled(model_name=name), 1)])
    text = page.text()
    if "\r" not in name and not any(c in name for c in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"):
        (family,) = text_string_to_metric_families(text)
        assert family.samples[0].labels["model_name"] == name


@given(st.lists(st.floats(0, 3000), max_size=30), st.sets(st.sampled_from(range(20))))
def test_a_page_counts_what_lies_below_its_own_bounds(values: list[float], chosen: set[int]) -> None:
    held = tuple(float(2**power) for power in range(-8, 12))
    histogram = Histogram(held)
    for value in values:
        histogram.observe(value)
    wanted = tuple(held[place] for place in sorted(chosen))
    expected = [sum(1 for value in values if value <= bound) for bound in wanted]
    assert histogram.below(wanted) == [*expected, len(values)]
    assert merged([histogram, histogram]).below(wanted) == [2 * count for count in [*expected, len(values)]]


def test_bounds_that_are_not_held_are_refused_not_invented() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        Histogram((1.0, 2.0)).below((1.5,))
    with pytest.raises(ValueError, match="different bounds"):
        merged([Histogram((1.0,)), Histogram((2.0,))])


# Against the catalogue ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dialect", "age"), PAGES)
def test_what_the_catalogue_knows_of_a_dialect_arrives_in_its_series(dialect: Dialect, age: Age) -> None:
    catalog = load_catalog()
    samples = PrometheusParser().parse(engine_page(dialect, [busy()], PROCESS, age=age))[0]
    got = {r.series for r in readings(engine_page(dialect, [busy()], PROCESS, age=age)) if r.series is not None}
    assert got == {catalog.resolve(s.name, s.labels)[0] for s in samples} - {None}


@pytest.mark.parametrize(("dialect", "age"), PAGES)
def test_the_same_engine_reads_the_same_in_every_dialect(dialect: Dialect, age: Age) -> None:
    values = canonical(engine_page(dialect, [busy()], PROCESS, age=age))
    assert values["engine.requests_running"] == 16
    # SGLang has queues of their own for grammars and transfers.
    assert values["engine.requests_waiting"] == (6 if dialect == "sglang" else 8)
    # vLLM counts tokens as they come, the others when a request ends.
    assert values["engine.generation_tokens_total"] == (2000 if dialect == "vllm" else 27 * 64)
    if "engine.e2e_s_sum" in values:
        assert values["engine.e2e_s_sum"] == pytest.approx(27 * 2.1)
    if "engine.ttft_s_count" in values:
        assert (values["engine.ttft_s_count"], values["engine.itl_s_count"]) == (27, 1900)
    if "engine.kv_used_ratio" in values:
        assert values["engine.kv_used_ratio"] == 0.25
    if dialect in ("tgi", "llama.cpp"):
        assert values["engine.steps_total"] == 90
    if dialect in ("vllm", "sglang") and age == "current":
        assert values["engine.preemptions_total"] == 3


def test_decode_steps_do_not_count_prefill_passes_in_sglang() -> None:
    assert canonical(engine_page("sglang", [busy()]))["engine.decode_steps_total"] == 80


def test_gpu_readings_arrive_in_the_catalogues_units() -> None:
    values = canonical(dcgm.page([gpu()], "H100"))
    assert values["gpu.util_ratio"] == pytest.approx(0.97)
    assert values["gpu.memory_used_bytes"] == 72_000 * 2**20
    assert values["gpu.sm_clock_hz"] == pytest.approx(1.41e9)
    assert (values["gpu.power_watts"], values["gpu.throttle_reasons"], values["gpu.xid_errors"]) == (312.5, 4, 0)
    assert values["gpu.dram_active_ratio"] == pytest.approx(0.66)
    assert (values["gpu.pcie_tx_bytes_per_s"], values["gpu.pcie_rx_bytes_per_s"]) == (2e8, 3e8)
    assert (values["gpu.link_tx_bytes_per_s"], values["gpu.link_rx_bytes_per_s"]) == (4e9, 5e9)


def test_a_value_that_an_exporter_could_not_read_stays_out_of_its_series() -> None:
    for page in (npu.page([gpu()], "910B2", 1.5e9), node.page(host()), node.container_page(host())):
        raw = readings(page)
        assert raw and all(reading.raw != "scrape_malformed_lines" for reading in raw)
    unread = [r for r in readings(npu.page([gpu()], "910B2", 1.5e9)) if r.value == -1]
    assert unread and all(r.series is None for r in unread)


# What is particular to one page ------------------------------------------------------------------------------------


def values_of(page: str) -> dict[str, float]:
    return {s.name + json.dumps(s.labels, sort_keys=True): s.value for s in PrometheusParser().parse(page)[0]}


def find(page: str, name: str, **labels: str) -> float:
    (value,) = [
        s.value
        for s in PrometheusParser().parse(page)[0]
        if s.name == name and labels.items() <= s.labels.items()
    ]  # fmt: skip
    return value


def test_waiting_requests_of_vllm_add_up_over_reasons() -> None:
    page = engine_page("vllm", [busy()])
    assert find(page, "vllm:num_requests_waiting_by_reason", reason="capacity") == 5
    assert find(page, "vllm:num_requests_waiting_by_reason", reason="deferred") == 3


def test_sources_of_prompt_tokens_add_up() -> None:
    page = engine_page("vllm", [busy()])
    by_source = [s.value for s in PrometheusParser().parse(page)[0] if s.name == "vllm:prompt_tokens_by_source_total"]
    assert sum(by_source) == find(page, "vllm:prompt_tokens_total")


def test_features_that_are_off_have_no_families() -> None:
    page = engine_page("vllm", [busy(LabParams())], PROCESS)
    state = idle()
    assert "spec_decode" not in page and "nixl" not in page
    assert "lora_requests_info" not in engine_page("vllm", [state])
    assert "lora_pool" not in engine_page("sglang", [state])
    assert 'max_lora="4",running_lora_adapters="llama-3-8b-lora-1,llama-3-8b-lora-4"' in engine_page("vllm", [busy()])


def test_data_parallel_engines_have_labels_of_their_own_in_vllm_and_sglang_and_are_added_up_elsewhere() -> None:
    both = [busy(index=0), busy(index=1)]
    for dialect, label in (("vllm", "engine"), ("sglang", "dp_rank")):
        page = engine_page(dialect, both)  # pyright: ignore[reportArgumentType]
        name = "vllm:num_requests_running" if dialect == "vllm" else "sglang:num_running_reqs"
        assert [find(page, name, **{label: index}) for index in ("0", "1")] == [16, 16]
    assert "dp_rank" not in engine_page("sglang", both[:1])
    assert find(engine_page("tgi", both), "tgi_batch_current_size") == 32
    assert find(engine_page("llama.cpp", both), "llamacpp:requests_processing") == 32
    assert find(engine_page("vllm", both, age="old"), "vllm:num_requests_running") == 32
    assert find(engine_page("vllm", both), "http_requests_total", status="2xx") == 54


def test_sglang_shows_a_family_only_once_it_has_a_sample() -> None:
    assert "time_to_first_token" not in engine_page("sglang", [idle()])
    assert "time_to_first_token" in engine_page("sglang", [busy()])
    assert "cuda_graph_passes" not in engine_page("sglang", [idle()])


def test_sglang_rates_are_those_of_the_last_forty_decode_steps() -> None:
    metrics = LabMetrics(LabParams())
    for step in range(1, 60):
        metrics.generation_tokens += 10
        metrics.drafts += 1
        metrics.draft_tokens += 3
        metrics.accepted_tokens += 2
        metrics.count_step(step * 0.1, 0.1, 10, prefill=False, graphed=False)
    page = engine_page("sglang", [EngineState(LabParams(), metrics, Gauges(1, 0, 0.0))])
    assert find(page, "sglang:gen_throughput") == pytest.approx(100.0)
    assert find(page, "sglang:spec_accept_length") == pytest.approx(3.0)
    assert find(page, "sglang:spec_accept_rate") == pytest.approx(2 / 3)
    assert find(page, "sglang:cuda_graph_passes_total", mode="decode_none") == 59


def test_sglang_says_which_half_of_a_disaggregated_server_it_is() -> None:
    state = busy()
    state.role = "decode"
    page = engine_page("sglang", [state])
    assert find(page, "sglang:num_decode_transfer_queue_reqs", engine_type="decode") == 1
    assert find(page, "sglang:kv_transfer_total_mb_sum") == pytest.approx(300.0)
    assert find(page, "sglang:kv_transfer_latency_ms_bucket", le="25.0") == 1
    assert find(page, "sglang:kv_transfer_speed_gb_s_bucket", le="10.0") == 0


def test_llama_cpp_averages_its_rates_since_the_page_was_read_last() -> None:
    state = busy()
    first = engine_page("llama.cpp", [state])
    assert find(first, "llamacpp:predicted_tokens_seconds") == pytest.approx(27 * 64 / (27 * 1.4), rel=1e-4)
    assert find(engine_page("llama.cpp", [state]), "llamacpp:predicted_tokens_seconds") == 0
    state.metrics.request_generation_tokens.observe(100.0)
    state.metrics.decode_s.observe(2.0)
    assert find(engine_page("llama.cpp", [state]), "llamacpp:predicted_tokens_seconds") == 50
    assert find(first, "llamacpp:n_busy_slots_per_decode") == 16


def test_tgi_tells_the_distribution_of_skipped_tokens() -> None:
    page = engine_page("tgi", [busy()])
    # Of 500 drafts, 100 had none accepted, 100 one, 100 two and 200 all three.
    assert [find(page, "tgi_request_skipped_tokens", quantile=q) for q in ("0", "0.5", "0.9", "1")] == [0, 2, 3, 3]
    assert find(page, "tgi_request_skipped_tokens_sum") == 900
    assert llamacpp.page([busy()]) == engine_page("llama.cpp", [busy()])


def test_power_is_in_watts_with_decimals_and_memory_in_whole_mib() -> None:
    page = dcgm.page([gpu()], "A100")
    assert re.search(r"^DCGM_FI_DEV_POWER_USAGE\{gpu=\"0\",UUID=\"GPU-[0-9a-f-]{36}\",.* 312\.500000$", page, re.M)
    assert re.search(r"^DCGM_FI_DEV_FB_FREE\{.*\} 9920$", page, re.M)
    assert 'modelName="NVIDIA A100-SXM4-80GB"' in page


def test_a_hardware_fault_shows_on_both_kinds_of_accelerators() -> None:
    broken = gpu(last_xid=79)
    assert find(dcgm.page([broken], "A100"), "DCGM_FI_DEV_XID_ERRORS") == 79
    page = npu.page([broken], "910B2", 1.5e9)
    assert (find(page, "npu_chip_info_health_status"), find(page, "npu_chip_info_error_code") > 0) == (0, True)
    assert re.search(r"^npu_chip_info_power\{.*\} 312.5 1500000000000$", page, re.M)


def test_the_container_shows_its_throttling_and_the_sum_of_its_processes() -> None:
    page = node.container_page(host(), quota_cores=1.5)
    assert find(page, "container_cpu_cfs_throttled_periods_total") == 7
    assert find(page, "container_cpu_usage_seconds_total", cpu="total") == pytest.approx(91.25)
    assert find(page, "container_spec_cpu_quota") == 150_000
    assert "container_spec_cpu_quota" not in node.container_page(host())


def test_respelled_pages_lose_the_colon_and_nothing_else() -> None:
    page = engine_page("vllm", [busy()], PROCESS)
    ray, plain = respelled(page, "ray"), respelled(page, "underscores")
    assert canonical(ray) == canonical(plain) == canonical(page)  # the catalogue knows these spellings
    assert find(plain, "vllm_num_requests_running") == 16
    for changed in (ray, plain):
        assert len(values_of(changed)) == len(values_of(page))
        assert sorted(values_of(changed).values()) == sorted(values_of(page).values())
        assert "vllm:" not in "".join(s.name for s in PrometheusParser().parse(changed)[0])


# From an engine that has really run ---------------------------------------------------------------------------------


def ran(params: LabParams, requests: int = 60) -> tuple[list[EngineState], dict[int, int]]:
    """The states of a group that has answered some requests with shared beginnings, and the tokens per request."""
    got: dict[int, int] = {}

    def emit(_: int, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            got[sequence.request_id] = got.get(sequence.request_id, 0) + sequence.new_tokens

    group = EngineGroup(params, 7, emit)
    for number in range(requests):
        keys = [("shared", number % 3, block) for block in range(8)]
        group.submit(number * 20_000_000, EngineRequest(number, 200, 30, number * 0.02, block_keys=keys))
    group.advance(60_000_000_000)
    return group.states(60.0), got


@pytest.mark.parametrize(
    "params",
    [
        LabParams(),
        LabParams(speculation=Speculation()),
        LabParams(lora=Lora(adapters=6, max_loras=2), grammar=Grammar(share_ratio=0.5)),
        LabParams(data_parallel=2),
        LabParams(disaggregation=Disaggregation()),
        LabParams(kv_blocks=60),
    ],
)  # fmt: skip
def test_every_dialect_tells_of_an_engine_what_clients_got(params: LabParams) -> None:
    states, got = ran(params)
    if params.disaggregation is not None:  # each half of such a service is a server with a page of its own
        states = [state for state in states if state.role == "decode"]
    assert sum(got.values()) == 60 * 30
    for dialect, age in PAGES:
        page = engine_page(dialect, states, age=age)
        assert PrometheusParser().parse(page)[1] == 0
        values = canonical(page)
        assert values["engine.generation_tokens_total"] == sum(got.values()), dialect
        assert (values["engine.requests_running"], values["engine.requests_waiting"]) == (0, 0)
        finished = values.get("engine.requests_finished_total", 60)
        assert finished == 60, dialect
    vllm_values = canonical(engine_page("vllm", states))
    prompts = vllm_values["engine.prompt_tokens_total"]
    assert prompts == 60 * 200
    assert canonical(engine_page("tgi", states))["engine.prompt_tokens_total"] == prompts
    computed = prompts - vllm_values["engine.cached_prompt_tokens_total"]
    assert canonical(engine_page("llama.cpp", states))["engine.prompt_tokens_total"] == computed
    assert find(engine_page("llama.cpp", states), "llamacpp:n_tokens_max") >= 230 - 1
    tgi_page, sglang_page = engine_page("tgi", states), engine_page("sglang", states)
    assert find(tgi_page, "tgi_request_mean_time_per_token_duration_count") == 60
    if params.kv_blocks:
        assert canonical(sglang_page)["engine.preemptions_total"] == vllm_values["engine.preemptions_total"] > 0
        assert find(sglang_page, "sglang:num_retracted_input_tokens_total") % 200 == 0
    if params.speculation is not None:
        assert vllm_values["engine.spec_accepted_tokens_total"] > 0
    if params.disaggregation is not None:
        assert find(engine_page("vllm", states), "vllm:nixl_bytes_transferred_count") == 60
    if params.grammar.share_ratio:
        assert find(sglang_page, "sglang:grammar_compilation_time_seconds_count") > 0
        assert find(engine_page("vllm", states), "vllm:lora_requests_info", max_lora="2") > 1.7e9


@pytest.mark.parametrize(("dialect", "age"), PAGES)
def test_counters_never_fall_while_an_engine_runs(dialect: Dialect, age: Age) -> None:
    group = EngineGroup(LabParams(kv_blocks=60, speculation=Speculation()), 3, lambda _t, _s: None)
    for number in range(40):
        group.submit(0, EngineRequest(number, 150, 40, 0.0))
    before: dict[str, float] = {}
    for instant in range(1, 30):
        group.advance(instant * 100_000_000)
        page = engine_page(dialect, group.states(instant / 10), age=age)
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", page, re.MULTILINE))
        now = {
            sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
            for sample in PrometheusParser().parse(page)[0]
            if kinds.get(sample.name, "histogram") in ("counter", "histogram")
        }
        assert all(now[name] >= value for name, value in before.items())
        before = now


def test_adapters_are_told_at_the_wall_clock_of_the_page() -> None:
    page = engine_page("vllm", [busy()], PROCESS, now_s=40.0, epoch_unix_s=1_700_000_000.0)
    assert find(page, "vllm:lora_requests_info") == 1_700_000_040.0


def test_a_machine_tells_its_wall_clock_and_when_it_started() -> None:
    page = node.page(host(), now_s=40.0, epoch_unix_s=1_700_000_000.0)
    assert find(page, "node_time_seconds") - find(page, "node_boot_time_seconds") == 40.0
