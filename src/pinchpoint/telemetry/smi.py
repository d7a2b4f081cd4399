"""Sources that ask a vendor's command-line tool, and the same tools' saved outputs.

The last resort: used where neither the vendor's library nor an exporter is there. A tool is a process of its own for
each reading, so it is asked every SMI_PERIOD_S, not with the other sources; it gets TIMEOUT_S, its output is cut at
MAX_OUTPUT_BYTES, and while one that hangs has not ended (a broken driver keeps it from being killed) no other starts.
"""

import contextlib
import gzip
import io
import os
import selectors
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Collection
from typing import NamedTuple

from pinchpoint.catalog import format_labels
from pinchpoint.clock import monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.telemetry import smi_amd, smi_ascend, smi_nvidia, smi_others
from pinchpoint.telemetry.config import Reading, event

SMI_PERIOD_S = 5.0
TIMEOUT_S = 10.0
"""nvidia-smi takes seconds on a host with eight GPUs and no persistence mode."""
KILL_WAIT_S = 1.0
MAX_OUTPUT_BYTES = 16 << 20
HEAD_CHARS = 64 << 10
"""Of an output, in which its kind must show."""
CHUNK_BYTES = 1 << 16


class Parser(NamedTuple):
    """Reads one kind of output. Called with its bytes, gzip or not; raises UsageError when it is damaged."""

    name: str
    """The command, as one would type it."""
    kind: str
    """nvidia, amd, ascend, gaudi or tpu."""
    read: Callable[[str], list[Reading]]

    def __call__(self, data: bytes) -> list[Reading]:
        return self.read(_text(data))


NVIDIA_XML = Parser("nvidia-smi -q -x", "nvidia", smi_nvidia.read_xml)
NVIDIA_TEXT = Parser("nvidia-smi -q", "nvidia", smi_nvidia.read_text)
NVIDIA_CSV = Parser("nvidia-smi --query-gpu --format=csv", "nvidia", smi_nvidia.read_csv)
NVIDIA_TABLE = Parser("nvidia-smi", "nvidia", smi_nvidia.read_table)
ROCM_SMI = Parser("rocm-smi --json", "amd", smi_amd.read_rocm)
AMD_SMI = Parser("amd-smi metric --json", "amd", smi_amd.read_amd)
NPU_TABLE = Parser("npu-smi info", "ascend", smi_ascend.read_table)
NPU_WATCH = Parser("npu-smi info watch", "ascend", smi_ascend.read_watch)
NPU_KEYS = Parser("npu-smi info -t", "ascend", smi_ascend.read_keys)
HL_SMI = Parser("hl-smi --format=csv", "gaudi", smi_others.read_gaudi)
TPU_INFO = Parser("tpu-info", "tpu", smi_others.read_tpu)


class Tool(NamedTuple):
    """A command that is on this host when its first word is found, and what reads its output."""

    command: tuple[str, ...]
    parser: Parser


TOOLS = (
    Tool(("nvidia-smi", "-q", "-x"), NVIDIA_XML),
    Tool(
        (
            *("rocm-smi", "--showuse", "--showmemuse", "--showpower", "--showmaxpower", "--showtemp", "--showclocks"),
            *("--showmeminfo", "vram", "--showpcireplaycount", "--showenergycounter", "--showuniqueid", "--showbus"),
            *("--showproductname", "--showdriverversion", "--json"),
        ),
        ROCM_SMI,
    ),
    Tool(("amd-smi", "metric", "--json"), AMD_SMI),
    Tool(("npu-smi", "info"), NPU_TABLE),
    Tool(
        (
            "hl-smi",
            "--query-aip=index,uuid,name,bus_id,driver_version,utilization.aip,memory.used,memory.total,power.draw,"
            "temperature.aip",
            "--format=csv",
        ),
        HL_SMI,
    ),
    Tool(("tpu-info",), TPU_INFO),
)
"""Of two tools of one vendor the first that is there is used: rocm-smi before amd-smi, as it was read on captures."""


