"""NVIDIA GPUs through the driver's library, played by our own C file."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.fake_nvml import H100, FakeNvml, build

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.config import CollectorConfig, Reading
from pinchpoint.telemetry.inventory import describe_host
from pinchpoint.telemetry.nvml import SLOW_PERIOD_S, Nvml, _Device, find_nvml

pytest.importorskip("pynvml")

NOT_SUPPORTED, NO_PERMISSION, UNKNOWN, GPU_IS_LOST, VERSION_MISMATCH = 3, 4, 999, 15, 18


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("old-nvml"), old_driver=True)


class Bench:
    """A fake driver, a clock that stands still until it is moved, and the source between them."""

    def __init__(self, fake: FakeNvml, patch: pytest.MonkeyPatch) -> None:
        self.fake = fake
        self._pynvml = fake.load(patch)
        self.now_ns = 1_000 * NS_PER_S

    def open(self, values: Mapping[str, object]) -> Nvml:
        self.fake.change(values)
        self._pynvml.nvmlInit()
        return Nvml(self._pynvml, lambda: self.now_ns)

    def read(self, nvml: Nvml, after_s: float = 1.0) -> list[Reading]:
        self.now_ns += int(after_s * NS_PER_S)
        t_ns, readings = nvml.read()
        assert t_ns == self.now_ns
        return readings


@pytest.fixture
def bench(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(FakeNvml(tmp_path, library), monkeypatch)


def values(readings: list[Reading], series: str) -> dict[str, float]:
    """Label text to value."""
    return {reading.labels: reading.value for reading in readings if reading.series == series}


def one(readings: list[Reading], series: str, **labels: str) -> float | None:
    """The value with these labels among its own; None when there is none."""
    found = [value for text, value in values(readings, series).items() if labels.items() <= parse_labels(text).items()]
    assert len(found) <= 1, (series, found)
    return found[0] if found else None


def events(readings: list[Reading]) -> list[str]:
    return [reading.raw for reading in readings if reading.series is None]


def test_a_busy_gpu_tells_everything_in_our_units(bench: Bench) -> None:
    readings = bench.read(bench.open(H100))
    expected = {
        "gpu.util_ratio": 0.93,
        "gpu.memory_util_ratio": 0.41,
        "gpu.memory_used_bytes": 60e9,
        "gpu.memory_total_bytes": 85520809984.0,
        "gpu.power_watts": 629.45,
        "gpu.power_limit_watts": 700.0,
        "gpu.energy_j_total": 123456.789,
        "gpu.sm_clock_hz": 1.98e9,
        "gpu.sm_clock_max_hz": 1.98e9,
        "gpu.memory_clock_hz": 2.619e9,
        "gpu.memory_clock_max_hz": 2.619e9,
        "gpu.temperature_celsius": 59.0,
        "gpu.memory_temperature_celsius": 55.0,
        "gpu.throttle_reasons": 4.0,
        "gpu.power_violation_s_total": 2.5,
        "gpu.thermal_violation_s_total": 0.0,
        "gpu.pcie_tx_bytes_total": 1000.0,
        "gpu.pcie_rx_bytes_total": 2000.0,
        "gpu.pcie_replay_total": 9.0,
        "gpu.pcie_link_generation": 5.0,
        "gpu.pcie_link_width": 16.0,
        "gpu.pcie_link_width_max": 16.0,
        "gpu.link_tx_bytes_total": 4096 * 1024.0,
        "gpu.link_rx_bytes_total": 8192 * 1024.0,
        "gpu.ecc_corrected_total": 3.0,
        "gpu.ecc_uncorrected_total": 0.0,
        "gpu.remapped_rows_uncorrected": 1.0,
        "gpu.row_remap_failure": 0.0,
        "gpu.xid_errors": 0.0,
        "gpu.processes": 2.0,
    }
    for series, value in expected.items():
        assert one(readings, series) == pytest.approx(value), series
    assert one(readings, "gpu.clock_event_ratio", reason="sw_power_cap") == 1.0
    assert one(readings, "gpu.clock_event_ratio", reason="hw_thermal_slowdown") == 0.0
    assert one(readings, "gpu.link_errors_total", error="replay") == 7.0
    assert one(readings, "gpu.process_memory_bytes", pid="1001") == 1000001.0
    assert events(readings) == []


def test_a_gpu_is_introduced_once_with_its_name_and_driver(bench: Bench) -> None:
    nvml = bench.open(H100)
    (labels,) = values(bench.read(nvml), "gpu.info")
    facts = parse_labels(labels)
    assert facts["name"] == "NVIDIA H100 80GB HBM3"
    assert facts["uuid"] == H100["uuid"]
    assert (facts["bus_id"], facts["driver"]) == ("0000:19:00.0", "590.48.01")
    assert (facts["persistence"], facts["mig"], facts["compute_mode"]) == ("on", "off", "0")
    assert not values(bench.read(nvml), "gpu.info")


def test_what_is_read_is_in_the_catalogue_and_says_which_gpu(bench: Bench) -> None:
    nvml = bench.open(H100 | {"mig": 1, "mig_most": 7, "mig_devices": 2, "xid.0": 48})
    catalog = load_catalog()
    readings = bench.read(nvml) + bench.read(nvml)
    assert len({reading.series for reading in readings}) > 40
    for reading in readings:
        assert reading.series is None or catalog.entry(reading.series) is not None, reading.series
        assert parse_labels(reading.labels)["gpu"] == "0"
        assert parse_labels(reading.labels)["kind"] == "nvidia"


def test_eight_gpus_are_told_apart(bench: Bench) -> None:
    powers = {f"power.{index}": 100_000 * (index + 1) for index in range(8)}
    readings = bench.read(bench.open(H100 | {"gpus": 8} | powers))
    for index in range(8):
        assert one(readings, "gpu.power_watts", gpu=str(index)) == 100.0 * (index + 1)
        assert one(readings, "gpu.energy_j_total", gpu=str(index)) == pytest.approx(123456.789)


def test_without_a_gpu_there_is_nothing_to_read(bench: Bench) -> None:
    nvml = bench.open({"gpus": 0})
    assert (nvml.device_count, bench.read(nvml), nvml.accelerators()) == (0, [], [])


def test_a_gpu_that_offers_nothing_gives_no_zeros_and_no_complaints(bench: Bench) -> None:
    nvml = bench.open({"gpus": 1})
    for _ in range(3):
        readings = bench.read(nvml, SLOW_PERIOD_S)
        assert {reading.series for reading in readings} <= {"gpu.info", "gpu.xid_errors"}


def test_what_is_not_supported_is_absent_and_not_asked_again(bench: Bench) -> None:
    nvml = bench.open(H100 | {"fail.nvmlDeviceGetPowerUsage": NOT_SUPPORTED, "field.82.code": NOT_SUPPORTED})
    readings = bench.read(nvml)
    assert one(readings, "gpu.power_watts") is None
    assert one(readings, "gpu.memory_temperature_celsius") is None
    assert one(readings, "gpu.energy_j_total") is not None
    assert events(readings) == []
    bench.fake.change({"fail.nvmlDeviceGetPowerUsage": None, "field.82.code": None})
    readings = bench.read(nvml)
    assert one(readings, "gpu.power_watts") is None
    assert one(readings, "gpu.memory_temperature_celsius") is None


def test_what_is_forbidden_is_told_once(bench: Bench) -> None:
    nvml = bench.open(H100 | {"fail.nvmlDeviceGetTemperature": NO_PERMISSION})
    first, later = bench.read(nvml), bench.read(nvml, SLOW_PERIOD_S)
    told = [reading for reading in first if reading.raw == "gpu_read_failed"]
    assert [parse_labels(reading.labels)["reason"] for reading in told] == ["NoPermission"]
    assert one(first, "gpu.temperature_celsius") is None
    assert events(later) == []


def test_a_call_that_fails_for_a_while_comes_back_and_is_told_once(bench: Bench) -> None:
    nvml = bench.open(H100 | {"fail.nvmlDeviceGetTemperature": UNKNOWN})
    first, second = bench.read(nvml), bench.read(nvml)
    assert events(first) == ["gpu_read_failed"]
    assert events(second) == []
    assert one(second, "gpu.temperature_celsius") is None
    bench.fake.change({"fail.nvmlDeviceGetTemperature": None})
    assert one(bench.read(nvml), "gpu.temperature_celsius") == 59.0


def test_a_gpu_lost_while_it_is_read_leaves_a_gap_and_does_not_take_the_others_with_it(bench: Bench) -> None:
    nvml = bench.open(H100 | {"gpus": 3})
    bench.read(nvml)
    bench.fake.change({"lost_after.1": 4})
    broken, after = bench.read(nvml), bench.read(nvml)
    assert events(broken) == ["gpu_lost"]
    assert events(after) == []
    assert one(after, "gpu.power_watts", gpu="1") is None
    for index in ("0", "2"):
        assert one(broken, "gpu.power_watts", gpu=index) is not None
        assert one(after, "gpu.power_watts", gpu=index) is not None


def test_a_gpu_that_answers_again_is_introduced_again(bench: Bench) -> None:
    nvml = bench.open(H100 | {"gpus": 2})
    bench.read(nvml)
    bench.fake.change({"lost_after.1": 0})
    bench.read(nvml)
    still_gone = bench.read(nvml, SLOW_PERIOD_S)
    assert events(still_gone) == []
    bench.fake.change({"lost_after.1": None})
    assert one(bench.read(nvml), "gpu.power_watts", gpu="1") is None
    back = bench.read(nvml, SLOW_PERIOD_S)
    assert events(back) == ["gpu_back"]
    assert one(back, "gpu.power_watts", gpu="1") is not None
    assert [parse_labels(label)["gpu"] for label in values(back, "gpu.info")] == ["1"]


def test_a_gpu_that_cannot_be_opened_at_the_start_is_an_event(bench: Bench) -> None:
    nvml = bench.open(H100 | {"gpus": 2, "fail.nvmlDeviceGetHandleByIndex_v2.0": NO_PERMISSION})
    readings = bench.read(nvml)
    lost = [parse_labels(reading.labels) for reading in readings if reading.raw == "gpu_lost"]
    assert [(label["gpu"], label["reason"]) for label in lost] == [("0", "NoPermission")]
    assert one(readings, "gpu.power_watts", gpu="1") is not None
    assert [(known.index, known.name) for known in nvml.accelerators()] == [(0, None), (1, H100["name"])]


def test_an_old_driver_gives_what_it_has(tmp_path: Path, old_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FakeNvml(tmp_path, old_library), monkeypatch)
    readings = bench.read(bench.open(H100))
    assert events(readings) == []
    assert one(readings, "gpu.power_watts") == 629.45
    assert one(readings, "gpu.memory_used_bytes") == 60.5e9
    assert one(readings, "gpu.throttle_reasons") == 4.0
    assert one(readings, "gpu.processes") == 2.0
    assert one(readings, "gpu.energy_j_total") is None
    assert one(readings, "gpu.pcie_tx_bytes_per_s") == 3092e3


def test_profiling_metrics_need_two_readings_and_are_ratios(bench: Bench) -> None:
    nvml = bench.open(H100)
    assert one(bench.read(nvml), "gpu.sm_active_ratio") is None
    second = bench.read(nvml)
    assert one(second, "gpu.sm_active_ratio") == pytest.approx(0.88)
    assert one(second, "gpu.sm_occupancy_ratio") == pytest.approx(0.315)
    assert one(second, "gpu.tensor_active_ratio") == pytest.approx(0.42)
    assert one(second, "gpu.dram_active_ratio") == pytest.approx(0.73)
    assert one(second, "gpu.engine_active_ratio") == pytest.approx(0.99)
    too_soon = bench.read(nvml, 0.05)
    assert one(too_soon, "gpu.sm_active_ratio") is None
    assert one(bench.read(nvml, 0.06), "gpu.sm_active_ratio") == pytest.approx(0.88)


def test_a_profiling_sample_that_failed_is_compared_with_nothing(bench: Bench) -> None:
    nvml = bench.open(H100)
    bench.read(nvml)
    bench.fake.change({"fail.nvmlGpmSampleGet": UNKNOWN})
    assert one(bench.read(nvml), "gpu.sm_active_ratio") is None
    bench.fake.change({"fail.nvmlGpmSampleGet": None})
    assert one(bench.read(nvml), "gpu.sm_active_ratio") is None
    assert one(bench.read(nvml), "gpu.sm_active_ratio") == pytest.approx(0.88)


RATE_SERIES = ("gpu.pcie_tx_bytes_per_s", "gpu.pcie_rx_bytes_per_s", "gpu.link_tx_bytes_per_s")
NO_COUNTERS = {f"field.{number}.value": None for number in (197, 198, 138, 139)}


def test_a_rate_is_told_only_where_bytes_are_not_counted(bench: Bench) -> None:
    nvml = bench.open(H100)
    readings = bench.read(nvml) + bench.read(nvml)
    assert not any(values(readings, series) for series in RATE_SERIES)


def test_where_bytes_are_not_counted_the_profiling_rate_stands_in(bench: Bench) -> None:
    nvml = bench.open(H100 | NO_COUNTERS)
    bench.read(nvml)
    second = bench.read(nvml)
    assert one(second, "gpu.pcie_tx_bytes_per_s") == 10 * 1024 * 1024
    assert one(second, "gpu.link_tx_bytes_per_s") == 2 * 1024 * 1024


def test_the_dear_rate_is_asked_for_only_as_the_last_resort_and_seldom(bench: Bench) -> None:
    nvml = bench.open(H100 | NO_COUNTERS | {"gpm": 0})
    first = bench.read(nvml)
    assert one(first, "gpu.pcie_tx_bytes_per_s") == 3092e3
    assert one(first, "gpu.pcie_rx_bytes_per_s") == 6346e3
    assert one(bench.read(nvml), "gpu.pcie_tx_bytes_per_s") is None
    assert one(bench.read(nvml, SLOW_PERIOD_S), "gpu.pcie_tx_bytes_per_s") == 3092e3


@pytest.mark.parametrize("call", ["nvmlGpmSampleGet", "nvmlGpmMetricsGet"])
def test_where_profiling_is_forbidden_the_dear_rate_stands_in(bench: Bench, call: str) -> None:
    nvml = bench.open(H100 | NO_COUNTERS | {f"fail.{call}": NO_PERMISSION})
    first, second = bench.read(nvml), bench.read(nvml)
    assert events(first + second) == ["gpu_read_failed"]
    assert one(second, "gpu.sm_active_ratio") is None
    assert one(bench.read(nvml, SLOW_PERIOD_S), "gpu.pcie_tx_bytes_per_s") == 3092e3


def test_a_device_whose_profiling_has_no_pcie_rate_is_asked_for_the_dear_one(bench: Bench) -> None:
    nvml = bench.open(H100 | NO_COUNTERS | {"gpm.20": None})
    first, second = bench.read(nvml), bench.read(nvml)
    assert one(first, "gpu.pcie_tx_bytes_per_s") is None
    assert one(second, "gpu.pcie_rx_bytes_per_s") == 20 * 1024 * 1024
    assert one(bench.read(nvml, SLOW_PERIOD_S), "gpu.pcie_tx_bytes_per_s") == 3092e3


def test_the_newer_call_for_the_temperature_is_used_where_the_older_is_gone(bench: Bench) -> None:
    nvml = bench.open(H100 | {"fail.nvmlDeviceGetTemperature": NOT_SUPPORTED, "temperature_v": 61})
    assert one(bench.read(nvml), "gpu.temperature_celsius") == 61.0


def test_what_changes_rarely_is_read_seldom(bench: Bench) -> None:
    nvml = bench.open(H100)
    bench.read(nvml)
    between = bench.read(nvml)
    assert one(between, "gpu.power_watts") is not None
    for series in ("gpu.power_limit_watts", "gpu.pcie_link_width", "gpu.ecc_corrected_total", "gpu.processes"):
        assert one(between, series) is None, series
        assert one(bench.read(nvml, SLOW_PERIOD_S), series) is not None, series


def test_a_32_bit_counter_goes_on_when_it_wraps(bench: Bench) -> None:
    nvml = bench.open(H100 | {"field.197.type": 1, "field.197.value": 2**32 - 100})
    assert one(bench.read(nvml), "gpu.pcie_tx_bytes_total") == 2**32 - 100
    bench.fake.change({"field.197.value": 400})
    assert one(bench.read(nvml), "gpu.pcie_tx_bytes_total") == 2**32 + 400


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 2**31 - 1), max_size=30))
def test_no_growth_of_less_than_half_the_range_is_lost_to_wrapping(start: int, growths: list[int]) -> None:
    device, truth = _Device(0, None), start
    assert device.unwrapped(1, start) == start
    for growth in growths:
        truth += growth
        assert device.unwrapped(1, truth % 2**32) == truth


def test_a_counter_that_was_set_back_stays_set_back() -> None:
    device = _Device(0, None)
    assert [device.unwrapped(1, value) for value in (1000, 5, 90)] == [1000, 5, 90]


def test_an_xid_is_an_event_and_the_last_one_a_value(bench: Bench) -> None:
    nvml = bench.open(H100 | {"gpus": 2})
    assert one(bench.read(nvml), "gpu.xid_errors", gpu="1") == 0.0
    bench.fake.change({"xid.1": 79})
    readings = bench.read(nvml)
    told = [parse_labels(reading.labels) for reading in readings if reading.raw == "gpu_xid"]
    assert [(label["gpu"], label["xid"]) for label in told] == [("1", "79")]
    later = bench.read(nvml)
    assert events(later) == []
    assert one(later, "gpu.xid_errors", gpu="1") == 79.0
    assert one(later, "gpu.xid_errors", gpu="0") == 0.0


def test_xids_that_cannot_be_listened_for_are_unknown_and_not_zero(bench: Bench) -> None:
    nvml = bench.open(H100 | {"fail.nvmlDeviceRegisterEvents": NOT_SUPPORTED})
    assert one(bench.read(nvml), "gpu.xid_errors") is None


def test_mig_devices_are_counted_and_absent_utilisation_stays_absent(bench: Bench) -> None:
    mig = {"mig": 1, "mig_most": 7, "mig_devices": 4, "fail.nvmlDeviceGetUtilizationRates": NOT_SUPPORTED}
    nvml = bench.open(H100 | mig)
    readings = bench.read(nvml)
    assert one(readings, "gpu.mig_devices") == 4.0
    assert one(readings, "gpu.util_ratio") is None
    assert nvml.accelerators()[0].mig is True
    bench.fake.change({"mig": 0})
    assert one(bench.read(nvml, SLOW_PERIOD_S), "gpu.mig_devices") is None


def test_a_process_whose_memory_is_hidden_is_counted_without_it(bench: Bench) -> None:
    readings = bench.read(bench.open(H100 | {"process_memory": None}))
    assert one(readings, "gpu.processes") == 2.0
    assert not values(readings, "gpu.process_memory_bytes")


def test_what_a_gpu_is_can_be_asked_without_reading_it(bench: Bench) -> None:
    (known,) = bench.open(H100).accelerators()
    assert (known.kind, known.index, known.name) == ("nvidia", 0, "NVIDIA H100 80GB HBM3")
    assert (known.bus_id, known.memory_bytes, known.mig) == ("0000:19:00.0", 85520809984, False)
    assert (known.driver, known.source) == ("590.48.01", "nvml")


def test_the_inventory_of_the_host_has_the_gpus_that_nvml_names(bench: Bench) -> None:
    bench.fake.change(H100 | {"gpus": 2, "bus_id.1": "00000000:3B:00.0"})
    nvidia = [device for device in describe_host().accelerators if device.source == "nvml"]
    assert [(d.index, d.bus_id, d.name) for d in nvidia] == [
        (0, "0000:19:00.0", "NVIDIA H100 80GB HBM3"),
        (1, "0000:3b:00.0", "NVIDIA H100 80GB HBM3"),
    ]


def test_what_was_taken_is_given_back(bench: Bench) -> None:
    for _ in range(200):  # the stand-in has 256 samples
        nvml = bench.open(H100)
        nvml.close()
    nvml = bench.open(H100)
    bench.read(nvml)
    assert one(bench.read(nvml), "gpu.sm_active_ratio") is not None


CALLS = (
    "nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetMigMode", "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceRegisterEvents",
    "nvmlGpmQueryDeviceSupport", "nvmlGpmSampleGet", "nvmlGpmMetricsGet", "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetCount_v2", "nvmlSystemGetDriverVersion", "nvmlEventSetCreate",
)  # fmt: skip
CODES = st.sampled_from([1, 2, 3, 4, 6, 7, 10, 13, 15, 16, 17, 19, 21, 24, 28, 999, 12345])
FAILURES = st.dictionaries(st.sampled_from(CALLS).map("fail.{}".format), CODES, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(FAILURES, min_size=1, max_size=4))
def test_whatever_fails_is_no_exception_and_no_invented_number(bench: Bench, steps: list[dict[str, int]]) -> None:
    nothing: dict[str, object] = dict.fromkeys(f"fail.{call}" for call in CALLS)
    nvml = bench.open(H100 | {"gpus": 2} | nothing | steps[0])
    for step in steps:
        bench.fake.change(nothing | step)
        for reading in bench.read(nvml, SLOW_PERIOD_S):
            assert math.isfinite(reading.value)
            assert reading.series is not None or reading.raw.startswith("gpu_")
    nvml.close()


# --- finding the library as a process does ------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pinchpoint.telemetry.nvml import find_nvml
said = []
nvml = find_nvml(said.append, sys.argv[1])
series = sorted({r.series for r in nvml.read()[1] if r.series}) if nvml else None
print(json.dumps({"said": said, "series": series}))
"""


