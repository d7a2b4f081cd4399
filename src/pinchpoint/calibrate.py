"""What this host's load processes can carry, found out before a run instead of from spoilt numbers after it.

`calibrate` measures against a server that only sends tokens on time and keeps the result for this host; `quick_limits`
takes that result, or estimates in a tenth of a second; `check_plan` holds what a plan asks for against it.

Costs are CPU time of the load process alone, so it matters little that the server shares the cores. Delays are what
they were: on a busy host they are worse, and that is the answer for a busy host.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pinchpoint import __version__
from pinchpoint.cgroup import usable_cores
from pinchpoint.errors import PinchpointError, UsageError
from pinchpoint.load.health import local_ports
from pinchpoint.load.pool import RESERVED_FILES, raise_file_limit
from pinchpoint.load.trial import (
    NullTarget,
    StampTarget,
    Trial,
    burst_costs,
    null_service,
    run_trial,
    timer_lateness_s,
)
from pinchpoint.plan import build_plan
from pinchpoint.rundir import write_atomically
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.units import format_count, format_duration, format_ratio
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.content import ContentWriter
from pinchpoint.workload.tokens import estimated

DEFAULT_BUDGET_S = 20.0
MIN_BUDGET_S = 4.0
BUSY_MAX_RATIO = 0.8
"""A loop busier than this makes requests wait for it: M/D/1 has a mean wait of two service times there."""
ESTIMATE_BUSY_MAX_RATIO = 1.0
"""An estimate may be off by a quarter, so only what is surely too much is refused on its word."""
WAKE_UP_FACTOR = 1.5
"""Events that come alone pay for a wake-up each; in the short burst twenty share one."""
QUICK_TIMERS = 30
QUICK_PERIOD_S = 0.001
TIMERS = 200
TIMER_PERIOD_S = 0.002
PROMPT_SAMPLE_TOKENS = 1000
PROMPT_SAMPLES = 20
GAP_MS = 10.0
"""Of the streams: 100 tokens per second and user, a quick engine."""
STREAM_TOKENS = 100
MODERATE_TOKENS_PER_S = 2_000.0
HIGH_BUSY_RATIO = 0.35
"""Load of the second timing trial, whose client decodes every event and is thus busier than this."""
HIGH_TOKENS_PER_S_MAX = 30_000.0
"""The null server is one process as well, and its own lateness must stay out of the picture."""
TIMER_LATE_MAX_S = 0.005
TIME_WAIT_S = 60.0
"""How long Linux holds back the port of a closed connection (TCP_TIMEWAIT_LEN)."""
CALIBRATE_SCHEMA = "pinchpoint.calibrate/1"
MEDIAN, TAIL = 50, 99

Progress = Callable[[str], None]


class HostLimits(msgspec.Struct, frozen=True):
    """What one load process of this host can do, and what the host allows. None: not measured (a quick estimate).

    Pairs are (p50, p99) in seconds. Arrival errors are the kernel's stamp minus the instant at which the server sent.
    """

    source: str
    """calibrated or estimated"""
    key: str
    """The host, interpreter and version the costs belong to."""
    measured_wall: str
    """ISO 8601, UTC."""
    cores: float
    """That the load processes may use: affinity, and quota of the control group."""
    connections_max: int
    """Per load process: hard limit of open files."""
    ports: int | None
    """Local ports towards one address of the service."""
    ports_reused: bool | None
    """Whether a port is used again while its last connection is in TIME-WAIT (tcp_tw_reuse)."""
    cpu_s_per_token: float
    """A streamed event of one token."""
    cpu_s_per_request: float
    """A streamed request without its tokens, without writing its prompt and without storing its record."""
    cpu_s_per_prompt_token: float
    timer_late_s: tuple[float, float]
    cpu_s_per_plain_request: float | None = None
    peak_tokens_per_s: float | None = None
    """Received when the server sends as fast as it can, most of them several to a read."""
    peak_requests_per_s: float | None = None
    """Not streamed, one after the other on kept connections."""
    moderate_tokens_per_s: float | None = None
    moderate_arrival_error_s: tuple[float, float] | None = None
    moderate_coalesced_ratio: float | None = None
    high_tokens_per_s: float | None = None
    high_arrival_error_s: tuple[float, float] | None = None
    high_coalesced_ratio: float | None = None
    send_lag_100_rps_s: tuple[float, float] | None = None
    send_lag_1000_rps_s: tuple[float, float] | None = None

    @property
    def tokens_per_s(self) -> float:
        """Streamed tokens per second that one process takes and still has time to be punctual."""
        return BUSY_MAX_RATIO / self.cpu_s_per_token

    @property
    def requests_per_s(self) -> float:
        """Streamed requests per second, their tokens and prompts not counted, that one process sends punctually."""
        return BUSY_MAX_RATIO / self.cpu_s_per_request


@dataclass(frozen=True)
class Demand:
    """What a plan asks of the load processes at its peak. Tokens are output tokens in streams (0 without streaming).

    concurrency: connections open at once, of users or opened ahead. new_connections_rps: connections opened per second
    when none is kept. addresses: of the service, as its ports count for each alone.
    """

    rate_rps: float
    concurrency: int
    tokens_per_s: float
    workers: int = 1
    prompt_tokens: float = 0.0
    """Per request, mean."""
    new_connections_rps: float = 0.0
    addresses: int = 1


def check_plan(limits: HostLimits, demand: Demand) -> list[str]:
    """One sentence for each thing that this host cannot do of what is asked; empty when it can do all."""
    problems: list[str] = []
    ceiling = BUSY_MAX_RATIO if limits.source == "calibrated" else ESTIMATE_BUSY_MAX_RATIO
    usable = min(float(demand.workers), limits.cores)
    needed = (
        demand.tokens_per_s * limits.cpu_s_per_token
        + demand.rate_rps * (limits.cpu_s_per_request + demand.prompt_tokens * limits.cpu_s_per_prompt_token)
    )  # fmt: skip
    if needed > ceiling * usable:
        problems.append(
            f"{format_count(demand.tokens_per_s)} tokens/s and {demand.rate_rps:.4g} req/s need {needed:.2f} cores of "
            f"load processes, and {demand.workers} process(es) on {limits.cores:.3g} usable core(s) give "
            f"{ceiling * usable:.2f} ({'measured' if limits.source == 'calibrated' else 'estimated'}); "
            "lower the rate, or use more --workers on a host with more cores"
        )
    connections = demand.workers * limits.connections_max
    if demand.concurrency > connections:
        problems.append(
            f"{demand.concurrency} connections are to be open at once, and this host allows {connections}; "
            "raise the hard limit of open files (ulimit -Hn)"
        )
    if limits.ports is not None and demand.concurrency > limits.ports * demand.addresses:
        problems.append(
            f"{demand.concurrency} connections need as many local ports, and there are {limits.ports} towards each of "
            f"{demand.addresses} address(es); widen net.ipv4.ip_local_port_range"
        )
    waiting = demand.new_connections_rps * TIME_WAIT_S
    if limits.ports is not None and not limits.ports_reused and waiting > limits.ports * demand.addresses:
        problems.append(
            f"{demand.new_connections_rps:.4g} new connections/s leave {waiting:.0f} local ports waiting to be free "
            f"again, and there are {limits.ports}; set net.ipv4.tcp_tw_reuse=1, or keep connections"
        )
    if demand.rate_rps and limits.timer_late_s[0] > TIMER_LATE_MAX_S:
        problems.append(
            f"half of all timers of this host fire more than {format_duration(limits.timer_late_s[0])} late, and sends "
            "would be as late; end other work on it, or use another machine"
        )
    return problems


def calibrate(budget_s: float = DEFAULT_BUDGET_S, *, on_progress: Progress = lambda _: None) -> HostLimits:
    """Measures this host for about `budget_s` and keeps the result for `quick_limits` (see `cache_path`).

    Raises UsageError for a budget below MIN_BUDGET_S, PinchpointError when no server can be started on 127.0.0.1 or
    next to nothing came back from it.
    KeyboardInterrupt ends it at once; nothing is kept then.
    """
    if budget_s < MIN_BUDGET_S:
        raise UsageError(f"a calibration of {budget_s:g} s shows nothing; give a --budget of {MIN_BUDGET_S:g}s or more")
    unit_s = budget_s / DEFAULT_BUDGET_S
    with null_service() as url:
        on_progress("cost of a request and of a token")
        cost = _costs(url, unit_s)
        on_progress("requests that are not streamed")
        plain = run_trial(url, _target(stream=False), duration_s=1.5 * unit_s, tokens=1, concurrency=32)
        on_progress("true instants at a moderate load")
        moderate = _timing(url, MODERATE_TOKENS_PER_S, 3 * unit_s)
        on_progress("true instants at a high load")
        high_tokens_per_s = min(HIGH_BUSY_RATIO / cost.per_token_s, HIGH_TOKENS_PER_S_MAX)
        high = _timing(url, high_tokens_per_s, 3 * unit_s)
        on_progress("punctual sends")
        sends = [
            run_trial(url, _target(stream=True), duration_s=2 * unit_s, tokens=1, rate_rps=rate_rps)
            for rate_rps in (100.0, 1000.0)
        ]
        on_progress("tokens as fast as they come")
        peak = run_trial(url, _target(stream=True), duration_s=1.5 * unit_s, tokens=1000, concurrency=16)
    on_progress("timers")
    limits = msgspec.structs.replace(
        _host_facts(),
        source="calibrated",
        cpu_s_per_token=cost.per_token_s,
        cpu_s_per_request=cost.per_request_s,
        cpu_s_per_prompt_token=_prompt_cost_s(),
        timer_late_s=_pair(timer_lateness_s(round(TIMERS * min(unit_s, 1.0)), TIMER_PERIOD_S)),
        cpu_s_per_plain_request=plain.cpu_s / max(plain.requests, 1),
        peak_tokens_per_s=peak.tokens_per_s,
        peak_requests_per_s=plain.requests / plain.wall_s,
        moderate_tokens_per_s=moderate.tokens_per_s,
        moderate_arrival_error_s=_pair(moderate.arrival_error_s),
        moderate_coalesced_ratio=moderate.coalesced_ratio,
        high_tokens_per_s=high.tokens_per_s,
        high_arrival_error_s=_pair(high.arrival_error_s),
        high_coalesced_ratio=high.coalesced_ratio,
        send_lag_100_rps_s=_pair(sends[0].send_lag_s),
        send_lag_1000_rps_s=_pair(sends[1].send_lag_s),
    )
    keep(limits)
    return limits


def quick_limits(*, cached: bool = True) -> HostLimits:
    """The kept calibration when it is of this host and version, else an estimate that takes about a tenth of a second.

    What the host allows (cores, files, ports) is always read anew. cached=False: estimate in any case.
    """
    facts = _host_facts()
    kept = _kept(facts.key) if cached else None
    if kept is not None:
        return msgspec.structs.replace(
            kept,
            cores=facts.cores,
            connections_max=facts.connections_max,
            ports=facts.ports,
            ports_reused=facts.ports_reused,
        )
    burst = burst_costs()
    return msgspec.structs.replace(
        facts,
        cpu_s_per_token=burst.per_token_s * WAKE_UP_FACTOR,
        cpu_s_per_request=burst.per_request_s * WAKE_UP_FACTOR,
        cpu_s_per_prompt_token=_prompt_cost_s(),
        timer_late_s=_pair(timer_lateness_s(QUICK_TIMERS, QUICK_PERIOD_S)),
    )


def cache_path() -> Path:
    """$XDG_CACHE_HOME/pinchpoint/calibration.json, else the same below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "pinchpoint" / "calibration.json"


