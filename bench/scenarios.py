"""The scenarios of load.py: each runs clients against fresh servers and yields rows for the table."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from clients import Load, Run, aiohttp_client, c_client, import_s, join, measure, pinchpoint, wrk
from server import BenchError, quantile

TOKENS = 200
TTFT_US, ITL_US = 50_000, 10_000
CEILING_TTFT_US, CEILING_ITL_US = 10_000, 1_000
"""400 streams are offered 400,000 tokens/s: more than the server can send."""
ROUNDS = 3
"""Requests of each user in a closed loop."""
FREEZE_RPS, FREEZE_REQUESTS, FREEZE_AT, FREEZE_TOKENS, FREEZE_S = 20, 400, 160, 50, 2.0

CPU_RATIO_MAX = 1.6
RECORD_ERROR_MAX_S, ITL_P99_ERROR_MAX_S = 1e-3, 0.5e-3
IN_FLIGHT_RATIO_MIN = 398 / 400
CEILING_MIN_TOKENS_PER_S = 150_000
AIOHTTP_RATIO_MIN = 3.0
SEND_LAG_P99_MAX_S = 500e-6
STARTUP_MAX_S, TAIL_MAX_S = 0.5, 1.0
WORKERS_RATIO_MIN = 1.7
RSS_MAX_BYTES = 300e6
STOLEN_SHOWN_CORES = 0.005
KEPT_S = 5e-3
"""A schedule is kept when the server sees requests no later than this after they were due, p99."""
RANK_S = 2 / FREEZE_RPS
"""p99 of 400 samples rests on four, which lie one gap apart here: two definitions may differ by two gaps."""


@dataclass(frozen=True)
class Row:
    """One line of the table. met: None where there is no target, or where the host cannot show it."""

    scenario: str
    what: str
    value: str
    target: str = ""
    met: bool | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """How the programs under test are started. keep: where run directories stay; None: they are removed."""

    program: list[str]
    aiohttp_python: Path
    repeats: int = 1
    keep: Path | None = None

    @contextmanager
    def ours(self, name: str, load: Load, **options: Any) -> Iterator[tuple[Run, Path]]:
        """One run of Pinchpoint and its run directory."""
        with tempfile.TemporaryDirectory(prefix="pinchpoint-bench-") as temporary:
            out = (self.keep or Path(temporary)) / name
            yield measure(pinchpoint(self.program, load, out), serial=True, tokens=load.output_tokens, **options), out


Scenario = Callable[[Bench], Iterator[Row]]


def ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.2f} ms"


def us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.1f} us"


def reported(run: Run, metric: str, statistic: str) -> float | None:
    """A number of our JSON answer; None where it gives none."""
    return (run.answer.get("metrics", {}).get(metric) or {}).get(statistic)


def _noise(scenario: str, *runs: Run) -> Row:
    cores = ", ".join(f"{run.foreign_cores:.2f}" for run in runs)
    late = ", ".join(f"{ms(quantile(run.truth.write_lateness_s(), 0.99))}" for run in runs if run.truth.streamed.any())
    stolen = max(run.stolen_cores for run in runs)
    text = f"noise {cores} cores" + (f", stolen {stolen:.2f}" if stolen >= STOLEN_SHOWN_CORES else "")
    text += f"; server late p99 {late}" if late else ""
    numbers = {
        "foreign_cores": [run.foreign_cores for run in runs],
        "stolen_cores": [run.stolen_cores for run in runs],
        "server_cores": [run.server_cores for run in runs],
    }
    text += f"; CPU from {runs[0].usage.method}; server {runs[0].truth.priority}"
    return Row(scenario, "conditions", text, numbers=numbers)


def _all_done(scenario: str, run: Run, load: Load) -> Row:
    done, completed = int(run.truth.done.sum()), run.answer.get("completed")
    same = done == completed == load.requests
    value = f"server {done:,}, client {completed} of {load.requests:,}; errors {run.answer.get('errors')}"
    return Row(scenario, "completed", value, "all", same, {"server": done, "client": completed})


# ---- closed loops: cost and truth


def _cpu(bench: Bench, scenario: str, streams: int) -> Iterator[Row]:
    load = Load(streams * ROUNDS, TOKENS, concurrency=streams)
    ours_us, c_us, startup_s, tail_s = [], [], [], []
    for repeat in range(bench.repeats):
        reference = measure(c_client(streams, ROUNDS, TOKENS), tokens=TOKENS, ttft_us=TTFT_US, itl_us=ITL_US)
        c_us.append(reference.us_per_token)
        with bench.ours(f"{scenario}-{repeat}", load, ttft_us=TTFT_US, itl_us=ITL_US) as (run, _):
            ours_us.append(run.us_per_token)
            startup_s.append(run.startup_s)
            tail_s.append(run.tail_s)
            last = run
            if repeat == bench.repeats - 1:
                rows = [_all_done(scenario, run, load), *_against_truth(scenario, run, streams)]
        yield _noise(scenario, reference, last)
    yield from rows
    ratio = float(np.median(np.array(ours_us) / np.array(c_us)))
    by_process = sorted(last.usage.process_s.values(), reverse=True)
    value = f"{np.median(ours_us):.2f} us, C {np.median(c_us):.2f} us: {ratio:.2f} x"
    value += f"; {last.load_cpu_s:.2f} s in all; by process, start-up included: "
    value += ", ".join(f"{seconds:.2f}" for seconds in by_process)
    numbers = {"ours_us": ours_us, "c_us": c_us, "ratio": ratio, "process_s": by_process}
    yield Row(scenario, "CPU per token", value, f"<= {CPU_RATIO_MAX} x C", ratio <= CPU_RATIO_MAX, numbers)
    imports_s = import_s(bench.program[0]) if "python" in Path(bench.program[0]).name else 0.0
    start_s, end_s = float(np.median(startup_s)), float(np.median(tail_s))
    value = f"{start_s:.2f} s, of it imports of one process {imports_s:.2f} s"
    yield Row(
        scenario,
        "exec to first request",
        value,
        f"< {STARTUP_MAX_S} s + imports",
        start_s - imports_s < STARTUP_MAX_S,
        {"startup_s": startup_s, "imports_s": imports_s},
    )
    tokens = load.requests * TOKENS
    yield Row(
        scenario,
        f"last of {tokens:,} tokens to exit",
        f"{end_s:.2f} s",
        f"< {TAIL_MAX_S} s",
        end_s < TAIL_MAX_S,
        {"tail_s": tail_s},
    )


def _against_truth(scenario: str, run: Run, streams: int) -> Iterator[Row]:
    truth = run.truth
    pairs = [
        ("TTFT", "ttft_s", truth.ttft_s, RECORD_ERROR_MAX_S),
        ("TTFT from send", "ttft_from_send_s", truth.ttft_s, None),
        ("TPOT", "tpot_s", truth.tpot_s, RECORD_ERROR_MAX_S),
        ("E2E", "e2e_s", truth.e2e_s, RECORD_ERROR_MAX_S),
    ]
    for name, metric, values, limit_s in pairs:
        yield _compare(scenario, run, name, metric, values, ("mean", "p99"), limit_s)
    yield _compare(scenario, run, "ITL", "itl_s", truth.itl_s(), ("p99",), ITL_P99_ERROR_MAX_S)
    begin_ns, end_ns = truth.steady_ns(streams)
    mean = truth.in_flight_mean(begin_ns, end_ns)
    yield Row(
        scenario,
        "in flight, server's view, steady",
        f"{mean:.1f} of {streams}",
        f">= {IN_FLIGHT_RATIO_MIN * streams:.1f}",
        mean >= IN_FLIGHT_RATIO_MIN * streams,
        {"mean": mean},
    )


def _compare(
    scenario: str,
    run: Run,
    name: str,
    metric: str,
    true: np.ndarray,
    statistics: tuple[str, ...],
    limit_s: float | None,
) -> Row:
    """Judged on what was reported: a percentile of too few requests is withheld, which is no error."""
    texts, errors_s, numbers = [], [], {}
    for statistic in statistics:
        ours_s = reported(run, metric, statistic)
        true_s = float(true.mean()) if statistic == "mean" else quantile(true, 0.99)
        texts.append(f"{statistic} {'withheld' if ours_s is None else ms(ours_s)} (true {ms(true_s)})")
        numbers[statistic] = {"reported_s": ours_s, "true_s": true_s}
        if ours_s is not None:
            errors_s.append(abs(ours_s - true_s))
    met = None if limit_s is None else bool(errors_s) and max(errors_s) <= limit_s
    target = f"within {ms(limit_s)}" if limit_s else ""
    return Row(scenario, name, ", ".join(texts), target, met, numbers)


def cpu_50(bench: Bench) -> Iterator[Row]:
    yield from _cpu(bench, "cpu-50", 50)


def cpu_400(bench: Bench) -> Iterator[Row]:
    yield from _cpu(bench, "cpu-400", 400)


# ---- instants


def arrival(bench: Bench) -> Iterator[Row]:
    """Stamps of tokens against the server's own, from one load process."""
    for name, itl_us, limit_s in (("40 k tokens/s", 10_000, 100e-6), ("80 k tokens/s", 5_000, 1e-3)):
        load = Load(400 * ROUNDS, TOKENS, concurrency=400, workers=1, force=True)
        with bench.ours(f"arrival-{itl_us}", load, ttft_us=TTFT_US, itl_us=itl_us) as (run, out):
            yield _noise("arrival", run)
            joined = join(out, run.truth)
        error_s, bound_s = joined.token_error_ns / 1e9, joined.token_bound_ns / 1e9
        count = len(error_s)
        if not count:
            raise BenchError(f"no record of {out} could be joined with the server's truth ({joined.unknown} unknown)")
        p50_s, p99_s, max_s = quantile(error_s, 0.5), quantile(error_s, 0.99), float(error_s.max())
        beyond = float((error_s > np.maximum(limit_s, bound_s + limit_s)).mean())
        met = p99_s < limit_s
        target = f"p99 < {us(limit_s)}"
        if itl_us == 5_000:
            met = met or beyond < 0.01
            target += ", or within its stated bound"
        value = (
            f"p50 {us(p50_s)}, p99 {us(p99_s)}, max {us(max_s)}; {joined.coalesced / count:.2%} coalesced, "
            f"{beyond:.3%} beyond bound"
        )
        if joined.mismatched or joined.unknown:
            value += f"; {joined.mismatched} with another token count, {joined.unknown} unknown"
        numbers = {"p50_s": p50_s, "p99_s": p99_s, "max_s": max_s, "coalesced": joined.coalesced, "beyond": beyond}
        yield Row("arrival", f"error of stamps, {name}", value, target, met, numbers)


