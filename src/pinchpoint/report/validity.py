"""What `pinchpoint check` prints: whether the measurement can support a verdict, check by check."""

from pinchpoint.model import Verdict
from pinchpoint.report.literal import visible

_MARKS = {"ok": "ok     ", "suspect": "SUSPECT", "invalid": "INVALID", "unknown": "unknown"}


def validity_text(verdict: Verdict) -> str:
    """The verdict on the measurement, then one line for each check, what matters first."""
    order = list(reversed(("ok", "unknown", "suspect", "invalid")))
    reasons = sorted(verdict.validity_reasons, key=lambda reason: order.index(reason.level))
    lines = [f"{verdict.validity}: {_MEANING[verdict.validity]}", ""]
    lines += [f"{_MARKS[r.level]}  {r.check:<20} {visible(r.statement, 300)}" for r in reasons]
    return "\n".join(lines) + "\n"


_MEANING = {
    "VALID": "the measurement supports a verdict",
    "SUSPECT": "the measurement supports a verdict with reservations",
    "INVALID": "the measurement says nothing about the service",
}
