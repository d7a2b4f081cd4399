"""From the flags of `pinchpoint load` to a plan: one stage from --rate or --concurrency, or those of a plan file."""

from pathlib import Path
from typing import Any

from pinchpoint.errors import UsageError
from pinchpoint.plan import Plan, build_plan, read_plan
from pinchpoint.units import parse_duration_s, parse_rate_rps

DEFAULT_DURATION = "30s"
DURATIONS = ("timeout", "connect_timeout", "first_token_timeout", "token_timeout")


def load_plan(
    plan_file: Path | None,
    flags: dict[str, Any],
    *,
    requested: dict[str, Any],
    transport: dict[str, Any],
    headers: tuple[str, ...],
    backends: tuple[str, ...],
    rate: str | None,
    concurrency: int | None,
    requests: int | None,
    duration: str | None,
    arrivals: str | None,
    think: str | None,
) -> Plan:
    """flags: keys of the plan, durations as text; None stands for "not given". requested: as of request_values. A plan
    file's own keys come first.

    Raises UsageError for flags that contradict each other and for everything that build_plan refuses.
    """
    values = {**requested, **{key: value for key, value in flags.items() if value is not None}}
    for key in DURATIONS:
        if key in values:
            values[f"{key}_s"] = parse_duration_s(values.pop(key))
    if headers:
        transport = {**transport, "headers": dict(_header(text) for text in headers)}
    if transport:
        values["transport"] = transport
    if backends:
        values["backends"] = [_backend(text) for text in backends]
    stage = _stage(rate, concurrency, requests, duration, arrivals, think)
    if plan_file is not None:
        if stage is not None or any(text is not None for text in (requests, duration, arrivals, think)):
            raise UsageError("the plan says what to send; leave out --rate, --concurrency and what belongs to them")
        plan = read_plan(plan_file, values)
        if values.get("url", plan.url) != plan.url:
            raise UsageError(f"{plan_file} is for {plan.url}; leave out the URL, or take the plan's url away")
        return plan
    if "url" not in values:
        raise UsageError("give the URL of the service, such as http://127.0.0.1:8000, or a plan with --plan")
    if stage is None:
        raise UsageError("give --rate (open loop), --concurrency (closed loop) or --plan; `pinchpoint run` searches")
    return build_plan({**values, "stages": [stage]})


def _stage(
    rate: str | None,
    concurrency: int | None,
    requests: int | None,
    duration: str | None,
    arrivals: str | None,
    think: str | None,
) -> dict[str, Any] | None:
    if rate is not None and concurrency is not None:
        raise UsageError("--rate is an open loop and --concurrency a closed one; give one of the two")
    if rate is None and concurrency is None:
        return None
    if requests is not None and duration is not None and rate is not None:
        raise UsageError("--requests and --duration both say when an open loop ends; give one of the two")
    stage: dict[str, Any] = {"requests": requests, "name": "load"}
    if requests is None or duration is not None:
        stage["duration_s"] = parse_duration_s(duration or DEFAULT_DURATION)
    if rate is not None:
        if think is not None:
            raise UsageError("--think is the pause of a user who waits for an answer; it goes with --concurrency")
        stage |= {"kind": "open", "rate_rps": parse_rate_rps(rate), "arrivals": arrivals or "poisson"}
    else:
        if arrivals is not None:
            raise UsageError("--arrivals are those of an open loop; they go with --rate")
        stage |= {"kind": "closed", "concurrency": concurrency, "think": think or "0s"}
    return {key: value for key, value in stage.items() if value is not None}


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise UsageError(f"{text!r} is not a header; write 'Name: value'")
    return name.strip(), value.strip()


def _backend(text: str) -> dict[str, Any]:
    url, equals, weight = text.rpartition("=")
    if not equals or "/" in weight:
        return {"url": text}
    try:
        return {"url": url, "weight": float(weight)}
    except ValueError:
        raise UsageError(f"{weight!r} is not a weight; write URL=2 or URL alone") from None
