"""Where the time of profiled steps went, for a terminal.

Kernel names come from files of strangers, may be thousands of characters long, and are printed as text only.
"""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pinchpoint.profiles.model import Analysis, GpuTime, RankAnalysis
from pinchpoint.report.literal import literal, visible
from pinchpoint.report.profile_words import (
    FAMILIES,
    IDLE_ADVICE,
    family_of,
    format_title,
    headline,
    idle_words,
    longest_idle,
    scaled,
    share,
    short_name,
    step_kind_title,
    step_words,
    title_of,
)
from pinchpoint.report.words import sentence
from pinchpoint.units import MISSING, counted, format_count, format_duration

BAR_WIDTH = 16
SPLIT_WIDTH = 72
CATEGORIES_SHOWN = 10
RANKS_SHOWN = 4
"""In full; the table across ranks holds all of them."""
ROOFLINE_SHOWN = 6
HOST_OPS_SHOWN = 10
TOP_DEFAULT = 15
LAYERS_SHOWN = 7
ELSEWHERE_MIN = 0.01
"""Work of no known layer is told from this share on."""
EIGHTHS = " ▏▎▍▌▋▊▉"
STYLES = dict(
    zip(FAMILIES, ("blue", "yellow", "magenta", "green", "bright_magenta", "cyan", "red", "bright_black"), strict=True)
)


def profile_screen(analysis: Analysis, top: int = TOP_DEFAULT) -> RenderableType:
    """Everything, top to bottom. top: kernels shown per device."""
    parts: list[RenderableType] = [_files(analysis), literal(sentence(headline(analysis)), "bold")]
    if (across := across_table(analysis)) is not None:
        parts += [Text(""), across]
    shown = _shown(analysis)
    for rank in shown:
        parts += [Text(""), *_rank(rank, top, len(analysis.ranks) > 1)]
    if len(shown) < len(analysis.ranks):
        left = len(analysis.ranks) - len(shown)
        parts.append(Text(f"{left} more are on the page and in the JSON", style="dim"))
    notes = list(dict.fromkeys(note for rank in analysis.ranks for note in rank.notes))
    if analysis.problems or notes:
        parts += [Text(""), Text("could not be read, or not be told", style="bold")]
        for problem in analysis.problems:
            where = f" (at byte {problem.byte_offset:,})" if problem.byte_offset is not None else ""
            parts.append(_indented(literal(f"{problem.file}: {problem.what}{where}", "yellow")))
        parts += [_indented(literal(sentence(note))) for note in notes]
    return Group(*parts)


def profile_block(analysis: Analysis) -> RenderableType:
    """The same in a few lines, for the screen of a run."""
    rank = analysis.ranks[0] if analysis.ranks else None
    parts: list[RenderableType] = [literal(sentence(headline(analysis)))]
    if rank is not None and rank.gpu is not None:
        parts.append(Text(_split_words(rank.gpu), style="dim"))
        worst = longest_idle(rank)
        if worst is not None and rank.gpu.idle_s / rank.gpu.span_s > 0.1 and worst.kind in IDLE_ADVICE:
            parts.append(Text(IDLE_ADVICE[worst.kind], style="dim"))
    if rank is not None:
        parts += [Text(f"{step_kind_title(one.kind)}: {step_words(one)}", style="dim") for one in rank.step_summary[:3]]
    return Group(*parts)


def _files(analysis: Analysis) -> Text:
    text = Text(style="dim")
    for number, file in enumerate(analysis.files[:3]):
        text.append(" · " if number else "").append(literal(file.path.rsplit("/", 1)[-1]))
    if len(analysis.files) > 3:
        text.append(f" and {len(analysis.files) - 3} more")
    text.append(f" · {format_title(analysis.format)}")
    names = dict.fromkeys(one.device.name for one in analysis.ranks if one.device is not None and one.device.name)
    for name in names:
        text.append(" · ").append(literal(name))
    return text


def _shown(analysis: Analysis) -> list[RankAnalysis]:
    ranks = analysis.ranks
    if len(ranks) <= RANKS_SHOWN:
        return list(ranks)
    slowest = analysis.across_ranks.slowest if analysis.across_ranks is not None else None
    first = [one for one in ranks if one.label == slowest]
    return (first + [one for one in ranks if one.label != slowest])[:RANKS_SHOWN]


