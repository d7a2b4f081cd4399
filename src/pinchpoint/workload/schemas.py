"""JSON schemas for structured answers: built-in ones by name, and those of files."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pinchpoint.errors import UsageError


def _record(title: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": _record("person", {"name": _TEXT, "age": _WHOLE, "city": _TEXT, "email": _TEXT}),
    "invoice": _record(
        "invoice",
        {
            "number": _TEXT,
            "date": _TEXT,
            "customer": _TEXT,
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": 4,
                "items": _record("item", {"description": _TEXT, "quantity": _WHOLE, "price": _NUMBER}),
            },
            "total": _NUMBER,
        },
    ),
    "sentiment": _record(
        "sentiment",
        {"label": {"type": "string", "enum": ["positive", "neutral", "negative"]}, "confidence": _NUMBER},
    ),
}


@lru_cache(maxsize=16)
def load_schema(name: str) -> dict[str, Any]:
    """By name, or from a JSON file. Raises UsageError."""
    if name in SCHEMAS:
        return SCHEMAS[name]
    if not name.endswith(".json"):
        raise UsageError(f"there is no schema {name!r}; choose from {', '.join(SCHEMAS)}, or give a .json file")
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the schema {name}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{name} is not a JSON schema; it must be an object")
    return found
