"""Chart data: thinning keeps extremes, holes stay holes, counts agree with the records."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.model import Verdict
from pinchpoint.report.charts import chart_data
from pinchpoint.report.ruler import WIDTH, rate_ruler
from pinchpoint.report.thinning import align, thin
from pinchpoint.report.timeline import POINTS_MAX
from pinchpoint.series import RunView, Series

VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=400)


@given(VALUES, st.integers(20, 200))
def test_thinning_keeps_order_ends_and_extremes(values: list[float], points_max: int) -> None:
    value = np.array(values)
    kept = thin(value, points_max)
    assert np.all(np.diff(kept) > 0)
    assert {kept[0], kept[-1]} == {0, len(value) - 1}
    assert len(kept) <= 1.2 * points_max + 4
    if np.isfinite(value).any():
        assert np.nanmin(value[kept]) == np.nanmin(value)
        assert np.nanmax(value[kept]) == np.nanmax(value)


def test_a_single_spike_among_a_million_readings_survives() -> None:
    value = np.zeros(1_000_000)
    value[567_891] = 1.0
    kept = thin(value, POINTS_MAX)
    assert value[kept].max() == 1.0
    assert len(kept) <= POINTS_MAX + 2


def series(t_s: list[float], value: list[float]) -> Series:
    return Series("x", "", "gauge", np.array(t_s), np.array(value))


def test_a_hole_in_the_telemetry_is_not_bridged() -> None:
    t_s, (column,) = align([series([0, 1, 2, 3, 20, 21, 22], [1, 2, 3, 4, 5, 6, 7])])
    assert np.isnan(column[(t_s > 6.5) & (t_s < 20)]).all() and ((t_s > 6) & (t_s < 20)).any()
    assert column[t_s == 20].tolist() == [5]


def test_series_of_different_instants_share_one_axis() -> None:
    t_s, (first, second) = align([series([0, 1, 2], [1, 2, 3]), series([0.5, 1.5, 2.5], [10, 20, 30])])
    assert t_s.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert first.tolist() == [1, 1, 2, 2, 3, 3]
    assert np.isnan(second[0]) and second[1:].tolist() == [10, 10, 20, 20, 30]


def chart(data: dict, key: str) -> dict:
    return next(c for c in every_chart(data) if c["key"] == key)


def every_chart(data: dict) -> list[dict]:
    of_layers = [chart for layer in data["layers"] for chart in layer["charts"] + layer["more"]]
    return data["curve"] + data["timeline"] + of_layers


def test_completed_requests_of_the_chart_are_those_of_the_records(
    report_view: RunView, report_verdict: Verdict
) -> None:
    drawn = chart(chart_data(report_view, report_verdict), "requests")
    width_s = drawn["x"][1] - drawn["x"][0]
    completed = next(line for line in drawn["series"] if line["label"] == "completed")
    total = sum(completed["values"]) * width_s
    assert total == pytest.approx((report_view.requests.status == "ok").sum(), abs=1)


def test_every_line_has_a_value_or_null_for_every_instant(report_view: RunView, report_verdict: Verdict) -> None:
    data = chart_data(report_view, report_verdict)
    assert len(data["curve"]) == 4 and len(every_chart(data)) >= 14
    for drawn in every_chart(data):
        assert all(len(line["values"]) == len(drawn["x"]) for line in drawn["series"]), drawn["key"]
        assert drawn["x"] == sorted(drawn["x"]), drawn["key"]
        assert drawn["title"] and drawn["reading"] and drawn["axis"]


def test_slo_limits_are_drawn_where_their_metric_is(report_view: RunView, report_verdict: Verdict) -> None:
    data = chart_data(report_view, report_verdict)
    for key in ("curve-ttft", "ttft"):
        assert chart(data, key)["limits"] == [{"value": 0.8, "label": "ttft p90 < 800ms"}]
    assert "p90" in [line["label"] for line in chart(data, "curve-ttft")["series"]]
    assert chart(data, "engine")["limits"] == [{"value": 8, "label": "limit 8"}]


def test_ruler_places_steps_in_proportion_and_stacks_equal_rates(report_verdict: Verdict) -> None:
    ruler = rate_ruler(report_verdict)
    assert ruler is not None
    at = {step["label"]: step["x"] for step in ruler["steps"]}
    assert at["6"] == pytest.approx(2 * at["3"], abs=0.2)
    assert ruler["lower"] == at["5.5"] and ruler["upper"] == at["6"]
    assert 0 < max(at.values()) < WIDTH
    assert [text for _, text in ruler["ticks"]] == ["0", "2", "4", "6", "8"]


@pytest.mark.parametrize("rates", [[0.02], [0.3, 0.5], [950.0, 1200.0], [12_000.0]])
def test_ruler_has_a_readable_number_of_ticks_at_any_scale(report_verdict: Verdict, rates: list[float]) -> None:
    import msgspec

    stages = tuple(msgspec.structs.replace(report_verdict.stages[1], rate_rps=rate) for rate in rates)
    ruler = rate_ruler(msgspec.structs.replace(report_verdict, stages=stages))
    assert ruler is not None
    assert 3 <= len(ruler["ticks"]) <= 9
