"""What pages of engines and exporters show: recorded pages and documented names against the catalogue."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import HISTOGRAM_MEMBERS, load_catalog
from pinchpoint.coverage import coverage, family, series_of, survey, which_exporter
from pinchpoint.telemetry.prometheus import PrometheusParser, RawSample

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "metrics"
DOCUMENTED = tomllib.loads((DATA / "documented_names.toml").read_text())


class Named(NamedTuple):
    name: str
    labels: dict[str, str]


def page(name: str) -> list[RawSample]:
    return PrometheusParser().parse((DATA / "pages" / f"{name}.prom").read_bytes())[0]


def documented(exporter: str) -> list[Named]:
    """Samples of every documented name; histograms with their members."""
    samples: list[Named] = []
    for word in DOCUMENTED[exporter].get("plain", "").split():
        name, _, filters = word.partition("{")
        pairs = [pair.partition("=") for pair in filters.rstrip("}").split(",") if pair]
        samples.append(Named(name, {key: value for key, _, value in pairs}))
    for base in DOCUMENTED[exporter].get("histograms", "").split():
        samples += [Named(base + member, {}) for member in HISTOGRAM_MEMBERS]
    return samples


# Page, exporter, names, names of use, series found, series that the exporter has. A change of the catalogue shows here.
# fmt: off
RECORDED = [
    ("amd_device_metrics_exporter_mini", "amd", 5, 5, 4, 24),
    ("ascend_npu_exporter", "ascend", 18, 17, 15, 41),
    ("dcgm_exporter_t4", "dcgm", 38, 34, 34, 55),
    ("litellm_proxy", "litellm", 67, 40, 36, 36),
    ("litellm_proxy", "prometheus-client", 10, 5, 5, 5),
    ("llamacpp-load", "llama.cpp", 15, 15, 15, 18),
    ("node_exporter_e2e", "node", 131, 87, 86, 98),
    ("ray_worker", "ray", 65, 24, 26, 28),
    ("ray_worker", "prometheus-client", 10, 5, 5, 5),
    ("sglang_llama3.1-8b_loaded", "sglang", 12, 12, 12, 77),
    ("tgi_payload", "tgi", 24, 24, 25, 26),
    ("triton-load", "triton", 15, 15, 16, 42),
    ("triton", "triton", 32, 28, 23, 42),
    ("vllm-load", "vllm", 39, 39, 43, 73),
    ("vllm-load", "fastapi", 5, 5, 4, 4),
    ("vllm-load", "prometheus-client", 10, 5, 5, 5),
    ("vllm-tiny-kvpressure", "vllm", 39, 39, 43, 73),
    ("vllm_v0_opt125m", "vllm", 19, 19, 19, 73),
    ("vllm_v0_opt125m", "prometheus-client", 10, 5, 5, 5),
    ("vllm_via_aibrix_runtime", "vllm", 14, 14, 14, 73),
]
# fmt: on


@pytest.mark.parametrize(("name", "exporter", "names", "of_use", "found", "known"), RECORDED)
def test_recorded_pages_have_the_coverage_that_is_written_down(
    name: str, exporter: str, names: int, of_use: int, found: int, known: int
) -> None:
    shown = coverage(load_catalog(), exporter, page(name))
    counts = (shown.names, shown.names - len(shown.unknown) - len(shown.left_out), len(shown.found))
    assert (*counts, len(shown.found) + len(shown.missing)) == (names, of_use, found, known)


def test_the_table_of_the_documentation_is_that_of_the_tool() -> None:
    made = subprocess.run(
        [sys.executable, "tools/metrics_coverage.py", "tests/data/metrics/pages"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    page = (ROOT / "docs" / "explanation" / "metrics-coverage.md").read_text()
    shown = page.partition("<!-- coverage -->")[2].partition("<!-- end -->")[0]
    assert shown.strip() == made.strip(), "run tools/metrics_coverage.py tests/data/metrics/pages and put it there"


def test_every_recorded_page_is_in_the_table() -> None:
    assert {path.stem for path in (DATA / "pages").glob("*.prom")} == {name for name, *_ in RECORDED}


@pytest.mark.parametrize("name", sorted({name for name, *_ in RECORDED}))
def test_no_name_of_a_recorded_page_is_unknown(name: str) -> None:
    shown = survey(load_catalog(), page(name))
    assert [unknown for each in shown.exporters for unknown in each.unknown] == []
    made_up = {"testmetric1_1", "testmetric1_2", "testmetric2_1", "testmetric2_2"}  # of node_exporter's own test
    assert set(shown.strangers) <= (made_up if name == "node_exporter_e2e" else set())


@pytest.mark.parametrize("exporter", sorted(DOCUMENTED))
def test_every_documented_name_leads_to_a_series_or_is_left_out_knowingly(exporter: str) -> None:
    shown = survey(load_catalog(), documented(exporter))
    assert [each.exporter for each in shown.exporters] == [exporter]
    assert shown.exporters[0].unknown == ()
    assert shown.strangers == ()


@pytest.mark.parametrize(
    ("name", "exporters"),
    [
        ("vllm-load", ["vllm", "prometheus-client", "fastapi"]),
        ("vllm_via_aibrix_runtime", ["vllm"]),
        ("ray_worker", ["ray", "prometheus-client"]),
        ("dcgm_exporter_t4", ["dcgm"]),
        ("node_exporter_e2e", ["node"]),
    ],
)
def test_a_page_is_told_by_its_names(name: str, exporters: list[str]) -> None:
    assert [evidence.exporter for evidence in which_exporter(load_catalog(), page(name))] == exporters


def test_ray_serve_is_not_taken_for_ray_and_neither_is_vllm_under_ray() -> None:
    catalog = load_catalog()
    names = [Named("ray_serve_new_metric", {}), Named("ray_vllm_num_requests_running", {}), Named("ray_tasks", {})]
    told = {each.exporter: (each.known, each.alike) for each in which_exporter(catalog, names)}
    assert told == {
        "ray-serve": ((), ("ray_serve_new_metric",)),
        "vllm": (("ray_vllm_num_requests_running",), ()),
        "ray": (("ray_tasks",), ()),
    }


def test_a_name_that_the_catalogue_lacks_is_the_engines_unknown_one() -> None:
    samples = [*page("vllm-load"), Named("vllm:brand_new_total", {}), Named("something_else", {})]
    shown = survey(load_catalog(), samples)
    assert shown.exporters[0].exporter == "vllm"
    assert shown.exporters[0].unknown == ("vllm:brand_new",)
    assert shown.strangers == ("something_else",)


def test_a_page_of_strangers_is_of_no_exporter() -> None:
    shown = survey(load_catalog(), [Named("my_app_requests_total", {})])
    assert shown.exporters == () and shown.strangers == ("my_app_requests",)


def test_an_exporter_that_shows_nothing_has_all_its_series_missing() -> None:
    catalog = load_catalog()
    shown = coverage(catalog, "dcgm", [])
    assert shown.share == 0.0 and shown.names == 0
    assert tuple(each.series for each in shown.missing) == series_of(catalog, "dcgm")


def test_a_missing_series_comes_with_the_way_to_get_it() -> None:
    shown = coverage(load_catalog(), "vllm", page("vllm-load"))
    hints = {each.series: each.hint for each in shown.missing}
    assert hints["engine.kv_block_lifetime_s"] == "start vLLM with --kv-cache-metrics"
    assert shown.unexplained == ()
    assert shown.share_expected == 1.0 > shown.share
    dcgm = coverage(load_catalog(), "dcgm", [Named("DCGM_FI_DEV_GPU_UTIL", {"gpu": "0"})])
    sm = next(each.hint for each in dcgm.missing if each.series == "gpu.sm_active_ratio")
    assert sm is not None and "DCGM_FI_PROF_SM_ACTIVE" in sm


def test_hints_and_exporters_are_of_the_catalogue() -> None:
    catalog = load_catalog()
    spoken = {engine for entry in catalog.entries.values() for engine in entry.aliases}
    assert spoken == set(catalog.exporters)
    for exporter in catalog.exporters.values():
        assert set(exporter.hints) <= set(series_of(catalog, exporter.name))
        assert exporter.enable.endswith(".")


def test_old_names_count_as_found() -> None:
    catalog = load_catalog()
    new = coverage(catalog, "vllm", [Named("vllm:kv_cache_usage_perc", {})])
    old = coverage(catalog, "vllm", [Named("vllm:gpu_cache_usage_perc", {})])
    assert new.found == old.found == ("engine.kv_used_ratio",)


@given(
    st.from_regex(r"[a-z_:]{1,12}", fullmatch=True).filter(lambda stem: family(stem) == stem),
    st.sampled_from(["", "_total", "_sum", "_count", "_bucket", "_created", "_total_created", "_sum_created"]),
)
def test_samples_of_a_family_have_one_name(stem: str, ending: str) -> None:
    assert family(stem + ending) == stem
