"""Was the load generator's own host fit to measure? Stops of the load processes and what on their host can cause them.

Sends that left late are judged by `check.send_lag`; this page looks for stops of the client itself, because a stop also
blurs the arrivals of whatever was in flight, and for their causes, so that the report can say what to change. A cause
alone is at most suspect: only its effect on the sends makes a run invalid.

Counters of the network belong to the whole host. Where most of its traffic was not of the load, they accuse nobody.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.diagnose.features import Features
from pinchpoint.model import NO_PORT_ERROR, ValidityReason

LAG_FLOOR_S = 0.005
"""Lag below 5 ms is within what a timer and a busy kernel do; no SLO of a person's patience is that fine."""
LAG_SUSPECT_RATIO = 0.1
LAG_INVALID_RATIO = 0.25
"""Shares of the latency that an SLO limits (else of the median TTFT): a tenth shifts a quantile visibly, a quarter
decides it."""
LAG_INVALID_FLOOR_S = 0.02
READING_PERIOD_S = 1.0
"""Load processes read themselves once a second; a reading speaks of the second before it."""
TOUCHED_INVALID_RATIO = 0.01
"""Beyond this share of late sends the p99 is the generator's."""
WAIT_EXPLAINS_RATIO = 0.5
"""Of a stop: when the process waited for a core for half of it, that was the reason."""
TOUCHED_SUSPECT_RATIO = 0.001
TOUCHED_INVALID_MIN = 2
"""A single late send is more than 1 % of few requests and still says little."""
STALL_ALONE_SUSPECT_S = 0.1
"""A stop of this length that is also longer than the latency itself is told even if no send fell into it."""
THROTTLED_SUSPECT_RATIO = 0.01
"""Each period held back stops every thread for up to a period, 100 ms by default (Linux, sched-bwc)."""
RETRANSMIT_SUSPECT_RATIO = 0.01
RETRANSMITS_MIN = 10
"""A lost segment costs its stream 200 ms or more (RFC 6298 as Linux does it); in 1 % of the segments that decides p99.
A handful is what any connection set-up may lose."""
ZERO_WINDOW_SUSPECT_RATIO = 0.01
"""Of the requests of the stage; one closed window may be another process of this host."""
SEGMENTS_PER_REQUEST = 4.0
"""Sent by this host: the request, and acknowledgements of its connection, its headers and its end."""
OTHER_TRAFFIC_MIN_RATIO = 4.0
"""A host that sent this many times the segments of the load had more to do than the load."""
OTHERS = "; but most of its traffic is not of this load, so whose they were cannot be told"
WINDOW_BYTES = 65_536
"""What a TCP socket of Linux offers at first: half of net.ipv4.tcp_rmem's default of 131,072 bytes. It only grows."""
HEADROOM_SUSPECT_RATIO = 0.9
MISSING_INVALID_RATIO = 0.01


def latency_reference(features: Features) -> tuple[float | None, str]:
    """The latency that delays of the client are measured against, and what it is, in words for a statement.

    The tightest latency SLO, else the median TTFT (of whole answers without a stream) at the lightest load; None when
    no request was answered.
    """
    limits_s = [slo.limit for slo in features.slos if slo.metric in ("ttft", "e2e")]
    if limits_s:
        return min(limits_s), "the tightest latency SLO"
    lightest = [stage for stage in (features.base, *features.tested[:1]) if stage is not None]
    for stage in lightest:
        if stage.ttft_s is not None:
            return stage.ttft_s, "the median TTFT at light load"
    for stage in lightest:
        if stage.e2e_s is not None:
            return stage.e2e_s, "the median time of an answer at light load"
    return None, "50 ms, since no latency is known"


