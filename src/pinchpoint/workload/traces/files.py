"""Lines and rows of trace files, plain or gzipped, with what goes wrong told as the line and the reason."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TextIO, cast

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.plan import TOKENS_MAX, TimeUnit

NS = {"s": NS_PER_S, "ms": 1_000_000, "us": 1_000, "ns": 1}
DATE = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:[.,](\d+))?\s*(Z|[+-]\d\d:?\d\d)?")
NS_DIGITS = 9
NUMBER_MAX = 10**20
"""Ten times the nanoseconds that an int64 holds."""
GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def opened(path: Path, at: list[int] | None = None) -> Iterator[TextIO]:
    """The text of a file, with what goes wrong while it is read told as UsageError. at: the line that was read last,
    kept up by the caller."""
    try:
        with cast(TextIO, (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig")) as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        cause = getattr(error, "strerror", None) or str(error)
        where = f" after line {at[0]}" if at and at[0] else ""
        raise UsageError(f"cannot read the trace {path}{where}: {cause}") from None


def kind_of(path: Path) -> str:
    """Ending of the name, without that of a packer."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, column -> text). Raises UsageError for a line with another number of fields than the header."""
    at = [0]
    with opened(path, at) as file:
        reader = csv.reader(file, skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        for fields in reader:
            at[0] = reader.line_num
            if fields and len(fields) != len(header):
                where = f"{path}, line {reader.line_num}"
                raise UsageError(f"{where}: {len(fields)} fields where the header names {len(header)}")
            if fields:
                yield reader.line_num, dict(zip(header, fields, strict=True))


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object). Raises UsageError for a line that is none."""
    at = [0]
    with opened(path, at) as file:
        for line, text in enumerate(file, 1):
            at[0] = line
            if not text.strip():
                continue
            try:
                row = json.loads(text, parse_float=Decimal)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"{path}, line {line}: not a JSON object; a trace has one object per line")
            yield line, row


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of a CSV or a JSON-lines file, by its ending."""
    kind = kind_of(path)
    if kind == ".csv":
        return csv_rows(path)
    if kind in (".jsonl", ".json", ".ndjson", ".log"):
        return json_rows(path)
    raise UsageError(f"{path} has an unknown ending; a trace is .csv or .jsonl, or one of the two with .gz after it")


def value(row: dict[str, Any], name: str, path: Path, line: int) -> Any:
    """By name, or by a dotted path into objects. Raises UsageError when it is not there."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            raise UsageError(f"{path}, line {line}: there is no {name!r}; choose from {', '.join(map(str, row))}")
        found = found[part]
    return found


def decimal(given: Any, path: Path, line: int) -> Decimal:
    try:
        number = Decimal(given if isinstance(given, int | Decimal) else str(given).strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or not -NUMBER_MAX <= number <= NUMBER_MAX or isinstance(given, bool):
        raise UsageError(f"{path}, line {line}: {str(given)[:40]!r} is not a number")
    return number


def instant_ns(given: Any, unit: TimeUnit, path: Path, line: int) -> int:
    """Whole nanoseconds, from the text of a number or a date. Raises UsageError."""
    if unit != "iso":
        try:
            return int((decimal(given, path, line) * NS[unit]).to_integral_value())
        except UsageError as error:
            hint = ' of a time; if times are dates, say unit = "iso"' if DATE.fullmatch(str(given).strip()) else ""
            raise UsageError(f"{error}{hint}") from None
    match = DATE.fullmatch(str(given).strip())
    try:
        when = datetime.fromisoformat(match[1] + (match[3] or "").replace("Z", "+00:00")) if match else None
    except ValueError:
        when = None
    if match is None or when is None:
        raise UsageError(
            f"{path}, line {line}: {str(given)[:40]!r} is not a date with a time, as 2026-01-31T08:00:00.5Z"
        )
    whole_s = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    return whole_s * NS_PER_S + int((match[2] or "0")[:NS_DIGITS].ljust(NS_DIGITS, "0"))


def tokens(given: Any, name: str, path: Path, line: int, *, least: int = 1) -> int:
    """A whole number of tokens. Raises UsageError."""
    number = decimal(given, path, line)
    if number != int(number) or not least <= number <= TOKENS_MAX:
        raise UsageError(
            f"{path}, line {line}: {name} is {str(given)[:40]}; it must be a whole number from {least} to {TOKENS_MAX}"
        )
    return int(number)