class Smi:
    """One tool, asked again and again. Made by `find_smi`."""

    def __init__(self, tool: Tool, timeout_s: float = TIMEOUT_S, max_output_bytes: int = MAX_OUTPUT_BYTES) -> None:
        self.name = f"smi-{tool.parser.kind}"
        self._tool = tool
        self._timeout_s = timeout_s
        self._max_output_bytes = max_output_bytes
        self._hung: subprocess.Popen[bytes] | None = None
        self._introduced: set[str] = set()

    @property
    def kind(self) -> str:
        return self._tool.parser.kind

    @property
    def command(self) -> str:
        return " ".join(self._tool.command)

    def read(self) -> tuple[int, list[Reading]]:
        """A tool that is absent, slow, fails or prints something else is one event."""
        if self._hung is not None:
            if self._hung.poll() is None:
                return monotonic_ns(), [self._event("smi_still_running")]
            self._hung = None
        output, problem = self._output()
        now_ns = monotonic_ns()
        if problem is not None:
            return now_ns, [self._event(problem)]
        try:
            readings = self._tool.parser(output)
        except UsageError as error:
            return now_ns, [self._event("smi_unreadable", str(error)[:200])]
        if not readings:
            return now_ns, [self._event("smi_empty")]
        return now_ns, [reading for reading in readings if self._is_news(reading)]

    def _is_news(self, reading: Reading) -> bool:
        """What a device is, is told once and when it changes."""
        if reading.series != "gpu.info":
            return True
        if reading.labels in self._introduced:
            return False
        self._introduced.add(reading.labels)
        return True

    def _event(self, name: str, reason: str | None = None) -> Reading:
        labels = {"tool": self._tool.command[0], "kind": self.kind}
        return event(name, format_labels(labels | ({"reason": reason} if reason else {})))

    def _output(self) -> tuple[bytes, str | None]:
        """What the tool printed, or the name of the event that says why there is nothing."""
        try:
            process = subprocess.Popen(
                self._tool.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"LC_ALL": "C", "COLUMNS": "200"},
                start_new_session=True,
            )
        except OSError:
            return b"", "smi_not_started"
        output, problem = self._drain(process)
        if problem is None:
            try:
                return output, None if process.wait(self._timeout_s) == 0 else "smi_failed"
            except subprocess.TimeoutExpired:  # it has closed its output and goes on
                problem = "smi_timeout"
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            self._hung = process
        return b"", problem

    def _drain(self, process: subprocess.Popen[bytes]) -> tuple[bytes, str | None]:
        assert process.stdout is not None
        deadline_s = time.monotonic() + self._timeout_s
        chunks = bytearray()
        with process.stdout as pipe, selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    return b"", "smi_timeout"
                chunk = os.read(pipe.fileno(), CHUNK_BYTES)
                if not chunk:
                    return bytes(chunks), None
                chunks += chunk
                if len(chunks) > self._max_output_bytes:
                    return b"", "smi_too_long"


def find_smi(covered: Collection[str] = (), which: Callable[[str], str | None] = shutil.which) -> list[Smi]:
    """A source for each vendor whose tool is here, but for those in `covered` (as nvidia, when NVML is read)."""
    found: list[Smi] = []
    kinds = set(covered)
    for tool in TOOLS:
        if tool.parser.kind not in kinds and which(tool.command[0]) is not None:
            kinds.add(tool.parser.kind)
            found.append(Smi(tool))
    return found


def recognise(data: bytes) -> Parser | None:
    """Which tool printed this; None when none of those that are known. Gzip is looked into."""
    try:
        text = _text(data)
    except UsageError:
        return None
    head = text[:HEAD_CHARS]
    first = next((line for line in head.splitlines() if line.strip()), "")
    if "<nvidia_smi_log" in head:
        return NVIDIA_XML
    if smi_nvidia.LOG_HEAD in text:
        return NVIDIA_TEXT
    if "npu-smi" in head and "AICore(%)" in head:
        return NPU_TABLE
    if "NpuID(Idx)" in head:
        return NPU_WATCH
    if "NPU ID" in head and any(f"{key} " in head for key in smi_ascend.KEYS):
        return NPU_KEYS
    if "| NVIDIA-SMI" in head:
        return NVIDIA_TABLE
    if "TPU Runtime Utilization" in head:
        return TPU_INFO
    columns = [column.strip().partition(" [")[0] for column in first.split(",")]
    if "utilization.aip" in columns or "temperature.aip" in columns:
        return HL_SMI
    if {"utilization.gpu", "memory.used", "power.draw", "temperature.gpu"} & set(columns):
        return NVIDIA_CSV
    if first.lstrip().startswith(("{", "[")) or "\n{" in head or "\n[" in head:
        return _of_json(text)
    return None


def _of_json(text: str) -> Parser | None:
    try:
        found = smi_amd.document(text)
    except UsageError:
        return None
    if smi_amd.is_rocm(found):
        return ROCM_SMI
    return AMD_SMI if smi_amd.is_amd(found) else None


def _text(data: bytes) -> str:
    """Decoded, unpacked when it is gzip, never more than MAX_OUTPUT_BYTES. Raises UsageError when gzip is damaged."""
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(MAX_OUTPUT_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"the compressed output breaks off or is damaged ({error}); save it again") from error
    return data[:MAX_OUTPUT_BYTES].decode("utf-8", "replace")
