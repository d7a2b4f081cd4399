"""Bodies of requests, member by member, as the APIs document them."""

import json
from typing import Any

import numpy as np
import pytest

from pinchpoint.prompt import Image, Message, Prompt
from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import TargetSpec

TALK = (Message("system", "be brief"), Message("user", "hi"), Message("assistant", "ho"), Message("user", "and now?"))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
PNG = Image("image/png", "iVBORw0KGgo=")
URL = "data:image/png;base64,iVBORw0KGgo="


def body(api: str, prompt: Prompt, *, engine: str = "unknown", stream: bool = True, **options: Any) -> dict[str, Any]:
    return json.loads(make_target(TargetSpec(api, "m", engine, stream, options=options)).build(prompt))


def talk(**more: Any) -> Prompt:
    return Prompt(TALK, 20, 9, **more)


def test_chat_keeps_every_message_in_its_role() -> None:
    sent = body("chat", talk())
    assert [(one["role"], one["content"]) for one in sent["messages"]] == [(one.role, one.text) for one in TALK]
    assert sent["max_tokens"] == 9 and sent["stream"] is True and sent["stream_options"] == {"include_usage": True}
    assert not {"tools", "response_format", "ignore_eos"} & set(sent)


def test_chat_with_tools_schema_and_images() -> None:
    sent = body("chat", talk(tools=(TOOL,), schema=SCHEMA, images=(PNG, PNG)), engine="vllm")
    assert sent["tools"] == [{"type": "function", "function": TOOL}]
    assert sent["response_format"]["type"] == "json_schema"
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
    image = {"type": "image_url", "image_url": {"url": URL}}
    assert sent["messages"][-1]["content"] == [{"type": "text", "text": "and now?"}, image, image]
    assert sent["messages"][1]["content"] == "hi"
    assert "ignore_eos" not in sent  # the form says where it ends


def test_chat_for_models_that_call_the_bound_otherwise() -> None:
    sent = body("chat", talk(), length_field="max_completion_tokens")
    assert sent["max_completion_tokens"] == 9 and "max_tokens" not in sent


def test_members_of_the_option_body_have_the_last_word() -> None:
    sent = body("ollama", talk(), body={"options": {"num_ctx": 8192}, "think": False})
    assert sent["options"] == {"num_predict": 9, "num_ctx": 8192} and sent["think"] is False


def test_completions_take_all_messages_as_one_text() -> None:
    assert body("completions", talk())["prompt"] == "be brief\n\nhi\n\nho\n\nand now?"


def test_responses_have_instructions_and_items() -> None:
    sent = body("responses", talk(tools=(TOOL,)), stream=False)
    assert sent["instructions"] == "be brief" and sent["max_output_tokens"] == 9 and sent["stream"] is False
    user, assistant, last = sent["input"]
    assert user == {"role": "user", "content": "hi"} and last == {"role": "user", "content": "and now?"}
    assert (assistant["type"], assistant["role"], assistant["status"]) == ("message", "assistant", "completed")
    assert assistant["content"] == [{"type": "output_text", "text": "ho", "annotations": []}]
    assert sent["tools"] == [{"type": "function", "strict": False, **TOOL}]


def test_responses_with_schema_and_images() -> None:
    sent = body("responses", talk(schema=SCHEMA, images=(PNG,)))
    form = sent["text"]["format"]
    assert (form["type"], form["schema"], form["strict"]) == ("json_schema", SCHEMA, True) and form["name"]
    text, image = sent["input"][-1]["content"]
    assert text == {"type": "input_text", "text": "and now?"}
    assert image == {"type": "input_image", "detail": "auto", "image_url": URL}


