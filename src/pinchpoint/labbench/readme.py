"""The page inside a data set that says what is what, and the tables of what is in it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from pinchpoint.labbench.split import PARTS
from pinchpoint.synth.degrade import DEGRADATIONS

WHOLE = "as it should be"
NO_CAUSE = {"healthy": "healthy", "underloaded": "under-loaded", "limit": "physical limit"}


def readme(manifest: dict[str, Any]) -> str:
    held = manifest["held_out"]
    telemetry = "\n".join(f"- `{name}`: {what}." for name, what in DEGRADATIONS.items())
    return f"""# A labelled data set for the diagnosis of LLM services

Made by `pinchpoint lab bench --size {manifest["size"]["name"]} --seed {manifest["seed"]}` of Pinchpoint
{manifest["pinchpoint_version"]}. Every run is simulated: a service with physics in virtual time, in which faults are
changes of mechanism. The same command makes the same files; `sha256` of the manifest is over all of them.

## Files

- `runs/ID/`: {len(manifest["scenarios"])} run directories. `pinchpoint diagnose runs/ID` judges one. The names are
  hashes of a number and tell nothing.
- `manifest.json`: for each run its part, GPU, model, workload, how its telemetry is degraded, and hashes of its files.
  All of it may be known to what is tested.
- `labels.jsonl`: one line per run with what it really is. **What is tested must not read it.** Its SHA-256 is in the
  manifest, so that labels cannot be changed afterwards unnoticed.

## Labels

- `label`: `fault`; `healthy`: a service without fault under loads that it carries or nearly carries; `underloaded`: far
  from any limit; `limit`: no fault, but more load than the hardware carries.
- `causes`, `layers`: numbers in the catalogue of causes and their layers; two where two faults are there at once.
- `severity`, `onset_s`: when the fault sets in, in seconds of the run; 0: it is there from the beginning.
- `faults[].impact`: what the fault did to its indicator beside the same run without it, at the stage at
  which it did most, over stretches of it.
  `has_impact` is more than 10 % and 3 standard errors. A fault without impact cannot be seen, and naming none is right;
  null: too little was measured to tell. `stage` null: the run ended early, and the first requests of both were
  compared; `faulty` null: the service left nothing to compare. Faults that belong to a load are as strong as the load
  of their run makes them.
- `look_alike_pair`: runs with the same number are alike in everything but their fault.

## Parts

`part` is `tuning` or `test`, by what is served and never by the run: the GPU {held["gpu"]}, the model {held["model"]}
and the workload `{held["workload"]}` are only in `test`. Thresholds, weights and prompts may be chosen on `tuning`
alone.

## Telemetry

`degraded` is empty where the telemetry is as it should be. Else:

{telemetry}

## What it cannot show

How good a diagnosis is on real services. It is right about these mechanisms, or it is not.
"""


def summary(manifest: dict[str, Any], labels: dict[str, dict[str, Any]]) -> list[RenderableType]:
    """Tables of runs by cause, layer, telemetry and part. A run with two causes counts in both rows."""
    part_of = {scenario["id"]: scenario["part"] for scenario in manifest["scenarios"]}
    causes: Counter[tuple[str, str, str]] = Counter()
    layers: Counter[tuple[str, str]] = Counter()
    seen: Counter[tuple[str, str]] = Counter()
    for name, label in labels.items():
        part = part_of[name]
        if not label["causes"]:
            causes["", NO_CAUSE[label["label"]], part] += 1
            layers["none", part] += 1
        for fault in label["faults"]:
            causes[fault["layer"], f"{fault['cause']} {fault['fault']}", part] += 1
            impact = fault["impact"]
            seen["not known" if impact is None else "impact" if impact["has_impact"] else "no impact", part] += 1
        for layer in set(label["layers"]):
            layers[layer, part] += 1
    tiers: Counter[tuple[str, str]] = Counter()
    for scenario in manifest["scenarios"]:
        tiers[", ".join(scenario["degraded"]) or WHOLE, scenario["part"]] += 1
    by_cause = Table(title="Runs by cause", title_justify="left")
    for heading in ("layer", "cause", *PARTS):
        by_cause.add_column(heading, justify="right" if heading in PARTS else "left")
    for layer, cause in sorted({key[:2] for key in causes}):
        by_cause.add_row(layer or "none", cause, *(str(causes[layer, cause, part] or "-") for part in PARTS))
    return [
        by_cause,
        _table("Runs by layer", "layer", layers),
        _table("Runs by telemetry", "telemetry", tiers),
        _table("Faults by impact", "impact", seen),
    ]


def _table(title: str, heading: str, counts: "Counter[tuple[str, str]]") -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(heading)
    for part in PARTS:
        table.add_column(part, justify="right")
    rows: Iterable[str] = sorted({key for key, _ in counts})
    for row in rows:
        table.add_row(row, *(str(counts[row, part] or "-") for part in PARTS))
    return table
