"""ServeGen's client statistics: for each client the rate, burstiness and lengths in windows of ten minutes.

They are no requests, so requests are drawn from them, with a seed of their own: the arrivals of each client by the
window's law (gamma or Weibull) and the lengths by the window's tables. A tar (plain or .gz), or a directory.
"""

import ast
import csv
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.workload.traces.table import LogBuilder, RequestLog

WINDOW_S = 600.0
REQUESTS_MAX = 100_000
"""Drawn from the beginning of the statistics; more say nothing new about ten-minute windows."""
SEED = 1
_MEMBER = re.compile(r"chunk-(\w+)-(trace\.csv|dataset\.json)$")


def is_servegen(path: Path) -> bool:
    return path.is_dir() or path.name.endswith((".tar.gz", ".tgz", ".tar"))


def read_servegen(path: Path) -> RequestLog:
    """Raises UsageError with file, line and reason."""
    traces: dict[str, str] = {}
    datasets: dict[str, str] = {}
    for name, text in _members(path):
        match = _MEMBER.search(name)
        if match is not None:
            (traces if match[2] == "trace.csv" else datasets)[match[1]] = text
    if not traces:
        raise UsageError(f"{path} holds no chunk-*-trace.csv; is it ServeGen's data?")
    windows: dict[float, list[tuple[str, float, str, float, float]]] = {}
    for client, text in sorted(traces.items()):
        if client not in datasets:
            raise UsageError(f"{path}: chunk-{client}-trace.csv has no chunk-{client}-dataset.json beside it")
        for line, row in enumerate(csv.reader(io.StringIO(text)), 1):
            where = f"{path}, chunk-{client}-trace.csv, line {line}"
            start_s, rate_rps, law, shape, scale = _window(row, where)
            if rate_rps > 0:
                windows.setdefault(start_s, []).append((client, rate_rps, law, shape, scale))
    tables = {client: _dataset(text, f"{path}, chunk-{client}-dataset.json") for client, text in datasets.items()}
    builder = LogBuilder("servegen", str(path))
    rng = np.random.default_rng(SEED)
    drawn: list[tuple[int, int, int]] = []
    drawn_until_s = 0.0
    for start_s in sorted(windows):
        drawn_until_s = start_s
        for client, rate_rps, law, shape, scale in windows[start_s]:
            instants_s = start_s + _arrivals_s(rng, rate_rps, law, shape, scale)
            inputs, outputs = _lengths(tables[client], start_s, len(instants_s), rng)
            drawn += zip((instants_s * NS_PER_S).astype(np.int64).tolist(), inputs, outputs, strict=True)
        if len(drawn) >= REQUESTS_MAX:
            break
    for t_ns, one_in, one_out in sorted(drawn):
        if one_out < 1:
            builder.leave_out("no answer (0 output tokens)")
        else:
            builder.add(t_ns, max(1, one_in), one_out)
    last_s, whole_s = (drawn_until_s, max(windows)) if windows else (0.0, 0.0)
    if last_s < whole_s:
        builder.notes.append(
            f"of {whole_s + WINDOW_S:,.0f} s of statistics only those until {last_s + WINDOW_S:,.0f} s were drawn "
            f"from: they make {len(drawn):,} requests already"
        )
    builder.notes.append(
        f"statistics of {len(traces)} clients: {len(drawn)} requests were drawn from them, inputs and outputs apart, "
        "since the tables do not tell how they go together"
    )
    return builder.build()


def _members(path: Path) -> Iterator[tuple[str, str]]:
    try:
        if path.is_dir():
            for file in sorted(path.glob("chunk-*")):
                yield file.name, file.read_text(encoding="utf-8")
            return
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read().decode("utf-8")
    except (OSError, EOFError, tarfile.TarError, zlib.error, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the trace {path}: {getattr(error, 'strerror', None) or error}") from None


def _window(row: list[str], where: str) -> tuple[float, float, str, float, float]:
    try:
        start_s, rate_rps, _, law, shape, scale = row
        numbers = (float(start_s), float(rate_rps), float(shape or 0), float(scale or 0))
    except ValueError:
        raise UsageError(f"{where}: six fields are needed, window, rate, cv, law, shape and scale") from None
    if not np.all(np.isfinite(numbers)) or numbers[0] < 0 or numbers[1] < 0:
        raise UsageError(f"{where}: {','.join(row)[:60]} holds a number that cannot be")
    if numbers[1] > 0 and law not in ("Gamma", "Weibull", ""):
        raise UsageError(f"{where}: {law!r} is neither Gamma nor Weibull")
    return numbers[0], numbers[1], law, numbers[2], numbers[3]


def _arrivals_s(rng: np.random.Generator, rate_rps: float, law: str, shape: float, scale: float) -> np.ndarray:
    """On [0, WINDOW_S); gaps are scaled so that their mean is that of the rate."""
    count = int(rate_rps * WINDOW_S * 1.5) + 50
    if law == "Weibull" and shape > 0:
        gaps = rng.weibull(shape, count)
    elif law == "Gamma" and shape > 0:
        gaps = rng.gamma(shape, 1.0, count)
    else:
        gaps = rng.exponential(1.0, count)
    mean = gaps.mean()
    instants_s = np.cumsum(gaps / mean / rate_rps) if mean > 0 else np.empty(0)
    return instants_s[instants_s < WINDOW_S]


Table = dict[float, dict[str, tuple[np.ndarray, np.ndarray]]]


def _dataset(text: str, where: str) -> Table:
    """Window -> "input_tokens" and "output_tokens" -> (values, probabilities)."""
    try:
        raw = json.loads(text)
        found: Table = {}
        for start_s, fields in raw.items():
            found[float(start_s)] = {}
            for name in ("input_tokens", "output_tokens"):
                law = ast.literal_eval(fields[name])
                values = np.array(list(law), float)
                shares = np.array(list(law.values()), float)
                if len(values) and (shares.min() < 0 or shares.sum() <= 0):
                    raise ValueError(f"{name} of window {start_s} has no probabilities")
                if len(values):
                    found[float(start_s)][name] = (values, shares / shares.sum())
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
        raise UsageError(f"{where}: not ServeGen's tables of lengths ({str(error)[:80]})") from None
    return found


def _lengths(table: Table, start_s: float, count: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Of the window, or of the nearest one that has tables."""
    known = [one for one in table if len(table[one]) == 2]
    if not known or not count:
        return [1] * count, [0] * count
    window = table[min(known, key=lambda one: abs(one - start_s))]
    drawn = []
    for name in ("input_tokens", "output_tokens"):
        values, shares = window[name]
        drawn.append(np.rint(rng.choice(values, count, p=shares)).astype(np.int64).tolist())
    return drawn[0], drawn[1]
