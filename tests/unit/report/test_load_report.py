"""The screen and the JSON of a plain load: what they say, and that text from a service stays text."""

import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from inline_snapshot import snapshot
from rich.console import Console
from tests.support.load_runs import Answer, build_load, even, load_stage, poisson, served

from pinchpoint.cost import Price, cost_of
from pinchpoint.delivered import delivered
from pinchpoint.measure import measure
from pinchpoint.model import Stage, TargetFacts, ValidityReason
from pinchpoint.report.load_answer import LoadAnswer, load_json
from pinchpoint.report.load_text import load_text, print_load
from pinchpoint.slo import parse_slos

STALL = ValidityReason("loop-stall", "invalid", "the load generator stood still", 2.0, 0.02, "s")
HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]not bold[/bold] \u202ereversed\x00 <script>alert(1)</script>"


def answer(path: Path, answers: list[Answer], *stages: Stage, **more: Any) -> LoadAnswer:
    reasons = more.pop("reasons", ())
    validity = more.pop("validity", "VALID")
    view = build_load(path / "run", stages or [load_stage(rate_rps=20, arrivals="poisson")], answers, **more)
    return LoadAnswer(view.manifest, validity, reasons, measure(view), delivered(view))


def test_what_a_load_costs_is_told_where_a_price_is_known(tmp_path: Path) -> None:
    view = build_load(tmp_path / "run", [load_stage(rate_rps=20, arrivals="poisson")], scattered(20, 10))
    plain = LoadAnswer(view.manifest, "VALID", (), measure(view), delivered(view))
    priced = msgspec.structs.replace(plain, cost=cost_of(view, (), Price(per_hour=3.6, accelerators=2)))
    assert "COSTS" not in load_text(plain) and json.loads(load_json(plain))["cost"] is None
    assert "USD per million tokens" in load_text(priced)
    assert json.loads(load_json(priced))["cost"]["price_per_hour"] == 7.2


