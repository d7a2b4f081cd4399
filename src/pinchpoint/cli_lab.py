"""Verbs about the lab, the simulated service: serve it, run it in virtual time, list what it can break, show it."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pinchpoint.cli_output import OUTPUT, Json, Slos, complain, print_json, print_verdict
from pinchpoint.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from pinchpoint.lab.scenario import Scenario

FaultName = Annotated[
    str, Parameter(help="Name from `pinchpoint lab faults`, several joined by +, none, random or any.")
]
SeverityName = Annotated[str, Parameter(help="mild, moderate or severe.")]
Onset = Annotated[str, Parameter(help="Time after the start at which the fault sets in.")]
GpuName = Annotated[str | None, Parameter(help="Name of a GPU that the lab knows; A100 where left out.")]
ModelName = Annotated[str | None, Parameter(help="Name of a model that the lab knows; llama-3-8b where left out.")]
DialectName = Annotated[
    str | None,
    Parameter(help="Which engine to look like: vllm, sglang, tgi or llama.cpp; default: that of --like, else vllm."),
]
Like = Annotated[
    str | None, Parameter(help="Name of a measured deployment whose constants to take; a wrong one lists them all.")
]
Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", negative="", help="KEY=VALUE for any parameter of the healthy service, such as max_num_seqs=64."
    ),
]
TruthFile = Annotated[Path | None, Parameter(group=OUTPUT, help="Write here, as JSON, what is really wrong.")]

lab_app = App(name="lab", help="A simulated LLM service with known bottlenecks, to try and to test Pinchpoint on.")


@lab_app.command
def serve(
    *,
    fault: FaultName = "none",
    severity: SeverityName = "moderate",
    onset: Onset = "0s",
    gpu: GpuName = None,
    model: ModelName = None,
    dialect: DialectName = None,
    like: Like = None,
    set_: Settings = (),
    port: Annotated[int, Parameter(help="0 takes a free port.")] = 8000,
    dcgm_port: Annotated[int | None, Parameter(help="Serve a GPU exporter's page here; 0 takes a free port.")] = None,
    npu_port: Annotated[int | None, Parameter(help="Serve an Ascend exporter's page here.")] = None,
    node_port: Annotated[int | None, Parameter(help="Serve a node exporter's page here.")] = None,
    profile_dir: Annotated[
        Path | None, Parameter(help="Take /start_profile and /stop_profile, and write traces into this directory.")
    ] = None,
    host: str = "127.0.0.1",
    seed: int = 0,
    truth_file: TruthFile = None,
    as_json: Json = False,
) -> int:
    """Run the simulated service over HTTP until Ctrl-C."""
    import msgspec

    from pinchpoint.lab.server import Ports, Serving, run_server

    scenario = _scenario(fault, severity, onset, gpu, model, dialect, like, set_, seed)
    serving = Serving(
        host=host,
        port=port,
        dcgm_port=dcgm_port,
        npu_port=npu_port,
        node_port=node_port,
        profile_dir=profile_dir,
    )

    def ready(ports: Ports) -> None:
        urls = {
            name: f"http://{host}:{bound}" for name, bound in msgspec.to_builtins(ports).items() if bound is not None
        }
        url = urls.pop("port")
        exporters = {f"{name.removesuffix('_port')}_url": f"{found}/metrics" for name, found in urls.items()}
        if as_json:
            print_json({"schema": "pinchpoint.lab-serve/1", "url": url, **exporters})
        else:
            base, gpus = scenario.before, scenario.before.tensor_parallel * scenario.before.pipeline_parallel
            sys.stdout.write(f"the lab serves at {url} (Ctrl-C ends it)\n")
            sys.stdout.write(f"{base.model} in {base.weight_precision} on {gpus} x {base.gpu}, as {base.dialect}\n")
            for name, found in exporters.items():
                sys.stdout.write(f"{name.removesuffix('_url')} metrics at {found}\n")
        sys.stdout.flush()

    lateness = run_server(scenario, serving, truth_file=truth_file, ready=ready)
    if not as_json and lateness.p99_s is not None and lateness.max_s is not None:
        sys.stderr.write(
            f"the lab wrote {lateness.events} events, late by {lateness.p99_s * 1e3:.2f} ms (p99), "
            f"{lateness.max_s * 1e3:.2f} ms at most\n"
        )
    return EXIT_OK


@lab_app.command
def synth(
    *,
    fault: FaultName = "none",
    severity: SeverityName = "moderate",
    onset: Onset = "0s",
    gpu: GpuName = None,
    model: ModelName = None,
    dialect: DialectName = None,
    like: Like = None,
    set_: Settings = (),
    degrade: Annotated[
        tuple[str, ...],
        Parameter(negative="", help="What is wrong with the telemetry, such as no-gpu or scrape-loss. Repeatable."),
    ] = (),
    out: Annotated[Path, Parameter(group=OUTPUT, help="Run directory to write; must not exist.")],
    slo: Slos = (),
    workload: Annotated[
        str | None, Parameter(help="Name of a workload; default: the one that shows the fault.")
    ] = None,
    budget: Annotated[str, Parameter(help="Virtual time for the whole search.")] = "3m",
    max_rate: Annotated[str | None, Parameter(help="Never offer more than this many requests/s.")] = None,
    plan: Annotated[Path | None, Parameter(help="Plan file (TOML); flags fill what it leaves out.")] = None,
    truth_file: TruthFile = None,
    seed: int = 1,
    as_json: Json = False,
) -> int:
    """Make a complete run directory in virtual time: the same search against the simulated service, in seconds."""
    from pinchpoint.clock import NS_PER_S
    from pinchpoint.conclude import judge_directory, write_answer
    from pinchpoint.lab.scenario import write_truth
    from pinchpoint.plan import build_plan, read_plan
    from pinchpoint.synth import run_virtual
    from pinchpoint.units import parse_duration_s, parse_rate_rps

    scenario = _scenario(fault, severity, onset, gpu, model, dialect, like, set_, seed)
    values: dict[str, Any] = {
        "url": "http://lab.invalid",
        "seed": seed,
        "slos": slo or None,
        "workload": {"preset": workload or scenario.workload},
        "budget_s": parse_duration_s(budget),
        "max_rate_rps": parse_rate_rps(max_rate) if max_rate else None,
    }
    if plan is None:
        asked = build_plan({key: value for key, value in values.items() if value is not None})
    else:
        asked = read_plan(plan, values)
    if truth_file is not None and truth_file.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{truth_file} lies inside of the run directory, where whoever judges the run would find it")
    try:
        with _sigterm_interrupts():
            path = run_virtual(asked, scenario, out, degrade=degrade)
    except KeyboardInterrupt:
        if not (out / "run.json").exists():
            complain("interrupted before anything was written")
        else:
            complain(
                f"interrupted; what {out} holds until then can be read with `pinchpoint report {out}`. "
                "A run in virtual time does not go on: delete the directory or give another --out to make it anew"
            )
        return EXIT_INTERRUPTED
    if truth_file is not None:
        write_truth(truth_file, scenario)
    view, verdict = judge_directory(path)
    if scenario.onset_s > (lasted_s := max((stage.drained_ns for stage in view.stages), default=0) / NS_PER_S):
        complain(f"the fault was to set in at {scenario.onset_s:g} s, after the run's end at {lasted_s:.0f} s")
    html_path = write_answer(view, verdict)
    print_verdict(view, verdict, as_json, {"report": html_path, "run": path})
    return EXIT_OK


@lab_app.command
def faults(
    *names: str,
    check: Annotated[
        bool, Parameter(negative="", help="Measure in paired runs whether they move what they should.")
    ] = False,
    severity: Annotated[tuple[str, ...], Parameter(help="mild, moderate or severe, of --check.")] = ("moderate",),
    pairs: Annotated[int, Parameter(help="Paired runs for each --check.")] = 5,
    seed: int = 1,
    as_json: Json = False,
) -> int:
    """List what the lab can break: the physics, the knobs and what should be seen. With names, all about these."""
    import msgspec
    from rich.console import Console

    from pinchpoint.lab.faults import FAULTS, HEALTHY, SEVERITIES, choose_fault
    from pinchpoint.report.faults_text import fault_list, fault_page, impact_table

    chosen = [choose_fault(name, seed) for name in names] or list(FAULTS.values())
    console = Console()
    if not check:
        if as_json:
            print_json({"schema": "pinchpoint.faults/1", "faults": msgspec.to_builtins(chosen)})
        elif names:
            for fault in chosen:
                console.print(fault_page(fault, SEVERITIES))
        else:
            console.print(fault_list(chosen))
        return EXIT_OK
    if pairs < 2:
        raise UsageError(f"--pairs is {pairs}; a spread needs at least 2")
    from pinchpoint.impact import Impact, measure_impact
    from pinchpoint.lab.scenario import choose_scenario

    scenarios = [
        choose_scenario(fault.name, level, seed=seed)  # pyright: ignore[reportArgumentType]
        for fault in chosen
        if fault.name != HEALTHY
        for level in severity
    ]
    impacts: list[Impact] = []
    for scenario in scenarios:
        impacts.append(found := measure_impact(scenario, pairs=pairs))
        told = (
            f"{found.change_text} of {found.indicator}, {found.sigmas:.1f} sigma" if found.has_impact else "no impact"
        )
        sys.stderr.write(f"{len(impacts)} of {len(scenarios)}: {found.fault} {found.severity}: {told}\n")
        sys.stderr.flush()
    if as_json:
        told = [{**msgspec.to_builtins(one), "has_impact": one.has_impact} for one in impacts]
        print_json({"schema": "pinchpoint.impact/1", "impacts": told})
    else:
        console.print(impact_table(impacts))
        none = sum(not one.has_impact for one in impacts)
        console.print(f"\n{len(impacts) - none} of {len(impacts)} have an impact: more than 10 % and 3 sigma")
    return EXIT_OK


@lab_app.command
def bench(
    *,
    out: Annotated[Path, Parameter(group=OUTPUT, help="Directory of the data set; one that was interrupted goes on.")],
    size: Annotated[str, Parameter(help="small or full.")] = "small",
    seed: int = 1,
    workers: Annotated[int | None, Parameter(help="Processes; default: one per core.")] = None,
    as_json: Json = False,
) -> int:
    """Make a labelled data set in virtual time: faults, healthy and overloaded services, telemetry in all states."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from pinchpoint.labbench import SIZES, make_bench
    from pinchpoint.labbench.readme import summary

    if workers is not None and workers < 1:
        raise UsageError(f"--workers is {workers}; at least one process must make the runs")
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}; choose one of {', '.join(SIZES)}")
    screen = Console(stderr=True)
    bar = Progress(
        TextColumn("runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    with bar:
        task = bar.add_task("runs")
        tenths_told = -1

        def on_made(done: int, total: int) -> None:
            """A bar where there is a terminal, else a line for every tenth."""
            nonlocal tenths_told
            bar.update(task, completed=done, total=total)
            tenths = 10 * done // max(1, total)
            if not screen.is_terminal and tenths > tenths_told:
                tenths_told = tenths
                sys.stderr.write(f"{done} of {total} runs\n")
                sys.stderr.flush()

        with _sigterm_interrupts():
            made = make_bench(out, SIZES[size], seed, workers=workers, on_made=on_made)
    if not made.complete:
        complain(f"interrupted with {len(made.labels)} runs made; the same command goes on from there")
        return EXIT_INTERRUPTED
    if as_json:
        told = {key: value for key, value in made.manifest.items() if key != "scenarios"}
        print_json({**told, "path": str(out), "runs": len(made.labels), "bytes": made.bytes, "took_s": made.took_s})
        return EXIT_OK
    console = Console()
    for table in summary(made.manifest, made.labels):
        console.print(table)
    console.print(
        f"{len(made.labels)} runs, {made.bytes / 1e6:.0f} MB, {made.took_s:.0f} s; "
        f"SHA-256 of everything {made.manifest['sha256']}",
        highlight=False,
    )
    console.print(f"{out / 'README.md'} says what is what; labels are in {out / 'labels.jsonl'}", highlight=False)
    return EXIT_OK


@lab_app.command
def demo(
    *,
    fault: Annotated[str, Parameter(help="What to break; random keeps it a surprise.")] = "random",
    budget: Annotated[str, Parameter(help="Time for the search.")] = "80s",
    seed: int | None = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT, help="Run directory to write; must not exist.")] = None,
    as_json: Json = False,
) -> int:
    """Start the lab with one hidden bottleneck, run the main job against it, then compare with the truth."""
    from pinchpoint.demo import run_demo

    return run_demo(fault=fault, budget=budget, seed=seed, out=out, as_json=as_json)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends what runs here as Ctrl-C does, so that what there is by then is kept in order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    def interrupt(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice; the second must not cut off the end
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _scenario(
    fault: str,
    severity: str,
    onset: str,
    gpu: str | None,
    model: str | None,
    dialect: str | None,
    like: str | None,
    settings: tuple[str, ...],
    seed: int,
) -> "Scenario":
    """What the flags that serve and synth share describe."""
    from pinchpoint.lab.scenario import choose_scenario
    from pinchpoint.lab.services import healthy_service
    from pinchpoint.lab.settings import parse_settings
    from pinchpoint.units import parse_duration_s

    base = healthy_service(gpu, model, dialect, like=like, settings=parse_settings(settings))
    onset_s = parse_duration_s(onset) if onset not in ("0", "0s") else 0.0
    return choose_scenario(fault, severity, onset_s, base, seed)  # pyright: ignore[reportArgumentType]
