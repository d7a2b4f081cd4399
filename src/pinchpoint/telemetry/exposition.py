"""Readings as a page in the Prometheus text format, under their canonical names.

Canonical names have dots, which the format takes since Prometheus 3 in one spelling only: quoted, inside the braces
(`{"host.load1",host="a"} 0.5`). The names are kept all the same: whoever reads the page with Pinchpoint needs no
table of names, and Prometheus 3 can scrape it as it is.
"""

from collections.abc import Iterable, Mapping

from pinchpoint.catalog import Catalog, parse_labels
from pinchpoint.telemetry.config import Reading

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"
TYPES = {"gauge": "gauge", "counter": "counter", "histogram": "untyped", "info": "gauge"}


def exposition(readings: Iterable[Reading], catalog: Catalog, extra: Mapping[str, str]) -> str:
    """One family a series, in the order of their first reading. `extra` labels are put on every sample.

    Readings without a series (events) stand under their own names.
    """
    families: dict[str, list[str]] = {}
    for reading in readings:
        name = reading.series or reading.raw
        labels = {**parse_labels(reading.labels), **extra}
        pairs = "".join(f',{key}="{_escaped(value)}"' for key, value in labels.items())
        families.setdefault(name, []).append(f'{{"{_escaped(name)}"{pairs}}} {reading.value!r}')
    lines: list[str] = []
    for name, samples in families.items():
        entry = catalog.entry(name)
        if entry is not None:
            lines.append(f'# HELP "{name}" {entry.description}')
        lines.append(f'# TYPE "{_escaped(name)}" {TYPES[entry.kind] if entry is not None else "untyped"}')
        lines += samples
    return "\n".join([*lines, ""])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
