"""A suite of load stages for one service, as a plan that people read and change: what to offer, and why so much.

The numbers come from what one user saw of the idle service, from small crowds that each send a request or two, and
from a trace where there is one. How much a service carries within its SLOs takes a search, so the first guess of the
capacity is only there to put the stages in order of size; `pinchpoint run` finds the real one.
"""

import math
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.conclude import judge_load
from pinchpoint.errors import TargetError, UsageError
from pinchpoint.loadrun import run_load
from pinchpoint.measure import Tally
from pinchpoint.model import Progress, TargetFacts
from pinchpoint.plan import ClassSpec, ClosedStage, JointSpec, Plan, WorkloadSpec
from pinchpoint.report.literal import visible
from pinchpoint.slo import derive_slos
from pinchpoint.units import format_duration, significant
from pinchpoint.workload.classes import TrafficClass, mean_input, mean_output, resolve
from pinchpoint.workload.library import presets
from pinchpoint.workload.toml_text import toml_lines, toml_value
from pinchpoint.workload.traces.read import read_log
from pinchpoint.workload.traces.table import RequestLog

LOOK_REQUESTS = 6
"""Of one user, to see the idle service; the first of them may warm something up and is only one of six."""
LOOK_TIMEOUT_S = 120.0
CROWDS = (4, 16, 64, 256)
"""Users who come at once, each with CROWD_ROUNDS requests, as long as more of them get more answered."""
CROWD_ROUNDS = 2
CROWD_GAIN_MIN = 1.5
"""Four times the users and not even half as much again answered: more would only wait."""
CROWD_TIME_MAX_S = 15.0
"""After that much time no larger crowd is sent."""
SLOWDOWN_MAX = 2.5
"""Times as long as alone that an answer may take; as the limit of a derived TPOT SLO (slo.DEFAULT_TPOT_FACTOR)."""
NORMAL_RATIO, PEAK_RATIO, BEYOND_RATIO, SPIKE_RATIO = 0.5, 0.8, 1.5, 2.0
"""Of the guessed capacity: the usual planning with half of it in reserve, the busiest hour, too much, far too much."""
SOAK_FACTOR = 10
"""Length of the soak in lengths of the other stages."""
SPIKE_AT_RATIO, SPIKE_FOR_RATIO = 0.4, 0.2
"""Of the stage: a calm beginning, the spike, and time to see how long it takes to recover."""
LONG_CONTEXT_RATIO = 0.25
"""Mean prompt of the long-context stage, of the context: the longest prompts then fill it."""
LONG_CONTEXT_MEAN_MAX = 24_000
"""Tokens; where the context is larger still, its longest prompts are several times that."""
DEFAULT_STAGE_S = 60.0
DIGITS = 2
TRACE_REQUESTS_MIN = 100
"""Fewer say little about a peak or about lengths."""
PEAK_WINDOW_S, PEAK_WINDOWS_MAX, PEAK_REQUESTS = 10.0, 60, 50
"""The peak is the busiest of windows of at least ten seconds, of which a trace has at most 60, each with some 50
requests: a smaller one is as busy by accident."""
GRID_RATIO_MAX = 0.1
"""Of the mean gap: on a coarser grid gaps say nothing about how arrivals scatter."""
TIES_RATIO_MAX = 0.1
"""Of the gaps that are zero: with more, instants were rounded, whatever grid they lie on."""
CV_TOLERANCE = 0.1
"""So close to 1, gaps are called exponential."""
JOINT_QUANTILES, JOINT_RANGES = 21, 5
"""Every twentieth of the requests, and fifths of the inputs: more would only repeat the accidents of a trace."""
COMMENT_WIDTH = 100


class Look(msgspec.Struct, frozen=True):
    """What one user saw of the idle service, on average, and what a crowd got answered.

    ttft_s, tpot_s: None where it does not stream. crowd_users: the largest crowd whose answers took at most
    SLOWDOWN_MAX times as long as alone; 1 where already the smallest took longer. crowd_rps: what they would get
    answered if they went on.
    """

    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    input_tokens: float
    output_tokens: float
    crowd_users: int
    crowd_rps: float


