"""Prints what the catalogue finds on pages of metrics: `python tools/metrics_coverage.py DIR|FILE... [--names]`.

A directory stands for the files in it and below that hold metrics text (.prom, .txt, .metrics). --names also lists, by
page and exporter, the exposed names that lead to no series.
"""

import sys
from pathlib import Path

from pinchpoint.catalog import load_catalog
from pinchpoint.coverage import PageCoverage, survey
from pinchpoint.telemetry.prometheus import PrometheusParser

ENDINGS = (".prom", ".txt", ".metrics")
HEADER = (
    "page",
    "exporter",
    "names",
    "of use",
    "unknown",
    "series found",
    "share",
    "share of those it shows by itself",
)


def pages(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(each for each in path.rglob("*") if each.suffix in ENDINGS)
        else:
            found.append(path)
    return found


def read(path: Path) -> PageCoverage:
    samples, _ = PrometheusParser().parse(path.read_bytes())
    return survey(load_catalog(), samples)


def rows(name: str, page: PageCoverage) -> list[tuple[str, ...]]:
    return [
        (
            name,
            each.exporter,
            str(each.names),
            str(each.names - len(each.unknown) - len(each.left_out)),
            str(len(each.unknown)),
            f"{len(each.found)} of {len(each.found) + len(each.missing)}",
            f"{each.share:.0%}",
            f"{each.share_expected:.0%}",
        )
        for each in page.exporters
    ]


def main(arguments: list[str]) -> int:
    paths = pages([Path(argument) for argument in arguments if argument != "--names"])
    if not paths:
        print("usage: python tools/metrics_coverage.py DIR|FILE... [--names]", file=sys.stderr)
        return 2
    read_pages = [(path, read(path)) for path in paths]
    table = [HEADER, *(row for path, page in read_pages for row in rows(path.stem, page))]
    for number, row in enumerate(table):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("|" + "---|" * len(row))
    if "--names" in arguments:
        for path, page in read_pages:
            print(f"\n{path.stem}")
            for each in page.exporters:
                print(f"  {each.exporter} unknown: {' '.join(each.unknown)}")
                print(f"  {each.exporter} missing: {' '.join(each.unexplained)}")
            print(f"  of nobody: {' '.join(page.strangers)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
