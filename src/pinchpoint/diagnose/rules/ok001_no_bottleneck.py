"""No bottleneck: every rate that was tested held every SLO.

What it means      The service was not brought to its limit. Its capacity is at least the highest rate tested;
                   what would give way beyond it was not measured and is not guessed.
How it shows       No stage failed; latency hardly moved; nobody waited in the engine.
Confused with      A run that was too short to fail: see the sample sizes in the checks.
What to do         Nothing, or test higher rates.
"""

from pinchpoint.capacity import decide
from pinchpoint.diagnose.clues import SHARED
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="OK001",
    name="no-bottleneck",
    title="no bottleneck up to the highest rate tested",
    layer="none",
    kind="healthy",
    needs=(),
    explains=(),
    params={
        "requests_min": Param(10, "requests", "below this even one miss in five would often not be seen; judgement"),
        "flat": SHARED["flat"],
        "explodes": SHARED["explodes"],
        "odds_held": odds(100, "the sequential test proved that the highest rate passes"),
        "odds_leaning": odds(4, "the highest rate passed by its point estimate, on too few requests"),
        "odds_flat": odds(5),
        "odds_near": odds(3),
    },
    remedies=(RemedySpec("test higher rates, for longer, to find the limit", {"any": "--max-rate RPS --budget 5m"}),),
    confirm="Raise the highest rate until an SLO fails.",
)


def evaluate(f: Features) -> Outcome:
    if not f.tested:
        return Outcome(not_evaluable="no load stage was recorded")
    if not f.slos:
        return Outcome(not_evaluable="there is no SLO to hold")
    if f.failing:
        worst = f.failing[0]
        return Outcome(veto=f"SLOs failed at {worst.offered_rps:.3g} req/s")
    if not any(s.passed for s in f.tested):
        return Outcome(not_evaluable="no stage has a request that counts for an SLO")
    highest = f.tested[-1]
    counted = sum(s.requests for s in f.tested if s.stage.rate_rps == highest.stage.rate_rps)
    if counted < RULE["requests_min"]:
        return Outcome(
            not_evaluable=f"the highest rate was tested with {counted} requests, which says nothing; raise --budget"
        )
    proven = decide(highest.result.attainment, f.slos)[0] == "pass"
    text = f"every SLO held at every rate tested, up to {highest.offered_rps:.3g} req/s"
    if not proven:
        text += f", the highest on {highest.requests} requests, too few to be sure"
    clues: list[Clue] = [clue("held", RULE.ln("odds_held" if proven else "odds_leaning"), text)]
    for field, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "e2e latency")):
        growth = f.growth(field)
        if growth is None or (field == "e2e_s" and not f.streams_void):
            continue
        low, high = RULE["flat"], RULE["explodes"]
        clues.append(
            clue(
                "flat",
                ramp(growth, low, high, RULE.ln("odds_flat"), -RULE.ln("odds_near")),
                f"median {name} grew {growth:.2f}x from the lowest to the highest rate",
                observed=growth,
                reference=low,
                unit="ratio",
                source=RULE.source("flat"),
            )
        )
    return Outcome(tuple(clues))
