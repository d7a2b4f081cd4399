"""The words every other module speaks: structs and table schemas. Imports nothing else of ours.

Instants are int64 nanoseconds of the host's monotonic clock (`_ns`); in a virtual-time run they are virtual.
Durations a person reads are float seconds (`_s`), ratios are 0 to 1, counters end in `_total`.
None means "not known", never zero.
"""

from typing import Any, Literal

import msgspec

FORMAT_VERSION = 1
"""Run directory format. History: 1 (0.1.0) first release."""

Status = Literal[
    "ok",
    "rejected",  # HTTP 429 or 503: the service said "not now"
    "http_error",  # any other HTTP status >= 400
    "stream_error",  # HTTP 200, then an error that the service reports inside the answer
    "transport_error",  # connect refused, reset, TLS failure, closed before an answer
    "timeout",
    "cancelled",  # withdrawn by us: the step was decided or the run was stopped
    "abandoned",  # withdrawn by the user we play: patience ran out
    "truncated",  # HTTP 200, the stream ended without its end mark or finish reason
    "malformed",  # an answer that is not what HTTP, SSE or the API promise
    "dropped",  # never sent: this host could not
]
STATUSES: tuple[str, ...] = Status.__args__  # pyright: ignore
ERROR_STATUSES: tuple[str, ...] = (
    "rejected",
    "http_error",
    "stream_error",
    "transport_error",
    "truncated",
    "malformed",
)
"""Failures of the service. A timeout is an error too, and also a latency miss; `cancelled`, `abandoned` and `dropped`
are ours."""

NO_PORT_ERROR = "no free local port"
"""Error text of a request that was dropped because this host had no port left for its connection."""
Phase = Literal["connect", "tls", "send", "headers", "first-token", "between-tokens", "total"]
"""What a request was waiting for when it failed or timed out."""

StageKind = Literal["warmup", "search", "overload", "recovery", "load", "interrupted"]
"""warmup: one user, unloaded. recovery: one user after an overload, until the service is itself again. interrupted: the
service went away in the middle; says nothing about its capacity."""
Validity = Literal["VALID", "SUSPECT", "INVALID"]
Layer = Literal["load generator", "application", "model inference", "hardware", "infrastructure", "none"]


class Slo(msgspec.Struct, frozen=True):
    """One promise: at least `attainment_ratio` of the requests satisfy `metric < limit`.

    `ttft p99 < 500ms` is metric "ttft", attainment_ratio 0.99, limit 0.5 (seconds). `errors < 1%` is metric
    "errors", attainment_ratio 0.99, limit 0.01. `text` is the canonical spelling.
    """

    metric: Literal["ttft", "tpot", "itl", "e2e", "errors"]
    attainment_ratio: float
    limit: float
    text: str
    scope: str | None = None
    """Name of the class of requests that it is of; None: all requests."""


class Limits(msgspec.Struct, frozen=True):
    """What the service itself says about its limits; None where it does not tell."""

    max_sequences: int | None = None
    kv_tokens: int | None = None
    context_tokens: int | None = None
    max_batched_tokens: int | None = None


class TargetFacts(msgspec.Struct, frozen=True):
    """What the probe found out, how it knows, and what it could not find out."""

    url: str
    engine: str = "unknown"
    """vllm, sglang, tgi, tei, llama.cpp, tensorrt-llm, triton, tf-serving, ollama, openai-compatible, unknown"""
    engine_version: str | None = None
    engine_evidence: tuple[str, ...] = ()
    api: str | None = None
    """Path of the API under load, such as /v1/chat/completions; None if none answered."""
    api_name: str | None = None
    """The target that speaks it, such as chat; as of --api."""
    api_options: dict[str, Any] = {}
    """Options of that target that the service's own description gave: names and shapes of its tensors."""
    models: tuple[str, ...] = ()
    model: str | None = None
    streaming: bool | None = None
    usage_in_stream: bool | None = None
    limits: Limits = Limits()
    limit_sources: dict[str, str] = {}
    metrics_url: str | None = None
    health_path: str | None = None
    """Cheapest path that answers without touching the model; used as null request."""
    server_pids: tuple[int, ...] = ()
    """Processes on this host that listen on the target's port, or serve it; empty when remote or not visible."""
    prompt_overhead_tokens: float | None = None
    """Tokens that the chat template adds to every prompt."""
    tokens_per_word: float | None = None
    unknown: tuple[str, ...] = ()
    """One sentence for each thing that could not be found out, and why."""


