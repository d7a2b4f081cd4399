"""Cost in words and tables, the same for the screen and for the page."""

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pinchpoint.cost import Amounts, Cost, StepCost
from pinchpoint.report import words
from pinchpoint.report.literal import literal, visible
from pinchpoint.units import MISSING, counted, format_duration, significant

CURRENCY_LENGTH_MAX = 8
KILO = 1e3
REQUESTS_MIN = 40
"""Below, what a request costs is told as rough: by chance alone a stretch holds a sixth more or fewer of them."""
ENERGY_COLUMNS = (
    ("per request", "per_request", 1.0),
    ("per 1k input tokens", "per_1k_input_tokens", 1.0),
    ("per 1k output tokens", "per_1k_output_tokens", 1.0),
    ("per 1k output tokens within the SLOs", "per_1k_good_output_tokens", 1.0),
    ("per 1M tokens", "per_1m_tokens", 1.0),
)
"""What is printed, the field of cost.Amounts that holds it, and how many of them are printed."""
MONEY_COLUMNS = (
    ("per 1k requests", "per_request", KILO),
    ("per 1M input tokens", "per_1k_input_tokens", KILO),
    ("per 1M output tokens", "per_1k_output_tokens", KILO),
    ("per 1M output tokens within the SLOs", "per_1k_good_output_tokens", KILO),
    ("per 1M tokens", "per_1m_tokens", 1.0),
)
"""The same of money, of which a single request costs too little to read."""


def money(value: float | None, currency: str) -> str:
    """0.00374 -> "0.00374 USD"; a dash for None."""
    return MISSING if value is None else f"{significant(value)} {visible(currency, CURRENCY_LENGTH_MAX)}"


def joules(value: float | None) -> str:
    """1684.7 -> "1.68 kJ"; a dash for None."""
    if value is None:
        return MISSING
    for unit, size in (("MJ", KILO**2), ("kJ", KILO)):
        if abs(value) >= size:
            return f"{significant(value / size)} {unit}"
    return f"{significant(value)} J"


def watts(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{significant(value / KILO)} kW" if abs(value) >= KILO else f"{significant(value)} W"


def told(cost: Cost) -> bool:
    """Whether there is an amount of anything."""
    return any(step.money is not None or step.energy_j is not None for step in cost.steps)


def point_of(cost: Cost) -> tuple[StepCost, str] | None:
    """The step that is told first, and what it is: the capacity point, else the one at the highest goodput."""
    if cost.capacity is not None:
        return cost.capacity, "at the capacity"
    busy = max(cost.steps, key=lambda step: (step.good_output_tokens or 0, step.output_tokens), default=None)
    return None if busy is None else (busy, "at the step that got most done")


def basis(cost: Cost) -> str:
    """What the amounts rest on, in one line: "2 x NVIDIA H100, 7.2 USD/h (given); energy from counters"."""
    parts: list[str] = []
    if cost.accelerators is not None or cost.accelerator is not None:
        number = f"{cost.accelerators} × " if cost.accelerators is not None else ""
        parts.append(f"{number}{visible(cost.accelerator or 'accelerator')}")
    if cost.price_per_hour is not None:
        parts.append(f"{money(cost.price_per_hour, cost.currency)} per hour ({visible(cost.price_source or '')})")
    if cost.energy_source is not None:
        how = {
            "counter": "the accelerators' energy counters",
            "power": "the accelerators' power readings",
            "packages": "the counters of the host's CPU packages",
        }
        parts.append(f"energy from {how[cost.energy_source]}")
    return "; ".join(parts)


def cost_block(cost: Cost) -> RenderableType | None:
    """Two or three lines for the screen; None when no amount is known."""
    point = point_of(cost)
    if not told(cost) or point is None:
        return None
    step, _ = point
    lines: list[RenderableType] = []
    first = Text(no_wrap=True, overflow="ellipsis")
    amounts: list[str] = []
    if step.money is not None:
        first.append(money(step.money.per_1m_tokens, cost.currency), style="bold cyan")
        first.append(" per million tokens")
        amounts.append(f"{money(thousandfold(step.money.per_request), cost.currency)} per 1k requests")
    if step.energy_j is not None:
        first.append("  " if len(first) else "")
        first.append(joules(step.energy_j.per_1k_output_tokens), style="bold cyan")
        first.append(" per 1k output tokens")
        amounts.append(f"{joules(step.energy_j.per_request)} per request")
    rate = f", at {words.offered(step.rate_rps)} req/s" if step.rate_rps is not None else ""
    second = ", ".join(amounts) + rate
    lines += [first, Text(second, no_wrap=True, overflow="ellipsis")]
    if step.requests < REQUESTS_MIN:
        few = f"rough: {counted(step.requests, 'request')} in {format_duration(step.duration_s)}"
        lines.append(literal(few, "yellow"))
    if cost.price_source is not None and cost.price_source != "given":
        lines.append(literal(f"price: {cost.price_source}; yours differs", "dim"))
    return Group(*lines)


def cost_rows(cost: Cost) -> list[dict[str, Any]]:
    """One row per step for the page: texts, in the order of MONEY_COLUMNS and ENERGY_COLUMNS."""
    rows = []
    for step in cost.steps:
        covered = step.energy_covered_ratio
        rows.append(
            {
                "label": words.stage_label(step.name, step.rate_rps),
                "capacity": cost.capacity is not None and step.stage == cost.capacity.stage,
                "requests": step.requests,
                "power": watts(step.power_w),
                "covered": None if covered is None or covered > 1 - 1e-6 else covered,
                "money": _cells(step.money, MONEY_COLUMNS, lambda value: money(value, "").strip()),
                "energy": _cells(step.energy_j, ENERGY_COLUMNS, joules),
            }
        )
    return rows


def thousandfold(value: float | None) -> float | None:
    return None if value is None else KILO * value


def _cells(
    amounts: Amounts | None, columns: tuple[tuple[str, str, float], ...], write: Callable[[float | None], str]
) -> list[str]:
    values = [(None if amounts is None else getattr(amounts, field), factor) for _, field, factor in columns]
    return [write(None if value is None else factor * value) for value, factor in values]
