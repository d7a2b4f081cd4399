"""From a plan to load processes that are ready: keys, headers, endpoints, how many processes and where they run.

Nothing here sends a request. Secrets are read here and go into WorkerConfig only, which travels through a pipe.
"""

import hashlib
import ipaddress
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from pinchpoint.calibrate import Demand, HostLimits, check_plan, quick_limits
from pinchpoint.clock import monotonic_ns
from pinchpoint.errors import PinchpointError, UnsupportedMeasurementError, UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.load.fleet import Fleet, usable_cpus
from pinchpoint.load.messages import Content, Habits, Timeouts, WorkerConfig
from pinchpoint.load.wire import Endpoint, resolve
from pinchpoint.model import TargetFacts
from pinchpoint.plan import (
    ClosedStage,
    OnOffStage,
    OpenStage,
    Plan,
    RampStage,
    SessionsStage,
    SineStage,
    SpikeStage,
    StageSpec,
    StepsStage,
)
from pinchpoint.recorder import Recorder, new_manifest
from pinchpoint.rundir import RunWriter
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import TargetSpec
from pinchpoint.traceids import salt_of
from pinchpoint.workload.classes import Traffic
from pinchpoint.workload.content import ContentWriter
from pinchpoint.workload.tokens import TokenTable
from pinchpoint.workload.trace import forest

RUNS_DIRECTORY = "pinchpoint-runs"
DEFAULT_API = "chat"
DEFAULT_MODEL = "default"
"""Named when nobody says which one: servers of one model take any name."""
PAIRING = frozenset({"rerank", "score"})
"""Targets that read the query once with each document."""
TEMPLATED = frozenset({"chat", "responses", "messages", "ollama", "ollama-generate"})
"""Targets whose services put the model's chat template around prompts."""
DEFAULT_KEY_ENV = "PINCHPOINT_API_KEY"
SECRET_MIN_CHARS = 8
"""Shorter secrets are not searched for in error texts: replacing "abc" everywhere would garble them."""
SECRET_HEADERS = ("authorization", "cookie", "api-key", "apikey", "token", "secret", "password", "credential")
"""Parts of header names whose values must not be written down."""
KEY_SHAPES = re.compile(
    r"^(?:(?:sk-|hf_|gh[a-z]_|xox[a-z]-|AKIA)[\w-]{6}|eyJ[\w-]+\.|(?i:bearer|basic)\s)"
    r"|(?<!\w)(?=\w*\d)(?=\w*[A-Za-z])\w{32}",
    re.ASCII,
)
"""Values that are keys by the look of them: the beginnings that OpenAI, Hugging Face, GitHub, Slack, AWS and JSON Web
Tokens document, credentials with their scheme (RFC 9110, section 11.4), and 32 letters and digits in one piece, the 128
bits in hexadecimal that keys have at least. A locale (sk-SK) and a UUID with its hyphens are none."""
TRACEPARENT = "traceparent"
FROM_ENVIRONMENT = "env:"
FORBIDDEN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
"""Headers that the engine itself must set, or the answers cannot be read."""


class RunOutcome:
    """Where the run lies, and the error that ended it early, if one did."""

    def __init__(self, path: Path, error: PinchpointError | None) -> None:
        self.path = path
        self.error = error


@dataclass(frozen=True)
class Access:
    """How the service is reached. Holds secrets: never stored, never printed."""

    endpoints: tuple[Endpoint, ...]
    headers: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]

    @property
    def local(self) -> bool:
        """Whether the service runs on this host, as far as its addresses tell."""
        return any(_is_own(endpoint) for endpoint in self.endpoints)