@pytest.fixture
def found(tmp_path: Path, library: Path) -> Callable[..., dict]:
    def run(state: Mapping[str, object] | None, *, driver_file: bool = False, prelude: str = "") -> dict:
        environment = dict(os.environ)
        if state is not None:
            fake = FakeNvml(tmp_path, library)
            fake.change(state)
            environment |= {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(fake.state)}
        driver = tmp_path / "version"
        if driver_file:
            driver.write_text("NVRM version: 590.48.01\n")
        command = [sys.executable, "-c", prelude + SCRIPT, str(driver)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_library_is_found_where_the_loader_finds_it(found: Callable[..., dict]) -> None:
    answer = found(H100)
    assert answer["said"] == []
    assert "gpu.energy_j_total" in answer["series"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (VERSION_MISMATCH, "different versions"),
        (NO_PERMISSION, "may not be used by this user"),
        (9, "the driver is not loaded"),
        (UNKNOWN, "nvidia-smi"),
    ],
)
def test_a_library_that_does_not_start_is_named_with_its_remedy(bench: Bench, code: int, words: str) -> None:
    bench.fake.change({"fail.nvmlInitWithFlags": code})
    said: list[str] = []
    assert find_nvml(said.append) is None
    assert len(said) == 1
    assert words in said[0]


