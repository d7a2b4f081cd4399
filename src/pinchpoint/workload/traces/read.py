"""Any trace by its path: the format is found out from the content, or named."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.workload.traces import tabular
from pinchpoint.workload.traces.conversations import read_conversations
from pinchpoint.workload.traces.files import DATE, kind_of, opened
from pinchpoint.workload.traces.servegen import is_servegen, read_servegen
from pinchpoint.workload.traces.spans import is_span, read_spans
from pinchpoint.workload.traces.table import RequestLog
from pinchpoint.workload.traces.tabular import Columns, first_row, read_rows


class Format(msgspec.Struct, frozen=True):
    """columns: None where a reader of its own is needed. needs: columns or fields by which it is known."""

    description: str
    columns: Columns | None = None
    needs: tuple[str, ...] = ()
    read: Callable[[Path], RequestLog] | None = None


FORMATS: dict[str, Format] = {
    "azure": Format(
        "Azure LLM inference traces 2023 and 2024", tabular.AZURE, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    ),
    "burstgpt": Format("BurstGPT", tabular.BURSTGPT, ("Timestamp", "Request tokens", "Response tokens")),
    "llmservingsim": Format(
        "LLMServingSim, with token ids", tabular.LLMSERVINGSIM, ("input_toks", "output_toks", "arrival_time_ns")
    ),
    "mooncake": Format(
        "Mooncake, and the forms that Dynamo, aiperf and vLLM made of it: timestamp or delay in ms, input_length, "
        "output_length, hash_ids, session_id",
        tabular.MOONCAKE,
        ("output_length", "timestamp|delay", "input_length|text_input"),
    ),
    "aiperf": Format("aiperf's profile_export.jsonl", tabular.AIPERF, ("metadata", "metrics")),
    "vidur": Format(
        "Vidur's length tables, without instants", tabular.VIDUR_LENGTHS, ("num_prefill_tokens", "num_decode_tokens")
    ),
    "lengths": Format(
        "pairs of input_length and output_length, without instants",
        tabular.SHAREGPT_LENGTHS,
        ("input_length", "output_length"),
    ),
    "vllm": Format("vLLM's custom data set, texts without instants", tabular.VLLM_CUSTOM, ("prompt", "output_tokens")),
    "otel": Format("OpenTelemetry spans of generative AI, OTLP JSON or one span per line", read=read_spans),
    "sharegpt": Format("ShareGPT conversations as texts, without instants", read=read_conversations),
    "servegen": Format("ServeGen's client statistics, as .tar.gz or directory", read=read_servegen),
    "access": Format(
        "access logs, an object per line; name the fields with --field time=..., input=..., output=..., session=...",
        tabular.ACCESS,
    ),
}
FIELDS = ("time", "unit", "input", "output", "session")


def read_log(path: Path, name: str = "auto", fields: Mapping[str, str] | None = None) -> RequestLog:
    """fields: which column or dotted path says what, in place of the format's own; keys as FIELDS. With them a file of
    no known format is read as an access log.

    Raises UsageError with line and reason for whatever cannot be read.
    """
    return _read(path, name, tuple(sorted((fields or {}).items())))


@lru_cache(maxsize=4)
def _read(path: Path, name: str, fields: tuple[tuple[str, str], ...]) -> RequestLog:
    given = dict(fields)
    for key in given:
        if key not in FIELDS:
            raise UsageError(f"{key!r} is no field of a trace; choose from {', '.join(FIELDS)}")
    if not path.exists():
        raise UsageError(f"cannot read the trace {path}: No such file or directory")
    if name == "auto":
        name = "access" if given else detect(path)
    known = FORMATS.get(name)
    if known is None:
        raise UsageError(f"{name!r} is no format of traces; choose from auto, {', '.join(FORMATS)}")
    if known.read is not None:
        if given:
            raise UsageError(f"the fields of {name} are known; leave out --field")
        return known.read(path)
    assert known.columns is not None
    columns = msgspec.structs.replace(known.columns, **given)
    if name == "access" and "unit" not in given:
        columns = msgspec.structs.replace(columns, unit=_unit(path, columns))
    if columns.unit not in ("s", "ms", "us", "ns", "iso"):
        raise UsageError(f"unit is {columns.unit!r}; choose from s, ms, us, ns, iso")
    return read_rows(path, name, columns)


def detect(path: Path) -> str:
    """Name of the format, by what the first row holds. Raises UsageError with what was found."""
    if is_servegen(path):
        return "servegen"
    if kind_of(path) == ".json" and _begins(path) == "[":
        return "sharegpt"
    found = first_row(path)
    if found is None:
        raise UsageError(f"{path} holds no requests")
    row = found[1]
    if is_span(row):
        return "otel"
    for name, one in FORMATS.items():
        if one.needs and all(any(part in row for part in need.split("|")) for need in one.needs):
            return name
    raise UsageError(
        f"{path} is of no known format; it has {', '.join(list(map(str, row))[:12])}. Name it with --format, or say "
        "with --field time=..., --field input=... and --field output=... what is what"
    )


def _begins(path: Path) -> str:
    with opened(path) as file:
        return file.read(1024).lstrip()[:1]


def _unit(path: Path, columns: Columns) -> Any:
    """Of the instants of a log: a date, else the unit in which the first instant lies in this century."""
    found = first_row(path)
    if found is None:
        return columns.unit
    told: Any = found[1]
    for part in (columns.time,) if columns.time in told else columns.time.split("."):
        told = told.get(part) if isinstance(told, dict) else None
    if told is None or DATE.fullmatch(str(told).strip()):
        return "iso"
    try:
        number = abs(float(str(told)))
    except ValueError:
        return "iso"
    return "ns" if number > 1e17 else "us" if number > 1e14 else "ms" if number > 1e11 else "s"