class Stage(msgspec.Struct, frozen=True):
    """One stretch of load as it really was."""

    index: int
    kind: StageKind
    name: str
    t0_ns: int
    """First scheduled instant; requests are scheduled in [t0_ns, t1_ns)."""
    t1_ns: int
    drained_ns: int
    """When the last of its requests had ended or was withdrawn."""
    settle_ns: int
    """Requests scheduled before t0_ns + settle_ns are left out of statistics: the batch was still filling."""
    rate_rps: float | None = None
    """Offered rate, where it stays the same; None where it changes or depends on answers."""
    concurrency: int | None = None
    """Users of a closed loop; of a ramp the largest number."""
    think_s: float = 0.0
    """Mean of the pauses between answer and next request."""
    arrivals: str = ""
    """The process that was asked for: poisson, constant, gamma:CV, bursts:N or replay; of sessions, when they begin.
    Empty: a closed loop."""
    profile: str = ""
    """What the asked rate or the number of users did in the stage: "flat", or in words. Empty: a constant number of
    users."""
    decision: Literal["pass", "fail", "undecided", "none"] = "none"
    reason: str = ""


class Capacity(msgspec.Struct, frozen=True):
    """Highest offered rate whose attainment meets every SLO in the long run, as a point and an interval.

    lower_rps, upper_rps: the capacity lies between them with probability `confidence`, by all steps together. lower_rps
    is None if no rate passed. upper_rps is None if no rate failed, and then the capacity is "at least lower_rps", the
    highest rate that passed. best_rps: the median; None where an end is. proven: the sequential test alone says so: a
    rate at or above lower_rps passed and one at or below upper_rps failed. passed_rps, failed_rps: the highest rate
    that passed the test and the lowest that failed it; None if none did.
    """

    lower_rps: float | None
    upper_rps: float | None
    confidence: float
    proven: bool
    limiting_slo: str | None
    note: str = ""
    best_rps: float | None = None
    passed_rps: float | None = None
    failed_rps: float | None = None


class Evidence(msgspec.Struct, frozen=True):
    """One measured comparison. strength is a natural-log likelihood ratio: > 0 speaks for the cause, < 0 against."""

    statement: str
    strength: float
    series: tuple[str, ...] = ()
    observed: float | None = None
    reference: float | None = None
    unit: str = ""
    source: str = ""
    """Where the reference or threshold comes from."""
    window: str = ""


class Remedy(msgspec.Struct, frozen=True):
    action: str
    flag: str | None = None
    """Exact flag of the engine that was found, with a value where one can be derived."""
    predicted_effect: str = ""


class Finding(msgspec.Struct, frozen=True):
    """One candidate cause, judged."""

    rule: str
    """Code, such as SEQ001."""
    name: str
    title: str
    layer: Layer
    kind: Literal["fault", "physical-limit", "healthy", "load-generator", "unknown"]
    probability: float
    explains_ratio: float | None
    evidence: tuple[Evidence, ...]
    against: tuple[Evidence, ...]
    remedies: tuple[Remedy, ...] = ()
    confirm: str = ""


class NotEvaluable(msgspec.Struct, frozen=True):
    rule: str
    name: str
    missing: tuple[str, ...]
    why: str


class ValidityReason(msgspec.Struct, frozen=True):
    check: str
    level: Literal["ok", "suspect", "invalid", "unknown"]
    statement: str
    observed: float | None = None
    limit: float | None = None
    unit: str = ""