def test_a_driver_that_knows_no_gpu_is_nothing_to_read(bench: Bench) -> None:
    bench.fake.change({"gpus": 0})
    said: list[str] = []
    assert find_nvml(said.append) is None
    assert said == []


WITHOUT_LIBRARY = """
import ctypes
def absent(name, *rest, **more): raise OSError(f"{name}: cannot open shared object file")
import pynvml
pynvml.CDLL = absent
"""
WITHOUT_PACKAGE = "import sys; sys.modules['pynvml'] = None\n"


def test_a_host_without_the_library_is_nothing_to_read_and_nothing_to_say(found: Callable[..., dict]) -> None:
    assert found(None, prelude=WITHOUT_LIBRARY) == {"said": [], "series": None}


def test_a_missing_package_is_worth_a_word_only_where_there_is_a_driver(found: Callable[..., dict]) -> None:
    assert found(None, prelude=WITHOUT_PACKAGE) == {"said": [], "series": None}
    answer = found(None, prelude=WITHOUT_PACKAGE, driver_file=True)
    assert "pinchpoint[gpu]" in answer["said"][0]


PATIENCE_S = 30.0
"""For a collector that has to start; it is there in a second where the host is not busy."""


def rows_of(part: Path) -> list[dict[str, object]]:
    """Whole batches of a part that is still written."""
    rows: list[dict[str, object]] = []
    if part.exists() and part.stat().st_size:
        with contextlib.suppress(pa.ArrowInvalid), pa.ipc.open_stream(part.read_bytes()) as stream:
            for batch in stream:
                rows += batch.to_pylist()
    return rows


