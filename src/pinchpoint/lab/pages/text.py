"""The Prometheus text exposition format, in the handwriting of the libraries that write it.

The same numbers look different from prometheus_client (Python), from Go's client, from Rust's metrics-exporter and
from llama.cpp's string streams: order of labels and of a histogram's lines, number format, blank lines. A Style holds
what differs; heads of lines are remembered, since they repeat with every page.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from pinchpoint.lab.metrics import Histogram

Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, float]

EPOCH_UNIX_S = 1_780_272_000.0
"""2026-06-01 00:00 UTC: wall clock at the lab's instant 0, where nobody says otherwise."""
MAX_PLAIN_DIGITS = 6
MAX_PLAIN = 10**MAX_PLAIN_DIGITS
"""Digits before the point; beyond, Go and prometheus_client write an exponent."""
MAX_HEADS = 65_536


def labelled(**pairs: object) -> Labels:
    """Labels in alphabetical order, as prometheus_client writes them."""
    return tuple(sorted((name, str(value)) for name, value in pairs.items()))


def also(labels: Labels, **pairs: object) -> Labels:
    """These labels and more, in alphabetical order."""
    return tuple(sorted((*labels, *((name, str(value)) for name, value in pairs.items()))))


def python_number(value: float) -> str:
    """As prometheus_client: always with a point, exponent from a million on."""
    if type(value) is int and 0 <= value < MAX_PLAIN:
        return f"{value}.0"
    if value == float("inf"):
        return "+Inf"
    text = repr(float(value))
    point = text.find(".")
    if value > 0 and point > MAX_PLAIN_DIGITS:
        mantissa = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0").rstrip(".")
        return f"{mantissa}e+{point - 1:02d}"
    return text


def go_number(value: float) -> str:
    """As Go's client: shortest form, exponent from a million on."""
    text = python_number(value)
    return text[:-2] if text.endswith(".0") else text


def rust_number(value: float) -> str:
    """As Rust prints a float: shortest form, no exponent."""
    return str(int(value)) if value == int(value) else repr(float(value))


def stream_number(value: float) -> str:
    """As a C++ stream with its precision of six digits; whole numbers are integers there and printed whole."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class Style(NamedTuple):
    number: Callable[[float], str]
    bound: Callable[[float], str] = python_number
    sum_place: int = 2
    """Place of a histogram's sum among sum, buckets and count: 0 first, 1 after the buckets, 2 last."""
    bound_sorted: bool = True
    """`le` stands in its alphabetical place, else last."""
    family_end: str = ""
    empty_families: bool = True
    """HELP and TYPE are written for families without samples."""


PYTHON = Style(python_number)
PYTHON_MULTIPROCESS = Style(python_number, sum_place=0, empty_families=False)
"""prometheus_client that merges the files of several processes."""
GO = Style(go_number, go_number)
RUST = Style(rust_number, rust_number, sum_place=1, bound_sorted=False, family_end="\n", empty_families=False)
STREAM = Style(stream_number)


class Page:
    """Collects families in the order they are given. `text` is the page."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._out: list[str] = []

    def family(
        self, name: str, kind: str, help_text: str | None, samples: Iterable[Sample], line_end: str = "\n"
    ) -> None:
        """name as exposed, `_total` included. help_text None: the exporter writes no HELP line.

        line_end: with the time of collection, where the exporter stamps its samples.
        """
        number = self._style.number
        lines = [f"{_head(name, labels)}{number(value)}{line_end}" for labels, value in samples]
        self._write(name, kind, help_text, lines)

    def summary(self, name: str, help_text: str, samples: Iterable[tuple[Labels, int, float]]) -> None:
        """Count and sum without quantiles, as prometheus_client has it. Samples are (labels, count, sum)."""
        number = self._style.number
        lines: list[str] = []
        for labels, count, total in samples:
            lines.append(f"{_head(name + '_count', labels)}{number(count)}\n")
            lines.append(f"{_head(name + '_sum', labels)}{number(total)}\n")
        self._write(name, "summary", help_text, lines)

    def quantiles(self, name: str, help_text: str, samples: Iterable[Sample], count: int, total: float) -> None:
        """A summary without labels of its own; samples are those of its quantiles."""
        number = self._style.number
        lines = [f"{_head(name, labels)}{number(value)}\n" for labels, value in samples]
        lines += [f"{name}_sum {number(total)}\n", f"{name}_count {number(count)}\n"]
        self._write(name, "summary", help_text, lines)

    def histogram(
        self,
        name: str,
        help_text: str | None,
        samples: Iterable[tuple[Labels, Histogram]],
        bounds: tuple[float, ...],
        unit: float = 1.0,
    ) -> None:
        """bounds must be among the histogram's. unit: exposed value over the lab's, for those in ms and MB.

        bounds are in the lab's unit, too.
        """
        style = self._style
        lines: list[str] = []
        for labels, histogram in samples:
            heads = _bucket_heads(name, labels, bounds, unit, style)
            counts = histogram.below(bounds)
            buckets = [f"{head}{style.number(count)}\n" for head, count in zip(heads, counts, strict=True)]
            buckets.append(f"{_head(name + '_count', labels)}{style.number(counts[-1])}\n")
            place = (0, -1, len(buckets))[style.sum_place]
            buckets.insert(place, f"{_head(name + '_sum', labels)}{style.number(histogram.sum * unit)}\n")
            lines += buckets
        self._write(name, "histogram", help_text, lines)

    def _write(self, name: str, kind: str, help_text: str | None, lines: Sequence[str]) -> None:
        if not lines and not self._style.empty_families:
            return
        if help_text is not None:
            self._out.append(f"# HELP {name} {help_text}\n")
        self._out.append(f"# TYPE {name} {kind}\n")
        self._out += lines
        self._out.append(self._style.family_end)

    def text(self) -> str:
        return "".join(self._out)


@lru_cache(maxsize=MAX_HEADS)
def _head(name: str, labels: Labels) -> str:
    return f"{name}{{{_inner(labels)}}} " if labels else f"{name} "


@lru_cache(maxsize=4_096)
def _bucket_heads(name: str, labels: Labels, bounds: tuple[float, ...], unit: float, style: Style) -> list[str]:
    heads: list[str] = []
    for bound in (*bounds, float("inf")):
        # Nine digits take away what a change of unit adds in the last place.
        text = "+Inf" if bound == float("inf") else style.bound(bound if unit == 1.0 else float(f"{bound * unit:.9g}"))
        pairs = (*labels, ("le", text))
        heads.append(f"{name}_bucket{{{_inner(tuple(sorted(pairs)) if style.bound_sorted else pairs)}}} ")
    return heads


def _inner(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