class ClassResult(msgspec.Struct, frozen=True):
    """Statistics of the requests of one class in one stage. Quantile fields as in StageResult."""

    name: str
    requests: int
    ok: int
    ttft_s: dict[str, float | None]
    tpot_s: dict[str, float | None]
    e2e_s: dict[str, float | None]
    attainment: dict[str, tuple[int, int]]
    """Text of each SLO of this class alone -> (requests that met it, requests that count)."""


class StageResult(msgspec.Struct, frozen=True):
    """Statistics of one stage over its steady part. Quantile fields are None with too few requests."""

    index: int
    kind: str
    name: str
    rate_rps: float | None
    achieved_rps: float | None
    completed_rps: float | None
    goodput_rps: float | None
    duration_s: float
    requests: int
    ok: int
    errors: dict[str, int]
    ttft_s: dict[str, float | None]
    """Keys p50, p90, p95, p99."""
    tpot_s: dict[str, float | None]
    e2e_s: dict[str, float | None]
    ttft_p95_interval_s: tuple[float, float] | None
    in_flight_mean: float | None
    output_tokens_per_s: float | None
    attainment: dict[str, tuple[int, int]]
    """SLO text -> (requests that met it, requests that count)."""
    effective: dict[str, float]
    """SLO text -> share of those requests that counts as independent (stats.effective_ratio)."""
    decision: str
    reason: str
    classes: tuple[ClassResult, ...] = ()
    """By class, in the order of the plan; empty where there is one class."""


class Verdict(msgspec.Struct, frozen=True):
    """The answer. Everything in it is recomputed from the run directory."""

    format_version: int
    run_id: str
    status: Literal["complete", "aborted"]
    validity: Validity
    validity_reasons: tuple[ValidityReason, ...]
    slos: tuple[Slo, ...]
    slos_derived: bool
    capacity: Capacity | None
    stages: tuple[StageResult, ...]
    headline: str
    findings: tuple[Finding, ...]
    """Likely first. The first is the answer; its kind may be healthy, physical-limit or unknown."""
    rejected: tuple[Finding, ...]
    """Rules that looked and did not fire, with what spoke against them."""
    not_evaluable: tuple[NotEvaluable, ...]
    unexplained_ratio: float | None
    target: TargetFacts
    notes: tuple[str, ...]
    exit_code: int


class Progress(msgspec.Struct, frozen=True):
    """What the live screen shows while a run goes on. Quantiles cover the last few seconds; None = nothing yet."""

    phase: str
    """probe, warm-up, search, overload, recovery, load (a plain load), sealing"""
    detail: str
    elapsed_s: float
    left_s: float | None
    rate_rps: float | None
    in_flight: int
    completed: int
    errors: int
    output_tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    lower_rps: float | None
    """Capacity bracket so far."""
    upper_rps: float | None
    steps: tuple[tuple[float, str, str], ...] = ()
    """Steps done: offered rate, decision, reason."""


class Manifest(msgspec.Struct):
    """run.json. Written when the run starts and again when it is sealed."""

    format_version: int
    run_id: str
    pinchpoint_version: str
    status: Literal["running", "complete", "aborted"]
    abort_reason: str | None
    started_wall: str
    """ISO 8601, UTC."""
    t0_ns: int
    virtual: bool
    """True when the run was made in virtual time by the lab."""
    seed: int
    plan: dict[str, Any]
    """The normalised plan."""
    target: TargetFacts
    slos: tuple[Slo, ...]
    slos_derived: bool
    stages: list[Stage]
    host: dict[str, Any]
    clock: dict[str, Any]
    files: dict[str, dict[str, Any]]
    """name -> {rows, bytes, sha256}; filled when sealed."""
    command: tuple[str, ...] = ()
    """Words of the command line that made the run. Keys are never given as flags, so it holds none."""
    workload: str = ""
    """Name of the workload, or of its classes; empty in runs of older versions."""
    classes: tuple[str, ...] = ()
    """Names by class_id; empty in runs of older versions."""


