"""Writes the validation page and the lab's calibrations from what the other modules worked out."""

from collections.abc import Iterable, Mapping, Sequence

from .conservation import LITTLE_LIMIT, Laws
from .fitting import OUTSIDE_FIELD, START
from .groups import GROUPS, Group
from .llama_lab import SHAPE_LIMIT, Level, Shape
from .scoring import (
    CALIBRATED_LIMIT,
    PREDICTED_LIMIT,
    TTFT_LIMIT,
    TUNING_FIRST_TOKENS,
    TUNING_POINTS,
    Calibrated,
    Score,
)
from .sweeps import CONSTANTS_OF, Compared

COMMAND = "python -m bench.validate_lab"
KINDS = {"tpot": "time per token", "ttft": "time to first token", "latency": "time of a batch"}
UNITS = {name: (1e6, "µs") if name.endswith("_s") else (1.0, "") for name in START} | {OUTSIDE_FIELD: (1e3, "ms")}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def summary(checks: Sequence[tuple[str, bool]]) -> str:
    failed = [name for name, met in checks if not met]
    text = f"{len(checks) - len(failed)} of {len(checks)} checks are met."
    return text + (" Not met: " + "; ".join(failed) + "." if failed else "")


def score_table(scores: Sequence[Score]) -> str:
    own = all(score.by == score.group.name for score in scores)
    head = ["deployment", "what", "points", "median error", "bias", "90 %", "largest", "limit", "met"]
    if not own:
        head.insert(1, "constants of")
    rows = []
    for score in scores:
        row = [
            score.group.title,
            KINDS[score.kind],
            len(score.errors),
            f"{score.median_ratio:.1%}",
            f"{score.bias_ratio:+.1%}",
            f"{score.p90_ratio:.0%}",
            score.worst,
            f"{score.limit:.0%}",
            verdict(score.met),
        ]
        if not own:
            row.insert(1, f"`{score.by}`")
        rows.append(row)
    return table(head, rows)


def constants_table(calibrations: Mapping[str, Calibrated]) -> str:
    names = [name for name in START if any(name in c.values for c in calibrations.values())]
    head = [
        "calibration",
        "points",
        *(f"`{name}`" + (f" {UNITS[name][1]}" if UNITS[name][1] else "") for name in names),
    ]
    rows = [
        [
            f"`{key}`",
            len(one.used),
            *(f"{one.values[name] * UNITS[name][0]:.3g}" if name in one.values else "" for name in names),
        ]
        for key, one in calibrations.items()
    ]
    return table(head, rows)


def compared_table(compared: Sequence[Compared]) -> str:
    return table(
        ["what", "published", "lab", "error", "limit", "met"],
        [
            [
                one.what,
                f"{one.published:.4g} {one.unit}".strip(),
                f"{one.lab:.4g} {one.unit}".strip(),
                f"{one.error_ratio:+.1%}",
                f"{one.limit:.0%}" if one.limit is not None else "",
                verdict(one.met) if one.limit is not None else "",
            ]
            for one in compared
        ],
    )


def llama_table(levels: Sequence[Level]) -> str:
    rows = []
    for level in levels:
        assert level.lab is not None
        rows.append(
            [
                level.slots,
                level.users,
                f"{level.prompt_tokens}/{level.output_tokens}",
                f"{level.tokens_per_s:.1f}",
                f"{level.lab_tokens_per_s:.1f}",
                f"{1e3 * level.tpot_s:.1f}",
                f"{1e3 * level.lab.tpot_s:.1f}",
                f"{level.ttft_s:.2f}",
                f"{level.lab.ttft_s:.2f}",
                "yes" if level.tuned else "",
            ]
        )
    head = ["slots", "users", "tokens", "tokens/s", "lab", "TPOT ms", "lab", "TTFT s", "lab", "used to fit"]
    return table(head, rows)


