"""How good the load engine is, against a server with known truth and a client in C.

    make bench                                              or
    python bench/load.py [--only NAME ...] [--repeats N] [--long] [--json FILE]

Each scenario runs the client under test, and a reference client where it says so, against a fresh server
(sse_server.c), which keeps its own record of every request and token. The table shows what was measured beside the
target. Nothing else should run meanwhile: `noise` is the number of cores that were busy for others.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scenarios import LONG_SCENARIOS, SCENARIOS, Bench, Row
from server import BenchError


def host() -> dict[str, str | int]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": f"{os.getloadavg()[0]:.2f}",
    }


def table(rows: list[Row]) -> Table:
    made = Table(show_lines=False, pad_edge=False)
    for name in ("scenario", "what", "measured", "target", ""):
        made.add_column(name, overflow="fold")
    said = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}
    before = ""
    for row in rows:
        if before and row.scenario != before:
            made.add_section()
        name = row.scenario if row.scenario != before else ""
        undecided = "[yellow]host too small[/]" if row.target and row.met is None else said[row.met]
        made.add_row(name, escape(row.what), escape(row.value), escape(row.target), undecided)
        before = row.scenario
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = {**SCENARIOS, **LONG_SCENARIOS}
    parser.add_argument("--only", nargs="*", choices=list(every), help="run these scenarios")
    parser.add_argument("--long", action="store_true", help="with the scenarios that take minutes")
    parser.add_argument("--repeats", type=int, default=1, help="of the CPU scenarios, in turn with the C client")
    parser.add_argument("--json", type=Path, help="write every number here as well")
    parser.add_argument("--keep", type=Path, help="keep the run directories here; must not exist")
    parser.add_argument("--program", help="starts the client under test; default: this Python -m pinchpoint")
    parser.add_argument(
        "--aiohttp-python", type=Path, default=Path(sys.executable), help="a Python with aiohttp and uvloop"
    )
    arguments = parser.parse_args()
    program = shlex.split(arguments.program) if arguments.program else [sys.executable, "-m", "pinchpoint"]
    if arguments.keep:
        arguments.keep.mkdir(parents=True)
    bench = Bench(program, arguments.aiohttp_python, arguments.repeats, arguments.keep)
    names = arguments.only or [*SCENARIOS, *(LONG_SCENARIOS if arguments.long else ())]
    screen, progress = Console(width=None if sys.stdout.isatty() else 160), Console(stderr=True)
    rows: list[Row] = []
    failed = False
    where = host()
    for name in names:
        began_s = time.monotonic()
        progress.print(f"{name} ...", end=" ")
        try:
            for row in every[name](bench):
                rows.append(row)
        except BenchError as error:
            rows.append(Row(name, "did not run", str(error), "to run", False))
            failed = True
        progress.print(f"{time.monotonic() - began_s:.0f} s")
    screen.print(", ".join(f"{key} {value}" for key, value in where.items()))
    screen.print(table(rows))
    decided = [row.met for row in rows if row.met is not None]
    screen.print(f"{sum(decided)} of {len(decided)} targets met")
    if arguments.json:
        arguments.json.write_text(json.dumps({"host": where, "rows": [asdict(row) for row in rows]}, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
