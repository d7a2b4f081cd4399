"""The answer of a plain load on one terminal screen: believe it or not, what was delivered, latencies, errors.

The first lines say whether the figures can be used; every percentile stands over its interval, and both ways of
counting a latency stand under each other, because their difference is the time that requests were held back. Every
string goes through `literal`, because model names, stage names and error texts may come from a hostile service.
"""

import math
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pinchpoint.delivered import ConcurrencyFit, Delivery
from pinchpoint.measure import Attainment, ClassLoad, Metric, StageLoad
from pinchpoint.report import words
from pinchpoint.report.cost_words import cost_block
from pinchpoint.report.literal import literal, visible
from pinchpoint.report.load_answer import LoadAnswer
from pinchpoint.report.text import GUTTER, VALIDITY_STYLE, WIDTH_DEFAULT, WIDTH_MAX, WIDTH_MIN, to_text
from pinchpoint.units import MISSING, counted, format_count, format_duration, format_rate, format_ratio, significant

VALIDITY_MEANING = {
    "VALID": "nothing speaks against the measurement",
    "SUSPECT": "use the figures with care",
    "INVALID": "the figures say nothing about the service",
}
ROWS = (
    ("ttft_s", "TTFT", "from schedule"),
    ("ttft_from_send_s", "", "from send"),
    ("tpot_s", "TPOT", "per request"),
    ("itl_s", "ITL", "all gaps"),
    ("e2e_s", "E2E", "from schedule"),
    ("e2e_from_send_s", "", "from send"),
    ("output_tokens_per_s", "pace", "tokens/s"),
    ("send_lag_s", "sent late", "by"),
)
"""Metric, what it is, how it is counted."""
FIGURES = {"p50": "p50", "p95": "p95", "p99": "p99", "p999": "p99.9"}
WIDE = 92
"""Columns from which there is room for p99.9."""
ERRORS_SHOWN = 8
STAGES_SHOWN = 12
CLASSES_SHOWN = 12
NOTES_SHOWN = 5
FLAGS_SHOWN = 6
REASONS_SHOWN = 5
SAMPLE_LENGTH_MAX = 160
MS_PER_S = 1e3
US_PER_S = 1e6

RETRIES = "retries"
RESENDS = "sent again, their kept connection was closed"


def render_load(
    answer: LoadAnswer, width: int = WIDTH_DEFAULT, *, paths: Mapping[str, object] | None = None
) -> RenderableType:
    """The screen as something rich can print. paths: label -> file to name at the end."""
    width = min(max(width, WIDTH_MIN), WIDTH_MAX)
    body = Table.grid(padding=(0, 1, 0, 0), expand=False)
    body.add_column(width=GUTTER, no_wrap=True)
    body.add_column(width=width - GUTTER - 2)
    blocks: list[tuple[str, RenderableType]] = [("LOAD", _load(answer)), ("DELIVERED", _delivered(answer.delivery))]
    if answer.result.slos:
        blocks.append(("SLOS", Group(*map(_attainment, answer.result.slos))))
    if answer.result.total.errors:
        blocks.append(("ERRORS", _errors(answer)))
    if answer.cost is not None and (costs := cost_block(answer.cost)) is not None:
        blocks.append(("COSTS", costs))
    for label, content in blocks:
        body.add_row(Text(label, style="bold"), Padding(content, (0, 0, 1, 0)))
    parts: list[RenderableType] = [_title(answer), *_validity(answer), Text(""), body, _latencies(answer, width)]
    if answer.result.classes:
        parts += [Text(""), _classes(answer.result.classes, width)]
    if len(answer.result.stages) > 1:
        parts += [Text(""), _stages(answer.result.stages, width)]
    if answer.result.backends:
        parts += [Text(""), _backends(answer)]
    notes = answer.notes
    if notes:
        parts.append(Text(""))
        parts += [literal(note, "dim") for note in notes[:NOTES_SHOWN]]
    if paths:
        parts += [Text(""), _paths(paths)]
    return Group(*parts)


def load_text(
    answer: LoadAnswer,
    width: int = WIDTH_DEFAULT,
    *,
    paths: Mapping[str, object] | None = None,
    ascii_only: bool = False,
    color: bool = False,
) -> str:
    """The screen as text, without trailing blanks. ascii_only is for terminals without UTF-8."""
    return to_text(render_load(answer, width, paths=paths), width, ascii_only=ascii_only, color=color)


