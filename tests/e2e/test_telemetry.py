"""`pinchpoint telemetry` as a user runs it: real processes on real ports, saved pages, and what is no page at all."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_server import ScriptedServer

PINCHPOINT = (sys.executable, "-m", "pinchpoint")
LIMIT_S = 90.0
SCRAPES_OF_DISCOVERY = 1
"""Of a page that is given."""
KEY = "sk-very-secret-0123456789"
DUMPS = Path(__file__).parents[1] / "data" / "metrics"


def run(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PINCHPOINT, "telemetry", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "COLUMNS": "120", **(env or {})},
        check=False,
    )


def told(*words: object) -> dict[str, Any]:
    ran = run(*words, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def lab() -> Iterator[dict[str, Any]]:
    command = [*PINCHPOINT, "lab", "serve", "--json", "--port", "0", "--dcgm-port", "0", "--node-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("}"):
                break
        yield {**json.loads(text), "pid": process.pid}
        process.terminate()


def test_every_layer_of_a_service_here_is_seen_with_its_exporters(lab: dict[str, Any]) -> None:
    seen = told(lab["url"], lab["dcgm_url"], lab["node_url"], "--only-here", "--duration", "2.5s")
    assert seen["schema"] == "pinchpoint.telemetry/1"
    rows = {(row["layer"], row["series"], row["source"]): row for row in seen["rows"]}
    assert ("engine", "engine.requests_running", "engine") in rows
    assert ("accelerator", "gpu.util_ratio", "gpu") in rows
    assert ("host", "host.load1", "host") in rows and ("host", "host.load1", "host-node") in rows
    assert ("server", "server.processes", "server") in rows
    assert ("network", "probe.null_request_s", "null-request") in rows
    assert rows["engine", "engine.generation_tokens_total", "engine"]["how"] == "per second"
    assert [page["title"] for page in seen["pages"]] == ["vLLM", "NVIDIA dcgm-exporter", "node_exporter"]
    coverage = seen["pages"][0]["coverage"]["exporters"][0]
    assert 0 < coverage["share"] <= 1 and coverage["missing"]
    assert {each["layer"] for each in seen["absent"]} == {"gateway", "client"}


def test_the_table_is_printed_once_where_there_is_no_terminal(lab: dict[str, Any]) -> None:
    ran = run(lab["url"], "--only-here", "--duration", "1s")
    assert ran.returncode == 0, ran.stderr
    for words in ("ENGINE", "HOST", "SERVER", "COVERAGE", "MISSING, AND HOW TO GET IT", "vLLM", "--kv-cache-metrics"):
        assert words in ran.stdout
    assert ran.stdout.count("engine.requests_running ") == 1
    assert "\x1b" not in ran.stdout


def test_a_saved_page_shows_its_coverage() -> None:
    ran = run(DUMPS / "vllm_v1.prom")
    assert ran.returncode == 0, ran.stderr
    assert "engine.requests_waiting" in ran.stdout and "% " in ran.stdout
    seen = told(DUMPS / "vllm_v1.prom")
    assert seen["pages"][0]["coverage"]["exporters"][0]["exporter"] == "vllm"


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http("401 Unauthorized"), "--api-key-env"),
        (http("404 Not Found"), "shows no page of metrics"),
        (http("200 OK", b"<!doctype html><html>welcome 1</html>", "Content-Type: text/html"), "page for people"),
        (http("200 OK", b"\x00\x01\x02"), "is binary"),
        (http("500 Oh No"), "HTTP 500"),
        (b"SSH-2.0-OpenSSH\r\n", "not in HTTP"),
    ],
)
def test_a_server_without_a_page_is_told_in_words_with_what_to_do(answer: bytes, words: str) -> None:
    with ScriptedServer(lambda number, body: (answer, "close")) as server:
        ran = run(server.url, "--only-here", "--duration", "1s")
    assert ran.returncode == 4
    assert words in ran.stderr and "Traceback" not in ran.stderr
    assert ran.stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["http://127.0.0.1:1"], 4, "nothing listens"),
        (["no-such-file"], 2, "there is no file"),
        ([], 2, "say what to look at"),
        ([Path(__file__)], 2, "no page of metrics"),
        ([sys.executable], 2, "no page of metrics"),
        (["http://127.0.0.1:1", "--period", "1ms"], 2, "--period"),
        (["http://127.0.0.1:1", "--duration", "soon"], 2, "not a duration"),
        (["http://127.0.0.1:1", "--api-key-env", "NO_SUCH_VARIABLE"], 2, "NO_SUCH_VARIABLE is empty"),
    ],
)
def test_bad_input_is_told_in_words(words: list[object], code: int, said: str) -> None:
    ran = run(*words, *([] if not words or not str(words[0]).startswith("http") else ["--only-here"]))
    assert (ran.returncode, ran.stdout) == (code, "")
    assert said in ran.stderr and "Traceback" not in ran.stderr


def test_it_goes_on_until_it_is_told_to_end_and_then_shows_what_it_saw() -> None:
    page = http("200 OK", b"vllm:num_requests_running 3\n", "Content-Type: text/plain")
    scraped = threading.Event()

    def answer(number: int, body: bytes) -> tuple[bytes, str]:
        if number > SCRAPES_OF_DISCOVERY + 2:
            scraped.set()
        return page, "close"

    with ScriptedServer(answer) as server:  # pyright: ignore[reportArgumentType]
        command = [*PINCHPOINT, "telemetry", server.url + "/metrics", "--watch", "--period", "100ms"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert scraped.wait(LIMIT_S)
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, errors) == (0, "")
    assert "engine.requests_running" in out


def test_the_key_reaches_the_page_and_no_output() -> None:
    page = http("200 OK", b"vllm:num_requests_running 3\n", "Content-Type: text/plain")
    with ScriptedServer(lambda number, body: (page, "close")) as server:
        ran = run(server.url, "--only-here", "--duration", "1s", "--api-key-env", "A_KEY", env={"A_KEY": KEY})
        assert all(f"Bearer {KEY}".encode() in request for request in server.requests)
    assert ran.returncode == 0
    assert KEY not in ran.stdout + ran.stderr


def test_an_exporter_is_not_asked_for_the_health_of_a_service(lab: dict[str, Any]) -> None:
    seen = told(lab["dcgm_url"].removesuffix("/metrics"), "--only-here", "--duration", "2.5s")
    assert not any(row["source"] == "null-request" for row in seen["rows"])
    assert not any(trouble["source"] == "null-request" for trouble in seen["troubles"])
