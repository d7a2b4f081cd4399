"""A fit as a plan that people read and change."""

from collections.abc import Sequence
from typing import Any

from pinchpoint.fitted import FitQuality
from pinchpoint.workload.fitness import plan_tables
from pinchpoint.workload.learning import Learnt
from pinchpoint.workload.toml_text import toml_value

LINE_CHARS = 110


def fit_plan(fit: Learnt, found: FitQuality, *, name: str, url: str | None, seed: int, duration_s: float | None) -> str:
    """TOML text. duration_s: the profile of the rate is played in so long instead of in the trace's own time."""
    tables = plan_tables(fit, name)
    one, stage = tables["workload"]["classes"][0], tables["stages"][0]
    if duration_s is not None:
        if "each_s" in stage:
            stage["each_s"] = duration_s / len(stage["rates_rps"])
        else:
            stage["duration_s"] = duration_s
    lines = [
        f"# Learnt from {found.trace} ({found.format}, {found.requests} requests) by `pinchpoint workload fit`.",
        *(f"# {line}" for line in found.summary),
        "# Against requests that were held back (distance 0: the same law; beside it Poisson with log-normal lengths):",
        *(
            f"#   {match.name}: {match.fit:.3g} ({match.baseline:.3g})"
            for match in found.matches
            if match.distance and match.fit is not None and match.baseline is not None
        ),
        *(f"# Note: {line}" for line in found.notes),
        "",
        f"name = {toml_value(name)}",
        f"seed = {seed}",
    ]
    if url is not None:
        lines += ["", "[target]", f"url = {toml_value(url)}"]
    lines += ["", "[[workload.classes]]"]
    joint = one.pop("joint")
    lines += [f"{key} = {toml_value(value)}" for key, value in one.items()]
    lines += [
        "",
        "# Quantiles of the input length at even steps of probability, and of the output length within equally likely",
        "# ranges of the input, shortest inputs first.",
        "[workload.classes.joint]",
        f"input_tokens = {_wrapped(joint['input_tokens'])}",
        "output_tokens = [",
        *(f"    {_wrapped(one_range, 4)}," for one_range in joint["output_tokens"]),
        "]",
        "",
        "[[stages]]",
    ]
    for key, value in stage.items():
        if value is None:
            continue
        shown = round(value, 4) if isinstance(value, float) else value
        lines.append(f"{key} = {_wrapped(shown) if isinstance(shown, list | tuple) else toml_value(shown)}")
    return "\n".join(lines) + "\n"


def _wrapped(values: Sequence[Any], indent: int = 0) -> str:
    """A list over as many lines as it needs."""
    line, lines = "", []
    for value in values:
        item = f"{toml_value(value)}, "
        if len(line) + len(item) > LINE_CHARS:
            lines.append(line.rstrip())
            line = ""
        line += item
    lines.append(line.rstrip(", "))
    if len(lines) == 1:
        return f"[{lines[0]}]"
    pad = " " * (indent + 4)
    return "[\n" + "\n".join(pad + one for one in lines) + f",\n{' ' * indent}]"
