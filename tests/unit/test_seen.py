"""What sources show becomes rows: values as people read them, and nothing that was not read."""

import math

import pytest

from pinchpoint.catalog import load_catalog
from pinchpoint.clock import NS_PER_S
from pinchpoint.seen import LAYERS, Row, Watcher, layer_of
from pinchpoint.telemetry.config import Reading, event, own


def watched(*told: tuple[str, float, list[Reading]]) -> Watcher:
    """From (source, seconds, readings)."""
    watcher = Watcher(load_catalog())
    for source, t_s, readings in told:
        watcher.add(source, int(t_s * NS_PER_S), readings)
    return watcher


def row(watcher: Watcher, series: str) -> Row:
    return next(each for each in watcher.rows() if each.series == series)


def test_gauges_are_summed_over_label_sets_and_ratios_are_the_largest() -> None:
    watcher = watched(
        (
            "engine",
            0.0,
            [
                *(own("engine.requests_running", n, f"engine={n}") for n in (1.0, 2.0)),
                *(own("engine.kv_used_ratio", n, f"engine={n}") for n in (0.1, 0.7)),
            ],
        )
    )
    assert (row(watcher, "engine.requests_running").value, row(watcher, "engine.kv_used_ratio").value) == (3.0, 0.7)
    assert row(watcher, "engine.requests_running").label_sets == 2


def test_a_counter_is_a_total_first_and_a_rate_from_the_second_reading_on() -> None:
    name = "engine.generation_tokens_total"
    first = ("engine", 0.0, [own(name, 100.0)])
    assert (row(watched(first), name).how, row(watched(first), name).value) == ("total", 100.0)
    second = watched(first, ("engine", 2.0, [own(name, 150.0)]))
    assert (row(second, name).how, row(second, name).value) == ("per second", 25.0)


def test_a_restart_and_a_label_set_that_joins_add_no_past() -> None:
    name = "engine.generation_tokens_total"
    watcher = watched(
        ("engine", 0.0, [own(name, 1000.0, "engine=0")]),
        ("engine", 1.0, [own(name, 10.0, "engine=0"), own(name, 1e6, "engine=1")]),
        ("engine", 2.0, [own(name, 20.0, "engine=0"), own(name, 1e6 + 2, "engine=1")]),
    )
    assert row(watcher, name).value == (10 + 10 + 2) / 2


def test_a_histogram_is_one_row_with_the_mean_of_what_was_observed_meanwhile() -> None:
    def members(total: float, count: float) -> list[Reading]:
        return [
            own("engine.ttft_s_sum", total),
            own("engine.ttft_s_count", count),
            own("engine.ttft_s_bucket", count, "le=+Inf"),
        ]

    first = ("engine", 0.0, members(100.0, 50.0))
    alone = watched(first)
    assert [each.series for each in alone.rows()] == ["engine.ttft_s"]
    assert (row(alone, "engine.ttft_s").how, row(alone, "engine.ttft_s").value) == ("mean since start", 2.0)
    quiet = watched(first, ("engine", 1.0, members(100.0, 50.0)))
    assert (row(quiet, "engine.ttft_s").how, row(quiet, "engine.ttft_s").observations_per_s) == (
        "mean since start",
        0.0,
    )
    busy = watched(first, ("engine", 2.0, members(101.0, 54.0)))
    assert (row(busy, "engine.ttft_s").how, row(busy, "engine.ttft_s").value) == ("mean", 0.25)
    assert row(busy, "engine.ttft_s").observations_per_s == 2.0


def test_each_source_has_a_row_of_its_own_in_the_order_of_layers() -> None:
    watcher = watched(
        ("host", 0.0, [own("host.load1", 1.0)]),
        ("host-node", 0.0, [own("host.load1", 2.0, "host=b")]),
        ("gpu", 0.0, [own("gpu.power_watts", 100.0, "gpu=0")]),
        ("null-request", 0.0, [own("probe.null_request_s", 0.1)]),
        ("engine", 0.0, [own("engine.requests_running", 1.0)]),
    )
    assert [(each.layer, each.source) for each in watcher.rows()] == [
        ("engine", "engine"),
        ("accelerator", "gpu"),
        ("host", "host"),
        ("host", "host-node"),
        ("network", "null-request"),
    ]


def test_every_series_of_the_catalogue_has_a_layer_that_is_shown() -> None:
    assert {layer_of(entry) for entry in load_catalog().entries.values()} <= set(LAYERS)


def test_what_is_no_number_is_shown_as_unknown_and_unknown_names_not_at_all() -> None:
    watcher = watched(("host", 0.0, [own("host.load1", math.nan), Reading("some_name", None, "", 1.0)]))
    assert [(each.series, each.value) for each in watcher.rows()] == [("host.load1", None)]


def test_troubles_are_counted_with_their_last_words() -> None:
    watcher = watched(
        ("engine", 0.0, [event("scrape_failed", "reason=refused")]),
        ("engine", 1.0, [event("scrape_failed", "reason=timeout"), Reading("other_event", None, "", 1.0)]),
    )
    (trouble,) = watcher.troubles()
    assert (trouble.source, trouble.what, trouble.labels, trouble.count) == (
        "engine",
        "scrape_failed",
        {"reason": "timeout"},
        2,
    )
    assert watcher.span_s == 1.0


def test_memory_is_bounded_however_long_it_watches() -> None:
    watcher = Watcher(load_catalog())
    name = "engine.generation_tokens_total"
    for t_s in range(500):
        watcher.add("engine", t_s * NS_PER_S, [own(name, 7.0 * t_s)])
    assert row(watcher, name).value == pytest.approx(7.0)
    assert sum(len(kept) for kept in watcher._snapshots.values()) <= 11