def across_table(analysis: Analysis) -> Table | None:
    """A line for each device; None for a single one."""
    across = analysis.across_ranks
    if across is None:
        return None
    rows = [
        (
            visible(rank.label + (" (slowest)" if rank.label == across.slowest else "")),
            format_duration(rank.gpu.span_s),
            share(rank.gpu.busy_share),
            format_duration(rank.gpu.compute_s),
            format_duration(rank.gpu.exposed_communication_s),
            format_duration(rank.gpu.idle_s),
            format_duration(across.waiting_s.get(rank.label)),
        )
        for rank in analysis.ranks
        if rank.gpu is not None
    ]
    heads = ("device", "span", "busy", "compute", "communicates only", "idle", "waits in collectives")
    return _table(heads, rows, left=("device",))


def _rank(rank: RankAnalysis, top: int, named: bool) -> Iterable[RenderableType]:
    head = literal(rank.label, "bold")
    if named and rank.device is not None and rank.device.name:
        head.append(f"  {visible(rank.device.name)}", "dim")
    yield head
    if rank.gpu is not None:
        yield _indented(Text(_split_words(rank.gpu)))
        yield _indented(_split_bar(rank.gpu))
    if rank.idle:
        yield from _section("idle", _bars([(title_of(i.kind), i.share, "white", idle_words(i)) for i in rank.idle]))
    if rank.categories:
        shown = rank.categories[:CATEGORIES_SHOWN]
        rows = [
            (
                title_of(one.category), one.share, STYLES[family_of(one.category)],
                f"{format_duration(one.busy_s if one.busy_s is not None else one.total_s)} in "
                f"{counted(one.kernels, 'kernel')}",
            )
            for one in shown
        ]  # fmt: skip
        rest = rank.categories[CATEGORIES_SHOWN:]
        title = "time by category" + (f" (of {len(rank.categories)} the largest {len(shown)})" if rest else "")
        yield from _section(title, _bars(rows))
    if rank.layers:
        rows = [
            (one.layer, one.share, "green", f"{format_duration(one.busy_s)}, {counted(one.kernels, 'kernel')}")
            for one in rank.layers[:LAYERS_SHOWN]
        ]
        elsewhere = 1 - sum(one.share for one in rank.layers)
        if elsewhere > ELSEWHERE_MIN:
            rows.append(("of no known layer", elsewhere, "bright_black", ""))
        yield from _section("time by layer", _bars(rows))
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column()
    for label, words in rank_facts(rank):
        facts.add_row(Text(label), literal(words))
    if facts.row_count:
        yield from _section("how it ran", facts)
    if rank.kernels:
        yield from _section(f"top {min(top, len(rank.kernels))} of {rank.kernel_names} kernels", _kernels(rank, top))
    if rank.roofline:
        yield from _section("distance from the roofline", _roofline(rank))
    if rank.gpu is None and rank.host is not None and rank.host.ops:
        yield from _section("operators on the CPU", _host(rank))


def rank_facts(rank: RankAnalysis) -> list[tuple[str, str]]:
    """(what, words): steps, communication, launches, matrix units."""
    rows = [(f"steps, {step_kind_title(one.kind)}", step_words(one)) for one in rank.step_summary]
    if rank.steps_from is not None and rank.step_summary:
        rows.append(("steps told by", rank.steps_from))
    if rank.overlap is not None:
        o = rank.overlap
        rows.append(
            (
                "communication",
                f"{format_duration(o.communication_s)}, {share(o.hidden_share)} hidden behind computing, "
                f"{format_duration(o.exposed_s)} exposed",
            )
        )
    if rank.launch is not None:
        launch = rank.launch
        words = (
            f"{counted(launch.launches, 'call')}, {format_duration(launch.call.p50_s)} (median) on the CPU, "
            f"{share(launch.host_busy_share)} of the busiest thread's time"
        )
        if launch.queue_delay is not None:
            words += f"; work begins {format_duration(launch.queue_delay.p50_s)} after its call (median)"
        if launch.graph_launches:
            words += (
                f"; {launch.graph_launches:,} of them start graphs of {counted(launch.kernels_in_graphs, 'kernel')}"
            )
        rows.append(("launches", words))
        if launch.short_kernels:
            rows.append(("shorter than a launch", counted(launch.short_kernels, "kernel")))
        if launch.synchronisations:
            rows.append(
                (
                    "host waited",
                    f"{format_duration(launch.synchronisation_s)} in "
                    f"{counted(launch.synchronisations, 'synchronisation')}",
                )
            )
    if rank.matrix_units is not None:
        rows.append(("matrix units", matrix_words(rank)))
    if rank.unclassified_share:
        rows.append(("not classified", f"{share(rank.unclassified_share)} of the kernels' time"))
    return rows


def matrix_words(rank: RankAnalysis) -> str:
    units = rank.matrix_units
    if units is None:
        return MISSING
    total_s = units.used_s + units.unused_s + units.unknown_s
    told = {"names": "by the kernels' names", "counters": "by counters", "dlprof": "by DLProf"}[units.source]
    if units.used_share is None:
        return f"{told}: not to be told of {format_duration(total_s)} of matrix products and attention"
    words = f"used in {share(units.used_share)} of the time of matrix products and attention, {told}"
    if units.unknown_s:
        words += f"; not to be told for {format_duration(units.unknown_s)}"
    return words


