"""The null server speaks the API, keeps its times and writes into every token when it was sent."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from pinchpoint.clock import monotonic_ns
from pinchpoint.fetch import Answer, exchange
from pinchpoint.load.null_server import STAMP, TAGGED_STAMP
from pinchpoint.targets.openai import parse_answer, parse_event
from pinchpoint.targets.sse import SseParser

CHAT = "/v1/chat/completions"
OPTIONS = ("--first-ms", "0", "--gap-ms", "0", "--tokens", "5", "--until-stdin-closes")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "pinchpoint.load.null_server", *OPTIONS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    server.stdin.close()
    assert server.wait(5) == 0
    server.stdout.close()


def send(method: str, url: str, body: bytes | None = None) -> Answer:
    return exchange(method, url, headers={}, timeout_s=5.0, max_bytes=1 << 24, body=body)


def ask(url: str, path: str = CHAT, **body: Any) -> bytes:
    answer = send("POST", url + path, json.dumps(body).encode())
    assert answer.status == 200 and answer.complete
    return answer.body


def events(body: bytes) -> list[bytes]:
    return [data for _, data in SseParser().feed(body)]


def test_it_can_be_probed(url: str) -> None:
    assert send("GET", url + "/health").status == 200
    assert json.loads(send("GET", url + "/v1/models").body)["data"][0]["id"] == "null"
    assert send("GET", url + "/metrics").status == 404


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_stream_has_as_many_tokens_as_asked_and_an_end(url: str, path: str) -> None:
    data = events(ask(url, path, stream=True, max_tokens=7, stream_options={"include_usage": True}))
    chunks = [parse_event(b"", one) for one in data]
    assert sum(chunk.has_text for chunk in chunks) == 7
    assert chunks[-1].done
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]
    assert [chunk.usage.output_tokens for chunk in chunks if chunk.usage] == [7]


def test_tokens_carry_the_instants_at_which_they_were_sent_in_order(url: str) -> None:
    before_ns = monotonic_ns()
    data = events(ask(url, stream=True, max_tokens=4, timing={"first_ms": 2, "gap_ms": 3}))
    stamps = [int(match[1]) for one in data if (match := STAMP.search(one))]
    assert len(stamps) == 4
    assert stamps[0] - before_ns >= 2_000_000
    assert all(later - earlier >= 2_900_000 for earlier, later in pairwise(stamps))
    assert stamps[-1] <= monotonic_ns()


def test_the_tag_of_a_request_comes_back_in_each_of_its_tokens(url: str) -> None:
    data = events(ask(url, stream=True, max_tokens=3, timing={"tag": 4711}))
    assert [int(match[1]) for one in data if (match := TAGGED_STAMP.search(one))] == [4711] * 3


def test_a_whole_answer_has_text_and_usage(url: str) -> None:
    chunk = parse_answer(ask(url, stream=False, max_tokens=3))
    assert chunk.usage is not None and chunk.usage.output_tokens == 3
    assert chunk.finish_reason == "length"


def test_without_max_tokens_the_server_says_how_many(url: str) -> None:
    assert sum(parse_event(b"", one).has_text for one in events(ask(url, stream=True))) == 5


def test_a_reader_that_does_not_read_holds_up_nobody_and_loses_nothing(url: str) -> None:
    tokens = 40_000  # some 8 MB: more than socket buffers hold
    body = json.dumps({"stream": True, "max_tokens": tokens}).encode()
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 5.0) as slow:
        slow.sendall(b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        assert len(events(ask(url, stream=True, max_tokens=3))) == 5
        received = bytearray()
        while not received.endswith(b"0\r\n\r\n"):
            received += slow.recv(1 << 20)
    assert len(STAMP.findall(received)) == tokens


def test_two_requests_sent_at_once_are_answered_one_after_the_other(url: str) -> None:
    body = b'{"stream": true, "max_tokens": 2}'
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 5.0) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body) * 2)
        received = bytearray()
        while received.count(b"0\r\n\r\n") < 2:
            received += connection.recv(1 << 16)
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert len(STAMP.findall(received)) == 4


def test_what_is_not_a_request_is_refused(url: str) -> None:
    assert send("POST", url + CHAT, b"not json").status == 400
