"""The server over loopback, with an outside HTTP client as judge of the protocol."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

import pinchpoint
from pinchpoint.errors import UsageError
from pinchpoint.lab.api import Api
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.scenario import Scenario
from pinchpoint.lab.server import Ports, Serving, serve

CHAT = {"model": "llama-3-8b", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 4}
FAST = LabParams(gpu="H100")
ANY_PORT = Serving(port=0)


class Lab:
    def __init__(self, base: str, ports: Ports, session: aiohttp.ClientSession) -> None:
        self.base = base
        self.ports = ports
        self.port = ports.port
        self.session = session

    async def post(self, path: str, body: Any) -> tuple[int, Any, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.base + path, data=data) as answer:
            return answer.status, await answer.json(content_type=None), answer.headers

    async def get(self, path: str) -> tuple[int, str, Any]:
        async with self.session.get(self.base + path) as answer:
            return answer.status, await answer.text(), answer.headers

    async def events(self, path: str, body: Any) -> list[Any]:
        async with self.session.post(self.base + path, json={**body, "stream": True}) as answer:
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            text = await answer.text()
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return [json.loads(line) for line in lines]

    async def metric(self, name: str) -> float:
        _, page, _ = await self.get("/metrics")
        return sum(s.value for f in text_string_to_metric_families(page) for s in f.samples if s.name == name)


@asynccontextmanager
async def running(params: LabParams | Scenario, serving: Serving = ANY_PORT) -> AsyncIterator[Lab]:
    ready: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(params, serving, ready.set_result))
    await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await task
    port = ready.result().port
    async with aiohttp.ClientSession() as session:
        try:
            yield Lab(f"http://127.0.0.1:{port}", ready.result(), session)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def against(
    params: LabParams | Scenario, scenario: Callable[[Lab], Awaitable[None]], serving: Serving = ANY_PORT
) -> None:
    async def main() -> None:
        async with running(params, serving) as lab:
            await asyncio.wait_for(scenario(lab), 20)

    asyncio.run(main())


def test_a_chat_stream_is_role_then_words_then_reason_then_usage() -> None:
    async def scenario(lab: Lab) -> None:
        events = await lab.events("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
        deltas = [e["choices"][0]["delta"] for e in events[:-1]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        text = "".join(d["content"] for d in deltas)
        assert len(text.split()) == 4
        reasons = [e["choices"][0]["finish_reason"] for e in events[:-1]]
        assert reasons == [None, None, None, None, "length"]
        assert events[-1]["choices"] == []
        assert events[-1]["usage"] == {"prompt_tokens": 15, "completion_tokens": 4, "total_tokens": 19}
        assert {e["object"] for e in events} == {"chat.completion.chunk"}
        assert len({e["id"] for e in events}) == 1

    against(FAST, scenario)


def test_one_token_is_first_and_last_at_once() -> None:
    async def scenario(lab: Lab) -> None:
        events = await lab.events("/v1/chat/completions", {**CHAT, "max_tokens": 1})
        assert [e["choices"][0]["finish_reason"] for e in events] == [None, "length"]
        events = await lab.events("/v1/completions", {"model": "llama-3-8b", "prompt": "a b", "max_tokens": 1})
        assert [e["choices"][0]["finish_reason"] for e in events] == ["length"]

    against(FAST, scenario)


def test_whole_answers_and_both_apis_agree_on_tokens_with_tokenize() -> None:
    async def scenario(lab: Lab) -> None:
        status, chat, headers = await lab.post("/v1/chat/completions", {**CHAT, "max_completion_tokens": 7})
        assert status == 200 and headers["server"] == "pinchpoint-lab"
        assert len(chat["choices"][0]["message"]["content"].split()) == chat["usage"]["completion_tokens"] == 7
        _, counted, _ = await lab.post("/tokenize", {"model": "llama-3-8b", "messages": CHAT["messages"]})
        assert counted["count"] == chat["usage"]["prompt_tokens"] == 15
        body = {"model": "llama-3-8b", "prompt": "one two three", "max_tokens": 5}
        _, text, _ = await lab.post("/v1/completions", body)
        assert text["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        _, ids, _ = await lab.post("/v1/completions", {**body, "prompt": [5, 6, 7, 8]})
        assert ids["usage"]["prompt_tokens"] == 4
        _, counted, _ = await lab.post("/tokenize", {"prompt": "one two three"})
        assert counted == {"count": 3, "max_model_len": 8192, "tokens": [0, 1, 2]}
        assert await lab.metric("vllm:generation_tokens_total") == 17

    against(FAST, scenario)


def test_an_answer_without_limit_ends_by_itself_or_at_the_context() -> None:
    body = json.dumps({"model": "llama-3-8b", "prompt": "a"}).encode()
    roomy, tight = (Api(LabParams(kv_blocks=blocks), 1).generation(body, "completions") for blocks in (None, 1))
    assert (roomy.finish_reason, tight.finish_reason) == ("stop", "length")
    assert tight.max_output_tokens == 15 < roomy.max_output_tokens


def test_side_routes_answer_like_a_vllm_server() -> None:
    async def scenario(lab: Lab) -> None:
        assert (await lab.get("/health"))[0] == 200
        assert json.loads((await lab.get("/version"))[1]) == {"version": f"pinchpoint-lab {pinchpoint.__version__}"}
        models = json.loads((await lab.get("/v1/models"))[1])
        assert [(m["id"], m["max_model_len"]) for m in models["data"]] == [("llama-3-8b", 8192)]
        status, page, headers = await lab.get("/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain")
        assert "vllm:kv_cache_usage_perc{" in page
        assert (await lab.get("/nothing"))[0] == 404
        assert (await lab.get("/v1/chat/completions"))[0] == 405

    against(FAST, scenario)


BAD_REQUESTS = [
    ("not JSON", b"{", 400, "not JSON"),
    ("not an object", b"[1]", 400, "not valid"),
    ("wrong type", {**CHAT, "max_tokens": "many"}, 400, "max_tokens"),
    ("no model", {"messages": CHAT["messages"]}, 400, "'model' is missing"),
    ("no messages", {"model": "llama-3-8b"}, 400, "'messages' is missing"),
    ("unknown model", {**CHAT, "model": "gpt-9"}, 404, "does not exist"),
    ("no output", {**CHAT, "max_tokens": 0}, 400, "at least 1"),
    ("too long", {**CHAT, "max_tokens": 9000}, 400, "maximum context length is 8192"),
    ("two answers", {**CHAT, "n": 2}, 400, "one answer"),
    ("options without stream", {**CHAT, "stream_options": {"include_usage": True}}, 400, "stream=true"),
]


def test_bad_requests_get_an_openai_error_that_says_what_is_wrong_and_leave_nothing_behind() -> None:
    async def scenario(lab: Lab) -> None:
        for remark, body, status, says in BAD_REQUESTS:
            got, answer, _ = await lab.post("/v1/chat/completions", body)
            assert got == status, remark
            assert answer["error"]["code"] == status
            assert says in answer["error"]["message"], remark
        assert (await lab.post("/v1/chat/completions", CHAT))[0] == 200

    against(LabParams(gpu="H100", in_flight_limit=1), scenario)


def test_a_client_that_disconnects_frees_its_place() -> None:
    async def scenario(lab: Lab) -> None:
        body = {**CHAT, "max_tokens": 8000, "stream": True}
        async with lab.session.post(lab.base + "/v1/chat/completions", json=body) as answer:
            await answer.content.readuntil(b"\n\n")
            assert await lab.metric("vllm:num_requests_running") == 1
            answer.close()
        while await lab.metric("vllm:num_requests_running"):
            await asyncio.sleep(0.01)
        assert await lab.metric("vllm:kv_cache_usage_perc") == 0
        assert await lab.metric("vllm:request_success_total") == 1  # finished_reason="abort"
        assert (await lab.post("/v1/chat/completions", CHAT))[0] == 200

    against(LabParams(gpu="H100", in_flight_limit=1), scenario)


def test_refusals_carry_status_and_retry_after() -> None:
    async def rate(lab: Lab) -> None:
        answers = [await lab.post("/v1/chat/completions", {**CHAT, "max_tokens": 1}) for _ in range(3)]
        assert [status for status, _, _ in answers] == [200, 200, 429]
        assert int(answers[2][2]["retry-after"]) == 100
        assert answers[2][1]["error"]["type"] == "RateLimitError"

    async def full(lab: Lab) -> None:
        async with lab.session.post(
            lab.base + "/v1/chat/completions", json={**CHAT, "stream": True, "max_tokens": 900}
        ):
            status, answer, headers = await lab.post("/v1/chat/completions", CHAT)
            assert (status, headers["retry-after"]) == (503, "1")
            assert "limit is 1" in answer["error"]["message"]
        assert await lab.metric("vllm:admission_rejections_total") == 1

    against(LabParams(gpu="H100", rate_limit_rps=0.01, rate_limit_burst_requests=2), rate)
    against(LabParams(gpu="H100", in_flight_limit=1), full)


async def read_pieces(lab: Lab, body: dict[str, Any]) -> list[bytes]:
    """What recv() returns, piece by piece, over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
    data = json.dumps(body).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: lab\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    pieces = []
    while not b"".join(pieces).endswith(b"0\r\n\r\n"):
        pieces.append(await reader.read(1 << 20))
    writer.close()
    return pieces


