"""The command line: parse, call, print, exit code. Nothing else happens here.

stdout carries the answer (or, with --json, one JSON document); progress, notes and errors go to stderr. Modules that
measure or judge are imported inside the verbs, so that `--help` stays quick.
"""

import random
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from pinchpoint import __version__
from pinchpoint.cli_agent import agent_app
from pinchpoint.cli_lab import lab_app
from pinchpoint.cli_output import OUTPUT, Json, Slos, complain, print_json, print_verdict, tell_sources
from pinchpoint.cli_plan import plan_app, workloads
from pinchpoint.cli_profile import profile_app
from pinchpoint.cli_spans import spans_app
from pinchpoint.cli_telemetry import telemetry_app
from pinchpoint.cli_workload import workload_app
from pinchpoint.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNSUPPORTED, EXIT_USAGE, PinchpointError, UsageError
from pinchpoint.telemetryflags import NO_FLAGS, TelemetryFlags, telemetry_values

app = App(
    name="pinchpoint",
    help="Stress-test a large-language-model service and find its bottleneck.",
    version=__version__,
    help_format="plaintext",
)
app.command(telemetry_app)
app.command(profile_app)
app.command(spans_app)
app.command(agent_app)
app.command(lab_app)
app.command(plan_app)
app.command(workloads)
app.command(workload_app)

_LOAD = Group("Load", sort_key=1)
_ACCESS = Group("Access", sort_key=2)
_API = Group("API", sort_key=3)
_ENGINE = Group("Load generator", sort_key=4)

KeyEnv = Annotated[str | None, Parameter(group=_ACCESS, help="Environment variable that holds the API key.")]
KeyFile = Annotated[Path | None, Parameter(group=_ACCESS, help="File that holds the API key.")]
CaFile = Annotated[Path | None, Parameter(group=_ACCESS, help="Certificates of a private authority, PEM.")]
Model = Annotated[str | None, Parameter(help="Model to ask; default: the only or first one served.")]
Api = Annotated[
    str | None,
    Parameter(group=_API, help="What the service speaks: a target's name or a path; default: found out, else chat."),
]
Template = Annotated[
    Path | None, Parameter(group=_API, help="Requests and answers of a service of your own, as a template (TOML).")
]
ApiOptions = Annotated[
    tuple[str, ...],
    Parameter(name="--api-option", group=_API, negative="", help="Option of the target, NAME=VALUE. Repeatable."),
]
Workload = Annotated[
    str | None, Parameter(group=_LOAD, help="Name of a workload (`pinchpoint workloads`), or a TOML file.")
]
Tokenizer = Annotated[
    str | None,
    Parameter(
        group=_LOAD, help="Who counts tokens: a tokenizer.json, service or estimate; default: the best there is."
    ),
]
Seed = Annotated[int | None, Parameter(group=_LOAD, help="Fixes arrivals, lengths and prompts; default: random.")]
Stream = Annotated[bool, Parameter(group=_LOAD, help="Ask for streamed answers.")]
Workers = Annotated[int | None, Parameter(group=_ENGINE, help="Load processes; default: one per core.")]
Realtime = Annotated[bool, Parameter(group=_ENGINE, help="Real-time priority for the load processes.")]
Force = Annotated[bool, Parameter(group=_ENGINE, help="Send even what this host cannot; the run is marked.")]
MaxInFlight = Annotated[
    int | None, Parameter(group=_LOAD, help="Guard: end when more requests are unanswered; default 5000.")
]
Out = Annotated[Path | None, Parameter(group=OUTPUT, help="Run directory to write; must not exist.")]
RunPath = Annotated[Path, Parameter(help="Run directory that `pinchpoint run` wrote.")]


