"""The answer of a plain load: what screen and JSON are made from, and the JSON itself.

A missing value is null, never left out. Durations are seconds, ratios 0 to 1.
"""

from typing import Any

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.cost import Cost
from pinchpoint.delivered import Delivery
from pinchpoint.measure import ClassLoad, LoadResult, StageLoad
from pinchpoint.model import Manifest, Validity, ValidityReason

LOAD_SCHEMA = "pinchpoint.load/1"
"""Changes only when a field is renamed, removed or changes its meaning; new fields may appear under the same name."""


class LoadAnswer(msgspec.Struct, frozen=True):
    """Everything that is told of one load. Text in it may come from a hostile service."""

    manifest: Manifest
    validity: Validity
    validity_reasons: tuple[ValidityReason, ...]
    result: LoadResult
    delivery: Delivery
    cost: Cost | None = None
    """Money and energy by stage; None: not worked out."""

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.result.notes, *self.delivery.notes)

    @property
    def reasons_that_matter(self) -> list[ValidityReason]:
        """Checks that speak against the measurement, worst first."""
        order = {"invalid": 0, "suspect": 1}
        return sorted((r for r in self.validity_reasons if r.level in order), key=lambda r: order[r.level])


def load_json(answer: LoadAnswer) -> bytes:
    """Indented UTF-8 JSON with a final newline; `schema` is the first field.

    The counts and metrics of all stages together are top-level; those of each stage are under `stages`.
    """
    total = answer.result.total
    fields: dict[str, Any] = {
        "schema": LOAD_SCHEMA,
        "run": _run(answer.manifest, answer.result.duration_s),
        "validity": answer.validity,
        "validity_reasons": answer.validity_reasons,
        **msgspec.structs.asdict(total),
        "error_samples": answer.result.error_samples,
        "delivered": answer.delivery,
        "slos": answer.result.slos,
        "classes": [_flat(each) for each in answer.result.classes],
        "stages": [_flat(stage) for stage in answer.result.stages],
        "backends": answer.result.backends,
        "workers": answer.result.workers,
        "notes": answer.notes,
    }
    fields["cost"] = answer.cost
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"


def _flat(part: StageLoad | ClassLoad) -> dict[str, Any]:
    """A stage or a class with its counts beside its name, as at the top level."""
    fields = msgspec.structs.asdict(part)
    tally = fields.pop("tally")
    return {**fields, **msgspec.structs.asdict(tally)}


def _run(manifest: Manifest, duration_s: float) -> dict[str, Any]:
    return {
        "id": manifest.run_id,
        "status": manifest.status,
        "abort_reason": manifest.abort_reason,
        "started": manifest.started_wall,
        "pinchpoint_version": manifest.pinchpoint_version,
        "url": manifest.target.url,
        "api": manifest.target.api,
        "model": manifest.target.model,
        "engine": manifest.target.engine,
        "engine_version": manifest.target.engine_version,
        "seed": manifest.seed,
        "workload": manifest.workload,
        "duration_s": duration_s,
        "total_s": max((stage.drained_ns - manifest.t0_ns for stage in manifest.stages), default=0) / NS_PER_S,
        "command": manifest.command,
    }
