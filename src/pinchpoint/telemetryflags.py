"""Flags that say what is read beside a load and what the service costs, common to `run` and `load`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from pinchpoint.errors import UsageError
from pinchpoint.units import parse_duration_s

_TELEMETRY = Group("Telemetry", sort_key=5)
_COST = Group("Cost", sort_key=6)
HERE = "127.0.0.1"


@Parameter(name="*")
@dataclass(frozen=True)
class TelemetryFlags:
    """None and empty: not given."""

    page: Annotated[
        tuple[str, ...],
        Parameter(group=_TELEMETRY, negative="", help="A further page of metrics, URL or NAME=URL. Repeatable."),
    ] = ()
    discover: Annotated[
        bool | None,
        Parameter(group=_TELEMETRY, help="Look for pages of metrics on the usual ports of the service's host."),
    ] = None
    host: Annotated[
        tuple[str, ...],
        Parameter(
            group=_TELEMETRY,
            negative="",
            help="`pinchpoint agent` or a node-exporter on another machine, URL or NAME=URL. Repeatable.",
        ),
    ] = ()
    host_token_env: Annotated[
        str | None, Parameter(group=_TELEMETRY, help="Environment variable that holds the agents' token.")
    ] = None
    period: Annotated[
        str | None, Parameter(group=_TELEMETRY, help="Between two readings; default 500ms, at least 100ms.")
    ] = None
    prometheus: Annotated[
        str | None, Parameter(group=_TELEMETRY, help="Prometheus server that watches the service.")
    ] = None
    selector: Annotated[
        str | None, Parameter(group=_TELEMETRY, help="Its targets of the service, such as '{namespace=\"llm\"}'.")
    ] = None
    prometheus_token_env: Annotated[
        str | None, Parameter(group=_TELEMETRY, help="Environment variable with its bearer token.")
    ] = None
    prometheus_login_env: Annotated[
        str | None, Parameter(group=_TELEMETRY, help="Environment variable with user:password.")
    ] = None
    otlp: Annotated[
        str | None,
        Parameter(
            group=_TELEMETRY,
            help="Receive spans at this address, ports 4318 (HTTP) and 4317 (gRPC); HOST or HOST:HTTP:GRPC.",
        ),
    ] = None
    spans: Annotated[
        Path | None,
        Parameter(group=_TELEMETRY, help="OTLP/JSON spans that are read after the load: file or directory."),
    ] = None
    trace_requests: Annotated[
        bool | None,
        Parameter(group=_TELEMETRY, help="Send a traceparent with every request; default: when spans are asked for."),
    ] = None
    stacks: Annotated[
        bool | None,
        Parameter(
            group=_TELEMETRY, negative="", help="Sample the stacks of the service's Python processes (needs py-spy)."
        ),
    ] = None
    profile: Annotated[
        bool | None,
        Parameter(
            group=_TELEMETRY,
            negative="",
            help="Have the engine's own profiler (vLLM, SGLang) record a moment of overload, and analyse it.",
        ),
    ] = None
    profile_dir: Annotated[
        Path | None, Parameter(group=_TELEMETRY, help="Directory on this host that the engine writes its traces into.")
    ] = None
    profile_command: Annotated[
        str | None,
        Parameter(
            group=_TELEMETRY,
            help="A profiler in place of the engine's own; {seconds}, {directory} and {pid} are filled in.",
        ),
    ] = None
    profile_window: Annotated[str | None, Parameter(group=_TELEMETRY, help="How long is profiled; default 2s.")] = None
    price_per_hour: Annotated[
        float | None, Parameter(group=_COST, help="Price of one accelerator and hour; default: a list price.")
    ] = None
    currency: Annotated[str | None, Parameter(group=_COST, help="Of --price-per-hour; default USD.")] = None
    gpus: Annotated[int | None, Parameter(group=_COST, help="Accelerators that are paid for; default: those seen.")] = (
        None
    )


NO_FLAGS = TelemetryFlags()


def telemetry_values(flags: TelemetryFlags) -> dict[str, Any]:
    """Keys of the plan for what was given. Raises UsageError for flags that miss each other."""
    if (flags.prometheus is None) != (flags.selector is None):
        raise UsageError(
            "--prometheus and --selector go together: the server, and which of its targets are the service"
        )
    prometheus = {
        "url": flags.prometheus,
        "selector": flags.selector,
        "token_env": flags.prometheus_token_env,
        "login_env": flags.prometheus_login_env,
    }
    if flags.prometheus is None and any(prometheus.values()):
        raise UsageError("--prometheus-token-env and --prometheus-login-env are for --prometheus; name the server")
    telemetry = {
        "pages": flags.page or None,
        "discover": flags.discover,
        "hosts": flags.host or None,
        "host_token_env": flags.host_token_env,
        "period_s": parse_duration_s(flags.period) if flags.period is not None else None,
        "prometheus": _given(prometheus),
        "otlp": _otlp(flags.otlp) if flags.otlp is not None else None,
        "spans": str(flags.spans) if flags.spans is not None else None,
        "trace_requests": flags.trace_requests,
        "stacks": flags.stacks,
    }
    profile = {
        "directory": str(flags.profile_dir) if flags.profile_dir is not None else None,
        "command": flags.profile_command,
        "window_s": parse_duration_s(flags.profile_window) if flags.profile_window is not None else None,
    }
    asked = _given(profile) or ({} if flags.profile else None)  # an empty table stands for all defaults
    cost = {"price_per_hour": flags.price_per_hour, "currency": flags.currency, "accelerators": flags.gpus}
    return _given({"telemetry": _given(telemetry), "cost": _given(cost), "profile": asked}) or {}


def _given(values: dict[str, Any]) -> dict[str, Any] | None:
    return {key: value for key, value in values.items() if value is not None} or None


def _otlp(text: str) -> dict[str, Any]:
    """HOST, or HOST:HTTP-PORT:GRPC-PORT; an IPv6 address stands in brackets."""
    host, rest = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise UsageError(f"--otlp {text!r} lacks a closing bracket; write [::1] or [::1]:4318:4317")
    elif text.count(":") <= 2:
        host, _, rest = text.partition(":")
    ports = [part for part in rest.split(":") if part]
    if not ports:
        return {"host": host or HERE}
    if len(ports) != 2 or not all(port.isdigit() for port in ports):
        raise UsageError(f"--otlp {text!r} is no address; write HOST, or HOST:HTTP-PORT:GRPC-PORT as 0.0.0.0:4318:4317")
    return {"host": host or HERE, "http_port": int(ports[0]), "grpc_port": int(ports[1])}