def send(bench: Bench) -> Iterator[Row]:
    """Lateness of sends at 1,000 requests/s, even gaps, one load process."""
    load = Load(5_000, 20, rate_rps=1_000, workers=1)
    with bench.ours("send", load, ttft_us=20_000, itl_us=5_000) as (run, out):
        yield _noise("send", run)
        yield _all_done("send", run, load)
        joined = join(out, run.truth)
    lag_s = reported(run, "send_lag_s", "p99")
    yield Row(
        "send",
        "send lateness at 1,000 req/s, as reported",
        f"p50 {us(reported(run, 'send_lag_s', 'p50'))}, p99 {us(lag_s)}",
        f"p99 < {us(SEND_LAG_P99_MAX_S)}",
        lag_s is not None and lag_s < SEND_LAG_P99_MAX_S,
        {"p99_s": lag_s},
    )
    seen_s = (run.truth.arrival_ns[joined.row] - joined.scheduled_ns) / 1e9
    p50_s, p99_s = quantile(seen_s, 0.5), quantile(seen_s, 0.99)
    value = f"p50 {us(p50_s)}, p99 {us(p99_s)}"
    yield Row(
        "send",
        "scheduled to arrival at the server",
        value,
        f"p99 < {us(SEND_LAG_P99_MAX_S)}",
        p99_s < SEND_LAG_P99_MAX_S,
        {"p50_s": p50_s, "p99_s": p99_s},
    )


