"""Requests as columns: the same answers as the SLO language gives for single requests."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import RECORD_COLUMNS, STATUSES, Manifest, TargetFacts
from pinchpoint.rundir import RunWriter, read_run
from pinchpoint.series import Requests, RunView
from pinchpoint.slo import parse_slo, request_meets, surely_missed
from tests.support.runs import named_row

SLOS = ("ttft p95 < 100ms", "tpot p95 < 20ms", "itl p95 < 30ms", "e2e p95 < 1s", "errors < 1%")
instants = st.none() | st.integers(0, 2 * NS_PER_S)


@st.composite
def records(draw: st.DrawFn, request_id: int) -> dict[str, object]:
    scheduled_ns = draw(st.integers(0, NS_PER_S))
    chunk_ns = sorted(draw(st.lists(st.integers(scheduled_ns, scheduled_ns + NS_PER_S), max_size=4)))
    first_byte_ns = chunk_ns[0] if chunk_ns else draw(st.none() | st.just(scheduled_ns))
    return {
        "request_id": request_id,
        "stage": 0,
        "worker": 0,
        "scheduled_ns": scheduled_ns,
        "first_byte_ns": first_byte_ns,
        "first_token_ns": chunk_ns[0] if chunk_ns else None,
        "last_token_ns": chunk_ns[-1] if chunk_ns else None,
        "end_ns": draw(st.none() | st.integers(scheduled_ns + NS_PER_S, scheduled_ns + 2 * NS_PER_S)),
        "chunk_ns": chunk_ns,
        "coalesced_count": 0,
        "timestamp_source": "kernel",
        "output_tokens": draw(st.none() | st.integers(0, 6)),
        "requested_input_tokens": 1,
        "requested_output_tokens": draw(st.integers(1, 60)),
        "bytes_in": 0,
        "status": draw(st.sampled_from(STATUSES)),
    }


def requests_of(path: Path, rows: list[dict[str, object]]) -> Requests:
    manifest = Manifest(1, "r", "0", "running", None, "", 0, False, 1, {}, TargetFacts("u"), (), False, [], {}, {}, {})
    writer = RunWriter(path, manifest)
    part = writer.part("records", "0")
    part.append(named_row(RECORD_COLUMNS, **row) for row in rows)
    part.close()
    return Requests(read_run(path))


def known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


@pytest.mark.parametrize("text", SLOS)
@settings(deadline=None)
@given(data=st.data())
def test_all_requests_at_once_get_the_answers_of_each_alone(
    text: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    slo = parse_slo(text)
    rows = [data.draw(records(i)) for i in range(data.draw(st.integers(1, 6)))]
    r = requests_of(tmp_path_factory.mktemp("series") / "run", rows)
    met, counts = r.outcomes(slo)
    for i in range(r.count):
        expected: bool | None
        if r.status[i] in ("cancelled", "abandoned"):
            age_s = r.end_s[i] - r.scheduled_s[i]
            expected = (
                False
                if surely_missed(
                    slo,
                    age_s=0.0 if math.isnan(age_s) else age_s,
                    has_first_byte=not math.isnan(r.first_byte_s[i]),
                    since_first_token_s=known(r.end_s[i] - r.first_token_s[i]),
                    max_output_tokens=int(r.requested_output_tokens[i]),
                )
                else None
            )
        else:
            expected = request_meets(
                slo,
                status=r.status[i],
                ttft_s=known(r.ttft_s[i]),
                tpot_s=known(r.tpot_s[i]),
                e2e_s=known(r.e2e_s[i]),
                itl_max_s=known(r.itl_max_s[i]),
            )
        assert (bool(met[i]) if counts[i] else None) == expected


def test_columns_follow_the_schedule_and_not_the_order_of_ends(tmp_path: Path) -> None:
    base: dict[str, object] = {
        "stage": 0, "worker": 0, "coalesced_count": 0, "timestamp_source": "kernel", "requested_input_tokens": 1,
        "requested_output_tokens": 3, "bytes_in": 0, "status": "ok",
    }  # fmt: skip
    late: dict[str, object] = {**base, "request_id": 1, "scheduled_ns": 20, "chunk_ns": [30, 40]}
    early: dict[str, object] = {**base, "request_id": 0, "scheduled_ns": 10, "chunk_ns": [50, 60, 90]}
    r = requests_of(tmp_path / "run", [late, early])
    assert r.request_id.tolist() == [0, 1]
    assert r.chunks.tolist() == [3, 2]
    assert np.allclose(r.itl_max_s, [30e-9, 10e-9])


def test_a_user_who_hung_up_is_no_error_of_the_service() -> None:
    values = {"ttft_s": None, "tpot_s": None, "e2e_s": None, "itl_max_s": None}
    assert request_meets(parse_slo("errors < 1%"), status="abandoned", **values) is None


# -- telemetry -----------------------------------------------------------------------------------------------------

Row = tuple[float, str, str, str, float]
"""Instant in seconds, source, series, labels, value."""


def telemetry_of(path: Path, rows: list[Row]) -> RunView:
    manifest = Manifest(1, "r", "0", "running", None, "", 0, False, 1, {}, TargetFacts("u"), (), False, [], {}, {}, {})
    writer = RunWriter(path, manifest)
    part = writer.part("telemetry", "0")
    part.append(
        (int(t_s * NS_PER_S), 0, source, series, series, labels, value) for t_s, source, series, labels, value in rows
    )
    part.close()
    return RunView(read_run(path))


def test_a_restart_of_one_engine_does_not_count_the_others_again(tmp_path: Path) -> None:
    name = "engine.generation_tokens_total"
    values = {"engine=0": [1000.0, 1100.0, 1200.0], "engine=1": [500.0, 20.0, 60.0]}
    rows: list[Row] = [
        (float(i), "engine", name, labels, value) for labels, told in values.items() for i, value in enumerate(told)
    ]
    view = telemetry_of(tmp_path / "run", rows)
    assert view.increase(name, (0.0, 2.0)) == 200 + 60
    assert view.rate(name, (0.0, 2.0)) == 130.0
    assert view.rate_series(name).value.tolist() == [120.0, 140.0]


def test_a_replica_that_joins_or_leaves_moves_no_rate_by_its_past(tmp_path: Path) -> None:
    name = "engine.generation_tokens_total"
    rows: list[Row] = [(float(i), "engine", name, "replica=0", 10.0 * i) for i in range(6)]
    rows += [(float(i), "engine", name, "replica=1", 1e6 + 5.0 * i) for i in (2, 3)]
    view = telemetry_of(tmp_path / "run", rows)
    assert view.rate_series(name).value.tolist() == [10.0, 10.0, 15.0, 10.0, 10.0]
    assert view.increase(name, (0.0, 5.0)) == 55.0


def test_sources_that_tell_of_one_machine_are_not_added(tmp_path: Path) -> None:
    rows: list[Row] = [(i / 2, "host", "host.load1", "", 3.0) for i in range(8)]
    rows += [(float(i), "node", "host.load1", "", 2.0) for i in range(4)]
    rows += [(float(i), "node2", "host.load1", "host=b", 10.0) for i in range(4)]
    view = telemetry_of(tmp_path / "run", rows)
    assert set(view.series("host.load1").value.tolist()) == {3.0}  # of the host that ran the load
    assert len(view.series("host.load1")) == 8
    assert {child.labels.get("host") for child in view.children("host.load1")} == {None, "b"}


def test_machines_are_taken_together_only_where_none_of_them_ran_the_load(tmp_path: Path) -> None:
    rows: list[Row] = [
        (float(i), name, "host.load1", f"host={name}", load)
        for i in range(4)
        for name, load in (("a", 1.0), ("b", 10.0))
    ]
    assert set(telemetry_of(tmp_path / "run", rows).series("host.load1").value.tolist()) == {11.0}


def test_two_devices_draw_their_powers_together_and_are_as_hot_as_the_hotter(tmp_path: Path) -> None:
    values = {
        "gpu.power_watts": (300.0, 250.0, 550.0),
        "gpu.temperature_celsius": (61.0, 70.0, 70.0),
        "gpu.sm_clock_hz": (1.4e9, 1.2e9, 1.4e9),
        "engine.kv_block_tokens": (16.0, 16.0, 16.0),
        "engine.requests_running": (3.0, 4.0, 7.0),
    }
    rows: list[Row] = [(0.0, "page", name, f"gpu={i}", told[i]) for name, told in values.items() for i in (0, 1)]
    view = telemetry_of(tmp_path / "run", rows)
    assert {name: view.series(name).value.tolist() for name in values} == {n: [told[2]] for n, told in values.items()}


def test_pages_read_at_different_instants_are_added_at_each_of_them(tmp_path: Path) -> None:
    rows: list[Row] = [(float(i), "engine", "engine.requests_running", "", 3.0) for i in range(4)]
    rows += [(i + 0.25, "engine-2", "engine.requests_running", "", 4.0) for i in range(1, 3)]
    series = telemetry_of(tmp_path / "run", rows).series("engine.requests_running")
    assert list(zip(series.t_s.tolist(), series.value.tolist(), strict=True)) == [
        (0.0, 3.0), (1.0, 3.0), (1.25, 7.0), (2.0, 7.0), (2.25, 7.0), (3.0, 7.0),
    ]  # fmt: skip


def histogram_rows(t_s: float, le: dict[str, float], total: float, labels: str = "engine=0") -> list[Row]:
    name = "engine.ttft_s"
    rows: list[Row] = [(t_s, "engine", f"{name}_bucket", f"{labels},le={edge}", n) for edge, n in le.items()]
    return [*rows, (t_s, "engine", f"{name}_count", labels, le["+Inf"]), (t_s, "engine", f"{name}_sum", labels, total)]


def test_quantiles_of_a_window_are_the_edges_of_its_own_observations(tmp_path: Path) -> None:
    rows = histogram_rows(0.0, {"0.1": 100, "0.5": 100, "1": 100, "+Inf": 100}, 5.0)
    rows += histogram_rows(1.0, {"0.1": 101, "0.5": 109, "1": 110, "+Inf": 110}, 8.0)
    rows += histogram_rows(2.0, {"0.1": 101, "0.5": 109, "1": 110, "+Inf": 111}, 12.0)
    view = telemetry_of(tmp_path / "run", rows)
    assert view.histogram_quantile_bounds("engine.ttft_s", 0.5, (0.0, 1.0)) == (0.1, 0.5)
    assert view.histogram_quantile_bounds("engine.ttft_s", 0.0, (0.0, 1.0)) == (0.0, 0.1)
    assert view.histogram_quantile_bounds("engine.ttft_s", 0.5, (1.0, 2.0)) == (1.0, math.inf)
    assert view.histogram_quantile_bounds("engine.ttft_s", 0.5, (0.0, 0.5)) is None
    assert view.histogram_quantile_bounds("engine.itl_s", 0.5, (0.0, 1.0)) is None
    assert view.histogram_mean("engine.ttft_s", (0.0, 1.0)) == 0.3


def test_a_histogram_begins_again_as_a_whole(tmp_path: Path) -> None:
    rows = histogram_rows(0.0, {"0.1": 1, "1": 100, "+Inf": 100}, 50.0)
    rows += histogram_rows(1.0, {"0.1": 8, "1": 10, "+Inf": 10}, 60.0)  # 8 and 60 hide that this is another life
    view = telemetry_of(tmp_path / "run", rows)
    assert view.histogram_mean("engine.ttft_s", (0.0, 1.0)) == 6.0
    assert view.histogram_quantile_bounds("engine.ttft_s", 0.5, (0.0, 1.0)) == (0.0, 0.1)


def test_scrapes_that_failed_are_counted_beside_those_that_did_not(tmp_path: Path) -> None:
    rows: list[Row] = [(float(i), "gpu", "scrape_s", "source=gpu", 0.01) for i in range(3)]
    rows += [(float(i), "gpu", "scrape_failed", "reason=timeout", 1.0) for i in (3, 4)]
    rows += [(float(i), "node", "scrape_s", "source=node", 0.01) for i in range(5)]
    view = telemetry_of(tmp_path / "run", rows)
    assert view.scrapes((0.0, 4.0)) == {"gpu": (2, 3)}
    assert view.scrapes((0.0, 2.5)) == {}
