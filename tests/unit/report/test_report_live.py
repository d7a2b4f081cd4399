"""The live view: plain lines when nobody watches, a redrawn picture on a terminal, never more often than needed."""

import io
from typing import Any

import msgspec
from inline_snapshot import snapshot
from rich.console import Console

from pinchpoint.model import Progress
from pinchpoint.report.live import render_progress, show_progress

PROGRESS = Progress(
    phase="search",
    detail="step 3 of about 7",
    elapsed_s=83.2,
    left_s=140.0,
    rate_rps=6.0,
    in_flight=11,
    completed=412,
    errors=0,
    output_tokens_per_s=286.4,
    ttft_p50_s=0.427,
    ttft_p95_s=1.36,
    tpot_p50_s=0.0261,
    tpot_p95_s=None,
    lower_rps=3.0,
    upper_rps=6.0,
    steps=((1.5, "pass", "every SLO held"), (3.0, "pass", "every SLO held")),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def after(progress: Progress, **fields: Any) -> Progress:
    return msgspec.structs.replace(progress, **fields)


def test_without_a_terminal_there_is_one_line_every_five_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, clock=clock) as show:
        for tenth_s in range(100):
            clock.now_s = tenth_s / 10
            show(after(PROGRESS, steps=()))
    assert len(stream.getvalue().splitlines()) == 2


def test_a_decided_step_and_a_new_phase_are_written_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    with show_progress(stream, clock=clock) as show:
        show(after(PROGRESS, steps=PROGRESS.steps[:1]))
        show(after(PROGRESS, steps=PROGRESS.steps))
        show(after(PROGRESS, phase="overload"))
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if line.startswith("step ")] == [
        "step 1.5 req/s: pass (every SLO held)",
        "step 3.0 req/s: pass (every SLO held)",
    ]
    assert "overload" in lines[-1]


def test_plain_output_has_no_control_characters_whatever_the_service_says() -> None:
    stream = io.StringIO()
    with show_progress(stream, clock=Clock()) as show:
        show(after(PROGRESS, detail="\x1b[2Jevil\rname", steps=((1.0, "fail", "\x1b]0;t\x07[red]reason"),)))
    assert stream.getvalue().replace("\n", "").isprintable()
    assert "[red]reason" in stream.getvalue()


def test_plain_line_holds_every_figure() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with show_progress(stream, clock=Clock()) as show:
        show(after(PROGRESS, steps=()))
    stream.seek(0)
    assert stream.read().rstrip("\n").split(" | ") == [
        "1 m 23 s",
        "search: step 3 of about 7",
        "6.0 req/s",
        "11 in flight",
        "412 done",
        "0 errors",
        "TTFT p50 427 ms p95 1.36 s",
        "TPOT p50 26.1 ms p95 –",
        "286 tokens/s",
        "capacity 3.0 – 6.0 req/s",
        "about 2 m 20 s left",
    ]


def test_a_terminal_is_redrawn_and_left_clean() -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    stream, clock = Terminal(), Clock()
    with show_progress(stream, clock=clock) as show:
        show(PROGRESS)
        written = len(stream.getvalue())
        clock.now_s = 0.1
        show(PROGRESS)
        assert len(stream.getvalue()) == written, "redrawn more often than four times a second"
        clock.now_s = 0.3
        show(after(PROGRESS, in_flight=12))
    assert "12 in flight" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K") or "\x1b[1A" in stream.getvalue()


def test_picture_of_the_live_view() -> None:
    console = Console(width=90, file=io.StringIO(), highlight=False)
    with console.capture() as capture:
        console.print(render_progress(PROGRESS))
    assert "\n".join(line.rstrip() for line in capture.get().splitlines()) == snapshot("""\
search  step 3 of about 7   1 m 23 s, about 2 m 20 s left
load        6.0 req/s   11 in flight   412 done   0 errors
TTFT        p50 427 ms   p95 1.36 s
TPOT        p50 26.1 ms   p95 –
output      286 tokens/s
capacity    3.0 – 6.0 req/s
   1.5 req/s  ✓ pass  every SLO held
   3.0 req/s  ✓ pass  every SLO held\
""")
