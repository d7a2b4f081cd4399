"""Stream buffered: something between engine and client holds the stream back and hands it over in one piece.

What it means      A proxy (or a compressing middleware) collects the response before it passes it on. The user
                   waits for the whole answer; TTFT and TPOT as measured say nothing about the engine.
How it shows       All text of an answer arrives in one burst at its end, at every load, also when the service is
                   idle; TTFT grows with the number of output tokens; the engine's own TTFT is far below the
                   client's.
Confused with      A cold start: only the first requests are slow. A queue: the wait grows with load, not with the
                   answer.
                   A service that was asked not to stream.
What to do         Switch buffering off on the way. Whatever else limits the service is found only after that.
Sources            nginx proxy_buffering and the X-Accel-Buffering header; WHATWG server-sent events.
"""

from pinchpoint.diagnose.features import BURST_SPAN_MAX_RATIO, BURST_TOKENS_MIN, Features
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="NET001",
    name="stream-buffered",
    title="a buffering proxy (streams arrive in one piece)",
    layer="infrastructure",
    kind="fault",
    needs=("engine.ttft_s",),
    explains=("ttft", "e2e"),
    params={
        "bursty": Param(0.8, "ratio", "buffering is a setting: it holds back nearly every answer"),
        "some": Param(0.3, "ratio", "answers that arrive late and at once by chance or by a busy client"),
        "linear_low": Param(0.25, "ratio", "slope of TTFT over the time per token of the whole answer"),
        "linear_high": Param(0.6, "ratio", "the same; a held back stream has 1, a flowing one 0"),
        "engine_gap": Param(3.0, "ratio", "client TTFT over engine TTFT"),
        "odds_burst": odds(200),
        "odds_light": odds(20),
        "odds_linear": odds(50, "starting value for TTFT linear in output tokens; judgement"),
        "odds_gap": odds(10),
        "odds_no_gap": odds(10),
    },
    remedies=(
        RemedySpec(
            "switch off response buffering in the proxy for the streaming path",
            {"any": "nginx: proxy_buffering off; or answer header X-Accel-Buffering: no"},
        ),
        RemedySpec("exclude text/event-stream from compression and from middlewares that read the whole body"),
    ),
    confirm="Send one streaming request past the proxy, straight to the engine: tokens arrive one by one.",
)


def evaluate(f: Features) -> Outcome:
    missing = f.view.missing("engine.ttft_s_sum")
    if f.facts.streaming is False:
        return Outcome(missing=missing, not_evaluable="the service does not stream, so no stream can be held back")
    s = f.streaming
    if s is None:
        why = f"no streamed answer had {BURST_TOKENS_MIN} tokens or more"
        return Outcome(missing=missing, not_evaluable=why)
    some, bursty = RULE["some"], RULE["bursty"]
    clues: list[Clue] = [
        clue(
            "burst",
            ramp(s.bursty_share, some, bursty, -RULE.ln("odds_burst"), RULE.ln("odds_burst")),
            f"{s.bursty_share:.0%} of {s.answers} answers arrived within {BURST_SPAN_MAX_RATIO:.0%} of the time an "
            f"unqueued answer takes; TTFT is {s.first_token_share:.0%} of the whole time (median)",
            observed=s.bursty_share,
            reference=bursty,
            unit="ratio",
            source=RULE.source("bursty"),
        )
    ]
    if s.bursty_share_light == s.bursty_share_light:  # not NaN
        clues.append(
            clue(
                "light load",
                ramp(s.bursty_share_light, some, bursty, -RULE.ln("odds_light"), RULE.ln("odds_light")),
                f"at light load {s.bursty_share_light:.0%} of the answers arrived in one piece",
                observed=s.bursty_share_light,
                reference=bursty,
                unit="ratio",
                source=RULE.source("bursty"),
            )
        )
    clues += [*_linear(f), *_engine_gap(f)]
    return Outcome(tuple(clues), missing)


def _linear(f: Features) -> list[Clue]:
    """TTFT per output token against the whole time per output token, at light load."""
    s, base = f.streaming, f.base
    if s is None or s.per_output_token_s is None or base is None or base.e2e_s is None or not f.lengths[1]:
        return []
    share = s.per_output_token_s.value / (base.e2e_s / f.lengths[1])
    low, high = RULE["linear_low"], RULE["linear_high"]
    return [
        clue(
            "linear",
            ramp(share, low, high, -RULE.ln("odds_gap"), RULE.ln("odds_linear")),
            f"each further output token delays the first one by {s.per_output_token_s.value * 1e3:.2f} ms",
            observed=share,
            reference=high,
            unit="ratio",
            source=RULE.source("linear_high"),
            window=s.per_output_token_s.source,
        )
    ]


def _engine_gap(f: Features) -> list[Clue]:
    base = f.base
    if base is None or not base.engine_ttft_s or base.pre_engine_gap_s is None:
        return []
    ratio = (base.engine_ttft_s + base.pre_engine_gap_s) / base.engine_ttft_s
    strength = RULE.ln("odds_gap") if ratio >= RULE["engine_gap"] else -RULE.ln("odds_no_gap")
    return [
        clue(
            "engine",
            strength,
            f"at light load the first token left the engine after {base.engine_ttft_s * 1e3:.0f} ms and reached the "
            f"client {base.pre_engine_gap_s * 1e3:.0f} ms later",
            series=("engine.ttft_s",),
            observed=ratio,
            reference=RULE["engine_gap"],
            unit="ratio",
            source=RULE.source("engine_gap"),
        )
    ]