SCHEDULE_COLUMNS: dict[str, str] = {
    "request_id": "uint64",
    "stage": "uint16",
    "session_id": "uint32",
    "turn": "uint16",
    "offset_ns": "int64?",  # from the stage's t0; null for closed-loop requests, whose instant depends on answers
    "think_ns": "int64?",
    "input_tokens": "int32",
    "max_output_tokens": "int32",
    "patience_ns": "int64?",  # the user hangs up so long after the request was due; null: never
    "class_id": "uint16?",  # place in the plan's list of classes
    "prefix_id": "int32?",  # which of its class's shared beginnings it begins with; null: none
}

RECORD_COLUMNS: dict[str, str] = {
    "request_id": "uint64",
    "stage": "uint16",
    "worker": "uint16",
    "scheduled_ns": "int64",
    "sent_ns": "int64?",
    "connect_ns": "int64?",  # began to connect; null when a kept-alive connection was reused
    "tls_ns": "int64?",  # TCP was connected and the TLS handshake began; null without TLS
    "connected_ns": "int64?",  # ready for the request; null when a kept-alive connection was reused
    "headers_ns": "int64?",
    "first_byte_ns": "int64?",  # of the response body
    "first_token_ns": "int64?",  # first reasoning, tool-call or content delta
    "first_content_ns": "int64?",
    "last_token_ns": "int64?",
    "end_ns": "int64?",
    "chunk_ns": "list<int64>",  # arrival of each event that carried text
    "chunk_tokens": "list<int32>?",  # tokens in each, when the service counts more than events; null: one in each
    "coalesced_count": "int32",  # events that shared a read with a later one: their stamp is an upper bound
    "timestamp_source": "string",  # kernel, user, mixed, virtual
    "timestamp_error_ns": "int64?",  # upper bound of the error of the stamps that latencies rest on
    "chunk_error_ns": "int64?",  # upper bound of the error of any instant in chunk_ns
    "input_tokens": "int32?",
    "output_tokens": "int32?",
    "cached_tokens": "int32?",
    "reasoning_tokens": "int32?",
    "token_source": "string?",  # who counted output_tokens: usage, tokenizer, events; null: nobody could
    "requested_input_tokens": "int32",
    "requested_output_tokens": "int32",
    "bytes_in": "int64",
    "http_status": "int16?",
    "status": "string",
    "error": "string?",
    "finish_reason": "string?",
    "retry_after_s": "float64?",
    "connection_id": "int32?",
    "phase": "string?",  # of a transport error or a timeout: what it was waiting for (model.Phase)
    "attempts": "uint16?",  # times it was sent; more than 1 when retries are on or a kept connection was found closed
    "backend": "uint16?",  # which of the target's base URLs; null when there is one
    "class_id": "uint16?",  # place in the plan's list of classes; null in runs of older versions
    "shared_input_tokens": "int32?",  # of the requested ones, those that other requests begin with too, by design
}

SAMPLE_COLUMNS: dict[str, str] = {
    "t_ns": "int64",
    "late_us": "int32",  # the collector's own lateness for this reading
    "source": "string",  # engine, host, server, client, null-request
    "raw": "string",  # name as exposed by the source
    "series": "string?",  # canonical name through the catalogue; null when unknown
    "labels": "string",  # k=v pairs joined by commas, sorted by key
    "value": "float64",
}

SPAN_COLUMNS: dict[str, str] = {
    "trace_id": "string",  # 32 hexadecimal digits
    "span_id": "string",  # 16
    "parent_id": "string?",  # null: a root
    "name": "string",
    "service": "string",  # service.name of the sender; empty: not told
    "instance": "string",  # whose clock it was: host.name, else service.instance.id, of the sender
    "kind": "string",  # internal, server, client, producer, consumer
    "start_ns": "int64",  # the sender's wall clock on our axis; off by as much as its clock is off ours
    "end_ns": "int64",
    "status": "string",  # unset, ok, error
    "received_ns": "int64?",  # when the receiver had it; null: read from a file
    "request_id": "uint64?",  # of the request whose trace it is; null: of none of this run
    "attributes_json": "string",  # the sender's attributes, cut
}
