"""Other load-testing clients on the same server with known truth, in one table with Pinchpoint and the C client.

    python bench/peers.py --venv DIR [--venv DIR ...] [--streams 50 400] [--only NAME ...] [--json FILE]

A peer takes part when its program is in one of the virtual environments; none is needed, and the table says how to
install the others. Each runs its own closed loop of `--streams` users, three requests each of 100 tokens in and 200
out, against a fresh server. "true" is the server's own record of that very run; the columns after it are what the
client reports, "-" where it reports no such number.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients import Load, Run, c_client, measure, pinchpoint
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scenarios import ITL_US, ROUNDS, TOKENS, TTFT_US
from server import BenchError, Server, quantile

INPUT_TOKENS = 100
METRICS = ("ttft_mean", "ttft_p99", "tpot_mean", "e2e_mean", "e2e_p99")
TIMEOUT_S = 300.0

Reported = dict[str, float | None]
"""The METRICS in milliseconds."""


@dataclass(frozen=True)
class Job:
    """One run of one peer. All files are in `directory`, which is also its working directory."""

    program: Path
    url: str
    streams: int
    requests: int
    directory: Path

    @property
    def tokenizer(self) -> Path:
        return self.directory / "tokenizer"


@dataclass(frozen=True)
class Peer:
    program: str
    """Name of its command in the bin directory of a virtual environment."""
    install: str
    words: Callable[[Job], list[Any]]
    """Its command line after the program; writes the files it needs."""
    read: Callable[[Job], Reported]
    """What it reported. KeyError, IndexError and OSError: the file or the number is not where this version puts it."""


def _first(directory: Path, pattern: str) -> Any:
    found = sorted(directory.rglob(pattern))
    if not found:
        raise FileNotFoundError(f"{pattern} in {directory}")
    return json.loads(found[0].read_text())


def _aiperf(job: Job) -> list[Any]:
    return [
        *("profile", "--model", "m", "--url", job.url, "--endpoint-type", "chat", "--streaming"),
        *("--concurrency", job.streams, "--request-count", job.requests, "--tokenizer", job.tokenizer),
        *("--ui", "none", "--isl", INPUT_TOKENS, "--output-artifact-dir", job.directory / "art"),
    ]


def _read_aiperf(job: Job) -> Reported:
    said = _first(job.directory / "art", "profile_export_aiperf.json")
    ttft, tpot, e2e = said["time_to_first_token"], said["inter_token_latency"], said["request_latency"]
    return dict(zip(METRICS, (ttft["avg"], ttft["p99"], tpot["avg"], e2e["avg"], e2e["p99"]), strict=True))


def _guidellm(job: Job) -> list[Any]:
    return [
        *("run", "--backend", f"kind=openai_http,target={job.url},model=m"),
        *("--profile", f"kind=concurrent,streams={job.streams}"),
        *("--constraint", f"kind=max_requests,count={job.requests}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={TOKENS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={job.tokenizer}"),
        *("--disable-console-interactive", "--output", f"kind=json,path={job.directory / 'guidellm.json'}"),
    ]


def _read_guidellm(job: Job) -> Reported:
    metrics = json.loads((job.directory / "guidellm.json").read_text())["benchmarks"][0]["metrics"]
    ttft, tpot = metrics["time_to_first_token_ms"]["successful"], metrics["inter_token_latency_ms"]["successful"]
    e2e = metrics["request_latency"]["successful"]
    return {
        "ttft_mean": ttft["mean"],
        "ttft_p99": ttft["percentiles"]["p99"],
        "tpot_mean": tpot["mean"],
        "e2e_mean": e2e["mean"] * 1e3,
        "e2e_p99": e2e["percentiles"]["p99"] * 1e3,
    }


def _evalscope(job: Job) -> list[Any]:
    prompts = job.directory / "prompts.txt"
    prompts.write_text((" the" * INPUT_TOKENS + "\n") * job.requests)
    return [
        *("perf", "--model", "m", "--url", f"{job.url}/v1/chat/completions", "--api", "openai"),
        *("--parallel", job.streams, "--number", job.requests, "--dataset", "line_by_line"),
        *("--dataset-path", prompts, "--tokenizer-path", job.tokenizer, "--no-test-connection"),
        *("--max-tokens", TOKENS, "--min-tokens", TOKENS, "--stream"),
        *("--outputs-dir", job.directory / "out", "--no-timestamp"),
    ]


def _read_evalscope(job: Job) -> Reported:
    mean = _first(job.directory / "out", "benchmark_summary.json")
    rows = {row["Percentiles"]: row for row in _first(job.directory / "out", "benchmark_percentile.json")}
    return {
        "ttft_mean": mean["Avg TTFT (ms)"],
        "ttft_p99": rows["99%"]["TTFT (ms)"],
        "tpot_mean": mean["Avg TPOT (ms)"],
        "e2e_mean": mean["Avg Latency (s)"] * 1e3,
        "e2e_p99": rows["99%"]["Latency (s)"] * 1e3,
    }


def _vllm(job: Job) -> list[Any]:
    return [
        *("bench", "serve", "--backend", "openai-chat", "--base-url", job.url, "--endpoint", "/v1/chat/completions"),
        *("--model", "m", "--tokenizer", job.tokenizer, "--dataset-name", "random"),
        *("--random-input-len", INPUT_TOKENS, "--random-output-len", TOKENS, "--num-prompts", job.requests),
        *("--max-concurrency", job.streams, "--save-result", "--result-dir", job.directory),
        *("--result-filename", "vllm.json", "--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--metric-percentiles", "50,99", "--ignore-eos", "--ready-check-timeout-sec", 0),
    ]


def _read_vllm(job: Job) -> Reported:
    said = json.loads((job.directory / "vllm.json").read_text())
    names = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "p99_e2el_ms")
    return {metric: said[name] for metric, name in zip(METRICS, names, strict=True)}


INFERENCE_PERF_CONFIG = """\
api: {{type: completion, streaming: true}}
server: {{type: vllm, model_name: m, base_url: "{url}", ignore_eos: true}}
tokenizer: {{pretrained_model_name_or_path: "{tokenizer}"}}
data:
  type: random
  input_distribution: {{min: {i}, max: {i}, mean: {i}, std_dev: 0, total_count: {n}}}
  output_distribution: {{min: {o}, max: {o}, mean: {o}, std_dev: 0, total_count: {n}}}
