"""The schedule: which request is due when, as columns. Made by `workload`, carried out by `load`, stored in the run.

One row per request, with the columns of model.SCHEDULE_COLUMNS. When a request is due:

    offset_ns >= 0                 at t0 + offset_ns, whatever happened before (open loop)
    offset_ns == AFTER, turn > 0   think_ns after the previous turn of its session has ended
    offset_ns == AFTER, turn == 0  when a slot of a closed loop is free: a slot takes the next session, carries out its
                                   turns, and takes another one think_ns after the last turn ended
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np

AFTER = -1
"""offset_ns of a request that has no instant of its own. Stored as null."""
NEVER = -1
"""patience_ns of a user who never gives up. Stored as null."""
UNSHARED = -1
"""prefix_id of a request whose beginning is its own. Stored as null."""


class ScheduledRequest(msgspec.Struct, frozen=True):
    """One row. offset_ns is AFTER when the instant depends on an answer."""

    request_id: int
    stage: int
    session_id: int
    turn: int
    offset_ns: int
    think_ns: int
    input_tokens: int
    max_output_tokens: int
    patience_ns: int = NEVER
    class_id: int = 0
    prefix_id: int = UNSHARED

    def row(self) -> tuple[int | None, ...]:
        """In the order of model.SCHEDULE_COLUMNS."""
        return (
            self.request_id,
            self.stage,
            self.session_id,
            self.turn,
            None if self.offset_ns == AFTER else self.offset_ns,
            self.think_ns,
            self.input_tokens,
            self.max_output_tokens,
            None if self.patience_ns == NEVER else self.patience_ns,
            self.class_id,
            None if self.prefix_id == UNSHARED else self.prefix_id,
        )


_NOT_GIVEN: Any = None


@dataclass(frozen=True)
class Schedule:
    """Columns of shape (n,). Turns of one session are in order; rows with an offset are in order of it."""

    stage: int
    request_id: np.ndarray  # uint64
    session_id: np.ndarray  # uint32
    turn: np.ndarray  # uint16
    offset_ns: np.ndarray  # int64
    think_ns: np.ndarray  # int64
    input_tokens: np.ndarray  # int32
    max_output_tokens: np.ndarray  # int32
    patience_ns: np.ndarray  # int64; NEVER, or the user hangs up so long after the request was due
    class_id: np.ndarray = _NOT_GIVEN  # uint16; place in the plan's list of classes; not given: 0
    prefix_id: np.ndarray = _NOT_GIVEN  # int32; which of its class's shared beginnings it has; not given: UNSHARED

    def __post_init__(self) -> None:
        if self.class_id is _NOT_GIVEN:
            object.__setattr__(self, "class_id", np.zeros(len(self), np.uint16))
        if self.prefix_id is _NOT_GIVEN:
            object.__setattr__(self, "prefix_id", np.full(len(self), UNSHARED, np.int32))

    def __len__(self) -> int:
        return len(self.request_id)

    def __iter__(self) -> Iterator[ScheduledRequest]:
        columns = [getattr(self, field.name).tolist() for field in fields(self) if field.name != "stage"]
        for request_id, *rest in zip(*columns, strict=True):
            yield ScheduledRequest(request_id, self.stage, *rest)

    def select(self, mask: np.ndarray) -> "Schedule":
        """The rows that a boolean mask or an index array picks."""
        return Schedule(
            self.stage, *(getattr(self, field.name)[mask] for field in fields(self) if field.name != "stage")
        )

    @property
    def open_loop(self) -> bool:
        """Whether sessions begin at instants of their own."""
        return not len(self) or bool(self.offset_ns[0] != AFTER)


@dataclass(frozen=True)
class Slots:
    """The users of a closed loop, shape (concurrency,). Offsets from the step's t0.

    start_ns: when the slot takes its first session. until_ns: it takes none from then on (NO_END: as long as there are
    sessions); a ramp of the concurrency staggers the one or the other.
    """

    start_ns: np.ndarray  # int64
    until_ns: np.ndarray  # int64

    NO_END = np.iinfo(np.int64).max

    @classmethod
    def constant(cls, concurrency: int) -> "Slots":
        return cls(np.zeros(concurrency, np.int64), np.full(concurrency, cls.NO_END, np.int64))