@app.command
def run(
    url: Annotated[str | None, Parameter(help="Base URL of the service, such as http://127.0.0.1:8000.")] = None,
    /,
    *,
    model: Model = None,
    slo: Slos = (),
    workload: Workload = None,
    input_tokens: Annotated[
        int | None, Parameter(group=_LOAD, help="Mean prompt length instead of the preset's.")
    ] = None,
    output_tokens: Annotated[
        int | None, Parameter(group=_LOAD, help="Mean answer length instead of the preset's.")
    ] = None,
    budget: Annotated[str | None, Parameter(group=_LOAD, help="Time for the whole search, such as 3m.")] = None,
    max_rate: Annotated[str | None, Parameter(group=_LOAD, help="Never offer more than this many requests/s.")] = None,
    max_in_flight: MaxInFlight = None,
    seed: Seed = None,
    stream: Stream = True,
    tokenizer: Tokenizer = None,
    plan: Annotated[
        Path | None, Parameter(group=_LOAD, help="Plan file (TOML); flags fill what it leaves out.")
    ] = None,
    api: Api = None,
    template: Template = None,
    api_option: ApiOptions = (),
    workers: Workers = None,
    realtime: Realtime = False,
    force: Force = False,
    metrics_url: Annotated[str | None, Parameter(group=_ACCESS, help="Metrics page, when it is elsewhere.")] = None,
    api_key_env: KeyEnv = None,
    api_key_file: KeyFile = None,
    ca_file: CaFile = None,
    telemetry: TelemetryFlags = NO_FLAGS,
    out: Out = None,
    as_json: Json = False,
) -> int:
    """Find how much load the service carries within its SLOs, what gives way first, and what to change."""
    from pinchpoint.conclude import judge_directory, write_answer
    from pinchpoint.plan import build_plan, read_plan
    from pinchpoint.report.live import show_progress
    from pinchpoint.requestflags import request_values
    from pinchpoint.runner import run_live
    from pinchpoint.units import parse_duration_s, parse_rate_rps

    asked_of_each = request_values(
        workload=workload,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        exact=False,
        api=api,
        template=template,
        api_options=api_option,
        tokenizer=tokenizer,
    )
    flags: dict[str, Any] = {
        **asked_of_each,
        **telemetry_values(telemetry),
        "url": url,
        "model": model,
        "slos": slo or None,
        "budget_s": parse_duration_s(budget) if budget is not None else None,
        "max_rate_rps": parse_rate_rps(max_rate) if max_rate is not None else None,
        "max_in_flight": max_in_flight,
        "seed": seed if seed is not None else random.SystemRandom().randrange(1, 2**31),
        "stream": stream,
        "workers": workers,
        "realtime": realtime or None,
        "metrics_url": metrics_url,
        "api_key_env": api_key_env,
        "api_key_file": str(api_key_file) if api_key_file else None,
        "ca_file": str(ca_file) if ca_file else None,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if plan is None and url is None:
        raise UsageError("give the URL of the service, such as http://127.0.0.1:8000, or a plan with --plan")
    asked = read_plan(plan, given) if plan is not None else build_plan(given)
    _stop_on_signals()
    with show_progress() as show:
        command = ("pinchpoint", *sys.argv[1:])
        outcome = run_live(asked, out=out, on_progress=show, command=command, plan_file=plan, force=force)
    view, verdict = judge_directory(outcome.path)
    html_path = write_answer(view, verdict)
    paths = {"report": html_path, "run": outcome.path}
    if (stacks := outcome.path / "stacks.txt").exists():
        paths["stacks"] = stacks
    print_verdict(view, verdict, as_json, paths)
    tell_sources(outcome.path)
    if outcome.error is not None:
        complain(str(outcome.error))
        return outcome.error.exit_code
    return verdict.exit_code


@app.command
def load(
    url: Annotated[str | None, Parameter(help="Base URL of the service, or of its API.")] = None,
    /,
    *,
    rate: Annotated[str | None, Parameter(group=_LOAD, help="Open loop: requests per second, such as 20.")] = None,
    concurrency: Annotated[int | None, Parameter(group=_LOAD, help="Closed loop: users, each waiting.")] = None,
    plan: Annotated[Path | None, Parameter(group=_LOAD, help="Plan file (TOML) with [[stages]] of every kind.")] = None,
    requests: Annotated[int | None, Parameter(group=_LOAD, help="End after exactly so many requests.")] = None,
    duration: Annotated[str | None, Parameter(group=_LOAD, help="Send for so long; default 30s.")] = None,
    arrivals: Annotated[
        str | None, Parameter(group=_LOAD, help="poisson (default), constant, gamma:CV or bursts:N.")
    ] = None,
    think: Annotated[
        str | None, Parameter(group=_LOAD, help="Closed loop: pause before the next request, such as exponential:2s.")
    ] = None,
    model: Model = None,
    slo: Slos = (),
    workload: Workload = None,
    input_tokens: Annotated[int | None, Parameter(group=_LOAD, help="Length of every prompt.")] = None,
    output_tokens: Annotated[int | None, Parameter(group=_LOAD, help="Length of every answer.")] = None,
    stream: Stream = True,
    usage: Annotated[bool, Parameter(group=_LOAD, help="Ask for token counts at the end of streams.")] = True,
    tokenizer: Tokenizer = None,
    api: Api = None,
    template: Template = None,
    api_option: ApiOptions = (),
    seed: Seed = None,
    patience: Annotated[
        str | None, Parameter(group=_LOAD, help="Users hang up after this, such as lognormal:20s:0.5; default: never.")
    ] = None,
    retries: Annotated[int | None, Parameter(group=_LOAD, help="Further attempts after a refusal; default 0.")] = None,
    timeout: Annotated[str | None, Parameter(group=_LOAD, help="Until the whole answer is there; default 5m.")] = None,
    connect_timeout: Annotated[str | None, Parameter(group=_LOAD, help="Until connected; default 10s.")] = None,
    first_token_timeout: Annotated[str | None, Parameter(group=_LOAD, help="Until the first token.")] = None,
    token_timeout: Annotated[str | None, Parameter(group=_LOAD, help="From one token to the next.")] = None,
    max_in_flight: MaxInFlight = None,
    workers: Workers = None,
    realtime: Realtime = False,
    force: Force = False,
    header: Annotated[
        tuple[str, ...],
        Parameter(group=_ACCESS, negative="", help="'Name: value', secrets as 'Name: env:VARIABLE'. Repeatable."),
    ] = (),
    session_header: Annotated[
        str | None, Parameter(group=_ACCESS, help="Header that carries the session's number.")
    ] = None,
    backend: Annotated[
        tuple[str, ...],
        Parameter(group=_ACCESS, negative="", help="Another base URL, or URL=WEIGHT; they take turns. Repeatable."),
    ] = (),
    proxy: Annotated[str | None, Parameter(group=_ACCESS, help="HTTP proxy; with a password as env:VARIABLE.")] = None,
    unix_socket: Annotated[str | None, Parameter(group=_ACCESS, help="Path of the service's Unix socket.")] = None,
    new_connections: Annotated[
        bool, Parameter(group=_ACCESS, negative="", help="A connection of its own for every request.")
    ] = False,
    warm_connections: Annotated[
        int | None, Parameter(group=_ACCESS, help="Connections opened before the first request.")
    ] = None,
    api_key_env: KeyEnv = None,
    api_key_file: KeyFile = None,
    ca_file: CaFile = None,
    metrics_url: Annotated[
        str | None, Parameter(group=_ACCESS, help="Read this page of metrics beside the load.")
    ] = None,
    telemetry: TelemetryFlags = NO_FLAGS,
    out: Out = None,
    as_json: Json = False,
) -> int:
    """Put a plain load on a service and measure it: no search, no diagnosis, no need for /v1/models or /metrics."""
    from pinchpoint.conclude import judge_load
    from pinchpoint.loadflags import load_plan
    from pinchpoint.loadrun import run_load
    from pinchpoint.report.live import show_progress
    from pinchpoint.requestflags import request_values

    transport = {
        "proxy": proxy,
        "unix_socket": unix_socket,
        "session_header": session_header,
        "new_connections": new_connections or None,
        "warm_connections": warm_connections,
    }
    asked = load_plan(
        plan,
        {
            "url": url,
            "model": model,
            "slos": slo or None,
            "seed": seed if seed is not None else random.SystemRandom().randrange(1, 2**31),
            "stream": stream,
            "patience": patience,
            "retries": retries,
            "timeout": timeout,
            "connect_timeout": connect_timeout,
            "first_token_timeout": first_token_timeout,
            "token_timeout": token_timeout,
            "max_in_flight": max_in_flight,
            "workers": workers,
            "realtime": realtime or None,
            "api_key_env": api_key_env,
            "api_key_file": str(api_key_file) if api_key_file else None,
            "ca_file": str(ca_file) if ca_file else None,
            "metrics_url": metrics_url,
            **telemetry_values(telemetry),
        },
        requested=request_values(
            workload=workload,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            exact=True,
            api=api,
            template=template,
            api_options=api_option,
            tokenizer=tokenizer,
        ),
        transport={key: value for key, value in transport.items() if value is not None},
        headers=header,
        backends=backend,
        rate=rate,
        concurrency=concurrency,
        requests=requests,
        duration=duration,
        arrivals=arrivals,
        think=think,
    )
    _stop_on_signals()
    with show_progress() as show:
        command = ("pinchpoint", *sys.argv[1:])
        outcome = run_load(asked, out=out, on_progress=show, command=command, plan_file=plan, usage=usage, force=force)
    answer, code = judge_load(outcome.path)
    _print_load(answer, as_json, outcome.path)
    tell_sources(outcome.path)
    if outcome.error is not None:
        complain(str(outcome.error))
        return outcome.error.exit_code
    return code


@app.command
def calibrate(
    *,
    budget: Annotated[str, Parameter(help="Time for all measurements.")] = "20s",
    as_json: Json = False,
) -> int:
    """Measure what this host can send and receive, and how exactly, against a server that only keeps time."""
    from pinchpoint.calibrate import calibrate as measure_host
    from pinchpoint.calibrate import render_json, render_text
    from pinchpoint.units import parse_duration_s

    limits = measure_host(parse_duration_s(budget), on_progress=lambda text: print(text, file=sys.stderr))
    sys.stdout.write(render_json(limits) if as_json else render_text(limits))
    return EXIT_OK


@app.command
def probe(
    url: str,
    /,
    *,
    model: Model = None,
    api: Api = None,
    template: Template = None,
    api_option: ApiOptions = (),
    api_key_env: KeyEnv = None,
    api_key_file: KeyFile = None,
    ca_file: CaFile = None,
    as_json: Json = False,
) -> int:
    """Look at a service without loading it: engine, models, streaming, limits, and what could not be found out."""
    import msgspec

    from pinchpoint.launch import read_api_key
    from pinchpoint.plan import build_plan
    from pinchpoint.probe import probe as probe_service
    from pinchpoint.report.facts import facts_text
    from pinchpoint.requestflags import api_values

    keys = {"api_key_env": api_key_env, "api_key_file": str(api_key_file) if api_key_file else None}
    spoken = api_values(api, template, api_option)
    asked = build_plan({"url": url, "seed": 0, **spoken, **{k: v for k, v in keys.items() if v is not None}})
    facts = probe_service(
        url,
        model=model,
        api=asked.api,
        api_options=asked.api_options,
        api_key=read_api_key(asked),
        ca_file=str(ca_file) if ca_file else None,
    )
    if as_json:
        print_json({"schema": "pinchpoint.probe/1", **msgspec.to_builtins(facts)})
    else:
        sys.stdout.write(facts_text(facts))
    return EXIT_OK


@app.command
def check(path: RunPath, /, *, slo: Slos = (), as_json: Json = False) -> int:
    """Judge the measurement itself: can this run support a verdict? Exit code 3 when it cannot."""
    import msgspec

    from pinchpoint.conclude import judge_directory
    from pinchpoint.report.validity import validity_text
    from pinchpoint.slo import parse_slos

    _, verdict = judge_directory(path, parse_slos(slo) or None)
    if as_json:
        reasons = msgspec.to_builtins(verdict.validity_reasons)
        print_json({"schema": "pinchpoint.check/1", "validity": verdict.validity, "reasons": reasons})
    else:
        sys.stdout.write(validity_text(verdict))
    return EXIT_UNSUPPORTED if verdict.validity == "INVALID" else EXIT_OK


@app.command
def measure(path: RunPath, /, *, as_json: Json = False) -> int:
    """Print the figures of a plain load again, from its directory alone, also when it was killed."""
    from pinchpoint.conclude import judge_load

    answer, code = judge_load(path)
    _print_load(answer, as_json, path)
    return code


@app.command
def diagnose(path: RunPath, /, *, slo: Slos = (), as_json: Json = False) -> int:
    """Judge a run again from its directory alone, with its own SLOs or new ones, and print the answer."""
    from pinchpoint.conclude import judge_directory
    from pinchpoint.slo import parse_slos

    view, verdict = judge_directory(path, parse_slos(slo) or None)
    print_verdict(view, verdict, as_json, {"run": path})
    tell_sources(path)
    return verdict.exit_code


@app.command
def report(
    path: RunPath,
    /,
    *,
    slo: Slos = (),
    out: Annotated[Path | None, Parameter(group=OUTPUT, help="HTML file; default: report.html in the run.")] = None,
    as_json: Json = False,
) -> int:
    """Write the HTML report of a run again."""
    from pinchpoint.conclude import judge_directory, write_answer
    from pinchpoint.slo import parse_slos

    chosen = parse_slos(slo) or None
    if chosen is not None and out is None:
        raise UsageError("a report with other SLOs than the run's needs a file of its own; give one with --out")
    view, verdict = judge_directory(path, chosen)
    written = write_answer(view, verdict, out)
    if as_json:
        print_json({"schema": "pinchpoint.report/1", "report": str(written)})
    else:
        sys.stdout.write(f"{written}\n")
    return EXIT_OK


@app.command
def rules(code: str | None = None, /, *, as_json: Json = False) -> int:
    """List the diagnosis rules, or print the page of one."""
    from pinchpoint.diagnose.rule import load_rules, rule_page

    if code is not None:
        page = rule_page(code)
        if as_json:
            print_json({"schema": "pinchpoint.rule/1", "code": code.upper(), "page": page})
        else:
            sys.stdout.write(page.rstrip() + "\n")
        return EXIT_OK
    found = [loaded.rule for loaded in load_rules()]
    if as_json:
        listed = [{"code": rule.code, "name": rule.name, "title": rule.title, "layer": rule.layer} for rule in found]
        print_json({"schema": "pinchpoint.rules/1", "rules": listed})
    else:
        for rule in found:
            sys.stdout.write(f"{rule.code:7} {rule.name:22} {rule.layer:16} {rule.title}\n")
    return EXIT_OK


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Ends the process with the verb's exit code."""
    tokens = sys.argv[1:] if arguments is None else arguments
    wants_json = "--json" in tokens
    try:
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        flag = re.search(r"--[\w-]+", str(error)) if "requires an argument" in str(error) else None
        hint = f"write {flag.group()}=-5s for a value that begins with -; " if flag else ""
        code = _fail(f"{error}; {hint}see pinchpoint --help", EXIT_USAGE, wants_json)
    except PinchpointError as error:
        code = _fail(str(error), error.exit_code, wants_json)
    except KeyboardInterrupt:
        code = _fail("interrupted before anything was measured", EXIT_INTERRUPTED, wants_json)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        code = EXIT_OK
    sys.exit(code if isinstance(code, int) else EXIT_OK)


def _fail(message: str, code: int, as_json: bool) -> int:
    complain(message)
    if as_json:
        print_json({"schema": "pinchpoint.error/1", "error": message, "exit_code": code})
    return code


def _print_load(answer: Any, as_json: bool, path: Path) -> None:
    if as_json:
        from pinchpoint.report.load_answer import load_json

        sys.stdout.write(load_json(answer).decode())
        return
    from rich.console import Console

    from pinchpoint.report.load_text import print_load

    print_load(Console(), answer, paths={"run": path})


def _stop_on_signals() -> None:
    """SIGTERM and SIGINT end a run as Ctrl-C does: what was measured is sealed and reported.

    SIGINT is set, too, because a process that a script starts in the background inherits it ignored.
    """

    def interrupt(number: int, frame: object) -> None:
        # Only the first one counts: an impatient second must not cut off the sealing of what was measured.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)


if __name__ == "__main__":
    main()
