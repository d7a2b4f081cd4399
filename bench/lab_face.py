"""How many tokens per second the lab's HTTP server carries on one core, and how late it writes them.

    python bench/lab_face.py [--streams N] [--tokens N] [--requests N] [--set KEY=VALUE] [--fifo] [--json]

The server runs on one core, the client in C (sse_client.c) on another. All streams are open at once and share one
simulated engine, so each of its steps makes one token for every stream, and they must all be written before the next:
the hardest pattern there is. The simulated API process needs its usual 15 us for each of them, one after the other,
and the server computes for as long. Lateness is the server's own measurement of the time between an event's simulated
instant and its bytes having been written; `client` figures are the C program's. With --fifo the kernel still takes the
core away for 50 ms in any second that the server fills (sched_rt_runtime_us), as it does while all streams begin.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from server import BenchError, build

MODEL = "llama-3.2-1b"
"""Small, so that a step of thousands of sequences is short."""
SEQUENCES_MAX = 2048
BEGINNING_S = 2.0
"""In which all streams begin at once. Left out of the lateness, which is told with it, too."""
SEQUENCE_S = 17e-6
"""Per sequence and step: makes 2,000 streams get a token every 50 ms."""


class Lab:
    """`pinchpoint lab serve` on one core."""

    def __init__(self, core: int, settings: list[str], fifo: bool) -> None:
        words = [sys.executable, "-m", "pinchpoint", "lab", "serve", "--port", "0", "--json", "--gpu", "H200"]
        words += ["--model", MODEL]
        for one in settings:
            words += ["--set", one]
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115, closed by stop

        def place() -> None:
            os.sched_setaffinity(0, {core})
            if fifo:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            preexec_fn=place,
        )
        assert self.process.stdout is not None
        document = ""
        for line in self.process.stdout:
            document += line
            if line.startswith("}"):
                break
        if not document:
            self._errors.seek(0)
            raise BenchError(f"the lab did not start: {self._errors.read()}")
        self.url = json.loads(document)["url"]
        self.port = int(self.url.rpartition(":")[2])

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def lateness(self) -> list[tuple[float, int]]:
        """(upper bound in s, events up to it), cumulative."""
        with urllib.request.urlopen(self.url + "/lab/metrics", timeout=60) as answer:
            page = answer.read().decode()
        found = []
        for line in page.splitlines():
            if line.startswith("lab_lateness_seconds_bucket"):
                bound = line.partition('le="')[2].partition('"')[0]
                found.append((float(bound.replace("+Inf", "inf")), int(line.rpartition(" ")[2])))
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self._errors.close()


def quantile_s(before: list[tuple[float, int]], after: list[tuple[float, int]], q: float) -> float:
    """Upper bound of the bucket with the quantile of what came between the two readings."""
    total = after[-1][1] - before[-1][1]
    return next(b for (b, n), (_, old) in zip(after, before, strict=True) if n - old >= q * total)


def measure(streams: int, tokens: int, requests: int, settings: list[str], fifo: bool) -> dict[str, float]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("two cores are needed, one for the server and one for the client")
    lab = Lab(cores[0], settings, fifo)
    with contextlib.ExitStack() as stack:
        stack.callback(lab.stop)
        before, cpu_s, began_s = lab.lateness(), lab.cpu_s(), time.monotonic()
        words = [str(build("sse_client")), str(lab.port), str(streams), str(requests), str(tokens), MODEL]
        running = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {cores[1]}),
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(BEGINNING_S)
        begun = lab.lateness()
        output, errors = running.communicate()
        wall_s, cpu_s = time.monotonic() - began_s, lab.cpu_s() - cpu_s
        if running.returncode:
            raise BenchError(f"the client failed: {errors.strip()}")
        client = json.loads(output)
        after = lab.lateness()
    return {
        "streams": streams,
        "tokens": client["tokens"],
        "tokens_per_s": client["tokens"] / client["wall_s"],
        "late_p50_s": quantile_s(begun, after, 0.50),
        "late_p99_s": quantile_s(begun, after, 0.99),
        "late_p999_s": quantile_s(begun, after, 0.999),
        "late_p99_with_beginning_s": quantile_s(before, after, 0.99),
        "server_cores": cpu_s / wall_s,
        "client_ttft_s": client["ttft_mean_s"],
        "client_e2e_s": client["e2e_mean_s"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=400, help="of each answer")
    parser.add_argument("--requests", type=int, default=2, help="of each stream, one after the other")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="KEY=VALUE for the lab")
    parser.add_argument("--fifo", action="store_true", help="real-time priority for the server, on a busy host")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    usual = [
        f"max_num_seqs={SEQUENCES_MAX}",
        "max_num_batched_tokens=8192",
        f"cudagraph_max_sequences={SEQUENCES_MAX}",
        f"sequence_overhead_s={SEQUENCE_S}",
    ]
    try:
        found = measure(asked.streams, asked.tokens, asked.requests, usual + asked.settings, asked.fifo)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    if asked.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['streams']:.0f} streams, {found['tokens']:.0f} tokens: {found['tokens_per_s']:,.0f} tokens/s")
    late = [f"{name} {found[f'late_{key}_s'] * 1e3:.2f} ms" for name, key in LATE]
    print(f"lateness {', '.join(late)}, p99 with the beginning {found['late_p99_with_beginning_s'] * 1e3:.2f} ms")
    print(f"the server used {found['server_cores']:.2f} cores")
    print(f"client: first token after {found['client_ttft_s']:.2f} s, end after {found['client_e2e_s']:.2f} s (means)")
    return 0


LATE = (("p50", "p50"), ("p99", "p99"), ("p99.9", "p999"))

if __name__ == "__main__":
    sys.exit(main())
