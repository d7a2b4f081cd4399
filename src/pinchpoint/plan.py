"""The plan: what to ask of which service. Comes from flags or from a TOML file; stored normalised in run.json.

An unknown key is an error, because a misspelt limit that is silently ignored is worse than none.
"""

import math
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.units import parse_duration_s, parse_rate_rps

DEFAULT_BUDGET_S = 180.0
MIN_BUDGET_S = 10.0
MAX_CONCURRENCY = 10_000
STAGE_REQUESTS_MAX = 20_000_000
"""In one stage: its schedule then takes about a gigabyte."""
TURNS_MAX = 1000
WARM_CONNECTIONS_MAX = 64
RETRIES_MAX = 10
WORKERS_MAX = 256
"""Load processes; each wants a core of its own and tens of megabytes of memory."""
SEED_MAX = 2**32 - 1
CLASSES_MAX = 64
"""Of a whole plan: more cannot be read in a report."""
TELEMETRY_PERIOD_RANGE_S = (0.1, 60.0)
"""Ten readings a second are for short bursts; more than a minute apart, no window holds two."""
PROFILE_WINDOW_RANGE_S = (0.1, 60.0)
"""Shorter than the first, a window may hold no step; a minute of a profiler's trace takes gigabytes."""
PORT_MAX = 65_535
CURRENCY_CHARS_MAX = 8
TOKENS_MAX = 10_000_000
"""Longer than any context that is served; lengths are stored as 32-bit numbers."""


class LengthSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Log-normal length in tokens: mean, sigma of the logarithm, cut to [min, max]."""

    mean: int
    sigma: float
    min: int
    max: int


class JointSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Lengths as they occur together, from a trace.

    input_tokens: quantiles at evenly spaced probabilities from 0 to 1. output_tokens: one such list for each of as many
    equally likely ranges of the input length, shortest inputs first.
    """

    input_tokens: tuple[int, ...]
    output_tokens: tuple[tuple[int, ...], ...]


class PrefixSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Beginnings that requests share: `ratio` of them begin with one of `pool` texts of `tokens`, and the k-th most
    popular text is picked in proportion to k^-skew (Zipf; 0: all alike)."""

    tokens: int
    pool: int = 1
    ratio: float = 1.0
    skew: float = 0.0


class DocumentsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Texts that go with a request: to be ranked, or embedded in one batch."""

    count: int
    tokens: int


class ImagesSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pictures in every user's message, in pixels."""

    count: int = 1
    width: int = 512
    height: int = 512


ContentKind = Literal["prose", "code"]


class ClassSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of request of a workload. What is None is the preset's, or none at all.

    input_tokens: of one user's message with its shared beginning, without system prompt and history; a number is the
    mean of the preset's shape. joint: in place of both lengths. later_joint: of the turns after the first, where they
    differ. turns, think: of a conversation, as in a stage of sessions. system_tokens: of a system prompt that all
    requests of the class share. tools: functions offered. schema: name of a built-in JSON schema, or a file that holds
    one. api: target of this class. slos: of this class alone.
    """

    name: str = ""
    preset: str | None = None
    weight: float = 1.0
    input_tokens: int | LengthSpec | None = None
    output_tokens: int | LengthSpec | None = None
    joint: JointSpec | None = None
    later_joint: JointSpec | None = None
    turns: int | str | None = None
    think: str | None = None
    system_tokens: int | None = None
    prefix: PrefixSpec | None = None
    documents: DocumentsSpec | None = None
    content: ContentKind | None = None
    tools: int | None = None
    schema: str | None = None
    images: ImagesSpec | None = None
    api: str | None = None
    slos: tuple[str, ...] = ()


class WorkloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """preset: see `docs/reference/workloads.md`. The token counts replace the preset's means, keeping its shape.

    exact: a token count that is given is the length of every request, without any scatter. classes: what the workload
    is made of, in place of the preset's; a request is of a class with a probability in proportion to its weight.
    """

    preset: str = "chat"
    input_tokens: int | None = None
    output_tokens: int | None = None
    exact: bool = False
    classes: tuple[ClassSpec, ...] = ()


class TokenizerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tokens of prompts are counted. file: a tokenizer.json. source: "service" asks the service, "estimate" goes by
    words, "auto" takes a file if given, else the service where it can count, else the estimate."""

    source: Literal["auto", "service", "file", "estimate"] = "auto"
    file: str | None = None


