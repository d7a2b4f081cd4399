"""Every API of the lab: what it takes, what it answers, and that all count tokens by one rule."""

import base64
import json
import struct
import zlib
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lab_server import FAST, Lab, against

from pinchpoint.lab.answers import answer_to, stopped
from pinchpoint.lab.api import Api, ApiError, Ranking
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.tokens import CHAT_TEMPLATE_TOKENS, MESSAGE_TOKENS, Talk, strings, tokens_of_image, tokens_of_talk
from pinchpoint.load.exchange import Exchange
from pinchpoint.prompt import Message, Prompt
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import TargetSpec

MODEL = "llama-3-8b"
API = Api(LabParams(), 1)
TOOL = {"name": "look_up", "description": "Finds a word.", "parameters": {"type": "object", "properties": {}}}
TALK = [("system", "be brief"), ("user", "one two three"), ("assistant", "four five"), ("user", "six")]
WORDS = 8
COUNT = CHAT_TEMPLATE_TOKENS + 3 * MESSAGE_TOKENS + WORDS


def body(**members: Any) -> bytes:
    return json.dumps({"model": MODEL, **members}).encode()


def png(width: int, height: int) -> str:
    """base64 of a whole picture, written by hand from the specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + bytes(width)) * height))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")).decode()


# -- one rule for tokens -------------------------------------------------------------------------------------------


def chat(**members: Any) -> bytes:
    return body(messages=[{"role": role, "content": text} for role, text in TALK], max_tokens=5, **members)


def responses(**members: Any) -> bytes:
    items = [{"role": role, "content": text} for role, text in TALK[1:]]
    return body(instructions=TALK[0][1], input=items, max_output_tokens=5, **members)


def messages(**members: Any) -> bytes:
    items = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK[1:]]
    return body(system=TALK[0][1], messages=items, max_tokens=5, **members)


def test_a_conversation_counts_the_same_for_every_api() -> None:
    asked = [
        API.generation(chat(), "chat"),
        API.generation(responses(), "responses"),
        API.generation(messages(), "messages"),
    ]
    assert [one.prompt_tokens for one in asked] == [COUNT] * 3
    assert [one.max_output_tokens for one in asked] == [5] * 3
    assert json.loads(API.tokenize(chat()))["count"] == COUNT


def test_functions_cost_the_same_in_every_form() -> None:
    counted = {
        API.generation(chat(tools=[{"type": "function", "function": TOOL}]), "chat").prompt_tokens,
        API.generation(responses(tools=[{"type": "function", **TOOL}]), "responses").prompt_tokens,
        API.generation(
            messages(
                tools=[{"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}]
            ),
            "messages",
        ).prompt_tokens,
    }
    assert counted == {COUNT + len(json.dumps(TOOL).split())}


def test_images_cost_squares_in_every_form() -> None:
    data = png(57, 28)
    url = f"data:image/png;base64,{data}"
    asked = {
        "chat": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it"}],
        "responses": [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "what is it"}],
        "messages": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
            {"type": "text", "text": "what is it"},
        ],
    }
    for dialect, content in asked.items():
        name = "input" if dialect == "responses" else "messages"
        raw = body(**{name: [{"role": "user", "content": content}]}, max_tokens=5)
        assert API.generation(raw, dialect).prompt_tokens == CHAT_TEMPLATE_TOKENS + 3 + 3, dialect  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "height", "tokens"), [(1, 1, 1), (28, 28, 1), (29, 28, 2), (512, 512, 19 * 19)])
def test_an_image_has_a_token_for_each_square_that_it_touches(width: int, height: int, tokens: int) -> None:
    assert tokens_of_image(png(width, height)) == tokens


@pytest.mark.parametrize("data", ["", "http://else/where.png", "AAAA", "not base64!", png(4, 4)[:20]])
def test_an_image_that_cannot_be_read_has_a_usual_number(data: str) -> None:
    assert tokens_of_image(data) == 256


@given(st.text())
def test_the_strings_of_a_text_are_as_many_as_its_tokens_and_join_to_it(text: str) -> None:
    assert len(strings(text)) == len(text.split())
    assert "".join(strings(text)) == text.rstrip()


def test_tokenize_tells_the_texts_of_tokens_if_asked() -> None:
    told = json.loads(API.tokenize(body(prompt="One two,\n three.", return_token_strs=True)))
    assert told["token_strs"] == ["One", " two,", "\n three."]
    assert (told["count"], told["tokens"], told["max_model_len"]) == (3, [0, 1, 2], 8192)
    told = json.loads(API.tokenize(chat(tools=[{"type": "function", "function": TOOL}], return_token_strs=True)))
    assert len(told["token_strs"]) == told["count"] == len(told["tokens"])
    assert "token_strs" not in json.loads(API.tokenize(chat()))


@given(st.lists(st.text(alphabet="ab \n"), min_size=1, max_size=5))
def test_a_longer_history_never_costs_less(texts: list[str]) -> None:
    counts = [tokens_of_talk(Talk(texts[: n + 1])) for n in range(len(texts))]
    assert counts == sorted(counts)
    assert counts[-1] == CHAT_TEMPLATE_TOKENS + MESSAGE_TOKENS * (len(texts) - 1) + sum(len(t.split()) for t in texts)


# -- limits --------------------------------------------------------------------------------------------------------


def test_a_limit_is_the_length_and_without_one_min_tokens_and_ignore_eos_are_kept() -> None:
    asked = API.generation(body(prompt="a", max_tokens=7, min_tokens=7, ignore_eos=True), "completions")
    assert (asked.max_output_tokens, asked.finish_reason) == (7, "length")
    for _ in range(20):
        assert API.generation(body(prompt="a", min_tokens=3000), "completions").max_output_tokens >= 3000
    endless = API.generation(body(prompt="a", ignore_eos=True), "completions")
    assert (endless.max_output_tokens, endless.finish_reason) == (8191, "length")


BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("least above most", "chat", {"messages": [{"role": "user"}], "max_tokens": 2, "min_tokens": 3}, "min_tokens is 3"),
    *[
        (f"{name} {value}", "completions", {"prompt": "a", name: value}, says)
        for name, value, says in (
            ("temperature", -4, "temperature is -4; it must be in [0, 2]"),
            ("temperature", 2.5, "temperature is 2.5"),
            ("top_p", 0, "top_p is 0; it must be in (0, 1]"),
            ("top_p", 1.5, "top_p is 1.5"),
            ("top_k", -2, "top_k is"),
            ("min_p", 2, "min_p is 2"),
            ("presence_penalty", 3, "presence_penalty is 3"),
            ("max_tokens", -1, "max_tokens is -1"),
            ("logprobs", 0, "logprobs are not available"),
            ("echo", True, "echo is not available"),
            ("stop", "", "an empty text"),
            ("best_of", 2, "best_of is 2"),
        )
    ],
    ("no limit", "messages", {"messages": [{"role": "user", "content": "a"}]}, "'max_tokens' is missing"),
    ("no input", "responses", {}, "'input' is missing"),
    ("a part that is none", "responses", {"input": [{"type": "function_call_output", "output": [1]}]}, "is no object"),
    ("no texts", "embeddings", {}, "'input' is missing"),
    ("an unknown encoding", "embeddings", {"input": "a", "encoding_format": "hex"}, "float or base64"),
    ("too many numbers", "embeddings", {"input": "a", "dimensions": 5000}, "between 1 and 1024"),
    ("too long a text", "embeddings", {"input": ["a", "b " * 9000]}, "maximum context length"),
    ("too many texts", "embeddings", {"input": ["a"] * 3000}, "2048 are allowed"),
    ("no documents", "rerank", {"query": "a", "documents": []}, "'query' and 'documents'"),
    ("lists of two lengths", "score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "as many as the other"),
]


@pytest.mark.parametrize(("remark", "api", "members", "says"), BAD, ids=[bad[0] for bad in BAD])
def test_what_an_api_cannot_serve_is_refused_in_words(
    remark: str, api: Any, members: dict[str, Any], says: str
) -> None:
    with pytest.raises(ApiError) as caught:
        if api in ("embeddings", "rerank", "score"):
            API.ranking(body(**members), api)
        else:
            API.generation(body(**members), api)
    assert says in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "members", [{"temperature": 0, "top_p": 1, "top_k": -1, "logprobs": False, "echo": False, "best_of": 1, "stop": []}]
)
def test_what_does_not_change_an_answer_is_taken(members: dict[str, Any]) -> None:
    assert API.generation(body(prompt="a", max_tokens=3, **members), "completions").max_output_tokens == 3


@given(request_id=st.integers(0, 200), start=st.integers(0, 200), size=st.integers(1, 20), stream=st.booleans())
def test_an_answer_ends_before_its_stop_text_and_at_the_token_that_completes_it(
    request_id: int, start: int, size: int, stream: bool
) -> None:
    free = API.generation(body(prompt="a", max_tokens=120), "completions")
    whole = json.loads(answer_to(free, MODEL, request_id, 0).whole(120))["choices"][0]["text"]
    stop = whole[start : start + size]
    asked = API.generation(body(prompt="a", max_tokens=120, stop=[stop, "nowhere at all"]), "completions")
    ended = stopped(asked, request_id)
    expected, n = whole[: whole.find(stop)], ended.max_output_tokens
    words = whole.split(" ")
    until = [len(" ".join(words[: i + 1])) for i in range(len(words))]
    assert until[n - 1] >= len(expected) + len(stop) and (n == 1 or until[n - 2] < len(expected) + len(stop))
    answer = answer_to(ended, MODEL, request_id, 0)
    if stream:
        events = answer.first(n == 1)
        events += [answer.last(i) if i == n - 1 else answer.token(i) for i in range(1, n)]
        parts = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]
        assert "".join(part["text"] for part in parts) == expected
        last = parts[-1]
    else:
        last = json.loads(answer.whole(n))["choices"][0]
        assert last["text"] == expected
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def test_a_stop_text_that_never_comes_or_comes_too_early_ends_nothing() -> None:
    asked = API.generation(body(prompt="a", max_tokens=9, min_tokens=9, stop="river"), "completions")
    assert stopped(asked, 0).finish_reason == "length"
    asked = API.generation(body(prompt="a", max_tokens=9, stop="Rhine"), "completions")
    assert stopped(asked, 0) == asked


def test_a_stop_sequence_is_told_by_messages_and_streamed_over_http() -> None:
    async def scenario(lab: Lab) -> None:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 200}
        _, answer, _ = await lab.post("/v1/messages", {**asked, "stop_sequences": ["gulls turn"]})
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "gulls turn")
        assert answer["content"][0]["text"].endswith("where ")
        events = await lab.events("/v1/chat/completions", {**asked, "stop": "gulls turn"})
        text = "".join(event["choices"][0]["delta"]["content"] for event in events)
        assert text.endswith("where ") and events[-1]["choices"][0]["stop_reason"] == "gulls turn"

    against(FAST, scenario)


def test_an_error_has_the_form_of_its_api() -> None:
    async def scenario(lab: Lab) -> None:
        status, answer, _ = await lab.post("/v1/messages", {"model": MODEL, "messages": []})
        assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
        status, answer, _ = await lab.post("/v1/messages", {"model": "x", "messages": [], "max_tokens": 1})
        assert (status, answer["error"]["type"]) == (404, "not_found_error")
        status, answer, _ = await lab.post("/v1/responses", {"model": MODEL})
        assert (status, answer["error"]["code"]) == (400, 400)

    against(FAST, scenario)


# -- answers over HTTP ---------------------------------------------------------------------------------------------


async def typed_events(lab: Lab, path: str, members: dict[str, Any]) -> list[tuple[str, Any]]:
    """(type, data) of a stream, taken apart without the help of any parser of ours."""
    async with lab.session.post(lab.base + path, json={"model": MODEL, "stream": True, **members}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = await answer.text()
    found = []
    for block in text.split("\n\n")[:-1]:
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_responses_are_streamed_event_by_event() -> None:
    async def scenario(lab: Lab) -> None:
        events = await typed_events(lab, "/v1/responses", {"input": "one two", "max_output_tokens": 4})
        kinds = [kind for kind, _ in events]
        assert kinds == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * 4,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
        assert [data["type"] for _, data in events] == kinds
        assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
        text = "".join(data["delta"] for kind, data in events if kind.endswith("delta"))
        last = events[-1][1]["response"]
        assert len(text.split()) == 4
        assert text == events[-4][1]["text"] == last["output"][0]["content"][0]["text"]
        assert last["usage"]["input_tokens"] == CHAT_TEMPLATE_TOKENS + 2
        assert (last["usage"]["output_tokens"], last["usage"]["total_tokens"]) == (4, CHAT_TEMPLATE_TOKENS + 6)
        assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        status, whole, _ = await lab.post("/v1/responses", {"model": MODEL, "input": "one two", "max_output_tokens": 4})
        assert status == 200 and whole["usage"] == last["usage"] and whole["status"] == "incomplete"
        status, whole, _ = await lab.post("/v1/responses", {"model": MODEL, "input": "one two"})
        assert whole["status"] == "completed" and whole["incomplete_details"] is None

    against(FAST, scenario)


def test_messages_are_streamed_event_by_event() -> None:
    async def scenario(lab: Lab) -> None:
        asked = {"messages": [{"role": "user", "content": "one two"}], "max_tokens": 3}
        events = await typed_events(lab, "/v1/messages", asked)
        kinds = [kind for kind, _ in events]
        assert kinds == [
            "message_start",
            "content_block_start",
            "ping",
            *["content_block_delta"] * 3,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert [data["type"] for _, data in events] == kinds
        assert events[0][1]["message"]["usage"]["input_tokens"] == CHAT_TEMPLATE_TOKENS + 2
        assert events[-2][1]["usage"] == {"output_tokens": 3}
        assert events[-2][1]["delta"]["stop_reason"] == "max_tokens"
        text = "".join(data["delta"]["text"] for kind, data in events if kind == "content_block_delta")
        assert len(text.split()) == 3
        status, whole, _ = await lab.post("/v1/messages", {"model": MODEL, **asked})
        assert (status, whole["stop_reason"]) == (200, "max_tokens")
        assert len(whole["content"][0]["text"].split()) == 3
        assert whole["usage"] == {"input_tokens": CHAT_TEMPLATE_TOKENS + 2, "output_tokens": 3}

    against(FAST, scenario)


def test_one_token_is_first_and_last_in_every_api() -> None:
    async def scenario(lab: Lab) -> None:
        events = await typed_events(lab, "/v1/responses", {"input": "a", "max_output_tokens": 1})
        assert [kind for kind, _ in events].count("response.output_text.delta") == 1
        asked = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        events = await typed_events(lab, "/v1/messages", asked)
        assert [kind for kind, _ in events].count("content_block_delta") == 1

    against(FAST, scenario)


def test_texts_are_embedded_ranked_and_scored_and_their_tokens_told() -> None:
    async def scenario(lab: Lab) -> None:
        status, told, _ = await lab.post("/v1/embeddings", {"model": MODEL, "input": ["one two", "three"]})
        assert status == 200
        assert [one["index"] for one in told["data"]] == [0, 1]
        assert {len(one["embedding"]) for one in told["data"]} == {1024}
        assert told["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}
        packed = {"model": MODEL, "input": [5, 6, 7], "encoding_format": "base64", "dimensions": 8}
        _, short, _ = await lab.post("/v1/embeddings", packed)
        floats = struct.unpack("<8f", base64.b64decode(short["data"][0]["embedding"]))
        assert floats == pytest.approx(told["data"][0]["embedding"][:8])
        assert short["usage"]["prompt_tokens"] == 3
        asked = {"model": MODEL, "query": "old river", "documents": ["a door", "the old river", "old"], "top_n": 2}
        for path in ("/v1/rerank", "/rerank"):
            _, ranked, _ = await lab.post(path, asked)
            assert [one["index"] for one in ranked["results"]] == [1, 2]
            assert [one["relevance_score"] for one in ranked["results"]] == [1.0, 0.5]
            assert ranked["results"][0]["document"]["text"] == "the old river"
            assert ranked["usage"] == {"total_tokens": 3 * 2 + 2 + 3 + 1}
        _, scored, _ = await lab.post("/v1/score", {"model": MODEL, "text_1": "a", "text_2": ["a", "b c"]})
        assert [one["score"] for one in scored["data"]] == [1.0, 0.0]
        assert scored["usage"]["prompt_tokens"] == 2 + 3
        assert await lab.metric("vllm:prompt_tokens_total") == 3 + 3 + 2 * 12 + 5

    against(FAST, scenario)


def test_a_client_that_leaves_while_its_texts_are_ranked_frees_all_of_them() -> None:
    async def scenario(lab: Lab) -> None:
        asked = {"model": MODEL, "input": ["word " * 2000] * 40}
        with pytest.raises(TimeoutError):
            await lab.session.post(lab.base + "/v1/embeddings", json=asked, timeout=aiohttp.ClientTimeout(total=0.3))
        while await lab.metric("vllm:num_requests_running") + await lab.metric("vllm:num_requests_waiting"):
            pass
        assert await lab.metric("vllm:kv_cache_usage_perc") == 0
        status, _, _ = await lab.post("/v1/embeddings", {"model": MODEL, "input": "one"})
        assert status == 200

    against(LabParams(gpu="L40S", in_flight_limit=1), scenario)


def test_best_documents_come_first_and_equal_ones_keep_their_order() -> None:
    ranking = Ranking("rerank", (1, 1, 1), ("a", "b", "c"), (0.5, 1.0, 0.5))
    assert ranking.ranked() == [(1, 1.0), (0, 0.5), (2, 0.5)]


# -- read by the targets that read real services -------------------------------------------------------------------

PROMPT = Prompt(
    tuple(Message(role, text) for role, text in TALK),  # type: ignore[arg-type]
    input_tokens=COUNT,
    max_output_tokens=6,
)
RANKED = Prompt.of("old river", 0, 5)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", ["chat", "completions", "responses", "messages"])
def test_a_target_reads_what_the_lab_answers(api: str, stream: bool) -> None:
    target = make_target(TargetSpec(api, MODEL, "vllm", stream=stream))
    counted = len(PROMPT.text.split()) if api == "completions" else COUNT

    async def scenario(lab: Lab) -> None:
        async with lab.session.post(lab.base + target.path, data=target.build(PROMPT)) as answer:
            assert answer.status == 200
            payload = await answer.read()
        exchange = Exchange(ScheduledRequest(0, 0, 0, 0, 0, 0, 1, 1), 0, target.reader(), keep_text=True)
        kind = answer.headers["content-type"]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\n\r\n"
        assert exchange.take(head.encode() + payload, 1)
        assert exchange.status == "ok", exchange.error
        assert exchange.usage is not None
        assert (exchange.usage.input_tokens, exchange.usage.output_tokens) == (counted, 6)
        assert len(exchange.text.split()) == 6
        assert len(exchange.chunk_ns) == (6 if stream else 0)

    against(FAST, scenario)


@pytest.mark.parametrize("api", ["embeddings", "rerank", "score"])
def test_a_target_that_generates_nothing_reads_what_the_lab_answers(api: str) -> None:
    target = make_target(TargetSpec(api, MODEL, "vllm"))
    prompt = msgspec.structs.replace(RANKED, documents=("the old river", "a door"))
    counted = 2 + 3 + 2 if api == "embeddings" else 2 * 2 + 3 + 2

    async def scenario(lab: Lab) -> None:
        async with lab.session.post(lab.base + target.path, data=target.build(prompt)) as answer:
            chunk = target.parse_answer(await answer.read())
        assert (answer.status, chunk.error) == (200, None)
        assert chunk.usage is not None and chunk.usage.input_tokens == counted

    against(FAST, scenario)
