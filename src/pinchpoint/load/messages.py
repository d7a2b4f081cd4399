"""What the controller and the load processes say to each other. Plain data, pickled through a pipe."""

from typing import Literal

import msgspec

from pinchpoint.load.wire import Address


class Intent(msgspec.Struct, frozen=True):
    """One request of the schedule. offset_ns from the step's start; None in a closed loop."""

    request_id: int
    session_id: int
    offset_ns: int | None
    think_ns: int
    input_tokens: int
    max_output_tokens: int
    body: bytes


class Timeouts(msgspec.Struct, frozen=True):
    connect_s: float = 10.0
    total_s: float = 300.0


class WorkerConfig(msgspec.Struct, frozen=True):
    """What a worker needs for its life. Travels through the pipe, never through argv: headers may hold a key."""

    index: int
    address: Address
    run_path: str
    api_path: str
    model: str
    engine: str
    stream: bool
    usage: bool
    headers: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]
    """Texts replaced in any error that is stored, should the service echo them."""
    ca_file: str | None
    timeouts: Timeouts


class StepOrder(msgspec.Struct, frozen=True):
    stage: int
    t0_ns: int
    intents: list[Intent]


class Command(msgspec.Struct, frozen=True):
    verb: Literal["stop-issue", "cancel", "flush", "quit"]
    reason: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What the search needs of an ended request. Durations None where there is none."""

    request_id: int
    stage: int
    status: str
    error: str | None
    scheduled_ns: int
    send_lag_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    itl_max_s: float | None
    input_tokens: int | None
    output_tokens: int
    has_first_byte: bool
    since_first_token_s: float | None
    max_output_tokens: int
    http_status: int | None


class Pending(msgspec.Struct, frozen=True):
    """A request in flight."""

    request_id: int
    stage: int
    scheduled_ns: int
    first_token_ns: int | None
    has_first_byte: bool
    max_output_tokens: int


class Update(msgspec.Struct, frozen=True):
    """State of one worker at t_ns."""

    worker: int
    t_ns: int
    outcomes: list[Outcome]
    pending: list[Pending]
    unissued: int
    tokens: int
    """Text-carrying events received since the worker began."""
    busy_ratio: float
    """Share of the time since the last update that the loop was not waiting in epoll."""
