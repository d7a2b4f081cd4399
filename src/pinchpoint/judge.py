"""The verdict of a run: validity, capacity, what gives way first, and the exit code. Pure: a view in, a Verdict out.

Everything is recomputed from the run directory, so an old run can be judged against new SLOs. An empty or aborted run
gets a verdict too, one that says what is missing.
"""

from collections.abc import Sequence

import msgspec

from pinchpoint.capacity import capacity_of, decide, leans_pass
from pinchpoint.diagnose.check import check
from pinchpoint.diagnose.features import Features, unsustained_stages
from pinchpoint.diagnose.rank import Ranking, rank
from pinchpoint.errors import EXIT_OK, EXIT_SLO_FAILED, EXIT_UNSUPPORTED
from pinchpoint.model import (
    ERROR_STATUSES,
    FORMAT_VERSION,
    Capacity,
    Finding,
    Slo,
    StageResult,
    Validity,
    ValidityReason,
    Verdict,
)
from pinchpoint.series import RunView
from pinchpoint.units import significant

CO_CAUSE_PROBABILITY_MIN = 0.2
"""A second finding this likely counts as a cause beside the first."""
RATE_DIGITS = 3


FAILURES_TOLD_RATIO = 0.02
"""Twice the usual error SLO: above it, failures are the news."""
CAPACITY_KINDS = ("search", "overload", "load")


def judge(view: RunView, slos: tuple[Slo, ...] | None = None) -> Verdict:
    """slos: judge against these in place of the run's own; they count as given by the user."""
    manifest = view.manifest
    used = manifest.slos if slos is None else slos
    derived = manifest.slos_derived if slos is None else False
    unsustained = unsustained_stages(view.stages)
    results = tuple(_decided(view.stage_result(stage, used), used, unsustained) for stage in view.stages)
    features = Features(view, used, results)
    validity, reasons = check(features)
    rated = [result for result in results if result.kind in CAPACITY_KINDS]
    capacity = capacity_of(rated, used, unsustained=unsustained) if used else None
    ranking = rank(features, validity)
    measured = bool(features.tested)
    notes = [*view.run.problems]
    notes += [str(event.get("message")) for event in view.run.events() if event.get("kind") == "cut"]
    if capacity is not None and capacity.note:
        notes.append(capacity.note)
    if manifest.status != "complete":
        notes.append(f"the run stopped early: {manifest.abort_reason or 'it was never sealed'}")
    return Verdict(
        format_version=FORMAT_VERSION,
        run_id=manifest.run_id,
        status="complete" if manifest.status == "complete" else "aborted",
        validity=validity,
        validity_reasons=reasons,
        slos=tuple(used),
        slos_derived=derived,
        capacity=capacity if validity != "INVALID" else None,
        stages=results,
        headline=_headline(features, validity, reasons, capacity, ranking),
        findings=ranking.findings,
        rejected=ranking.rejected,
        not_evaluable=ranking.not_evaluable,
        unexplained_ratio=_unexplained(ranking.findings) if features.misses and measured else None,
        target=view.facts,
        notes=tuple(notes),
        exit_code=_exit_code(features, validity, derived),
    )


def _decided(result: StageResult, slos: Sequence[Slo], unsustained: frozenset[int]) -> StageResult:
    """The stage with its decision for these SLOs. A backlog that grew fails a stage whatever the SLOs are."""
    if result.kind == "warmup" or not result.requests or not slos:
        return msgspec.structs.replace(result, decision="none")
    decision, reason = decide(result.attainment, slos, result.effective)
    if result.index in unsustained and decision != "fail":
        return msgspec.structs.replace(result, decision="fail")
    return msgspec.structs.replace(result, decision=decision, reason=reason)


def _unexplained(findings: Sequence[Finding]) -> float | None:
    """Share of the misses that no likely cause accounts for: causes overlap, so the largest share counts."""
    shares = [
        f.explains_ratio
        for position, f in enumerate(findings)
        if f.explains_ratio is not None and (position == 0 or f.probability >= CO_CAUSE_PROBABILITY_MIN)
    ]
    if not findings or findings[0].kind == "unknown":
        return 1.0
    return round(1 - max(shares), 4) if shares else None


def _rate(value: float) -> str:
    return significant(value, RATE_DIGITS)


def _headline(
    f: Features, validity: Validity, reasons: Sequence[ValidityReason], capacity: Capacity | None, ranking: Ranking
) -> str:
    if f.view.manifest.status != "complete" and f.tested:
        why = f.view.manifest.abort_reason or "it was never sealed"
        return f"the run stopped early ({why}); until then: {_answer(f, validity, reasons, capacity, ranking)}"
    return _answer(f, validity, reasons, capacity, ranking)


def _answer(
    f: Features, validity: Validity, reasons: Sequence[ValidityReason], capacity: Capacity | None, ranking: Ranking
) -> str:
    if not f.tested:
        return "nothing was measured: no request of a load stage was recorded"
    if validity == "INVALID":
        why = next(r.statement for r in reasons if r.level == "invalid")
        return f"the measurement is invalid and says nothing about the service: {why}"
    top = ranking.findings[0] if ranking.findings else None
    if not f.slos:
        return "no SLO was given or could be derived, so no capacity can be named"
    if capacity is None:
        carried = "held its SLOs at the concurrency tested" if not f.failing else "misses its SLOs as loaded"
    elif capacity.lower_rps is not None and capacity.upper_rps is not None:
        carried = f"carries {_rate(capacity.lower_rps)} to {_rate(capacity.upper_rps)} req/s within its SLOs"
        if capacity.best_rps is not None:
            carried += f", most likely {_rate(capacity.best_rps)}"
    elif capacity.lower_rps is not None:
        if top is not None and top.kind == "healthy":
            return f"no bottleneck below the limit of this test: every SLO held up to {_rate(capacity.lower_rps)} req/s"
        carried = f"every SLO held up to {_rate(capacity.lower_rps)} req/s"
    else:
        carried = f"meets its SLOs at no rate tested (lowest {_rate(capacity.upper_rps or 0.0)} req/s)"
    return f"{carried}; {_cause(f, top)}"


def _cause(f: Features, top: Finding | None) -> str:
    if top is None or top.kind == "unknown":
        failed = {status: n for s in f.tested for status, n in s.result.errors.items() if status in ERROR_STATUSES}
        total = sum(s.requests for s in f.tested)
        if total and sum(failed.values()) > FAILURES_TOLD_RATIO * total:
            worst = max(failed, key=lambda status: failed[status])
            share = sum(failed.values()) / total
            return f"{share:.0%} of all requests failed ({worst.replace('_', ' ')}), so mend that first"
        return "what gives way first could not be determined"
    if top.kind == "physical-limit":
        return f"no bottleneck below its physical limit, which is {top.title}"
    if top.rule == "NET001":
        return f"first remove {top.title}: TTFT and token pace are void until then"
    if top.kind == "healthy":
        return top.title
    verb = "gives way first"
    if top.kind == "load-generator":
        return f"{top.title} may have been the limit"
    return f"then {top.title} {verb}" if f.last_pass is not None else f"{top.title} stands in the way"


def _exit_code(f: Features, validity: Validity, derived: bool) -> int:
    if validity == "INVALID" or not f.tested:
        return EXIT_UNSUPPORTED
    if derived or not f.slos or any(s.passed for s in f.tested):
        return EXIT_OK
    failed = (
        decide(s.result.attainment, f.slos, s.result.effective)[0] == "fail"
        or not leans_pass(s.result.attainment, f.slos)
        for s in f.tested
    )
    return EXIT_SLO_FAILED if any(failed) else EXIT_OK
