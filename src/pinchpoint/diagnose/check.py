"""Is the measurement sound? Asked before anything is said about the service.

Each check looks at one way in which the load generator, its host or the workload could have produced the numbers, and
returns one ValidityReason, also when all is well and when it could not look. One `invalid` makes the run INVALID, one
`suspect` makes it SUSPECT; `unknown` is named and changes nothing.

Latency counts from the scheduled instant, so a late send shows as latency of the service: that is what most of this
page guards against.
"""

import ipaddress
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import numpy as np

from pinchpoint.diagnose.check_client import (
    ACCUSING_CHECKS,
    CLIENT_CHECKS,
    LAG_SUSPECT_RATIO,
    lag_limits_s,
    send_lags_s,
)
from pinchpoint.diagnose.check_workload import WORKLOAD_CHECKS
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.stage_features import StageFeatures
from pinchpoint.model import Validity, ValidityReason
from pinchpoint.slo import WITHDRAWN_STATUSES

LOOP_BUSY_SUSPECT_RATIO = 0.8
LOOP_BUSY_INVALID_RATIO = 0.95
"""M/D/1: mean wait is rho / (2 (1 - rho)) service times, 2 at 0.8 and about 10 at 0.95."""
WORKER_CORES_SUSPECT = 0.9
DROPPED_INVALID_RATIO = 0.01
ACHIEVED_TOLERANCE_RATIO = 0.05
ACHIEVED_INVALID_RATIO = 0.2
POISSON_SIGMAS = 3.0
SHARED_HOST_CPU_RATIO = 0.95
GAP_SUSPECT_RATIO = 0.25
GAP_PERIODS = 5.0
GAP_FLOOR_S = 3.0
QUANTILE_SHOWN = 0.99


def check(features: Features) -> tuple[Validity, tuple[ValidityReason, ...]]:
    """All checks, in order, and what they add up to. An empty run is INVALID with one reason."""
    if features.view.requests.count == 0 or not features.tested:
        reason = ValidityReason(
            "measured", "invalid", "no request of a load stage was recorded, so there is nothing to judge"
        )
        return "INVALID", (reason, *_if_aborted(features))
    reasons = tuple(look(features) for look in (*CHECKS, *CLIENT_CHECKS, *WORKLOAD_CHECKS))
    levels = {reason.level for reason in reasons}
    validity: Validity = "INVALID" if "invalid" in levels else "SUSPECT" if "suspect" in levels else "VALID"
    return validity, reasons


def generator_reasons(reasons: Sequence[ValidityReason]) -> tuple[ValidityReason, ...]:
    """Reasons of a level that accuses the load generator itself."""
    return tuple(r for r in reasons if r.check in GENERATOR_CHECKS and r.level in ("suspect", "invalid"))


def _if_aborted(features: Features) -> tuple[ValidityReason, ...]:
    reason = completeness(features)
    return (reason,) if reason.level != "ok" else ()


def completeness(features: Features) -> ValidityReason:
    manifest = features.view.manifest
    if manifest.status == "complete":
        return ValidityReason("complete", "ok", "the run went to its end")
    why = manifest.abort_reason or "it was never sealed"
    return ValidityReason("complete", "suspect", f"the run stopped early ({why}); what was to come is missing")


def send_lag(features: Features) -> ValidityReason:
    """p99 of sent minus scheduled, against the tightest latency SLO or the median TTFT."""
    lag_s = send_lags_s(features)
    if not len(lag_s):
        return ValidityReason("send-lag", "unknown", "no request has both a scheduled and a sent instant")
    p99_s = float(np.quantile(lag_s, QUANTILE_SHOWN))
    suspect_s, invalid_s, what = lag_limits_s(features)
    text = f"p99 of {len(lag_s)} sends left {p99_s * 1e3:.1f} ms after their scheduled instant"
    if p99_s > invalid_s:
        level, text = "invalid", f"{text}, over a quarter of {what}: the latencies are partly the generator's own"
    elif p99_s > suspect_s:
        level, text = "suspect", f"{text}, over a tenth of {what}"
    else:
        level = "ok"
    return ValidityReason("send-lag", level, text, p99_s, suspect_s if level != "invalid" else invalid_s, "s")


