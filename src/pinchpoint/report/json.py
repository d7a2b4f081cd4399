"""The verdict for machines: one JSON object whose field names are those of `model.Verdict`, plus `schema`.

A missing value is null, never left out. `write_schemas` writes the JSON Schema that the reference pages publish.
"""

from pathlib import Path
from typing import Any

import msgspec

from pinchpoint.cost import Cost
from pinchpoint.model import Verdict
from pinchpoint.rundir import write_atomically

SCHEMA = "pinchpoint.verdict/1"
"""Changes only when a field is renamed, removed or changes its meaning; new fields may appear under the same name."""


def verdict_json(verdict: Verdict, cost: Cost | None = None) -> bytes:
    """Indented UTF-8 JSON with a final newline; `schema` is the first field and `cost` the last."""
    fields = {"schema": SCHEMA, **msgspec.structs.asdict(verdict), "cost": cost}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what `verdict_json` returns."""
    (reference, cost), components = msgspec.json.schema_components([Verdict, Cost], ref_template="#/$defs/{name}")
    verdict_schema = components["Verdict"]
    told = {"anyOf": [cost, {"type": "null"}]}
    verdict_schema["properties"] = {"schema": {"const": SCHEMA}, **verdict_schema["properties"], "cost": told}
    verdict_schema["required"] = ["schema", *verdict_schema["required"], "cost"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Verdict of a Pinchpoint run",
        **reference,
        "$defs": components,
    }


def write_schemas(directory: Path) -> list[Path]:
    """Writes every published schema into `directory` and returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "verdict.schema.json"
    write_atomically(path, msgspec.json.format(msgspec.json.encode(json_schema()), indent=2) + b"\n")
    return [path]
