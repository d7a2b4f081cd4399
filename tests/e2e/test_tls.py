"""A service behind TLS with a certificate of a private authority: load client, probe, and a whole run."""

import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.scripted_server import STREAM_HEAD, Piece, event, stream
from tests.support.tls import Authority, TlsScriptedServer
from tests.unit.load.drive import driven, request

from pinchpoint.errors import EXIT_OK, EXIT_SLO_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, TargetError, UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.load.messages import Timeouts
from pinchpoint.probe import probe

STAGE_S = 2
RATE_RPS = 10
RUN_TIMEOUT_S = 60
PLAN = f"""
seed = 7
slos = ["ttft p95 < 2s", "errors < 5%"]
[workload]
preset = "chat-short"
input_tokens = 16
output_tokens = 8
[[stages]]
kind = "open"
rate = "{RATE_RPS}/s"
duration = "{STAGE_S}s"
name = "first"
[[stages]]
kind = "open"
rate = "{RATE_RPS}/s"
duration = "{STAGE_S}s"
name = "second"
"""


def page(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


PAGES = {
    "/v1/models": page(b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"vllm"}]}'),
    "/health": page(b"", kind="text/plain"),
    "/version": page(b'{"version":"0.11.0"}'),
    "/metrics": page(b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n", kind="text/plain"),
}


