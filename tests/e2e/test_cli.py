"""Every verb, as a user runs it: real processes, real sockets, real files."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.scripted_server import ScriptedServer, stream

PINCHPOINT = (sys.executable, "-m", "pinchpoint")
LIMIT_S = 90.0
KEY = "sk-very-secret-0123456789"
SLOS = ("--slo", "ttft p95 < 500ms", "--slo", "tpot p95 < 60ms")
TWO_STAGES = """
[[stages]]
kind = "open"
rate = 3
duration = "3s"
[[stages]]
kind = "closed"
concurrency = 2
duration = "2s"
"""


def pinchpoint(
    *words: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PINCHPOINT, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        check=False,
    )


class Lab:
    def __init__(self, fault: str) -> None:
        command = [*PINCHPOINT, "lab", "serve", "--fault", fault, "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        document = ""
        for line in self.process.stdout:
            document += line
            if line.startswith("}"):
                break
        self.url = json.loads(document)["url"]

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("none") as running:
        yield running


@pytest.fixture(scope="module")
def run_path(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short real run that other verbs read."""
    directory = tmp_path_factory.mktemp("runs")
    (directory / "plan.toml").write_text(TWO_STAGES)
    out = directory / "run"
    done = pinchpoint("run", lab.url, "--plan", directory / "plan.toml", "--out", out, "--seed", 5, *SLOS)
    assert done.returncode == 0, done.stderr
    return out


