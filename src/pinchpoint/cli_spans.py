"""The verb that tells where the time of requests went, from the spans that the service sent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from pinchpoint.cli_output import Json, print_json
from pinchpoint.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from pinchpoint.rundir import Run

SCHEMA = "pinchpoint.spans/1"

spans_app = App(name="spans", help="Tell where the time of a run's requests went: gateway, queue, prefill, dependency.")


@spans_app.default
def spans(
    run: Annotated[Path, Parameter(help="Run directory.")],
    *,
    from_: Annotated[
        Path | None,
        Parameter(name="--from", help="Spans in files (OTLP or Jaeger, JSON), in place of those in the run."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Tell where the time of a run's requests went: network, gateway, dependency, engine, queue, prefill, decode.

    The run must have sent a traceparent with its requests (--trace-requests), and the service must have exported its
    spans, to Pinchpoint during the run (--otlp) or to files.
    """
    import msgspec
    from rich.console import Console

    from pinchpoint.report.spans_text import render_spans, step_rows
    from pinchpoint.rundir import read_run
    from pinchpoint.series import RunView
    from pinchpoint.spans import breakdown

    opened = read_run(run)
    view = RunView(opened)
    table = _table_of(from_, opened) if from_ is not None else None
    found = breakdown(view, spans=table)
    if found is None:
        raise UsageError(
            f"{run} holds no spans; receive them during a run with --otlp, or give files of them with --from"
        )
    steps = step_rows(view, table)
    if as_json:
        told = [{"stage": row.stage.index, "name": row.stage.name, **msgspec.to_builtins(row.found)} for row in steps]
        print_json({"schema": SCHEMA, **msgspec.to_builtins(found), "steps": told})
        return EXIT_OK
    Console(highlight=False).print(render_spans(found, steps))
    return EXIT_OK


def _table_of(path: Path, run: "Run") -> "pa.Table":
    from pinchpoint.telemetry.span_files import spans_table
    from pinchpoint.traceids import salt_of

    offset_ns = run.manifest.clock.get("realtime_minus_monotonic_ns")
    if not isinstance(offset_ns, int):
        raise UsageError(f"{run.path} was made in virtual time; spans of real services belong to none of its requests")
    return spans_table(path, salt=salt_of(run.manifest.run_id), realtime_offset_ns=offset_ns)
