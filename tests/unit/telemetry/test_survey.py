"""A survey of saved files and of live sources."""

import gzip
import threading
import time
from pathlib import Path

import pytest
from tests.support.scripted_server import ScriptedServer

from pinchpoint.catalog import load_catalog
from pinchpoint.errors import UsageError
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.page import Page
from pinchpoint.telemetry.survey import Machine, Watch, absent, local_sources, make_survey, survey_files

DUMPS = Path(__file__).parents[2] / "data" / "metrics"
LIMIT_S = 30.0


@pytest.mark.parametrize("path", sorted(DUMPS.glob("*.prom")), ids=lambda path: path.stem)
def test_every_saved_page_shows_series_and_its_coverage(path: Path) -> None:
    survey = survey_files(load_catalog(), [path])
    assert survey.rows
    (page,) = survey.pages
    assert page.coverage is not None
    found = {series for each in page.coverage.exporters for series in each.found}
    assert found and {row.series for row in survey.rows} <= found


def test_a_zipped_page_is_read_as_it_is(tmp_path: Path) -> None:
    plain = DUMPS / "vllm_v1.prom"
    packed = tmp_path / "page.prom.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first, second = (survey_files(load_catalog(), [path]) for path in (plain, packed))
    assert [row.value for row in first.rows] == [row.value for row in second.rows]


def test_the_output_of_a_vendors_tool_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "smi.csv"
    path.write_text(
        "index, utilization.gpu [%], memory.used [MiB], power.draw [W], temperature.gpu\n0, 50 %, 100 MiB, 70 W, 40\n"
    )
    survey = survey_files(load_catalog(), [path])
    assert {row.series: row.value for row in survey.rows}["gpu.util_ratio"] == 0.5
    assert survey.pages[0].coverage is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>\n<body>hello 1</body></html>", "page for people"),
        (b'{"a": 1}', "is JSON"),
        (b"\x7fELF\x00\x00\x00", "binary"),
        (b"", "holds no samples"),
        (b"\x1f\x8bnot really", "damaged"),
    ],
)
def test_a_file_that_is_neither_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        survey_files(load_catalog(), [path])


class Counting:
    name = "engine"

    def __init__(self) -> None:
        self.reads = 0
        self.enough = threading.Event()
        self.closed = False

    def read(self) -> tuple[int, list[Reading]]:
        self.reads += 1
        if self.reads >= 3:
            self.enough.set()
        return time.monotonic_ns(), [own("engine.generation_tokens_total", 10.0 * self.reads)]

    def close(self) -> None:
        self.closed = True


class Broken:
    name = "broken"

    def read(self) -> tuple[int, list[Reading]]:
        raise OSError(5, "no more")


def test_a_watch_reads_on_a_grid_until_it_is_left_and_a_broken_source_ends_alone() -> None:
    source = Counting()
    with Watch(load_catalog(), [(source, 0.02), (Broken(), 0.02)]) as watch:
        assert source.enough.wait(LIMIT_S)
    survey = make_survey(load_catalog(), watch, [], [], True, ["a note"])
    assert source.closed
    assert survey.notes[0] == "a note" and "broken stopped" in survey.notes[1]
    (row,) = survey.rows
    assert row.how == "per second" and row.value is not None and row.value > 0
    assert "engine" not in {each.layer for each in survey.absent}


def test_a_slow_page_holds_up_nobody_else() -> None:
    with ScriptedServer(lambda number, body: (LIMIT_S, "close")) as server:
        slow = Page(server.url, "gpu", load_catalog(), timeout_s=0.3)
        quick = Counting()
        with Watch(load_catalog(), [(slow, 0.02), (quick, 0.02)]):
            assert quick.enough.wait(LIMIT_S)


def test_this_host_is_read_always_and_its_processes_when_the_service_is_here() -> None:
    names = [source.name for source, _ in local_sources(Machine(local=False), 1.0, None, None, lambda _: None)]
    assert names == ["host"]
    here = Machine(local=True, server_pids=(1,), null_urls=("http://127.0.0.1:1/health",))
    names = [source.name for source, _ in local_sources(here, 1.0, None, None, lambda _: None)]
    assert {"host", "server", "null-request"} <= set(names)


def test_of_each_layer_that_is_not_seen_it_is_said_how_to_see_it() -> None:
    everything = absent(load_catalog(), set(), local=False)
    assert [each.layer for each in everything] == [
        "engine", "gateway", "accelerator", "host", "server", "client", "network",
    ]  # fmt: skip
    words = {each.layer: each.how for each in everything}
    assert "--enable-metrics" in words["engine"]
    assert "9400" in words["accelerator"]
    assert "pinchpoint agent" in words["server"]
    assert "pinchpoint agent" not in {each.layer: each.how for each in absent(load_catalog(), set(), True)}["server"]