def render_json(limits: HostLimits) -> str:
    """All fields, and the two derived ones, as one JSON document with a final newline; `schema` is the first field."""
    document = {"schema": CALIBRATE_SCHEMA, **msgspec.to_builtins(limits)}
    document |= {"tokens_per_s": limits.tokens_per_s, "requests_per_s": limits.requests_per_s}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def render_text(limits: HostLimits) -> str:
    """A table for the terminal: what one load process of this host can do, then what the host allows."""
    how = "measured" if limits.source == "calibrated" else "estimated; measure with: pinchpoint calibrate"
    token = format_duration(limits.cpu_s_per_token)
    rows = [
        ("streamed tokens", f"{format_count(limits.tokens_per_s)}/s", f"{token} CPU each"),
        (
            "streamed requests",
            f"{format_count(limits.requests_per_s)}/s",
            f"{format_duration(limits.cpu_s_per_request)} CPU each, beside their tokens",
        ),
        ("prompts", "", f"{format_duration(limits.cpu_s_per_prompt_token * 1000)} CPU for each 1,000 tokens"),
    ]  # fmt: skip
    if limits.peak_requests_per_s is not None:
        rows.append(
            (
                "requests not streamed",
                f"{format_count(limits.peak_requests_per_s)}/s",
                f"reached, {format_duration(limits.cpu_s_per_plain_request)} CPU each",
            )
        )
    if limits.peak_tokens_per_s is not None:
        rows.append(
            ("tokens at full speed", f"{format_count(limits.peak_tokens_per_s)}/s", "reached, instants blurred")
        )
    for name, tokens_per_s, error_s, coalesced in (
        ("moderate", limits.moderate_tokens_per_s, limits.moderate_arrival_error_s, limits.moderate_coalesced_ratio),
        ("high", limits.high_tokens_per_s, limits.high_arrival_error_s, limits.high_coalesced_ratio),
    ):
        if error_s is not None:
            detail = f"at {format_count(tokens_per_s)} tokens/s ({name}); {format_ratio(coalesced)} share a read"
            rows.append(("error of an arrival", _spread(error_s), detail))
    for rate, lag_s in (("100", limits.send_lag_100_rps_s), ("1,000", limits.send_lag_1000_rps_s)):
        if lag_s is not None:
            rows.append(("lateness of a send", _spread(lag_s), f"at {rate} req/s"))
    rows.append(("lateness of a timer", _spread(limits.timer_late_s), ""))
    allowed = [
        ("cores", f"{limits.cores:.3g}", "for load processes: affinity and quota"),
        ("connections", format_count(limits.connections_max), "in each load process (ulimit -Hn)"),
        ("local ports", format_count(limits.ports), _ports_detail(limits)),
    ]
    widths = [max(len(row[i]) for row in (*rows, *allowed)) for i in range(2)]

    def lines(table: list[tuple[str, str, str]]) -> list[str]:
        return [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {detail}".rstrip() for name, value, detail in table]

    return "\n".join(
        [f"One load process of this host can do ({how}):", *lines(rows), "This host allows:", *lines(allowed), ""]
    )


def _ports_detail(limits: HostLimits) -> str:
    if limits.ports_reused is None:
        return "towards one address of the service"
    used_again = "used again at once" if limits.ports_reused else f"used again after {TIME_WAIT_S:g} s"
    return f"towards one address of the service, {used_again}"


def _spread(pair_s: tuple[float, float]) -> str:
    return f"{format_duration(pair_s[0])} (p99 {format_duration(pair_s[1])})"


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Costs:
    per_token_s: float
    per_request_s: float


def _target(*, stream: bool, first_ms: float = 0.0, gap_ms: float = 0.0) -> NullTarget:
    return NullTarget(stream=stream, first_ms=first_ms, gap_ms=gap_ms)


def _costs(url: str, unit_s: float) -> _Costs:
    """From two loads, one of many short answers and one of few long ones: CPU = requests a + tokens b, solved for both.

    A first short load is thrown away; it warms the interpreter and the null server.
    """
    short = _target(stream=True, first_ms=1.0, gap_ms=2.0)
    run_trial(url, short, duration_s=0.5 * unit_s, tokens=2, concurrency=50)
    many = run_trial(url, short, duration_s=1.5 * unit_s, tokens=2, concurrency=25)
    long = _target(stream=True, first_ms=5.0, gap_ms=GAP_MS)
    few = run_trial(url, long, duration_s=3 * unit_s, tokens=STREAM_TOKENS, concurrency=100)
    counts = np.array([[many.requests, many.tokens], [few.requests, few.tokens]], float)
    try:
        per_request_s, per_token_s = np.linalg.solve(counts, np.array([many.cpu_s, few.cpu_s]))
    except np.linalg.LinAlgError:
        raise PinchpointError(
            f"{few.requests} long answers brought {few.tokens} tokens in {few.wall_s:.1f} s, too few to tell what one "
            "costs; this host is overloaded: end other work on it, or give a longer --budget"
        ) from None
    floor_s = 1e-7  # a negative cost can only be noise
    return _Costs(max(float(per_token_s), floor_s), max(float(per_request_s), floor_s))


def _timing(url: str, tokens_per_s: float, duration_s: float) -> Trial:
    users = max(1, round(tokens_per_s * GAP_MS / 1000))
    target = StampTarget(first_ms=5.0, gap_ms=GAP_MS)
    return run_trial(url, target, duration_s=duration_s, tokens=STREAM_TOKENS, concurrency=users)


def _prompt_cost_s() -> float:
    traffic = resolve(build_plan({"url": "http://127.0.0.1", "seed": 0}), None)
    writer = ContentWriter(0, traffic, estimated(None, None))
    row = ScheduledRequest(0, 0, 0, 0, 0, 0, PROMPT_SAMPLE_TOKENS, PROMPT_SAMPLE_TOKENS)
    writer.write(row)
    used_s = time.process_time()
    for number in range(PROMPT_SAMPLES):
        writer.write(msgspec.structs.replace(row, request_id=number))
    return (time.process_time() - used_s) / (PROMPT_SAMPLES * PROMPT_SAMPLE_TOKENS)


def _pair(values_s: np.ndarray) -> tuple[float, float]:
    if not len(values_s):
        return float("nan"), float("nan")
    median_s, tail_s = np.percentile(values_s, (MEDIAN, TAIL))
    return float(median_s), float(tail_s)


# -- the host --------------------------------------------------------------------------------------------------------


def _host_facts() -> HostLimits:
    """What can be read; the costs are still to be filled in."""
    ports = local_ports()
    return HostLimits(
        source="estimated",
        key=_host_key(),
        measured_wall=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        cores=usable_cores(),
        connections_max=max(raise_file_limit() - RESERVED_FILES, 0),
        ports=ports,
        ports_reused=_ports_reused(),
        cpu_s_per_token=0.0,
        cpu_s_per_request=0.0,
        cpu_s_per_prompt_token=0.0,
        timer_late_s=(0.0, 0.0),
    )


def _host_key() -> str:
    """A restart may change the kernel, the cores or the clock source, so a calibration lasts until the next one."""
    boot = _read_text(Path("/proc/sys/kernel/random/boot_id")) or platform.node()
    lines = (_read_text(Path("/proc/cpuinfo")) or "").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return "|".join((boot, cpu, f"{usable_cores():g} cores", platform.python_version(), __version__))


def _ports_reused() -> bool | None:
    """tcp_tw_reuse: 0 never, 1 always, 2 on loopback only, which says nothing of a service elsewhere."""
    text = _read_text(Path("/proc/sys/net/ipv4/tcp_tw_reuse"))
    return None if text is None else text == "1"


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _kept(key: str) -> HostLimits | None:
    try:
        limits = msgspec.json.decode(cache_path().read_bytes(), type=HostLimits)
    except (OSError, msgspec.MsgspecError):  # none, or one of another version
        return None
    return limits if limits.key == key and limits.source == "calibrated" else None


def keep(limits: HostLimits) -> None:
    """Keeps a calibration for `quick_limits`. A cache that cannot be written only costs another calibration."""
    try:
        cache_path().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache_path(), msgspec.json.encode(limits))
    except OSError:
        return
