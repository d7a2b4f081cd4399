"""Figures and phrases that the screen and the page share, so that both say the same thing."""

from pinchpoint.model import Capacity, Evidence, Finding, StageResult, ValidityReason, Verdict
from pinchpoint.report.literal import visible
from pinchpoint.units import MISSING, format_duration, format_ratio, significant

CERTAIN_RATIO = 0.995
"""Probabilities beyond this are printed as "> 99 %": more nines would claim what no model of causes supports."""
TEN = 10.0
HUNDRED = 100.0


def rate(value_rps: float | None) -> str:
    """Requests per second without the unit: one decimal below 10, for columns that line up."""
    if value_rps is None:
        return MISSING
    if value_rps >= HUNDRED:
        return f"{value_rps:.0f}"
    return f"{value_rps:.1f}" if value_rps >= 1 else significant(value_rps, 2)


def capacity_figure(capacity: Capacity | None) -> str:
    """Capacity without its unit: "5.5 – 6.0", "at least 40", "below 1.0" or a dash."""
    if capacity is None or (capacity.lower_rps is None and capacity.upper_rps is None):
        return MISSING
    if capacity.lower_rps is None:
        return f"below {rate(capacity.upper_rps)}"
    if capacity.upper_rps is None:
        return f"at least {rate(capacity.lower_rps)}"
    return f"{rate(capacity.lower_rps)} – {rate(capacity.upper_rps)}"


def capacity_confidence(capacity: Capacity | None) -> str:
    if capacity is None:
        return "no step with a fixed rate was judged"
    if capacity.proven:
        return f"both ends decided at {capacity.confidence:.0%} confidence"
    return "an end is a best estimate from too few requests"


def probability(value: float) -> str:
    return "> 99 %" if value > CERTAIN_RATIO else f"{value:.0%}".replace("%", " %")


def quantity(value: float | None, unit: str) -> str:
    """A measured value with its unit: seconds and ratios are scaled for reading, other units are appended."""
    if value is None:
        return MISSING
    if unit == "s":
        return format_duration(value)
    if unit == "ratio":
        return format_ratio(value)
    text = significant(value)
    if unit == "x":
        return f"{text}×"
    return f"{text} {visible(unit)}" if unit and unit != "1" else text


def comparison(evidence: Evidence) -> str:
    """The numbers behind a statement, such as "8 sequences, reference 8 sequences"; empty when there are none."""
    parts = []
    if evidence.observed is not None:
        parts.append(quantity(evidence.observed, evidence.unit))
    if evidence.reference is not None:
        parts.append(f"reference {quantity(evidence.reference, evidence.unit)}")
    return ", ".join(parts)


def top_finding(verdict: Verdict) -> Finding | None:
    return verdict.findings[0] if verdict.findings else None


def strongest(evidence: tuple[Evidence, ...], count: int | None = None) -> list[Evidence]:
    return sorted(evidence, key=lambda item: -abs(item.strength))[:count]


def reasons_that_matter(verdict: Verdict) -> list[ValidityReason]:
    """Checks that speak against the measurement, worst first."""
    order = {"invalid": 0, "suspect": 1}
    return sorted((r for r in verdict.validity_reasons if r.level in order), key=lambda r: order[r.level])


def failed_requests(stage: StageResult) -> int:
    """Requests that did not succeed, without those that were withdrawn by us."""
    return sum(count for status, count in stage.errors.items() if status != "cancelled")


def strength_word(strength: float) -> str:
    """Natural-log likelihood ratio in words; the steps are those of Kass & Raftery (1995), halved to ln units."""
    magnitude = abs(strength)
    for limit, word in STRENGTH_WORDS:
        if magnitude >= limit:
            return word
    return "slight"


STRENGTH_WORDS = ((5.0, "very strong"), (3.0, "strong"), (1.0, "clear"))
