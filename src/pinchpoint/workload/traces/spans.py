"""OpenTelemetry spans of generative AI: OTLP JSON as collectors write it to files, or one flat span per line.

Names follow the semantic conventions for generative AI, older ones included (gen_ai.usage.prompt_tokens).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pinchpoint.errors import UsageError
from pinchpoint.workload.traces.files import decimal, json_rows, tokens
from pinchpoint.workload.traces.table import LogBuilder, RequestLog

INPUTS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens")
OUTPUTS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens")
SESSIONS = ("gen_ai.conversation.id", "session.id")
STARTS = ("startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime")
ANSWERED_BY_ANOTHER = "a span without token counts (of a tool, a chain, a pipeline)"


def is_span(row: dict[str, Any]) -> bool:
    return "resourceSpans" in row or "resource_spans" in row or ("attributes" in row and any(s in row for s in STARTS))


def read_spans(path: Path) -> RequestLog:
    """Spans that tell both token counts. Raises UsageError with line and reason."""
    builder = LogBuilder("otel", str(path))
    for line, row in json_rows(path):
        if not is_span(row):
            raise UsageError(f"{path}, line {line}: neither resourceSpans nor a span with attributes and a start")
        for span in _spans(row, path, line):
            told = _attributes(span, path, line)
            inputs, outputs = _first(told, INPUTS), _first(told, OUTPUTS)
            if inputs is None or outputs is None:
                builder.leave_out(ANSWERED_BY_ANOTHER)
                continue
            start = _first(span, STARTS)
            if start is None:
                raise UsageError(f"{path}, line {line}: a span has no startTimeUnixNano")
            count_out = tokens(outputs, "output tokens", path, line, least=0)
            if count_out == 0:
                builder.leave_out("no answer (0 output tokens)")
                continue
            session = _first(told, SESSIONS)
            builder.add(
                int(decimal(start, path, line)),
                tokens(inputs, "input tokens", path, line),
                count_out,
                None if session is None else str(session),
            )
    return builder.build()


def _spans(row: dict[str, Any], path: Path, line: int) -> Iterator[dict[str, Any]]:
    groups = row.get("resourceSpans", row.get("resource_spans"))
    if groups is None:
        yield row
        return
    for group in _list(groups, "resourceSpans", path, line):
        scopes = group.get("scopeSpans", group.get("scope_spans", group.get("instrumentationLibrarySpans", [])))
        for scope in _list(scopes, "scopeSpans", path, line):
            yield from _list(scope.get("spans", []), "spans", path, line)


def _list(found: Any, name: str, path: Path, line: int) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UsageError(f"{path}, line {line}: {name} is not a list of objects")
    return found


def _attributes(span: dict[str, Any], path: Path, line: int) -> dict[str, Any]:
    """Of OTLP's list of keys and typed values, or of a plain object."""
    found = span.get("attributes", {})
    if isinstance(found, dict):
        return found
    told: dict[str, Any] = {}
    for one in _list(found, "attributes", path, line):
        typed = one.get("value")
        told[str(one.get("key"))] = next(iter(typed.values()), None) if isinstance(typed, dict) else typed
    return told


def _first(told: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((told[name] for name in names if told.get(name) is not None), None)
