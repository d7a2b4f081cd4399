"""Source `gpu`: NVIDIA GPUs of this host, through the driver's own library.

Needs the extra `gpu` (nvidia-ml-py) and a driver. What a device cannot tell (no ECC, no memory sensor, a MIG device's
utilisation, a call that the driver is too old for) gives no samples and is not asked again; a call that is forbidden
or fails otherwise is an event, once. A device that is lost is an event and stays a gap until it answers again.

Two paces. Cheap calls go with every reading; what changes rarely or costs much waits for SLOW_PERIOD_S. PCIe
throughput is the dear one: NVML counts for 20 ms, once per direction (nvml.h, nvmlDeviceGetPcieThroughput), so it is
asked for only where the device neither counts bytes nor has profiling counters.

The surprising thing: profiling metrics (SM and tensor activity, DRAM bandwidth; Hopper and later) are a comparison of
two samples, and NVML keeps neither. The sample of the reading before is held here.
"""

import contextlib
import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.telemetry.accelerator import (
    HZ_PER_MHZ,
    PERCENT,
    Accelerator,
    bus_id,
    clock_events,
    device_labels,
    info,
)
from pinchpoint.telemetry.config import Reading, event, own
from pinchpoint.telemetry.nvml_tables import (
    FAST_FIELDS,
    GPM_METRICS,
    INIT_WORDS,
    RATES,
    SLOW_FIELDS,
    U32_VALUE,
    VALUE_MEMBER,
    Field,
)

KIND = "nvidia"
SLOW_PERIOD_S = 10.0
GPM_MIN_GAP_S = 0.1
"""Our choice: over a shorter stretch the edges of the two samples weigh too much."""
MAX_DEVICES = 64
MAX_PROCESSES = 64
"""Of one device; a service has one or a few per device, and each is a series."""
MAX_XIDS = 32
"""Taken from the driver's queue per reading."""
MW_PER_W = 1e3
KB_BYTES = 1e3
U32 = 1 << 32
CLOCK_SM, CLOCK_MEMORY = 1, 2
TEMPERATURE_GPU = 0
PCIE_TX, PCIE_RX = 0, 1
XID_EVENT = 0x8
DRIVER_FILE = "/proc/driver/nvidia/version"

NOT_FOR_THIS_DEVICE = frozenset({2, 3, 6, 13, 25, 26})
"""NVML's INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH, DEPRECATED."""
SUCCESS = 0
NO_PERMISSION = 4
DEVICE_GONE = frozenset({15, 16, 28})
"""GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND."""

PCIE_RATES = (("gpu.pcie_tx_bytes_per_s", PCIE_TX), ("gpu.pcie_rx_bytes_per_s", PCIE_RX))


