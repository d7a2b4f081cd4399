"""Verbs about what to load a service with: the library of workloads, and plans made for one service."""

import random
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pinchpoint.errors import EXIT_OK, UsageError

plan_app = App(name="plan", help="Make a plan for a service.")


def workloads(
    name: Annotated[str | None, Parameter(help="One of the library; without it, all are listed.")] = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="Print JSON and nothing else.")] = False,
) -> int:
    """List the library of workloads, or explain one: its lengths, what it stresses, and where its numbers come from."""
    import msgspec

    from pinchpoint.workload.describe import describe, workload_names

    if as_json:
        fields = {"schema": "pinchpoint.workloads/1", "workloads": workload_names()} if name is None else None
        fields = fields or {"schema": "pinchpoint.workload/1", **describe(name or "")}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(fields), indent=2).decode() + "\n")
        return EXIT_OK
    from rich.console import Console

    from pinchpoint.report.workloads_text import print_workloads, workload_list, workload_page

    if name is None:
        print_workloads(Console(), workload_list(workload_names()))
        return EXIT_OK
    told = describe(name)
    print_workloads(Console(), workload_page(told))
    sys.stdout.write(told["toml"])  # as it is: a line that is wrapped could not be copied
    return EXIT_OK


@plan_app.command
def generate(
    url: Annotated[str, Parameter(help="Base URL of the service, such as http://127.0.0.1:8000.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"), help="File to write; default: print it.")] = None,
    trace: Annotated[
        Path | None,
        Parameter(help="Recorded requests, whose rates and lengths are then the usual load."),
    ] = None,
    workload: Annotated[str, Parameter(help="The usual load, a name of the library.")] = "chat",
    duration: Annotated[str, Parameter(help="Length of each stage; the soak is ten times as long.")] = "60s",
    slo: Annotated[
        tuple[str, ...], Parameter(name="--slo", negative="", help="A promise; default: from the idle service.")
    ] = (),
    model: Annotated[str | None, Parameter(help="Model to ask; default: the only or first one served.")] = None,
    api: Annotated[str | None, Parameter(help="What the service speaks; default: found out, else chat.")] = None,
    seed: Annotated[int | None, Parameter(help="Of the plan; default: random.")] = None,
    api_key_env: Annotated[str | None, Parameter(help="Environment variable that holds the API key.")] = None,
    api_key_file: Annotated[Path | None, Parameter(help="File that holds the API key.")] = None,
    ca_file: Annotated[Path | None, Parameter(help="Certificates of a private authority, PEM.")] = None,
) -> int:
    """Look at a service with one user and small crowds, and propose a suite of load stages for it, with reasons."""
    from pinchpoint.launch import read_api_key
    from pinchpoint.plan import build_plan
    from pinchpoint.probe import probe
    from pinchpoint.suite import look, propose, shape_of
    from pinchpoint.units import parse_duration_s
    from pinchpoint.workload.classes import resolve, slos_of

    if out is not None and out.exists():
        raise UsageError(f"{out} already exists; give another --out or remove it")
    given = {
        "url": url,
        "seed": seed if seed is not None else random.SystemRandom().randrange(1, 2**31),
        "model": model,
        "api": api,
        "slos": slo or None,
        "workload": {"preset": workload},
        "api_key_env": api_key_env,
        "api_key_file": str(api_key_file) if api_key_file else None,
        "ca_file": str(ca_file) if ca_file else None,
    }
    asked = build_plan({key: value for key, value in given.items() if value is not None})
    stage_s = parse_duration_s(duration)
    if stage_s <= 0:
        raise UsageError(f"--duration {duration} is no time at all; give one above 0, such as 60s")
    slos_of(asked, resolve(asked, None))
    shape = None if trace is None else shape_of(trace)
    facts = probe(url, model=model, api=api, api_key=read_api_key(asked), ca_file=asked.ca_file)
    text = propose(asked, facts, look(asked), stage_s=stage_s, trace=shape)
    if out is None:
        sys.stdout.write(text)
        return EXIT_OK
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; give a writable file with --out") from None
    sys.stdout.write(f"{out}\n")
    return EXIT_OK
