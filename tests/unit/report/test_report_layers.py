"""Telemetry by layer: nothing that was read is invisible, nothing that was not is drawn, and a page stays small."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from tests.support.runs import T0_NS, build_run, open_view

from pinchpoint.catalog import HISTOGRAM_MEMBERS, format_labels, load_catalog
from pinchpoint.clock import NS_PER_S
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.report.layers import SMALL_CHARTS_MAX, layer_sections
from pinchpoint.report.layers import _amount as _amount
from pinchpoint.report.lines import EACH_MAX, histogram_mean
from pinchpoint.report.panels import LAYERS, PANELS
from pinchpoint.series import RunView

Rows = Iterable[tuple[float, str, str, str, float]]
"""Second, source, series, labels, value."""


@pytest.fixture
def with_telemetry(tmp_path: Path) -> Callable[[Rows], RunView]:
    """A run of some seconds whose telemetry is what a test gives."""

    def build(rows: Rows) -> RunView:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from pinchpoint.parts import arrow_schema

        path = build_run(tmp_path / "run", steps=(("search", 2.0, 20.0),), telemetry=False)
        schema = arrow_schema(SAMPLE_COLUMNS)
        given = [
            (T0_NS + int(second * NS_PER_S), 0, source, series, series, labels, float(value))
            for second, source, series, labels, value in rows
        ]
        columns = list(zip(*given, strict=True))
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path / "telemetry.parquet")
        manifest = json.loads((path / "run.json").read_text())
        manifest["files"].pop("telemetry.parquet")
        (path / "run.json").write_text(json.dumps(manifest))
        return open_view(path)

    return build


def layer(view: RunView, key: str) -> dict:
    return next(section for section in layer_sections(view) if section["key"] == key)


def chart(section: dict, key: str) -> dict:
    return next(each for each in section["charts"] + section["more"] if each["key"] == key)


def labels(drawn: dict) -> list[str]:
    return [line["label"] for line in drawn["series"]]


def gpus(count: int, series: str = "gpu.power_watts", seconds: int = 20) -> Rows:
    for second in range(seconds):
        for gpu in range(count):
            yield second, "gpu", series, format_labels({"gpu": str(gpu), "UUID": f"u{gpu}"}), 100 + 10 * gpu + second


def test_every_panel_shows_series_of_the_catalogue_in_a_layer_that_is_drawn() -> None:
    catalog = load_catalog()
    known = {each.key: each for each in LAYERS}
    assert len({panel.key for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel.layer in known and panel.title and panel.reading and panel.axis, panel.key
        for name in [line.series for line in panel.lines] + [line.over for line in panel.lines if line.over]:
            assert catalog.entry(name) is not None, f"{panel.key}: {name}"
        for name, _ in panel.limits:
            assert catalog.entry(name) is not None, f"{panel.key}: {name}"


def test_every_layer_of_the_catalogue_has_its_place() -> None:
    drawn = {name for each in LAYERS for name in each.catalogued}
    assert {entry.layer for entry in load_catalog().entries.values()} <= drawn


def test_nothing_that_was_read_is_invisible(report_view: RunView) -> None:
    sections = layer_sections(report_view)
    shown: set[str] = set()
    for section in sections:
        for drawn in section["charts"] + section["more"]:
            shown |= set(drawn.get("series_names", [drawn["title"]]))
        shown |= {name for name, _, _ in section["steady"]}
        silent = [panel for panel in PANELS if any(words.startswith(panel.title) for words in section["zero"])]
        shown |= {line.series for panel in silent for line in panel.lines}
    whole = shown | {name + end for name in shown for end in HISTOGRAM_MEMBERS}
    assert set(report_view.series_names) <= whole


def test_each_gpu_has_its_line_in_the_order_of_their_numbers(with_telemetry: Callable[[Rows], RunView]) -> None:
    power = chart(layer(with_telemetry(gpus(12)), "gpu"), "gpu-power")
    assert labels(power) == [f"GPU {gpu}" for gpu in range(12)]
    assert power["series"][3]["values"][0] == 130
    looks = {(line["colour"], tuple(line.get("dash", ()))) for line in power["series"]}
    assert len(looks) == 12, "two lines look alike"


def test_of_more_gpus_than_a_person_can_follow_the_spread_is_drawn(with_telemetry: Callable[[Rows], RunView]) -> None:
    power = chart(layer(with_telemetry(gpus(EACH_MAX + 4)), "gpu"), "gpu-power")
    assert labels(power) == ["largest of 20", "median of 20", "smallest of 20"]
    assert [line["values"][0] for line in power["series"]] == [290, 195, 100]


def test_one_gpu_needs_no_chart_of_each(with_telemetry: Callable[[Rows], RunView]) -> None:
    section = layer(with_telemetry(gpus(1, "gpu.sm_active_ratio")), "gpu")
    assert "gpu-each" not in [drawn["key"] for drawn in section["charts"]]
    assert "Activity of each GPU" not in section["missing"]


def test_readings_of_two_machines_are_not_added_up(with_telemetry: Callable[[Rows], RunView]) -> None:
    def rows() -> Rows:
        for second in range(20):
            yield second, "host", "host.runnable", "", 3 + second % 2
            yield second, "host-b", "host.runnable", "host=b", 10 + second % 2

    run_queue = chart(layer(with_telemetry(rows()), "host"), "host-run")
    assert labels(run_queue) == ["can run, here", "can run, b"]
    assert [line["values"][0] for line in run_queue["series"]] == [3, 10]


def test_a_counter_is_drawn_as_its_rate_and_a_restart_is_no_dip(with_telemetry: Callable[[Rows], RunView]) -> None:
    def rows() -> Rows:
        for second in range(20):
            yield second, "host", "host.swap_in_pages_total", "", 5 * second if second < 10 else 5 * (second - 9)

    faults = chart(layer(with_telemetry(rows()), "host"), "host-faults")
    assert set(faults["series"][0]["values"]) == {5}


def test_seconds_per_second_are_a_share_of_time(with_telemetry: Callable[[Rows], RunView]) -> None:
    rows = [(second, "host", "host.psi_cpu_some_s_total", "", 0.3 * second) for second in range(20)]
    pressure = chart(layer(with_telemetry(rows), "host"), "host-pressure")
    assert pressure["unit"] == "ratio" and pressure["series"][0]["values"][5] == pytest.approx(0.3)


def test_a_histogram_is_drawn_as_the_mean_of_what_it_counted(with_telemetry: Callable[[Rows], RunView]) -> None:
    def rows() -> Rows:
        for second in range(40):
            yield second, "engine", "engine.queue_time_s_count", "", 4 * min(second, 30)
            yield second, "engine", "engine.queue_time_s_sum", "", 1.0 * min(second, 30)

    view = with_telemetry(rows())
    mean = histogram_mean(view, "engine.queue_time_s")
    np.testing.assert_allclose(mean.value, 0.25)
    assert mean.t_s[-1] < 33, "a mean of nothing was made up"


def test_a_hole_in_the_telemetry_stays_a_hole(with_telemetry: Callable[[Rows], RunView]) -> None:
    rows = [(second, "gpu", "gpu.power_watts", "gpu=0", 100 + second) for second in [*range(10), *range(20, 30)]]
    drawn = chart(layer(with_telemetry(rows), "gpu"), "gpu-power")
    at = dict(zip(drawn["x"], drawn["series"][0]["values"], strict=True))
    assert any(value is None for second, value in at.items() if 9 < second < 20)


def test_what_stayed_zero_is_said_and_not_drawn(with_telemetry: Callable[[Rows], RunView]) -> None:
    rows = [(second, "gpu", "gpu.xid_errors", "gpu=0", 0) for second in range(20)]
    section = layer(with_telemetry([*rows, *gpus(1)]), "gpu")
    assert section["zero"] == ["Xid errors (last Xid)"]
    assert [drawn["key"] for drawn in section["charts"]] == ["gpu-power"]


def test_a_series_without_a_panel_is_drawn_small_or_told_as_steady(with_telemetry: Callable[[Rows], RunView]) -> None:
    def rows() -> Rows:
        for second in range(20):
            yield second, "host", "host.tcp_connections", "", second
            yield second, "host", "host.swappiness", "", 60
            yield second, "host", "host.forks_total", "", 7

    section = layer(with_telemetry(rows()), "host")
    assert [drawn["title"] for drawn in section["more"]] == ["host.tcp_connections"]
    assert [row[:2] for row in section["steady"]] == [
        ("host.forks_total", "did not grow"),
        ("host.swappiness", "60"),
    ]


def test_a_layer_without_readings_says_how_to_get_them(with_telemetry: Callable[[Rows], RunView]) -> None:
    view = with_telemetry(gpus(1))
    assert layer(view, "gpu")["how_to"] is None
    assert "--metrics-url" in layer(view, "engine")["how_to"]
    assert layer(view, "engine")["charts"] == []


def test_the_page_stays_small_however_much_was_collected(with_telemetry: Callable[[Rows], RunView]) -> None:
    names = [
        entry.name
        for entry in load_catalog().entries.values()
        if entry.kind in ("gauge", "counter") and not entry.name.endswith(HISTOGRAM_MEMBERS)
    ]
    chance = np.random.default_rng(1)

    def rows() -> Rows:
        for name in names:
            values = chance.random(100)
            if name.endswith("_total"):
                values = values.cumsum()
            for second, value in enumerate(values):
                for label in range(2):
                    yield second / 4, "x", name, f"device={label}", value + label

    sections = layer_sections(with_telemetry(rows()))
    assert sum(len(section["more"]) for section in sections) <= SMALL_CHARTS_MAX
    assert len(json.dumps(sections)) < 4_000_000


def test_many_machines_in_a_chart_of_many_series_become_the_largest_of_each(
    with_telemetry: Callable[[Rows], RunView],
) -> None:
    def rows() -> Rows:
        for second in range(20):
            for replica in range(3):
                for name in ("sm", "tensor", "dram"):
                    yield second, "gpu", f"gpu.{name}_active_ratio", f"gpu=0,replica={replica}", replica / 10

    activity = chart(layer(with_telemetry(rows()), "gpu"), "gpu")
    assert labels(activity) == ["SM, largest of 3", "tensor cores, largest of 3", "memory, largest of 3"]
    assert {line["values"][0] for line in activity["series"]} == {0.2}


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (8.55e9, "bytes", "8.55 GB"),
        (0, "bytes", "0 B"),
        (28232, "ports", "28232 ports"),
        (60, "1", "60"),
        (0.5, "ratio", "50 %"),
    ],
)
def test_an_amount_that_stayed_the_same_is_written_for_people(value: float, unit: str, expected: str) -> None:
    assert _amount(value, unit) == expected


def test_label_sets_in_their_thousands_cost_no_more_than_their_readings(
    with_telemetry: Callable[[Rows], RunView],
) -> None:
    def rows() -> Rows:
        for second in range(30):
            for cpu in range(256):
                for mode in ("user", "system", "idle"):
                    yield second, "host", "host.cpu_s_total", f"cpu={cpu},mode={mode}", second * 0.3

    view = with_telemetry(rows())
    children = view.children("host.cpu_s_total")
    assert len(children) == 768
    assert all(len(child.series) == 30 and (np.diff(child.series.t_s) > 0).all() for child in children)
    (drawn,) = layer(view, "host")["steady"]
    assert drawn[0] == "host.cpu_s_total"