def _split_words(gpu: GpuTime) -> str:
    parts = [
        f"span {format_duration(gpu.span_s)}",
        f"busy {share(gpu.busy_share)}",
        f"compute {format_duration(gpu.compute_s)}",
        *([f"communication alone {format_duration(gpu.exposed_communication_s)}"] if gpu.communication_s else []),
        *([f"copies alone {format_duration(gpu.exposed_copy_s)}"] if gpu.exposed_copy_s else []),
        f"idle {format_duration(gpu.idle_s)}",
        f"{counted(gpu.kernels, 'kernel')} on {counted(gpu.streams, 'stream')}",
    ]
    return " · ".join(parts)


def _split_bar(gpu: GpuTime, width: int = SPLIT_WIDTH) -> Text:
    """One bar for the whole span: computing, communication alone, copies alone, idle."""
    text = Text()
    parts = (
        (gpu.compute_s, "blue", "█"),
        (gpu.exposed_communication_s, "red", "█"),
        (gpu.exposed_copy_s, "cyan", "█"),
        (gpu.idle_s, "bright_black", "░"),
    )
    done = 0.0
    for seconds, style, sign in parts:
        before = round(done / gpu.span_s * width) if gpu.span_s else 0
        done += seconds
        after = round(done / gpu.span_s * width) if gpu.span_s else 0
        text.append(sign * (after - before), style)
    return text


def _bars(rows: list[tuple[str, float, str, str]]) -> Table:
    """(label, share 0 to 1, style, words). The longest bar fills the column."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=28)
    table.add_column(no_wrap=True, width=BAR_WIDTH)
    table.add_column(justify="right", no_wrap=True, min_width=7)
    table.add_column(style="dim")  # the only one that may be narrowed
    largest = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    for label, value, style, words in rows:
        table.add_row(literal(label), Text(_bar(value / largest), style=style), share(value), _one_line(words))
    return table


def _one_line(words: str) -> Text:
    return Text(words, no_wrap=True, overflow="ellipsis")


def _bar(ratio: float) -> str:
    eighths = round(min(max(ratio, 0.0), 1.0) * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _kernels(rank: RankAnalysis, top: int) -> Table:
    return _table(
        ("share", "total", "calls", "mean", "category", "name"),
        [
            (
                share(one.share),
                format_duration(one.total_s),
                format_count(one.calls),
                format_duration(one.mean_s),
                Text(title_of(one.category), style=STYLES[family_of(one.category)]),
                visible(short_name(one.name)),
            )
            for one in rank.kernels[:top]
        ],
        left=("category", "name"),
    )


def _roofline(rank: RankAnalysis) -> Table:
    return _table(
        ("of peak", "bound by", "calls", "total", "FLOP/s", "bytes/s", "operator"),
        [
            (
                share(row.share_of_peak),
                row.bound or MISSING,
                format_count(row.calls),
                format_duration(row.kernel_total_s),
                scaled(row.flops_per_s, "FLOP/s"),
                scaled(row.bytes_per_s, "B/s"),
                visible(f"{row.op} {row.shapes}"),
            )
            for row in rank.roofline[:ROOFLINE_SHOWN]
        ],
        left=("bound by", "operator"),
    )


def _host(rank: RankAnalysis) -> Table:
    ops = sorted(rank.host.ops, key=lambda one: -one.self_s) if rank.host is not None else []
    return _table(
        ("own time", "with inner", "calls", "operator"),
        [
            (format_duration(op.self_s), format_duration(op.busy_s), format_count(op.calls), visible(op.name))
            for op in ops[:HOST_OPS_SHOWN]
        ],
        left=("operator",),
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str | Text]], left: Sequence[str]) -> Table:
    """The last column takes what room is left and is cut; the others keep theirs."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim", expand=False)
    for head in heads[:-1]:
        table.add_column(head, justify="left" if head in left else "right", no_wrap=True)
    table.add_column(heads[-1], justify="left" if heads[-1] in left else "right")  # the only one that may be narrowed
    for row in rows:
        cells = [cell if isinstance(cell, Text) else Text(cell) for cell in row]
        cells[-1].no_wrap, cells[-1].overflow = True, "ellipsis"
        table.add_row(*cells)
    return table


def _section(title: str, content: RenderableType) -> Iterable[RenderableType]:
    yield Text("")
    yield _indented(Text(title, style="bold"))
    yield _indented(content)


def _indented(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, 2))