def print_load(console: Console, answer: LoadAnswer, *, paths: Mapping[str, object] | None = None) -> None:
    """Prints to a console, falling back to ASCII where its encoding cannot show our signs, and to WIDTH_DEFAULT where
    there is no terminal that would have a width."""
    unicode = (console.encoding or "ascii").lower().startswith("utf")
    if unicode and console.is_terminal:
        console.print(render_load(answer, console.width, paths=paths), highlight=False)
        return
    width = console.width if console.is_terminal else WIDTH_DEFAULT
    text = load_text(answer, width, paths=paths, ascii_only=not unicode)
    console.print(Text(text), end="", highlight=False, soft_wrap=True)


def _title(answer: LoadAnswer) -> Text:
    manifest = answer.manifest
    target = manifest.target
    engine = target.engine if target.engine_version is None else f"{target.engine} {target.engine_version}"
    about = [target.url, *([] if engine == "unknown" else [engine]), *([target.model] if target.model else [])]
    stopped = (("stopped early", "bold red"), "  ") if manifest.status != "complete" else ()
    line = Text.assemble(("Pinchpoint load", "bold cyan"), "  ", *stopped, (" · ".join(map(visible, about)), "dim"))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _validity(answer: LoadAnswer) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text.assemble((answer.validity, VALIDITY_STYLE[answer.validity]), f"  {VALIDITY_MEANING[answer.validity]}")
    ]
    for reason in answer.reasons_that_matter[:REASONS_SHOWN]:
        style = "red" if reason.level == "invalid" else "yellow"
        line = Text.assemble((f"{reason.level}: ", style), literal(reason.statement))
        if reason.observed is not None and reason.limit is not None:
            observed, limit = (words.quantity(value, reason.unit) for value in (reason.observed, reason.limit))
            line.append(f" ({observed}, limit {limit})")
        lines.append(line)
    return lines


def _load(answer: LoadAnswer) -> RenderableType:
    result, total = answer.result, answer.result.total
    asked = ", then ".join(_asked(stage) for stage in result.stages) if len(result.stages) <= 2 else None
    lines = [
        Text.assemble(
            (asked or counted(len(result.stages), "stage"), "bold"), (f"  {format_duration(result.duration_s)}", "dim"),
            *([(f"  {visible(answer.manifest.workload)}", "dim")] if answer.manifest.workload else []),
        ),
        Text.assemble(
            (format_count(total.offered), "bold"), " offered · ",
            (format_count(total.issued), "bold"), f" sent ({format_rate(total.achieved_rate_rps)}) · ",
            (format_count(total.completed), "bold"), f" completed ({format_rate(total.completed_rate_rps)}) · ",
            (f"{format_count(total.failed)} failed", "bold red" if total.failed else ""),
        ),
    ]  # fmt: skip
    others = {
        "never sent": total.dropped,
        "lost": total.lost,
        "gave up": total.abandoned,
        "withdrawn at the end": total.cancelled,
        # Without retries in the plan, only a request that met a closed connection is sent again (RFC 9112, 9.3.1).
        RETRIES if answer.manifest.plan.get("retries") else RESENDS: total.retries,
    }
    told = [f"{format_count(n)} {what}" for what, n in others.items() if n]
    if told:
        lines.append(Text(" · ".join(told), style="yellow"))
    tokens = total.tokens
    counts = [
        f"{format_count(n)} {what} tokens ({significant(rate_tps)}/s)"
        for what, n, rate_tps in (
            ("prompt", tokens.input, tokens.input_tokens_per_s),
            ("output", tokens.output, tokens.output_tokens_per_s),
        )
        if n is not None and rate_tps is not None
    ]
    if counts:
        lines.append(Text(" · ".join(counts)))
    return Group(*lines)


def _asked(stage: StageLoad) -> str:
    if stage.concurrency is not None:
        return counted(stage.concurrency, "user")
    if stage.rate_rps is not None:
        return f"{format_rate(stage.rate_rps)} {visible(stage.arrivals)}".strip()
    return visible(stage.profile) or visible(stage.name) or "load"


def _delivered(delivery: Delivery) -> RenderableType:
    lines: list[RenderableType] = [literal(flag, "yellow") for flag in delivery.flags[:FLAGS_SHOWN]]
    if len(delivery.flags) > FLAGS_SHOWN:
        lines.append(Text(f"and {len(delivery.flags) - FLAGS_SHOWN} more things that are off", style="yellow"))
    proofs = _proofs(delivery)
    if not lines:
        lines.append(Text("as asked, as far as could be seen", style="green"))
    if proofs:
        lines.append(Text(" · ".join(proofs), style="dim"))
    return Group(*lines)


