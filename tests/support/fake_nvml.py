"""NVIDIA's library as our own C file plays it: compiled once per session, one copy per test, driven by a text file."""

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY_NAME = "libnvidia-ml.so.1"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

H100: dict[str, object] = {
    "gpus": 1,
    "driver": "590.48.01",
    "name": "NVIDIA H100 80GB HBM3",
    "uuid": "GPU-00000000-0000-0000-0000-000000000000",
    "bus_id": "00000000:19:00.0",
    "util": 93,
    "memory_util": 41,
    "memory_total": 85520809984,
    "memory_used": 60000000000,
    "memory_reserved": 500000000,
    "power": 629450,
    "power_limit": 700000,
    "clock1": 1980,
    "clock1_max": 1980,
    "clock2": 2619,
    "clock2_max": 2619,
    "temperature": 59,
    "reasons": "0x4",
    "pcie_gen": 5,
    "pcie_gen_max": 5,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_tx": 3092,
    "pcie_rx": 6346,
    "persistence": 1,
    "compute_mode": 0,
    "mig": 0,
    "processes": 2,
    "process_memory": 1000000,
    "field.83.value": 123456789,
    "field.82.value": 55,
    "field.74.value": 2500000000,
    "field.75.value": 0,
    "field.197.value": 1000,
    "field.198.value": 2000,
    "field.138.value": 4096,
    "field.139.value": 8192,
    "field.94.value": 9,
    "field.3.value": 3,
    "field.4.value": 0,
    "field.142.value": 0,
    "field.143.value": 1,
    "field.145.value": 0,
    "field.38.value": 0,
    "field.45.value": 5,
    "field.52.value": 7,
    "field.59.value": 0,
    "gpm": 1,
    "gpm.1": 99.0,
    "gpm.2": 88.0,
    "gpm.3": 31.5,
    "gpm.5": 42.0,
    "gpm.10": 73.0,
    "gpm.20": 10.0,
    "gpm.21": 20.0,
    "gpm.60": 1.0,
    "gpm.61": 2.0,
}
"""A busy H100 with everything that is read; retired pages are not offered by it."""


def build(directory: Path, *, old_driver: bool = False) -> Path:
    """The library, compiled into `directory`. Skips the test where there is no C compiler."""
    if COMPILER is None:
        pytest.skip("no C compiler; the stand-in for NVML cannot be built")
    path = directory / LIBRARY_NAME
    flags = ["-DOLD_DRIVER"] if old_driver else []
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", *flags, "-o", str(path), str(SOURCE)], check=True, timeout=60)
    return path


class FakeNvml:
    """The state file of one library. `change` adds and replaces, None takes a key away."""

    def __init__(self, directory: Path, library: Path) -> None:
        self.library = directory / f"fake-{library.name}"
        shutil.copy(library, self.library)  # the loader gives one copy of a file one set of variables
        self.state = directory / "nvml-state"
        self._values: dict[str, object] = {}
        self.change({})

    def change(self, values: Mapping[str, object]) -> None:
        self._values |= values
        lines = [f"{key} {value}\n" for key, value in self._values.items() if value is not None]
        fresh = self.state.with_suffix(".new")
        fresh.write_text("".join(lines))
        fresh.rename(self.state)

    def load(self, patch: pytest.MonkeyPatch) -> Any:
        """pynvml, bound to this library."""
        import pynvml

        patch.setenv("FAKE_NVML_STATE", str(self.state))
        patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(self.library)))
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return pynvml