def lag_limits_s(features: Features) -> tuple[float, float, str]:
    """(suspect above, invalid above, what the limits are shares of)."""
    reference_s, what = latency_reference(features)
    if reference_s is None:
        reference_s = LAG_FLOOR_S / LAG_SUSPECT_RATIO
    suspect_s = max(LAG_FLOOR_S, LAG_SUSPECT_RATIO * reference_s)
    return suspect_s, max(LAG_INVALID_FLOOR_S, LAG_INVALID_RATIO * reference_s), what


def send_lags_s(features: Features) -> np.ndarray:
    """Sent minus scheduled of the requests of load stages that have both instants."""
    r = features.view.requests
    return r.send_lag_s[np.isfinite(r.send_lag_s) & np.isin(r.stage, [s.stage.index for s in features.tested])]


def loop_stall(features: Features) -> ValidityReason:
    """The longest stop of a load process against the latency measured, and how many sends it made late."""
    name = "client.loop_stall_max_s"
    stall_s = _highest(features, name)
    if stall_s is None:
        return ValidityReason("loop-stall", "unknown", f"{name} was not recorded")
    _, limit_s, what = lag_limits_s(features)
    text = f"the longest stop of a load process was {stall_s * 1e3:.0f} ms"
    if stall_s <= limit_s:
        return ValidityReason("loop-stall", "ok", text, stall_s, limit_s, "s")
    lags_s = send_lags_s(features)
    late = int((lags_s > limit_s).sum())
    touched = late / len(lags_s) if len(lags_s) else 0.0
    text += f", over a quarter of {what}; {late} of {len(lags_s)} requests left that late"
    advice = _why_stopped(features, stall_s)
    if touched > TOUCHED_INVALID_RATIO and late >= TOUCHED_INVALID_MIN:
        return ValidityReason("loop-stall", "invalid", text + advice, stall_s, limit_s, "s")
    reference_s, _ = latency_reference(features)
    long = stall_s > max(STALL_ALONE_SUSPECT_S, reference_s or 0.0)
    if touched > TOUCHED_SUSPECT_RATIO or long:
        return ValidityReason("loop-stall", "suspect", text + advice, stall_s, limit_s, "s")
    return ValidityReason("loop-stall", "ok", f"{text}: too few to move a percentile", stall_s, limit_s, "s")


def _why_stopped(features: Features, stall_s: float) -> str:
    """The kernel counts how long a process was ready to run and waited for a core; a suspended one is not ready."""
    stalls = features.view.series("client.loop_stall_max_s")
    waits = features.view.series("client.run_queue_wait_s")
    at_s = stalls.t_s[np.isclose(stalls.value, stall_s)]
    known = waits.value[np.isin(waits.t_s, at_s)]
    if not len(known):
        return ": something stopped the client (a suspended process or machine, other work on its cores)"
    if known.max() >= WAIT_EXPLAINS_RATIO * stall_s:
        return f": other work had its core, it waited {known.max() * 1e3:.0f} ms for one; give it cores of its own"
    return ": something stopped the client although it did not wait for a core (a suspended process or machine)"


def cpu_quota(features: Features) -> ValidityReason:
    """Share of quota periods in which the client's control group had used up its CPU."""
    periods = _increase(features, "client.cgroup_periods_total")
    held = _increase(features, "client.cgroup_throttled_periods_total")
    if periods is None or held is None:
        return ValidityReason("cpu-quota", "unknown", "whether a CPU quota held the client back was not recorded")
    if not periods:
        return ValidityReason("cpu-quota", "ok", "no CPU quota is set for the client", 0.0, None, "ratio")
    share = held / periods
    text = f"the client's CPU quota was used up in {held:.0f} of {periods:.0f} periods"
    if share > THROTTLED_SUSPECT_RATIO:
        held_s = _increase(features, "client.cgroup_throttled_s_total")
        text += f" and held it back for {held_s:.2f} s" if held_s else ""
        text += "; raise the limit of the container (cpu.max) or use fewer --workers"
        return ValidityReason("cpu-quota", "suspect", text, share, THROTTLED_SUSPECT_RATIO, "ratio")
    return ValidityReason("cpu-quota", "ok", text, share, THROTTLED_SUSPECT_RATIO, "ratio")


