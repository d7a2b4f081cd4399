"""The server with known truth: compile it, run it, read what it wrote down.

`build()` compiles the C programs beside this file into a cache directory. `Server` runs one server for one run of a
client; `Server.stop()` ends it and returns its `Truth`.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SOURCES = Path(__file__).parent
NS_PER_S = 1e9
STOP_TIMEOUT_S = 20.0

_HEAD_NUMBERS = 16
_MAGIC = 0x31485455525450
_FLAG_STREAM, _FLAG_PROBE, _FLAG_DONE = 1, 2, 4


class BenchError(Exception):
    """Something the benchmark needs is missing; the text says what and what to do."""


def build(name: str) -> Path:
    """The compiled program of `NAME.c`, kept in the user's cache under a hash of its source. Raises BenchError."""
    source = SOURCES / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinchpoint-bench"
    program = cache / f"{name}-{digest}"
    if program.exists():
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("no C compiler was found; install one (Debian: apt-get install gcc libc6-dev)")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        made = Path(directory) / name
        done = subprocess.run([compiler, "-O2", "-Wall", "-o", made, source], capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{source} does not compile:\n{done.stderr}")
        made.replace(program)
    return program


def quantile(values: np.ndarray, q: float) -> float:
    """NaN of nothing."""
    return float(np.quantile(values, q)) if len(values) else float("nan")


@dataclass(frozen=True)
class Truth:
    """What the server saw of the load; probes are left out. Arrays have one entry per request, in order of arrival.

    Instants are int64 ns of the host's monotonic clock. `token_ns[token_offset[i] : token_offset[i] + tokens[i]]` are
    the instants just before each token of request i was sent; a request that was not streamed has none.
    """

    serial: np.ndarray
    arrival_ns: np.ndarray
    """The kernel's stamp of the last segment of the request."""
    read_ns: np.ndarray
    base_ns: np.ndarray
    first_write_ns: np.ndarray
    last_write_ns: np.ndarray
    tokens: np.ndarray
    token_offset: np.ndarray
    streamed: np.ndarray
    done: np.ndarray
    token_ns: np.ndarray
    ttft_ns: int
    itl_ns: int
    connections: int
    blocked_writes: int
    """Sends that the socket did not take whole: the client did not read for long."""
    probes: int
    priority: str

    def __len__(self) -> int:
        return len(self.serial)

    @property
    def begin_ns(self) -> int:
        """First arrival."""
        return int(self.arrival_ns.min())

    @property
    def end_ns(self) -> int:
        """Last write."""
        return int(self.last_write_ns.max())

    @property
    def token_total(self) -> int:
        return int(self.tokens.sum())

    @property
    def tokens_per_s(self) -> float:
        return self.token_total * NS_PER_S / (self.end_ns - self.begin_ns)

    @property
    def ttft_s(self) -> np.ndarray:
        return (self.first_write_ns - self.arrival_ns)[self.done] / NS_PER_S

    @property
    def e2e_s(self) -> np.ndarray:
        return (self.last_write_ns - self.arrival_ns)[self.done] / NS_PER_S

    @property
    def tpot_s(self) -> np.ndarray:
        many = self.done & (self.tokens > 1)
        return (self.last_write_ns - self.first_write_ns)[many] / NS_PER_S / (self.tokens[many] - 1)

    def tokens_of(self, row: int) -> np.ndarray:
        return self.token_ns[self.token_offset[row] : self.token_offset[row] + self.tokens[row]]

    def _streams(self) -> np.ndarray:
        return np.flatnonzero(self.streamed & self.done)

    def itl_s(self) -> np.ndarray:
        """Gaps between tokens of one request, all requests in one array."""
        gaps = [np.diff(self.tokens_of(row)) for row in self._streams()]
        return np.concatenate(gaps) / NS_PER_S if gaps else np.empty(0)

    def write_lateness_s(self) -> np.ndarray:
        """Each token's send after the instant the schedule asked for. Without meaning when the server was frozen."""
        late = [
            self.tokens_of(row) - (self.base_ns[row] + self.ttft_ns + self.itl_ns * np.arange(self.tokens[row]))
            for row in self._streams()
        ]
        return np.concatenate(late) / NS_PER_S if late else np.empty(0)

    def in_flight_mean(self, begin_ns: int, end_ns: int) -> float:
        """Requests between arrival and last write, averaged over the time from begin to end."""
        inside = np.minimum(self.last_write_ns, end_ns) - np.maximum(self.arrival_ns, begin_ns)
        return float(np.maximum(inside, 0).sum() / max(1, end_ns - begin_ns))

    def steady_ns(self, concurrency: int) -> tuple[int, int]:
        """When a closed loop of so many users can be full: from the arrival that fills it to the last arrival."""
        arrivals = np.sort(self.arrival_ns)
        return int(arrivals[min(concurrency, len(arrivals)) - 1]), int(arrivals[-1])


def read_truth(path: Path) -> Truth:
    """Reads the file that sse_server.c writes at its end. Raises BenchError when it is something else."""
    raw = np.fromfile(path, dtype=np.int64)
    if len(raw) < _HEAD_NUMBERS or raw[0] != _MAGIC:
        raise BenchError(f"{path} is not a truth file of sse_server")
    _, rows, tokens, width, ttft_ns, itl_ns, connections, blocked, fifo = (int(n) for n in raw[:9])
    table = raw[_HEAD_NUMBERS : _HEAD_NUMBERS + rows * width].reshape(rows, width)
    token_ns = raw[_HEAD_NUMBERS + rows * width :]
    if len(token_ns) != tokens:
        raise BenchError(f"{path} holds {len(token_ns)} instants of tokens, {tokens} were announced")
    flags = table[:, 9]
    probes = flags & _FLAG_PROBE != 0
    load = table[~probes]
    load = load[np.argsort(load[:, 1], kind="stable")]
    return Truth(
        *(load[:, i].copy() for i in range(8)),
        streamed=load[:, 9] & _FLAG_STREAM != 0,
        done=load[:, 9] & _FLAG_DONE != 0,
        token_ns=token_ns,
        ttft_ns=ttft_ns,
        itl_ns=itl_ns,
        connections=connections,
        blocked_writes=blocked,
        probes=int(probes.sum()),
        priority="fifo" if fifo else "normal",
    )


class Server:
    """One server process. `options` are those of sse_server.c, such as tokens=200, itl_us=10000, nonstream=True."""

    def __init__(self, **options: int | float | str | bool) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="pinchpoint-bench-")
        self._truth = Path(self._directory.name) / "truth.bin"
        words = [str(build("sse_server")), "--truth", str(self._truth)]
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [] if value is False else [flag, str(value)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().split()[1])
        self.priority = self._process.stdout.readline().split()[1]
        self.reached = threading.Event()
        """Set when the request of --notify-n has come."""
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("reached"):
                self.reached.set()

    def stop(self) -> Truth:
        """Ends the server and reads its truth. Raises BenchError when it had failed."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(STOP_TIMEOUT_S)
        try:
            if code or not self._truth.exists():
                raise BenchError(f"the server ended with exit code {code} and wrote no truth")
            return read_truth(self._truth)
        finally:
            self._directory.cleanup()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()