class TraceShape(msgspec.Struct, frozen=True):
    """What a trace says about the load: rates in requests per second, how arrivals scatter, and the lengths."""

    source: str
    mean_rps: float
    peak_rps: float
    arrivals: str
    traffic: ClassSpec


def look(plan: Plan) -> Look:
    """Asks the service a few times, one request after another, and then by growing crowds.

    plan: with the service, its access and the workload; its stages are not used. What is measured is thrown away.
    Raises TargetError when no request was answered.
    """
    total = _loaded(plan, 1, LOOK_REQUESTS)
    e2e_s = total.metrics["e2e_s"].mean
    assert e2e_s is not None
    users, crowd_rps = 1, 1 / e2e_s
    begun_s = time.monotonic()
    for crowd in CROWDS:
        found = _loaded(plan, crowd, CROWD_ROUNDS * crowd)
        mean_s = found.metrics["e2e_s"].mean
        if mean_s is None or mean_s > SLOWDOWN_MAX * e2e_s:
            break
        # Little's law; the count over the time would be too low, as a few long answers end it with nobody beside them.
        rate_rps = crowd / mean_s
        enough = rate_rps < CROWD_GAIN_MIN * crowd_rps or time.monotonic() - begun_s > CROWD_TIME_MAX_S
        if rate_rps > crowd_rps:
            users, crowd_rps = crowd, rate_rps
        if enough:
            break
    return Look(
        ttft_s=total.metrics["ttft_s"].mean,
        tpot_s=total.metrics["tpot_s"].mean,
        e2e_s=e2e_s,
        input_tokens=(total.tokens.input or 0) / total.completed,
        output_tokens=(total.tokens.output or 0) / total.completed,
        crowd_users=users,
        crowd_rps=crowd_rps,
    )


