"""What became of every request of the load stages, as numpy columns: what `measure` and `delivered` count in.

Read in one streaming pass; the arrivals of tokens are left on the disk, so memory grows with requests and not with
tokens. Warm-up and recovery are left out. Of a plain load every request counts; of the steps of a search those that
were scheduled after the step had settled.

A request of an open loop was *offered* when its instant lies within its stage; one of a closed loop, whose instant
depends on answers, when it has a record. *Lost* are offered requests without a record: their load process died, or the
run was killed, before it was written.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import RunFormatError
from pinchpoint.model import STATUSES, Stage
from pinchpoint.series import RunView

if TYPE_CHECKING:
    import pyarrow as pa

LOAD_KINDS = ("load", "search", "overload", "interrupted")
PHASED_STATUSES = ("transport_error", "timeout")
"""Statuses that are told apart by what the request was waiting for."""
SAMPLES_MAX = 3
"""Distinct texts kept of each kind of error."""
OK = STATUSES.index("ok")

_INSTANTS = ("scheduled_ns", "sent_ns", "headers_ns", "first_token_ns", "last_token_ns", "end_ns")
_NUMBERS = (
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "requested_input_tokens",
    "requested_output_tokens",
    "shared_input_tokens",
    "http_status",
    "retry_after_s",
    "attempts",
    "backend",
    "class_id",
    "timestamp_error_ns",
    "chunk_error_ns",
)
_COLUMNS = (
    *("request_id", "stage", "worker", "status", "phase", "error", "token_source", "chunk_tokens"),
    *_INSTANTS,
    *_NUMBERS,
)


@dataclass(frozen=True)
class Outcomes:
    """One entry per recorded request, in order of the scheduled instant, shape (n,). Seconds since the run's t0; NaN
    where something did not happen or is not known."""

    request_id: np.ndarray
    stage: np.ndarray
    worker: np.ndarray
    kind: np.ndarray
    """Index into `kinds`."""
    status: np.ndarray
    """Index into model.STATUSES."""
    scheduled_s: np.ndarray
    sent_s: np.ndarray
    headers_s: np.ndarray
    first_token_s: np.ndarray
    last_token_s: np.ndarray
    end_s: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    cached_tokens: np.ndarray
    reasoning_tokens: np.ndarray
    requested_input_tokens: np.ndarray
    requested_output_tokens: np.ndarray
    shared_input_tokens: np.ndarray
    http_status: np.ndarray
    retry_after_s: np.ndarray
    attempts: np.ndarray
    backend: np.ndarray
    class_id: np.ndarray
    """Place in the plan's list of classes; NaN in runs of older versions."""
    timestamp_error_s: np.ndarray
    chunk_error_s: np.ndarray
    counted_by_service: np.ndarray
    """Whether output_tokens is the service's own count."""
    first_tokens: np.ndarray
    """Tokens in the first event that carried text."""
    own_instant: np.ndarray
    """Whether it was due at an instant of its own; False: when an earlier answer had ended."""
    kinds: tuple[str, ...]
    """Such as "ok", "http_error", "timeout:first-token"."""
    error_samples: dict[str, tuple[str, ...]]
    """kind -> up to SAMPLES_MAX distinct texts, as the service sent them: hostile."""
    stages: tuple[Stage, ...]
    """The load stages, in order."""
    lost_scheduled_s: np.ndarray
    """Scheduled instants of the lost requests, in order."""
    lost_stage: np.ndarray
    lost_class_id: np.ndarray

    def __len__(self) -> int:
        return len(self.request_id)

    def of_class(self, class_id: int) -> np.ndarray:
        """Mask of the requests of one class."""
        return self.class_id == class_id

    @property
    def ok(self) -> np.ndarray:
        return self.status == OK


