"""Prefill-bound: prompts arrive faster than the engine can process them.

What it means      Every prompt token costs compute. Their arrival rate times their cost comes near one second per
                   second.
How it shows       The queue grows while KV is low and slots are free; prompt tokens per second level off; TTFT
                   explodes, and TPOT rises as well, because prompts and decoding share the steps.
Confused with      KV-limited admission and slot cap: there the pool or the slots are full.
                   Decode-bound (DEC001): TPOT rises too, but prompts take a small share of the time.
What to do         Reuse prefixes, make prefill cheaper, or take it elsewhere.
How it is decided  The cost of a prompt token is the slope of TTFT against prompt length at light load (or the
                   engine's own prefill clock); times the prompt token rate it is the share of time that prefill
                   takes. Prompts taking a share u stretch decoding by 1 / (1 - u); how much of the growth of TPOT
                   that explains separates this rule from DEC001.
Sources            Sarathi-Serve, Agrawal et al. 2024 (interference of prefill and decode); public reports of
                   queues growing at 16 to 32 % KV use.
"""

from pinchpoint.diagnose.clues import (
    compute_of,
    engine_queue,
    event_loop,
    inflation_by_compute,
    no_preemption,
    token_kind,
)
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="PRE001",
    name="prefill-compute-bound",
    title="prefill compute",
    layer="model inference",
    kind="physical-limit",
    needs=("engine.requests_running", "engine.requests_waiting", "engine.kv_used_ratio"),
    explains=("ttft", "tpot", "itl", "e2e"),
    params={
        "use_high": Param(0.8, "ratio", "a queue at 0.8 utilisation is several services long (M/G/1)"),
        "use_middle": Param(0.55, "ratio", "prefill takes more than half of the time"),
        "use_low": Param(0.3, "ratio", "below this another resource has most of the time"),
        "kv_room": Param(0.8, "ratio", "with a fifth of the pool free, admission does not wait for blocks"),
        "below_cap": Param(0.9, "ratio", "slots are free"),
        "budget": Param(0.8, "ratio", "tokens per step over the step budget: steps are filled with prompts"),
        "phase_high": Param(0.6, "ratio", "share of slot time spent on prompts"),
        "phase_low": Param(0.2, "ratio", "share of slot time spent on prompts"),
        "inflation": Param(0.5, "ratio", "half of the growth of TPOT"),
        "odds_use": odds(20),
        "odds_use_low": odds(40),
        "odds_open": odds(6, "starting value 10 for KV below 0.5, a queue and full steps; judgement"),
        "odds_closed": odds(4),
        "odds_budget": odds(3),
        "odds_phase": odds(4),
        "odds_inflation": odds(15),
    },
    remedies=(
        RemedySpec(
            "reuse common prefixes (put the fixed part of the prompt first)",
            {"vllm": "--enable-prefix-caching", "sglang": "radix cache on (drop --disable-radix-cache)"},
        ),
        RemedySpec(
            "compute in 8 bits where the accelerator can: up to twice the prompt rate",
            {"vllm": "--quantization fp8", "sglang": "--quantization fp8"},
        ),
        RemedySpec(
            "larger steps, if the compute is not yet saturated",
            {
                "vllm": "--max-num-batched-tokens 8192",
                "sglang": "--chunked-prefill-size 8192",
                "tgi": "--max-batch-prefill-tokens 8192",
                "tensorrt-llm": "max_num_tokens: 8192",
                "llama.cpp": "-b 2048 -ub 1024",
            },
        ),
        RemedySpec("shorten prompts, add replicas, or move prefill to its own instances"),
    ),
    confirm="Send the same requests with half the prompt length: the capacity in requests per second about doubles.",
)


def evaluate(f: Features) -> Outcome:
    s = f.stressed
    missing = f.view.missing(*RULE.needs)
    use_clues = _utilisation(f)
    if s is None or (not use_clues and s.waiting_mean is None):
        why = (
            "the cost of a prompt token is unknown (no streamed TTFT at light load, no prefill clock), and so is the "
            "engine's queue"
        )
        return Outcome(missing=missing, not_evaluable=why)
    clues: list[Clue] = [*use_clues, *_room(f), *_phase(f), *_budget(f)]
    clues += token_kind(f, prefill=True)
    inflation = inflation_by_compute(f)
    if inflation is not None:
        strength = ramp(inflation, 0.0, 1.0, -RULE.ln("odds_inflation"), RULE.ln("odds_inflation"))
        clues.append(
            clue(
                "inflation",
                strength,
                f"the arithmetic of prompts (and answers) explains {min(inflation, 1.0):.0%} of the growth of TPOT",
                observed=inflation,
                reference=RULE["inflation"],
                unit="ratio",
                source=RULE.source("inflation"),
            )
        )
    clues += [*no_preemption(f), *event_loop(f, wanted=False)]
    return Outcome(tuple(clues), missing)