def gc_pauses(features: Features) -> ValidityReason:
    """Longest garbage collection inside a load stage. The load processes collect between stages only."""
    name = "client.gc_pause_max_s"
    # The collection before a stage must not count: its reading may come when the stage has just begun.
    pause_s = _highest(features, name, skip_s=READING_PERIOD_S)
    if pause_s is None:
        return ValidityReason("gc-pauses", "unknown", f"{name} was not recorded")
    limit_s, _, what = lag_limits_s(features)
    text = f"the longest garbage collection under load took {pause_s * 1e3:.1f} ms"
    if pause_s > limit_s:
        text += f", over a tenth of {what}"
        return ValidityReason("gc-pauses", "suspect", text, pause_s, limit_s, "s")
    return ValidityReason("gc-pauses", "ok", text, pause_s, limit_s, "s")


def retransmits(features: Features) -> ValidityReason:
    """Segments that this host had to send again: losses on the way, which show as late answers."""
    again = _increase(features, "client.tcp_retransmits_total")
    sent = _increase(features, "client.tcp_segments_sent_total")
    if again is None or sent is None:
        return ValidityReason("retransmits", "unknown", "TCP retransmissions of this host were not recorded")
    share = again / sent if sent else 0.0
    text = f"this host sent {again:.0f} of {sent:.0f} TCP segments again"
    if again >= RETRANSMITS_MIN and share > RETRANSMIT_SUSPECT_RATIO:
        if _mostly_others(features):
            return ValidityReason("retransmits", "unknown", text + OTHERS, share, RETRANSMIT_SUSPECT_RATIO, "ratio")
        text += ": the network loses packets, and each loss adds 200 ms or more to a request"
        return ValidityReason("retransmits", "suspect", text, share, RETRANSMIT_SUSPECT_RATIO, "ratio")
    return ValidityReason("retransmits", "ok", text, share, RETRANSMIT_SUSPECT_RATIO, "ratio")


def receive_buffers(features: Features) -> ValidityReason:
    """Whether answers waited or were lost because this host did not take them fast enough."""
    lost_names = (
        "client.tcp_receive_pruned_total",
        "client.tcp_receive_dropped_total",
        "client.tcp_memory_aborts_total",
    )
    lost = [n for name in lost_names if (n := _increase(features, name)) is not None]
    closed = _increase(features, "client.tcp_zero_window_total")
    if closed is None and not lost:
        return ValidityReason("receive-buffers", "unknown", "the receive buffers of this host were not watched")
    if sum(lost):
        text = f"receive buffers of this host overflowed: {sum(lost):.0f} segments or connections were thrown away"
        if _mostly_others(features):
            return ValidityReason("receive-buffers", "unknown", text + OTHERS, sum(lost), 0.0, "segments")
        return ValidityReason("receive-buffers", "suspect", text, sum(lost), 0.0, "segments")
    requests = sum(stage.requests for stage in features.tested)
    share = (closed or 0.0) / max(requests, 1)
    text = f"sockets of this host closed their receive window {closed or 0.0:.0f} times"
    if share > ZERO_WINDOW_SUSPECT_RATIO:
        if _mostly_others(features):
            return ValidityReason(
                "receive-buffers", "unknown", text + OTHERS, share, ZERO_WINDOW_SUSPECT_RATIO, "ratio"
            )
        fill_s, stall_s = _buffer_fill_s(features), _highest(features, "client.loop_stall_max_s")
        if fill_s is not None and stall_s is not None and stall_s < fill_s:
            text += (
                f"; none of this load's, whose fastest answer fills a window in {fill_s * 1e3:.3g} ms and waited "
                f"{stall_s * 1e3:.3g} ms at most to be read"
            )
            return ValidityReason("receive-buffers", "ok", text, share, ZERO_WINDOW_SUSPECT_RATIO, "ratio")
        text += ": a reader was too slow, so the service had to wait with its answers"
        return ValidityReason("receive-buffers", "suspect", text, share, ZERO_WINDOW_SUSPECT_RATIO, "ratio")
    return ValidityReason("receive-buffers", "ok", text, share, ZERO_WINDOW_SUSPECT_RATIO, "ratio")