class ChatService(TlsScriptedServer):
    """Speaks as much of the API as probe, collector and load ask for."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(self._answer, authority)

    def _answer(self, number: int, body: bytes) -> Iterable[Piece]:
        method, path, _ = self.requests[number].split(b" ", 2)
        if method == b"GET":
            return [PAGES.get(path.decode(), page(b'{"detail":"Not Found"}', "404 Not Found"))]
        if path != b"/v1/chat/completions":
            return [page(b'{"detail":"Not Found"}', "404 Not Found")]
        return stream(json.loads(body)["max_tokens"], gap_s=0.002, first_s=0.005)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def service(authority: Authority) -> Iterator[ChatService]:
    with ChatService(authority) as running:
        yield running


def trusting(authority: Authority) -> ssl.SSLContext:
    return tls_context(str(authority.ca_file))


# -- the load client -----------------------------------------------------------------------------------------------


def test_tls_keeps_kernel_stamps_and_reuses_its_connection(authority: Authority) -> None:
    with (
        TlsScriptedServer(lambda number, body: stream(4, gap_s=0.005, first_s=0.01), authority) as server,
        driven(server.url, tls=trusting(authority)) as driver,
    ):
        ended = [driver.one(number) for number in range(4)]
        assert server.connections == 1
    for exchange in ended:
        assert (exchange.status, len(exchange.chunk_ns)) == ("ok", 4)
        assert exchange.reads > 0 and exchange.stamps_user == 0
        assert exchange.sent_ns is not None and exchange.end_ns is not None
        assert exchange.scheduled_ns <= exchange.sent_ns <= exchange.chunk_ns[0] <= exchange.end_ns
        assert list(exchange.chunk_ns) == sorted(set(exchange.chunk_ns))
    first, *others = ended
    assert first.connected_ns is not None and first.sent_ns is not None and first.sent_ns <= first.connected_ns
    assert all(exchange.connected_ns is None for exchange in others)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_split_into_records_gives_the_same_tokens(authority: Authority, data: st.DataObject) -> None:
    raw = b"".join(piece for piece in stream(5) if isinstance(piece, bytes))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=10, unique=True)))
    records = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    with (
        TlsScriptedServer(lambda number, body: records, authority) as server,
        driven(server.url, tls=trusting(authority)) as driver,
    ):
        exchange = driver.one()
    assert (exchange.status, len(exchange.chunk_ns), exchange.finish_reason) == ("ok", 5, "length")
    assert exchange.usage is not None and exchange.usage.output_tokens == 5
    assert list(exchange.chunk_ns) == sorted(exchange.chunk_ns)
    assert exchange.stamps_user == 0


def test_many_requests_at_once_over_tls_are_all_answered(authority: Authority) -> None:
    count = 60
    with (
        TlsScriptedServer(lambda number, body: stream(3, gap_s=0.001), authority) as server,
        driven(server.url, tls=trusting(authority)) as driver,
    ):
        driver.start(*(request(number, number * 0.002) for number in range(count)))
        ended = driver.until(count)
    assert {exchange.status for exchange in ended} == {"ok"}
    assert {exchange.row.request_id for exchange in ended} == set(range(count))


def test_a_stream_that_ends_with_close_notify_ends_there_and_not_when_tcp_does(authority: Authority) -> None:
    class Lingering(TlsScriptedServer):
        """Says close_notify in one write with the last event, then leaves the TCP connection open."""

        def _serve(self, connection):  # type: ignore[no-untyped-def]
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = self._context.wrap_bio(incoming, outgoing, server_side=True)

            def until_done(step):  # type: ignore[no-untyped-def]
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        connection.sendall(outgoing.read())
                        incoming.write(connection.recv(65536))

            until_done(tls.do_handshake)
            until_done(lambda: tls.read(65536))
            tls.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            tls.write(event("a") + event(finish="stop"))
            with pytest.raises(ssl.SSLWantReadError):
                tls.unwrap()
            connection.sendall(outgoing.read())
            connection.recv(65536)  # until the client is done

    with (
        Lingering(lambda number, body: [], authority) as server,
        driven(server.url, tls=trusting(authority), timeouts=Timeouts(total_s=3.0)) as driver,
    ):
        exchange = driver.one()
    assert (exchange.status, len(exchange.chunk_ns)) == ("ok", 1)


def test_a_stream_cut_inside_tls_is_truncated(authority: Authority) -> None:
    with (
        TlsScriptedServer(lambda number, body: [STREAM_HEAD, b"6\r\ndata: ", "close"], authority) as server,
        driven(server.url, tls=trusting(authority)) as driver,
    ):
        assert driver.one().status == "truncated"


def test_a_certificate_of_a_stranger_is_a_sentence_and_not_a_crash(authority: Authority, stranger: Authority) -> None:
    with (
        TlsScriptedServer(lambda number, body: stream(1), authority) as server,
        driven(server.url, tls=trusting(stranger)) as driver,
    ):
        exchange = driver.one()
        deadline_s = time.monotonic() + 5
        while not server.handshake_errors and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert "UNKNOWN_CA" in server.handshake_errors[0].upper().replace(" ", "_")
    assert exchange.status == "transport_error" and exchange.connected_ns is None
    assert exchange.error is not None
    assert exchange.error.startswith("TLS certificate not accepted") and "--ca-file" in exchange.error


def test_plain_http_on_a_tls_port_and_the_reverse_are_transport_errors(authority: Authority) -> None:
    with TlsScriptedServer(lambda number, body: stream(1), authority) as server:
        with driven(server.url.replace("https:", "http:")) as driver:
            assert driver.one().status == "transport_error"
        with driven(server.url, tls=trusting(authority)) as driver:
            assert driver.one().status == "ok"


# -- the probe -----------------------------------------------------------------------------------------------------


def test_the_probe_looks_through_tls(service: ChatService, authority: Authority) -> None:
    facts = probe(service.url, ca_file=str(authority.ca_file))
    assert (facts.engine, facts.model, facts.streaming) == ("vllm", "m", True)
    assert facts.url == service.url
    assert facts.metrics_url == service.url + "/metrics"
    assert facts.health_path == "/health"


@pytest.mark.parametrize("with_file", [False, True])
def test_the_probe_does_not_trust_a_stranger_and_names_the_remedy(
    service: ChatService, stranger: Authority, with_file: bool
) -> None:
    with pytest.raises(TargetError, match="--ca-file FILE") as error:
        probe(service.url, ca_file=str(stranger.ca_file) if with_file else None)
    assert "is not trusted" in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == EXIT_UNREACHABLE
    assert service.requests == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_ca_file_that_is_none_is_told_before_anything_is_asked(
    service: ChatService, tmp_path: Path, scheme: str
) -> None:
    with pytest.raises(UsageError, match=r"missing\.pem"):
        probe(service.url.replace("https", scheme), ca_file=str(tmp_path / "missing.pem"))
    assert service.connections == 0


# -- the command line ----------------------------------------------------------------------------------------------


def pinchpoint(*arguments: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    hidden = ("PINCHPOINT_API_KEY", "SSL_CERT_FILE", "SSL_CERT_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, "-m", "pinchpoint", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )


def test_a_whole_run_over_tls(service: ChatService, authority: Authority, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "run"
    plan.write_text(PLAN)
    ended = pinchpoint(
        "run", service.url, "--plan", plan, "--ca-file", authority.ca_file, "--out", out, "--json", cwd=tmp_path
    )
    assert ended.returncode in (EXIT_OK, EXIT_SLO_FAILED), ended.stderr + ended.stdout
    verdict = json.loads(ended.stdout)
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["plan"]["ca_file"] == str(authority.ca_file)
    assert (verdict["run_id"], verdict["exit_code"]) == (manifest["run_id"], ended.returncode)

    names = {stage["index"]: stage["name"] for stage in manifest["stages"]}
    records = [
        r for r in pq.read_table(out / "records.parquet").to_pylist() if names[r["stage"]] in ("first", "second")
    ]
    assert len(records) > STAGE_S * RATE_RPS  # two stages of a Poisson stream with twice as many expected
    assert {record["status"] for record in records} == {"ok"}
    assert {record["timestamp_source"] for record in records} == {"kernel"}
    assert all(r["scheduled_ns"] <= r["sent_ns"] <= r["first_token_ns"] <= r["end_ns"] for r in records)
    assert all(len(r["chunk_ns"]) == r["output_tokens"] for r in records)
    assert any(record["connected_ns"] is None for record in records)  # kept alive

    samples = pq.read_table(out / "telemetry.parquet").to_pylist()
    by_source = {(sample["source"], sample["raw"]) for sample in samples}
    assert ("engine", "vllm:num_requests_running") in by_source
    assert ("null-request", "probe.null_request_s") in by_source
    assert not {raw for _, raw in by_source} & {"scrape_failed", "null_request_failed"}
    assert (out / "report.html").stat().st_size > 0
    assert re.search(r"BEGIN (EC )?PRIVATE KEY", (out / "run.json").read_text()) is None


@pytest.mark.parametrize("verb", ["run", "probe"])
def test_an_untrusted_service_is_unreachable_and_the_sentence_names_the_flag(
    service: ChatService, tmp_path: Path, verb: str
) -> None:
    ended = pinchpoint(verb, service.url, cwd=tmp_path)
    assert ended.returncode == EXIT_UNREACHABLE
    told = [line for line in ended.stderr.splitlines() if line.startswith("pinchpoint: ")]
    assert len(told) == 1 and "--ca-file" in told[0]
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["run", "probe"])
def test_a_ca_file_without_certificate_is_wrong_usage(service: ChatService, tmp_path: Path, verb: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    ended = pinchpoint(verb, service.url, "--ca-file", bad, cwd=tmp_path)
    assert ended.returncode == EXIT_USAGE
    assert "bad.pem" in ended.stderr and "Traceback" not in ended.stderr
    assert service.connections == 0
    assert list(tmp_path.iterdir()) == [bad]


def test_the_probe_verb_takes_the_ca_file(service: ChatService, authority: Authority, tmp_path: Path) -> None:
    ended = pinchpoint("probe", service.url, "--ca-file", authority.ca_file, "--json", cwd=tmp_path)
    assert ended.returncode == EXIT_OK, ended.stderr
    assert json.loads(ended.stdout)["metrics_url"] == service.url + "/metrics"
