"""How long the analysis of a large trace of PyTorch's profiler takes, and how much memory.

    python bench/profile_speed.py TRACE.json[.gz] [--megabytes 200] [--gzip]

Repeats the events of a real trace, each time later by its span and with its calls and operators renumbered, until
the uncompressed file has the size; then analyses it in a process of its own. Prints one JSON line: bytes, events,
read_s (reading alone), analyse_s (all of it), peak_rss_bytes (of that process, imports included).
"""

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEGABYTE = 1_000_000
NUMBERS = ("correlation", "External id", "Ev Idx")


def repeated(source: Path, target: Path, size_bytes: int, *, packed: bool) -> None:
    """Writes the larger trace, in the layout that PyTorch writes: events one behind the other, indented."""
    raw = source.read_bytes()
    trace = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    events = trace.pop("traceEvents")
    timed = [event for event in events if event.get("ph") == "X"]
    span_us = max(event["ts"] + event["dur"] for event in timed) - min(event["ts"] for event in timed) + 1000
    highest = {name: max((event.get("args", {}).get(name, 0) for event in timed), default=0) + 1 for name in NUMBERS}
    open_target = gzip.open if packed else open
    with open_target(target, "wt", encoding="utf-8") as file:
        written = file.write(json.dumps(trace, indent=2)[:-2] + ',\n  "traceEvents": [\n')
        first = True
        turn = 0
        while written < size_bytes:
            for event in events:
                moved = dict(event)
                if "ts" in moved:
                    moved["ts"] += span_us * turn
                if "args" in moved:
                    moved["args"] = {
                        name: value + highest[name] * turn if name in highest and isinstance(value, int) else value
                        for name, value in moved["args"].items()
                    }
                written += file.write(("" if first else ",\n") + "  " + json.dumps(moved, indent=2))
                first = False
            turn += 1
        file.write('\n  ],\n  "traceName": "repeated"\n}\n')


def measured(path: Path) -> None:
    from pinchpoint.profiles import Limits, analyse, kineto

    began_s = time.perf_counter()
    reading = kineto.read(path, Limits(), 0)
    read_s = time.perf_counter() - began_s
    events = reading.events_read
    del reading
    began_s = time.perf_counter()
    found = analyse([path])
    analyse_s = time.perf_counter() - began_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {"bytes": found.files[0].bytes_read, "events": events, "read_s": read_s, "analyse_s": analyse_s}
    print(json.dumps(row | {"peak_rss_bytes": peak, "devices": len(found.ranks), "problems": len(found.problems)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--megabytes", type=float, default=200.0)
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured(arguments.trace)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / ("large.json.gz" if arguments.gzip else "large.json")
        repeated(arguments.trace, target, int(arguments.megabytes * MEGABYTE), packed=arguments.gzip)
        subprocess.run([sys.executable, __file__, "--measure", str(target)], check=True)


if __name__ == "__main__":
    main()
