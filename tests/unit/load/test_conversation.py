"""Conversations over real sockets: what a later turn says is what the service answered, byte for byte."""

import json
from collections.abc import Iterable

import pytest

from pinchpoint.plan import build_plan
from pinchpoint.targets.openai import CHAT_PATH, OpenAITarget
from pinchpoint.targets.target import Chunk, Target
from pinchpoint.workload.classes import Traffic, resolve
from pinchpoint.workload.content import ContentWriter
from pinchpoint.workload.tokens import estimated
from tests.support.scripted_server import END, STREAM_HEAD, Piece, ScriptedServer, chunk, event
from tests.unit.load.drive import Driven, driven, request

HARD_TEXTS = (
    ["Hello", " world", "."],
    ['He said "no"', "\n\n", "\\path\t"],
    ["caf\u00e9", " \U0001f600", " \u4f60\u597d"],
    [f" word{i}" for i in range(120)],
)


def conversation(turns: str = "3", **more: object) -> Traffic:
    one = {"preset": "dialogue", "turns": turns, "think": "0s", "system_tokens": 20, **more}
    return resolve(build_plan({"url": "http://x", "seed": 1, "workload": {"classes": [one]}}), None)


def answering(texts: list[str], *, reasoning: bool = False) -> Iterable[Piece]:
    yield STREAM_HEAD
    if reasoning:
        for thought in ("let", " me", " think"):
            payload = {"choices": [{"index": 0, "delta": {"reasoning_content": thought}, "finish_reason": None}]}
            yield chunk(f"data: {json.dumps(payload)}\n\n".encode())
    for text in texts:
        yield chunk(event(text))
    yield chunk(event(finish="stop"))
    yield chunk(event(usage={"prompt_tokens": 5, "completion_tokens": len(texts)}))
    yield chunk(b"data: [DONE]\n\n") + END


def talking(url: str, traffic: Traffic, target: Target | None = None) -> Driven:
    target = target or OpenAITarget(CHAT_PATH, "m", "vllm")
    return Driven(url, targets=[target], content=ContentWriter(1, traffic, estimated(None, None)))


def bodies(server: ScriptedServer) -> list[dict]:
    return [json.loads(raw.partition(b"\r\n\r\n")[2]) for raw in server.requests]


def three_turns() -> list:
    return [request(number, 0.0 if number == 0 else None, session=7, turn=number) for number in range(3)]


@pytest.mark.parametrize("texts", HARD_TEXTS)
def test_a_later_turn_holds_every_answer_before_it_as_it_was_given(texts: list[str]) -> None:
    with ScriptedServer(lambda number, body: answering(texts)) as server:
        driver = talking(server.url, conversation())
        try:
            driver.start(*three_turns())
            driver.until(3)
        finally:
            driver.issuer.close()
    first, second, third = (body["messages"] for body in bodies(server))
    assert [message["role"] for message in first] == ["system", "user"]
    assert [message["role"] for message in third] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert second[:2] == first and third[:4] == second
    assert {message["content"] for message in third if message["role"] == "assistant"} == {"".join(texts)}


def test_the_thinking_of_the_model_is_not_part_of_the_history() -> None:
    with ScriptedServer(lambda number, body: answering(["Yes", "."], reasoning=True)) as server:
        driver = talking(server.url, conversation())
        try:
            driver.start(*three_turns())
            driver.until(3)
        finally:
            driver.issuer.close()
    assert bodies(server)[2]["messages"][2] == {"role": "assistant", "content": "Yes."}