# ---- ceilings


def ceiling(bench: Bench) -> Iterator[Row]:
    """Tokens per second, offered more than can be had, with the server on the same cores."""
    streams, rounds = 400, 10
    options = {"ttft_us": CEILING_TTFT_US, "itl_us": CEILING_ITL_US, "priority": "nice"}
    reference = measure(c_client(streams, rounds, TOKENS), tokens=TOKENS, **options)

    def text(run: Run) -> str:
        return (
            f"{run.truth.tokens_per_s:,.0f} tokens/s, {run.us_per_token:.2f} us CPU each; "
            f"server {run.server_cores:.2f} of its 1 core"
        )

    yield Row("ceiling", "C client", text(reference), numbers={"tokens_per_s": reference.truth.tokens_per_s})
    load = Load(streams * rounds, TOKENS, concurrency=streams, force=True)
    with bench.ours("ceiling", load, **options) as (run, _):
        yield _noise("ceiling", reference, run)
        yield _all_done("ceiling", run, load)
    reached = run.truth.tokens_per_s
    yield Row(
        "ceiling",
        "Pinchpoint",
        text(run),
        f"> {CEILING_MIN_TOKENS_PER_S:,} tokens/s",
        reached > CEILING_MIN_TOKENS_PER_S,
        {"tokens_per_s": reached},
    )


