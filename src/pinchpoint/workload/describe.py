"""What a workload of the library is made of, as plain data: for people (report/workloads_text) and for JSON."""

from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np

from pinchpoint.plan import LengthSpec, Plan, WorkloadSpec
from pinchpoint.workload.classes import TrafficClass, resolve
from pinchpoint.workload.durations import parse_durations
from pinchpoint.workload.library import Preset, preset_named, presets
from pinchpoint.workload.toml_text import toml_lines

P50, P99 = 0.5, 0.99
MEAN_POINTS = 2000
"""Quantiles over which the mean of a cut law is taken: right to a tenth of a percent."""


def workload_names() -> list[dict[str, str]]:
    """name and summary of each, in the order of the library."""
    return [{"name": name, "summary": preset.summary} for name, preset in presets().items()]


def describe(name: str) -> dict[str, Any]:
    """Everything about one workload. Raises UsageError with the choices."""
    preset = preset_named(name)
    traffic = resolve(Plan("http://service", 0, workload=WorkloadSpec(name)), None)
    shares = traffic.weights(traffic.mix(None))
    return {
        "name": name,
        "summary": preset.summary,
        "stresses": preset.stresses,
        "needs": preset.needs,
        "source": preset.source,
        "classes": [_class(one, share) for one, share in zip(traffic.classes, shares, strict=True)],
        "commands": _commands(name, preset),
        "toml": _toml(name, preset),
    }


def _class(one: TrafficClass, share: float) -> dict[str, Any]:
    think = parse_durations(one.think)
    return {
        "name": one.name,
        "share": share,
        "input_tokens": law_figures(one.input_tokens),
        "output_tokens": None if one.output_tokens is None else law_figures(one.output_tokens),
        "turns": {"law": one.turns, "mean": one.mean_turns},
        "think": {"law": one.think, "mean_s": think.mean_s} if one.remembers else None,
        "system_tokens": one.system_tokens,
        "prefix": None if one.prefix is None else msgspec.to_builtins(one.prefix),
        "documents": None if one.documents is None else msgspec.to_builtins(one.documents),
        "images": None if one.images is None else msgspec.to_builtins(one.images),
        "tools": one.tools,
        "schema": one.schema,
        "content": one.content,
        "api": one.api,
        "slos": list(one.slos),
        "last_turn_tokens": _last_turn_tokens(one),
    }


def law_figures(law: LengthSpec) -> dict[str, Any]:
    """mean, p50 and p99 of a length after it was cut, with its bounds."""
    location = float(np.log(law.mean)) - law.sigma**2 / 2

    def at(probability: float) -> float:
        value = float(np.exp(location + law.sigma * NormalDist().inv_cdf(probability)))
        return min(max(value, law.min), law.max)

    mean = float(np.mean([at((i + 0.5) / MEAN_POINTS) for i in range(MEAN_POINTS)]))
    return {"mean": round(mean), "p50": round(at(P50)), "p99": round(at(P99)), "min": law.min, "max": law.max}


def _last_turn_tokens(one: TrafficClass) -> int:
    """Mean input of the last turn of a conversation of mean length, with system prompt and history."""
    answers = 0.0 if one.output_tokens is None else one.output_tokens.mean * (one.mean_turns - 1)
    return round(one.system_tokens + one.input_tokens.mean * one.mean_turns + answers)


def _commands(name: str, preset: Preset) -> list[str]:
    if not any(given.output_tokens or given.preset or given.joint for given in preset.classes):
        return [f"pinchpoint load URL --workload {name} --rate 5"]
    if name == "offline-batch":
        return [f"pinchpoint load URL --workload {name} --concurrency 64 --duration 5m"]
    return [f"pinchpoint run URL --workload {name}", f"pinchpoint load URL --workload {name} --rate 5"]


def _toml(name: str, preset: Preset) -> str:
    """The classes with all their keys, to be copied into a plan and changed."""
    tables = []
    for given in preset.classes:
        told = msgspec.to_builtins(given)
        defaults = {f.name: f.default for f in msgspec.structs.fields(type(given))}
        shown = {key: value for key, value in told.items() if value not in (None, "", [], ()) and key != "weight"}
        if given.weight != defaults["weight"]:
            shown["weight"] = given.weight
        named = {} if given.preset else {"name": given.name or name}
        tables.append("[[workload.classes]]\n" + toml_lines({**named, **shown}))
    return "\n\n".join(tables) + "\n"
