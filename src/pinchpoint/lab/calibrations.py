"""Named sets of lab parameters under which the lab behaves like a measured deployment (calibrations.toml).

The constants come from fits to published measurements; the lab's validation page shows how near each comes. A
calibration says nothing about limits such as max_num_seqs beyond what the measured deployment had.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.params import LabParams

PATH = Path(__file__).with_suffix(".toml")


class Calibration(msgspec.Struct, frozen=True):
    """params: keys of LabParams.changed. points: measurements it was fitted to. median_error_ratio: of the time per
    output token at points of the same group that were not used; None where there is none."""

    summary: str
    source: str
    points: int
    params: dict[str, object]
    median_error_ratio: float | None = None

    @property
    def dialect(self) -> str | None:
        """Of the measured engine, which its summary names first; None: one whose pages the lab does not imitate."""
        engine = self.summary.lower().replace(",", " ").split()[0]
        return engine if engine in ("vllm", "sglang", "tgi", "llama.cpp") else None

    def applied(self, params: LabParams) -> LabParams:
        """`params` with this deployment's hardware, model, limits and constants; other fields stay."""
        return params.changed(self.params)


@cache
def load_calibrations() -> Mapping[str, Calibration]:
    """By name."""
    tables = tomllib.loads(PATH.read_text(encoding="utf-8"))
    return MappingProxyType(msgspec.convert(tables, dict[str, Calibration]))


def calibration(name: str) -> Calibration:
    """Raises UsageError with the names there are."""
    known = load_calibrations()
    if name not in known:
        raise UsageError(f"the lab has no calibration {name!r}; choose one of {', '.join(known)}")
    return known[name]
