"""Cost on the screen, on the page and in JSON: amounts that are known, and nothing where none is."""

import json

import msgspec
import pytest

from pinchpoint.cost import Amounts, Cost, Price, StepCost, cost_of
from pinchpoint.model import Verdict
from pinchpoint.report.cost_words import basis, cost_rows, joules, money, watts
from pinchpoint.report.html import html
from pinchpoint.report.json import verdict_json
from pinchpoint.report.text import screen_text
from pinchpoint.series import RunView


@pytest.fixture
def priced(report_view: RunView, report_verdict: Verdict) -> Cost:
    price = Price(per_hour=2.49, currency="EUR", accelerators=2)
    return cost_of(report_view, report_verdict.slos, price, capacity=report_verdict.capacity)


def with_energy(cost: Cost) -> Cost:
    """The same steps drawing 700 W."""

    def powered(step: StepCost) -> StepCost:
        amounts = Amounts(700 * step.duration_s, 350.0, 120.0, 1684.7, None, 1_250_000.0)
        return msgspec.structs.replace(step, power_w=700.0, energy_covered_ratio=0.8, energy_j=amounts)

    assert cost.capacity is not None
    return msgspec.structs.replace(
        cost, energy_source="power", steps=tuple(map(powered, cost.steps)), capacity=powered(cost.capacity)
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (money(0.00374, "USD"), "0.00374 USD"),
        (money(None, "USD"), "–"),
        (joules(12.34), "12.3 J"),
        (joules(1684.7), "1.68 kJ"),
        (joules(2_500_000), "2.5 MJ"),
        (joules(None), "–"),
        (watts(699.6), "700 W"),
        (watts(5600), "5.6 kW"),
    ],
)
def test_amounts_are_written_with_their_unit(written: str, expected: str) -> None:
    assert written == expected


def test_the_screen_tells_money_and_energy_at_the_capacity(report_verdict: Verdict, priced: Cost) -> None:
    text = screen_text(report_verdict, cost=with_energy(priced))
    assert "COSTS" in text and "EUR per million tokens" in text and "1.68 kJ per 1k output tokens" in text
    assert "at 5.5 req/s" in text
    assert len(text.splitlines()) <= 40


def test_without_price_and_power_the_screen_says_nothing(report_view: RunView, report_verdict: Verdict) -> None:
    nothing = cost_of(report_view, report_verdict.slos, capacity=report_verdict.capacity)
    assert "COSTS" not in screen_text(report_verdict, cost=nothing)
    assert 'id="cost"' not in html(report_view, report_verdict, nothing)


def test_the_page_has_a_row_for_each_step_and_marks_the_capacity(
    report_view: RunView, report_verdict: Verdict, priced: Cost
) -> None:
    page = html(report_view, report_verdict, with_energy(priced))
    section = page.split('<section id="cost">')[1].split("</section>")[0]
    assert section.count("<tr><th scope=") - 1 - len(priced.steps) <= 1
    assert section.count('<span class="tag">capacity</span>') == 1
    assert "4.98 EUR per hour (given)" in section and "power readings" in section
    assert "(80 %)" in section


def test_an_amount_that_is_not_known_is_a_dash(priced: Cost) -> None:
    assert all(set(row["energy"]) == {"–"} for row in cost_rows(priced))
    assert "energy" not in basis(priced)


def test_a_hostile_name_of_an_accelerator_stays_text(
    report_view: RunView, report_verdict: Verdict, priced: Cost
) -> None:
    hostile = msgspec.structs.replace(priced, accelerator="\x1b[31m<script>x</script>", currency="<b>$</b>")
    page = html(report_view, report_verdict, hostile)
    assert "<script>x" not in page and "<b>$" not in page
    assert "\x1b" not in screen_text(report_verdict, cost=hostile)


def test_json_holds_the_cost_or_null(report_verdict: Verdict, priced: Cost) -> None:
    assert json.loads(verdict_json(report_verdict))["cost"] is None
    told = json.loads(verdict_json(report_verdict, priced))["cost"]
    assert told["capacity"]["money"]["per_1m_tokens"] > 0 and told["capacity"]["energy_j"] is None


def test_a_figure_that_rests_on_few_requests_is_called_rough(report_verdict: Verdict, priced: Cost) -> None:
    assert priced.capacity is not None
    for requests, rough in ((15, True), (400, False)):
        step = msgspec.structs.replace(priced.capacity, requests=requests, duration_s=2.75)
        text = screen_text(report_verdict, cost=msgspec.structs.replace(priced, capacity=step))
        assert (f"rough: {requests} requests in 2.75 s" in text) == rough
