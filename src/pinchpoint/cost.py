"""What the service costs: money and energy per request, per token and per token that kept its promise.

A pure function of a run and a price. Money runs by the hour whether or not work is done; energy is what accelerators
drew. Both are divided by the work of the same stretch, the steady part of a step, so a step that is hardly used is dear
and one that misses its SLOs has little to divide by.

The surprising thing: the whole amount is divided by each kind of token in turn. "Per 1,000 input tokens" is therefore
not a share that adds up with "per 1,000 output tokens": nobody can tell what part of a shared step a prompt took.

Energy is the difference of an energy counter where there is one. Else it is the area under the power readings; gaps
between them are left out and told, and the mean over the rest stands for the whole step.
"""

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from pinchpoint.errors import UsageError
from pinchpoint.model import Capacity, Slo, Stage
from pinchpoint.series import Child, RunView

PRICES_PATH = Path(__file__).with_name("prices.toml")
DEFAULT_CURRENCY = "USD"
S_PER_HOUR = 3600.0
GAP_PERIODS = 3.0
"""Two power readings further apart than so many of the usual periods have a gap between them, as in the charts."""
COVERED_MIN_RATIO = 0.5
"""Of a step that is covered by readings; with less, the rest would be made up. Our choice."""
NAME_LABELS = ("name", "modelName", "model", "card_series", "product_name")
"""Labels in which a reading of an accelerator may say what it is: our own, dcgm-exporter's, those of other vendors."""
NAMED_SERIES = ("gpu.info", "gpu.name", "gpu.power_watts", "gpu.energy_j_total", "gpu.util_ratio", "gpu.sm_clock_hz")
TOLD_STEPS = ("search", "overload", "load")

EnergySource = Literal["counter", "power", "packages"]
"""Energy counters of accelerators, their power readings, or, where no accelerator was read, what the host's CPU
packages count (RAPL): everything that ran on the host."""
ENERGY_SERIES: dict[EnergySource, str] = {
    "counter": "gpu.energy_j_total",
    "power": "gpu.power_watts",
    "packages": "host.package_energy_j_total",
}


class Price(msgspec.Struct, frozen=True):
    """What somebody pays. per_hour: for one accelerator; None: the list price of its type, if known. accelerators: how
    many are paid for; None: those that the telemetry shows."""

    per_hour: float | None = None
    currency: str = DEFAULT_CURRENCY
    accelerators: int | None = None


class ListPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of prices.toml; see there."""

    name: str
    matches: tuple[str, ...]
    low: float
    high: float
    currency: str
    source: str
    date: str

    @property
    def per_hour(self) -> float:
        return (self.low + self.high) / 2


class Amounts(msgspec.Struct, frozen=True):
    """Money or joules of one stretch, whole and divided by its work. None: there was nothing to divide by.

    per_1k_good_output_tokens: of the answers that met every SLO; None too when the run has no SLO. per_1m_tokens: input
    and output together.
    """

    total: float
    per_request: float | None
    per_1k_input_tokens: float | None
    per_1k_output_tokens: float | None
    per_1k_good_output_tokens: float | None
    per_1m_tokens: float | None


class StepCost(msgspec.Struct, frozen=True):
    """The steady part of one step. Work is what the service did in it: requests that ended well, tokens of answers that
    arrived, tokens of prompts whose answer began. power_w: mean draw of all accelerators, or of the CPU packages.
    energy_covered_ratio: share of the stretch that the readings cover."""

    stage: int
    name: str
    kind: str
    rate_rps: float | None
    duration_s: float
    requests: int
    input_tokens: int
    output_tokens: int
    good_output_tokens: int | None
    power_w: float | None
    energy_covered_ratio: float | None
    money: Amounts | None
    energy_j: Amounts | None


class Cost(msgspec.Struct, frozen=True):
    """What a run says about cost. price_per_hour: of the whole service. price_source: where the price is from, in
    words. missing: one sentence for each thing that could not be said, and why. notes: what to know when reading it.
    capacity: the step at the highest rate that held the SLOs; None when none did."""

    currency: str
    price_per_hour: float | None
    price_source: str | None
    accelerators: int | None
    accelerator: str | None
    energy_source: EnergySource | None
    capacity: StepCost | None
    steps: tuple[StepCost, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def price_of(view: RunView) -> Price:
    """The price in the plan of a run; an empty one when the plan has none."""
    given = view.manifest.plan.get("cost") or {}
    return Price(given.get("price_per_hour"), given.get("currency") or DEFAULT_CURRENCY, given.get("accelerators"))


def cost_of(
    view: RunView, slos: Sequence[Slo], price: Price | None = None, *, capacity: Capacity | None = None
) -> Cost:
    """Cost of every loaded step and of the capacity point. Never raises for what is missing: it is said in `missing`.

    price: None = that of the run's plan. capacity: what the search found; the capacity point is the step at or next
    below it.
    """
    price = price or price_of(view)
    missing: list[str] = []
    notes: list[str] = []
    name, seen = _accelerators(view)
    count = price.accelerators or seen
    per_hour, currency, source = _hourly(price, name, count, missing, notes)
    energy_source = _energy_source(view)
    if energy_source is None:
        missing.append(
            "energy is not known: no reading of power or energy (gpu.power_watts, gpu.energy_j_total); run an exporter "
            "of the accelerators, or run on their host"
        )
    if energy_source == "packages":
        notes.append("no accelerator was read: the energy is that of the host's CPU packages, whatever ran there")
    steps = tuple(
        _step(view, stage, slos, None if per_hour is None else per_hour / S_PER_HOUR, energy_source)
        for stage in view.stages
        if stage.kind in TOLD_STEPS
    )
    if energy_source == "power":
        uncovered = [step.name for step in steps if (step.energy_covered_ratio or 0.0) < 1 - 1e-6]
        if uncovered:
            notes.append(
                "energy is the area under power readings; gaps are left out and the mean of the rest stands for them "
                f"({len(uncovered)} of {len(steps)} steps are not covered whole)"
            )
    if energy_source is not None and seen is not None and count is not None and seen < count:
        notes.append(
            f"{count} accelerators are paid for and only {seen} of them {'is' if seen == 1 else 'are'} seen: "
            "the energy is of what is seen alone"
        )
    point = _capacity_step(steps, view, capacity)
    if point is None and any(step.kind == "search" for step in steps):
        missing.append("there is no capacity point: no step held the SLOs")
    return Cost(
        currency=currency,
        price_per_hour=per_hour,
        price_source=source,
        accelerators=count,
        accelerator=name,
        energy_source=energy_source,
        capacity=point,
        steps=steps,
        missing=tuple(missing),
        notes=tuple(notes),
    )


@cache
def list_prices() -> tuple[ListPrice, ...]:
    """Every entry of prices.toml, in its order."""
    content = tomllib.loads(PRICES_PATH.read_text(encoding="utf-8"))
    try:
        return msgspec.convert(content["price"], tuple[ListPrice, ...])
    except (KeyError, msgspec.ValidationError) as error:
        raise UsageError(f"{PRICES_PATH} cannot be read ({error}); reinstall pinchpoint or mend the file") from error


def list_price(name: str) -> ListPrice | None:
    """The list price of an accelerator by the name its driver tells; None when the table does not have it."""
    shown = name.casefold()
    for entry in list_prices():
        if all(word.casefold() in shown for word in entry.matches):
            return entry
    return None


def _accelerators(view: RunView) -> tuple[str | None, int | None]:
    """(name, how many) of the accelerators that were read; None where the telemetry does not say."""
    names: set[str] = set()
    devices: set[tuple[str, ...]] = set()
    for series in NAMED_SERIES:
        for child in view.children(series):
            named = next((child.labels[key] for key in NAME_LABELS if child.labels.get(key)), None)
            if named:
                names.add(named)
            devices.add(_device(child))
    return (sorted(names)[0] if len(names) == 1 else None), (len(devices) or None)


def _device(child: Child) -> tuple[str, ...]:
    labels = child.labels
    if unique := labels.get("uuid") or labels.get("UUID"):
        return (unique, labels.get("replica", ""))
    return tuple(labels.get(key, "") for key in ("host", "replica", "gpu"))


def _hourly(
    price: Price, name: str | None, count: int | None, missing: list[str], notes: list[str]
) -> tuple[float | None, str, str | None]:
    """(price of the whole service per hour, currency, where the price is from)."""
    if price.per_hour is not None:
        if count is None:
            notes.append("no accelerator was seen: the price is taken as that of the whole service")
        return price.per_hour * (count or 1), price.currency, "given"
    if name is None:
        missing.append("money is not known: no price was given and the type of the accelerators is not known; give "
                       "--price-per-hour")  # fmt: skip
        return None, price.currency, None
    entry = list_price(name)
    if entry is None:
        missing.append(f"money is not known: the table of list prices has no {name}; give --price-per-hour")
        return None, price.currency, None
    span = f"{entry.low:.2f}" if entry.low == entry.high else f"{entry.low:.2f} to {entry.high:.2f}"
    notes.append(
        f"the price is a list price, yours differs: {entry.name} {span} {entry.currency} per hour in {entry.date}, "
        f"{entry.source}; give yours with --price-per-hour"
    )
    return entry.per_hour * (count or 1), entry.currency, f"list price of {entry.name}, {entry.date}"


def _step(
    view: RunView, stage: Stage, slos: Sequence[Slo], money_per_s: float | None, energy_source: EnergySource | None
) -> StepCost:
    start_s, end_s = view.window_s(stage)
    duration_s = max(end_s - start_s, 0.0)
    requests, input_tokens, output_tokens, good = _work(view, stage, slos)
    power_w, covered = (None, None) if energy_source is None else _power(view, energy_source, (start_s, end_s))

    def amounts(total: float) -> Amounts:
        return Amounts(
            total=total,
            per_request=_over(total, requests),
            per_1k_input_tokens=_over(1e3 * total, input_tokens),
            per_1k_output_tokens=_over(1e3 * total, output_tokens),
            per_1k_good_output_tokens=_over(1e3 * total, good),
            per_1m_tokens=_over(1e6 * total, input_tokens + output_tokens),
        )

    return StepCost(
        stage=stage.index,
        name=stage.name,
        kind=stage.kind,
        rate_rps=stage.rate_rps,
        duration_s=duration_s,
        requests=requests,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        good_output_tokens=good,
        power_w=power_w,
        energy_covered_ratio=covered,
        money=None if money_per_s is None else amounts(money_per_s * duration_s),
        energy_j=None if power_w is None else amounts(power_w * duration_s),
    )


def _over(amount: float, work: int | None) -> float | None:
    return amount / work if work else None


def _work(view: RunView, stage: Stage, slos: Sequence[Slo]) -> tuple[int, int, int, int | None]:
    """(requests that ended well, input tokens, output tokens, output tokens of answers that met every SLO) of what the
    service did in the steady part of a stage, whichever stage the request was issued in."""
    start_s, end_s = view.window_s(stage)
    r = view.requests
    ended = (r.status == "ok") & (r.end_s >= start_s) & (r.end_s < end_s)
    began = (r.first_token_s >= start_s) & (r.first_token_s < end_s)
    asked = np.where(np.isfinite(r.input_tokens), r.input_tokens, r.requested_input_tokens)
    received = 0
    if r.digest.tokens and end_s > start_s:
        low, high = r.digest.tokens_until((start_s, end_s))
        received = round(float(high - low))
    if not received:  # a service that does not stream, or whose tokens are told at the end
        received = int(np.nansum(r.output_tokens[ended]))
        began = ended
    good = None
    if slos:
        meets = ended.copy()
        for slo in slos:
            met, counts = r.outcomes(slo)
            meets &= met | ~counts
        # Of the tokens received as large a part as of the answers that ended: of a short step the two differ.
        of_ended = float(np.nansum(r.output_tokens[ended]))
        good = round(received * float(np.nansum(r.output_tokens[meets])) / of_ended) if of_ended else None
    return int(ended.sum()), int(np.nansum(asked[began])), received, good


def _energy_source(view: RunView) -> EnergySource | None:
    """The counter where it covers as many devices as the power readings do."""
    counters = [child for child in view.children(ENERGY_SERIES["counter"]) if len(child.series) > 1]
    powers = [child for child in view.children(ENERGY_SERIES["power"]) if len(child.series)]
    if counters and len(counters) >= len(powers):
        return "counter"
    if powers:
        return "power"
    return "packages" if any(len(child.series) > 1 for child in view.children(ENERGY_SERIES["packages"])) else None


def _power(view: RunView, source: EnergySource, window_s: tuple[float, float]) -> tuple[float | None, float | None]:
    """(mean draw of all accelerators in W, share of the window that readings cover). The draw is None with less than
    COVERED_MIN_RATIO, or when one accelerator has no reading in the window."""
    children = [child.series for child in view.children(ENERGY_SERIES[source]) if len(child.series)]
    length_s = window_s[1] - window_s[0]
    if not children or length_s <= 0:
        return None, None
    total_w, shares = 0.0, []
    for series in children:
        t_s, value = series.t_s, series.value
        if source != "power":
            amount, covered_s = _counted(t_s, value, window_s)
        else:
            amount, covered_s = _area(t_s, value, window_s)
        if covered_s <= 0:
            return None, 0.0
        total_w += amount / covered_s
        shares.append(min(covered_s / length_s, 1.0))
    share = min(shares)
    return (total_w if share >= COVERED_MIN_RATIO else None), share


def _counted(t_s: np.ndarray, value: np.ndarray, window_s: tuple[float, float]) -> tuple[float, float]:
    """(increase, seconds it covers) of a counter inside a window, in proportion between the readings around its ends.
    A gap is no gap to a counter; but a stretch in which it fell, and began again at zero, is not covered: what it
    counted before it fell is lost."""
    left, right = max(window_s[0], float(t_s[0])), min(window_s[1], float(t_s[-1]))
    if len(t_s) < 2 or right <= left:
        return 0.0, 0.0
    steps, whole = np.diff(value), np.diff(value) >= 0
    grown = np.concatenate(([0.0], np.cumsum(np.where(whole, steps, 0.0))))
    covered_s = np.concatenate(([0.0], np.cumsum(np.where(whole, np.diff(t_s), 0.0))))
    amount, seconds = (np.interp(right, t_s, each) - np.interp(left, t_s, each) for each in (grown, covered_s))
    return float(amount), float(seconds)


def _area(t_s: np.ndarray, value: np.ndarray, window_s: tuple[float, float]) -> tuple[float, float]:
    """(integral by trapezoids, seconds it covers) of readings inside a window; stretches between readings further
    apart than GAP_PERIODS of their usual distance are left out."""
    if len(t_s) < 2:
        return 0.0, 0.0
    gaps_s = np.diff(t_s)
    usable = gaps_s <= GAP_PERIODS * float(np.median(gaps_s))
    left = np.maximum(t_s[:-1], window_s[0])
    right = np.minimum(t_s[1:], window_s[1])
    usable &= right > left
    if not usable.any():
        return 0.0, 0.0
    slope = np.diff(value) / np.where(gaps_s > 0, gaps_s, 1.0)
    at_left = value[:-1] + slope * (left - t_s[:-1])
    at_right = value[:-1] + slope * (right - t_s[:-1])
    length_s = right - left
    area = (at_left + at_right) / 2 * length_s
    return float(area[usable].sum()), float(length_s[usable].sum())


def _capacity_step(steps: Sequence[StepCost], view: RunView, capacity: Capacity | None) -> StepCost | None:
    """The search step that stands for the capacity: at or below the estimate the highest rate that passed, else the
    highest that did not fail."""
    if capacity is None:
        return None
    known = [rate for rate in (capacity.best_rps, capacity.passed_rps, capacity.lower_rps) if rate is not None]
    if not known:
        return None
    most_rps = known[0]
    decision = {stage.index: stage.decision for stage in view.stages}
    below = [
        step for step in steps if step.kind == "search" and step.rate_rps is not None and step.rate_rps <= most_rps
    ]
    passed = [step for step in below if decision[step.stage] == "pass"]
    undecided = [step for step in below if decision[step.stage] != "fail"]
    return max(passed or undecided, key=lambda step: (step.rate_rps or 0.0, step.requests), default=None)
