"""Clients under test: command lines, one measured run, and what their records say beside the server's truth."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cpu import Tree, Usage
from server import BenchError, Server, Truth, build

from pinchpoint.rundir import read_run

INPUT_TOKENS = 100
TIMEOUT_S = 240.0
REACHED_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Load:
    """What is asked of a client. Either concurrency (closed loop) or rate_rps (open loop, even gaps) is given."""

    requests: int
    output_tokens: int
    concurrency: int | None = None
    rate_rps: float | None = None
    stream: bool = True
    workers: int | None = None
    force: bool = False
    """Asked for more than the host can carry, on purpose."""


@dataclass(frozen=True)
class Run:
    """One run of one client against one fresh server."""

    truth: Truth
    usage: Usage
    stopped_ns: tuple[int, int] | None
    """Between these instants the client's processes were stopped by us."""

    @property
    def load_cpu_s(self) -> float:
        """CPU of the client's whole tree from the first arrival to the last write, as the server saw them."""
        return self.usage.cpu_between_s(self.truth.begin_ns, self.truth.end_ns)

    @property
    def us_per_token(self) -> float:
        return self.load_cpu_s / max(1, self.truth.token_total) * 1e6

    @property
    def load_s(self) -> float:
        return (self.truth.end_ns - self.truth.begin_ns) / 1e9

    @property
    def startup_s(self) -> float:
        return (self.truth.begin_ns - self.usage.exec_ns) / 1e9

    @property
    def tail_s(self) -> float:
        return (self.usage.exit_ns - self.truth.end_ns) / 1e9

    @property
    def foreign_cores(self) -> float:
        return self.usage.foreign_cores(self.truth.begin_ns, self.truth.end_ns)

    @property
    def stolen_cores(self) -> float:
        return self.usage.stolen_cores(self.truth.begin_ns, self.truth.end_ns)

    @property
    def server_cores(self) -> float:
        return self.usage.beside_cores(self.truth.begin_ns, self.truth.end_ns)

    @property
    def requests_per_s(self) -> float:
        return len(self.truth) / self.load_s

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON document on stdout. Raises BenchError with the end of stderr when there is none."""
        try:
            return json.loads(self.usage.stdout)
        except ValueError:
            raise BenchError(_complaint(self.usage)) from None


def _complaint(usage: Usage) -> str:
    ended = "took too long and was killed" if usage.exit_code is None else f"ended with exit code {usage.exit_code}"
    words = (usage.stderr.strip() or usage.stdout.strip())[-600:]
    return f"`{shlex.join(usage.command)}` {ended}: {words}"


def measure(
    command: Callable[[Server], list[str]],
    *,
    stop_client_s: float | None = None,
    cwd: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    **server_options: Any,
) -> Run:
    """Runs a command against a fresh server. Raises BenchError when not one request came.

    stop_client_s: the client's whole tree is stopped for so long when the request of the option `notify_n` has come.
    """
    stopped: list[int] = []
    with Server(**server_options) as server:
        tree = Tree(command(server), beside=server.pid, cwd=cwd)

        def stop_and_continue(seconds: float) -> None:
            if server.reached.wait(REACHED_TIMEOUT_S):
                stopped.append(time.monotonic_ns())
                tree.signal_all(signal.SIGSTOP)
                time.sleep(seconds)
                tree.signal_all(signal.SIGCONT)
                stopped.append(time.monotonic_ns())

        if stop_client_s is not None:
            threading.Thread(target=stop_and_continue, args=(stop_client_s,), daemon=True).start()
        usage = tree.wait(timeout_s)
        truth = server.stop()
    if not len(truth):
        raise BenchError(f"not one request came to the server; {_complaint(usage)}")
    return Run(truth, usage, (stopped[0], stopped[1]) if len(stopped) == 2 else None)


# ---- commands


def pinchpoint(words: list[str], load: Load, out: Path) -> Callable[[Server], list[str]]:
    """`words` start the program, such as [python, "-m", "pinchpoint"]."""
    flags = ["--requests", load.requests, "--input-tokens", INPUT_TOKENS, "--output-tokens", load.output_tokens]
    if load.concurrency is not None:
        flags += ["--concurrency", load.concurrency]
    else:
        flags += ["--rate", f"{load.rate_rps:g}", "--arrivals", "constant"]
    if not load.stream:
        flags += ["--no-stream"]
    if load.workers is not None:
        flags += ["--workers", load.workers]
    if load.force:
        flags += ["--force"]
    flags += ["--model", "m", "--seed", 1, "--json", "--out", out]
    return lambda server: [*words, "load", server.url, *(str(flag) for flag in flags)]


def c_client(concurrency: int, rounds: int, tokens: int) -> Callable[[Server], list[str]]:
    program = str(build("sse_client"))
    return lambda server: [program, str(server.port), str(concurrency), str(rounds), str(tokens)]


def aiohttp_client(python: Path, connections: int, requests: int) -> Callable[[Server], list[str]]:
    """Raises BenchError when that Python lacks aiohttp or uvloop."""
    if subprocess.run([python, "-c", "import aiohttp, uvloop"], capture_output=True).returncode:
        raise BenchError(
            f"{python} lacks aiohttp or uvloop; install them (`python -m venv V; V/bin/pip install aiohttp uvloop`) "
            "and give --aiohttp-python V/bin/python"
        )
    script = str(Path(__file__).with_name("aiohttp_client.py"))
    return lambda server: [str(python), script, server.url, str(connections), str(requests)]


@contextmanager
def wrk(connections: int, seconds: int) -> Iterator[Callable[[Server], list[str]]]:
    """wrk with one thread. Raises BenchError when it is not installed."""
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk is not installed (Debian: apt-get install wrk)")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        body = {"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": " the" * INPUT_TOKENS}]}
        script.write('wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n')
        script.write(f"wrk.body = {json.dumps(json.dumps(body))}\n")
        script.flush()
        yield lambda server: [
            program,
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "-s",
            script.name,
            f"{server.url}/v1/chat/completions",
        ]


def import_s(python: str = sys.executable, repeats: int = 3) -> float:
    """Wall time of a process that only imports what a load needs; the best of some. Raises BenchError."""
    modules = "import pinchpoint.cli, pinchpoint.loadrun, pinchpoint.load.worker"
    times_s = []
    for _ in range(repeats):
        began_s = time.monotonic()
        done = subprocess.run([python, "-c", modules], capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"`{modules}` fails: {done.stderr.strip()[-300:]}")
        times_s.append(time.monotonic() - began_s)
    return min(times_s)


# ---- records of a run directory beside the truth


@dataclass(frozen=True)
class Joined:
    """Requests that are both in the run and in the truth; the server told its number of each (--serial).

    `token_error_ns` and `token_bound_ns` have one entry per token: the client's stamp minus the instant of the send,
    and the bound that its record gives for that error. `mismatched` requests, with other than the number of tokens
    sent, are left out of them.
    """

    row: np.ndarray
    """Index into the truth."""
    scheduled_ns: np.ndarray
    sent_ns: np.ndarray
    token_error_ns: np.ndarray
    token_bound_ns: np.ndarray
    coalesced: int
    mismatched: int
    unknown: int
    """Records of the load that no request of the truth belongs to."""


def join(path: Path, truth: Truth) -> Joined:
    """Reads the records of a run directory batch by batch."""
    row_of = {int(serial): row for row, serial in enumerate(truth.serial)}
    rows, scheduled, sent, errors, bounds = [], [], [], [], []
    coalesced = mismatched = unknown = 0
    columns = ["scheduled_ns", "sent_ns", "reasoning_tokens", "coalesced_count", "chunk_error_ns", "chunk_ns"]
    for batch in _batches(path, columns):
        chunks: Any = batch.column("chunk_ns")
        offsets = np.asarray(chunks.offsets)
        values = np.asarray(chunks.values)
        plain = [batch.column(name).to_pylist() for name in columns[:-1]]
        for i, (scheduled_ns, sent_ns, serial, together, bound_ns) in enumerate(zip(*plain, strict=True)):
            row = row_of.get(serial or -1)
            if row is None or sent_ns is None:
                unknown += 1
                continue
            rows.append(row)
            scheduled.append(scheduled_ns)
            sent.append(sent_ns)
            coalesced += together
            stamps, true_ns = values[offsets[i] : offsets[i + 1]], truth.tokens_of(row)
            if not truth.streamed[row]:
                continue
            if len(stamps) != len(true_ns):
                mismatched += 1
                continue
            errors.append(stamps - true_ns)
            bounds.append(np.full(len(stamps), bound_ns or 0))
    empty = np.empty(0, np.int64)
    return Joined(
        np.array(rows, np.int64),
        np.array(scheduled, np.int64),
        np.array(sent, np.int64),
        np.concatenate(errors) if errors else empty,
        np.concatenate(bounds) if bounds else empty,
        coalesced,
        mismatched,
        unknown,
    )


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Of the load alone: warm-ups and probes are left out by their serial being unknown."""
    run = read_run(path)
    if hasattr(run, "record_batches"):
        yield from run.record_batches(columns)
    else:
        yield from run.records.select(columns).to_batches()