class _Open(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True, kw_only=True):
    """What every stage of an open loop has: how the arrivals scatter, and when to end.

    arrivals: poisson, constant, gamma:CV (coefficient of variation of the gaps) or bursts:N (N at one instant).
    requests: the stage ends with exactly so many arrivals.
    """

    arrivals: str = "poisson"
    requests: int | None = None
    name: str = ""
    workload: str | None = None


class OpenStage(_Open, frozen=True, tag="open"):
    """One rate. Ends after duration_s or with the last of `requests`; exactly one of the two is given."""

    rate_rps: float
    duration_s: float | None = None


class RampStage(_Open, frozen=True, tag="ramp"):
    """The rate goes from one value to another in a straight line over duration_s.

    With `requests`, the stage ends with the last of them instead, and keeps the last rate if the ramp is over before.
    """

    from_rps: float
    to_rps: float
    duration_s: float


class StepsStage(_Open, frozen=True, tag="steps"):
    """One rate after another: each for each_s, or for as long as durations_s says. `requests` as in a ramp."""

    rates_rps: tuple[float, ...]
    each_s: float | None = None
    durations_s: tuple[float, ...] = ()


class SpikeStage(_Open, frozen=True, tag="spike"):
    """base_rps, and peak_rps from at_s on for for_s."""

    base_rps: float
    peak_rps: float
    at_s: float
    for_s: float
    duration_s: float | None = None


class SineStage(_Open, frozen=True, tag="sine"):
    """mean_rps * (1 + amplitude_ratio * sin(2 pi t / period_s))."""

    mean_rps: float
    amplitude_ratio: float
    period_s: float
    duration_s: float | None = None


class OnOffStage(_Open, frozen=True, tag="on-off"):
    """rate_rps for on_s, nothing for off_s, and so on."""

    rate_rps: float
    on_s: float
    off_s: float
    duration_s: float | None = None


class SessionsStage(
    msgspec.Struct, frozen=True, tag="sessions", tag_field="kind", forbid_unknown_fields=True, kw_only=True
):
    """Conversations that begin at a rate. A turn is due a think time after the one before it has ended.

    turns: a number, or geometric:MEAN, uniform:LOW:HIGH, trace:FILE[:COLUMN]; None: those of the workload, and 4 where
    it has single requests. think: None: the workload's. Ends after duration_s, whatever is left of the conversations,
    or when exactly `sessions` of them are over.
    """

    rate_rps: float
    duration_s: float | None = None
    sessions: int | None = None
    arrivals: str = "poisson"
    turns: int | str | None = None
    think: str | None = None
    name: str = ""
    workload: str | None = None


TimeUnit = Literal["s", "ms", "us", "ns", "iso"]


class ReplayStage(
    msgspec.Struct, frozen=True, tag="replay", tag_field="kind", forbid_unknown_fields=True, kw_only=True
):
    """The arrivals of a trace: CSV with a header or JSON lines, plain or .gz, in the order of time.

    format: name of a known format, or auto; then the file itself says what is what, shared beginnings included. Without
    it, time, input, output, session are names of columns or fields; lengths that are not named come from the workload.
    scale: times faster than recorded. start_s: seconds of the trace left out at its beginning. The stage ends after
    duration_s (of the stage, not of the trace), with the last of `requests`, or with the trace. loop: from the end to
    the start again, one mean gap after the last request.
    """

    file: str
    format: str = ""
    time: str = "timestamp"
    unit: TimeUnit = "s"
    input: str | None = None
    output: str | None = None
    session: str | None = None
    scale: float = 1.0
    start_s: float = 0.0
    duration_s: float | None = None
    requests: int | None = None
    loop: bool = False
    name: str = ""
    workload: str | None = None


class ClosedStage(msgspec.Struct, frozen=True, tag="closed", tag_field="kind", forbid_unknown_fields=True):
    """Users that each wait for an answer, think, and send again.

    to_concurrency: the number of users goes there in a straight line over duration_s. Ends after duration_s or when
    exactly `requests` are over, whichever comes first.
    """

    concurrency: int
    duration_s: float | None = None
    think: str = "0s"
    name: str = ""
    to_concurrency: int | None = None
    requests: int | None = None
    workload: str | None = None