def test_messages_have_the_system_beside_the_conversation() -> None:
    target = make_target(TargetSpec("messages", "m"))
    assert target.headers == (("anthropic-version", "2023-06-01"),)
    sent = body("messages", talk(tools=(TOOL,), schema=SCHEMA, images=(PNG,)))
    assert sent["system"] == "be brief" and sent["max_tokens"] == 9
    assert [one["role"] for one in sent["messages"]] == ["user", "assistant", "user"]
    image, text = sent["messages"][-1]["content"]
    assert image["source"] == {"type": "base64", "media_type": "image/png", "data": PNG.base64}
    assert text == {"type": "text", "text": "and now?"}
    assert sent["tools"] == [{"name": "f", "description": "d", "input_schema": TOOL["parameters"]}]
    assert sent["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert "system" not in body("messages", Prompt.of("hi", 3))


@pytest.mark.parametrize(
    ("api", "engine", "heeds"),
    [
        ("chat", "vllm", True),
        ("chat", "openai-compatible", False),
        ("completions", "llama.cpp", True),
        ("responses", "vllm", True),
        ("responses", "llama.cpp", True),
        ("responses", "sglang", False),
        ("messages", "vllm", False),
        ("messages", "llama.cpp", False),
    ],
)
def test_the_end_of_a_sequence_is_ignored_where_api_and_engine_heed_it(api: str, engine: str, heeds: bool) -> None:
    assert ("ignore_eos" in body(api, talk(), engine=engine)) == heeds


def test_embeddings_take_one_text_or_a_list() -> None:
    assert body("embeddings", Prompt.of("a", 0)) == {"model": "m", "encoding_format": "float", "input": "a"}
    many = Prompt((Message("user", "a"),), 3, 0, documents=("b", "c"))
    assert body("embeddings", many, encoding_format="base64")["input"] == ["a", "b", "c"]


def test_ranking_takes_the_last_message_as_query() -> None:
    asked = Prompt((Message("user", "q"),), 3, 0, documents=("b", "c"))
    assert body("rerank", asked) == {"model": "m", "query": "q", "documents": ["b", "c"]}
    assert body("rerank", asked, shape="tei") == {"query": "q", "texts": ["b", "c"]}
    assert make_target(TargetSpec("rerank", "m", engine="tei")).path == "/rerank"
    assert body("score", asked) == {"model": "m", "text_1": "q", "text_2": ["b", "c"]}


def test_ollama_has_options_and_formats() -> None:
    sent = body("ollama", talk(tools=(TOOL,), schema=SCHEMA, images=(PNG,)))
    assert sent["options"] == {"num_predict": 9} and sent["format"] == SCHEMA
    assert sent["messages"][-1] == {"role": "user", "content": "and now?", "images": [PNG.base64]}
    assert sent["messages"][0] == {"role": "system", "content": "be brief"}
    plain = body("ollama-generate", talk(images=(PNG,)))
    assert (plain["system"], plain["prompt"], plain["images"]) == ("be brief", "hi\n\nho\n\nand now?", [PNG.base64])


def test_tgi_has_inputs_and_parameters() -> None:
    sent = body("tgi", talk(schema=SCHEMA, images=(PNG,)))
    assert sent["inputs"].startswith(f"![]({URL})be brief")
    assert sent["parameters"] == {
        "max_new_tokens": 9,
        "details": True,
        "grammar": {"type": "json", "value": SCHEMA},
    }
    assert make_target(TargetSpec("tgi", "m", stream=False)).path == "/generate"


def test_native_generate_of_sglang_and_vllm() -> None:
    sent = body("sglang-generate", Prompt.of("hi", 9), stream=False)
    assert sent == {"text": "hi", "sampling_params": {"max_new_tokens": 9, "ignore_eos": True}, "stream": False}
    formed = body("sglang-generate", talk(schema=SCHEMA, images=(PNG,)))
    assert json.loads(formed["sampling_params"]["json_schema"]) == SCHEMA and formed["image_data"] == [URL]
    assert body("vllm-generate", Prompt.of("hi", 9)) == {
        "prompt": "hi",
        "stream": True,
        "max_tokens": 9,
        "ignore_eos": True,
    }


def test_the_token_api_sends_exactly_the_planned_number_and_shares_beginnings() -> None:
    one = body("vllm-tokens", Prompt((Message("user", "a common beginning and one end"),), 40, 9))
    other = body("vllm-tokens", Prompt((Message("user", "a common beginning but another end"),), 40, 9))
    assert len(one["token_ids"]) == len(other["token_ids"]) == 40
    assert one["token_ids"][:3] == other["token_ids"][:3] and one["token_ids"][3] != other["token_ids"][3]
    assert all(1000 <= token < 11000 for token in one["token_ids"])
    assert one["sampling_params"] == {"max_tokens": 9, "ignore_eos": True}
    assert len(body("vllm-tokens", Prompt((Message("user", "x y z"),), 2, 9))["token_ids"]) == 2


def test_triton_generate_is_flat() -> None:
    assert body("triton-generate", Prompt.of("hi", 9)) == {"text_input": "hi", "max_tokens": 9, "stream": True}
    named = body("triton-generate", Prompt.of("hi", 9), input="PROMPT", length_input="", stream_input="")
    assert named == {"PROMPT": "hi"}
    assert make_target(TargetSpec("triton-generate", "a b", options={"version": "2"})).path == (
        "/v2/models/a%20b/versions/2/generate_stream"
    )


def test_kserve_sends_tensors_of_text() -> None:
    sent = body("kserve", Prompt.of("hi", 9), stream_input="stream")
    assert sent["inputs"] == [
        {"name": "text_input", "shape": [1, 1], "datatype": "BYTES", "data": ["hi"]},
        {"name": "max_tokens", "shape": [1, 1], "datatype": "INT32", "data": [9]},
        {"name": "stream", "shape": [1, 1], "datatype": "BOOL", "data": [False]},
    ]
    assert sent["outputs"] == [{"name": "text_output"}]


def test_kserve_sends_numbers_for_models_that_take_them() -> None:
    options = {"input": "x", "datatype": "FP32", "shape": [2, 3]}
    first, second = (body("kserve", Prompt.of(text, 9), **options) for text in ("a", "b"))
    (tensor,) = first["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("x", "FP32", [2, 3])
    assert len(tensor["data"]) == 6 and first != second and first == body("kserve", Prompt.of("a", 9), **options)
    assert not make_target(TargetSpec("kserve", "m", options=options)).generates


def test_tensorflow_serving_takes_rows_or_columns() -> None:
    numbers = {"input": "x", "datatype": "FP32", "shape": [2, 3]}
    rows = body("tfserving", Prompt.of("a", 0), **numbers)["instances"]
    columns = body("tfserving", Prompt.of("a", 0), format="column", **numbers)["inputs"]["x"]
    assert np.shape([row["x"] for row in rows]) == np.shape(columns) == (2, 3)
    assert body("tfserving", Prompt.of("hi", 0)) == {"instances": [{"text_input": "hi"}]}
    assert body("tfserving", Prompt.of("hi", 0), input="", signature_name="s") == {
        "signature_name": "s",
        "instances": ["hi"],
    }
    bare = body("tfserving", Prompt.of("hi", 0), format="column", input="", datatype="FP32", shape=[3])
    assert len(bare["inputs"]) == 3
    assert body("tfserving", Prompt.of("hi", 5), length_input="max_tokens", shape=[1, 1]) == {
        "instances": [{"text_input": ["hi"], "max_tokens": [5]}]
    }
    assert make_target(TargetSpec("tfserving", "m", options={"version": "3"})).path == "/v1/models/m/versions/3:predict"