def test_a_buffering_proxy_really_holds_the_bytes_back() -> None:
    body = {**CHAT, "max_tokens": 12, "stream": True}

    async def plain(lab: Lab) -> None:
        assert len(await read_pieces(lab, body)) > 6

    async def held(lab: Lab) -> None:
        pieces = await read_pieces(lab, body)
        assert len(pieces) == 1
        assert pieces[0].count(b"data: ") == 14

    against(LabParams(), plain)
    against(LabParams(proxy_buffering=True), held)


def test_keep_alive_pipelining_and_garbage() -> None:
    async def scenario(lab: Lab) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        data = json.dumps({**CHAT, "max_tokens": 2}).encode()
        post = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        writer.write(post + b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n" + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            received += await reader.read(1 << 16)
        assert received.index(b"chat.completion") < received.index(b"pinchpoint-lab 0")
        writer.write(b"this is not http\r\n\r\n")
        assert b"400 Bad Request" in await reader.read()  # and then the connection ends
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        writer.write(b"POST /tokenize HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 16\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b'{"prompt":"a b"}')
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()

    against(FAST, scenario)


def test_http_1_0_gets_a_stream_that_ends_with_the_connection() -> None:
    async def scenario(lab: Lab) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        data = json.dumps({**CHAT, "stream": True}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
        received = await reader.read()
        while not reader.at_eof():
            received += await reader.read()
        assert b"chunked" not in received
        assert received.endswith(b"data: [DONE]\n\n")
        writer.close()

    against(FAST, scenario)


def test_api_cost_is_really_spent_by_the_process_one_request_after_the_other() -> None:
    async def scenario(lab: Lab) -> None:
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        posts = [asyncio.create_task(lab.post("/v1/chat/completions", {**CHAT, "max_tokens": 1})) for _ in range(5)]
        await asyncio.gather(*posts)
        assert time.monotonic() - began_s >= 5 * 0.04
        # A server that slept would have used next to nothing; how much of it a busy host grants is not ours to say.
        assert time.process_time() - began_cpu_s > 0.04

    against(LabParams(gpu="H100", api_request_s=0.04), scenario)


def test_a_taken_port_is_an_error_that_names_it() -> None:
    async def main() -> None:
        async with running(FAST) as lab:
            with pytest.raises(UsageError, match=f"127.0.0.1:{lab.port}"):
                await serve(FAST, Serving(port=lab.port))

    asyncio.run(main())


PROGRAM = """
import sys
from pathlib import Path
from pinchpoint.lab.scenario import choose_scenario
from pinchpoint.lab.server import Serving, run_server
scenario = choose_scenario("random", seed=3)
run_server(scenario, Serving(port=0), truth_file=Path(sys.argv[1]), ready=lambda ports: print(ports.port, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly_and_the_truth_file_is_there(number: signal.Signals, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    source = str(Path(pinchpoint.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(truth)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert int(process.stdout.readline()) > 0
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == b""
    assert json.loads(truth.read_text())["fault"]
