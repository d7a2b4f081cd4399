"""The library of workloads for a terminal: the list, and all about one."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pinchpoint.report.text import GUTTER, WIDTH_DEFAULT, to_ascii, to_text
from pinchpoint.units import MISSING, counted, format_count, format_duration, format_ratio


def workload_list(names: Sequence[Mapping[str, str]]) -> RenderableType:
    """names: as of workload.describe.workload_names."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for each in names:
        table.add_row(each["name"], each["summary"])
    about = Text("\n`pinchpoint workloads NAME` explains one; `--workload NAME` runs it.", style="dim")
    return Group(table, about)


def workload_page(told: Mapping[str, Any]) -> RenderableType:
    """told: as of workload.describe.describe."""
    body = Table.grid(padding=(0, 1, 0, 0))
    body.add_column(width=GUTTER, no_wrap=True)
    body.add_column()
    rows: list[tuple[str, RenderableType]] = [
        ("STRESSES", Text(told["stresses"])),
        ("NEEDS", Text(told["needs"] or "plain text in and out")),
        ("CLASSES", Group(*(_class(one) for one in told["classes"]))),
        ("SOURCE", Text(told["source"])),
        ("RUN IT", Text("\n".join(told["commands"]), style="bold")),
    ]
    for label, content in rows:
        body.add_row(Text(label, style="bold"), Padding(content, (0, 0, 1, 0)))
    head = Text.assemble((told["name"], "bold cyan"), f"  {told['summary']}\n")
    return Group(head, body, Text("IN A PLAN", style="bold"))


def _class(one: Mapping[str, Any]) -> RenderableType:
    lines = [
        Text.assemble((one["name"], "bold"), f"  {format_ratio(one['share'])} of the requests"),
        Text(f"  input   {_law(one['input_tokens'])}"),
        Text(f"  output  {_law(one['output_tokens'])}"),
    ]
    lines += [Text(f"  {line}") for line in _more(one)]
    return Group(*lines)


def _law(law: Mapping[str, Any] | None) -> str:
    if law is None:
        return "none: nothing is generated"
    mean, p50, p99 = (format_count(law[key]) for key in ("mean", "p50", "p99"))
    return f"mean {mean}, p50 {p50}, p99 {p99} tokens ({format_count(law['min'])} to {format_count(law['max'])})"


def _more(one: Mapping[str, Any]) -> list[str]:
    lines = []
    if one["think"] is not None:
        lines.append(
            f"turns   {one['turns']['law']}, {format_duration(one['think']['mean_s'])} of thought between them; a last "
            f"turn carries about {format_count(one['last_turn_tokens'])} tokens"
        )
    if one["system_tokens"]:
        lines.append(f"system  {format_count(one['system_tokens'])} tokens, the same in all requests")
    if (prefix := one["prefix"]) is not None:
        lines.append(
            f"shared  {format_ratio(prefix['ratio'])} begin with one of {counted(prefix['pool'], 'text')} of "
            f"{format_count(prefix['tokens'])} tokens, popularity by Zipf with exponent {prefix['skew']:g}"
        )
    if (documents := one["documents"]) is not None:
        lines.append(f"with    {counted(documents['count'], 'document')} of {format_count(documents['tokens'])} tokens")
    if (images := one["images"]) is not None:
        lines.append(f"images  {images['count']} of {images['width']} x {images['height']} pixels")
    if one["tools"]:
        lines.append(f"tools   {one['tools']} functions offered")
    if one["schema"]:
        lines.append(f"schema  {one['schema']}: the answer must be JSON of it")
    if one["api"]:
        lines.append(f"api     {one['api']}")
    lines.append(f"text    {one['content']}")
    lines.append(f"SLOs    {', '.join(one['slos']) or MISSING}")
    return lines


def print_workloads(console: Console, page: RenderableType) -> None:
    """Prints to a console; in ASCII where its encoding asks for it, and 100 columns wide where it is no terminal."""
    unicode = (console.encoding or "ascii").lower().startswith("utf")
    if unicode and console.is_terminal:
        console.print(page, highlight=False)
        return
    text = to_text(page, WIDTH_DEFAULT)
    console.print(Text(text if unicode else to_ascii(text)), end="", highlight=False, soft_wrap=True)
