"""What a client sees of the service, what it can say about a request, and what exporters could read: words alone."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from pinchpoint.lab.metrics import EngineState
from pinchpoint.lab.readings import GpuReading, HostReading

NULL_REQUEST_ID = -1


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is beside its lengths."""

    block_keys: Sequence[int] = ()
    """Identity of each full block of prompt and planned output, in order: equal keys share KV. Empty: shares none."""
    session: int | None = None
    """For sticky routing."""
    priority: int = 0
    """Lowest first, where the engine schedules by priority."""
    adapter: int | None = None
    schema: int | None = None
    image_tokens: int = 0
    """Of pictures in the request; the prompt's length does not include them."""
    finish_reason: str = "length"
    path: str = "/v1/chat/completions"
    """Of the API, under which the server counts the request."""
    body_bytes: int = 0
    """Content length of the request, where it has come over HTTP."""
    extra_prompts: tuple[int, ...] = ()
    """Lengths of the further texts of one embeddings or rerank request; the answer waits for all of them."""


PLAIN = Details()


class ClientEvent(msgspec.Struct, gc=False):
    """Something a client sees.

    status with kind "headers"; tokens with "chunk"; finish_reason, prompt_tokens and completion_tokens with "end" (None
    after a refusal); retry_after_s and the refusal's text in `error` with the headers of a refusal; latency_s with
    "null" (None when there was no answer). There are no chunks where nothing is generated. A request ends with exactly
    one "end" or "error"; `error` of the latter is connect_refused, connect_timeout, reset or timeout.
    """

    t_ns: int
    request_id: int
    kind: Literal["headers", "chunk", "end", "null", "error"]
    status: int | None = None
    tokens: int = 0
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retry_after_s: float | None = None
    latency_s: float | None = None
    error: str | None = None
    connected_ns: int | None = None
    """With headers and errors: when the connection that was made for this request stood; None: one was there, or it
    never stood."""


class ReplicaState(msgspec.Struct):
    """One replica at one instant. engines and gpus may be empty while it is down."""

    engines: list[EngineState]
    gpus: list[GpuReading]
    host: HostReading
    up: bool


class ServiceState(msgspec.Struct):
    """What exporters could read off the whole service at one instant."""

    replicas: list[ReplicaState]
