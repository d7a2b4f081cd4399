"""The catalogue maps what engines expose to canonical series."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import (
    CATALOG_PATH,
    Alias,
    Catalog,
    Entry,
    format_labels,
    load_catalog,
    parse_labels,
    read_catalog,
    scaled_bound,
)
from pinchpoint.errors import UsageError
from pinchpoint.telemetry.page import Page
from pinchpoint.telemetry.prometheus import PrometheusParser

DATA = Path(__file__).parents[1] / "data" / "metrics"
UNIT_ENDINGS = {
    "_bytes": "bytes",
    "_ratio": "ratio",
    "_tokens": "tokens",
    "_cores": "cores",
    "_watts": "W",
    "_hz": "Hz",
    "_celsius": "degC",
    "_per_s": "/s",
    "_s": "s",
}


OPENTELEMETRY_NAMES = {"host.name", "server.address", "server.port", "client.address"}
"""Attributes of spans that look like series."""


@pytest.mark.parametrize(
    ("raw", "series"),
    [
        ("vllm:kv_cache_usage_perc", "engine.kv_used_ratio"),
        ("vllm:gpu_cache_usage_perc", "engine.kv_used_ratio"),
        ("vllm:inter_token_latency_seconds_sum", "engine.itl_s_sum"),
        ("vllm:time_per_output_token_seconds_count", "engine.itl_s_count"),
        ("vllm:request_time_per_output_token_seconds_sum", "engine.tpot_s_sum"),
        ("vllm:time_to_first_token_seconds_bucket", "engine.ttft_s_bucket"),
        ("vllm:iteration_tokens_total_count", "engine.steps_total"),
        ("vllm:iteration_tokens_total_sum", "engine.step_tokens_total"),
        ("ray_vllm_num_requests_running", "engine.requests_running"),
        ("ray_vllm_time_to_first_token_seconds_sum", "engine.ttft_s_sum"),
        ("sglang:token_usage", "engine.kv_used_ratio"),
        ("sglang:num_queue_reqs", "engine.requests_waiting"),
        ("tgi_queue_size", "engine.requests_waiting"),
        ("trtllm_kv_cache_utilization", "engine.kv_used_ratio"),
        ("llamacpp:n_decode_total", "engine.steps_total"),
        ("llamacpp:prompt_seconds_total", "engine.prefill_busy_s_total"),
        ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gpu.tensor_active_ratio"),
    ],
)
def test_exposed_names_of_every_engine_and_version_lead_to_one_series(raw: str, series: str) -> None:
    assert load_catalog().resolve(raw, {}) == (series, 1.0)


def test_a_label_filter_decides_between_two_series_of_one_name() -> None:
    catalog = load_catalog()
    name = "vllm:num_requests_waiting_by_reason"
    assert catalog.resolve(name, {"reason": "capacity", "engine": "0"})[0] == "engine.requests_waiting_capacity"
    assert catalog.resolve(name, {"reason": "deferred"})[0] == "engine.requests_waiting_deferred"
    assert catalog.resolve(name, {"reason": "something new"}) == (None, 1.0)


def test_the_plain_alias_takes_what_the_filtered_one_leaves() -> None:
    catalog = load_catalog()
    assert catalog.resolve("tgi_request_failure", {"err": "overloaded"})[0] == "engine.requests_rejected_total"
    assert catalog.resolve("tgi_request_failure", {"err": "validation"})[0] == "engine.requests_failed_total"


@pytest.mark.parametrize(
    ("raw", "exposed", "value"),
    [
        ("nv_inference_queue_duration_us", 2_500_000.0, 2.5),
        ("DCGM_FI_DEV_GPU_UTIL", 87.0, 0.87),
        ("DCGM_FI_DEV_FB_USED", 2.0, 2.0 * 1024 * 1024),
        (":tensorflow:serving:request_latency_sum", 1_500.0, 0.0015),
    ],
)
def test_the_scale_turns_exposed_units_into_ours(raw: str, exposed: float, value: float) -> None:
    assert exposed * load_catalog().resolve(raw, {})[1] == pytest.approx(value)


def test_a_scaled_histogram_scales_its_sum_and_the_bounds_of_its_buckets_but_no_counts() -> None:
    catalog = load_catalog()
    name = "nv_inference_first_response_histogram_ms"
    assert catalog.resolve(name + "_sum", {}) == ("engine.ttft_s_sum", 1e-3)
    assert catalog.resolve(name + "_count", {}) == ("engine.ttft_s_count", 1.0)
    bucket = catalog.match(name + "_bucket", {"model": "m", "le": "250"})
    assert bucket is not None
    assert (bucket.series, bucket.scale, bucket.labels) == ("engine.ttft_s_bucket", 1.0, {"model": "m", "le": "0.25"})


@pytest.mark.parametrize(
    ("exposed", "scale", "bound"),
    [
        ("18", 1e-6, "1.8e-05"),
        ("5.8319999999999999", 1e-6, "5.832e-06"),
        ("+Inf", 1e-6, "+Inf"),
        ("inf", 1e-3, "inf"),
        ("500", 1e6, "500000000"),
        ("many", 1e-3, "many"),
    ],
)
def test_a_bound_is_scaled_without_the_noise_of_the_multiplication(exposed: str, scale: float, bound: str) -> None:
    assert scaled_bound(exposed, scale) == bound


@given(st.lists(st.floats(1e-6, 1e9), min_size=2, max_size=10, unique=True), st.sampled_from([1e-6, 1e-3, 1e6, 1e9]))
def test_scaled_bounds_keep_their_order(bounds: list[float], scale: float) -> None:
    scaled = [float(scaled_bound(repr(bound), scale)) for bound in sorted(bounds)]
    assert scaled == sorted(scaled)


def test_labels_of_an_exporter_become_those_of_the_series() -> None:
    catalog = load_catalog()
    npu = catalog.match("npu_chip_info_power", {"id": "3", "vdie_id": "x"})
    assert npu is not None and npu.labels == {"gpu": "3", "vdie_id": "x", "kind": "ascend"}
    nic = catalog.match("node_network_receive_bytes_total", {"device": "eth0"})
    assert nic is not None and nic.labels == {"nic": "eth0"}
    untouched = {"engine": "0"}
    plain = catalog.match("vllm:num_requests_running", untouched)
    assert plain is not None and plain.labels is untouched


def test_what_an_engine_says_of_its_configuration_stays_in_the_labels() -> None:
    labels = {"block_size": "16", "num_gpu_blocks": "8192", "cache_dtype": "auto"}
    for name in ("vllm:cache_config_info", "sglang:cache_config_info"):
        match = load_catalog().match(name, labels)
        assert match is not None and (match.series, match.labels) == ("engine.config", labels)


def test_a_page_in_microseconds_is_read_in_seconds_with_its_buckets() -> None:
    page = Page("", "tf", load_catalog())
    name = ":tensorflow:serving:request_latency"
    readings = page.read_page(
        f"""{name}_bucket{{model_name="m",le="18"}} 1
{name}_bucket{{model_name="m",le="5832000"}} 4
{name}_bucket{{model_name="m",le="+Inf"}} 5
{name}_sum{{model_name="m"}} 7500000
{name}_count{{model_name="m"}} 5
""".encode()
    )
    told = {(reading.series, reading.labels): reading.value for reading in readings}
    assert told == {
        ("engine.e2e_s_bucket", "le=1.8e-05,model_name=m"): 1,
        ("engine.e2e_s_bucket", "le=5.832,model_name=m"): 4,
        ("engine.e2e_s_bucket", "le=+Inf,model_name=m"): 5,
        ("engine.e2e_s_sum", "model_name=m"): 7.5,
        ("engine.e2e_s_count", "model_name=m"): 5,
    }


def test_names_that_say_a_label_are_parts_of_one_series_and_none_pushes_another_out() -> None:
    catalog = load_catalog()
    parts = [catalog.match(f"npu_chip_info_hccs_statistic_info_crc_err_cnt_{i}", {"id": "0"}) for i in range(8)]
    assert {(part.series, part.rank, part.group) for part in parts if part} == {("gpu.link_errors_total", 0, "ascend")}
    assert [part.labels["link"] for part in parts if part] == [str(i) for i in range(8)]


def test_counters_are_found_with_and_without_total() -> None:
    catalog = load_catalog()
    for entry in catalog.entries.values():
        if entry.kind != "counter":
            continue
        for aliases in entry.aliases.values():
            for alias in (Alias(a) if isinstance(a, str) else a for a in aliases):
                stem = alias.name.removesuffix("_total")
                for name in (stem, stem + "_total"):
                    assert catalog.resolve(name, alias.labels)[0] == entry.name


def test_a_counter_that_is_exposed_with_and_without_total_feeds_its_series_once() -> None:
    catalog = load_catalog()
    places = set()
    for name in ("ray_serve_num_router_requests", "ray_serve_num_router_requests_total"):
        match = catalog.match(name, {})
        assert match is not None and match.series == "gateway.requests_total"
        places.add((match.rank, match.group))
    assert len(places) == 2


def test_an_unknown_name_resolves_to_nothing() -> None:
    assert load_catalog().resolve("python_gc_collections_total", {}) == (None, 1.0)
    assert load_catalog().entry("engine.no_such_series") is None


def test_every_canonical_name_resolves_to_itself_and_ends_in_its_unit() -> None:
    catalog = load_catalog()
    for name, entry in catalog.entries.items():
        assert catalog.resolve(name, {}) == (name, 1.0)
        if name.endswith(("_count", "_bucket")):
            continue
        base = name.removesuffix("_sum").removesuffix("_total")
        ending = next((unit for end, unit in UNIT_ENDINGS.items() if base.endswith(end)), None)
        agrees = entry.unit.endswith(ending) if ending == "/s" else ending in (None, entry.unit)
        assert agrees, f"{name} says {ending}, its entry {entry.unit}"
        is_counter = entry.kind == "counter"
        assert name.endswith(("_total", "_sum")) == is_counter, name


def test_a_renamed_metric_ranks_behind_its_successor() -> None:
    catalog = load_catalog()
    assert catalog.rank("vllm:kv_cache_usage_perc", {}) < catalog.rank("vllm:gpu_cache_usage_perc", {})


@pytest.mark.parametrize(
    ("page", "series"),
    [
        (
            "vllm_v1.prom",
            "engine.requests_running engine.requests_waiting engine.requests_waiting_capacity engine.kv_used_ratio "
            "engine.preemptions_total engine.prompt_tokens_total engine.cached_prompt_tokens_total engine.steps_total "
            "engine.generation_tokens_total engine.step_tokens_total engine.prefix_query_tokens_total engine.config "
            "engine.prefix_hit_tokens_total engine.requests_finished_total engine.requests_rejected_total "
            "engine.ttft_s_sum engine.itl_s_count engine.queue_time_s_sum engine.prefill_time_s_sum "
            "engine.decode_time_s_sum engine.e2e_s_sum engine.ttft_s_bucket",
        ),
        (
            "llamacpp.prom",
            "engine.requests_running engine.requests_waiting engine.steps_total engine.busy_slots_mean "
            "engine.prefill_busy_s_total engine.decode_busy_s_total engine.generation_tokens_total",
        ),
        ("sglang.prom", "engine.requests_running engine.requests_waiting engine.kv_used_ratio engine.itl_s_sum"),
        ("tgi.prom", "engine.requests_waiting engine.e2e_s_sum engine.queue_time_s_sum engine.steps_total"),
        ("triton.prom", "engine.queue_s_total engine.requests_finished_total engine.steps_total"),
        ("vllm_v0.prom", "engine.kv_used_ratio engine.itl_s_sum engine.ttft_s_sum engine.preemptions_total"),
        ("dcgm.prom", "gpu.util_ratio gpu.power_watts gpu.memory_used_bytes"),
    ],
)
def test_real_pages_yield_the_series_that_diagnosis_needs(page: str, series: str) -> None:
    samples, _ = PrometheusParser().parse((DATA / page).read_bytes())
    found = {load_catalog().resolve(name, labels)[0] for name, labels, _ in samples}
    assert set(series.split()) <= found


def test_two_series_cannot_claim_one_exposed_name() -> None:
    one = Entry("engine.a", "1", "gauge", "engine", "config", "", {"x": ("exposed",)})
    two = Entry("engine.b", "1", "gauge", "engine", "config", "", {"x": ("exposed",)})
    with pytest.raises(UsageError, match=r"exposed .* leads to both engine\.a and engine\.b"):
        Catalog((one, two))


@pytest.mark.parametrize("content", ["not toml [", "series = 3", '[[series]]\nname = "a"\n'])
def test_a_damaged_catalogue_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_catalog(path)


def test_the_shipped_catalogue_describes_every_series() -> None:
    assert CATALOG_PATH.exists()
    assert all(entry.description.endswith(".") for entry in load_catalog().entries.values())


def test_every_series_the_code_speaks_of_is_in_the_catalogue() -> None:
    layers = "engine|gateway|kvstore|host|server|client|probe|gpu|network|source"
    literal = re.compile(rf'"((?:{layers})\.[a-z0-9_]+)"')
    spoken = {name for path in CATALOG_PATH.parent.rglob("*.py") for name in literal.findall(path.read_text())}
    assert spoken
    assert sorted(name for name in spoken - OPENTELEMETRY_NAMES if load_catalog().entry(name) is None) == []


label_names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,10}", fullmatch=True)


@given(st.dictionaries(label_names, st.text(max_size=20), max_size=5))
def test_labels_survive_being_written_and_read(labels: dict[str, str]) -> None:
    assert parse_labels(format_labels(labels)) == labels


def test_labels_are_sorted_by_key() -> None:
    assert format_labels({"b": "2", "a": "1"}) == "a=1,b=2"
