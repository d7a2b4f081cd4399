"""A Prometheus server that answers badly, slowly, too much or not at all.

The real one is asked in tests/e2e/test_real_prometheus.py.
"""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pinchpoint.catalog import load_catalog, parse_labels
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.parts import arrow_schema, part_batches
from pinchpoint.telemetry import prometheus_api
from pinchpoint.telemetry.prometheus_api import PrometheusServer, auth_headers, matchers
from pinchpoint.telemetry.prometheus_server import PART, collect

RUNNING, LOAD = "vllm:num_requests_running", "node_load1"
Answer = tuple[int, Any]
Question = dict[str, str]


class Fake(http.server.ThreadingHTTPServer):
    """Answers as Prometheus does, from `stored`: label set as JSON -> [(seconds from now, value)]; `spoil` may answer
    in its place. asked: method, path, question and headers of everything that was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.stored: dict[str, list[tuple[float, str]]] = {}
        self.ahead_s = 0.0
        self.spoil: Callable[[str, Question], Answer | None] = lambda path, question: None
        self.warnings: list[str] = []
        self.asked: list[tuple[str, str, Question, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def store(self, name: str, samples: list[tuple[float, str]], **labels: str) -> None:
        now_s = time.time() + self.ahead_s
        key = json.dumps({"__name__": name, "job": "vllm", "instance": "10.0.0.1:8000", **labels})
        self.stored[key] = [(round(now_s + at_s, 3), value) for at_s, value in samples]

    def answer(self, path: str, question: Question) -> Answer:
        spoilt = self.spoil(path, question)
        if spoilt is not None:
            return spoilt
        sets = [json.loads(key) for key in self.stored]
        text = question.get("query", question.get("match[]", ""))
        named = text.split('"')[1].split("|") if "__name__" in text else []
        chosen = [one for one in sets if one["__name__"] in named]
        match path:
            case "query" if text == "time()":
                now_s = time.time() + self.ahead_s
                data: Any = {"resultType": "scalar", "result": [now_s, f"{now_s:.3f}"]}
            case "label/__name__/values":
                data = sorted({one["__name__"] for one in sets})
            case "series":
                data = chosen
            case "query":
                end_s = float(question["time"])
                begin_s = end_s - float(text[text.rindex("[") + 1 : -3]) / 1000
                data = {"resultType": "matrix", "result": self.matrix(chosen, begin_s, end_s)}
            case _:
                begin_s, end_s = float(question["start"]), float(question["end"])
                data = {"resultType": "matrix", "result": self.matrix(chosen, begin_s, end_s)}
        return 200, {"status": "success", "data": data, "warnings": self.warnings}

    def matrix(self, sets: list[dict[str, str]], begin_s: float, end_s: float) -> list[dict[str, Any]]:
        keyed = [(one, self.stored[json.dumps(one)]) for one in sets]
        return [
            {"metric": one, "values": [sample for sample in samples if begin_s <= sample[0] <= end_s]}
            for one, samples in keyed
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Fake  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode() or urlsplit(self.path).query
        question = {key: values[0] for key, values in parse_qs(form).items()}
        path = urlsplit(self.path).path.removeprefix("/api/v1/")
        self.server.asked.append((self.command, path, question, dict(self.headers)))
        status, found = self.server.answer(path, question)
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # whoever asked may have hung up
            super().handle()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        server.store(RUNNING, [(-30, "3"), (-20, "4"), (-10, "5")])
        try:
            yield server
        finally:
            server.shutdown()


def of(fake: Fake, **more: Any) -> PrometheusServer:
    return PrometheusServer(fake.url, '{namespace="llm"}', load_catalog(), **more)


def fetched(server: PrometheusServer, run: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    now_ns = monotonic_ns()
    notes = collect(server, run, now_ns - 60 * NS_PER_S, now_ns)
    return notes, [r for b in part_batches(run / "parts" / PART, arrow_schema(SAMPLE_COLUMNS)) for r in b.to_pylist()]


def readings(rows: list[dict[str, Any]], raw: str) -> list[tuple[str | None, float]]:
    return [(row["series"], row["value"]) for row in rows if row["raw"] == raw]


def refusal(status: int, kind: str, words: str) -> Answer:
    return status, {"status": "error", "errorType": kind, "error": words}


def test_samples_become_readings_of_the_canonical_series_with_their_labels(fake: Fake, tmp_path: Path) -> None:
    notes, rows = fetched(of(fake), tmp_path)
    assert readings(rows, RUNNING) == [("engine.requests_running", value) for value in (3.0, 4.0, 5.0)]
    (labels,) = {row["labels"] for row in rows if row["raw"] == RUNNING}
    assert parse_labels(labels) == {"job": "vllm", "instance": "10.0.0.1:8000"}
    assert notes == (f"3 samples of 1 metrics from 1 target were fetched from {fake.url}",)


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_a_server_whose_clock_is_off_gives_instants_of_our_axis(fake: Fake, tmp_path: Path, ahead_s: float) -> None:
    fake.ahead_s = ahead_s
    fake.store(RUNNING, [(-10, "5")])
    asked_ns = monotonic_ns()
    _, rows = fetched(of(fake), tmp_path)
    (at_ns,) = [row["t_ns"] for row in rows if row["raw"] == RUNNING]
    error_s = readings(rows, "source.clock_offset_error_s")[0][1]
    assert abs(at_ns - (asked_ns - 10 * NS_PER_S)) <= (monotonic_ns() - asked_ns) + error_s * NS_PER_S
    assert abs(readings(rows, "source.clock_offset_s")[0][1] - ahead_s) <= error_s + 1.0


def test_a_value_that_is_no_number_is_no_reading_of_the_series(fake: Fake, tmp_path: Path) -> None:
    fake.store(RUNNING, [(-30, "NaN"), (-20, "+Inf"), (-10, "-1"), (-5, "2"), (-4, "x")])
    _, rows = fetched(of(fake), tmp_path)
    assert [series for series, _ in readings(rows, RUNNING)] == [None, None, None, "engine.requests_running"]


def test_targets_are_sources_of_their_own_and_machines_have_names(fake: Fake, tmp_path: Path) -> None:
    fake.store(RUNNING, [(-15, "7")], instance="10.0.0.2:8000")
    fake.store(LOAD, [(-15, "1.5")], job="node", instance="10.0.0.9:9100")
    fake.store(LOAD, [(-15, "2.5")], job="node", instance="10.0.0.8:9100", node="gpu-host")
    _, rows = fetched(of(fake), tmp_path)
    assert {row["source"] for row in rows if row["raw"] == RUNNING} == {
        "prometheus:10.0.0.1:8000",
        "prometheus:10.0.0.2:8000",
    }
    assert {parse_labels(row["labels"])["host"] for row in rows if row["raw"] == LOAD} == {"10.0.0.9", "gpu-host"}


def test_of_two_names_of_one_series_only_the_preferred_feeds_it(fake: Fake, tmp_path: Path) -> None:
    fake.store("vllm:kv_cache_usage_perc", [(-10, "0.5")])
    fake.store("vllm:gpu_cache_usage_perc", [(-10, "0.5")])
    _, rows = fetched(of(fake), tmp_path)
    fed = [name for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc") if readings(rows, name)[0][0]]
    assert len(fed) == 1


def test_warnings_are_told_and_kept(fake: Fake, tmp_path: Path) -> None:
    fake.warnings = ["results may be partial: store 10.0.0.7 is down"]
    notes, rows = fetched(of(fake), tmp_path)
    assert "it warns: results may be partial: store 10.0.0.7 is down" in notes
    assert [row["raw"] for row in rows if row["raw"] == "prometheus_warning"] == ["prometheus_warning"]
    assert len(readings(rows, RUNNING)) == 3


@pytest.mark.parametrize(
    ("answer", "says", "reason"),
    [
        ((401, b"Unauthorized"), "does not let us in .HTTP 401.; give --prometheus-token-env", "http_401"),
        ((403, b"no"), "does not let us in .HTTP 403.", "http_403"),
        ((302, b""), "page for logging in", "http_302"),
        ((404, b"404 page not found"), "HTTP 404; give the address under which /api/v1 lies", "http_404"),
        ((500, b""), "answers HTTP 500", "http_500"),
        ((200, b"<html>Grafana</html>"), "does not answer as a Prometheus server", "not_prometheus"),
        ((200, b"[" * 50_000), "does not answer as a Prometheus server", "not_prometheus"),
        ((200, {"status": "success", "data": {"a": 1}}), "does not answer as a Prometheus server", "not_prometheus"),
        ((200, {"status": "success", "data": 5}), "does not answer as a Prometheus server", "not_prometheus"),
        (refusal(422, "execution", "query processing would load too many samples"), "too many samples", "execution"),
        (refusal(400, "bad_data", "parse\n error"), "refuses the query for .*: parse error", "bad_data"),
    ],
)
@pytest.mark.parametrize("path", ["label/__name__/values", "series"])
def test_a_refusal_is_told_before_the_run_and_an_event_after_it(
    fake: Fake, tmp_path: Path, path: str, answer: Answer, says: str, reason: str
) -> None:
    fake.spoil = lambda asked, question: answer if asked == path else None
    with pytest.raises(UsageError, match=says):
        of(fake).check()
    notes, rows = fetched(of(fake), tmp_path)
    assert len(notes) == 2
    assert [row["labels"] for row in rows if row["raw"] == "prometheus_failed"] == [f"reason={reason}"]


def test_a_question_that_fails_costs_only_its_own_names(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_api, "NAMES_AT_ONCE", 1)
    fake.store(LOAD, [(-10, "1")])
    fake.spoil = lambda path, question: (503, b"") if LOAD in question.get("query", "") else None
    notes, rows = fetched(of(fake), tmp_path)
    assert len(readings(rows, RUNNING)) == 3
    assert any("answers HTTP 503" in note for note in notes)


def test_a_server_without_range_selectors_is_asked_by_steps_and_said_to_be_coarser(fake: Fake, tmp_path: Path) -> None:
    fake.spoil = lambda path, question: refusal(400, "bad_data", "no") if "[" in question.get("query", "") else None
    notes, rows = fetched(of(fake), tmp_path)
    assert len(readings(rows, RUNNING)) == 3
    assert any("refuses range selectors" in note for note in notes)
    asked = [question for _, path, question, _ in fake.asked if path == "query_range"]
    assert asked and all(
        (float(each["end"]) - float(each["start"])) / float(each["step"]) <= prometheus_api.MAX_POINTS for each in asked
    )


def test_an_answer_that_is_too_long_is_asked_for_in_shorter_stretches(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_api, "MAX_ANSWER_BYTES", 2000)
    fake.store(RUNNING, [(-60 + each / 2, "1") for each in range(110)])
    _, rows = fetched(of(fake), tmp_path)
    assert len(readings(rows, RUNNING)) in (109, 110)  # the first may lie before the run
    instants = [row["t_ns"] for row in rows if row["raw"] == RUNNING]
    assert instants == sorted(set(instants))


def test_a_proxy_that_takes_no_post_is_asked_by_get(fake: Fake, tmp_path: Path) -> None:
    server = of(fake)
    fake.spoil = lambda path, question: (405, b"") if fake.asked[-1][0] == "POST" else None
    _, rows = fetched(server, tmp_path)
    assert len(readings(rows, RUNNING)) == 3
    assert [method for method, _, _, _ in fake.asked].count("POST") == 1


def test_a_server_that_does_not_answer_is_given_up_and_said_so(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus_api, "TIMEOUT_S", 0.2)
    over = threading.Event()
    fake.spoil = lambda path, question: (200, b"") if path == "series" and over.wait(20) else None
    notes, rows = fetched(of(fake), tmp_path)
    over.set()
    assert any("cannot be asked (timeout)" in note for note in notes)
    assert [row["labels"] for row in rows if row["raw"] == "prometheus_failed"] == ["reason=timeout"]


def test_secrets_come_from_the_environment_into_the_header_and_nowhere_else(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROM_TOKEN", "s3cret-token")
    monkeypatch.setenv("PROM_LOGIN", "user:s3cret-word")
    for given, sent in (
        ((None, "PROM_LOGIN"), "Basic dXNlcjpzM2NyZXQtd29yZA=="),
        (("PROM_TOKEN", None), "Bearer s3cret-token"),
    ):
        notes, rows = fetched(of(fake, headers=auth_headers(*given)), tmp_path)
        assert {headers.get("Authorization") for _, _, _, headers in fake.asked} == {sent}
        assert "s3cret" not in repr((notes, rows))
        fake.asked.clear()


def test_a_secret_that_is_missing_or_none_is_told_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("NO_COLON", "s3cret")
    for given, says in (
        (("EMPTY", None), "EMPTY is empty"),
        ((None, "NO_COLON"), "user:password"),
        (("A", "B"), "one of the two"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            auth_headers(*given)
        assert "s3cret" not in str(caught.value)
    assert auth_headers(None, None) == {}


@pytest.mark.parametrize("text", ['{a="b"}', 'a="b"', ' { a="b", } '])
def test_a_selector_is_taken_with_and_without_its_braces(text: str) -> None:
    assert matchers(text) == 'a="b"'


@pytest.mark.parametrize("text", ["", "{}", "up", 'up{__name__="x"}', "{\n}"])
def test_a_selector_that_selects_nothing_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="label matchers"):
        matchers(text)