class _Kinds:
    """Names of kinds of outcomes, numbered in the order in which they are met."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.samples: dict[str, list[str]] = {}
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]

    def keep_samples(self, name: str, texts: "pa.Array") -> None:
        kept = self.samples.setdefault(name, [])
        if len(kept) < SAMPLES_MAX:
            fresh = [text for text in texts.unique().to_pylist() if text and text not in kept]
            kept += fresh[: SAMPLES_MAX - len(kept)]


def read_outcomes(view: RunView) -> Outcomes:
    """One pass over the records and one over the schedule. Raises RunFormatError for a damaged run."""
    stages = tuple(stage for stage in view.stages if stage.kind in LOAD_KINDS)
    kinds = _Kinds()
    parts = [_columns(batch, kinds, view.t0_ns) for batch in view.run.record_batches(_COLUMNS) if batch.num_rows]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else _no_columns()
    schedule = _FixedInstants(view)
    columns["own_instant"] = _is_in(columns["request_id"], np.sort(schedule.request_id))
    order = np.flatnonzero(_counted(columns, stages, view.t0_ns))
    order = order[np.argsort(columns["scheduled_s"][order], kind="stable")]
    lost_stage, lost_s, lost_class_id = _lost(view, stages, schedule, np.sort(columns["request_id"]))
    return Outcomes(
        **{name: values[order] for name, values in columns.items()},
        kinds=tuple(kinds.names),
        error_samples={name: tuple(texts) for name, texts in kinds.samples.items() if texts},
        stages=stages,
        lost_scheduled_s=lost_s,
        lost_stage=lost_stage,
        lost_class_id=lost_class_id,
    )


def _counted(columns: dict[str, np.ndarray], stages: tuple[Stage, ...], t0_ns: int) -> np.ndarray:
    """Mask of the records of the load stages that were due."""
    counts = np.zeros(len(columns["stage"]), bool)
    for stage in stages:
        start_s = -np.inf if stage.kind == "load" else (stage.t0_ns + stage.settle_ns - t0_ns) / NS_PER_S
        due = (columns["scheduled_s"] < (stage.t1_ns - t0_ns) / NS_PER_S) | np.isfinite(columns["sent_s"])
        counts |= (columns["stage"] == stage.index) & (columns["scheduled_s"] >= start_s) & due
    return counts


class _FixedInstants:
    """The scheduled requests that are due at an instant of their own, as columns."""

    def __init__(self, view: RunView) -> None:
        schedule = view.run.schedule
        offset_ns = schedule.column("offset_ns").fill_null(-1).to_numpy()
        fixed = offset_ns >= 0
        self.offset_ns = offset_ns[fixed]
        self.stage = schedule.column("stage").to_numpy()[fixed]
        self.request_id = schedule.column("request_id").to_numpy()[fixed]
        self.class_id = schedule.column("class_id").fill_null(0).to_numpy()[fixed]


def _is_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Mask of the values that are among the ordered ones."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def _lost(
    view: RunView, stages: tuple[Stage, ...], schedule: _FixedInstants, recorded: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stage, scheduled instant and class of the requests that were due at an instant of their own and have no record,
    in the order of each stage."""
    unrecorded = ~_is_in(schedule.request_id, recorded)
    lost_stage: list[np.ndarray] = [np.empty(0, int)]
    lost_s: list[np.ndarray] = [np.empty(0)]
    lost_class_id: list[np.ndarray] = [np.empty(0, int)]
    for stage in stages:
        settle_ns = 0 if stage.kind == "load" else stage.settle_ns
        due = (schedule.offset_ns >= settle_ns) & (schedule.offset_ns < stage.t1_ns - stage.t0_ns)
        rows = np.flatnonzero(unrecorded & due & (schedule.stage == stage.index))
        rows = rows[np.argsort(schedule.offset_ns[rows], kind="stable")]
        mine = schedule.offset_ns[rows]
        lost_class_id.append(schedule.class_id[rows].astype(int))
        lost_stage.append(np.full(len(mine), stage.index))
        lost_s.append((mine + (stage.t0_ns - view.t0_ns)) / NS_PER_S)
    return np.concatenate(lost_stage), np.concatenate(lost_s), np.concatenate(lost_class_id)


def _columns(batch: "pa.RecordBatch", kinds: _Kinds, t0_ns: int) -> dict[str, np.ndarray]:
    status_codes, status_names = _codes(batch.column("status"))
    phase_codes, phase_names = _codes(batch.column("phase"))
    kind = np.zeros(batch.num_rows, np.int16)
    for s, status in enumerate(status_names):
        for p, phase in enumerate(phase_names):
            rows = (status_codes == s) & (phase_codes == p)
            if not rows.any():
                continue
            name = f"{status}:{phase}" if phase and status in PHASED_STATUSES else str(status)
            kind[rows] = kinds.number(name)
            if status != "ok":
                kinds.keep_samples(name, batch.column("error").take(np.flatnonzero(rows)))
    status_numbers = np.array([_status_number(name) for name in status_names], np.int8)
    source_codes, sources = _codes(batch.column("token_source"))
    source_names = np.array(sources, dtype=object)
    columns = {
        "request_id": _numpy(batch.column("request_id")),
        "stage": _numpy(batch.column("stage")).astype(int),
        "worker": _numpy(batch.column("worker")).astype(int),
        "kind": kind,
        "status": status_numbers[status_codes],
        "counted_by_service": source_names[source_codes] == "usage",
        "first_tokens": _first_tokens(batch.column("chunk_tokens")),
    }
    for name in _INSTANTS:
        columns[name.replace("_ns", "_s")] = _instants(batch.column(name), t0_ns)
    for name in _NUMBERS:
        values = np.asarray(batch.column(name).cast("float64").to_numpy(zero_copy_only=False), dtype=float)
        if name.endswith("_error_ns"):
            columns[name.replace("_ns", "_s")] = values / NS_PER_S
        else:
            columns[name] = values
    return columns


def _no_columns() -> dict[str, np.ndarray]:
    made = {field.name for field in fields(Outcomes)} - {
        *("own_instant", "kinds", "error_samples", "stages", "lost_scheduled_s", "lost_stage", "lost_class_id")
    }
    types = {"kind": int, "status": int, "stage": int, "worker": int, "counted_by_service": bool}
    return {name: np.empty(0, types.get(name, float)) for name in made}


def _status_number(name: str | None) -> int:
    if name not in STATUSES:
        raise RunFormatError(f"the records hold the unknown status {name!r}; use the version that made the run")
    return STATUSES.index(name)


def _numpy(column: "pa.Array") -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _codes(column: "pa.Array") -> tuple[np.ndarray, list[str | None]]:
    """A column of words as numbers and the words they stand for; null is a word of its own."""
    encoded = column.dictionary_encode("encode")
    return _numpy(encoded.indices).astype(int), encoded.dictionary.to_pylist()


def _instants(column: "pa.Array", t0_ns: int) -> np.ndarray:
    values = (_numpy(column.fill_null(0)).astype(np.int64) - t0_ns) / NS_PER_S
    values[_numpy(column.is_null())] = np.nan
    return values


def _first_tokens(column: "pa.Array") -> np.ndarray:
    """Tokens in the first event of each answer; 1 where the service does not count them, and without any event."""
    first = np.ones(len(column))
    if column.null_count == len(column):
        return first
    offsets, values = _numpy(column.offsets), _numpy(column.values)
    filled = _numpy(column.is_valid()) & (np.diff(offsets) > 0)
    first[filled] = values[offsets[:-1][filled]]
    return first