class _Gone(Exception):
    """The device stopped answering while it was read."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Device:
    """One GPU and what has been learned about it."""

    def __init__(self, index: int, handle: Any) -> None:
        self.index = index
        self.handle = handle
        self.labels = device_labels(KIND, index)
        self.closed: set[tuple[Any, ...]] = set()
        """Calls and fields that this device does not offer."""
        self.told: set[tuple[Any, ...]] = set()
        """Failures that have been an event already."""
        self.counted: set[str] = set()
        """Series that the device has given as a counter."""
        self.lost = False
        self.introduced = False
        self.watched = False
        """Its Xids are listened for."""
        self.last_xid = 0
        self.wraps: dict[int, tuple[int, int]] = {}
        """Per 32-bit field: the value before and the turns so far."""
        self.gpm: list[Any] = []
        """Two samples, of which the first is the one before; empty: no profiling metrics."""
        self.gpm_ns: int | None = None
        self.rated: set[str] | None = set()
        """Rates that profiling gives; None while nothing has been compared yet."""

    def unwrapped(self, field: int, value: int) -> int:
        """A 32-bit counter without its turns. One that falls from the lower half was set back, and stays as it is."""
        before, turns = self.wraps.get(field, (0, 0))
        if value < before and before >= U32 // 2:
            turns += 1
        self.wraps[field] = (value, turns)
        return value + turns * U32


class Nvml:
    """`library` is the module pynvml after nvmlInit. Made by `find_nvml`."""

    name = "gpu"

    def __init__(self, library: Any, clock: Callable[[], int] = monotonic_ns) -> None:
        self._library = library
        self._clock = clock
        self._older = getattr(library, "NVMLLibraryMismatchError", library.NVMLError)
        self._pending: list[Reading] = []
        """Events of the time before the first reading."""
        self._next_slow_ns = 0
        self._xids: Any = self._whole("nvmlEventSetCreate")
        count = self._whole("nvmlDeviceGetCount") or 0
        self._devices = [self._open(index) for index in range(min(count, MAX_DEVICES))]
        self._driver: str | None = self._whole("nvmlSystemGetDriverVersion")

    @property
    def device_count(self) -> int:
        """GPUs that the driver knew at the start, lost ones included."""
        return len(self._devices)

    def read(self) -> tuple[int, list[Reading]]:
        now_ns = self._clock()
        slow = now_ns >= self._next_slow_ns
        if slow:
            self._next_slow_ns = now_ns + int(SLOW_PERIOD_S * NS_PER_S)
        readings, self._pending = self._pending, []
        readings += self._new_xids()
        for device in self._devices:
            if device.lost and not (slow and self._reopen(device) == SUCCESS):
                continue
            mine: list[Reading] = []
            try:
                self._fast(device, mine)
                if slow:
                    self._slow(device, mine)
                if device.lost:
                    device.lost = False
                    mine.append(event("gpu_back", device.labels))
            except _Gone as gone:
                mine = [] if device.lost else mine
                mine += self._lose(device, gone.code)
            readings += mine
        return now_ns, readings

    def accelerators(self) -> list[Accelerator]:
        """What the devices are. Lost ones are named by their index alone."""
        found: list[Accelerator] = []
        for device in self._devices:
            known = Accelerator(KIND, device.index, driver=self._driver, source="nvml")
            if not device.lost:
                with contextlib.suppress(_Gone):
                    known = self._describe(device)
            found.append(known)
        return found

    def close(self) -> None:
        """Frees what NVML holds for us. Not needed when the process ends."""
        for device in self._devices:
            self._end_profiling(device)
        if self._xids is not None:
            self._whole("nvmlEventSetFree", self._xids)
            self._xids = None
        self._whole("nvmlShutdown")

    # --- one reading of one device ------------------------------------------------------------------------------

    def _fast(self, device: _Device, out: list[Reading]) -> None:
        labels = device.labels
        if not device.introduced:
            out.append(self._introduce(device))
            device.introduced = True
        usage = self._ask(device, out, "nvmlDeviceGetUtilizationRates")
        if usage is not None:
            out.append(own("gpu.util_ratio", usage.gpu * PERCENT, labels))
            out.append(own("gpu.memory_util_ratio", usage.memory * PERCENT, labels))
        memory = self._memory(device, out)
        if memory is not None:
            out.append(own("gpu.memory_used_bytes", float(memory.used), labels))
            out.append(own("gpu.memory_total_bytes", float(memory.total), labels))
        self._tell(device, out, "gpu.power_watts", 1 / MW_PER_W, "nvmlDeviceGetPowerUsage")
        self._tell(device, out, "gpu.sm_clock_hz", HZ_PER_MHZ, "nvmlDeviceGetClockInfo", CLOCK_SM)
        self._tell(device, out, "gpu.memory_clock_hz", HZ_PER_MHZ, "nvmlDeviceGetClockInfo", CLOCK_MEMORY)
        for call in ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"):  # the first goes with CUDA 14
            if self._tell(device, out, "gpu.temperature_celsius", 1.0, call, TEMPERATURE_GPU):
                break
        reasons = self._ask(device, out, "nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # the name before driver 535
            reasons = self._ask(device, out, "nvmlDeviceGetCurrentClocksThrottleReasons")
        if reasons is not None:
            out += clock_events(KIND, device.index, int(reasons))
        self._fields(device, out, FAST_FIELDS)
        self._profile(device, out)
        if device.watched:
            out.append(own("gpu.xid_errors", float(device.last_xid), labels))

    def _slow(self, device: _Device, out: list[Reading]) -> None:
        self._fields(device, out, SLOW_FIELDS)
        self._tell(device, out, "gpu.power_limit_watts", 1 / MW_PER_W, "nvmlDeviceGetEnforcedPowerLimit")
        self._tell(device, out, "gpu.sm_clock_max_hz", HZ_PER_MHZ, "nvmlDeviceGetMaxClockInfo", CLOCK_SM)
        self._tell(device, out, "gpu.memory_clock_max_hz", HZ_PER_MHZ, "nvmlDeviceGetMaxClockInfo", CLOCK_MEMORY)
        self._tell(device, out, "gpu.pcie_link_generation", 1.0, "nvmlDeviceGetCurrPcieLinkGeneration")
        self._tell(device, out, "gpu.pcie_link_generation_max", 1.0, "nvmlDeviceGetMaxPcieLinkGeneration")
        self._tell(device, out, "gpu.pcie_link_width", 1.0, "nvmlDeviceGetCurrPcieLinkWidth")
        self._tell(device, out, "gpu.pcie_link_width_max", 1.0, "nvmlDeviceGetMaxPcieLinkWidth")
        for series, direction in PCIE_RATES:
            if device.rated is not None and series not in device.rated and RATES[series] not in device.counted:
                self._tell(device, out, series, KB_BYTES, "nvmlDeviceGetPcieThroughput", direction)
        self._processes(device, out)
        if self._mig(device, out):
            out.append(own("gpu.mig_devices", float(self._mig_devices(device, out)), device.labels))

    def _memory(self, device: _Device, out: list[Reading]) -> Any:
        """Version 2 keeps the driver's own reserve out of what is used, as nvidia-smi and DCGM do."""
        version = getattr(self._library, "nvmlMemory_v2", None)
        if version is not None:
            memory = self._ask(device, out, "nvmlDeviceGetMemoryInfo", version)
            if memory is not None:
                return memory
        return self._ask(device, out, "nvmlDeviceGetMemoryInfo")

    def _fields(self, device: _Device, out: list[Reading], fields: tuple[Field, ...]) -> None:
        asked = [field for field in fields if ("field", field.number) not in device.closed]
        if not asked:
            return
        pairs = [(field.number, field.scope) for field in asked]
        # keyed by what is asked, for one refused list must not close the other
        values = self._ask(device, out, "nvmlDeviceGetFieldValues", pairs, key=("fields", fields[0].number))
        for field, answer in zip(asked, values or (), strict=False):
            if answer.nvmlReturn != 0:
                self._failed(device, out, ("field", field.number), answer.nvmlReturn)
                continue
            member = VALUE_MEMBER.get(answer.valueType)
            if member is None:
                continue
            value = getattr(answer.value, member)
            if field.series.endswith("_total"):
                device.counted.add(field.series)
                if answer.valueType == U32_VALUE:
                    value = device.unwrapped(field.number, value)
            labels = device_labels(KIND, device.index, **dict(field.labels)) if field.labels else device.labels
            out.append(own(field.series, value * field.scale, labels))

    def _profile(self, device: _Device, out: list[Reading]) -> None:
        now_ns = self._clock()
        if not device.gpm or (device.gpm_ns is not None and now_ns - device.gpm_ns < GPM_MIN_GAP_S * NS_PER_S):
            return
        before, after = device.gpm
        if self._ask(device, out, "nvmlGpmSampleGet", after) is None:
            device.gpm_ns = None
        else:
            if device.gpm_ns is not None:
                compared = self._compared(device, out, before, after)
                device.rated = (device.rated or set()) | {reading.raw for reading in compared if reading.raw in RATES}
                out += compared
            device.gpm = [after, before]
            device.gpm_ns = now_ns
        if {("nvmlGpmSampleGet",), ("nvmlGpmMetricsGet",)} & device.closed:
            self._end_profiling(device)

    def _end_profiling(self, device: _Device) -> None:
        for sample in device.gpm:
            self._whole("nvmlGpmSampleFree", sample)
        device.gpm, device.gpm_ns, device.rated = [], None, set()

    def _compared(self, device: _Device, out: list[Reading], before: Any, after: Any) -> list[Reading]:
        request = self._library.c_nvmlGpmMetricsGet_t()
        request.version = self._library.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2 = before, after
        wanted = [metric for metric in GPM_METRICS if RATES.get(metric[1]) not in device.counted]
        request.numMetrics = len(wanted)
        for place, (number, _, _) in enumerate(wanted):
            request.metrics[place].metricId = number
        try:
            self._library.nvmlGpmMetricsGet(request)
        except self._library.NVMLError as error:
            self._failed(device, out, ("nvmlGpmMetricsGet",), error.value)
            return []
        readings: list[Reading] = []
        for place, (_, series, scale) in enumerate(wanted):
            metric = request.metrics[place]
            if metric.nvmlReturn == 0 and math.isfinite(metric.value):
                readings.append(own(series, metric.value * scale, device.labels))
        return readings

    def _processes(self, device: _Device, out: list[Reading]) -> None:
        processes = self._ask(device, out, "nvmlDeviceGetComputeRunningProcesses")
        if processes is None:  # drivers before 510
            processes = self._ask(device, out, "nvmlDeviceGetComputeRunningProcesses_v2")
        if processes is None:
            return
        out.append(own("gpu.processes", float(len(processes)), device.labels))
        for process in processes[:MAX_PROCESSES]:
            if process.usedGpuMemory is not None:  # not told inside containers and under some drivers
                label = device_labels(KIND, device.index, pid=str(process.pid))
                out.append(own("gpu.process_memory_bytes", float(process.usedGpuMemory), label))

    def _mig(self, device: _Device, out: list[Reading]) -> bool | None:
        modes = self._ask(device, out, "nvmlDeviceGetMigMode")
        return None if modes is None else bool(modes[0])

    def _mig_devices(self, device: _Device, out: list[Reading]) -> int:
        most = self._ask(device, out, "nvmlDeviceGetMaxMigDeviceCount") or 0
        count = 0
        for place in range(most):
            try:
                self._library.nvmlDeviceGetMigDeviceHandleByIndex(device.handle, place)
                count += 1
            except self._library.NVMLError:  # this place is empty
                continue
        return count

    # --- what the device is -------------------------------------------------------------------------------------

    def _describe(self, device: _Device) -> Accelerator:
        unheard: list[Reading] = []
        pci = self._ask(device, unheard, "nvmlDeviceGetPciInfo")
        memory = self._memory(device, unheard)
        return Accelerator(
            KIND,
            device.index,
            name=self._ask(device, unheard, "nvmlDeviceGetName"),
            uuid=self._ask(device, unheard, "nvmlDeviceGetUUID"),
            bus_id=None if pci is None else bus_id(_text(pci.busId)),
            memory_bytes=None if memory is None else int(memory.total),
            driver=self._driver,
            mig=self._mig(device, unheard),
            source="nvml",
        )

    def _introduce(self, device: _Device) -> Reading:
        facts = self._describe(device)
        unheard: list[Reading] = []
        persistence = self._ask(device, unheard, "nvmlDeviceGetPersistenceMode")
        compute = self._ask(device, unheard, "nvmlDeviceGetComputeMode")
        return info(
            KIND,
            device.index,
            {
                "name": facts.name,
                "uuid": facts.uuid,
                "bus_id": facts.bus_id,
                "driver": facts.driver,
                "mig": None if facts.mig is None else ("on" if facts.mig else "off"),
                "persistence": None if persistence is None else ("on" if persistence else "off"),
                "compute_mode": None if compute is None else str(compute),
            },
        )

    # --- asking -------------------------------------------------------------------------------------------------

    def _tell(self, device: _Device, out: list[Reading], series: str, scale: float, call: str, *arguments: Any) -> bool:
        """False when the device does not say."""
        value = self._ask(device, out, call, *arguments)
        if value is not None:
            out.append(own(series, value * scale, device.labels))
        return value is not None

    def _ask(
        self, device: _Device, out: list[Reading], call: str, *arguments: Any, key: tuple[Any, ...] | None = None
    ) -> Any:
        """What the call says of the device; None when it says nothing. Raises _Gone when the device is lost."""
        key = key or (call, *(argument for argument in arguments if isinstance(argument, int)))
        function = getattr(self._library, call, None)
        if function is None or key in device.closed:
            return None
        try:
            return function(device.handle, *arguments)
        except self._library.NVMLError as error:
            self._failed(device, out, key, error.value)
        except (self._older, UnicodeDecodeError):  # a driver that knows another version of the call; a name not text
            device.closed.add(key)
        return None

    def _failed(self, device: _Device, out: list[Reading], key: tuple[Any, ...], code: int) -> None:
        if code in DEVICE_GONE:
            raise _Gone(code)
        if code in NOT_FOR_THIS_DEVICE or code == NO_PERMISSION:
            device.closed.add(key)
        if code in NOT_FOR_THIS_DEVICE or (*key, code) in device.told:
            return
        device.told.add((*key, code))
        what = " ".join(str(part) for part in key)
        out.append(event("gpu_read_failed", device_labels(KIND, device.index, call=what, reason=self._reason(code))))

    def _whole(self, call: str, *arguments: Any) -> Any:
        """A call that belongs to no device; None when it fails."""
        function = getattr(self._library, call, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except (self._library.NVMLError, UnicodeDecodeError):
            return None

    def _reason(self, code: int) -> str:
        return type(self._library.NVMLError(code)).__name__.removeprefix("NVMLError_")

    # --- devices that come and go -------------------------------------------------------------------------------

    def _open(self, index: int) -> _Device:
        device = _Device(index, None)
        code = self._reopen(device)
        if code != SUCCESS:
            self._pending += self._lose(device, code)
        return device

    def _reopen(self, device: _Device) -> int:
        """A new handle, and new samples for profiling. NVML's code when the device cannot be had."""
        try:
            device.handle = self._library.nvmlDeviceGetHandleByIndex(device.index)
        except self._library.NVMLError as error:
            return int(error.value)
        self._end_profiling(device)
        try:
            support = self._ask(device, self._pending, "nvmlGpmQueryDeviceSupport")
        except _Gone as gone:
            return gone.code
        if support is not None and support.isSupportedDevice:
            samples = [self._whole("nvmlGpmSampleAlloc") for _ in range(2)]
            device.gpm = samples if None not in samples else []
            device.rated = None if device.gpm else set()
        self._watch(device)
        return SUCCESS

    def _lose(self, device: _Device, code: int) -> list[Reading]:
        """The event of a loss; nothing when it has been told."""
        told, device.lost, device.introduced = device.lost, True, False
        if told:
            return []
        return [event("gpu_lost", device_labels(KIND, device.index, reason=self._reason(code)))]

    # --- Xids ---------------------------------------------------------------------------------------------------

    def _watch(self, device: _Device) -> None:
        """Its Xids are told from now on; where that is not offered, or to root only, they stay unknown."""
        if self._xids is None or device.watched:
            return
        with contextlib.suppress(self._library.NVMLError):
            self._library.nvmlDeviceRegisterEvents(device.handle, XID_EVENT, self._xids)
            device.watched = True

    def _new_xids(self) -> list[Reading]:
        readings: list[Reading] = []
        if self._xids is None:
            return readings
        by_address = {_address(device.handle): device for device in self._devices if device.handle is not None}
        wait: Callable[..., Any] = self._library.nvmlEventSetWait_v2
        for _ in range(MAX_XIDS):
            try:
                data = wait(self._xids, 0)
            except self._library.NVMLError:  # a timeout: nothing has come
                break
            device = by_address.get(_address(data.device))
            if device is None or not data.eventType & XID_EVENT:
                continue
            device.last_xid = int(data.eventData)
            readings.append(event("gpu_xid", device_labels(KIND, device.index, xid=str(device.last_xid))))
        return readings


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def find_nvml(tell: Callable[[str], None] = lambda _: None, driver_file: str = DRIVER_FILE) -> Nvml | None:
    """The GPUs of this host; None when there is no GPU, no driver, no library or no way to use them.

    `tell` gets one sentence when there is something that a person can mend: the extra is missing though a driver is
    there, driver and library are of different versions, the driver is not loaded or not permitted.
    """
    try:
        import pynvml
    except ImportError:
        if Path(driver_file).exists():
            tell("an NVIDIA driver is loaded but nvidia-ml-py is missing; install pinchpoint[gpu] to read the GPUs")
        return None
    library: Any = pynvml
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        words = INIT_WORDS.get(error.value)
        if words is not None:
            tell(f"the NVIDIA driver's library {words}")
        return None
    nvml = Nvml(library)
    if nvml.device_count == 0:
        nvml.close()
        return None
    return nvml