def headroom(features: Features) -> ValidityReason:
    """File descriptors and local ports in use against what there is.

    Ports in TIME_WAIT are told and do not count: the kernel gives them out again to other addresses, and on loopback to
    the same. What counts is whether a request found none.
    """
    r = features.view.requests
    portless = int(((r.status == "dropped") & (r.error == NO_PORT_ERROR)).sum())
    if portless:
        text = (
            f"for {portless} requests no local port was free; widen net.ipv4.ip_local_port_range, set "
            "net.ipv4.tcp_tw_reuse=1, or keep connections"
        )
        return ValidityReason("headroom", "suspect", text, float(portless), 0.0, "requests")
    used: list[tuple[float, str]] = []
    files, files_limit = _highest(features, "client.open_files"), _highest(features, "client.open_files_limit")
    if files is not None and files_limit:
        text = f"a load process had up to {files:.0f} of {files_limit:.0f} file descriptors (ulimit -n)"
        used.append((files / files_limit, text))
    ports, sockets = _highest(features, "client.ports_available"), _highest(features, "client.tcp_sockets")
    if ports and sockets is not None:
        waiting = _highest(features, "client.tcp_time_wait_sockets") or 0.0
        text = f"this host had up to {sockets:.0f} TCP sockets in use for {ports:.0f} local ports"
        text += f", and {waiting:.0f} more in TIME_WAIT" if waiting else ""
        used.append((sockets / ports, text))
    if not used:
        return ValidityReason("headroom", "unknown", "open files and local ports of this host were not recorded")
    share, text = max(used)
    level = "suspect" if share > HEADROOM_SUSPECT_RATIO else "ok"
    text += "; close to where no connection can be opened" if level == "suspect" else ""
    return ValidityReason("headroom", level, text, share, HEADROOM_SUSPECT_RATIO, "ratio")


def lost_workers(features: Features) -> ValidityReason:
    """Load processes that died, and the share of the load that went with them."""
    lost = _events(features, "worker-lost")
    if not lost:
        return ValidityReason("lost-workers", "ok", "no load process died")
    share = _missing_ratio(features, len(lost))
    why = str(lost[0].get("message", "a load process died"))
    text = f"{len(lost)} load process(es) died and {share:.1%} of the load is missing ({why})"
    level = "invalid" if share > MISSING_INVALID_RATIO else "suspect"
    return ValidityReason("lost-workers", level, text, share, MISSING_INVALID_RATIO, "ratio")


def host_limits(features: Features) -> ValidityReason:
    """Whether the plan was within what this host was found to carry before the run."""
    beyond = _events(features, "beyond-limits")
    if beyond:
        sentences = [str(event.get("message", "no reason was stored")) for event in beyond]
        text = f"the plan is beyond what this host can carry and was forced: {'. Also: '.join(sentences)}"
        return ValidityReason("host-limits", "suspect", text)
    if _events(features, "host-limits"):
        return ValidityReason("host-limits", "ok", "the plan is within what this host was found to carry")
    return ValidityReason("host-limits", "unknown", "the plan was not compared with what this host can carry")


def priority(features: Features) -> ValidityReason:
    """A fact for the reader; changes nothing."""
    granted = [event.get("realtime") is True for event in _events(features, "worker")]
    if granted and all(granted):
        text = "the load processes ran at real-time priority"
    elif features.view.manifest.plan.get("realtime") is True:
        text = "real-time priority was asked for and this system did not grant it to every load process"
    else:
        text = "the load processes ran at normal priority"
    return ValidityReason("priority", "ok", text)