def _proofs(delivery: Delivery) -> list[str]:
    proofs = []
    distances = [found.gap_distance for found in delivery.arrivals if found.gap_distance is not None]
    if distances:
        late_s = max((found.late_p99_s for found in delivery.arrivals if found.late_p99_s is not None), default=None)
        proofs.append(f"99 of 100 left within {format_duration(late_s)}")
        proofs.append(f"{format_ratio(max(distances))} of the gaps out of place")
    proofs += [_users(found) for found in delivery.concurrency[:1] if found.mean is not None]
    if delivery.prompt_lengths is not None:
        proofs.append(f"prompts {format_ratio(delivery.prompt_lengths.ratio)} of the length asked")
    if delivery.output_lengths is not None:
        proofs.append(f"answers {format_ratio(delivery.output_lengths.ratio)}")
    if delivery.cached_ratio is not None:
        proofs.append(f"{format_ratio(delivery.cached_ratio)} of the prompts cached")
    return proofs


def _users(found: ConcurrencyFit) -> str:
    if not found.comparable:  # a ramp, or users who think: not all of them are meant to be in flight
        return f"{significant(found.mean or 0.0)} of {found.asked} users in flight on average"
    full = "" if found.full_ratio is None else f", all of them {format_ratio(found.full_ratio)} of the time"
    return f"{significant(found.mean or 0.0)} of {found.asked} users in flight{full}"


def _latencies(answer: LoadAnswer, width: int) -> RenderableType:
    metrics = answer.result.total.metrics
    figures = FIGURES if width >= WIDE else {name: label for name, label in FIGURES.items() if name != "p999"}
    padding = (0, 2 if width >= WIDE else 1, 0, 0)
    table = Table(box=None, padding=padding, pad_edge=False, header_style="dim", expand=False)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, style="dim")
    for label in ("mean", *figures.values()):
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for name, what, how in ROWS:
        metric = metrics.get(name)
        if metric is None or not metric.n:
            continue
        seconds = name.endswith("_s") and not name.endswith("_per_s")
        values = (metric.mean, *(getattr(metric, figure) for figure in figures))
        cells = [_figure(value, seconds=seconds) for value in values]
        table.add_row(Text(what, style="bold"), how, *cells, format_count(metric.n))
        intervals = (metric.mean_interval, *(metric.intervals.get(figure) for figure in figures))
        if any(interval is not None for interval in intervals):
            table.add_row("", "", *(Text(_range(i, seconds=seconds), style="dim") for i in intervals), "")
    if not table.row_count:
        return Text("no request was answered, so there is no latency", style="yellow")
    about = ("  under each figure its 95 % interval; – : too few requests", "dim")
    if answer.validity == "INVALID":
        about = ("  of an invalid measurement: not to be used", "red")
    bound = _bound(metrics)
    return Group(Text.assemble(("LATENCY", "bold"), about), table, *([bound] if bound else []))


def _bound(metrics: Mapping[str, Metric]) -> Text | None:
    """How far off stamps are, for the metrics that rest on one stamp each."""
    stamps_s, gaps_s = metrics["ttft_s"].error_bound, metrics["itl_s"].error_bound
    if stamps_s is None:
        return None
    text = f"stamps of arrival: 99 of 100 latencies are right to {format_duration(stamps_s)}"
    if gaps_s is not None:
        text += f", of the gaps to {format_duration(gaps_s)}"
    return Text(text, style="dim")


def _figure(value: float | None, *, seconds: bool) -> str:
    if value is None:
        return MISSING
    return format_duration(value) if seconds else significant(value)


def _range(interval: tuple[float, float] | None, *, seconds: bool) -> str:
    """Both ends in the unit in which the upper one would be printed, with the digits that tell them apart."""
    if interval is None:
        return MISSING
    low, high = interval
    if seconds:
        scale = US_PER_S if abs(high) < 1 / MS_PER_S else MS_PER_S if abs(high) < 1 else 1.0
        low, high = low * scale, high * scale
    digits = 3
    if high > low > 0:
        digits = min(4, max(3, 1 + math.ceil(math.log10(high / (high - low)))))
    return f"{significant(low, digits)}–{significant(high, digits)}"


def _errors(answer: LoadAnswer) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    kinds = list(answer.result.total.errors.items())
    for kind, n in kinds[:ERRORS_SHOWN]:
        samples = answer.result.error_samples.get(kind, ())
        sample = Text(visible(samples[0], SAMPLE_LENGTH_MAX) if samples else "", style="dim")
        name = kind.replace("_", " ").replace(":", " at ")
        grid.add_row(Text(format_count(n), style="red"), literal(name), sample)
    if len(kinds) > ERRORS_SHOWN:
        grid.add_row("", Text(f"and {len(kinds) - ERRORS_SHOWN} more kinds", style="dim"), "")
    waits = answer.result.total.retry_after
    if not waits.n:
        return grid
    told = f"Retry-After in {counted(waits.n, 'rejection')}: {format_duration(waits.min_s)}"
    if waits.max_s != waits.min_s:
        told += f" to {format_duration(waits.max_s)}"
    return Group(grid, Text(told, style="dim"))