OpenKind = OpenStage | RampStage | StepsStage | SpikeStage | SineStage | OnOffStage
StageSpec = OpenKind | SessionsStage | ReplayStage | ClosedStage


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One more base URL of the same service; requests go to the URLs in turn, in proportion to their weights."""

    url: str
    weight: float = 1.0


class Transport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests travel. The defaults are a pool of kept HTTP/1.1 connections.

    headers: sent with every request; a value "env:NAME" is read from the environment, and a header that usually holds
    a secret must be given so. session_header: name of a header that carries the session's number, for sticky routing.
    warm_connections: opened before a stage begins; None: one for each user of a closed loop, and of an open loop as
    many as one second of arrivals, at most WARM_CONNECTIONS_MAX.
    """

    new_connections: bool = False
    warm_connections: int | None = None
    proxy: str | None = None
    unix_socket: str | None = None
    headers: dict[str, str] = {}
    session_header: str | None = None


class PrometheusSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Prometheus server that watches the service. Secrets are in environment variables: a bearer token, or
    user:password."""

    url: str
    selector: str
    """Label matchers of the service's targets, such as {namespace="llm"}."""
    token_env: str | None = None
    login_env: str | None = None


class OtlpSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where spans are received during the run, over HTTP and gRPC."""

    host: str = "127.0.0.1"
    http_port: int = 4318
    grpc_port: int = 4317


class TelemetrySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is read beside the load."""

    period_s: float = 0.5
    """Between two readings of a source."""
    discover: bool = True
    """Look for pages of metrics on the usual ports of the service's host."""
    pages: tuple[str, ...] = ()
    """Further pages of metrics: URL, or NAME=URL."""
    hosts: tuple[str, ...] = ()
    """Agents or node-exporters on other machines: URL, or NAME=URL."""
    host_token_env: str | None = None
    """Environment variable that holds the agents' token."""
    prometheus: PrometheusSpec | None = None
    otlp: OtlpSpec | None = None
    spans: str | None = None
    """File or directory of OTLP/JSON spans, read after the load."""
    trace_requests: bool | None = None
    """Send a traceparent with every request; None: when spans are received or read."""
    stacks: bool = False
    """Sample the stacks of the service's Python processes in the step that overloads it."""

    @property
    def traced(self) -> bool:
        asked = self.trace_requests
        return asked if asked is not None else self.otlp is not None or self.spans is not None


class CostSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the service costs."""

    price_per_hour: float | None = None
    """Of one accelerator; None: the list price of its type, where it is known."""
    currency: str = "USD"
    accelerators: int | None = None
    """That are paid for; None: those that the telemetry shows."""


class ProfileSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A profile of the service, taken while it is overloaded: by the engine's own profiler, or by a command."""

    window_s: float = 2.0
    """How long is profiled; traces are huge."""
    directory: str | None = None
    """Where the engine writes its traces, on this host; None: a directory of the run, for engines that are told."""
    command: str | None = None
    """Program and arguments in place of the engine's profiler; {seconds}, {directory} and {pid} are filled in."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The question. `stages` empty = search for the capacity. Holds no secret: keys are named, never given."""

    url: str
    seed: int
    model: str | None = None
    name: str = "run"
    api: str | None = None
    """Name of a target or path of an API; None: what the service is found to speak."""
    api_options: dict[str, Any] = {}
    """Of the target: a template of requests and answers, names of tensors; see the target's page."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    workload: WorkloadSpec = WorkloadSpec()
    workloads: dict[str, WorkloadSpec] = {}
    """Further workloads, for stages that name them."""
    slos: tuple[str, ...] = ()
    budget_s: float = DEFAULT_BUDGET_S
    max_rate_rps: float | None = None
    stages: tuple[StageSpec, ...] = ()
    stream: bool = True
    timeout_s: float = 300.0
    """From the scheduled instant to the end of the answer."""
    connect_timeout_s: float = 10.0
    first_token_timeout_s: float | None = None
    """From the scheduled instant to the first token; None: only `timeout_s` counts."""
    token_timeout_s: float | None = None
    """Between two tokens of a stream; None: only `timeout_s` counts."""
    retries: int = 0
    """Times a rejected request or a failed connection is tried again. Every attempt is counted."""
    patience: str | None = None
    """After which time a user gives up and hangs up: a duration or a distribution, as `think`. None: never."""
    workers: int | None = None
    """Load processes; None: one per core that this process may use, half of them when the service runs on this host."""
    realtime: bool = False
    """Run the load processes at real-time priority (SCHED_FIFO), where the user's rights allow it."""
    backends: tuple[Backend, ...] = ()
    transport: Transport = Transport()
    max_in_flight: int = 5000
    """A guard: with more requests unanswered than this, the run ends so as not to bury the service."""
    metrics_url: str | None = None
    telemetry: TelemetrySpec = TelemetrySpec()
    cost: CostSpec = CostSpec()
    profile: ProfileSpec | None = None
    ca_file: str | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None


