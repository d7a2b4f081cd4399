"""A real Prometheus that scrapes a real node-exporter on loopback: Debian's packages.

Tests are skipped where they are not installed, unless PINCHPOINT_REQUIRE_REAL names `prometheus`.
"""

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.real_engines import REQUIRED, free_ports

SERVER, EXPORTER = "prometheus", "prometheus-node-exporter"
STARTUP_LIMIT_S = 120.0
POLL_S = 0.1
SCRAPES_FIRST = 4
STOP_LIMIT_S = 20.0

needs_prometheus = pytest.mark.skipif(
    not (shutil.which(SERVER) and shutil.which(EXPORTER)) and "prometheus" not in REQUIRED,
    reason="apt-get install prometheus prometheus-node-exporter",
)


@dataclass(frozen=True, slots=True)
class RealPrometheus:
    """url: of the server. instance: of the node-exporter, scraped every second under the label namespace=llm."""

    url: str
    instance: str
    exporter: subprocess.Popen[bytes]

    def stop_exporter(self) -> None:
        self.exporter.terminate()
        self.exporter.wait(STOP_LIMIT_S)

    def query(self, text: str) -> list[dict]:
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': text})}") as answer:
            return json.load(answer)["data"]["result"]


@contextlib.contextmanager
def real_prometheus(*more_targets: tuple[str, str]) -> Iterator[RealPrometheus]:
    """Ready, with some scrapes of each target in it. more_targets: (job, host:port), scraped under the same labels."""
    with tempfile.TemporaryDirectory() as folder:
        web, exporter = free_ports(2)
        jobs = [("node", f"127.0.0.1:{exporter}"), *more_targets]
        config = Path(folder, "prometheus.yml")
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n"
            + "".join(
                f"- {{job_name: {job}, static_configs: [{{targets: ['{target}'], labels: {{namespace: llm}}}}]}}\n"
                for job, target in jobs
            )
        )
        with (
            _running(EXPORTER, f"--web.listen-address=127.0.0.1:{exporter}") as exporting,
            _running(
                SERVER,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{web}",
            ),
        ):
            server = RealPrometheus(f"http://127.0.0.1:{web}", f"127.0.0.1:{exporter}", exporting)
            _wait(server, len(jobs))
            yield server


def _wait(server: RealPrometheus, targets: int) -> None:
    limit = time.monotonic() + STARTUP_LIMIT_S
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            counts = [float(one["value"][1]) for one in server.query("count_over_time(up[1h]) and up == 1")]
            if len(counts) == targets and min(counts) >= SCRAPES_FIRST:
                return
        time.sleep(POLL_S)
    raise AssertionError(f"{SERVER} had not scraped its targets within {STARTUP_LIMIT_S:g} s")


@contextlib.contextmanager
def _running(program: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    path = shutil.which(program)
    assert path is not None, f"{program} is required but not installed; apt-get install {program}"
    process = subprocess.Popen([path, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
