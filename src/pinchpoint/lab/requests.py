"""A request as its client sent it, and its attempts at replicas: one, or several where a gateway tries again."""

from typing import TYPE_CHECKING

from pinchpoint.lab.events import ClientEvent, Details
from pinchpoint.lab.front import EventLoop
from pinchpoint.lab.path import Connection, LossyStream

if TYPE_CHECKING:
    from pinchpoint.lab.replica import Replica


class Request:
    """What a client has sent; lives until it has seen the end."""

    __slots__ = (
        "attempt",
        "attempts_left",
        "connected_ns",
        "connection",
        "details",
        "headers_sent",
        "held",
        "max_output_tokens",
        "over",
        "prompt_tokens",
        "replica",
        "request_id",
        "seen_ns",
        "stream",
        "way_back",
    )

    def __init__(
        self, request_id: int, prompt_tokens: int, max_output_tokens: int, stream: bool, details: Details
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.stream = stream
        self.details = details
        self.replica: Replica | None = None
        """Where its connection ends."""
        self.connection: Connection | None = None
        self.connected_ns: int | None = None
        self.attempt: Attempt | None = None
        self.attempts_left = 0
        self.headers_sent = False
        self.held: list[ClientEvent] = []
        """Chunks that the proxy collects."""
        self.way_back: LossyStream | None = None
        self.seen_ns = 0
        """Latest instant at which its client sees what was sent on the long way; nothing later may overtake it."""
        self.over = False
        """Nothing more will be done for it."""


class Attempt:
    """A request at one replica. `gone` once it has left, whatever the reason."""

    __slots__ = (
        "answered",
        "at_once",
        "began_ns",
        "direct",
        "gone",
        "has_thread",
        "loop",
        "output_tokens",
        "parts",
        "parts_left",
        "prompt_tokens",
        "replica",
        "request",
        "request_id",
        "written_tokens",
    )

    def __init__(self, request: Request, replica: "Replica", loop: EventLoop, at_once: bool) -> None:
        self.request = request
        self.request_id = request.request_id
        self.replica = replica
        self.loop = loop
        self.at_once = at_once
        """Nothing is written before the end: not streamed, or nothing is generated."""
        self.began_ns = 0
        self.prompt_tokens = request.prompt_tokens
        self.output_tokens = request.max_output_tokens
        """That the model will generate, whatever was asked."""
        self.parts: list[int] = []
        """Ids in the engines."""
        self.parts_left = 0
        self.written_tokens = 0
        self.has_thread = False
        self.answered = False
        """A byte of the answer has been written."""
        self.direct = False
        """Its chunks go to the client with nothing on the way that delays them."""
        self.gone = False