def test_answers_in_one_piece_are_remembered_too() -> None:
    answer = json.dumps({"choices": [{"message": {"content": "Whole."}, "finish_reason": "stop"}]}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
    with ScriptedServer(lambda number, body: [head + answer]) as server:
        driver = talking(server.url, conversation(), OpenAITarget(CHAT_PATH, "m", "vllm", stream=False))
        try:
            driver.start(*three_turns())
            driver.until(3)
        finally:
            driver.issuer.close()
    assert [m["content"] for m in bodies(server)[2]["messages"] if m["role"] == "assistant"] == ["Whole.", "Whole."]


def test_a_turn_that_failed_is_left_out_of_the_history() -> None:
    refusal = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
    with ScriptedServer(lambda number, body: [refusal] if number == 1 else answering(["Fine."])) as server:
        driver = talking(server.url, conversation())
        try:
            driver.start(*three_turns())
            driver.until(3)
        finally:
            driver.issuer.close()
    _, second, third = (body["messages"] for body in bodies(server))
    assert len(second) == 4
    assert third[:3] == second[:3] and len(third) == 4
    assert third[3] != second[3]


def test_a_turn_with_an_instant_waits_for_the_answer_that_it_holds() -> None:
    with ScriptedServer(lambda number, body: [0.15, *answering(["Late."])]) as server:
        driver = talking(server.url, conversation())
        try:
            driver.start(request(0, 0.0, session=7), request(1, 0.02, session=7, turn=1))
            first, second = driver.until(2)
        finally:
            driver.issuer.close()
    assert second.scheduled_ns >= (first.end_ns or 0)
    assert bodies(server)[1]["messages"][2]["content"] == "Late."


def test_the_planned_tokens_of_a_turn_count_the_history() -> None:
    with ScriptedServer(lambda number, body: answering(["a"] * 30)) as server:
        driver = talking(server.url, conversation())
        try:
            driver.start(*three_turns())
            driver.until(3)
        finally:
            driver.issuer.close()
    planned = [exchange.input_tokens for exchange in driver.in_order()]
    assert planned == [20 + 5, 20 + 5 + 30 + 5, 20 + 5 + 30 + 5 + 30 + 5]
    assert [exchange.shared_tokens for exchange in driver.in_order()] == [20, 55, 90]


class _Lines:
    """A service of our own that sends a JSON object per line and no finish reason."""

    name, path, stream, framing, needs_finish, generates = "lines", "/lines", True, "ndjson", False, True
    headers = (("X-Kind", "lines"),)

    def build(self, prompt: object) -> bytes:
        return b"{}"

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        text = json.loads(data)["text"]
        return Chunk(content=bool(text), text=text)

    def parse_answer(self, body: bytes) -> Chunk:
        raise ValueError("not a stream")

    def reader(self) -> "_Lines":
        return self

    def template(self, event: bytes) -> None:
        return None


LINES_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_stream_of_lines_is_read_line_by_line_and_needs_no_finish_where_the_api_has_none() -> None:
    pieces = [LINES_HEAD, chunk(b'{"text":"a"}\n'), 0.05, chunk(b'{"text":'), chunk(b'"b"}\n{"text":"c"}\n') + END]
    with ScriptedServer(lambda number, body: pieces) as server, driven(server.url, targets=[_Lines()]) as driver:
        exchange = driver.one()
    assert (exchange.status, len(exchange.chunk_ns), exchange.coalesced_count) == ("ok", 3, 1)
    assert b"x-kind: lines" in server.requests[0].lower()


@pytest.mark.parametrize(
    ("pieces", "status"),
    [([chunk(b'{"text":"a"}\n'), chunk(b'{"te'), "close"], "truncated"), ([END], "truncated")],
)
def test_a_stream_of_lines_that_breaks_off_or_is_empty_is_truncated(pieces: list[Piece], status: str) -> None:
    script = [LINES_HEAD, *pieces]
    with ScriptedServer(lambda number, body: script) as server, driven(server.url, targets=[_Lines()]) as driver:
        assert driver.one().status == status


def test_each_class_asks_its_own_target() -> None:
    paths = ["/v1/chat/completions", "/other/v1/completions"]
    targets = [OpenAITarget(path, "m", "vllm") for path in paths]
    with (
        ScriptedServer(lambda number, body: answering(["x"])) as server,
        driven(server.url, targets=targets) as driver,
    ):
        rows = [request(number, 0.0) for number in range(2)]
        driver.start(*rows)
        driver.until(2)
    assert all(raw.startswith(b"POST /v1/chat/completions") for raw in server.requests)
