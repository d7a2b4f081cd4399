"""The whole program against a service that answers badly in a known mixture: what the run says is what was served."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.support.scripted_server import END, STREAM_HEAD, Piece, ScriptedServer, chunk, event, stream

RUN_TIMEOUT_S = 90
REQUESTS = 140
RATE_RPS = 70
TOKENS = 3
A = chunk(event("a"))
STOP = chunk(event(finish="stop"))
DONE = chunk(b"data: [DONE]\n\n") + END


def page(status: str, body: bytes, extra: str = "") -> bytes:
    kind = "Content-Type: application/json\r\n"
    return f"HTTP/1.1 {status}\r\n{kind}{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


MODELS = page("200 OK", b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"}]}')
NOT_FOUND = page("404 Not Found", b'{"detail":"Not Found"}')
BEHAVIOURS: tuple[tuple[str, tuple[Piece, ...]], ...] = (
    ("ok", tuple(stream(TOKENS))),
    ("rejected", (page("429 Too Many Requests", b'{"error":{"message":"slow down"}}', "Retry-After: 1\r\n"),)),
    ("rejected", (page("503 Service Unavailable", b"<h1>busy</h1>"),)),
    ("http_error", (page("500 Oops", b'{"error":{"message":"\x1b[2JCUDA \\u2028 error"}}'),)),
    ("http_error", (page("302 Found", b"", "Location: /elsewhere\r\n"),)),
    ("stream_error", (STREAM_HEAD + A + chunk(b'error: {"message":"slot lost"}\n\n') + DONE,)),
    ("stream_error", (page("200 OK", b'{"error":"no GPU"}'),)),
    ("transport_error", ("reset",)),
    ("transport_error", ("close",)),
    ("truncated", (STREAM_HEAD + A + A[:-10], "close")),
    ("truncated", (STREAM_HEAD + A + END,)),
    ("malformed", (STREAM_HEAD + A + b"zz\r\n", "close")),
    ("malformed", (STREAM_HEAD + A + chunk(b"data: {NaN}\n\n") + STOP + DONE,)),
    ("malformed", (b"SSH-2.0-OpenSSH_9.6\r\n", "close")),
    ("malformed", (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "close")),
    ("ok", (STREAM_HEAD + A * TOKENS + STOP + chunk(event(usage={"completion_tokens": 10**30})) + DONE,)),
    ("ok", (STREAM_HEAD + A * TOKENS + chunk(event(finish="x" * 99_999)) + DONE,)),
    ("ok", (STREAM_HEAD + A * TOKENS + STOP + DONE + STREAM_HEAD + A + DONE,)),
    ("ok", (STREAM_HEAD + A * (TOKENS - 1) + chunk(event("x" * 1_000_000)) + STOP + DONE,)),
    ("timeout", (STREAM_HEAD + A, 2.5, "close")),
)


class BadService:
    """Serves BEHAVIOURS in turn and counts what it served."""

    def __init__(self) -> None:
        self.served: Counter[str] = Counter()
        self.server = ScriptedServer(self._answer)
        self._turn = itertools.count()

    def _answer(self, number: int, body: bytes) -> Iterable[Piece]:
        method, path, _ = self.server.requests[number].split(b" ", 2)
        if path != b"/v1/chat/completions":
            return [MODELS if (method, path) == (b"GET", b"/v1/models") else NOT_FOUND]
        if b"Accept: text/event-stream" not in self.server.requests[number]:
            return stream(TOKENS)  # the probe is served well
        status, pieces = BEHAVIOURS[next(self._turn) % len(BEHAVIOURS)]
        self.served[status] += 1
        return pieces


@pytest.fixture
def service() -> Iterable[BadService]:
    bad = BadService()
    with bad.server:
        yield bad


def test_a_run_against_a_service_that_misbehaves_ends_and_counts_every_answer(
    service: BadService, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "pinchpoint",
        "load",
        service.server.url,
        "--model",
        "m",
        "--out",
        tmp_path / "run",
    ]
    command += [
        "--rate",
        str(RATE_RPS),
        "--requests",
        str(REQUESTS),
        "--input-tokens",
        "8",
        "--output-tokens",
        str(TOKENS),
    ]
    command += ["--timeout", "5s", "--token-timeout", "1s", "--arrivals", "constant", "--workers", "1", "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, env=environment
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert json.loads(done.stdout)
    records = pq.read_table(tmp_path / "run" / "records.parquet").to_pylist()
    assert len(records) == REQUESTS
    # A kept connection that closes before any answer is no failure yet: the request is sent once more, and counted.
    sent_once_more = sum(record["attempts"] - 1 for record in records)
    recorded = Counter(record["status"] for record in records)
    assert service.served - recorded == Counter({"transport_error": sent_once_more})
    assert recorded - service.served == Counter()
    for record in records:
        if record["status"] == "ok":
            assert len(record["chunk_ns"]) == TOKENS and record["output_tokens"] == TOKENS
        assert (record["error"] is None) == (record["status"] == "ok")
        assert record["error"] is None or record["error"].isprintable()
        assert (record["phase"] is not None) == (record["status"] in ("transport_error", "timeout"))
