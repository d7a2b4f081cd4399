"""Money and energy of a step: the amounts of a run whose answer is known; what is missing is said."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import format_labels
from pinchpoint.clock import NS_PER_S
from pinchpoint.cost import Cost, Price, cost_of, list_price, list_prices, price_of
from pinchpoint.cost import _area as area
from pinchpoint.cost import _counted as counted
from pinchpoint.model import RECORD_COLUMNS, SAMPLE_COLUMNS, Capacity, Manifest, Stage, TargetFacts
from pinchpoint.rundir import RunWriter, read_run
from pinchpoint.series import RunView
from pinchpoint.slo import parse_slos
from tests.support.runs import named_row

STEP_S = 100
SLOS = parse_slos(("ttft p90 < 500ms",))
H100 = {"gpu": "0", "modelName": "NVIDIA H100 80GB HBM3"}
H100_OF_TWO = {"gpu": "1", "modelName": "NVIDIA H100 80GB HBM3"}


def steady(value: float, labels: dict[str, str], series: str = "gpu.power_watts", every: range = range(201)):
    return [(second, series, labels, value) for second in every]


def counting(watts: float, labels: dict[str, str], every: range = range(201)):
    return [(second, "gpu.energy_j_total", labels, watts * second) for second in every]


@pytest.fixture
def run(tmp_path):
    """Two steps of 100 s: 1 and 2 requests per second of 1,000 input and 50 output tokens, each answered within 0.2 s
    (first step) or 0.8 s (second), so that the second misses its SLO."""

    def build(readings=(), plan=None) -> RunView:
        stages = [
            Stage(
                index=index,
                kind="search",
                name=f"search {rate}",
                t0_ns=index * STEP_S * NS_PER_S,
                t1_ns=(index + 1) * STEP_S * NS_PER_S,
                drained_ns=(index + 1) * STEP_S * NS_PER_S,
                settle_ns=0,
                rate_rps=float(rate),
                decision="pass" if index == 0 else "fail",
            )
            for index, rate in enumerate((1, 2))
        ]
        manifest = Manifest(
            1, "r", "0", "running", None, "", 0, True, 1, plan or {}, TargetFacts("u"), SLOS, False, stages, {}, {}, {}
        )
        writer = RunWriter(tmp_path / f"run{len(list(tmp_path.iterdir()))}", manifest)
        records = writer.part("records", "0")
        number = 0
        for stage, wait_s in zip(stages, (0.2, 0.8), strict=True):
            for i in range(int(STEP_S * stage.rate_rps)):
                due_ns = stage.t0_ns + int(i / stage.rate_rps * NS_PER_S) + 1
                first_ns = due_ns + int(wait_s * NS_PER_S) // 2 if stage.index == 0 else due_ns + int(0.6 * NS_PER_S)
                chunk_ns = [first_ns + k * 1_000_000 for k in range(50)]
                records.append(
                    [
                        named_row(
                            RECORD_COLUMNS,
                            request_id=number,
                            stage=stage.index,
                            worker=0,
                            scheduled_ns=due_ns,
                            sent_ns=due_ns,
                            first_byte_ns=first_ns,
                            first_token_ns=first_ns,
                            last_token_ns=chunk_ns[-1],
                            end_ns=chunk_ns[-1],
                            chunk_ns=chunk_ns,
                            coalesced_count=0,
                            timestamp_source="kernel",
                            input_tokens=1000,
                            output_tokens=50,
                            requested_input_tokens=990,
                            requested_output_tokens=50,
                            bytes_in=1,
                            status="ok",
                        )
                    ]
                )
                number += 1
        records.close()
        samples = writer.part("telemetry", "gpu")
        samples.append(
            named_row(
                SAMPLE_COLUMNS,
                t_ns=second * NS_PER_S,
                late_us=0,
                source="gpu",
                raw=series,
                series=series,
                labels=format_labels(labels),
                value=float(value),
            )
            for second, series, labels, value in readings
        )
        samples.close()
        return RunView(read_run(writer.path))

    return build


def text(cost: Cost) -> str:
    return " ".join((*cost.missing, *cost.notes))


def test_money_is_the_hour_divided_by_the_work_of_the_step(run) -> None:
    cost = cost_of(run(), SLOS, Price(per_hour=3.6, accelerators=2))
    first, second = cost.steps
    assert cost.price_per_hour == 7.2
    assert (first.requests, first.input_tokens, first.output_tokens) == (100, 100_000, 5_000)
    assert first.money.total == pytest.approx(0.2)
    assert first.money.per_request == pytest.approx(0.002)
    assert first.money.per_1k_input_tokens == pytest.approx(0.002)
    assert first.money.per_1k_output_tokens == pytest.approx(0.04)
    assert first.money.per_1m_tokens == pytest.approx(0.2 / 0.105)
    assert second.money.per_request == pytest.approx(0.001, rel=0.02)


def test_an_answer_that_missed_its_slo_pays_for_nobody(run) -> None:
    first, second = cost_of(run(), SLOS, Price(per_hour=3.6)).steps
    assert first.money.per_1k_good_output_tokens == pytest.approx(first.money.per_1k_output_tokens)
    assert second.good_output_tokens == 0
    assert second.money.per_1k_good_output_tokens is None


def test_without_promises_no_token_is_a_good_one(run) -> None:
    (first, _) = cost_of(run(), (), Price(per_hour=3.6)).steps
    assert first.good_output_tokens is None and first.money.per_1k_good_output_tokens is None


def test_the_capacity_point_is_the_step_at_or_below_the_capacity(run) -> None:
    capacity = Capacity(1.0, 2.0, 0.95, True, None, best_rps=1.4)
    assert cost_of(run(), SLOS, Price(1.0), capacity=capacity).capacity.rate_rps == 1.0
    none = cost_of(run(), SLOS, Price(1.0), capacity=None)
    assert none.capacity is None and "no capacity point" in text(none)


def test_energy_of_counters_is_their_difference(run) -> None:
    readings = counting(300, H100) + counting(400, H100_OF_TWO) + steady(9999, H100) + steady(9999, H100_OF_TWO)
    cost = cost_of(run(readings), SLOS)
    assert cost.energy_source == "counter" and cost.accelerators == 2
    assert cost.steps[0].power_w == pytest.approx(700)
    assert cost.steps[0].energy_j.per_request == pytest.approx(700)
    assert cost.steps[0].energy_j.per_1k_output_tokens == pytest.approx(14_000)


def test_energy_of_power_readings_is_the_area_under_them(run) -> None:
    cost = cost_of(run(steady(300, H100) + steady(400, H100_OF_TWO)), SLOS)
    assert cost.energy_source == "power"
    assert cost.steps[0].energy_j.total == pytest.approx(70_000)
    assert cost.steps[0].energy_covered_ratio == pytest.approx(1)


def test_a_gap_in_the_power_readings_is_left_out_and_told(run) -> None:
    with_gap = steady(300, H100, every=range(31)) + steady(300, H100, every=range(60, 201))
    cost = cost_of(run(with_gap), SLOS)
    assert cost.steps[0].power_w == pytest.approx(300)
    assert cost.steps[0].energy_covered_ratio == pytest.approx(0.7)
    assert "gaps are left out" in text(cost) and "1 of 2 steps" in text(cost)


def test_a_step_that_is_hardly_covered_has_no_energy(run) -> None:
    first, second = cost_of(run(steady(300, H100, every=range(90, 201))), SLOS).steps
    assert first.energy_j is None and first.energy_covered_ratio == pytest.approx(0.1)
    assert second.energy_j is not None


def test_one_silent_accelerator_leaves_the_energy_unknown(run) -> None:
    cost = cost_of(run(steady(300, H100) + steady(300, H100_OF_TWO, every=range(150, 201))), SLOS)
    assert cost.steps[0].energy_j is None
    assert cost.steps[1].energy_j is not None


def test_without_accelerators_the_packages_of_the_host_are_counted_and_that_is_said(run) -> None:
    readings = [(second, "host.package_energy_j_total", {"zone": "package-0"}, 80.0 * second) for second in range(201)]
    cost = cost_of(run(readings), SLOS)
    assert cost.energy_source == "packages" and "CPU packages" in text(cost)
    assert cost.steps[0].power_w == pytest.approx(80)
    assert cost_of(run(readings + steady(300, H100)), SLOS).steps[0].power_w == pytest.approx(300)


def test_what_is_missing_is_said_and_never_zero(run) -> None:
    cost = cost_of(run(), SLOS)
    assert cost.price_per_hour is None and cost.energy_source is None
    assert all(step.money is None and step.energy_j is None and step.power_w is None for step in cost.steps)
    assert "--price-per-hour" in text(cost) and "gpu.power_watts" in text(cost)


def test_a_known_accelerator_has_a_list_price_and_is_told_to_be_one(run) -> None:
    cost = cost_of(run(steady(300, H100) + steady(300, H100_OF_TWO)), SLOS)
    entry = list_price("NVIDIA H100 80GB HBM3")
    assert cost.price_per_hour == pytest.approx(2 * entry.per_hour)
    assert "list price, yours differs" in text(cost) and entry.date in text(cost)


def test_an_unknown_accelerator_has_no_price(run) -> None:
    cost = cost_of(run(steady(300, {"gpu": "0", "modelName": "Acme 9000"})), SLOS)
    assert cost.price_per_hour is None and "no Acme 9000" in text(cost)


def test_a_given_price_goes_before_the_list(run) -> None:
    cost = cost_of(
        run(steady(300, H100), {"cost": {"price_per_hour": 1.0, "currency": "EUR", "accelerators": 8}}), SLOS
    )
    assert (cost.price_per_hour, cost.currency, cost.price_source) == (8.0, "EUR", "given")
    assert "8 accelerators are paid for and only 1 of them is seen" in text(cost)


def test_an_old_plan_without_cost_gives_an_empty_price(run) -> None:
    assert price_of(run()) == Price()


def test_every_list_price_names_its_source_and_date_and_the_longest_name_comes_first() -> None:
    for entry in list_prices():
        assert 0 < entry.low <= entry.high and entry.source and len(entry.date) == len("2026-01")
        assert list_price(" ".join(entry.matches)) == entry, "an entry before it takes its name"
    assert list_price("A100-PCIE-40GB") is None


INSTANTS = st.lists(st.floats(0, 100), min_size=2, max_size=30, unique=True).map(sorted)


@given(INSTANTS, st.floats(0, 1000), st.floats(0, 50), st.floats(1, 50))
def test_the_area_under_a_constant_is_its_height_times_what_is_covered(t_s, watts, start_s, length_s) -> None:
    amount, covered_s = area(np.array(t_s), np.full(len(t_s), watts), (start_s, start_s + length_s))
    assert 0 <= covered_s <= length_s * (1 + 1e-9)
    assert amount == pytest.approx(watts * covered_s)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=30), st.floats(0, 10), st.floats(0, 10))
def test_two_halves_of_a_counter_add_up_to_the_whole_whatever_it_restarts(values, start_s, end_s) -> None:
    t_s, value = np.arange(len(values), dtype=float), np.array(values)
    start_s, end_s = sorted((start_s, end_s))
    middle_s = (start_s + end_s) / 2
    whole, first, second = (
        counted(t_s, value, window) for window in ((start_s, end_s), (start_s, middle_s), (middle_s, end_s))
    )
    assert whole[0] >= 0
    assert first[0] + second[0] == pytest.approx(whole[0], abs=1e-3)
    assert first[1] + second[1] == pytest.approx(whole[1])


def test_cost_goes_into_json_as_it_is(run) -> None:
    cost = cost_of(run(counting(300, H100)), SLOS, capacity=Capacity(1.0, 2.0, 0.95, True, None))
    assert msgspec.json.decode(msgspec.json.encode(cost), type=Cost) == cost


def test_energy_of_a_counter_that_began_again_is_that_of_the_rest_of_the_stretch() -> None:
    t_s = np.array([0.0, 1.0, 2.0, 6.0, 7.0, 8.0])
    joules = np.array([0.0, 500.0, 1000.0, 100.0, 600.0, 1100.0])  # restarted while nobody looked
    assert counted(t_s, joules, (0.0, 8.0)) == (pytest.approx(2000.0), pytest.approx(4.0))