load:
  type: concurrent
  num_workers: 2
  worker_max_concurrency: 1000
  stages: [{{num_requests: {n}, concurrency_level: {c}}}]
storage: {{local_storage: {{path: "{out}"}}}}
"""


def _inference_perf(job: Job) -> list[Any]:
    config = job.directory / "config.yml"
    config.write_text(
        INFERENCE_PERF_CONFIG.format(
            url=job.url,
            tokenizer=job.tokenizer,
            i=INPUT_TOKENS,
            o=TOKENS,
            n=job.requests,
            c=job.streams,
            out=job.directory / "out",
        )
    )
    return ["-c", config]


def _read_inference_perf(job: Job) -> Reported:
    latency = _first(job.directory / "out", "summary_lifecycle_metrics.json")["successes"]["latency"]
    ttft, tpot, e2e = latency["time_to_first_token"], latency["time_per_output_token"], latency["request_latency"]
    values_s = (ttft["mean"], ttft["p99"], tpot["mean"], e2e["mean"], e2e["p99"])
    return {metric: value_s * 1e3 for metric, value_s in zip(METRICS, values_s, strict=True)}


PEERS = {
    "aiperf": Peer("aiperf", "pip install aiperf", _aiperf, _read_aiperf),
    "guidellm": Peer("guidellm", "pip install guidellm", _guidellm, _read_guidellm),
    "evalscope": Peer("evalscope", "pip install 'evalscope[perf]'", _evalscope, _read_evalscope),
    "vllm": Peer("vllm", "pip install vllm", _vllm, _read_vllm),
    "inference-perf": Peer("inference-perf", "pip install inference-perf", _inference_perf, _read_inference_perf),
}


def truth_of(run: Run) -> Reported:
    truth = run.truth
    values_s = (
        truth.ttft_s.mean(),
        quantile(truth.ttft_s, 0.99),
        truth.tpot_s.mean(),
        truth.e2e_s.mean(),
        quantile(truth.e2e_s, 0.99),
    )
    return {metric: float(value_s) * 1e3 for metric, value_s in zip(METRICS, values_s, strict=True)}


@dataclass(frozen=True)
class Line:
    """One client at one number of streams; run is None when it did not run, and note says why."""

    name: str
    streams: int
    run: Run | None
    reported: Reported
    note: str = ""


def run_peer(name: str, program: Path, streams: int) -> Line:
    peer = PEERS[name]
    with tempfile.TemporaryDirectory(prefix="pinchpoint-bench-") as temporary:
        directory = Path(temporary)
        jobs: list[Job] = []
        maker = [program.with_name("python"), Path(__file__).with_name("make_tokenizer.py"), directory / "tokenizer"]
        made = subprocess.run(maker, capture_output=True, text=True)
        if made.returncode:
            return Line(name, streams, None, {}, f"cannot make its tokenizer: {made.stderr.strip()[-200:]}")

        def command(server: Server) -> list[str]:
            jobs.append(Job(program, server.url, streams, streams * ROUNDS, directory))
            return [str(word) for word in (program, *peer.words(jobs[0]))]

        options: dict[str, Any] = {"tokens": TOKENS, "ttft_us": TTFT_US, "itl_us": ITL_US, "content": "word"}
        try:
            run = measure(command, cwd=directory, timeout_s=TIMEOUT_S, **options)
        except BenchError as error:
            return Line(name, streams, None, {}, str(error))
        try:
            return Line(name, streams, run, peer.read(jobs[0]))
        except (KeyError, IndexError, TypeError, OSError, ValueError) as error:
            return Line(name, streams, run, {}, f"report not understood: {type(error).__name__} {error}")


def run_reference(streams: int) -> Line:
    run = measure(c_client(streams, ROUNDS, TOKENS), tokens=TOKENS, ttft_us=TTFT_US, itl_us=ITL_US)
    said = run.answer
    return Line(
        "C client",
        streams,
        run,
        {"ttft_mean": said["ttft_mean_s"] * 1e3, "e2e_mean": said["e2e_mean_s"] * 1e3},
    )


def run_pinchpoint(streams: int) -> Line:
    load = Load(streams * ROUNDS, TOKENS, concurrency=streams)
    with tempfile.TemporaryDirectory(prefix="pinchpoint-bench-") as temporary:
        command = pinchpoint([sys.executable, "-m", "pinchpoint"], load, Path(temporary) / "run")
        options: dict[str, Any] = {"tokens": TOKENS, "ttft_us": TTFT_US, "itl_us": ITL_US, "content": "word"}
        try:
            run = measure(command, **options)
            metrics = run.answer["metrics"]
        except BenchError as error:
            return Line("Pinchpoint", streams, None, {}, str(error))
    parts = [("ttft_s", "mean"), ("ttft_s", "p99"), ("tpot_s", "mean"), ("e2e_s", "mean"), ("e2e_s", "p99")]
    values_s = [metrics[metric][statistic] for metric, statistic in parts]
    reported = {m: None if value_s is None else value_s * 1e3 for m, value_s in zip(METRICS, values_s, strict=True)}
    return Line("Pinchpoint", streams, run, reported, f"validity {run.answer.get('validity')}")


def numbers(line: Line) -> dict[str, Any]:
    """What the table shows, for the JSON file."""
    if line.run is None:
        return {"client": line.name, "streams": line.streams, "note": line.note}
    run = line.run
    return {
        "client": line.name,
        "streams": line.streams,
        "true_ms": truth_of(run),
        "reported_ms": line.reported,
        "in_flight_mean": run.truth.in_flight_mean(run.truth.begin_ns, run.truth.end_ns),
        "tokens": run.truth.token_total,
        "tokens_per_s": run.truth.tokens_per_s,
        "us_per_token": run.us_per_token,
        "cpu_total_s": float(run.usage.cpu_s[-1]),
        "startup_s": run.startup_s,
        "tail_s": run.tail_s,
        "processes": len(run.usage.peak_rss),
        "peak_rss_bytes": sum(run.usage.peak_rss.values()),
        "foreign_cores": run.foreign_cores,
        "note": line.note,
    }


def table(lines: list[Line]) -> Table:
    columns = (
        *("client", "streams", "in flight", "tokens/s", "TTFT mean / p99, true", "reported, ms"),
        *("TPOT", "E2E mean / p99, true", "reported, ms", "CPU us/token", "start s", "tail s", "RSS MB", "noise"),
    )
    made = Table(pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        made.add_column(name, overflow="fold")

    def pair(values: Reported, metric: str) -> str:
        shown = [values.get(f"{metric}_{statistic}") for statistic in ("mean", "p99")]
        return " / ".join("-" if value is None else f"{value:,.1f}" for value in shown)

    for line in lines:
        if line.run is None:
            continue
        told, true = numbers(line), truth_of(line.run)
        tpot = line.reported.get("tpot_mean")
        made.add_row(
            line.name,
            str(line.streams),
            f"{told['in_flight_mean']:.0f}",
            f"{told['tokens_per_s']:,.0f}",
            pair(true, "ttft"),
            pair(line.reported, "ttft"),
            "-" if tpot is None else f"{tpot:.2f}",
            pair(true, "e2e"),
            pair(line.reported, "e2e"),
            f"{told['us_per_token']:.1f}",
            f"{told['startup_s']:.1f}",
            f"{told['tail_s']:.1f}",
            f"{told['peak_rss_bytes'] / 1e6:.0f}",
            f"{told['foreign_cores']:.2f}",
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, action="append", default=[], help="a virtual environment; repeatable")
    parser.add_argument("--streams", type=int, nargs="*", default=[50, 400])
    parser.add_argument("--only", nargs="*", choices=list(PEERS), default=list(PEERS), help="of the peers")
    parser.add_argument("--json", type=Path, help="write every number here as well")
    arguments = parser.parse_args()
    programs: dict[str, Path] = {}
    for name in arguments.only:
        for program in (venv / "bin" / PEERS[name].program for venv in arguments.venv):
            if program.exists():
                programs[name] = program.absolute()
    screen, progress = Console(width=None if sys.stdout.isatty() else 180), Console(stderr=True)
    lines: list[Line] = []
    for streams in arguments.streams:
        jobs: list[Callable[[], Line]] = [lambda n=streams: run_reference(n), lambda n=streams: run_pinchpoint(n)]
        jobs += [lambda n=streams, p=program, name=name: run_peer(name, p, n) for name, program in programs.items()]
        for job in jobs:
            began_s = time.monotonic()
            lines.append(job())
            progress.print(f"{lines[-1].name}, {streams} streams: {time.monotonic() - began_s:.0f} s")
    screen.print(table(lines))
    for line in lines:
        if line.note:
            screen.print(f"{line.name}, {line.streams} streams: {escape(line.note)}")
    for name in arguments.only:
        if name not in programs:
            install = escape(PEERS[name].install)
            screen.print(f"{name} is not installed; to have it here: python -m venv V; V/bin/{install}")
    if arguments.json:
        arguments.json.write_text(json.dumps([numbers(line) for line in lines], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
