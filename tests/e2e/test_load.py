"""`pinchpoint load` as a user runs it: real processes, real sockets, real files."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.support.scripted_server import Piece, ScriptedServer, stream

PINCHPOINT = (sys.executable, "-m", "pinchpoint")
LIMIT_S = 60.0
KEY = "sk-very-secret-0123456789"
GATEWAY = "Basic gateway-password-987"
LENGTHS = ("--input-tokens", 8, "--output-tokens", 5)
METRICS = ("ttft_s", "ttft_from_send_s", "tpot_s", "itl_s", "e2e_s")
NUMBERS = {"mean", "p50", "p90", "p95", "p99", "p999", "n", "intervals"}


@pytest.fixture(scope="module")
def null_url() -> Iterator[str]:
    """First token after 20 ms, then one each 5 ms."""
    command = [sys.executable, "-m", "pinchpoint.load.null_server", "--first-ms", "20", "--gap-ms", "5"]
    process = subprocess.Popen(
        [*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.stdin.close()
    process.wait(10)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a user has calibrated on this host must not decide what is tested."""
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture
def load(cache: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PINCHPOINT, "load", *map(str, words), "--out", str(tmp_path / "run")],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={**os.environ, **cache, **(env or {})},
            check=False,
        )

    return run


@contextlib.contextmanager
def started(cache: dict[str, str], out: Path, *words: object, env: dict[str, str] | None = None) -> Iterator[Any]:
    """A load that goes on, in a process group of its own."""
    process = subprocess.Popen(
        [*PINCHPOINT, "load", *map(str, words), "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **cache, **(env or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S / 2
    while not done():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.02)


def workers_of(out: Path) -> dict[int, int]:
    """Load process -> its pid, once they have said hello."""
    events = out / "events.jsonl"
    whole, _, _ = events.read_text().rpartition("\n") if events.exists() else ("", "", "")
    told = [json.loads(line) for line in whole.splitlines()]
    return {event["worker"]: event["pid"] for event in told if event["kind"] == "worker"}


def records_of(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "records.parquet").to_pylist()


def page(status: str, body: bytes = b"{}") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def service(answer: Callable[[bytes], Iterable[Piece]]) -> Iterator[ScriptedServer]:
    """Answers completions with `answer(body)`, and has no other page."""

    def script(number: int, body: bytes) -> Iterable[Piece]:
        return answer(body) if server.requests[number].startswith(b"POST ") else [page("404 Not Found")]

    with ScriptedServer(script) as server:
        yield server


# -- what is told --------------------------------------------------------------------------------------------------


def test_an_open_loop_of_so_many_requests_tells_all_its_numbers(null_url: str, load: Any, tmp_path: Path) -> None:
    done = load(null_url, "--rate", 30, "--requests", 40, *LENGTHS, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == "pinchpoint.load/1"
    assert told["validity"] in ("VALID", "SUSPECT")
    assert (told["offered"], told["issued"], told["completed"], told["errors"]) == (40, 40, 40, {})
    assert (told["attempts"], told["dropped"], told["lost"]) == (40, 0, 0)
    assert told["achieved_rate_rps"] > 0
    for name in METRICS:
        metric = told["metrics"][name]
        assert metric.keys() >= NUMBERS, name
        assert metric["n"] >= 40 and metric["mean"] >= 0
        assert metric["intervals"].keys() == {"p50", "p90", "p95", "p99", "p999"}
        if (interval := metric["intervals"]["p50"]) is not None:  # none when a busy host ties the latencies together
            assert metric["min"] <= interval[0] <= metric["p50"] <= interval[1] <= metric["max"]
    assert told["metrics"]["itl_s"]["intervals"]["p50"] is not None
    assert told["metrics"]["itl_s"]["n"] == 40 * 4
    assert 0.02 <= told["metrics"]["ttft_from_send_s"]["p50"] <= told["metrics"]["ttft_s"]["p50"]
    records = records_of(tmp_path / "run")
    assert sorted(record["request_id"] for record in records) == list(range(40))
    assert {record["output_tokens"] for record in records} == {5}
    assert {record["timestamp_source"] for record in records} == {"kernel"}


def test_a_closed_loop_of_so_many_requests_never_has_more_than_its_users(
    null_url: str, load: Any, tmp_path: Path
) -> None:
    done = load(null_url, "--concurrency", 3, "--requests", 40, *LENGTHS, "--workers", 2, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["offered"], told["completed"], told["errors"]) == (40, 40, {})
    records = records_of(tmp_path / "run")
    changes = [(r["scheduled_ns"], 1) for r in records] + [(r["end_ns"], -1) for r in records]
    assert 2 <= max(itertools.accumulate(change for _, change in sorted(changes))) <= 3
    assert {record["worker"] for record in records} == {0, 1}


def test_a_sparse_load_sends_its_last_request_too(null_url: str, load: Any) -> None:
    """Nothing is in flight for a while before the last request is due: the load is not over then."""
    done = load(null_url, "--rate", 2, "--arrivals", "constant", "--requests", 4, *LENGTHS, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["offered"], told["completed"]) == (0, 4, 4)


def test_a_person_reads_one_screen(null_url: str, load: Any) -> None:
    done = load(null_url, "--rate", 30, "--requests", 20, *LENGTHS)
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert "requests" in done.stdout and "nan" not in done.stdout.lower()


# -- services that have less ---------------------------------------------------------------------------------------


def test_a_service_without_any_other_page_and_without_usage_can_be_loaded(load: Any, tmp_path: Path) -> None:
    def answer(body: bytes) -> Iterable[Piece]:
        assert b"stream_options" not in body
        return [piece for piece in stream(3) if not (isinstance(piece, bytes) and b"completion_tokens" in piece)]

    with service(answer) as server:
        done = load(server.url, "--rate", 30, "--requests", 20, "--no-usage", *LENGTHS, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["completed"], told["metrics"]["ttft_s"]["n"]) == (20, 20)
    records = records_of(tmp_path / "run")
    assert {(r["token_source"], r["output_tokens"]) for r in records} == {("events", 3)}


def test_answers_that_are_not_streamed_have_no_first_token(null_url: str, load: Any, tmp_path: Path) -> None:
    done = load(null_url, "--rate", 30, "--requests", 20, "--no-stream", *LENGTHS, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["completed"] == 20
    assert told["metrics"]["e2e_s"]["n"] == 20 and told["metrics"]["e2e_s"]["p50"] >= 0.02
    ttft = told["metrics"].get("ttft_s")
    assert ttft is None or (ttft["n"] == 0 and ttft["mean"] is None)
    assert {record["first_token_ns"] for record in records_of(tmp_path / "run")} == {None}


# -- plans ---------------------------------------------------------------------------------------------------------


def test_a_plan_of_many_kinds_of_stages_is_carried_out_stage_by_stage(null_url: str, load: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": i * 50, "input_length": 8, "output_length": 1 + i % 4} for i in range(10)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = tmp_path / "plan.toml"
    plan.write_text(f"""
    [workload]
    input_tokens = 8
    output_tokens = 4
    [[stages]]
    kind = "ramp"
    from = 5
    to = 40
    duration = "800ms"
    [[stages]]
    kind = "spike"
    base = 5
    peak = 50
    at = "200ms"
    for = "200ms"
    duration = "600ms"
    [[stages]]
    kind = "sessions"
    rate = 8
    sessions = 5
    turns = 3
    think = "20ms"
    [[stages]]
    kind = "replay"
    file = "{trace}"
    unit = "ms"
    input = "input_length"
    output = "output_length"
    [[stages]]
    kind = "closed"
    concurrency = 1
    to_concurrency = 4
    duration = "600ms"
    """)
    done = load(null_url, "--plan", plan, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["errors"] == {} and told["offered"] == told["completed"]
    assert len(told["stages"]) == 5
    records = records_of(tmp_path / "run")
    by_stage = [[r for r in records if r["stage"] == stage] for stage in range(5)]
    assert all(by_stage)
    for before, after in itertools.pairwise(by_stage):
        assert max(r["scheduled_ns"] for r in before) <= min(r["scheduled_ns"] for r in after)
    assert len(by_stage[2]) == 15
    assert [r["output_tokens"] for r in sorted(by_stage[3], key=lambda r: r["scheduled_ns"])] == [
        row["output_length"] for row in rows
    ]
    assert (tmp_path / "run" / "plan.toml").read_text() == plan.read_text()


# -- exit codes ----------------------------------------------------------------------------------------------------


def one_sentence(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pinchpoint: ") and says in last, last
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("http://127.0.0.1:1",), "--rate"),
        (("--rate", "2"), "URL"),
        (("http://127.0.0.1:1", "--rate", "2", "--concurrency", "2"), "one of the two"),
        (("http://[::1", "--rate", "2"), "cannot be read"),
        (("http://127.0.0.1:1", "--rate", "2", "--api", "v1/chat completions"), "is no target"),
        (("http://127.0.0.1:1", "--rate", "2", "--header", "Host: x"), "Host"),
        (("http://127.0.0.1:1", "--rate", "2", "--header", "X-Api-Key: abc"), "env:"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_sent(
    words: tuple[str, ...], says: str, load: Any, tmp_path: Path
) -> None:
    one_sentence(load(*words), 2, says)
    assert not (tmp_path / "run").exists()


def test_a_service_that_is_not_there_is_unreachable(load: Any) -> None:
    with ScriptedServer(lambda _, __: stream(1)) as server:
        closed = server.url
    done = load(closed, "--rate", 30, "--requests", 10, *LENGTHS, "--json")
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert (told["completed"], told["errors"]) == (0, {"transport_error:connect": 10})


def test_a_service_that_answers_nothing_well_is_no_success(load: Any) -> None:
    with service(lambda body: [page("500 Oops", b'{"error":{"message":"out of memory"}}')]) as server:
        done = load(server.url, "--rate", 30, "--requests", 10, *LENGTHS, "--json")
    assert done.returncode == 3, done.stderr
    told = json.loads(done.stdout)
    assert (told["completed"], told["errors"]) == (0, {"http_error": 10})
    assert "out of memory" in json.dumps(told["error_samples"])


# -- interruptions -------------------------------------------------------------------------------------------------


def test_ctrl_c_gives_the_answer_so_far(null_url: str, cache: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(cache, out, null_url, "--rate", 30, "--duration", "60s", *LENGTHS) as process:
        wait_until(lambda: bool(workers_of(out)))
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in stderr
    told = json.loads(stdout)
    assert told["completed"] >= 10
    manifest = json.loads((out / "run.json").read_text())
    assert (manifest["status"], manifest["abort_reason"]) == ("aborted", "interrupted by the user")
    assert len(records_of(out)) >= told["completed"]
    assert not (out / "parts").exists()


def test_a_terminated_controller_counts_nothing_as_lost(null_url: str, cache: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(cache, out, null_url, "--rate", 200, "--duration", "60s", *LENGTHS) as process:
        wait_until(lambda: bool(workers_of(out)))
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGTERM)
        stdout, _ = process.communicate(timeout=LIMIT_S)
    told = json.loads(stdout)
    assert told["completed"] > 50
    assert told["lost"] == 0


def test_a_load_whose_controller_was_killed_is_measured_from_what_it_left(
    null_url: str, cache: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with started(cache, out, null_url, "--rate", 60, "--duration", "60s", *LENGTHS, "--workers", 2) as process:
        wait_until(lambda: len(workers_of(out)) == 2)
        time.sleep(1.5)
        workers = workers_of(out)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers.values()))
    done = subprocess.run(
        [*PINCHPOINT, "measure", str(out), "--json"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    told = json.loads(done.stdout)
    assert told["run"]["status"] == "aborted"
    assert told["completed"] >= 40
    assert told["lost"] <= 2  # due in the instant of the kill
    assert told["stages"][0]["duration_s"] < 30


def test_a_killed_load_process_is_told_and_the_others_go_on(
    null_url: str, cache: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = (null_url, "--rate", 40, "--duration", "3s", *LENGTHS, "--workers", 2)
    with started(cache, out, *words) as process:
        wait_until(lambda: len(workers_of(out)) == 2)
        time.sleep(1.2)
        os.kill(workers_of(out)[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert "Traceback" not in stderr
    told = json.loads(stdout)
    assert told["validity"] == "INVALID"
    assert "died" in json.dumps(told["validity_reasons"]) + json.dumps(told["notes"])
    assert told["lost"] > 0 and told["completed"] > 0
    later = [r for r in records_of(out) if r["worker"] == 1]
    assert max(r["scheduled_ns"] for r in later) - min(r["scheduled_ns"] for r in later) > 1.5e9


def test_a_stop_of_the_whole_client_shows_from_the_schedule_and_not_from_the_send(
    null_url: str, cache: dict[str, str], tmp_path: Path
) -> None:
    """The requests that were due meanwhile leave late, all of them; what the service took is known beside it."""
    out, stop_s = tmp_path / "run", 1.0
    words = (null_url, "--rate", 20, "--duration", "3s", "--arrivals", "constant", *LENGTHS, "--workers", 1)
    with started(cache, out, *words) as process:
        wait_until(lambda: bool(workers_of(out)))
        time.sleep(1.0)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(stop_s)
        os.killpg(process.pid, signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    told = json.loads(stdout)
    assert told["validity"] != "VALID", stderr
    assert (told["offered"], told["completed"]) == (60, 60)
    records = sorted(records_of(out), key=lambda record: record["scheduled_ns"])
    gaps = {after["scheduled_ns"] - before["scheduled_ns"] for before, after in itertools.pairwise(records)}
    assert gaps == {50_000_000}, "the schedule is kept through the stop"
    ttft, from_send = told["metrics"]["ttft_s"], told["metrics"]["ttft_from_send_s"]
    assert ttft["max"] > 0.8 * stop_s > 0.6 * stop_s > from_send["max"]


# -- secrets -------------------------------------------------------------------------------------------------------


def test_secrets_reach_the_service_and_neither_arguments_nor_files(cache: dict[str, str], tmp_path: Path) -> None:
    """Even when the service repeats them in its errors."""
    out, count = tmp_path / "run", itertools.count()

    def answer(body: bytes) -> Iterable[Piece]:
        if next(count) % 3 == 0:
            return [page("500 Oops", json.dumps({"error": {"message": f"bad {KEY} and {GATEWAY}"}}).encode())]
        return stream(2)

    secrets = {"MY_KEY": KEY, "GATEWAY": GATEWAY}
    headers = ("--header", "X-Gateway-Token: env:GATEWAY", "--api-key-env", "MY_KEY")
    with service(answer) as server:
        words = (server.url, "--rate", 20, "--duration", "2s", *headers, *LENGTHS, "--workers", 2)
        with started(cache, out, *words, env=secrets) as process:
            wait_until(lambda: len(workers_of(out)) == 2)
            arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (process.pid, *workers_of(out).values())]
            stdout, stderr = process.communicate(timeout=LIMIT_S)
        posts = [text for text in server.requests if text.startswith(b"POST")]
    assert posts and all(f"Authorization: Bearer {KEY}".encode() in text for text in posts)
    assert all(f"X-Gateway-Token: {GATEWAY}".encode() in text for text in posts)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for secret in (KEY, GATEWAY):
        assert secret not in stdout + stderr
        assert not any(secret.encode() in text for text in arguments)
        assert [path.name for path in files if secret.encode() in path.read_bytes()] == []
    errors = [record["error"] for record in records_of(out) if record["error"]]
    assert errors and all("[redacted]" in error for error in errors)
