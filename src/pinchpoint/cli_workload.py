"""Verbs about recorded requests: from a trace to a plan that makes load like it."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pinchpoint.errors import EXIT_OK, UsageError

workload_app = App(name="workload", help="Learn a workload from recorded requests.")
SCALE_MAX = 1000.0
DEFAULT_SEED = 1


@workload_app.command
def fit(
    trace: Annotated[Path, Parameter(help="Recorded requests: a file, plain or gzipped, or ServeGen's directory.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"), help="Plan to write; must not exist.")] = None,
    format: Annotated[
        str,
        Parameter(
            help="azure, burstgpt, mooncake, aiperf, llmservingsim, vidur, lengths, vllm, otel, sharegpt, servegen or "
            "access; default: found out."
        ),
    ] = "auto",
    field: Annotated[
        tuple[str, ...],
        Parameter(name="--field", negative="", help="NAME=COLUMN for time, unit, input, output, session. Repeatable."),
    ] = (),
    scale: Annotated[str, Parameter(help="Times the recorded rate, such as 1.5x.")] = "1x",
    duration: Annotated[
        str | None,
        Parameter(
            help="Length of the load: the recorded rates in less time, or again and again; default: as recorded."
        ),
    ] = None,
    url: Annotated[str | None, Parameter(help="Base URL to put into the plan.")] = None,
    seed: Annotated[int, Parameter(help="Of the plan, and of the load that the fit is judged by.")] = DEFAULT_SEED,
    plot: Annotated[Path | None, Parameter(help="Page with the curves to write (HTML).")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON and nothing else.")] = False,
) -> int:
    """Learn arrivals, lengths, sessions and shared beginnings, and write a plan that makes any amount of such load.

    How near the load comes to requests that the fit has not seen is printed, beside Poisson arrivals with log-normal
    lengths.
    """
    import msgspec

    from pinchpoint.units import parse_duration_s
    from pinchpoint.workload.fit import fit as learn
    from pinchpoint.workload.fit import recorded, scaled
    from pinchpoint.workload.fit_plan import fit_plan
    from pinchpoint.workload.fitness import quality
    from pinchpoint.workload.traces.read import read_log

    for path in (out, plot):
        if path is not None and path.exists():
            raise UsageError(f"{path} already exists; give another name or remove it")
    factor = _factor(scale)
    duration_s = parse_duration_s(duration) if duration is not None else None
    if duration_s is not None and duration_s <= 0:
        raise UsageError(f"--duration {duration} is no time at all; give one above 0, such as 10m")
    log = read_log(trace, format, dict(_field(text) for text in field))
    name = trace.name.split(".")[0]
    told = recorded(log)
    learnt = learn(told, name=name)
    found = quality(told, learnt, trace.name, seed)
    comments = []
    if learnt.arrivals is None:
        if factor != 1:
            raise UsageError(f"{trace} has no instants, so there is no rate to scale; leave out --scale")
    else:
        arrivals = scaled(learnt.arrivals, factor, duration_s)
        learnt = msgspec.structs.replace(learnt, arrivals=arrivals)
        if factor != 1:
            comments.append(
                f"Rates are {factor:g} times those of the trace; its highest one becomes {arrivals.peak_rps:.3g}/s."
            )
        if duration_s is not None:
            comments.append(f"Played in {duration}, which is not the length of the trace.")
    text = fit_plan(learnt, found, url=url, seed=seed, comments=comments)
    if out is not None:
        _write(out, text)
    if plot is not None:
        from pinchpoint.report.fit_page import fit_page

        _write(plot, fit_page(found))
    if as_json:
        better = [one.better for one in found.matches]
        document = {"schema": "pinchpoint.fit/1", **msgspec.to_builtins(found), "better": better, "plan": text}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
        return EXIT_OK
    from rich.console import Console

    from pinchpoint.report.fit_text import fit_text

    Console().print(fit_text(found))
    for comment in comments:
        sys.stdout.write(f"{comment}\n")
    for what, path in (("plan", out), ("plot", plot)):
        if path is not None:
            sys.stdout.write(f"{what:8} {path}\n")
    if out is None:
        sys.stdout.write("give -o plan.toml to write the plan, and run it with pinchpoint load URL --plan plan.toml\n")
    return EXIT_OK


def _factor(text: str) -> float:
    try:
        factor = float(text.strip().lower().removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor <= SCALE_MAX:
        raise UsageError(f"--scale {text!r} is not a factor; write for example 1.5x")
    return factor


def _field(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not equals or not column:
        raise UsageError(f"{text!r} does not say which column is what; write for example time=ts or input=usage.in")
    return name.strip(), column.strip()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give a writable file") from None
