"""Regenerates docs/explanation/lab-validation.md.

    python -m bench.validate_lab            # a few minutes on one core
    python -m bench.validate_lab --fit      # fits the constants first and writes the lab's calibrations
    python -m bench.validate_lab --measure  # measures llama.cpp first (needs `make real`; quiet cores)

Ends with code 1 when a check is not met; the page says which.
"""

import argparse
import sys
from pathlib import Path

from pinchpoint.lab.calibrations import PATH, load_calibrations

from . import conservation, llama_lab, sweeps
from .fitting import START
from .groups import GROUPS
from .page import calibrations_toml, page
from .scoring import Calibrated, calibrate, score_all, tuning_indices

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "lab-validation.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants and write them to the lab's calibrations")
    parser.add_argument("--measure", action="store_true", help="measure llama.cpp on this machine first")
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if arguments.measure:
        from . import llama_measure

        llama_measure.measure()
    calibrations = _fitted() if arguments.fit else _stored()
    own, predicted = score_all(calibrations, tell)
    if arguments.fit:
        PATH.write_text(calibrations_toml(calibrations, own), encoding="utf-8")
    values = calibrations[sweeps.CONSTANTS_OF].values
    compared = {
        f"Rate sweep `{name}`, 8B model on H100": sweeps.rate_sweep(name, values) for name in sweeps.SWEEP_LIMITS
    }
    for name in sweeps.RUNS:
        numbers, run = sweeps.recorded_run(name, values)
        title = f"300 requests in 29 s, 8B model on {name}"
        compared[title] = numbers + (sweeps.preemption_onset(run) if run.first_preemption else [])
    law = conservation.laws()
    constants, levels = llama_lab.levels()
    shapes = llama_lab.shapes(levels)
    checks = [(f"{s.group.title} ({s.kind})", s.met) for s in own]
    checks += [(f"{s.group.title} by {s.by}", s.met) for s in predicted]
    checks += [
        (f"{title}: {one.what}", one.met) for title, of in compared.items() for one in of if one.limit is not None
    ]
    checks += [("tokens in and out", law.tokens_kept), ("Little's law", law.little_met)]
    checks += [(f"wider {name} never slower", met) for name, met in law.monotonic.items()]
    checks += [(f"llama.cpp, {shape.what}", shape.met) for shape in shapes]
    text = page(calibrations, own, predicted, compared, law, (constants, levels, shapes), checks)
    arguments.out.write_text(text, encoding="utf-8")
    failed = [name for name, met in checks if not met]
    tell(f"{arguments.out}: {len(checks) - len(failed)} of {len(checks)} checks met")
    return 1 if failed else 0


def _fitted() -> dict[str, Calibrated]:
    return {group.name: calibrate(group, group.cases()) for group in GROUPS if group.tuned}


def _stored() -> dict[str, Calibrated]:
    known = load_calibrations()
    stored = {}
    for group in GROUPS:
        if group.tuned:
            params = known[group.name].params
            values = {key: value for key, value in params.items() if key in START and isinstance(value, float)}
            stored[group.name] = Calibrated(values, tuning_indices(group.cases()))
    return stored


if __name__ == "__main__":
    sys.exit(main())
