"""Load generator limit: the tool, not the service, set the numbers.

What it means      Requests left late, were dropped, or the generator's loop had no time left. Its delays are then
                   part of every latency, and nothing can be said about the service.
How it shows       The checks of the measurement: send lag, loop busy time, dropped requests, achieved against
                   offered rate.
Confused with      The service's own event loop (API001): there the null request slows down too and sends leave on
                   time.
What to do         Reserved cores, another machine for the generator, a lower highest rate.
Sources            Tene 2013 on coordinated omission; public reports of asyncio clients measured as server TTFT.
"""

from pinchpoint.diagnose.check import check, generator_reasons
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Outcome, RemedySpec, Rule, clue, odds

RULE = Rule(
    code="GEN001",
    name="load-generator-limit",
    title="the load generator itself",
    layer="load generator",
    kind="load-generator",
    needs=("client.loop_busy_ratio", "client.cpu_cores"),
    explains=("ttft", "tpot", "itl", "e2e"),
    params={
        "odds_invalid": odds(200, "a check of the generator failed beyond doubt"),
        "odds_suspect": odds(4, "a check of the generator is near its limit"),
        "odds_ok": odds(100, "every check that could be made was passed"),
    },
    remedies=(
        RemedySpec("run the generator on a machine of its own with more free cores, or reserve cores for it"),
        RemedySpec("stay below the rate that this host can send", {"any": "--max-rate RPS"}),
    ),
    confirm="Repeat from a faster or less busy machine: if latency falls at the same rate, it was the generator.",
)


def evaluate(f: Features) -> Outcome:
    missing = f.view.missing(*RULE.needs)
    _, reasons = check(f)
    accused = generator_reasons(reasons)
    if not accused:
        if f.view.requests.count == 0:
            return Outcome(missing=missing, not_evaluable="no request was recorded")
        return Outcome((clue("generator", -RULE.ln("odds_ok"), "requests left on time and none was dropped"),), missing)
    clues = [
        clue(
            reason.check,
            RULE.ln("odds_invalid") if reason.level == "invalid" else RULE.ln("odds_suspect"),
            reason.statement,
            observed=reason.observed,
            reference=reason.limit,
            unit=reason.unit,
        )
        for reason in accused
    ]
    return Outcome(tuple(clues), missing)