def _stages(stages: Sequence[StageLoad], width: int) -> RenderableType:
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="dim", expand=False)
    table.add_column("stage", no_wrap=True, overflow="ellipsis", max_width=18 if wide else 10)
    labels = ("asked", "offered", "sent/s", "failed", "TTFT p50", "p95", "TPOT p50", "p95", "E2E p95")
    for label in labels if wide else ("asked", "offered", "failed", "TTFT p50", "p95", "TPOT p50"):
        table.add_column(label, justify="right", no_wrap=True)
    for stage in stages[:STAGES_SHOWN]:
        tally = stage.tally
        ttft, tpot = tally.metrics["ttft_s"], tally.metrics["tpot_s"]
        table.add_row(
            literal(stage.name or f"{stage.index}"),
            _asked_short(stage),
            format_count(tally.offered),
            *([words.rate(tally.achieved_rate_rps)] if wide else []),
            Text(format_count(tally.failed), style="red" if tally.failed else ""),
            format_duration(ttft.p50),
            format_duration(ttft.p95),
            format_duration(tpot.p50),
            *([format_duration(tpot.p95), format_duration(tally.metrics["e2e_s"].p95)] if wide else []),
        )
    lines: list[RenderableType] = [Text("STAGES", style="bold"), table]
    if len(stages) > STAGES_SHOWN:
        lines.append(Text(f"{len(stages) - STAGES_SHOWN} more stages are in the JSON", style="dim"))
    return Group(*lines)


def _classes(classes: Sequence[ClassLoad], width: int) -> RenderableType:
    """Each class with its figures, and under it how its own SLOs were kept."""
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="dim", expand=False)
    table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=18 if wide else 14)
    labels = ("offered", "ok", "TTFT p50", "p95", "p99", "TPOT p50", "p95", "p99", "E2E p50", "p95", "p99")
    for label in labels if wide else ("offered", "ok", "TTFT p50", "p95", "p99", "TPOT p95", "E2E p95"):
        table.add_column(label, justify="right", no_wrap=True)
    kept: list[RenderableType] = []
    for one in classes[:CLASSES_SHOWN]:
        tally = one.tally
        ttft, tpot, e2e = (tally.metrics[name] for name in ("ttft_s", "tpot_s", "e2e_s"))
        figures = [ttft.p50, ttft.p95, ttft.p99]
        figures += [tpot.p50, tpot.p95, tpot.p99, e2e.p50, e2e.p95, e2e.p99] if wide else [tpot.p95, e2e.p95]
        counts = (format_count(tally.offered), format_count(tally.completed))
        table.add_row(literal(one.name), *counts, *map(format_duration, figures))
        kept += map(_attainment, one.slos)
    lines: list[RenderableType] = [Text("CLASSES", style="bold"), table, *kept]
    if len(classes) > CLASSES_SHOWN:
        lines.append(Text(f"{len(classes) - CLASSES_SHOWN} more classes are in the JSON", style="dim"))
    return Group(*lines)


def _attainment(found: Attainment) -> Text:
    if not found.counted:
        return Text.assemble(literal(found.slo), ("  no request counts for it", "dim"))
    word, style = ("kept", "green") if found.kept else ("missed", "red")
    return Text.assemble(
        literal(found.slo),
        "  ",
        (word, style),
        f": met by {format_ratio(found.met / found.counted)} of {counted(found.counted, 'request')}",
    )


def _backends(answer: LoadAnswer) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=False)
    table.add_column("backend", overflow="ellipsis")
    for label in ("sent", "completed", "failed", "TTFT p50"):
        table.add_column(label, justify="right", no_wrap=True)
    urls = [answer.manifest.target.url, *(more["url"] for more in answer.manifest.plan.get("backends", ()))]
    for number, url in enumerate(urls):
        tally = answer.result.backends.get(str(number))
        if tally is None:
            table.add_row(literal(url), "0", "0", "0", MISSING)
            continue
        table.add_row(
            literal(url),
            format_count(tally.issued),
            format_count(tally.completed),
            Text(format_count(tally.failed), style="red" if tally.failed else ""),
            format_duration(tally.metrics["ttft_s"].p50),
        )
    return Group(Text("BACKENDS", style="bold"), table)


def _asked_short(stage: StageLoad) -> str:
    if stage.concurrency is not None:
        return counted(stage.concurrency, "user")
    return MISSING if stage.rate_rps is None else f"{words.offered(stage.rate_rps)}/s"


def _paths(paths: Mapping[str, object]) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=GUTTER, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, path in paths.items():
        grid.add_row(literal(label, "dim"), literal(path))
    return grid