def workers(bench: Bench) -> Iterator[Row]:
    """Two load processes beside one; on few cores they share them with the server."""
    cores = len(os.sched_getaffinity(0))
    streams, rounds = 400, 10
    for what, stream, options in (
        ("tokens/s", True, {"ttft_us": CEILING_TTFT_US, "itl_us": CEILING_ITL_US}),
        ("non-streaming requests/s", False, {"nonstream": True}),
    ):
        rates, per_cpu, server_cores, runs = [], [], [], []
        for count in (1, 2):
            requests = streams * rounds if stream else 40_000
            users = streams if stream else 50
            load = Load(requests, TOKENS, concurrency=users, stream=stream, workers=count, force=True)
            with bench.ours(f"workers-{count}-{stream}", load, priority="nice", **options) as (run, _):
                units = run.truth.token_total if stream else len(run.truth)
                rates.append(units / run.load_s)
                per_cpu.append(units / run.load_cpu_s)
                server_cores.append(run.server_cores)
                runs.append(run)
        yield _noise("workers", *runs)
        ratio = rates[1] / rates[0]
        # More than one load process gets when it has the cores to itself that the server leaves, or the server is full.
        allowed = min((cores - server_cores[1]) / (runs[0].load_cpu_s / runs[0].load_s), 1 / server_cores[0])
        met = True if ratio >= WORKERS_RATIO_MIN else None if allowed < WORKERS_RATIO_MIN else False
        value = (
            f"{rates[0]:,.0f} to {rates[1]:,.0f}: {ratio:.2f} x; "
            f"per CPU second {per_cpu[0]:,.0f} to {per_cpu[1]:,.0f}; "
            f"server {server_cores[0]:.2f} to {server_cores[1]:.2f} of {cores} cores, which leaves room for "
            f"{allowed:.2f} x"
        )
        numbers = {"rates": rates, "per_cpu_s": per_cpu, "server_cores": server_cores, "room_ratio": allowed}
        yield Row("workers", f"2 load processes, {what}", value, f">= {WORKERS_RATIO_MIN} x", met, numbers)


def nonstream(bench: Bench) -> Iterator[Row]:
    """Small JSON answers given at once, 50 connections."""
    options = {"nonstream": True, "priority": "nice"}

    def row(name: str, run: Run, target: str = "", met: bool | None = None) -> Row:
        cpu_us = run.load_cpu_s / len(run.truth) * 1e6
        value = f"{run.requests_per_s:,.0f} req/s, {cpu_us:,.1f} us CPU each"
        return Row("nonstream", name, value, target, met, {"rps": run.requests_per_s, "cpu_us": cpu_us})

    try:
        with wrk(50, 4) as command:
            yield row("wrk -t1 (C)", measure(command, **options))
    except BenchError as error:
        yield Row("nonstream", "wrk -t1 (C)", f"skipped: {error}")
    reference: Run | None = None
    try:
        reference = measure(aiohttp_client(bench.aiohttp_python, 50, 20_000), **options)
        yield row("aiohttp + uvloop", reference)
    except BenchError as error:
        yield Row("nonstream", "aiohttp + uvloop", f"skipped: {error}")
    for count in (1, None):
        load = Load(40_000, TOKENS, concurrency=50, stream=False, workers=count, force=True)
        with bench.ours(f"nonstream-{count}", load, **options) as (run, _):
            yield _all_done("nonstream", run, load)
        name = "Pinchpoint" + (", 1 load process" if count else "")
        if reference is None:
            yield row(name, run)
        else:
            ratio = run.requests_per_s / reference.requests_per_s
            target = f">= {AIOHTTP_RATIO_MIN:g} x aiohttp: {ratio:.2f} x"
            yield row(name, run, target, ratio >= AIOHTTP_RATIO_MIN)


# ---- freezes


def _arrivals(scenario: str, run: Run, out: Path, after_ns: int | None) -> Iterator[Row]:
    """Whether the schedule was kept, in the server's view; with after_ns, only what was due later than that counts."""
    joined = join(out, run.truth)
    late_s = (run.truth.arrival_ns[joined.row] - joined.scheduled_ns) / 1e9
    if after_ns is not None:
        late_s = late_s[joined.scheduled_ns > after_ns]
    p99_s = quantile(late_s, 0.99)
    what = "scheduled to arrival" + (", due after the stop" if after_ns is not None else "")
    value = f"p99 {ms(p99_s)}, max {ms(float(late_s.max()) if len(late_s) else None)}, n {len(late_s)}"
    yield Row(scenario, what, value, f"p99 < {ms(KEPT_S)}", p99_s < KEPT_S, {"p99_s": p99_s})