def shape_of(path: Path, trace_format: str = "auto") -> TraceShape:
    """Mean and highest rate of a trace, how its arrivals scatter within its windows, and its lengths as they occur
    together. `pinchpoint workload fit` learns more of it: the rate over time, conversations, shared beginnings.

    Raises UsageError for a file that cannot be read, and for one without instants or with too few requests.
    """
    log = read_log(path, trace_format)
    if log.t_ns is None:
        raise UsageError(f"{path} holds no instants, so it says nothing about rates; give a trace that has them")
    if len(log) < TRACE_REQUESTS_MIN or log.span_s == 0:
        raise UsageError(f"{path} holds {len(log)} requests; a suite needs {TRACE_REQUESTS_MIN} of them at least")
    t_s = log.t_ns / NS_PER_S
    window_s = max(PEAK_WINDOW_S, log.span_s / PEAK_WINDOWS_MAX, PEAK_REQUESTS * log.span_s / len(log))
    windows = max(1, int(log.span_s // window_s))
    counts = np.bincount(np.minimum((t_s / window_s).astype(int), windows), minlength=windows)[:windows]
    mean_rps = len(log) / log.span_s
    peak_rps = max(float(counts.max()) / window_s, mean_rps)
    return TraceShape(str(path), mean_rps, peak_rps, _scatter(log, window_s), _traffic(log, path.stem.split(".")[0]))


def _scatter(log: RequestLog, window_s: float) -> str:
    """poisson, or gamma with the usual coefficient of variation of the gaps within a window, where instants are finer
    than the gaps."""
    assert log.t_ns is not None
    gaps_s = np.diff(log.t_ns) / NS_PER_S
    coarse = log.resolution_ns / NS_PER_S > GRID_RATIO_MAX * float(gaps_s.mean())
    if coarse or float((gaps_s == 0).mean()) > TIES_RATIO_MAX:
        return "poisson"
    window = ((log.t_ns[:-1] / NS_PER_S) / window_s).astype(int)
    found = [gaps_s[window == i] for i in np.unique(window)]
    cvs = [float(each.std() / each.mean()) for each in found if len(each) >= PEAK_REQUESTS and each.mean() > 0]
    cv = float(np.median(cvs)) if cvs else 1.0
    return "poisson" if abs(cv - 1) < CV_TOLERANCE else f"gamma:{significant(cv, DIGITS)}"


def _traffic(log: RequestLog, name: str) -> ClassSpec:
    """Lengths by quantiles: of the inputs, and of the outputs in ranges of the input. Those of 0 tokens count as 1."""
    inputs, outputs = np.maximum(log.input_tokens, 1), np.maximum(log.output_tokens, 1)
    levels = np.linspace(0, 1, JOINT_QUANTILES)
    order = np.argsort(inputs, kind="stable")

    def quantiles(values: np.ndarray) -> tuple[int, ...]:
        return tuple(round(float(value)) for value in np.quantile(values, levels))

    joint = JointSpec(
        quantiles(inputs), tuple(quantiles(outputs[part]) for part in np.array_split(order, JOINT_RANGES))
    )
    return ClassSpec(name=name, joint=joint)


def _loaded(plan: Plan, users: int, requests: int) -> Tally:
    """What a closed loop of so many users got answered; at least one request."""
    asked = msgspec.structs.replace(plan, stages=(ClosedStage(users, requests=requests),), timeout_s=LOOK_TIMEOUT_S)
    with tempfile.TemporaryDirectory() as directory:
        outcome = run_load(asked, out=Path(directory) / "look", on_progress=_quiet)
        answer, _ = judge_load(outcome.path)
    if outcome.error is not None:
        raise outcome.error
    if not answer.result.total.completed:
        samples = [text for texts in answer.result.error_samples.values() for text in texts]
        why = f": {visible(samples[0])}" if samples else ""
        raise TargetError(f"{plan.url} answered none of {requests} requests{why}; see `pinchpoint probe`")
    return answer.result.total


def _quiet(progress: Progress) -> None:
    """The look is over in seconds."""


def propose(
    plan: Plan,
    facts: TargetFacts,
    seen: Look,
    *,
    stage_s: float = DEFAULT_STAGE_S,
    trace: TraceShape | None = None,
) -> str:
    """The suite as TOML with comments.

    plan: the service, its access and the normal workload. stage_s: length of each stage. trace: its mean and peak rate
    take the place of the guessed ones, and its lengths those of the workload.
    """
    context_tokens = facts.limits.context_tokens
    guess_rps = seen.crowd_rps
    if trace is None:
        normal_rps, peak_rps = NORMAL_RATIO * guess_rps, PEAK_RATIO * guess_rps
        beyond_rps, spike_rps = BEYOND_RATIO * guess_rps, SPIKE_RATIO * guess_rps
        normal, arrivals = WorkloadSpec(plan.workload.preset), "poisson"
    else:
        normal_rps, peak_rps = trace.mean_rps, trace.peak_rps
        beyond_rps, spike_rps = BEYOND_RATIO * trace.peak_rps, SPIKE_RATIO * trace.peak_rps
        normal, arrivals = WorkloadSpec(classes=(trace.traffic,)), trace.arrivals
    (usual,) = _resolved(normal, context_tokens)[:1]
    parts = [_head(plan, facts, seen, guess_rps, trace), _workload("workload", normal, context_tokens)]
    length = format_duration(stage_s).replace(" ", "")
    scatter = {} if arrivals == "poisson" else {"arrivals": arrivals}

    def stage(name: str, why: str, **keys: object) -> str:
        return f"{_comment(why)}\n[[stages]]\n{toml_lines({'name': name, **keys})}\n"

    def rate(value_rps: float) -> str:
        return f"{significant(max(value_rps, 0.01), DIGITS)}rps"

    parts.append(
        stage(
            "baseline",
            "One user, one request after another: what the service does when nobody else is there.",
            kind="closed",
            concurrency=1,
            duration=length,
        )
    )
    opened = (
        ("normal", f"The usual load: {_of(normal_rps, guess_rps, trace, 'mean rate')}.", normal_rps),
        ("peak", f"The busiest time: {_of(peak_rps, guess_rps, trace, 'highest rate')}.", peak_rps),
        (
            "beyond-peak",
            "More than it should carry: does it refuse, queue or break? Compare the latencies of what is answered.",
            beyond_rps,
        ),
    )
    for name, why, value_rps in opened:
        parts.append(stage(name, why, kind="open", rate=rate(value_rps), **scatter, duration=length))
    parts.append(
        stage(
            "spike",
            "A sudden crowd out of the usual load; afterwards the latencies should find back to those of `normal`.",
            kind="spike",
            base=rate(normal_rps),
            peak=rate(spike_rps),
            at=_length(SPIKE_AT_RATIO * stage_s),
            **{"for": _length(SPIKE_FOR_RATIO * stage_s)},
            duration=length,
        )
    )
    long = _long_context(context_tokens)
    further: list[str] = []
    if long is None:
        parts.append(
            f"# No stage of long prompts: a context of {context_tokens} tokens holds none that would be long.\n"
        )
    else:
        further.append(_workload("workloads.long", long, context_tokens))
        (one,) = _resolved(long, context_tokens)
        value_rps = normal_rps * _cost_s(usual, seen) / _cost_s(one, seen)
        parts.append(
            stage(
                "long-context",
                "Long prompts at a rate at which they ask for as much time of the service as `normal`, judged by how "
                "fast it read and wrote for one user.",
                kind="open",
                rate=rate(value_rps),
                duration=length,
                workload="long",
            )
        )
    mix = _mix(context_tokens)
    further.append(_workload("workloads.everything", mix, context_tokens))
    classes = _resolved(mix, context_tokens)
    total = sum(one.weight for one in classes)
    mean_s = sum(one.weight / total * _cost_s(one, seen) for one in classes)
    parts.append(
        stage(
            "mixed",
            "Several kinds of request side by side, again for as much of its time as `normal`: who suffers from whom?",
            kind="open",
            rate=rate(normal_rps * _cost_s(usual, seen) / mean_s),
            duration=length,
            workload="everything",
        )
    )
    parts.append(
        stage(
            "soak",
            "The usual load for long: memory that grows, caches that fill up, connections that are not given back. "
            "An hour or more is better.",
            kind="open",
            rate=rate(normal_rps),
            **scatter,
            duration=_length(SOAK_FACTOR * stage_s),
        )
    )
    return "\n".join([*parts, *further])


def _head(plan: Plan, facts: TargetFacts, seen: Look, guess_rps: float, trace: TraceShape | None) -> str:
    engine = facts.engine if facts.engine_version is None else f"{facts.engine} {facts.engine_version}"
    sequences = facts.limits.max_sequences
    told = f"{sequences} requests at a time (the service's own limit)" if sequences else "no limit is told"
    words = [
        f"A suite for {facts.model} at {facts.url} ({engine}).",
        "Run it:          pinchpoint load --plan THIS-FILE",
        "",
        f"One user saw: {format_duration(seen.e2e_s)} for a whole answer"
        + (f", {format_duration(seen.ttft_s)} to the first token" if seen.ttft_s is not None else "")
        + (f", {format_duration(seen.tpot_s)} for each further one" if seen.tpot_s is not None else "")
        + f"; {seen.input_tokens:.0f} tokens in and {seen.output_tokens:.0f} out on average.",
        f"Limits: {told}; context {facts.limits.context_tokens or 'not told'}.",
        f"First guess of the capacity: {significant(guess_rps, DIGITS)} req/s, which "
        + (f"{seen.crowd_users} users at a time got answered" if seen.crowd_users > 1 else "one user got answered")
        + f" while an answer took at most {SLOWDOWN_MAX:g} times as long as alone.",
        "It is no capacity within SLOs. `pinchpoint run` finds the real capacity; put its figure into the rates then.",
    ]
    if trace is not None:
        words.append(
            f"Rates and lengths are those of {trace.source}: {significant(trace.mean_rps)} req/s on average, "
            f"{significant(trace.peak_rps)} at its peak."
        )
    slos = [slo.text for slo in derive_slos(seen.ttft_s, seen.tpot_s, seen.e2e_s)] if not plan.slos else plan.slos
    table = toml_lines(
        {
            "name": "suite",
            "seed": plan.seed,
            "slos": list(slos),
        }
    )
    why = "multiples of what one user saw; put what you promise" if not plan.slos else "as given"
    access = {
        "url": plan.url,
        "model": facts.model,
        "api": plan.api,
        "api_key_env": plan.api_key_env,
        "api_key_file": plan.api_key_file,
        "ca_file": plan.ca_file,
    }
    comment = "\n".join(map(_comment, words))
    return f"{comment}\n\n# slos: {why}.\n{table}\n\n[target]\n{toml_lines(access)}\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ") or "#"


def _of(rate_rps: float, guess_rps: float, trace: TraceShape | None, what: str) -> str:
    if trace is not None:
        return f"the {what} of the trace"
    return f"{100 * rate_rps / guess_rps:.0f} % of the guessed capacity"


def _length(seconds: float) -> str:
    return format_duration(max(seconds, 0.1)).replace(" ", "")


def _resolved(spec: WorkloadSpec, context_tokens: int | None) -> tuple[TrafficClass, ...]:
    return resolve(Plan("http://service", 0, workload=spec), context_tokens).classes


def _cost_s(one: TrafficClass, seen: Look) -> float:
    """Time that a request of the class takes alone: what it reads at the pace of the look, what it writes likewise.

    A conversation's mean request carries half of its history.
    """
    written = mean_output(one)
    history = (one.mean_turns - 1) / 2 * (mean_input(one) + written)
    read = one.system_tokens + mean_input(one) + history
    if seen.ttft_s is None or seen.tpot_s is None:
        return seen.e2e_s * (read + written) / max(seen.input_tokens + seen.output_tokens, 1.0)
    return seen.ttft_s * read / max(seen.input_tokens, 1.0) + seen.tpot_s * written


def _workload(table: str, spec: WorkloadSpec, context_tokens: int | None) -> str:
    """A workload as TOML: its preset, or its classes where the context cuts them."""
    if not spec.classes and _resolved(spec, context_tokens) == _with_context(_resolved(spec, None), context_tokens):
        told = {"preset": spec.preset, "input_tokens": spec.input_tokens}
        return f"# {presets()[spec.preset].summary}.\n[{table}]\n{toml_lines(told)}\n"
    lines = [] if spec.classes else [f"# {spec.preset}, cut to fit into a context of {context_tokens} tokens."]
    lines += [f"[[{table}.classes]]\n{_class_lines(one)}" for one in _resolved(spec, context_tokens)]
    return "\n".join(lines) + "\n"


def _with_context(classes: Sequence[TrafficClass], context_tokens: int | None) -> tuple[TrafficClass, ...]:
    return tuple(msgspec.structs.replace(one, context_tokens=context_tokens) for one in classes)


def _class_lines(one: TrafficClass) -> str:
    """The keys that a plan may give, of a class whose lengths were cut."""
    keys = {field.name for field in msgspec.structs.fields(ClassSpec)}
    told = {key: value for key, value in msgspec.to_builtins(one).items() if key in keys}
    if one.joint is not None:
        told.pop("input_tokens")
        told.pop("output_tokens")
    if not one.remembers:
        told.pop("turns")
        told.pop("think")
    shown = {key: value for key, value in told.items() if value not in (None, 0, "", [], ())}
    return "\n".join(f"{key} = {toml_value(value)}" for key, value in shown.items())


def _long_context(context_tokens: int | None) -> WorkloadSpec | None:
    """Long prompts for this context; None where it is too small for prompts longer than a chat's."""
    if context_tokens is None:
        return WorkloadSpec("long-context")
    mean = min(LONG_CONTEXT_MEAN_MAX, math.floor(LONG_CONTEXT_RATIO * context_tokens))
    chat = _resolved(WorkloadSpec("chat"), None)[0]
    return WorkloadSpec("long-context", input_tokens=mean) if mean > chat.input_tokens.max else None


def _mix(context_tokens: int | None) -> WorkloadSpec:
    """The library's mix; without the classes that the context cannot hold."""
    if context_tokens is None:
        return WorkloadSpec("mixed")
    kept = []
    for given in presets()["mixed"].classes:
        one = _resolved(WorkloadSpec(classes=(given,)), None)[0]
        if one.system_tokens + one.input_tokens.mean + mean_output(one) <= context_tokens / 2:
            kept.append(given)
    if len(kept) == len(presets()["mixed"].classes):
        return WorkloadSpec("mixed")
    return WorkloadSpec(classes=tuple(kept) or (ClassSpec(preset="chat-short"),))