def scattered(rate_rps: float, length_s: float, start_s: float = 0.0, stage: int = 0) -> list[Answer]:
    rng = np.random.default_rng(5)
    return [
        served(
            due_s, lag_s=rng.uniform(0, 0.0003), ttft_s=rng.gamma(9, 0.01), itl_s=rng.normal(0.01, 0.001), stage=stage
        )
        for due_s in poisson(rate_rps, length_s, start_s=start_s)
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadAnswer:
    failures = [
        Answer(3, 3.0, status="rejected", fields={"error": "HTTP 429: slow down", "retry_after_s": 2.0}),
        Answer(4, 4.0, status="timeout", fields={"phase": "first-token", "error": "no token in 5 s"}),
    ]
    stage = load_stage(rate_rps=20, arrivals="poisson", profile="flat", length_s=30, name="20 req/s")
    return answer(tmp_path_factory.mktemp("load"), scattered(20, 30) + failures, stage)


def test_the_screen_of_a_load(plain: LoadAnswer) -> None:
    assert load_text(plain, 100, paths={"run": "runs/a"}) == snapshot("""\
Pinchpoint load  http://127.0.0.1:8000 · vllm · llama
VALID  nothing speaks against the measurement

LOAD           20 req/s poisson  30 s
               612 offered · 612 sent (20.4 req/s) · 610 completed (20.1 req/s) · 2 failed
               61,000 prompt tokens (2010/s) · 12,200 output tokens (403/s)

DELIVERED      as asked, as far as could be seen
               99 of 100 left within 296 µs · 0 % of the gaps out of place · prompts 100 % of the
               length asked · answers 100 % · 0 % of the prompts cached

ERRORS         1  rejected                HTTP 429: slow down
               1  timeout at first-token  no token in 5 s
               Retry-After in 1 rejection: 2 s

LATENCY  under each figure its 95 % interval; – : too few requests
                               mean        p50        p95      p99    p99.9       n
TTFT       from schedule    91.9 ms    90.5 ms     149 ms   174 ms        –     610
                          89.4–94.3  86.9–93.4    139–155  160–193        –
           from send        91.7 ms    90.3 ms     149 ms   174 ms        –     610
                          89.3–94.2  86.7–93.3    139–155  160–193        –
TPOT       per request        10 ms      10 ms    11.6 ms  12.1 ms        –     610
                          9.94–10.1  9.92–10.2  11.5–11.9  12–12.9        –
ITL        all gaps           10 ms      10 ms    11.7 ms  12.1 ms  12.9 ms  11,590
                          9.94–10.1  9.93–10.1  11.5–11.8  12–12.5        –
E2E        from schedule     282 ms     280 ms     339 ms   375 ms        –     610
                            279–285    277–285    333–349  357–397        –
           from send         282 ms     280 ms     339 ms   375 ms        –     610
                            279–285    277–284    333–349  356–396        –
pace       tokens/s             101       99.7        119      131        –     610
                           99.8–102   98.5–101    116–123  125–149        –
sent late  by                150 µs     150 µs     286 µs   296 µs        –     612
                            143–157    138–160    281–292  294–299        –
stamps of arrival: 99 of 100 latencies are right to 10 µs, of the gaps to 20 µs

1 request ran into a timeout: with all requests the percentiles are higher

run            runs/a
""")


def test_a_narrow_terminal_loses_a_column_and_no_figure(plain: LoadAnswer) -> None:
    text = load_text(plain, 72)
    assert max(map(len, text.splitlines())) <= 72
    assert "…" not in text.split("LATENCY")[1].split("stamps")[0]


def test_an_invalid_measurement_cannot_be_overlooked(tmp_path: Path) -> None:
    text = load_text(answer(tmp_path, scattered(20, 10), validity="INVALID", reasons=(STALL,)))
    lines = text.splitlines()
    assert lines[1].startswith("INVALID")
    assert lines[2] == "invalid: the load generator stood still (2 s, limit 20 ms)"
    assert "of an invalid measurement: not to be used" in text


def test_what_was_not_delivered_is_on_the_screen(tmp_path: Path) -> None:
    answers = [served(due_s, lag_s=max(0.0, 10 - due_s) if due_s > 8 else 0.0) for due_s in poisson(20, 20)]
    answers += [Answer(1.0, None, status="dropped"), Answer(2.0, None, recorded=False)]
    text = load_text(answer(tmp_path, answers, load_stage(rate_rps=20, arrivals="poisson", length_s=20)))
    assert "1 never sent · 1 lost" in text
    assert "were due and not yet sent" in text
    assert "as asked, as far as could be seen" not in text


def test_stages_are_listed_when_there_are_several(tmp_path: Path) -> None:
    stages = [load_stage(0, 0, 10, rate_rps=20.0), load_stage(1, 10, 10, concurrency=8, name="eight")]
    answers = [served(due_s) for due_s in even(20, 10)]
    answers += [served(due_s, stage=1, closed=True) for due_s in even(10, 10, 10)]
    text = load_text(answer(tmp_path, answers, *stages))
    listed = text.split("STAGES")[1].splitlines()
    assert listed[2].split()[:5] == ["stage", "1", "20/s", "200", "20.0"]
    assert listed[3].split()[:4] == ["eight", "8", "users", "100"]
    assert "STAGES" not in load_text(answer(tmp_path / "one", answers[:200], stages[0]))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_stages_fit_into_their_terminal(tmp_path: Path, width: int) -> None:
    stages = [load_stage(0, 0, 10, rate_rps=20.0), load_stage(1, 10, 10, concurrency=2000)]
    answers = [served(due_s, ttft_s=0.1234) for due_s in even(20, 10)]
    answers += [served(due_s, stage=1, closed=True) for due_s in even(10, 10, 10)]
    listed = load_text(answer(tmp_path, answers, *stages), width).split("STAGES")[1]
    assert "…" not in listed
    assert "2,000 users" in listed


def test_without_a_terminal_no_width_is_guessed_and_no_line_ends_in_blanks(plain: LoadAnswer) -> None:
    buffer = io.StringIO()
    print_load(Console(file=buffer, width=61), plain)
    assert buffer.getvalue() == load_text(plain, 100)


def test_text_from_a_hostile_service_stays_text(tmp_path: Path) -> None:
    target = TargetFacts(url="http://x", engine="vllm", model=HOSTILE, engine_version=HOSTILE)
    answers = [Answer(s, s, status="http_error", fields={"error": HOSTILE}) for s in even(10, 2)]
    reasons = (msgspec.structs.replace(STALL, statement=HOSTILE),)
    found = answer(
        tmp_path, answers, load_stage(name=HOSTILE, length_s=2), target=target, reasons=reasons, validity="INVALID"
    )
    text = load_text(found, color=True)
    for forbidden in ("\x1b[31mred", "\x1b]0;", "\x07", "\x00", "\u202e"):
        assert forbidden not in text
    assert "[bold]not bold[/bold]" in load_text(found)
    assert json.loads(load_json(found))["error_samples"]["http_error"] == [HOSTILE]


def test_a_terminal_without_unicode_gets_ascii(plain: LoadAnswer) -> None:
    buffer = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_load(Console(file=buffer, width=100), plain)
    buffer.flush()
    buffer.seek(0)
    assert "LATENCY" in buffer.read()
    assert load_text(plain, ascii_only=True).isascii()


@pytest.mark.parametrize("width", [1, 60, 500])
def test_any_width_is_printed(plain: LoadAnswer, width: int) -> None:
    assert "VALID" in load_text(plain, width)


def test_a_load_without_answers_says_so(tmp_path: Path) -> None:
    text = load_text(answer(tmp_path, [Answer(1.0, 1.0, status="transport_error", fields={"phase": "connect"})]))
    assert "0 completed" in text and "1  transport error at connect" in text
    assert "sent late" in text
    empty = load_text(answer(tmp_path / "empty", [], load_stage(kind="warmup")))
    assert "no request was answered" in empty and "nothing was measured" in empty


def test_the_json_has_its_keys_and_figures(plain: LoadAnswer) -> None:
    found = json.loads(load_json(plain))
    for key in (
        *("schema", "run", "validity", "validity_reasons", "offered", "issued", "completed", "errors"),
        *("error_samples", "achieved_rate_rps", "completed_rate_rps", "metrics", "delivered", "stages", "tokens"),
        *("workers", "notes"),
    ):
        assert key in found
    assert next(iter(found)) == "schema" and found["schema"] == "pinchpoint.load/1"
    assert found["errors"] == {"rejected": 1, "timeout:first-token": 1}
    ttft = found["metrics"]["ttft_s"]
    assert ttft["intervals"]["p50"][0] < ttft["p50"] < ttft["intervals"]["p50"][1]
    assert ttft["p999"] is None and ttft["intervals"]["p999"] is None
    assert found["stages"][0]["metrics"]["ttft_s"] == ttft
    assert found["stages"][0]["offered"] == found["offered"]
    assert sum(found["delivered"]["per_second"]["offered"]) == found["offered"]
    assert found["workers"][0]["issued"] == found["issued"]


def test_each_of_several_backends_has_its_line(tmp_path: Path) -> None:
    dead = {"error": "connection refused", "phase": "connect", "backend": 1}
    answers = [served(0.1 * i, fields={"backend": 0}) for i in range(8)]
    answers += [Answer(0.1 * i + 0.05, 0.1 * i + 0.05, status="transport_error", fields=dead) for i in range(4)]
    plan = {"backends": [{"url": "http://b.example", "weight": 1.0}]}
    screen = load_text(answer(tmp_path, answers, plan=plan), 100)
    block = screen[screen.index("BACKENDS") :]
    assert re.search(r"http://127.0.0.1:8000 +8 +8 +0", block)
    assert re.search(r"http://b.example +4 +0 +4", block)


def test_users_who_think_are_not_held_against_all_of_them_being_in_flight(tmp_path: Path) -> None:
    stage = load_stage(concurrency=4, think_s=1.0, length_s=10)
    screen = load_text(answer(tmp_path, [served(float(i), closed=True) for i in range(8)], stage), 100)
    assert "of 4 users in flight on average" in screen


def test_each_class_has_a_line_and_its_own_slos_are_judged(tmp_path: Path) -> None:
    answers = [
        *(served(0.1 * i, ttft_s=0.05, fields={"class_id": 0}) for i in range(100)),
        *(served(0.1 * i + 0.05, ttft_s=0.3, fields={"class_id": 1}) for i in range(100)),
    ]
    slos = parse_slos(["chat: ttft p95 < 100ms", "rag: ttft p95 < 200ms", "tpot p95 < 50ms"])
    told = answer(tmp_path, answers, classes=("chat", "rag"), workload="chat + rag", slos=slos)
    text = load_text(told, 120)
    assert "chat + rag" in text
    assert re.search(r"^chat +100 +100 +50 ms", text, re.MULTILINE)
    assert re.search(r"^rag +100 +100 +300 ms", text, re.MULTILINE)
    assert "chat: ttft p95 < 100ms  kept: met by 100 % of 100 requests" in text
    assert "rag: ttft p95 < 200ms  missed: met by 0 % of 100 requests" in text
    assert "tpot p95 < 50ms  kept: met by 100 % of 200 requests" in text
    fields = json.loads(load_json(told))
    assert [(each["name"], each["completed"], each["slos"][0]["met"]) for each in fields["classes"]] == [
        ("chat", 100, 100),
        ("rag", 100, 0),
    ]
    assert [each["name"] for each in fields["delivered"]["class_lengths"]] == ["chat", "rag"]
    assert fields["run"]["workload"] == "chat + rag"


def test_a_hostile_class_name_stays_text(tmp_path: Path) -> None:
    told = answer(tmp_path, [served(0.1)], classes=(HOSTILE, "b"), workload=HOSTILE)
    assert "\x1b" not in load_text(told, 120) and "\x07" not in load_text(told, 120)
