"""Live counters of the load processes, in memory that the controller reads while they run.

One file below the run directory, mapped by everybody; each worker writes its own row, the controller only reads. Each
number is eight bytes and aligned, so a reader sees the old or the new one. Two numbers of one row may be a moment
apart, which a screen does not mind.
"""

import mmap
from pathlib import Path

import msgspec
import numpy as np

FIELDS = (
    "heartbeat_ns",
    "issued",
    "in_flight",
    "unissued",
    "pool_left",
    "ok",
    "failed",
    "withdrawn",
    "tokens",
    "busy_ppm",
    "orders",
)
COUNTERS_FILE = "live.counters"
BUCKETS_PER_DECADE = 32
"""Bounds 7 % apart: enough for a screen that is redrawn while a run goes on. Results are computed from the records."""
FIRST_BUCKET_S = 1e-4
BUCKETS = 8 * BUCKETS_PER_DECADE
ROW = len(FIELDS) + 2 * BUCKETS
PPM = 1_000_000


class Totals(msgspec.Struct, frozen=True):
    """Sums over the workers. heartbeat_ns: the oldest. ttft_counts and tpot_counts: shape (BUCKETS,)."""

    heartbeat_ns: int
    issued: int
    in_flight: int
    unissued: int
    pool_left: int
    ok: int
    failed: int
    withdrawn: int
    tokens: int
    busy_ratio: float
    """Of the busiest worker."""
    orders: int
    ttft_counts: np.ndarray
    tpot_counts: np.ndarray


class LiveCounters:
    """rows: shape (workers, ROW), int64."""

    def __init__(self, path: Path, workers: int, *, create: bool) -> None:
        size = workers * ROW * 8
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self.rows = np.frombuffer(self._map, np.int64).reshape(workers, ROW)

    def totals(self, workers: list[int]) -> Totals:
        """Over these workers; those that have died are left out by the caller."""
        rows = self.rows[workers].copy()
        sums = rows.sum(axis=0)
        named = dict(zip(FIELDS, sums.tolist(), strict=False))
        named["heartbeat_ns"] = int(rows[:, 0].min()) if len(rows) else 0
        del named["busy_ppm"]
        busy = float(rows[:, FIELDS.index("busy_ppm")].max()) / PPM if len(rows) else 0.0
        first = len(FIELDS)
        return Totals(
            **named,
            busy_ratio=busy,
            ttft_counts=sums[first : first + BUCKETS],
            tpot_counts=sums[first + BUCKETS :],
        )


def bucket_of(value_s: np.ndarray) -> np.ndarray:
    """Index of the bucket that holds each value, shape as given; the first and last take what lies beyond."""
    place = np.floor(np.log10(np.maximum(value_s, FIRST_BUCKET_S) / FIRST_BUCKET_S) * BUCKETS_PER_DECADE)
    return np.clip(place.astype(np.int64), 0, BUCKETS - 1)


def quantile_of(counts: np.ndarray, q: float) -> float | None:
    """Middle of the bucket that holds the quantile, in seconds; None when nothing was counted."""
    total = int(counts.sum())
    if total == 0:
        return None
    place = int(np.searchsorted(np.cumsum(counts), q * total))
    return FIRST_BUCKET_S * 10 ** ((min(place, BUCKETS - 1) + 0.5) / BUCKETS_PER_DECADE)