def loop_busy(features: Features) -> ValidityReason:
    name = "client.loop_busy_ratio"
    busy = _busiest_mean(features, name)
    if busy is None:
        return ValidityReason("loop-busy", "unknown", f"{name} was not recorded")
    text = f"the generator's loop was busy {busy:.0%} of the time in its busiest stage"
    if busy > LOOP_BUSY_INVALID_RATIO:
        text += ": it had no time left to send and to read on time; use a machine with more free cores"
        return ValidityReason("loop-busy", "invalid", text, busy, LOOP_BUSY_INVALID_RATIO, "ratio")
    level = "suspect" if busy > LOOP_BUSY_SUSPECT_RATIO else "ok"
    return ValidityReason("loop-busy", level, text, busy, LOOP_BUSY_SUSPECT_RATIO, "ratio")


def client_cpu(features: Features) -> ValidityReason:
    """Cores that each load process used: by the collector, else as the load processes read themselves."""
    cores = _busiest_mean(features, "client.cpu_cores")
    workers = len(features.view.run.records.column("worker").unique()) or 1
    per_worker = cores / workers if cores is not None else _busiest_mean(features, "client.worker_cpu_cores")
    if per_worker is None:
        return ValidityReason("client-cpu", "unknown", "the CPU use of the load processes was not recorded")
    level = "suspect" if per_worker > WORKER_CORES_SUSPECT else "ok"
    text = f"each of {workers} generator process(es) used {per_worker:.2f} cores in the busiest stage"
    return ValidityReason("client-cpu", level, text, per_worker, WORKER_CORES_SUSPECT, "cores")


def _busiest_mean(features: Features, name: str) -> float | None:
    """Mean reading in the stage where it is highest; None when it was not recorded."""
    values = [features.view.series(name, s.window_s).value for s in features.tested]
    return max((float(v.mean()) for v in values if len(v)), default=None)


def dropped(features: Features) -> ValidityReason:
    r = features.view.requests
    n = int((r.status == "dropped").sum())
    share = n / r.count
    level = "invalid" if share > DROPPED_INVALID_RATIO else "suspect" if n else "ok"
    text = f"{n} of {r.count} requests were never sent because this host could not" if n else "every request was sent"
    return ValidityReason("dropped", level, text, share, DROPPED_INVALID_RATIO, "ratio")


def achieved_rate(features: Features) -> ValidityReason:
    """Requests sent against those the offered rate calls for, per open-loop stage, beyond Poisson noise."""
    worst: tuple[float, float, StageFeatures] | None = None
    r = features.view.requests
    for s in features.tested:
        if s.stage.rate_rps is None:
            continue
        expected = s.stage.rate_rps * max(s.window_s[1] - s.window_s[0], 0.0)
        mask = features.requests_in(s)
        sent = int((mask & (np.isfinite(r.sent_s) | np.isin(r.status.astype(str), WITHDRAWN_STATUSES))).sum())
        if expected <= 0:
            continue
        noise = POISSON_SIGMAS / np.sqrt(expected)
        short = 1 - sent / expected - noise
        if worst is None or short > worst[0]:
            worst = (float(short), sent / expected, s)
    if worst is None:
        return ValidityReason("achieved-rate", "unknown", "no stage has an offered rate (closed loop)")
    short, ratio, stage = worst
    level = "invalid" if short > ACHIEVED_INVALID_RATIO else "suspect" if short > ACHIEVED_TOLERANCE_RATIO else "ok"
    text = f"{ratio:.0%} of the offered {stage.offered_rps:.3g} req/s were issued in stage {stage.stage.name}"
    if level == "ok":
        text += ", within the noise of Poisson arrivals"
    return ValidityReason("achieved-rate", level, text, ratio, 1 - ACHIEVED_TOLERANCE_RATIO, "ratio")


def timestamps(features: Features) -> ValidityReason:
    """Whether arrivals are stamped by the kernel, and the bound of their error against the tightest limit."""
    r = features.view.requests
    if features.view.manifest.virtual:
        return ValidityReason("timestamps", "ok", "virtual time: instants are exact", 0.0, None, "s")
    answered = np.isfinite(r.first_byte_s)
    if not answered.any():
        return ValidityReason("timestamps", "unknown", "no answer was received")
    kernel = float((r.timestamp_source[answered] == "kernel").mean())
    bounds_s = r.timestamp_error_s[answered & np.isfinite(r.timestamp_error_s)]
    text = f"{kernel:.0%} of the answers carry the kernel's receive time"
    if not len(bounds_s):
        return ValidityReason("timestamps", "unknown", f"{text}; the error of the stamps is not known")
    error_s = float(np.quantile(bounds_s, QUANTILE_SHOWN))
    # TPOT divides the time between two stamps by the tokens between them, so a stamp's error is divided too.
    gaps = max((features.lengths[1] or 1) - 1, 1)
    limits_s = [slo.limit * (gaps if slo.metric == "tpot" else 1) for slo in features.slos if slo.metric != "errors"]
    reference_s = min(limits_s, default=None)
    text += f"; p99 of the error bound is {error_s * 1e3:.2f} ms"
    if reference_s is not None and error_s > LAG_SUSPECT_RATIO * reference_s:
        limit_s = LAG_SUSPECT_RATIO * reference_s
        return ValidityReason("timestamps", "suspect", f"{text}, over a tenth of an SLO limit", error_s, limit_s, "s")
    return ValidityReason("timestamps", "ok", text, error_s, None, "s")


