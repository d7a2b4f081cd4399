"""Every name that the lab's pages show leads to a series or is left out knowingly."""

import pytest
from lab_pages import PROCESS, busy, gpu, host

from pinchpoint.catalog import load_catalog
from pinchpoint.coverage import survey
from pinchpoint.lab.pages import dcgm, engine_page, node, npu, respelled
from pinchpoint.lab.pages.engine import Age, Dialect
from pinchpoint.lab.pages.respelled import Respelling
from pinchpoint.telemetry.prometheus import PrometheusParser


def exporters(page: str) -> list[str]:
    """Of a page on which nothing is unknown."""
    shown = survey(load_catalog(), PrometheusParser().parse(page)[0])
    assert [unknown for each in shown.exporters for unknown in each.unknown] == []
    assert shown.strangers == ()
    return [each.exporter for each in shown.exporters]


@pytest.mark.parametrize(
    ("dialect", "age", "of"),
    [
        ("vllm", "current", ["vllm", "prometheus-client", "fastapi"]),
        ("vllm", "old", ["vllm", "prometheus-client"]),
        ("sglang", "current", ["sglang"]),
        ("sglang", "old", ["sglang"]),
        ("tgi", "current", ["tgi"]),
        ("llama.cpp", "current", ["llama.cpp"]),
        ("llama.cpp", "old", ["llama.cpp"]),
    ],
)
def test_pages_of_engines(dialect: Dialect, age: Age, of: list[str]) -> None:
    assert sorted(exporters(engine_page(dialect, [busy()], PROCESS, age=age))) == sorted(of)


@pytest.mark.parametrize(("dialect", "how"), [("vllm", "ray"), ("sglang", "underscores"), ("llama.cpp", "underscores")])
def test_pages_whose_names_changed_on_the_way(dialect: Dialect, how: Respelling) -> None:
    assert exporters(respelled(engine_page(dialect, [busy()]), how))[0] == dialect


def test_pages_of_exporters() -> None:
    assert exporters(dcgm.page([gpu(), gpu(1)], "A100")) == ["dcgm"]
    assert exporters(npu.page([gpu(), gpu(1)], "910B")) == ["ascend"]
    assert exporters(node.page(host())) == ["node"]
    assert exporters(node.container_page(host(), quota_cores=2.0)) == ["cadvisor"]
