"""What the controller and the load processes say to each other. Plain data, pickled through a pipe."""

from typing import Literal, Protocol

import msgspec

from pinchpoint.load.wire import Endpoint
from pinchpoint.prompt import Prompt
from pinchpoint.schedule import Schedule, ScheduledRequest, Slots
from pinchpoint.targets.target import TargetSpec


class Content(Protocol):
    """Writes what requests ask, and remembers answers where a conversation goes on. Travels to the load processes, so
    it is small when pickled.

    counts_answers: whether `count` can count, once it is in a load process.
    """

    counts_answers: bool

    def prepare(self) -> None:
        """Does once what would else be slow the first time."""
        ...

    def write(self, row: ScheduledRequest) -> Prompt: ...

    def remembers(self, row: ScheduledRequest) -> bool:
        """Whether the answer's text is wanted for later turns."""
        ...

    def remember(self, row: ScheduledRequest, answer: str, tokens: int | None) -> None:
        """The answer to a turn, and its tokens if the service counted them; one that failed is never told."""
        ...

    def forget(self, session_id: int) -> None: ...

    def count(self, text: str) -> int | None:
        """Tokens of an answer whose service told none; None where no tokenizer is at hand."""
        ...

    def calibrate(self, tokens_per_word: float, overhead_tokens: float) -> None:
        """What the service's own counts say. Ignored by content that counts exactly."""
        ...


class Timeouts(msgspec.Struct, frozen=True):
    """connect_s: until the connection is ready, TLS included. first_token_s and total_s: from the scheduled instant.
    between_tokens_s: from one token to the next. None: only total_s counts."""

    connect_s: float = 10.0
    first_token_s: float | None = None
    between_tokens_s: float | None = None
    total_s: float = 300.0


class Habits(msgspec.Struct, frozen=True):
    """How the loop treats connections and failures.

    headers: name and value, sent with every request. session_header: name of the header that carries the session's
    number. retries: times a rejected request or one whose connection failed is sent again. trace_salt: every request
    carries a `traceparent` made of it and its number (traceids); None: none does.
    """

    timeouts: Timeouts = Timeouts()
    headers: tuple[tuple[str, str], ...] = ()
    session_header: str | None = None
    new_connections: bool = False
    warm_connections: int = 0
    retries: int = 0
    trace_salt: int | None = None


class WorkerConfig(msgspec.Struct, frozen=True):
    """What a worker needs for its life. Travels through the pipe, never through argv: headers may hold a key."""

    index: int
    workers: int
    """Of the whole fleet."""
    endpoints: tuple[Endpoint, ...]
    run_path: str
    targets: tuple[TargetSpec, ...]
    """By class_id; a single one is that of all classes."""
    habits: Habits
    content: Content
    secrets: tuple[str, ...]
    """Texts replaced in any error that is stored, should the service echo them."""
    ca_file: str | None
    cpu: int | None = None
    """The core it stays on; None: wherever the kernel puts it."""
    realtime: bool = False


class StepOrder(msgspec.Struct, frozen=True):
    """Part of a step for one worker. More orders for the same stage add to its sessions; `slots` come once.

    follow: tell of every request that ends and of those in flight, as a search needs it. Without, the counters in
    shared memory are all that is told while the step runs.
    """

    stage: int
    t0_ns: int
    schedule: Schedule
    slots: Slots | None
    follow: bool
    duration_ns: int | None = None
    """Nothing of the step is sent from then on; None: until its schedule is used up."""


class Calibration(msgspec.Struct, frozen=True):
    """What the service's own counts say about the length of prompts."""

    tokens_per_word: float
    overhead_tokens: float


class Command(msgspec.Struct, frozen=True):
    verb: Literal["stop-issue", "cancel", "flush", "quit"]
    reason: str = ""


class Hello(msgspec.Struct, frozen=True):
    """A worker is ready. `notes`: what it was asked for and could not do, in words for people."""

    worker: int
    pid: int
    cpu: int | None
    realtime: bool
    notes: tuple[str, ...]


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
    planned_input_tokens: int
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