def one_sentence(done: subprocess.CompletedProcess, code: int, *says: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pinchpoint: ")
    for word in says:
        assert word in last, last
    assert "Traceback" not in done.stderr + done.stdout


# -- the main job ------------------------------------------------------------------------------------------------------


def test_a_search_on_the_slot_capped_lab_names_the_cap_and_its_flag(tmp_path: Path) -> None:
    with Lab("slot-cap") as lab:
        done = pinchpoint("run", lab.url, "--budget", "45s", "--out", tmp_path / "run", "--seed", 3, "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["schema"] == "pinchpoint.verdict/1"
    top = verdict["findings"][0]
    assert top["rule"] == "SEQ001"
    assert any("--max-num-seqs" in (remedy["flag"] or "") for remedy in top["remedies"])
    assert verdict["capacity"]["upper_rps"] is not None
    assert verdict["slos_derived"] is True
    assert (tmp_path / "run" / "report.html").stat().st_size > 50_000
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_a_healthy_lab_below_its_limit_has_no_bottleneck(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = pinchpoint("run", lab.url, "--budget", "35s", "--max-rate", "3", "--out", out, *SLOS)
    assert done.returncode == 0, done.stderr
    assert "No bottleneck" in done.stdout
    assert "BREAKS FIRST" not in done.stdout


def test_the_run_directory_is_whole_and_names_no_fault(run_path: Path) -> None:
    names = {path.name for path in run_path.iterdir()}
    assert {"run.json", "schedule.parquet", "records.parquet", "telemetry.parquet", "events.jsonl", "verdict.json",
            "report.html"} <= names  # fmt: skip
    manifest = json.loads((run_path / "run.json").read_text())
    assert manifest["target"]["engine"] == "vllm"
    assert manifest["seed"] == 5
    assert [stage["kind"] for stage in manifest["stages"]] == ["warmup", "load", "load"]
    import pyarrow.parquet as pq

    telemetry = pq.read_table(run_path / "telemetry.parquet")
    sources = set(telemetry.column("source").to_pylist())
    assert {"engine", "host", "server", "client", "null-request"} <= sources
    records = pq.read_table(run_path / "records.parquet")
    assert set(records.column("timestamp_source").to_pylist()) == {"kernel"}
    assert set(records.column("status").to_pylist()) <= {"ok", "cancelled"}


# -- verbs over a run --------------------------------------------------------------------------------------------------


def test_check_diagnose_and_report_recompute_from_the_directory_alone(run_path: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(run_path, moved)
    (moved / "verdict.json").unlink()
    (moved / "report.html").unlink()
    checked = pinchpoint("check", moved)
    assert checked.returncode == 0
    assert checked.stdout.startswith(("VALID", "SUSPECT"))
    first = json.loads(pinchpoint("diagnose", moved, "--json").stdout)
    again = json.loads(pinchpoint("diagnose", moved, "--json").stdout)
    assert first == again
    assert pinchpoint("report", moved).returncode == 0
    assert (moved / "report.html").exists()
    assert pinchpoint("report", moved, "--out", tmp_path / "other.html", "--slo", "e2e p95 < 9s").returncode == 0
    assert (tmp_path / "other.html").exists()


def test_an_old_run_can_be_judged_by_a_new_slo(run_path: Path) -> None:
    strict = json.loads(pinchpoint("diagnose", run_path, "--slo", "ttft p95 < 1us", "--json").stdout)
    lax = json.loads(pinchpoint("diagnose", run_path, "--slo", "ttft p95 < 60s", "--json").stdout)
    open_loop = next(stage for stage in strict["stages"] if stage["rate_rps"])
    met, counted = open_loop["attainment"]["ttft p95 < 1µs"]
    assert met == 0 and counted > 0
    assert strict["exit_code"] == 1
    assert lax["exit_code"] == 0


def test_rules_and_faults_are_listed_and_explained() -> None:
    listed = pinchpoint("rules").stdout
    assert "SEQ001" in listed and "KV001" in listed
    page = pinchpoint("rules", "seq001")
    assert page.returncode == 0 and "What it means" in page.stdout
    one_sentence(pinchpoint("rules", "XYZ9"), 2, "XYZ9")
    assert "slot-cap" in pinchpoint("lab", "faults").stdout


@pytest.mark.parametrize("fault", ["kv-exhausted", "rate-limit"])
def test_synth_writes_a_complete_run_in_virtual_time(fault: str, tmp_path: Path) -> None:
    done = pinchpoint("lab", "synth", "--fault", fault, "--out", tmp_path / "run", "--budget", "2m", "--json")
    assert done.returncode == 0, done.stderr
    expected = {"kv-exhausted": "KV001", "rate-limit": "LIM001"}[fault]
    assert json.loads(done.stdout)["findings"][0]["rule"] == expected
    for file in (tmp_path / "run").iterdir():
        if file.suffix != ".parquet":
            assert fault not in file.read_text(), file.name


def test_every_verb_prints_nothing_but_json_when_asked(lab: Lab, run_path: Path, tmp_path: Path) -> None:
    verbs = {
        "probe/1": ("probe", lab.url),
        "check/1": ("check", run_path),
        "verdict/1": ("diagnose", run_path),
        "report/1": ("report", run_path),
        "rules/1": ("rules",),
        "rule/1": ("rules", "KV001"),
        "faults/1": ("lab", "faults"),
    }
    for schema, words in verbs.items():
        done = pinchpoint(*words, "--json")
        assert json.loads(done.stdout)["schema"] == f"pinchpoint.{schema}", words
    failed = pinchpoint("check", tmp_path / "nowhere", "--json")
    assert json.loads(failed.stdout)["schema"] == "pinchpoint.error/1"
    assert failed.returncode == 2


def test_help_needs_no_numeric_libraries() -> None:
    script = "import sys; import pinchpoint.cli; print(sorted({'numpy','scipy','pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
    shown = pinchpoint("--help")
    assert shown.returncode == 0
    for verb in ("run", "load", "calibrate", "probe", "check", "diagnose", "report", "rules", "lab"):
        assert re.search(rf"\b{verb}\b", shown.stdout)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_wrong_usage_is_told_in_one_sentence(lab: Lab, tmp_path: Path) -> None:
    run = ("run", lab.url, "--out", tmp_path / "x")
    one_sentence(pinchpoint("run"), 2, "URL")
    one_sentence(pinchpoint("run", "localhost:8000"), 2, "http")
    one_sentence(pinchpoint("run", "ftp://h"), 2, "http")
    one_sentence(pinchpoint(*run, "--slo", "fast please"), 2, "SLO")
    one_sentence(pinchpoint(*run, "--budget", "soon"), 2, "duration")
    one_sentence(pinchpoint(*run, "--workload", "chess"), 2, "chat")
    one_sentence(pinchpoint(*run, "--model", "gpt-9"), 2, "gpt-9")
    one_sentence(pinchpoint(*run, "--plan", tmp_path / "none.toml"), 2, "cannot read")
    one_sentence(pinchpoint(*run, "--frobnicate"), 2, "frobnicate")
    one_sentence(pinchpoint("frobnicate"), 2)
    one_sentence(pinchpoint("lab", "serve", "--fault", "gremlins"), 2, "gremlins", "slot-cap")
    one_sentence(pinchpoint(*run, "--api-key-env", "NOT_SET_ANYWHERE"), 2, "NOT_SET_ANYWHERE")
    one_sentence(pinchpoint(*run, "--api-key-file", tmp_path / "nokey"), 2, "nokey")
    assert not (tmp_path / "x").exists()


def test_an_unreachable_service_is_told(tmp_path: Path) -> None:
    with ScriptedServer(lambda _, __: stream(1)) as server:
        closed = server.url
    one_sentence(pinchpoint("run", closed, "--out", tmp_path / "x"), 4, "refused")
    one_sentence(pinchpoint("probe", closed), 4, "refused")
    one_sentence(pinchpoint("run", "http://no-such-host.invalid", "--out", tmp_path / "x"), 4, "no-such-host")
    assert not (tmp_path / "x").exists()


def test_numbers_out_of_range_are_told(lab: Lab, tmp_path: Path) -> None:
    run = ("run", lab.url, "--out", tmp_path / "x")
    one_sentence(pinchpoint(*run, "--input-tokens", 1_000_000_000), 2, "input_tokens")
    one_sentence(pinchpoint(*run, "--output-tokens", 0), 2, "output_tokens")
    one_sentence(pinchpoint(*run, "--metrics-url", "notaurl"), 2, "metrics_url")
    one_sentence(pinchpoint(*run, "--max-in-flight", 0), 2, "max_in_flight")
    one_sentence(pinchpoint("lab", "serve", "--port", 99_999), 2, "port")
    assert not (tmp_path / "x").exists()


def test_a_service_that_lists_no_models_asks_for_one() -> None:
    def script(number: int, body: bytes):
        if server.requests[number].startswith(b"POST /v1/chat/completions"):
            yield from stream(2)
        else:
            yield b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"

    with ScriptedServer(script) as server:
        one_sentence(pinchpoint("run", server.url), 2, "--model")


def test_a_server_that_is_no_llm_is_told() -> None:
    page = b"<html>It works</html>"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    with ScriptedServer(lambda _, __: [answer]) as server:
        one_sentence(pinchpoint("run", server.url), 4)


def test_an_output_directory_that_cannot_be_written_is_told_before_any_load(lab: Lab, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    one_sentence(pinchpoint("run", lab.url, "--out", taken), 2, "already exists")
    (tmp_path / "file").write_text("")
    one_sentence(pinchpoint("run", lab.url, "--out", tmp_path / "file" / "run"), 2, "writable")
    if os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir()
        closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
        one_sentence(pinchpoint("run", lab.url, "--out", closed / "run"), 2, "writable")


def test_a_damaged_run_directory_is_told(run_path: Path, tmp_path: Path) -> None:
    import shutil

    one_sentence(pinchpoint("diagnose", tmp_path), 2, "no run.json")
    broken = tmp_path / "broken"
    shutil.copytree(run_path, broken)
    (broken / "records.parquet").write_bytes(b"rubbish")
    for verb in ("check", "diagnose", "report"):
        one_sentence(pinchpoint(verb, broken), 2, "records.parquet")
    (broken / "records.parquet").unlink()
    for verb in ("check", "diagnose", "report"):
        one_sentence(pinchpoint(verb, broken), 2, "records.parquet")
    shutil.copyfile(run_path / "schedule.parquet", broken / "records.parquet")
    one_sentence(pinchpoint("diagnose", broken), 2, "records.parquet")
    (broken / "run.json").write_text('{"format_version": 1, "stages": "many"}')
    one_sentence(pinchpoint("diagnose", broken), 2, "damaged")


# -- interruptions -----------------------------------------------------------------------------------------------------


def started_run(url: str, out: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    """A run whose first search step has begun."""
    process = subprocess.Popen(
        [*PINCHPOINT, "run", url, "--out", str(out), "--budget", "60s", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        events = out / "events.jsonl"
        if events.exists() and '"slos"' in events.read_text():
            return process
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the run did not begin")


def test_ctrl_c_still_gives_a_report_marked_aborted(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started_run(lab.url, out)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert "Traceback" not in stderr
    manifest = json.loads((out / "run.json").read_text())
    assert (manifest["status"], manifest["abort_reason"]) == ("aborted", "interrupted by the user")
    assert "aborted" in stdout
    assert (out / "report.html").exists()
    assert (out / "records.parquet").exists()


def test_a_service_that_dies_ends_the_run_with_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Lab("none") as lab:
        process = started_run(lab.url, out)
        time.sleep(2)
        lab.process.kill()
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "stopped answering" in stderr
    assert "Traceback" not in stderr
    assert json.loads((out / "run.json").read_text())["status"] == "aborted"
    assert "aborted" in stdout
    assert (out / "report.html").exists()


def test_a_killed_run_can_be_sealed_and_read(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started_run(lab.url, out)
    time.sleep(3)
    process.kill()
    process.wait(10)
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        done = pinchpoint("diagnose", out, "--json")
        if done.returncode != 2 and json.loads((out / "run.json").read_text())["status"] == "aborted":
            break
    verdict = json.loads(done.stdout)
    assert verdict["status"] == "aborted"
    assert sum(stage["requests"] for stage in verdict["stages"]) > 0


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_the_key_reaches_the_service_and_no_artefact(tmp_path: Path) -> None:
    """Even when the service repeats the key in its errors."""
    models = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "x"}]}).encode()

    def reply(status: str, body: bytes) -> bytes:
        return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            status.encode(), len(body)) + body  # fmt: skip

    seen: list[bytes] = []
    asked = 0

    def script(number: int, body: bytes):
        nonlocal asked
        head = server.requests[number]
        seen.append(head)
        if head.startswith(b"GET /v1/models"):
            yield reply("200 OK", models)
        elif head.startswith(b"POST /v1/chat/completions"):
            asked += 1
            if asked > 20 and asked % 3 == 0:
                yield reply("500 Oops", json.dumps({"error": {"message": f"bad key {KEY}"}}).encode())
            else:
                yield from stream(3)
        else:
            yield reply("404 Not Found", b"{}")

    (tmp_path / "plan.toml").write_text('[[stages]]\nkind = "open"\nrate = 8\nduration = "3s"\n')
    with ScriptedServer(script) as server:
        words = (
            "run",
            server.url,
            "--plan",
            tmp_path / "plan.toml",
            "--out",
            tmp_path / "run",
            "--api-key-env",
            "MY_KEY",
        )
        done = pinchpoint(*words, env={"MY_KEY": KEY})
    assert any(f"Bearer {KEY}".encode() in head for head in seen if b"POST /v1/chat" in head)
    assert KEY not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 6
    for file in files:
        assert KEY.encode() not in file.read_bytes(), file.name
    import pyarrow.parquet as pq

    errors = pq.read_table(tmp_path / "run" / "records.parquet").column("error").to_pylist()
    assert any(error and "[redacted]" in error for error in errors)
