"""Tables of a plan as TOML that people read and change: one key per line, small tables inline."""

import json
from collections.abc import Mapping
from typing import Any


def toml_value(value: Any) -> str:
    """A number, a text, a list or an inline table. Texts get the escapes of JSON, which are those of TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) else f"{value:.1f}"
    return json.dumps(value, ensure_ascii=False)


def toml_lines(table: Mapping[str, Any]) -> str:
    """`key = value` lines, without what is None."""
    return "\n".join(f"{key} = {toml_value(value)}" for key, value in table.items() if value is not None)