def shared_host(features: Features) -> ValidityReason:
    """A server on the client's host competes with it for cores; then the capacity found is that of the pair."""
    if not features.view.manifest.virtual and not features.facts.server_pids and _is_loopback(features.facts.url):
        return ValidityReason(
            "shared-host",
            "unknown",
            "the address is of this host, and the cores that the service uses were not watched",
        )
    if features.view.manifest.virtual or not features.facts.server_pids:
        return ValidityReason("shared-host", "ok", "the server does not run on this host, as far as can be seen")
    cpu = max((s.host_cpu_p90 for s in features.tested if s.host_cpu_p90 is not None), default=None)
    if cpu is None:
        return ValidityReason(
            "shared-host", "unknown", "the server runs on this host, and the host's CPU use was not recorded"
        )
    text = f"the server runs on this host, whose CPU use (p90) reached {cpu:.0%}"
    if cpu >= SHARED_HOST_CPU_RATIO:
        text += ": server and generator competed for cores; run the generator on another machine to be sure"
        return ValidityReason("shared-host", "suspect", text, cpu, SHARED_HOST_CPU_RATIO, "ratio")
    return ValidityReason("shared-host", "ok", text, cpu, SHARED_HOST_CPU_RATIO, "ratio")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def telemetry_gaps(features: Features) -> ValidityReason:
    """Longest silence of each source of readings, relative to the time under load, and pages that could not be read."""
    view = features.view
    start_s, end_s = features.tested[0].window_s[0], max(s.window_s[1] for s in features.tested)
    start_s = min(start_s, *(s.window_s[0] for s in features.tested))
    probes = ("engine.requests_running", "host.cpu_used_ratio", "server.cpu_cores", "probe.null_request_s")
    silent: list[str] = []
    seen = 0
    worst = 0.0
    for name in probes:
        t_s = view.series(name, (start_s, end_s)).t_s
        if len(t_s) < 2:
            continue
        seen += 1
        gaps_s = np.diff(np.concatenate([[start_s], t_s, [end_s]]))
        long_s = gaps_s[gaps_s > max(GAP_FLOOR_S, GAP_PERIODS * float(np.median(gaps_s)))]
        share = float(long_s.sum()) / max(end_s - start_s, 1e-9)
        worst = max(worst, share)
        if share > GAP_SUSPECT_RATIO:
            silent.append(f"{name} ({share:.0%})")
    for source, (failed, read) in view.scrapes((start_s, end_s)).items():
        share = failed / (failed + read)
        seen += read > 0
        worst = max(worst, share)
        if share > GAP_SUSPECT_RATIO:
            silent.append(f"{source} (failed {failed} of {failed + read} times)")
    if not seen:
        return ValidityReason("telemetry-gaps", "unknown", "no telemetry was recorded; causes rest on the client alone")
    if silent:
        text = f"readings are missing for part of the time under load: {', '.join(silent)}"
        return ValidityReason("telemetry-gaps", "suspect", text, worst, GAP_SUSPECT_RATIO, "ratio")
    return ValidityReason(
        "telemetry-gaps", "ok", f"{seen} source(s) were read without long gaps", worst, GAP_SUSPECT_RATIO, "ratio"
    )


CHECKS: tuple[Callable[[Features], ValidityReason], ...] = (
    send_lag,
    loop_busy,
    client_cpu,
    dropped,
    achieved_rate,
    timestamps,
    shared_host,
    telemetry_gaps,
    completeness,
)
GENERATOR_CHECKS = ACCUSING_CHECKS | {"send-lag", "loop-busy", "client-cpu", "dropped", "achieved-rate"}