def _missing_ratio(features: Features, lost: int) -> float:
    """Share of the requests due in load stages that have no record. Of a closed loop the schedule does not say what was
    due, and the share of the load processes stands for it."""
    stages = {s.stage.index: s.stage for s in features.tested}
    schedule = features.view.run.schedule
    stage = schedule.column("stage").to_numpy()
    offset_ns = schedule.column("offset_ns").fill_null(-1).to_numpy()
    # What was scheduled for later than the stage lasted was withdrawn by a search, and nobody lost it.
    lasted_ns = np.zeros(int(max(stage.max(initial=0), max(stages))) + 1, np.int64)
    for index, s in stages.items():
        lasted_ns[index] = s.t1_ns - s.t0_ns
    due = (offset_ns >= 0) & (offset_ns < lasted_ns[stage])
    due_ids = schedule.column("request_id").to_numpy()[due]
    if not len(due_ids):
        heard = len(features.view.run.records.column("worker").unique())  # one that died early left no record
        return lost / max(len(_events(features, "worker")), heard, lost)
    recorded = np.isin(due_ids, features.view.requests.request_id)
    return float(1 - recorded.mean())


def _mostly_others(features: Features) -> bool:
    """Whether this host sent far more TCP segments than the load accounts for, a service on the same host included.

    Each event of a stream is acknowledged at most once, and a service on this host sends it with one segment.
    """
    sent = _increase(features, "client.tcp_segments_sent_total")
    requests = sum(stage.requests for stage in features.tested)
    events = float(np.nansum(features.view.requests.chunks))
    return sent is not None and sent > OTHER_TRAFFIC_MIN_RATIO * 2 * (SEGMENTS_PER_REQUEST * requests + events)


def _buffer_fill_s(features: Features) -> float | None:
    """Time in which the fastest answer fills the window that a socket begins with; None when no size is known."""
    table = features.view.run.record_columns(("bytes_in", "headers_ns", "end_ns"))
    columns = [
        np.asarray(table.column(name).fill_null(0).to_numpy(), float) for name in ("bytes_in", "headers_ns", "end_ns")
    ]
    size_bytes, began_ns, ended_ns = columns
    known = (size_bytes > 0) & (began_ns > 0) & (ended_ns > began_ns)
    if not known.any():
        return None
    pace = float((size_bytes[known] / ((ended_ns - began_ns)[known] / NS_PER_S)).max())
    return WINDOW_BYTES / pace


def _events(features: Features, kind: str) -> list[dict[str, Any]]:
    return [event for event in features.view.run.events() if event.get("kind") == kind]


def _highest(features: Features, name: str, skip_s: float = 0.0) -> float | None:
    """Highest reading of a gauge in the load stages, and in the reading after each; None when there is none."""
    values = [
        features.view.series(name, (s.window_s[0] + skip_s, s.window_s[1] + READING_PERIOD_S)).value
        for s in features.tested
    ]
    return max((float(v.max()) for v in values if len(v)), default=None)


def _increase(features: Features, name: str) -> float | None:
    """Growth of a counter over the load stages; None when it was read less than twice in all of them."""
    grown = [features.view.increase(name, s.window_s) for s in features.tested]
    known = [n for n in grown if n is not None]
    return sum(known) if known else None


CLIENT_CHECKS: tuple[Callable[[Features], ValidityReason], ...] = (
    loop_stall,
    cpu_quota,
    gc_pauses,
    retransmits,
    receive_buffers,
    headroom,
    lost_workers,
    host_limits,
    priority,
)
ACCUSING_CHECKS = frozenset(
    {"loop-stall", "cpu-quota", "gc-pauses", "receive-buffers", "headroom", "lost-workers", "host-limits"}
)
"""Those that accuse the load generator or its host; losses of the network are nobody's on this host."""
