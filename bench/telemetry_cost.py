"""What the collector costs: CPU of its process over a minute, as a share of one core.

    python -m bench.telemetry_cost [--seconds 60] [--period 1.0] [--connections 200]

Three measurements. `idle`: the host alone. `watching`: the host, the lab's service (its processes, its metrics page
and those of its GPU and node exporters, null requests) with nobody using it. `loaded`: the same with so many
connections streaming. Each tells the share of one core of the whole collector process tree, user and system, from its
third second on; what starting cost is told apart. A table by source follows: CPU of one reading, taken in this process,
so without what writing it costs.

The bound is 2 % of one core at one reading a second (LIMIT_RATIO); the exit code is 1 where it is not kept.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import descendants

from pinchpoint.clock import NS_PER_S
from pinchpoint.fetch import get
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.parts import arrow_schema, part_batches
from pinchpoint.telemetry import CollectorConfig, PageAt, start_collector
from pinchpoint.telemetry.collect import sources

LIMIT_RATIO = 0.02
SETTLE_S = 3.0
"""From the start of the collector until its steady cost is measured: imports and the first readings of everything."""
READS = 200
"""Of each source, for the table."""
PAGE_TIMEOUT_S = 10.0
MAX_PAGE_BYTES = 8 << 20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """One measurement. Ratios are of one core."""

    name: str
    ratio: float
    start_s: float
    """CPU until the steady part began, less what that time costs in the steady part."""
    samples_per_s: float


def tree_cpu_s(pid: int) -> float:
    """User and system time of the process, its living descendants, and those it has waited for."""
    total = 0
    for member in descendants(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(ticks) for ticks in fields[11:15])
    return total / TICKS_PER_S


def measure(name: str, config: CollectorConfig, seconds: float) -> Cost:
    began_s = time.monotonic()
    handle = start_collector(config)
    try:
        time.sleep(SETTLE_S)
        steady_s, before_s = time.monotonic(), tree_cpu_s(handle.pid)
        time.sleep(seconds)
        elapsed_s, after_s = time.monotonic() - steady_s, tree_cpu_s(handle.pid)
    finally:
        code = handle.stop()
    if code != 0:
        raise SystemExit(f"the collector failed: {handle.complaint()}")
    ratio = (after_s - before_s) / elapsed_s
    samples_per_s = _samples(Path(config.out_dir)) / (elapsed_s + SETTLE_S)
    return Cost(name, ratio, before_s - ratio * (steady_s - began_s), samples_per_s)


def _samples(out_dir: Path) -> int:
    schema = arrow_schema(SAMPLE_COLUMNS)
    parts = sorted((out_dir / "parts").glob("telemetry-*"))
    return sum(batch.num_rows for part in parts for batch in part_batches(part, schema))


@contextmanager
def lab() -> Iterator[tuple[dict[str, str], int]]:
    """The lab's service: URLs of it and its exporters by name, and its process."""
    command = [sys.executable, "-m", "pinchpoint", "lab", "serve", "--port", "0", "--json"]
    command += ["--dcgm-port", "0", "--node-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        document = b""
        while not document.rstrip().endswith(b"}"):
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the lab did not start")
            document += line
        yield {name: url for name, url in json.loads(document).items() if name.endswith("url")}, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()


@contextmanager
def load(url: str, connections: int, seconds: float, out: Path) -> Iterator[int]:
    """So many users without a pause. The process that sends."""
    command = [sys.executable, "-m", "pinchpoint", "load", url, "--concurrency", str(connections)]
    command += ["--duration", f"{seconds:.0f}s", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def pages_of(urls: dict[str, str]) -> dict[str, str]:
    """Name of the source and URL of every page of the lab."""
    return {"engine": f"{urls['url']}/metrics", "dcgm": urls["dcgm_url"], "node": urls["node_url"]}


def samples_of(url: str) -> int:
    page = get(url, {}, PAGE_TIMEOUT_S, MAX_PAGE_BYTES).body
    return sum(1 for line in page.splitlines() if line and not line.startswith(b"#"))


def by_source(config: CollectorConfig) -> list[tuple[str, int, float, float]]:
    """Name, readings, CPU of one reading (s, this thread), and the period of each source."""
    table: list[tuple[str, int, float, float]] = []
    for source, period_s in sources(config, None, print):
        source.read()
        began_ns = time.thread_time_ns()
        for _ in range(READS):
            _, readings = source.read()
        table.append((source.name, len(readings), (time.thread_time_ns() - began_ns) / NS_PER_S / READS, period_s))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU of the collector, as a share of one core")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--period", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=200)
    options = parser.parse_args()
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="pinchpoint-cost-") as scratch:
        root = Path(scratch)

        def config(
            name: str, urls: dict[str, str] | None = None, server: int | None = None, client: int | None = None
        ) -> CollectorConfig:
            (root / name / "parts").mkdir(parents=True)
            return CollectorConfig(
                out_dir=str(root / name),
                pages=tuple(PageAt(page, url) for page, url in pages_of(urls).items()) if urls else (),
                null_request_urls=(f"{urls['url']}/health",) if urls else (),
                accelerators=True,
                server_pids=(server,) if server else (),
                client_pids=(client,) if client else (),
                period_s=options.period,
            )

        costs.append(measure("idle", config("idle"), options.seconds))
        with lab() as (urls, server):
            samples = sum(samples_of(url) for url in pages_of(urls).values())
            costs.append(measure("watching", config("watching", urls, server, os.getpid()), options.seconds))
            with load(urls["url"], options.connections, options.seconds + SETTLE_S + 10, root / "run") as client:
                time.sleep(SETTLE_S)
                costs.append(measure("loaded", config("loaded", urls, server, client), options.seconds))
                table = by_source(config("table", urls, server, client))
    print(f"one reading every {options.period:g} s over {options.seconds:g} s; pages of {samples} samples")
    print(f"{'':10} {'of one core':>12} {'to start':>10} {'samples/s':>10}")
    for cost in costs:
        print(f"{cost.name:10} {cost.ratio:12.2%} {cost.start_s:8.2f} s {cost.samples_per_s:10.0f}")
    print(f"\n{'source':14} {'readings':>9} {'CPU of one':>11} {'period':>7}")
    for name, readings, cpu_s, period_s in table:
        print(f"{name:14} {readings:9} {cpu_s * 1e3:8.2f} ms {period_s:5.1f} s")
    kept = all(cost.ratio <= LIMIT_RATIO for cost in costs)
    print(f"\nthe bound of {LIMIT_RATIO:.0%} of one core is {'kept' if kept else 'not kept'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