def read_api_key(plan: Plan) -> str | None:
    """The key from the variable or file that the plan names, else from PINCHPOINT_API_KEY. Raises UsageError."""
    if plan.api_key_file is not None:
        try:
            key = Path(plan.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "not text"
            raise UsageError(f"cannot read the API key from {plan.api_key_file}: {cause}") from None
        if not key or not key.isprintable() or not key.isascii():
            raise UsageError(f"{plan.api_key_file} holds no usable API key; it must be one line of ASCII text")
        return key
    if plan.api_key_env is not None:
        return _from_environment(plan.api_key_env, "API key")
    return os.environ.get(DEFAULT_KEY_ENV, "").strip() or None


def open_access(plan: Plan, api_key: str | None) -> Access:
    """Resolves every base URL. Raises UsageError or TargetError, see wire.resolve and fetch.tls_context."""
    headers, secrets = _headers(plan, api_key)
    if plan.ca_file is not None:
        tls_context(plan.ca_file)  # also where no URL is https: a path that is wrong is told, and not passed over
    transport = plan.transport
    proxy = transport.proxy
    if proxy is not None and proxy.startswith(FROM_ENVIRONMENT):
        proxy = _from_environment(proxy.removeprefix(FROM_ENVIRONMENT), "proxy")
        secrets.append(proxy)
    elif proxy is not None and "@" in proxy:
        raise UsageError("the proxy's URL holds a password, which would be stored; give it as env:NAME")
    weights = [(plan.url, 1.0), *((backend.url, backend.weight) for backend in plan.backends)]
    endpoints = tuple(
        resolve(url, proxy=proxy, unix_socket=transport.unix_socket, weight=weight) for url, weight in weights
    )
    return Access(endpoints, tuple(headers), tuple(secret for secret in secrets if len(secret) >= SECRET_MIN_CHARS))


def _headers(plan: Plan, api_key: str | None) -> tuple[list[tuple[str, str]], list[str]]:
    headers: list[tuple[str, str]] = [("Authorization", f"Bearer {api_key}")] if api_key else []
    secrets = [api_key] if api_key else []
    if plan.transport.session_header is not None:
        _check_name(plan.transport.session_header)
    for name, value in plan.transport.headers.items():
        _check_name(name)
        if plan.telemetry.traced and name.lower() == TRACEPARENT:
            raise UsageError(f"every request gets a {TRACEPARENT} of its own; leave the header out, or the traces")
        if value.startswith(FROM_ENVIRONMENT):
            value = _from_environment(value.removeprefix(FROM_ENVIRONMENT), f"header {name}")
            secrets.append(value)
        elif any(part in name.lower() for part in SECRET_HEADERS) or KEY_SHAPES.search(value.strip()):
            raise UsageError(f"the header {name} may hold a secret, which would be stored; give it as env:VARIABLE")
        if not value.isprintable() or not value.isascii():
            raise UsageError(f"the value of header {name} cannot stand in a header; it must be one line of ASCII text")
        headers = [header for header in headers if header[0].lower() != name.lower()]  # what is given comes first
        headers.append((name, value))
    return headers, secrets


def _check_name(name: str) -> None:
    if not name or not all(c.isalnum() or c in "-_.!#$%&'*+^`|~" for c in name) or not name.isascii():
        raise UsageError(f"{name!r} is not the name of an HTTP header")
    if name.lower() in FORBIDDEN_HEADERS:
        raise UsageError(f"the header {name} is set by the load engine itself; leave it out")


def _from_environment(name: str, what: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value or not value.isprintable() or not value.isascii():
        raise UsageError(f"the environment variable {name} holds no usable {what}; export it first")
    return value


def _is_own(endpoint: Endpoint) -> bool:
    if endpoint.family == getattr(socket, "AF_UNIX", None):
        return True
    try:
        return ipaddress.ip_address(str(endpoint.sockaddr[0]).partition("%")[0]).is_loopback
    except ValueError:
        return False


def worker_count(plan: Plan, *, shared_host: bool) -> int:
    """As many as the plan says; else one per usable core, half of them when the service needs cores of this host."""
    if plan.workers is not None:
        return plan.workers
    cores = len(usable_cpus())
    return max(1, cores // 2) if shared_host else cores


def worker_configs(
    plan: Plan,
    access: Access,
    run_path: Path,
    targets: tuple[TargetSpec, ...],
    content: Content,
    *,
    workers: int,
    shared_host: bool,
    warm_connections: int,
    run_id: str = "",
) -> list[WorkerConfig]:
    """targets: by class_id. warm_connections: of all workers together. A worker has a core of its own unless the
    service runs here, too. run_id: what the traceparents of the requests are made of, where the plan wants them."""
    cpus = usable_cpus()
    pinned = not shared_host and 1 < workers <= len(cpus)
    habits = Habits(
        timeouts=Timeouts(plan.connect_timeout_s, plan.first_token_timeout_s, plan.token_timeout_s, plan.timeout_s),
        headers=access.headers,
        session_header=plan.transport.session_header,
        new_connections=plan.transport.new_connections,
        warm_connections=-(-warm_connections // workers),
        retries=plan.retries,
        trace_salt=salt_of(run_id) if plan.telemetry.traced else None,
    )
    return [
        WorkerConfig(
            index=index,
            workers=workers,
            endpoints=access.endpoints,
            run_path=str(run_path),
            targets=targets,
            habits=habits,
            content=content,
            secrets=access.secrets,
            ca_file=plan.ca_file,
            cpu=cpus[index] if pinned else None,
            realtime=plan.realtime,
        )
        for index in range(workers)
    ]


def begin_run(
    plan: Plan, facts: TargetFacts, out: Path | None, *, command: Sequence[str], plan_file: Path | None
) -> RunWriter:
    """Makes the run directory: `out`, else one named after instant and plan. Raises UsageError when it cannot."""
    started_s = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(started_s))
    digest = hashlib.sha256(f"{plan.url}{plan.seed}{started_s}".encode()).hexdigest()[:6]
    run_id = f"{stamp}-{plan.name}-{digest}"
    writer = RunWriter(
        out or Path(RUNS_DIRECTORY) / run_id,
        new_manifest(
            plan,
            facts,
            run_id,
            t0_ns=monotonic_ns(),
            started_wall=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
            virtual=False,
            command=command,
        ),
    )
    if plan_file is not None:
        (writer.path / "plan.toml").write_bytes(plan_file.read_bytes())
    return writer


def check_writable(out: Path | None) -> None:
    """Before any load: the directory that will hold the run can be written. Raises UsageError."""
    if out is not None and out.exists():
        raise UsageError(f"{out} already exists; give another --out or remove it")
    parent = (out.parent if out else Path(RUNS_DIRECTORY)).absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write into {parent}; give a writable directory with --out")


def tell_hellos(fleet: Fleet, recorder: Recorder) -> None:
    """Where and how the load processes run, for the record."""
    for hello in fleet.hellos.values():
        recorder.on_event("worker", worker=hello.worker, pid=hello.pid, cpu=hello.cpu, realtime=hello.realtime)
        for note in hello.notes:
            recorder.on_event("client", message=note)


def tell_lost(fleet: Fleet, recorder: Recorder) -> None:
    for worker, sentence in zip(fleet.lost_workers, fleet.lost, strict=True):
        recorder.on_event("worker-lost", worker=worker, message=sentence)


def target_specs(
    plan: Plan, facts: TargetFacts, traffic: Traffic, *, stream: bool, usage: bool
) -> tuple[TargetSpec, ...]:
    """By class_id; a single one where all classes have the same. Each is made once, so that what is wrong with it is
    told before any load. Raises UsageError."""
    assert facts.model is not None
    own = plan.api or facts.api_name or facts.api or DEFAULT_API
    specs = []
    for one in traffic.classes:
        api = one.api or own
        options = {**facts.api_options, **plan.api_options} if api == own else {}
        specs.append(TargetSpec(api, facts.model, facts.engine, stream, usage, options=options))
    distinct = list(dict.fromkeys(msgspec.json.encode(spec) for spec in specs))
    for spec in specs:
        make_target(spec)
    return tuple(specs) if len(distinct) > 1 else tuple(specs[:1])


def with_key_headers(access: Access, specs: Sequence[TargetSpec], api_key: str | None) -> Access:
    """The API key also in the headers in which targets want it, unless the user gave such a header."""
    given = {name.lower() for name, _ in access.headers}
    wanted = dict.fromkeys(make_target(spec).key_header for spec in specs)
    more = tuple((name, api_key) for name in wanted if name and api_key and name.lower() not in given)
    return replace(access, headers=(*access.headers, *more))


def fitted(traffic: Traffic, specs: Sequence[TargetSpec]) -> Traffic:
    """Classes as their targets can carry them: nothing is generated where a target does not generate, and no chat
    template adds to prompts where there is none."""
    targets = [make_target(spec) for spec in specs]
    classes = []
    for i, one in enumerate(traffic.classes):
        target = targets[i if len(targets) > 1 else 0]
        templated, generates = target.name in TEMPLATED, target.generates
        if generates and one.output_tokens is None and one.joint is None:
            raise UsageError(
                f"class {one.name}: {target.name} generates, and no length of answers is given; give output_tokens"
            )
        one = msgspec.structs.replace(one, paired=target.name in PAIRING)
        turns = one.turns if generates else "1"
        classes.append(msgspec.structs.replace(one, templated=templated, generates=generates, turns=turns))
    return msgspec.structs.replace(traffic, classes=tuple(classes))


def content_of(plan: Plan, traffic: Traffic, table: TokenTable) -> ContentWriter:
    """What writes the prompts of a run."""
    tree, _ = forest(plan.stages)
    return ContentWriter(plan.seed, traffic, table, tree, roles=tuple(one.templated for one in traffic.classes))


def check_host(
    plan: Plan, traffic: Traffic, workers: int, addresses: int, *, force: bool
) -> tuple[HostLimits, list[str]]:
    """What this host can do (calibrated, else estimated in a tenth of a second), and what of the plan it cannot.

    A search finds the limit of the client by itself, so only given stages are held against it. Raises
    UnsupportedMeasurementError for a plan beyond the limits, unless forced.
    """
    limits = quick_limits()
    problems = check_plan(limits, _demand(plan, traffic, workers, addresses)) if plan.stages else []
    if problems and not force:
        raise UnsupportedMeasurementError(f"this host cannot carry the plan: {problems[0]} (or --force it)")
    return limits, problems


def tell_host(recorder: Recorder, limits: HostLimits, problems: list[str], access: Access) -> None:
    for problem in problems:
        recorder.on_event("beyond-limits", message=problem)
    recorder.on_event("host-limits", limits=msgspec.to_builtins(limits))
    recorder.on_event("dns", seconds=[endpoint.dns_s for endpoint in access.endpoints])


def users_of(spec: StageSpec) -> int:
    return max(spec.concurrency, spec.to_concurrency or 0) if isinstance(spec, ClosedStage) else 0


def peak_rps(spec: StageSpec) -> float:
    """Highest offered rate of an open-loop stage; 0 where it depends on answers or on a trace."""
    match spec:
        case OpenStage() | OnOffStage() | SessionsStage():
            return spec.rate_rps
        case RampStage():
            return max(spec.from_rps, spec.to_rps)
        case StepsStage():
            return max(spec.rates_rps)
        case SpikeStage():
            return max(spec.base_rps, spec.peak_rps)
        case SineStage():
            return spec.mean_rps * (1 + spec.amplitude_ratio)
        case _:
            return 0.0


def _demand(plan: Plan, traffic: Traffic, workers: int, addresses: int) -> Demand:
    """The peak of all stages. What a closed loop sends depends on the service, so there only its users count."""

    def tokens_per_s(spec: StageSpec) -> float:
        return peak_rps(spec) * traffic.mean_output_tokens(traffic.mix(spec.workload))

    rate_rps = max(map(peak_rps, plan.stages))
    ahead = 0 if plan.transport.new_connections else plan.transport.warm_connections or 0
    return Demand(
        rate_rps=rate_rps,
        concurrency=max(ahead, *map(users_of, plan.stages)),
        tokens_per_s=max(map(tokens_per_s, plan.stages)) if plan.stream else 0.0,
        workers=workers,
        prompt_tokens=max(map(traffic.mean_input_tokens, traffic.mixes.values())),
        new_connections_rps=rate_rps if plan.transport.new_connections else 0.0,
        addresses=addresses,
    )