def excuses(groups: Iterable[Group]) -> str:
    lines = [f"- {group.title}: {group.excuse}" for group in groups if group.excuse]
    return "\n".join(lines)


def page(
    calibrations: Mapping[str, Calibrated],
    own: Sequence[Score],
    predicted: Sequence[Score],
    sweeps: Mapping[str, Sequence[Compared]],
    law: Laws,
    llama: tuple[Mapping[str, float], Sequence[Level], Sequence[Shape]],
    checks: Sequence[tuple[str, bool]],
) -> str:
    values, levels, shapes = llama
    sweep_text = "\n\n".join(f"### {title}\n\n{compared_table(of)}" for title, of in sweeps.items())
    laws_rows = [
        ["prompt tokens in, out", f"{law.prompt_tokens[0]:,}, {law.prompt_tokens[1]:,}", verdict(law.tokens_kept)],
        ["output tokens asked, made", f"{law.output_tokens[0]:,}, {law.output_tokens[1]:,}", verdict(law.tokens_kept)],
        [
            f"Little's law at {law.rate_rps:g} requests/s: in flight by count, by rate x time",
            f"{law.little[0]:.4f}, {law.little[1]:.4f} ({law.little_error_ratio:+.3%}; limit {LITTLE_LIMIT:.0%})",
            verdict(law.little_met),
        ],
        ["KV blocks in use after the last answer", f"{law.blocks_used_at_end:g}", verdict(law.blocks_used_at_end == 0)],
        *(
            [
                f"time for 300 requests as `{name}` widens",
                ", ".join(f"{span:.1f}" for span in spans) + " s",
                verdict(law.monotonic[name]),
            ]
            for name, spans in law.span_s.items()
        ),
    ]
    shape_table = table(
        ["curve", "measured", "lab", "error", "limit", "met"],
        [
            [s.what, f"{s.measured:.2f}", f"{s.lab:.2f}", f"{s.error_ratio:+.0%}", f"{SHAPE_LIMIT:.0%}", verdict(s.met)]
            for s in shapes
        ],
    )
    fitted = ", ".join(f"`{name}` {value:.3g}" for name, value in values.items())
    return f"""<!-- Written by `{COMMAND}`; edits here are lost. -->

# How near the lab is to real services

The lab stands in for GPU servers, so its numbers are held against published measurements of real ones. This page is
made by `{COMMAND}`; the measurements are in `bench/validate_lab/data`, with their sources and licences. `--fit` fits
the constants anew and writes them to the lab's calibrations; `--measure` measures llama.cpp anew.

{summary(checks)}

## How it is done

The engine of the lab runs in virtual time, without noise, under the load of each measured point. All measured users of
a closed loop are users here too; nothing of the formulas that the fit uses goes into a comparison.

A calibration is a handful of constants: how much of the peak arithmetic and memory bandwidth the kernels reach, the
overhead per step, layer and sequence, latency and share of the peak of all-reduces, and for services one latency
outside the engine. They are fitted to {TUNING_POINTS} points of a group drawn at random with a fixed seed, evenly over
the tensor-parallel degrees, and up to {TUNING_FIRST_TOKENS} times to first token (a few more where the degrees do not
divide them). **The errors below are at the points that were not used.** Points at which the users' KV does not fit the
pool are never used to calibrate, but are scored.

Not everything about a deployment is published. Inferred from the measurements themselves: the cache of DeepSeek-R1 is
fp8 (512 long requests would not fit otherwise), Splitwise's engine ran without CUDA graphs (tokens take equally long on
4 and on 8 GPUs), the users of SGLang 0.5.1 stay in step (their first tokens wait for half of all prompts), and of the
two values that the source has under one label for DeepSeek-R1 the slower is without speculation. Limits on steps and
sequences are the engines' defaults.

Errors are relative to the measurement; positive means that the lab is slower. "90 %" is the error that nine of ten
points stay below. Limits are on the median.

## Calibrated deployments

At most {CALIBRATED_LIMIT:.0%} for times per token, {TTFT_LIMIT:.0%} for times to first token with few users.

{score_table(own)}

{excuses(group for group in GROUPS if group.tuned)}

The constants, ready for use under these names:

{constants_table(calibrations)}

Read them as a set: few points cannot tell overhead per step from overhead per layer, nor arithmetic from all-reduce, so
single constants are not measurements of a kernel. Several stand at their bound.

## Deployments that were not calibrated

The constants of one deployment hold for another model, precision, GPU or number of GPUs of the same engine. At most
{PREDICTED_LIMIT:.0%}. Nothing was fitted to these groups here, and all their points count.

{score_table(predicted)}

{excuses(group for group in GROUPS if group.predicted_by)}

## Knees, and where preemption begins

Real vLLM under rising rates and under one recorded stream of requests, against the lab with the constants of
`{CONSTANTS_OF}`: another model, and for two runs other GPUs. Nothing is fitted to these runs. Limits on requests
running and the size of the pool are those of the runs; the sweeps do not state theirs, so they follow from Little's law
at overload. Capacity is where the sweep's curve goes flat. Times to first token are those before requests wait for a
place; where prompts keep the GPU busy most of the time, they wait for a step. Preemption begins, in the lab as in the
run, when the pool is full.

{sweep_text}

## Conservation

Counted on the engine itself, with random lengths. The same laws are hypothesis tests in `tests/unit/lab`.

{table(["law", "counted", "met"], laws_rows)}

## llama.cpp on two cores

`pinchpoint load` against llama.cpp's server with SmolLM2-135M, 1, 2 and 4 slots. The lab gets four constants from four
levels ({fitted}; efficiencies are of an A100's peak, for want of a CPU in the lab) and must bend where the real curves
bend. Users beyond the slots wait. Levels in which other work on the cores slowed some requests to less than half the
speed of others are left out.

{llama_table(levels)}

{shape_table}

## What is not modelled

- How equal prompts meet in mixture-of-experts models: the lab routes tokens evenly and independently, so a batch of
  copies of one prompt touches more experts in the lab than on the service.
- Kernel choice by shape: efficiencies are one number for all matrix sizes, so errors grow at the smallest batches on
  many GPUs and at the largest.
- Quantised formats below 8 bits, and GPUs and models not listed in the lab.
- Choices of the publishers that they do not state, such as how lengths scatter and whether users begin together. Where
  times to first token show it, the lab's users do the same: SGLang 0.5.1's all begin at once and stay in step.
- Warm-up, memory fragmentation, clocks of single GPUs drifting apart inside one deployment.
- Times to first token of services whose own published numbers contradict each other are shown, and their limit stays.
"""


def calibrations_toml(calibrations: Mapping[str, Calibrated], own: Sequence[Score]) -> str:
    groups = {group.name: group for group in GROUPS}
    errors = {score.group.name: score.median_ratio for score in own if score.kind != "ttft"}
    blocks = [
        f"# Constants of measured deployments. Written by `{COMMAND} --fit`; edits here are lost.\n"
        "# Each says whose measurements, how many of them were fitted, and the median error at those that were not.\n"
    ]
    for name, one in calibrations.items():
        group = groups[name]
        fewest = min(case.params.tensor_parallel for case in group.cases())
        params = {**group.base, "tensor_parallel": fewest, **one.values}
        lines = [f"[{name}]" if name.replace("-", "").isalnum() else f'["{name}"]']
        lines += [
            f'summary = "{group.title}: {group.what}"',
            f'source = "{group.source}"',
            f"points = {len(one.used)}",
            f"median_error_ratio = {errors[name]:.3f}",
            f"[{lines[0][1:-1]}.params]",
            *(f"{_key(key)} = {_toml(value)}" for key, value in params.items()),
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _key(key: str) -> str:
    return f'"{key}"' if "." in key else key


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
