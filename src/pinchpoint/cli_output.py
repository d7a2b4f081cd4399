"""What all verbs share: options, and how answers and complaints are printed."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

OUTPUT = Group("Output", sort_key=5)

Json = Annotated[bool, Parameter(name="--json", negative="", group=OUTPUT, help="Print JSON and nothing else.")]
Slos = Annotated[
    tuple[str, ...],
    Parameter(name="--slo", negative="", help="A promise, such as 'ttft p99 < 500ms' or 'errors < 1%'. Repeatable."),
]


def complain(message: str) -> None:
    from pinchpoint.report.literal import visible

    sys.stderr.write(f"pinchpoint: {visible(' '.join(message.split()), 600)}\n")


TOLD_KINDS = ("collector", "prometheus", "spans", "stacks", "profile")
"""Events of sources that somebody asked for: what came of them, and what did not."""


def tell_sources(run_path: Path) -> None:
    """One line on standard error for each sentence about them."""
    from pinchpoint.rundir import read_run

    for event in read_run(run_path).events():
        if event.get("kind") in TOLD_KINDS and isinstance(event.get("message"), str):
            complain(event["message"])


def print_json(document: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


def print_verdict(view: Any, verdict: Any, as_json: bool, paths: dict[str, Path]) -> None:
    from pinchpoint.cost import cost_of

    cost = cost_of(view, verdict.slos, capacity=verdict.capacity)
    if as_json:
        from pinchpoint.report.json import verdict_json

        sys.stdout.write(verdict_json(verdict, cost).decode().rstrip() + "\n")
        return
    from rich.console import Console

    from pinchpoint.report.text import print_screen

    print_screen(Console(), verdict, view, paths=paths, cost=cost)
