"""A fit as a plan that people read and change."""

from collections.abc import Sequence
from typing import Any

from pinchpoint.fitted import FitQuality
from pinchpoint.workload.fit import Fitted
from pinchpoint.workload.fitness import plan_tables
from pinchpoint.workload.toml_text import toml_value

LINE_CHARS = 110
DIGITS = 6


def fit_plan(fitted: Fitted, found: FitQuality, *, url: str | None, seed: int, comments: Sequence[str] = ()) -> str:
    """TOML text. fitted: with the rates and lengths of time that are wanted. comments: what was changed."""
    tables = plan_tables(fitted)
    one, stage = tables["workload"]["classes"][0], tables["stages"][0]
    name = fitted.traffic.name
    lines = [
        f"# Learnt from {found.trace} ({found.format}, {found.requests} requests) by `pinchpoint workload fit`.",
        *(f"# {line}" for line in found.summary),
        "# Against requests that were held back (distance 0: the same law; beside it Poisson with log-normal lengths):",
        *(
            f"#   {match.name}: {match.fit:.3g} ({match.baseline:.3g})"
            for match in found.matches
            if match.distance and match.fit is not None and match.baseline is not None
        ),
        *(f"# Not learnt, or with care: {line}" for line in found.notes),
        *(f"# {line}" for line in comments),
        "",
        f"name = {toml_value(name)}",
        f"seed = {seed}",
    ]
    if url is not None:
        lines += ["", "[target]", f"url = {toml_value(url)}"]
    lines += ["", "[[workload.classes]]"]
    joints = {key: one.pop(key) for key in ("joint", "later_joint") if key in one}
    lines += [f"{key} = {toml_value(value)}" for key, value in one.items()]
    lines += [
        "",
        "# Quantiles of the input length at even steps of probability, and of the output length within equally likely",
        "# ranges of the input, shortest inputs first.",
    ]
    for key, joint in joints.items():
        lines += [
            f"[workload.classes.{key}]",
            f"input_tokens = {_wrapped(joint['input_tokens'])}",
            "output_tokens = [",
            *(f"    {_wrapped(one_range, 4)}," for one_range in joint["output_tokens"]),
            "]",
            "",
        ]
    if fitted.arrivals is None:
        lines.append("# The trace has no instants: this rate is to be changed.")
    lines.append("[[stages]]")
    for key, value in stage.items():
        shown = _rounded(value)
        lines.append(f"{key} = {_wrapped(shown) if isinstance(shown, list | tuple) else toml_value(shown)}")
    return "\n".join(lines) + "\n"


def _rounded(value: Any) -> Any:
    """Numbers with as many digits as a trace can carry."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


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
