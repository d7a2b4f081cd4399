"""API process bound: the event loop in front of the engine is the queue.

What it means      One process parses requests, renders templates, tokenises, and writes every token to every
                   stream. Its one thread is full, so requests wait before the engine sees them and tokens wait
                   after.
How it shows       A request that never touches the model (a health check) slows down with load; TTFT seen by the
                   client leaves the TTFT that the engine measures; the engine runs few requests and none waits in
                   it.
Confused with      The load generator's own loop (GEN001), which is judged first.
                   An engine that computes on the CPU in the same process: it uses all cores too, so CPU use alone
                   is no evidence; the null request and the requests missing from the engine are.
What to do         More API processes, fewer writes per token, less work per request.
Sources            vLLM engine metrics: arrival is stamped after the HTTP request has been parsed; Little 1961 for
                   the requests that are neither running nor waiting.
"""

from pinchpoint.diagnose.clues import event_loop, null_share
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="API001",
    name="api-process-bound",
    title="the API process (event loop)",
    layer="application",
    kind="fault",
    needs=("probe.null_request_s", "engine.ttft_s", "engine.requests_running", "server.thread_cpu_max_cores"),
    explains=("ttft", "tpot", "itl", "e2e"),
    params={
        "gap_low": Param(0.1, "ratio", "network and parsing of an unloaded service"),
        "gap_high": Param(0.5, "ratio", "most of the wait is before the engine"),
        "outside_low": Param(0.1, "ratio", "share of requests in flight that the engine does not know; sampling skew"),
        "outside_high": Param(0.4, "ratio", "the engine knows little more than half of the requests"),
        "thread_full": Param(0.85, "cores", "one thread of an event loop cannot use more than one core"),
        "thread_idle": Param(0.5, "cores", "an event loop that sleeps half of the time has no queue to speak of"),
        "odds_gap": odds(10),
        "odds_no_gap": odds(15),
        "odds_outside": odds(5),
        "odds_inside": odds(8),
        "odds_thread": odds(2),
        "odds_thread_idle": odds(8),
    },
    remedies=(
        RemedySpec(
            "run more API processes",
            {
                "vllm": "--api-server-count 4",
                "tgi": "--validation-workers 8",
                "any": "more workers of the HTTP server",
            },
            "the event loop's limit grows with the number of processes, up to the cores there are",
        ),
        RemedySpec(
            "write several tokens per event", {"vllm": "--stream-interval 8", "sglang": "--stream-interval 8"}, ""
        ),
        RemedySpec(
            "log less per request",
            {"vllm": "--disable-log-requests --disable-uvicorn-access-log"},
            only_engines=True,
        ),
    ),
    confirm="Repeat the overload stage without streaming, or with two API processes: TTFT falls at the same rate.",
)


def evaluate(f: Features) -> Outcome:
    missing = f.view.missing("probe.null_request_s", "engine.requests_running", "server.thread_cpu_max_cores")
    missing += f.view.missing("engine.ttft_s_sum")
    s, base = f.stressed, f.base
    share = null_share(f)
    gap_growth = f.excess("pre_engine_gap_s")
    if s is None or base is None or (share is None and gap_growth is None and s.outside_engine_mean is None):
        why = (
            "neither a null request nor the engine's own TTFT or queue could be compared between light load and stress"
        )
        return Outcome(missing=missing, not_evaluable=why)
    clues: list[Clue] = [*event_loop(f, wanted=True), *_gap(f), *_outside(f), *_thread(f, share)]
    return Outcome(tuple(clues), missing)


def _gap(f: Features) -> list[Clue]:
    added, added_ttft, s = f.excess("pre_engine_gap_s"), f.excess("ttft_s"), f.stressed
    if added is None or added_ttft is None or added_ttft <= 0 or s is None or s.pre_engine_gap_s is None:
        return []
    if f.streams_void:
        return []
    share = added / added_ttft
    low, high = RULE["gap_low"], RULE["gap_high"]
    return [
        clue(
            "gap",
            ramp(share, low, high, -RULE.ln("odds_no_gap"), RULE.ln("odds_gap")),
            f"{max(share, 0.0):.0%} of the added TTFT passed outside the engine (client mean minus engine mean: "
            f"{s.pre_engine_gap_s * 1e3:.0f} ms)",
            series=("engine.ttft_s",),
            observed=share,
            reference=high,
            unit="ratio",
            source=RULE.source("gap_high"),
            window=s.stage.name,
        )
    ]


def _outside(f: Features) -> list[Clue]:
    s = f.stressed
    if s is None or s.outside_engine_mean is None or s.in_flight_mean < 1:
        return []
    share = s.outside_engine_mean / s.in_flight_mean
    low, high = RULE["outside_low"], RULE["outside_high"]
    return [
        clue(
            "gap",
            ramp(share, low, high, -RULE.ln("odds_inside"), RULE.ln("odds_outside")),
            f"of {s.in_flight_mean:.0f} requests in flight the engine had "
            f"{max(s.outside_engine_mean, 0.0):.0f} neither running nor waiting",
            series=("engine.requests_running", "engine.requests_waiting"),
            observed=share,
            reference=high,
            unit="ratio",
            source=RULE.source("outside_high"),
            window=s.stage.name,
        )
    ]


def _thread(f: Features, share: float | None) -> list[Clue]:
    """Only an idle thread is evidence by itself; a busy one may be the engine's."""
    s = f.stressed
    cores = s.thread_cores if s is not None and s.thread_cores is not None else s.listener_cores if s else None
    if cores is None or s is None:
        return []
    full, idle = RULE["thread_full"], RULE["thread_idle"]
    strength = ramp(cores, idle, full, -RULE.ln("odds_thread_idle"), RULE.ln("odds_thread"))
    if share is None:
        strength = min(strength, 0.0)
    return [
        clue(
            "thread",
            strength,
            f"the busiest thread of the listening process used {cores:.2f} cores",
            series=("server.thread_cpu_max_cores", "server.listener_cpu_cores"),
            observed=cores,
            reference=full,
            unit="cores",
            source=RULE.source("thread_full"),
            window=s.stage.name,
        )
    ]
