"""JSON of a verdict: stable names, nothing left out, a schema that is what the reference publishes."""

import json
from pathlib import Path

import msgspec

from pinchpoint.model import Verdict
from pinchpoint.report.json import SCHEMA, json_schema, verdict_json, write_schemas

PUBLISHED = Path(__file__).parents[3] / "docs" / "reference" / "schema" / "verdict.schema.json"


def test_a_verdict_survives_the_way_through_json(report_verdict: Verdict) -> None:
    raw = verdict_json(report_verdict)
    fields = json.loads(raw)
    assert next(iter(fields)) == "schema" and fields.pop("schema") == SCHEMA
    assert msgspec.json.decode(raw, type=Verdict) == report_verdict
    assert set(fields) == {*Verdict.__struct_fields__, "cost"}


def test_missing_values_are_null_not_absent(report_verdict: Verdict) -> None:
    fields = json.loads(verdict_json(msgspec.structs.replace(report_verdict, capacity=None)))
    assert fields["capacity"] is None
    assert fields["stages"][1]["ttft_s"]["p99"] is None


def test_every_reference_of_the_schema_resolves() -> None:
    schema = json_schema()
    references = [part.split('"')[0] for part in json.dumps(schema).split('"#/$defs/')[1:]]
    assert references and set(references) <= set(schema["$defs"])
    assert set(schema["$defs"]["Verdict"]["required"]) == {"schema", *Verdict.__struct_fields__, "cost"}


def test_published_schema_is_the_one_in_the_code(tmp_path: Path) -> None:
    (written,) = write_schemas(tmp_path)
    assert PUBLISHED.read_text() == written.read_text(), (
        "run pinchpoint.report.json.write_schemas on docs/reference/schema"
    )
