"""From files to an Analysis: finds the format of each, reads it, and compares what ran together."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pinchpoint.errors import UsageError
from pinchpoint.profiles import analysis, database, dlprof, kineto, nsys, rocprof, tables
from pinchpoint.profiles.model import AcrossRanks, Analysis, Problem, ProfileFile, RankAnalysis
from pinchpoint.profiles.source import Limits, Source
from pinchpoint.profiles.trace import Reading

HEAD_BYTES = 64 << 10
"""Enough of a file to tell its format."""
KNOWN = (
    "traces of PyTorch's profiler (.json, .json.gz), Nsight Systems' SQLite export (.sqlite, .sqlite.gz) and the CSV "
    "of nsys stats, DLProf's database and CSV, rocprofv3's JSON and rocprof's CSV"
)
Reader = Callable[[Path, Limits, int], Reading]


def _read_database(path: Path, limits: Limits, file: int) -> Reading:
    with database.opened(path, limits) as (opened, _):
        ours = dlprof.is_dlprof(opened)
    return dlprof.read(path, limits, file) if ours else nsys.read(path, limits, file)


READERS: tuple[tuple[Callable[[bytes], bool], Reader], ...] = (
    (database.looks_like_sqlite, _read_database),
    (rocprof.looks_like_rocprof, rocprof.read),
    (kineto.looks_like_kineto, kineto.read),
    (tables.looks_like_table, tables.read),
)
"""In the order of trying."""


def analyse(paths: Sequence[Path], limits: Limits | None = None) -> Analysis:
    """Reads the files and says where the time went. Several files are taken for parts of one run (its ranks).

    Raises UsageError for no file, a file that cannot be read, is empty, or is of no known format. Damage within a file
    that could be read is no error but a Problem in the result.
    """
    if not paths:
        raise UsageError("no profile was named; known are " + KNOWN)
    limits = limits or Limits()
    files: list[ProfileFile] = []
    ranks: list[RankAnalysis] = []
    problems: list[Problem] = []
    for number, path in enumerate(paths):
        reading = _reader_of(path, limits)(path, limits, number)
        files.append(
            ProfileFile(
                path=str(path), format=reading.format, bytes_read=reading.bytes_read, events_read=reading.events_read,
                complete=not reading.problems,
            )
        )  # fmt: skip
        problems += reading.problems
        for trace in reading.traces:
            ranks += analysis.of_trace(trace, limits)
        ranks += [analysis.of_summary(summary, limits) for summary in reading.summaries]
    ranks.sort(key=lambda one: (one.rank is None, one.rank or 0, one.file))
    ranks = _distinct(ranks)
    forms = {file.format for file in files}
    return Analysis(
        files=tuple(files), format=files[0].format if len(forms) == 1 else "mixed", ranks=tuple(ranks),
        across_ranks=_across(ranks), problems=tuple(problems),
    )  # fmt: skip


def _reader_of(path: Path, limits: Limits) -> Reader:
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name the profiles in it")
    head = Source(path, limits).head(HEAD_BYTES)
    for test, reader in READERS:
        if test(head):
            return reader
    raise UsageError(f"{path} is no profile of a known format; known are {KNOWN}")


def _distinct(ranks: list[RankAnalysis]) -> list[RankAnalysis]:
    """Labels name their file where two would be the same."""
    labels = [one.label for one in ranks]
    return [
        msgspec.structs.replace(one, label=f"{one.label} (file {one.file + 1})") if labels.count(one.label) > 1 else one
        for one in ranks
    ]


def _across(ranks: list[RankAnalysis]) -> AcrossRanks | None:
    """None for fewer than two devices with GPU time."""
    known = [(one.label, one.gpu) for one in ranks if one.gpu is not None]
    if len(known) < 2:
        return None
    shares = [gpu.busy_share for _, gpu in known]
    computes = np.array([gpu.compute_s for _, gpu in known])
    least = min(gpu.communication_s for _, gpu in known)
    mean = float(computes.mean())
    return AcrossRanks(
        devices=len(known), busy_share_min=min(shares), busy_share_mean=sum(shares) / len(shares),
        busy_share_max=max(shares), compute_imbalance=float(computes.max()) / mean if mean else 1.0,
        slowest=known[int(computes.argmax())][0],
        waiting_s={label: gpu.communication_s - least for label, gpu in known},
    )  # fmt: skip