def _intended_ttft_p99_s(run: Run, out: Path) -> float:
    joined = join(out, run.truth)
    return quantile((run.truth.first_write_ns[joined.row] - joined.scheduled_ns) / 1e9, 0.99)


def _p99_row(scenario: str, run: Run, metric: str, true_s: float, what: str) -> Row:
    ours_s = reported(run, metric, "p99")
    value = f"p99 {ms(ours_s)} (true {ms(true_s)})"
    met = ours_s is not None and abs(ours_s - true_s) <= RANK_S
    return Row(scenario, what, value, f"within {ms(RANK_S)}", met, {"reported_s": ours_s, "true_s": true_s})


def freeze_server(bench: Bench) -> Iterator[Row]:
    """The server stops for 2 s at the 160th request: the schedule goes on, and the wait is seen."""
    name = "freeze-server"
    load = Load(FREEZE_REQUESTS, FREEZE_TOKENS, rate_rps=FREEZE_RPS)
    options = {"ttft_us": TTFT_US, "itl_us": ITL_US, "freeze_n": FREEZE_AT, "freeze_s": FREEZE_S}
    with bench.ours(name, load, **options) as (run, out):
        yield _all_done(name, run, load)
        yield from _arrivals(name, run, out, None)
        yield _p99_row(name, run, "ttft_s", _intended_ttft_p99_s(run, out), "TTFT from the schedule")
        yield _p99_row(name, run, "ttft_from_send_s", quantile(run.truth.ttft_s, 0.99), "TTFT from the send")
        validity = run.answer.get("validity")
        yield Row(name, "validity", str(validity), "VALID", validity == "VALID")


def freeze_client(bench: Bench) -> Iterator[Row]:
    """The client's processes are stopped for 2 s at the 160th request: its lateness is told and not the server's."""
    name = "freeze-client"
    load = Load(FREEZE_REQUESTS, FREEZE_TOKENS, rate_rps=FREEZE_RPS)
    options = {"ttft_us": TTFT_US, "itl_us": ITL_US, "notify_n": FREEZE_AT, "stop_client_s": FREEZE_S}
    with bench.ours(name, load, **options) as (run, out):
        if run.stopped_ns is None:
            raise BenchError("the client was not stopped: the 160th request did not come in time")
        yield _all_done(name, run, load)
        yield from _arrivals(name, run, out, run.stopped_ns[1])
        yield _p99_row(name, run, "ttft_s", _intended_ttft_p99_s(run, out), "TTFT from the schedule: holds the stop")
        true_s = quantile(run.truth.ttft_s, 0.99)
        yield _p99_row(name, run, "ttft_from_send_s", true_s, "TTFT from the send: does not")
        validity = run.answer.get("validity")
        yield Row(name, "validity", str(validity), "not VALID", validity not in (None, "VALID"))


# ---- memory


def memory(bench: Bench) -> Iterator[Row]:
    """10 million tokens recorded."""
    load = Load(50_000, TOKENS, concurrency=400, force=True)
    with bench.ours("memory", load, ttft_us=20_000, itl_us=3_000, timeout_s=240) as (run, _):
        yield _noise("memory", run)
        yield _all_done("memory", run, load)
    peak = run.usage.peak_rss_bytes
    processes = ", ".join(f"{size / 1e6:.0f}" for size in sorted(run.usage.peak_rss.values(), reverse=True))
    yield Row(
        "memory",
        f"peak RSS of a process, {run.truth.token_total:,} tokens",
        f"{peak / 1e6:.0f} MB (all: {processes})",
        f"< {RSS_MAX_BYTES / 1e6:.0f} MB",
        peak < RSS_MAX_BYTES,
        {"peak_rss_bytes": run.usage.peak_rss},
    )
    tail = f"{run.tail_s:.2f} s"
    yield Row("memory", "last token to exit", tail, numbers={"tail_s": run.tail_s})


SCENARIOS: dict[str, Scenario] = {
    "cpu-50": cpu_50,
    "cpu-400": cpu_400,
    "arrival": arrival,
    "send": send,
    "ceiling": ceiling,
    "workers": workers,
    "nonstream": nonstream,
    "freeze-server": freeze_server,
    "freeze-client": freeze_client,
}
LONG_SCENARIOS: dict[str, Scenario] = {"memory": memory}
"""Take minutes; run with --long, or when named."""
