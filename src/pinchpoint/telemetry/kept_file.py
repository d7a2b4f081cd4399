"""Files of /proc, /sys and control groups that are read again and again: opened once, read from their start each time.

The surprising thing: the kernel writes many of these files record by record, and hands out what fits into one page of
its own, however much was asked for. So reading goes on until nothing comes.
"""

import os
from functools import lru_cache
from pathlib import Path

from pinchpoint.catalog import format_labels

BLOCK_BYTES = 65_536
MAX_BYTES = 64 << 20
"""Our bound: /proc/net/tcp of a machine with 400,000 sockets."""


class KeptFile:
    """One file. It may be absent and come later (a kernel module), or go (a control group)."""

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._fd: int | None = None

    def read(self) -> bytes:
        """All of it; empty when it is absent, hidden from us or switched off."""
        if self._fd is None:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return b""
        try:
            whole = os.pread(self._fd, BLOCK_BYTES, 0)
            length = len(whole)
            if not length:
                return b""
            blocks = [whole]
            while length < MAX_BYTES and (block := os.pread(self._fd, BLOCK_BYTES, length)):
                blocks.append(block)
                length += len(block)
            return whole if len(blocks) == 1 else b"".join(blocks)
        except OSError:  # switched off (EOPNOTSUPP), or what it told of is gone
            self.close()
            return b""

    def number(self) -> float | None:
        """Its content when it is one number; None when it is not there or no number ("max" in control groups)."""
        return as_number(self.read())

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.close()


def read_once(path: "Path | str") -> bytes:
    """A small file that is not worth keeping open; empty when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, BLOCK_BYTES)
    except OSError:
        return b""
    finally:
        os.close(fd)


def as_number(text: bytes) -> float | None:
    """None for text that is no whole number."""
    try:
        return float(int(text))
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def label(name: str, value: str) -> str:
    """One label, formatted; remembered, because the same few come with every reading."""
    return format_labels({name: value})
