"""Formats of one request per line: which columns or fields say what."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.plan import TimeUnit
from pinchpoint.workload.traces.files import csv_rows, decimal, instant_ns, json_rows, kind_of, tokens, value
from pinchpoint.workload.traces.table import LogBuilder, RequestLog

CHARS_PER_TOKEN = 4
"""Of English text: for formats that hold texts and no counts."""
MOONCAKE_BLOCK_TOKENS = 512
"""As published with the traces of Mooncake (FAST 2025)."""
ID_BLOCK_TOKENS = 16
"""Block of vLLM's prefix cache; prompts that are given as token ids are cut into such."""
FAILED = "no answer (0 output tokens)"
EMPTY = "no prompt (0 input tokens)"


class Columns(msgspec.Struct, frozen=True):
    """Names of columns, or dotted paths of fields; "" where the format has none. text_input, text_output: texts whose
    tokens are estimated where no count stands."""

    time: str = "timestamp"
    unit: TimeUnit = "s"
    input: str = "input_length"
    output: str = "output_length"
    session: str = ""
    blocks: str = ""
    token_ids: str = ""
    text_input: str = ""
    text_output: str = ""
    failed: Callable[[dict[str, Any]], str | None] | None = None
    """Why a row is no request to be repeated; None: it is one."""
    sorted: bool = True
    """Whether the format promises the order of time."""


AZURE = Columns("TIMESTAMP", "iso", "ContextTokens", "GeneratedTokens")
BURSTGPT = Columns("Timestamp", "s", "Request tokens", "Response tokens", "Session ID")
MOONCAKE = Columns("timestamp", "ms", "input_length", "output_length", "session_id", "hash_ids", "", "text_input")
LLMSERVINGSIM = Columns("arrival_time_ns", "ns", "input_toks", "output_toks", token_ids="input_tok_ids")
SHAREGPT_LENGTHS = Columns("", "s", "input_length", "output_length")
VIDUR_LENGTHS = Columns("", "s", "num_prefill_tokens", "num_decode_tokens")
AIPERF = Columns(
    "metadata.request_start_ns",
    "ns",
    "metrics.input_sequence_length.value",
    "metrics.output_sequence_length.value",
    "metadata.conversation_id",
    failed=lambda row: "cancelled" if row.get("metadata", {}).get("was_cancelled") else None,
    sorted=False,
)
VLLM_CUSTOM = Columns("", "s", "", "output_tokens", text_input="prompt")
ACCESS = Columns("time", "iso", "input_tokens", "output_tokens", sorted=False)


def read_rows(path: Path, name: str, columns: Columns) -> RequestLog:
    """Raises UsageError with line and reason."""
    builder = LogBuilder(name, str(path))
    rows = csv_rows(path) if kind_of(path) == ".csv" else json_rows(path)
    previous_ns: int | None = None
    block_tokens = 0
    delays: dict[str, int] = {}
    for line, row in rows:
        why = columns.failed(row) if columns.failed is not None else None
        if why is not None:
            builder.leave_out(why)
            continue
        session = _session(row, columns)
        t_ns = _instant(row, columns, path, line, session, delays)
        if t_ns is not None and previous_ns is not None and t_ns < previous_ns and columns.sorted:
            raise UsageError(
                f"{path}, line {line}: {columns.time} is before that of the line above; sort the file by {columns.time}"
            )
        previous_ns = t_ns
        inputs = _count(row, columns.input, columns.text_input, path, line, builder)
        outputs = _count(row, columns.output, columns.text_output, path, line, builder)
        if outputs == 0 or inputs == 0:
            builder.leave_out(FAILED if outputs == 0 else EMPTY)
            continue
        blocks, size = _blocks(row, columns, path, line, inputs)
        block_tokens = size or block_tokens
        builder.add(t_ns, inputs, outputs, session, blocks)
    return builder.build(block_tokens)


def _session(row: dict[str, Any], columns: Columns) -> str | None:
    found: Any = row
    for part in columns.session.split(".") if columns.session and columns.session not in row else (columns.session,):
        found = found.get(part) if isinstance(found, dict) else None
    return None if found is None else str(found)


def _instant(
    row: dict[str, Any], columns: Columns, path: Path, line: int, session: str | None, delays: dict[str, int]
) -> int | None:
    """A later turn may tell how long after the one before it comes instead of when."""
    if not columns.time:
        return None
    if "delay" in row and columns.time not in row and session is not None and session in delays:
        t_ns = delays[session] + instant_ns(row["delay"], columns.unit, path, line)
    else:
        t_ns = instant_ns(value(row, columns.time, path, line), columns.unit, path, line)
    if session is not None:
        delays[session] = t_ns
    return t_ns


def _count(row: dict[str, Any], name: str, text_name: str, path: Path, line: int, builder: LogBuilder) -> int:
    if text_name and (not name or name not in row) and text_name in row:
        text = row[text_name]
        if not isinstance(text, str) or not text:
            raise UsageError(f"{path}, line {line}: {text_name} is not a text")
        note = f"the file holds texts and no counts: one token for {CHARS_PER_TOKEN} characters was taken"
        if note not in builder.notes:
            builder.notes.append(note)
        return max(1, round(len(text) / CHARS_PER_TOKEN))
    return tokens(value(row, name, path, line), name, path, line, least=0)


def _blocks(
    row: dict[str, Any], columns: Columns, path: Path, line: int, inputs: int
) -> tuple[Sequence[Hashable] | None, int]:
    if columns.token_ids and columns.token_ids in row:
        ids = row[columns.token_ids]
        if not isinstance(ids, list):
            raise UsageError(f"{path}, line {line}: {columns.token_ids} is not a list of token ids")
        whole = len(ids) // ID_BLOCK_TOKENS
        return [
            hash(tuple(ids[i * ID_BLOCK_TOKENS : (i + 1) * ID_BLOCK_TOKENS])) for i in range(whole)
        ], ID_BLOCK_TOKENS
    if columns.blocks and columns.blocks in row:
        ids = row[columns.blocks]
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            raise UsageError(f"{path}, line {line}: {columns.blocks} is not a list of whole numbers")
        size = row.get("block_size", MOONCAKE_BLOCK_TOKENS)
        size = int(decimal(size, path, line))
        if size < 1 or len(ids) > -(-inputs // size):
            raise UsageError(
                f"{path}, line {line}: {len(ids)} blocks of {size} tokens are more than {inputs} input tokens hold"
            )
        return ids, size
    return None, 0


def first_row(path: Path) -> tuple[int, dict[str, Any]] | None:
    """The first row of a file, whichever kind it is; None of an empty one."""
    rows: Iterator[tuple[int, dict[str, Any]]] = csv_rows(path) if kind_of(path) == ".csv" else json_rows(path)
    return next(rows, None)
