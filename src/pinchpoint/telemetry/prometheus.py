"""Parser of the Prometheus text exposition format, made for reading the same page hundreds of times.

Tolerates OpenMetrics (`# EOF`, exemplars), timestamps, escaped labels, quoted metric names, NaN and Inf. Not a
validator: types and help texts are skipped, and a line that cannot be read is counted and left out.

The surprising thing: nearly all the cost of parsing is in names and labels, and those repeat from scrape to scrape.
The text before the value is therefore remembered, and a known line costs one dictionary lookup and one float(). A line
that has not changed since the page before costs the lookup alone.
"""

import re
from typing import NamedTuple

MAX_SAMPLES = 100_000
"""Per page; our bound. vLLM exposes about 600 samples, a Ray node about 2,000."""
MAX_LINE_CHARS = 65_536
"""Our bound; the longest real line seen has 1,100 characters (vLLM cache_config_info)."""
MAX_HEADS = 200_000
"""Remembered line heads, over all pages. Labels that change with every scrape would otherwise grow the memory."""

_QUOTED = r'"([^"\\]*(?:\\.[^"\\]*)*)"'
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(rf"\s*(?:([a-zA-Z_][a-zA-Z0-9_]*)|{_QUOTED})\s*(=\s*{_QUOTED})?\s*")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "\\": "\\", '"': '"'}


class RawSample(NamedTuple):
    """One exposed sample. `labels` is shared between scrapes: read it, never change it."""

    name: str
    labels: dict[str, str]
    value: float


class PrometheusParser:
    """Keeps what repeats between scrapes. One per source; not for use from two threads."""

    def __init__(self) -> None:
        self._heads: dict[str, tuple[str, dict[str, str]]] = {}
        self._lines: dict[str, RawSample | None] = {}
        """Lines of the page before, most of which come again as they were; None: comments and blanks."""

    def parse(self, page: bytes | str) -> tuple[list[RawSample], int]:
        """Samples in page order, and the number of lines that are neither sample, comment nor blank.

        Lines beyond MAX_SAMPLES count as malformed. Explicit timestamps and exemplars are dropped.
        """
        text = page.decode("utf-8", "replace") if isinstance(page, bytes) else page
        samples: list[RawSample] = []
        malformed = 0
        before, self._lines = self._lines, {}
        for line in text.split("\n"):
            if line in before:
                sample = before[line]
            else:
                stripped = line.strip()
                if not stripped or stripped[0] == "#":
                    sample = None
                else:
                    sample = self._parse_line(stripped) if len(stripped) <= MAX_LINE_CHARS else None
                    if sample is None:
                        malformed += 1
                        continue
            self._lines[line] = sample
            if sample is None:
                continue
            if len(samples) < MAX_SAMPLES:
                samples.append(sample)
            else:
                malformed += 1
        return samples, malformed

    def _parse_line(self, line: str) -> RawSample | None:
        brace = line.rfind("}")
        end = brace + 1 if brace >= 0 else _first_blank(line)
        known = self._heads.get(line[:end])
        if known is None:
            parsed = _parse_head(line)
            if parsed is None:
                return None
            name, labels, true_end = parsed
            if true_end == end:
                if len(self._heads) >= MAX_HEADS:
                    self._heads.clear()
                self._heads[line[:end]] = (name, labels)
            end = true_end
        else:
            name, labels = known
        value = _parse_value(line[end:])
        return None if value is None else RawSample(name, labels, value)


def _first_blank(line: str) -> int:
    for position, character in enumerate(line):
        if character in " \t":
            return position
    return len(line)


def _parse_head(line: str) -> tuple[str, dict[str, str], int] | None:
    """Name, labels and where the value begins; None when the line does not start like a sample."""
    match = _NAME.match(line)
    name = match.group() if match else None
    position = match.end() if match else 0
    after = len(line) - len(line[position:].lstrip())
    if after < len(line) and line[after] == "{":
        labelled = _parse_labels(line, after + 1)
        if labelled is None:
            return None
        quoted_name, labels, position = labelled
        if (name is None) == (quoted_name is None):
            return None
        return name or quoted_name or "", labels, position
    if name is None or after == position:
        return None
    return name, {}, position


def _parse_labels(line: str, position: int) -> tuple[str | None, dict[str, str], int] | None:
    """The part between the braces. A quoted text without a value is the metric's name (Prometheus 3)."""
    name: str | None = None
    labels: dict[str, str] = {}
    while True:
        if line.startswith("}", position):
            return name, labels, position + 1
        match = _LABEL.match(line, position)
        if match is None or match.end() >= len(line):
            return None
        key, quoted_key, has_value, value = match.groups()
        if key is None:
            key = _unescape(quoted_key)
        if has_value is None:
            if quoted_key is None or name is not None:
                return None
            name = key
        elif key in labels:
            return None
        else:
            labels[key] = _unescape(value)
        position = match.end()
        if line[position] == ",":
            position += 1
            while position < len(line) and line[position] in " \t":
                position += 1
        elif line[position] != "}":
            return None


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match.group(1), match.group()), text)


def _parse_value(rest: str) -> float | None:
    """`value [timestamp] [# exemplar]`."""
    fields = rest.partition("#")[0].split()
    if not 1 <= len(fields) <= 2 or "_" in rest.partition("#")[0]:  # float() would take 1_000
        return None
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        return None
    return numbers[0]