_DURATIONS = {
    "budget": "budget_s",
    "timeout": "timeout_s",
    "connect_timeout": "connect_timeout_s",
    "first_token_timeout": "first_token_timeout_s",
    "token_timeout": "token_timeout_s",
}
_RATES = {"max_rate": "max_rate_rps"}
_STAGE_DURATIONS = {
    "duration": "duration_s",
    "each": "each_s",
    "durations": "durations_s",
    "at": "at_s",
    "for": "for_s",
    "period": "period_s",
    "on": "on_s",
    "off": "off_s",
    "start": "start_s",
}
_STAGE_RATES = {
    "rate": "rate_rps",
    "rates": "rates_rps",
    "from": "from_rps",
    "to": "to_rps",
    "base": "base_rps",
    "peak": "peak_rps",
    "mean": "mean_rps",
}
_MAY_BE_ZERO = frozenset({"from_rps", "to_rps", "rates_rps", "base_rps"})
"""Rates at which a profile may stand still for a while."""


def read_plan(path: Path, defaults: dict[str, Any]) -> Plan:
    """A plan from a TOML file, completed by `defaults` (flags). Raises UsageError with the place inside the file."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    where = str(path)
    target = raw.pop("target", {})
    if not isinstance(target, dict):
        raise UsageError(f"{where}: target must be a table with a url")
    merged: dict[str, Any] = {**target, **raw}
    _convert(merged, _DURATIONS, parse_duration_s, where)
    _convert(merged, _RATES, parse_rate_rps, where)
    if isinstance(telemetry := merged.get("telemetry"), dict):
        _convert(telemetry, {"period": "period_s"}, parse_duration_s, f"{where}: telemetry")
    if isinstance(profile := merged.get("profile"), dict):
        _convert(profile, {"window": "window_s"}, parse_duration_s, f"{where}: profile")
    stages = merged.get("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise UsageError(f"{where}: stages must be [[stages]] tables")
    for i, stage in enumerate(stages):
        _convert(stage, _STAGE_DURATIONS, parse_duration_s, f"{where}: stages[{i}]")
        _convert(stage, _STAGE_RATES, _parse_stage_rate, f"{where}: stages[{i}]")
    for key in ("telemetry", "cost"):
        if isinstance(merged.get(key), dict) and isinstance(defaults.get(key), dict):
            merged[key] = {**defaults[key], **merged[key]}
    return build_plan({**{k: v for k, v in defaults.items() if v is not None}, **merged}, where)


def _convert(table: dict[str, Any], keys: dict[str, str], parse: Any, where: str) -> None:
    for short, full in keys.items():
        if short in table:
            value = table.pop(short)
            try:
                table[full] = [parse(str(v)) for v in value] if isinstance(value, list) else parse(str(value))
            except UsageError as error:
                raise UsageError(f"{where}: {short}: {error}") from None


def _parse_stage_rate(text: str) -> float:
    """Like parse_rate_rps, and zero: whether a stage may stand still is checked with the whole stage."""
    return 0.0 if text.strip() in ("0", "0.0", "0rps") else parse_rate_rps(text)


def _positive(value: float | None) -> bool:
    return value is None or value > 0


def _not_negative(value: float | None) -> bool:
    return value is None or value >= 0


def _names_a_user(url: str) -> bool:
    try:
        return "@" in urlsplit(url).netloc
    except ValueError as error:
        raise UsageError(f"{url!r} cannot be read ({error}); write for example http://127.0.0.1:8000") from None


def _in_range(tokens: int | None) -> bool:
    return tokens is None or 1 <= tokens <= TOKENS_MAX


def build_plan(values: dict[str, Any], where: str = "the command line") -> Plan:
    """Checks types, ranges and unknown keys. Raises UsageError."""
    try:
        plan = msgspec.convert(values, Plan)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}; see docs/reference/plan.md") from None
    problems = [
        (not 0 <= plan.seed <= SEED_MAX, f"seed is {plan.seed}; it must be from 0 to {SEED_MAX}"),
        (not plan.stages and plan.budget_s < MIN_BUDGET_S, f"budget must be at least {MIN_BUDGET_S:g} s"),
        (plan.timeout_s <= 0, "timeout must be above 0"),
        (plan.connect_timeout_s <= 0, "connect_timeout must be above 0"),
        (not _positive(plan.first_token_timeout_s), "first_token_timeout must be above 0"),
        (not _positive(plan.token_timeout_s), "token_timeout must be above 0"),
        (not 0 <= plan.retries <= RETRIES_MAX, f"retries must be from 0 to {RETRIES_MAX}"),
        (plan.workers is not None and not 1 <= plan.workers <= WORKERS_MAX, f"workers must be from 1 to {WORKERS_MAX}"),
        (not _not_negative(plan.transport.warm_connections), "warm_connections must not be negative"),
        (
            any(not 0 < backend.weight < math.inf for backend in plan.backends),
            "the weight of a backend must be a number above 0",
        ),
        (plan.max_in_flight < 1, "max_in_flight must be at least 1"),
        (plan.max_rate_rps is not None and plan.max_rate_rps <= 0, "max_rate must be above 0"),
        (not _in_range(plan.workload.input_tokens), f"input_tokens must be from 1 to {TOKENS_MAX}"),
        (not _in_range(plan.workload.output_tokens), f"output_tokens must be from 1 to {TOKENS_MAX}"),
        (
            plan.metrics_url is not None and not plan.metrics_url.startswith(("http://", "https://")),
            f"metrics_url is {plan.metrics_url!r}; it must begin with http:// or https://",
        ),
        (
            any(_names_a_user(url) for url in (plan.url, *(backend.url for backend in plan.backends))),
            "the URL holds a user or key, which would end up in logs; use --api-key-env or --api-key-file instead",
        ),
        (
            any("?" in url or "#" in url for url in (plan.url, *(backend.url for backend in plan.backends))),
            "the URL holds a query, which may be a key and would be stored; give the base URL alone",
        ),
        (bool(plan.api_key_env and plan.api_key_file), "give api_key_env or api_key_file, not both"),
        *_telemetry_problems(plan.telemetry),
        *_cost_problems(plan.cost),
        *(_profile_problems(plan.profile) if plan.profile is not None else []),
    ]
    for i, stage in enumerate(plan.stages):
        problems += [(wrong, f"stages[{i}].{message}") for wrong, message in _stage_problems(stage)]
    for wrong, message in problems:
        if wrong:
            raise UsageError(f"{where}: {message}")
    return plan


def _telemetry_problems(spec: TelemetrySpec) -> list[tuple[bool, str]]:
    low_s, high_s = TELEMETRY_PERIOD_RANGE_S
    problems = [
        (
            not low_s <= spec.period_s <= high_s,
            f"telemetry.period is {spec.period_s:g} s; it must be from {low_s:g} s to {high_s:g} s",
        )
    ]
    given = (*spec.pages, *spec.hosts)
    urls = [url.partition("=")[2] if "/" not in url.partition("=")[0] and "=" in url else url for url in given]
    urls += [spec.prometheus.url] if spec.prometheus is not None else []
    for url in urls:
        problems.append((not url.startswith(("http://", "https://")), f"{url!r} must begin with http:// or https://"))
        problems.append((_names_a_user(url), "a URL of telemetry holds a user or key, which would end up in logs"))
        problems.append(("?" in url, "a URL of telemetry holds a query, which may be a key and would be stored"))
    if spec.otlp is not None:
        for key in ("http_port", "grpc_port"):
            port = getattr(spec.otlp, key)
            problems.append((not 1 <= port <= PORT_MAX, f"telemetry.otlp.{key} is {port}; it must be 1 to {PORT_MAX}"))
    return problems


def _profile_problems(spec: ProfileSpec) -> list[tuple[bool, str]]:
    low_s, high_s = PROFILE_WINDOW_RANGE_S
    return [
        (
            not low_s <= spec.window_s <= high_s,
            f"profile.window is {spec.window_s:g} s; it must be from {low_s:g} s to {high_s:g} s",
        ),
        (spec.command is not None and not spec.command.strip(), "profile.command is empty; name a program"),
    ]


def _cost_problems(spec: CostSpec) -> list[tuple[bool, str]]:
    price, count, currency = spec.price_per_hour, spec.accelerators, spec.currency
    return [
        (price is not None and not 0 < price < math.inf, f"cost.price_per_hour is {price}; it must be above 0"),
        (count is not None and count < 1, f"cost.accelerators is {count}; it must be at least 1"),
        (
            not currency.isprintable() or not 1 <= len(currency) <= CURRENCY_CHARS_MAX,
            f"cost.currency is {currency!r}; it must be a word of at most {CURRENCY_CHARS_MAX} characters",
        ),
    ]


def _stage_problems(stage: StageSpec) -> list[tuple[bool, str]]:
    """(wrong, message) for each thing that numbers alone can say; texts and files are read by `workload`."""
    values = {field: getattr(stage, field) for field in stage.__struct_fields__}
    problems: list[tuple[bool, str]] = []
    for field, value in values.items():
        key, _, unit = field.rpartition("_")
        if unit not in ("s", "rps") or value is None:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            zero = field in _MAY_BE_ZERO or field in ("at_s", "start_s")
            what = "a rate" if unit == "rps" else "a duration"
            low = one >= 0 if zero else one > 0
            bound = "must not be negative" if zero else "must be above 0"
            problems.append((not (low and math.isfinite(one)), f"{key} is {one:g}; {what} {bound}"))
    for key in ("requests", "sessions"):
        count = values.get(key)
        inside = count is None or 1 <= count <= STAGE_REQUESTS_MAX
        problems.append((not inside, f"{key} is {count}; it must be from 1 to {STAGE_REQUESTS_MAX}"))
    match stage:
        case OpenStage() | SpikeStage() | SineStage() | OnOffStage():
            given = (stage.duration_s is None) + (stage.requests is None)
            problems.append((given != 1, "duration or requests must be given, and not both"))
        case SessionsStage():
            given = (stage.duration_s is None) + (stage.sessions is None)
            problems.append((given != 1, "duration or sessions must be given, and not both"))
            turns = stage.turns
            problems.append((isinstance(turns, int) and not 1 <= turns <= TURNS_MAX, f"turns must be 1 to {TURNS_MAX}"))
        case ClosedStage():
            problems.append((stage.duration_s is None and stage.requests is None, "duration or requests must be given"))
            ramped = stage.to_concurrency is not None
            problems.append((ramped and stage.duration_s is None, "duration must be given with to_concurrency"))
            for key in ("concurrency", "to_concurrency"):
                users = values[key]
                inside = users is None or 1 <= users <= MAX_CONCURRENCY
                problems.append((not inside, f"{key} must be from 1 to {MAX_CONCURRENCY}"))
            users = max(stage.concurrency, stage.to_concurrency or 0)
            idle = stage.requests is not None and 1 <= stage.requests < users
            problems.append((idle, f"requests is {stage.requests}; it must be at least the number of users, {users}"))
        case ReplayStage():
            problems.append((not 0 < stage.scale < math.inf, f"scale is {stage.scale:g}; it must be above 0"))
            endless = stage.loop and stage.duration_s is None and stage.requests is None
            problems.append((endless, "loop needs a duration or requests, else the stage never ends"))
        case RampStage():
            problems.append((stage.from_rps + stage.to_rps == 0, "to must be above 0 when from is 0"))
        case StepsStage():
            problems.append((not any(stage.rates_rps), "rates must hold a rate above 0"))
            given = (stage.each_s is None) + (not stage.durations_s)
            problems.append((given != 1, "each or durations must be given, and not both"))
            uneven = bool(stage.durations_s) and len(stage.durations_s) != len(stage.rates_rps)
            problems.append((uneven, f"durations has {len(stage.durations_s)} values for {len(stage.rates_rps)} rates"))
    match stage:
        case SineStage():
            ratio = stage.amplitude_ratio
            problems.append((not 0 <= ratio <= 1, f"amplitude_ratio is {ratio:g}; it must be from 0 to 1"))
        case RampStage(to_rps=0, requests=int()):
            problems.append((True, "to must be above 0 when requests are given: else they may never come"))
        case StepsStage(rates_rps=(*_, 0), requests=int()):
            problems.append((True, "rates must end above 0 when requests are given: else they may never come"))
        case SpikeStage(base_rps=0, requests=int()):
            problems.append((True, "base must be above 0 when requests are given: else they may never come"))
    return problems
