"""Opens a profile: plain or gzip, as a stream of pieces of its uncompressed bytes, within a bound.

A gzip file that ends early or is damaged in the middle gives what was unpacked before that, and a Problem.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.profiles.model import Problem

GZIP_MAGIC = b"\x1f\x8b"
PIECE_BYTES = 1 << 20
GIB_BYTES = 1 << 30


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what is read and kept. file_bytes: uncompressed, of one file; what lies beyond is not read and said to
    be lost, so that a small archive cannot unpack without end. The others bound the result."""

    file_bytes: int = 4 * GIB_BYTES
    devices: int = 64
    kernels: int = 50
    gaps: int = 20
    steps: int = 2_000
    host_ops: int = 30
    roofline_rows: int = 40
    overview_rows: int = 400
    lane_intervals: int = 1_000
    lanes: int = 24


class Source:
    """One file. pieces() may be called once; position and problems are of what it gave so far."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.bytes_read = 0
        self._limit_bytes = limits.file_bytes
        try:
            with path.open("rb") as file:
                magic = file.read(len(GZIP_MAGIC))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
        if not magic:
            raise UsageError(f"{path} is empty: the profiler had not written it yet, or was stopped before it could")
        self.compressed = magic == GZIP_MAGIC

    def lost(self, what: str, *, byte_offset: int | None = None, events_lost: int | None = None) -> None:
        """Notes that a part of this file could not be read."""
        self.problems.append(Problem(file=str(self.path), what=what, byte_offset=byte_offset, events_lost=events_lost))

    def head(self, size: int) -> bytes:
        """The first uncompressed bytes, fewer if the file is shorter or damaged."""
        try:
            with gzip.open(self.path) if self.compressed else self.path.open("rb") as file:
                return file.read(size)
        except (OSError, EOFError, zlib.error):
            for piece in self._unpacked(note=False):
                return piece[:size]
            return b""

    def pieces(self) -> Iterator[bytes]:
        """The uncompressed bytes from the begin, up to the bound."""
        raw = self._unpacked(note=True) if self.compressed else self._plain()
        for piece in raw:
            room = self._limit_bytes - self.bytes_read
            if len(piece) > room:
                self.bytes_read += room
                yield piece[:room]
                self.lost(
                    f"only the first {self._limit_bytes:,} bytes were read, the bound for one file; what lies beyond "
                    "is missing from the analysis",
                    byte_offset=self.bytes_read,
                )
                return
            self.bytes_read += len(piece)
            yield piece

    def _plain(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _unpacked(self, *, note: bool) -> Iterator[bytes]:
        """gzip.open would throw away what it holds when it meets damage; this gives it first."""
        unpacked_bytes = 0
        with self.path.open("rb") as file:
            member = zlib.decompressobj(wbits=31)  # 31: gzip with the largest window (zlib's manual)
            packed = b""
            while True:
                if not packed:
                    packed = file.read(PIECE_BYTES // 4)
                if not packed:
                    if not member.eof and note:
                        self.lost("the gzip file ends before its end mark: it was cut off", byte_offset=unpacked_bytes)
                    return
                if member.eof:
                    if not packed.startswith(GZIP_MAGIC):
                        return  # padding after the last member
                    member = zlib.decompressobj(wbits=31)
                try:
                    piece = member.decompress(packed, PIECE_BYTES)
                except zlib.error as error:
                    if note:
                        self.lost(
                            f"the gzip file is damaged ({error}); nothing after this could be unpacked",
                            byte_offset=unpacked_bytes,
                        )
                    return
                packed = member.unused_data if member.eof else member.unconsumed_tail
                unpacked_bytes += len(piece)
                if piece:
                    yield piece
