"""Services that speak another API than OpenAI's chat: found by what they answer, or asked for by name."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.probe.fake_engine import Answer, FakeEngine, model_list, openai

from pinchpoint.errors import TargetError, UsageError
from pinchpoint.probe import probe
from pinchpoint.prompt import Prompt
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import TargetSpec

Reply = Callable[[str, dict[str, Any]], Answer | None]


def words(text: str) -> int:
    return len(text.split())


def sse(*events: dict[str, Any]) -> Answer:
    text = "".join(f"event: {one.get('type', 'x')}\ndata: {json.dumps(one)}\n\n" for one in events)
    return Answer(text, content_type="text/event-stream")


def messages(path: str, payload: dict[str, Any]) -> Answer | None:
    if path != "/v1/messages":
        return None
    counted = 10 + words(payload["messages"][0]["content"])
    return sse(
        {"type": "message_start", "message": {"usage": {"input_tokens": counted, "output_tokens": 0}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    )


def responses(path: str, payload: dict[str, Any]) -> Answer | None:
    if path != "/v1/responses":
        return None
    usage = {"input_tokens": 2 * words(payload["input"][0]["content"]), "output_tokens": 1}
    done = {"type": "response.completed", "response": {"status": "completed", "usage": usage}}
    return sse({"type": "response.output_text.delta", "delta": "a"}, done)


def embeddings(path: str, payload: dict[str, Any]) -> Answer | None:
    if path != "/v1/embeddings":
        return None
    counted = words(payload["input"])
    return Answer({"object": "list", "data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": counted}})


def ollama(path: str, payload: dict[str, Any]) -> Answer | None:
    if path != "/api/chat":
        return None
    counted = 20 + words(payload["messages"][0]["content"])
    lines = [
        {"message": {"role": "assistant", "content": "a"}, "done": False},
        {"done": True, "done_reason": "length", "prompt_eval_count": counted, "eval_count": 1},
    ]
    return Answer("".join(json.dumps(line) + "\n" for line in lines), content_type="application/x-ndjson")


def tgi(path: str, payload: dict[str, Any]) -> Answer | None:
    if path != "/generate_stream":
        return None
    details = {"finish_reason": "length", "generated_tokens": 1, "input_length": words(payload["inputs"])}
    event = {"index": 1, "token": {"id": 1, "text": "a", "special": False}, "generated_text": "a", "details": details}
    return Answer(f"data:{json.dumps(event)}\n\n", content_type="text/event-stream")


OLLAMA_PAGES = {
    "/": "Ollama is running",
    "/api/version": {"version": "0.3.0"},
    "/api/tags": {"models": [{"name": "llama3:latest"}]},
}
TGI_PAGES = {"/info": {"model_id": "m", "max_concurrent_requests": 64, "version": "1.4.0"}}
TEI_PAGES = {
    "/info": {
        "model_id": "bge",
        "model_type": {"embedding": {"pooling": "cls"}},
        "max_concurrent_requests": 512,
        "max_client_batch_size": 32,
        "version": "1.7.0",
    }
}
FOUND = [
    (messages, {"/v1/models": model_list("m")}, "messages", "/v1/messages", (10.0, 1.0)),
    (responses, {"/v1/models": model_list("m")}, "responses", "/v1/responses", (0.0, 2.0)),
    (embeddings, {"/v1/models": model_list("m")}, "embeddings", "/v1/embeddings", (0.0, 1.0)),
    (embeddings, TEI_PAGES, "embeddings", "/v1/embeddings", (0.0, 1.0)),
    (ollama, OLLAMA_PAGES, "ollama", "/api/chat", (20.0, 1.0)),
    (tgi, TGI_PAGES, "tgi", "/generate_stream", (0.0, 1.0)),
]


@pytest.mark.parametrize(("reply", "pages", "name", "path", "fit"), FOUND)
def test_an_api_is_found_where_openai_is_not_spoken(
    engine: FakeEngine, reply: Reply, pages: dict, name: str, path: str, fit: tuple[float, float]
) -> None:
    engine.generate, engine.pages = reply, pages
    facts = probe(engine.url)
    assert (facts.api_name, facts.api) == (name, path)
    assert (facts.prompt_overhead_tokens, facts.tokens_per_word) == fit
    streams = name != "embeddings"
    assert (facts.streaming, facts.usage_in_stream) == (streams, True if streams else None)
    assert not any(sentence.startswith("streaming:") for sentence in facts.unknown)


def test_the_openai_api_comes_first(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: openai(path, payload) or messages(path, payload)
    engine.pages = {"/v1/models": model_list("m")}
    facts = probe(engine.url)
    assert (facts.api_name, facts.api) == ("chat", "/v1/chat/completions")
    assert not any(path == "/v1/messages" for path, _ in engine.posts)


def test_an_api_that_is_named_is_the_only_one_tried(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: openai(path, payload) or messages(path, payload)
    engine.pages = {"/v1/models": model_list("m")}
    assert probe(engine.url, api="messages").api_name == "messages"
    assert {path for path, _ in engine.posts} == {"/v1/messages"}
    engine.posts.clear()
    assert probe(engine.url, api="completions").api == "/v1/completions"
    assert {path for path, _ in engine.posts} == {"/v1/completions"}


def test_an_api_may_be_named_by_its_path(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: messages(path.removeprefix("/x"), payload)
    engine.pages = {"/v1/models": model_list("m")}
    facts = probe(engine.url, api="/x/v1/messages")
    assert (facts.api_name, facts.api) == ("messages", "/x/v1/messages")


def test_an_api_that_is_not_there_is_told(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("m")}
    with pytest.raises(TargetError, match="has no API messages"):
        probe(engine.url, api="messages")
    with pytest.raises(UsageError, match="choose from chat"):
        probe(engine.url, api="chatt")


def test_an_answer_of_another_api_is_told_with_its_reason(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: Answer({"hello": "world"})
    engine.pages = {"/v1/models": model_list("m")}
    with pytest.raises(TargetError, match="no content, so it is no message"):
        probe(engine.url, api="messages")


def test_an_error_inside_of_a_good_status_is_a_refusal(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: Answer({"error": "generate expects 1 response"})
    with pytest.raises(TargetError, match="generate expects 1 response"):
        probe(engine.url, api="triton-generate", model="m")


def test_a_grpc_api_is_taken_as_given(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("m")}
    facts = probe(engine.url, api="kserve-grpc")
    assert facts.api_name == "kserve-grpc"
    assert any("speaks HTTP only" in sentence for sentence in facts.unknown)


def test_the_key_goes_where_the_api_wants_it(engine: FakeEngine) -> None:
    assert make_target(TargetSpec("messages", "m")).key_header == "x-api-key"
    seen: list[str | None] = []
    handler = engine.server.RequestHandlerClass
    send = handler._send  # pyright: ignore[reportAttributeAccessIssue]

    def watching(self: Any, answer: Answer) -> None:
        if self.path == "/v1/messages":
            seen.append(self.headers.get("x-api-key"))
        send(self, answer)

    handler._send = watching  # pyright: ignore[reportAttributeAccessIssue]
    engine.generate = messages
    engine.pages = {"/v1/models": model_list("m")}
    probe(engine.url, api_key="sk-1")
    assert seen and set(seen) == {"sk-1"}


# -- model servers --------------------------------------------------------------------------------------------------

TRITON = {"/v2": {"name": "triton", "version": "2.51.0"}, "/v2/health/live": ""}
TEXT_MODEL = {
    "name": "llm",
    "inputs": [
        {"name": "text_input", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "max_tokens", "datatype": "INT32", "shape": [-1, 1]},
    ],
    "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [-1, 1]}],
}
NUMBERS_MODEL = {
    "name": "resnet",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
}


def triton(path: str, payload: dict[str, Any]) -> Answer | None:
    if path == "/v2/models/llm/generate_stream" and set(payload) == {"text_input", "max_tokens"}:
        return Answer('data: {"model_name":"llm","text_output":"a"}\n\n', content_type="text/event-stream")
    if path == "/v2/models/resnet/infer" and payload["inputs"][0]["shape"] == [1, 2, 2]:
        return Answer({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}]})
    return Answer({"error": "Request for unknown model"}, 400)


def test_triton_is_asked_as_its_model_describes_itself(engine: FakeEngine) -> None:
    engine.generate = triton
    engine.pages = {**TRITON, "/v2/models/llm": TEXT_MODEL, "/v2/models/resnet": NUMBERS_MODEL}
    facts = probe(engine.url, model="llm")
    assert (facts.api_name, facts.api) == ("triton-generate", "/v2/models/llm/generate_stream")
    assert (facts.streaming, facts.usage_in_stream) == (True, False)
    facts = probe(engine.url, model="resnet")
    assert (facts.api_name, facts.api, facts.streaming) == ("kserve", "/v2/models/resnet/infer", False)
    assert facts.api_options == {
        "input": "x",
        "datatype": "FP32",
        "shape": [1, 2, 2],
        "length_input": "",
        "stream_input": "",
        "output": "y",
    }
    spec = TargetSpec("kserve", "resnet", options=facts.api_options)
    assert json.loads(make_target(spec).build(Prompt.of("a", 1)))["inputs"][0]["shape"] == [1, 2, 2]


def test_triton_lists_its_models_where_it_may(engine: FakeEngine) -> None:
    index = [{"name": "llm", "version": "1", "state": "READY"}]
    engine.generate = lambda path, payload: (
        Answer(index) if path == "/v2/repository/index" else triton(path, payload)  # pyright: ignore[reportArgumentType]
    )
    engine.pages = {**TRITON, "/v2/models/llm": TEXT_MODEL}
    facts = probe(engine.url)
    assert (facts.model, facts.api_name) == ("llm", "triton-generate")


def test_a_model_server_without_a_named_model_asks_for_one(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: None
    engine.pages = TRITON
    facts = probe(engine.url)
    assert (facts.engine, facts.api, facts.api_name) == ("triton", None, None)
    assert any("name one of its models with --model" in sentence for sentence in facts.unknown)


def test_tensorflow_serving_is_asked_as_its_signature_says(engine: FakeEngine) -> None:
    one = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}]}}
    signature = {"serving_default": {"inputs": {"x": one}, "outputs": {}, "method_name": "tensorflow/serving/predict"}}
    engine.pages = {
        "/v1/models": (400, {"error": "Malformed request: GET /v1/models"}),
        "/v1/models/half/metadata": {"metadata": {"signature_def": {"signature_def": signature}}},
    }

    def predict(path: str, payload: dict[str, Any]) -> Answer:
        if path != "/v1/models/half:predict":
            return Answer({"error": f"Malformed request: POST {path}"}, 404)
        assert [len(row["x"]) for row in payload["instances"]] == [3]
        return Answer({"predictions": [2.5]})

    engine.generate = predict
    facts = probe(engine.url, model="half")
    assert (facts.engine, facts.api_name, facts.api) == ("tf-serving", "tfserving", "/v1/models/half:predict")
    assert facts.api_options == {"input": "x", "datatype": "FP32", "shape": [1, 3]}