def _utilisation(f: Features) -> list[Clue]:
    """The highest estimate of failing and stressed stages: TTFT limits may break before the plateau."""
    best: tuple[float | None, float, float] | None = None
    where = ""
    for s in (*f.failing, f.stressed):
        use = f.prefill_utilisation(s)
        if s is not None and use is not None and (best is None or use[2] > best[2]):
            best, where = use, s.stage.name
    cost = f.prefill_cost
    if best is None or cost is None:
        return []
    estimate, low, high = best
    rate_text = f"prompts took {'at most ' if estimate is None else ''}"
    if estimate is None:
        strength = min(ramp(high, RULE["use_low"], RULE["use_middle"], -RULE.ln("odds_use_low"), 0.0), 0.0)
        shown = high
    else:
        shown = estimate
        if estimate >= RULE["use_middle"]:
            strength = ramp(estimate, RULE["use_middle"], RULE["use_high"], 0.0, RULE.ln("odds_use"))
        else:
            strength = ramp(estimate, RULE["use_low"], RULE["use_middle"], -RULE.ln("odds_use_low"), 0.0)
        # An interval that reaches across the middle says less.
        if low < RULE["use_middle"] < high and high > 2 * max(low, 1e-9):
            strength /= 2
    compute = compute_of(f)
    if estimate is not None and compute is not None and compute.weight > 0 and compute.use > estimate:
        # Decoding is arithmetic too, of the same kind and on the same units: it counts.
        rate_text, shown = "prompts and answers took ", compute.use
        counted = compute.weight * ramp(shown, RULE["use_middle"], RULE["use_high"], 0.0, RULE.ln("odds_use"))
        strength = max((1 - compute.weight) * strength, counted)
    per_token = (cost.value if cost.value is not None else cost.high) * 1e3
    return [
        clue(
            "utilisation",
            strength,
            f"{rate_text}{min(shown, 1.0):.0%} of the engine's time ({per_token:.3g} ms per token, {cost.source})",
            observed=shown,
            reference=RULE["use_high"],
            unit="ratio",
            source=RULE.source("use_high"),
            window=where,
        )
    ]


def _room(f: Features) -> list[Clue]:
    """A queue although the pool and the slots have room."""
    queue = engine_queue(f, wanted=True)
    s, top, cap = f.stressed, f.running_top, f.limits.max_sequences
    if not queue or s is None:
        return []
    if queue[0].evidence.strength < 0:
        # Prefill work in a chunked scheduler may be "running" rather than waiting, so no queue is weak evidence.
        return [clue("room", 0.0, queue[0].evidence.statement, series=("engine.requests_waiting",))]
    full: list[str] = []
    if s.kv_p90 is not None and s.kv_p90 >= RULE["kv_room"]:
        full.append(f"KV is {s.kv_p90:.0%} used")
    if cap is not None and top is not None and top.value >= RULE["below_cap"] * cap:
        full.append(f"all {cap} slots are taken")
    text = queue[0].evidence.statement
    if full:
        return [clue("room", -RULE.ln("odds_closed"), f"{text}, and {' and '.join(full)}")]
    if s.kv_p90 is None:
        return [clue("room", 0.0, f"{text}; whether KV had room is not known")]
    return [
        clue(
            "room",
            RULE.ln("odds_open"),
            f"{text} although KV was only {s.kv_p90:.0%} used" + (f" and {cap} slots were not full" if cap else ""),
            series=("engine.requests_waiting", "engine.kv_used_ratio"),
            observed=s.kv_p90,
            reference=RULE["kv_room"],
            unit="ratio",
            source=RULE.source("kv_room"),
        )
    ]


def _phase(f: Features) -> list[Clue]:
    s = f.stressed
    # Decode seconds are taken from the client's open streams: the engine adds its own only when an answer ends, which
    # under overload is too late for the window.
    if s is None or s.prefill_busy is None or s.prefill_busy + s.streams_mean <= 0 or f.streams_void:
        return []
    share = s.prefill_busy / (s.prefill_busy + s.streams_mean)
    strength = ramp(share, RULE["phase_low"], RULE["phase_high"], -RULE.ln("odds_phase"), RULE.ln("odds_phase"))
    return [
        clue(
            "utilisation",
            strength,
            f"slots spent {share:.0%} of their time on prompts, by the engine's prompt clock and the open streams",
            series=("engine.prefill_busy_s_total",),
            observed=share,
            reference=RULE["phase_high"],
            unit="ratio",
            source=RULE.source("phase_high"),
        )
    ]


def _budget(f: Features) -> list[Clue]:
    s, budget = f.stressed, f.limits.max_batched_tokens
    if s is None or s.tokens_per_step is None or not budget:
        return []
    fill = s.tokens_per_step / budget
    if fill < RULE["budget"]:
        return []
    return [
        clue(
            "budget",
            RULE.ln("odds_budget"),
            f"steps carried {s.tokens_per_step:.0f} tokens on average, their budget is {budget}",
            series=("engine.step_tokens_total", "engine.steps_total"),
            observed=fill,
            reference=RULE["budget"],
            unit="ratio",
            source=RULE.source("budget"),
        )
    ]
