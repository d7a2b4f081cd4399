"""Streams of TGI, SGLang and old vLLM, written after their documentation: none of them was recorded."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.targets.registry import make_target
from pinchpoint.targets.target import Chunk, TargetSpec, Usage

WORDS = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=12)


def read(api: str, events: list[Any], *, event: bytes = b"") -> list[Chunk]:
    """What a reader makes of one stream."""
    reader = make_target(TargetSpec(api, "m")).reader()
    return [
        reader.parse_event(event, one if isinstance(one, bytes) else json.dumps(one, ensure_ascii=True).encode())
        for one in events
    ]


def whole(api: str, answer: Any) -> Chunk:
    return make_target(TargetSpec(api, "m", stream=False)).parse_answer(json.dumps(answer).encode())


# -- TGI ------------------------------------------------------------------------------------------------------------


def tgi_token(text: str, *, special: bool = False, **more: Any) -> dict[str, Any]:
    token = {"id": 7, "text": text, "logprob": -0.5, "special": special}
    return {"index": 1, "token": token, "top_tokens": [], "generated_text": None, "details": None, **more}


def test_tgi_tells_reason_and_counts_with_its_last_token() -> None:
    details = {"finish_reason": "length", "generated_tokens": 3, "input_length": 5, "seed": None}
    chunks = read("tgi", [tgi_token("a"), tgi_token(" b"), tgi_token(" c", generated_text="a b c", details=details)])
    assert [chunk.text for chunk in chunks] == ["a", " b", " c"]
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage == Usage(input_tokens=5, output_tokens=3)


def test_the_end_of_a_sequence_is_no_text_of_tgi() -> None:
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "seed": None}
    (chunk,) = read("tgi", [tgi_token("</s>", special=True, generated_text="a", details=details)])
    assert not chunk.has_text and chunk.finish_reason == "eos_token"
    assert chunk.usage == Usage(output_tokens=2)


def test_an_error_inside_of_a_stream_of_tgi_is_one() -> None:
    error = {"error": "Request failed during generation: CUDA out of memory", "error_type": "generation"}
    assert read("tgi", [error])[0].error == error["error"]
    assert whole("tgi", {"error": "Model is overloaded", "error_type": "overloaded"}).error == "Model is overloaded"


def test_a_whole_answer_of_tgi() -> None:
    details = {"finish_reason": "length", "generated_tokens": 2, "prefill": [{"id": 1}, {"id": 2}, {"id": 3}]}
    for answer in ({"generated_text": "ab", "details": details}, [{"generated_text": "ab", "details": details}]):
        chunk = whole("tgi", answer)
        assert (chunk.text, chunk.finish_reason, chunk.usage) == ("ab", "length", Usage(3, 2))
    assert whole("tgi", {"generated_text": "ab"}).usage is None


# -- SGLang ---------------------------------------------------------------------------------------------------------


def sglang(text: str, tokens: int, finish: Any = None) -> dict[str, Any]:
    meta = {"id": "x", "finish_reason": finish, "prompt_tokens": 4, "completion_tokens": tokens, "cached_tokens": 1}
    return {"text": text, "output_ids": list(range(tokens)), "meta_info": meta}


@given(WORDS)
def test_text_so_far_is_read_as_the_pieces_that_it_grew_by(words: list[str]) -> None:
    events: list[Any] = [sglang("".join(words[: i + 1]), i + 1) for i in range(len(words))]
    chunks = read("sglang-generate", [*events, b"[DONE]"])
    assert [chunk.text for chunk in chunks[:-1]] == words
    assert all(chunk.content for chunk in chunks[:-1]) and chunks[-1].done


def test_an_event_of_sglang_without_more_text_counts_by_its_tokens() -> None:
    half, repeated = read("sglang-generate", [sglang("a", 1), sglang("a", 2), sglang("a", 2)])[1:]
    assert half.content and half.text == ""  # half of a character: a token without text
    assert not repeated.content


def test_a_service_that_streams_only_what_is_new_is_read_as_well() -> None:
    chunks = read("sglang-generate", [sglang("one", 1), sglang(" two", 2), sglang(" three", 3)])
    assert [chunk.text for chunk in chunks] == ["one", " two", " three"]


def test_sglang_tells_reason_and_counts() -> None:
    last = read("sglang-generate", [sglang("ab", 2, {"type": "length", "length": 2})])[0]
    assert (last.finish_reason, last.usage) == ("length", Usage(4, 2, 1))
    assert whole("sglang-generate", sglang("ab", 2, {"type": "stop", "matched": 2})).finish_reason == "stop"


def test_an_aborted_answer_of_sglang_is_an_error() -> None:
    aborted = sglang("", 0, {"type": "abort", "message": "the queue is full", "status_code": 503})
    assert read("sglang-generate", [aborted])[0].error == "the queue is full"
    assert read("sglang-generate", [{"error": {"message": "oom"}}])[0].error == "oom"


def test_two_answers_of_one_target_do_not_mix() -> None:
    target = make_target(TargetSpec("sglang-generate", "m"))
    first, second = target.reader(), target.reader()
    first.parse_event(b"", json.dumps(sglang("hello", 1)).encode())
    assert second.parse_event(b"", json.dumps(sglang("hello there", 2)).encode()).text == "hello there"


# -- vLLM -----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=5), WORDS)
def test_the_prompt_that_old_vllm_repeats_is_no_text_of_the_answer(prompt: str, words: list[str]) -> None:
    events = [{"text": [prompt + "".join(words[: i + 1])]} for i in range(len(words))]
    chunks = read("vllm-generate", events)
    assert all(chunk.content for chunk in chunks)
    assert [chunk.text for chunk in chunks] == ["", *words[1:]]


def test_old_vllm_streams_simply_end() -> None:
    target = make_target(TargetSpec("vllm-generate", "m"))
    assert not target.needs_finish and target.framing == "ndjson"
    assert whole("vllm-generate", {"text": ["prompt and answer"]}).content


# -- what is none of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["tgi", "sglang-generate", "vllm-generate", "vllm-tokens", "ollama", "kserve"])
@pytest.mark.parametrize("answer", [b"", b"rubbish", b'"a"', b"17", b"{}", b'{"a": 1}', b"<html></html>", b"[1]"])
def test_what_is_no_answer_of_the_api_is_told(api: str, answer: bytes) -> None:
    target = make_target(TargetSpec(api, "m", stream=False))
    with pytest.raises(ValueError, match="answer"):
        target.parse_answer(answer)


@pytest.mark.parametrize(
    "api", ["embeddings", "rerank", "score", "tfserving", "messages", "responses", "triton-generate"]
)
@pytest.mark.parametrize("answer", [b"", b"rubbish", b'"a"', b"17", b"{}", b'{"data": []}', b"<html></html>", b"[]"])
def test_neither_is_that(api: str, answer: bytes) -> None:
    target = make_target(TargetSpec(api, "m", stream=False))
    with pytest.raises(ValueError, match="answer"):
        target.parse_answer(answer)


@pytest.mark.parametrize(
    ("api", "answer"),
    [
        ("rerank", b'[{"index": 0, "score": 0.5}]'),
        ("rerank", b'{"results": [{"index": 0, "relevance_score": 0.5}], "meta": {"tokens": {"input_tokens": 9}}}'),
        ("tfserving", b'{"predictions": [[1.0, 2.0]]}'),
        ("tfserving", b'{"outputs": {"y": [1.0]}}'),
    ],
)
def test_other_forms_of_answers_that_generate_nothing(api: str, answer: bytes) -> None:
    chunk = make_target(TargetSpec(api, "m", stream=False)).parse_answer(answer)
    assert chunk.content and chunk.error is None
    assert chunk.usage == (Usage(input_tokens=9) if b"tokens" in answer else None)


def test_text_predictions_are_text() -> None:
    assert whole("tfserving", {"predictions": ["a b"]}).text == "a b"
    assert whole("tfserving", {"predictions": [{"text_output": ["a b"], "score": 1.0}]}).text == "a b"
    assert whole("tfserving", {"error": "Malformed request"}).error == "Malformed request"