def test_the_collector_writes_what_nvml_says_and_asks_no_tool_for_it(tmp_path: Path, library: Path) -> None:
    fake = FakeNvml(tmp_path, library)
    fake.change(H100 | {"gpus": 2})
    tools = tmp_path / "bin"
    tools.mkdir()
    asked = tmp_path / "asked"
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\ntouch {asked}\n")
    (tools / "nvidia-smi").chmod(0o755)
    config = CollectorConfig(out_dir=str(tmp_path), accelerators=True, period_s=0.05)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(library.parent),
        "FAKE_NVML_STATE": str(fake.state),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "pinchpoint.telemetry"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as collector:
        assert collector.stdin is not None
        collector.stdin.write(msgspec.json.encode(config) + b"\n")
        collector.stdin.flush()
        deadline_s = time.monotonic() + PATIENCE_S
        rows: list[dict[str, object]] = []
        while time.monotonic() < deadline_s and len({row["t_ns"] for row in rows}) < 3:
            time.sleep(0.05)
            rows = rows_of(tmp_path / "parts" / "telemetry-gpu.arrows")
        collector.stdin.close()
        assert collector.wait(PATIENCE_S) == 0
    powers = {row["labels"]: row["value"] for row in rows if row["series"] == "gpu.power_watts"}
    assert powers == {"gpu=0,kind=nvidia": 629.45, "gpu=1,kind=nvidia": 629.45}
    assert {row["source"] for row in rows} == {"gpu"}
    assert not asked.exists()
