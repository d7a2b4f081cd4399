"""What is shown while a run goes on, always on stderr: stdout is for the answer.

On a terminal a few lines are redrawn in place; elsewhere (CI logs, pipes) one plain line is written every five
seconds and whenever the phase changes or a step is decided. Nothing is measured here: it prints `model.Progress`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pinchpoint.model import Progress
from pinchpoint.report import words
from pinchpoint.report.literal import literal, visible
from pinchpoint.report.steps import DECISION
from pinchpoint.report.text import to_ascii
from pinchpoint.units import MISSING, format_duration, significant

PLAIN_PERIOD_S = 5.0
REFRESH_HZ = 4.0
"""Redraws per second: each costs CPU time that the load generator may need."""
STEPS_SHOWN = 8
PLAIN_LOAD = "load"
"""Phase in which nobody looks for a capacity."""
LABEL_COLUMNS = 10

Show = Callable[[Progress], None]


@contextmanager
def show_progress(stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Yields a function to call with every Progress; calling it often is cheap.

    stream: where to write, stderr when None. clock: seconds, for the plain lines.
    """
    output: TextIO = stream or sys.stderr
    console = Console(file=output, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        ascii_only = not (console.encoding or "ascii").lower().startswith("utf")
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Redrawn(live, ascii_only, clock)
    else:
        yield _Plain(output, clock)


class _Redrawn:
    def __init__(self, live: Live, ascii_only: bool, clock: Callable[[], float]) -> None:
        self._live, self._ascii_only, self._clock = live, ascii_only, clock
        self._drawn_s = float("-inf")

    def __call__(self, progress: Progress) -> None:
        now_s = self._clock()
        if now_s - self._drawn_s < 1 / REFRESH_HZ:
            return
        self._drawn_s = now_s
        picture = render_progress(progress)
        if self._ascii_only:
            console = self._live.console
            with console.capture() as capture:
                console.print(picture)
            picture = Text(to_ascii(Text.from_ansi(capture.get()).plain))
        self._live.update(picture, refresh=True)


class _Plain:
    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._written_s = float("-inf")
        self._seen: tuple[str, int] = ("", 0)

    def __call__(self, progress: Progress) -> None:
        now_s, seen = self._clock(), (progress.phase, len(progress.steps))
        if seen == self._seen and now_s - self._written_s < PLAIN_PERIOD_S:
            return
        if seen[1] > self._seen[1]:
            for rate_rps, decision, reason in progress.steps[self._seen[1] :]:
                self._write(f"step {words.rate(rate_rps)} req/s: {visible(decision)} ({visible(reason)})")
        self._written_s, self._seen = now_s, seen
        self._write(progress_line(progress))

    def _write(self, line: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        self._stream.write((line if encoding.lower().startswith("utf") else to_ascii(line)) + "\n")
        self._stream.flush()


def progress_line(progress: Progress) -> str:
    """One line for logs: phase, time, rate, in flight, latency, tokens, errors, bracket."""
    fields = [
        f"{format_duration(round(progress.elapsed_s))}",
        f"{visible(progress.phase)}: {visible(progress.detail)}" if progress.detail else visible(progress.phase),
        f"{words.rate(progress.rate_rps)} req/s" if progress.rate_rps is not None else "",
        f"{progress.in_flight} in flight",
        f"{progress.completed} done",
        f"{progress.errors} errors",
        f"TTFT p50 {format_duration(progress.ttft_p50_s)} p95 {format_duration(progress.ttft_p95_s)}",
        f"TPOT p50 {format_duration(progress.tpot_p50_s)} p95 {format_duration(progress.tpot_p95_s)}",
        f"{significant(progress.output_tokens_per_s)} tokens/s",
        f"capacity {_bracket(progress)}" if progress.phase != PLAIN_LOAD else "",
        f"{_left(progress)}",
    ]
    return " | ".join(field for field in fields if field)


def render_progress(progress: Progress) -> RenderableType:
    """The redrawn view: what is going on, latest figures, capacity bracket, steps so far."""
    head = Text.assemble(
        (visible(progress.phase), "bold cyan"),
        "  ",
        visible(progress.detail),
        ("   " + format_duration(round(progress.elapsed_s)), "dim"),
        (f", {_left(progress)}" if _left(progress) else "", "dim"),
    )
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=LABEL_COLUMNS, style="dim")
    grid.add_column()
    rate = MISSING if progress.rate_rps is None else f"{words.rate(progress.rate_rps)} req/s"
    errors = Text(f"{progress.errors} errors", style="bold red" if progress.errors else "")
    grid.add_row(
        "load", Text.assemble(f"{rate}   {progress.in_flight} in flight   {progress.completed} done   ", errors)
    )
    grid.add_row("TTFT", f"p50 {format_duration(progress.ttft_p50_s)}   p95 {format_duration(progress.ttft_p95_s)}")
    grid.add_row("TPOT", f"p50 {format_duration(progress.tpot_p50_s)}   p95 {format_duration(progress.tpot_p95_s)}")
    grid.add_row("output", f"{significant(progress.output_tokens_per_s)} tokens/s")
    if progress.phase != PLAIN_LOAD:
        grid.add_row("capacity", Text(_bracket(progress), style="bold"))
    steps = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        steps.add_column()
    for rate_rps, decision, reason in progress.steps[-STEPS_SHOWN:]:
        word, style = DECISION.get(decision, (visible(decision), "dim"))
        steps.add_row(f"{words.rate(rate_rps):>6} req/s", Text(word, style=style), literal(reason, "dim"))
    return Group(head, grid, steps) if progress.steps else Group(head, grid)


def _bracket(progress: Progress) -> str:
    low, high = progress.lower_rps, progress.upper_rps
    if low is None and high is None:
        return "not known yet"
    if high is None:
        return f"at least {words.rate(low)} req/s"
    return f"below {words.rate(high)} req/s" if low is None else f"{words.rate(low)} – {words.rate(high)} req/s"


def _left(progress: Progress) -> str:
    return "" if progress.left_s is None else f"about {format_duration(round(progress.left_s))} left"
