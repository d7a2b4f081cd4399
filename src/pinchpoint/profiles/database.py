"""Opens SQLite files that somebody else wrote: read-only, without running anything that is in them, within bounds.

What is damaged within (a file that was cut off, a broken page) costs the rows behind the damage and is told as a
Problem; the rows before it are read.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pinchpoint.errors import UsageError
from pinchpoint.profiles.source import Limits, Source

MAGIC = b"SQLite format 3\x00"
LONGEST_VALUE_BYTES = 16 << 20
"""Of one cell; longer ones are an error of that row."""
ROWS_AT_ONCE = 50_000
INSTRUCTIONS_PER_CHECK = 50_000_000
MOST_CHECKS = 2_000
"""Of SQLite's virtual machine: 10^11 instructions, some hours, end a query that a hostile view would never end."""


def looks_like_sqlite(head: bytes) -> bool:
    return head.startswith(MAGIC)


class Database:
    """Tables and views of one file. source: takes the problems."""

    def __init__(self, connection: sqlite3.Connection, source: Source) -> None:
        self._connection = connection
        self._source = source
        self.columns: dict[str, list[str]] = {}
        """Of each table and view, in order."""
        try:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{source.path} is damaged: its list of tables cannot be read ({error}); export it again"
            ) from None
        for (name,) in names:
            try:
                rows = connection.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()
            except sqlite3.DatabaseError:
                continue
            self.columns[name] = [row[1] for row in rows]

    def has(self, table: str, *columns: str) -> bool:
        return table in self.columns and all(column in self.columns[table] for column in columns)

    def rows(self, query: str, table: str) -> Iterator[tuple]:
        """The rows of a query up to the first damage. table: for the words of the problem."""
        read = 0
        try:
            cursor = self._connection.execute(query)
            while batch := cursor.fetchmany(ROWS_AT_ONCE):
                read += len(batch)
                yield from batch
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
            self._source.lost(f"table {table} is damaged behind its row {read:,} ({error}); the rest of it is missing")

    def numbers(self, table: str, columns: list[str], defaults: dict[str, int] | None = None) -> NDArray[np.int64]:
        """Whole numbers, one column of the result for each that is asked. A column that this version of the file does
        not have, or a cell without a value, gives its default (0)."""
        defaults = defaults or {}
        if table not in self.columns:
            return np.empty((0, len(columns)), np.int64)
        have = self.columns[table]
        asked = ", ".join(_whole(name, defaults.get(name, 0), known=name in have) for name in columns)
        rows = list(self.rows(f"SELECT {asked} FROM {_quoted(table)}", table))
        return np.array(rows, np.int64).reshape(-1, len(columns))


def _whole(column: str, default: int, *, known: bool) -> str:
    return f"CAST(COALESCE({_quoted(column)}, {default}) AS INTEGER)" if known else str(default)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[tuple[Database, Source]]:
    """The file, unpacked to a temporary one if it is gzip. Raises UsageError if it is no database."""
    source = Source(path, limits)
    with tempfile.TemporaryDirectory(prefix="pinchpoint-profile-") as folder:
        plain = path
        if source.compressed:
            plain = Path(folder) / "profile.sqlite"
            with plain.open("wb") as target:
                for piece in source.pieces():
                    target.write(piece)
        else:
            source.bytes_read = path.stat().st_size
            # A database with a journal beside it would not open as unchanging; a copy has none beside it.
            if path.with_name(path.name + "-wal").exists():
                plain = Path(folder) / "profile.sqlite"
                shutil.copyfile(path, plain)
        address = f"file:{quote(str(plain.resolve()))}?mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(address, uri=True)
        except sqlite3.Error as error:
            raise UsageError(f"{path} cannot be opened as an SQLite database: {error}") from None
        with closing(connection):
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            checks = iter(range(MOST_CHECKS))
            connection.set_progress_handler(lambda: next(checks, None) is None, INSTRUCTIONS_PER_CHECK)
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            yield Database(connection, source), source
