"""The plan: what to ask of which service. Comes from flags or from a TOML file; stored normalised in run.json.

An unknown key is an error, because a misspelt limit that is silently ignored is worse than none.
"""

import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.units import parse_duration_s, parse_rate_rps

DEFAULT_BUDGET_S = 180.0
MIN_BUDGET_S = 10.0
MAX_CONCURRENCY = 10_000
WARM_CONNECTIONS_MAX = 64
RETRIES_MAX = 10
SEED_MAX = 2**32 - 1
TOKENS_MAX = 10_000_000
"""Longer than any context that is served; lengths are stored as 32-bit numbers."""


class LengthSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Log-normal length in tokens: mean, sigma of the logarithm, cut to [min, max]."""

    mean: int
    sigma: float
    min: int
    max: int


class WorkloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """preset: see `docs/reference/workloads.md`. The token counts replace the preset's means, keeping its shape."""

    preset: str = "chat"
    input_tokens: int | None = None
    output_tokens: int | None = None


class OpenStage(msgspec.Struct, frozen=True, tag="open", tag_field="kind", forbid_unknown_fields=True):
    rate_rps: float
    duration_s: float
    name: str = ""


class ClosedStage(msgspec.Struct, frozen=True, tag="closed", tag_field="kind", forbid_unknown_fields=True):
    concurrency: int
    duration_s: float
    think_s: float = 0.0
    name: str = ""


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


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The question. `stages` empty = search for the capacity. Holds no secret: keys are named, never given."""

    url: str
    seed: int
    model: str | None = None
    name: str = "run"
    workload: WorkloadSpec = WorkloadSpec()
    slos: tuple[str, ...] = ()
    budget_s: float = DEFAULT_BUDGET_S
    max_rate_rps: float | None = None
    stages: tuple[OpenStage | ClosedStage, ...] = ()
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
_STAGE_DURATIONS = {"duration": "duration_s", "think": "think_s"}
_STAGE_RATES = {"rate": "rate_rps"}


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
    stages = merged.get("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise UsageError(f"{where}: stages must be [[stages]] tables")
    for i, stage in enumerate(stages):
        _convert(stage, _STAGE_DURATIONS, parse_duration_s, f"{where}: stages[{i}]")
        _convert(stage, _STAGE_RATES, parse_rate_rps, f"{where}: stages[{i}]")
    return build_plan({**{k: v for k, v in defaults.items() if v is not None}, **merged}, where)


def _convert(table: dict[str, Any], keys: dict[str, str], parse: Any, where: str) -> None:
    for short, full in keys.items():
        if short in table:
            try:
                table[full] = parse(str(table.pop(short)))
            except UsageError as error:
                raise UsageError(f"{where}: {short}: {error}") from None


def _positive(value: float | None) -> bool:
    return value is None or value > 0


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
        (not _positive(plan.workers), "workers must be at least 1"),
        (any(backend.weight <= 0 for backend in plan.backends), "the weight of a backend must be above 0"),
        (plan.max_in_flight < 1, "max_in_flight must be at least 1"),
        (plan.max_rate_rps is not None and plan.max_rate_rps <= 0, "max_rate must be above 0"),
        (not _in_range(plan.workload.input_tokens), f"input_tokens must be from 1 to {TOKENS_MAX}"),
        (not _in_range(plan.workload.output_tokens), f"output_tokens must be from 1 to {TOKENS_MAX}"),
        (
            plan.metrics_url is not None and not plan.metrics_url.startswith(("http://", "https://")),
            f"metrics_url is {plan.metrics_url!r}; it must begin with http:// or https://",
        ),
        (
            any("@" in urlsplit(url).netloc for url in (plan.url, *(backend.url for backend in plan.backends))),
            "the URL holds a user or key, which would end up in logs; use --api-key-env or --api-key-file instead",
        ),
        (bool(plan.api_key_env and plan.api_key_file), "give api_key_env or api_key_file, not both"),
    ]
    for i, stage in enumerate(plan.stages):
        problems.append((stage.duration_s <= 0, f"stages[{i}].duration must be above 0"))
        if isinstance(stage, OpenStage):
            problems.append((stage.rate_rps <= 0, f"stages[{i}].rate is {stage.rate_rps}; a rate must be above 0"))
        else:
            inside = 1 <= stage.concurrency <= MAX_CONCURRENCY
            problems.append((not inside, f"stages[{i}].concurrency must be from 1 to {MAX_CONCURRENCY}"))
            problems.append((stage.think_s < 0, f"stages[{i}].think must not be negative"))
    for wrong, message in problems:
        if wrong:
            raise UsageError(f"{where}: {message}")
    return plan
