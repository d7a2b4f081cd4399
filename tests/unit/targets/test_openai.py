"""Meaning of completion chunks as real engines send them."""

import json

import pytest

from pinchpoint.prompt import Prompt
from pinchpoint.targets.openai import OpenAITarget, parse_answer, parse_event
from pinchpoint.targets.target import Chunk


def meaning(payload: object) -> Chunk:
    return parse_event(b"", json.dumps(payload).encode())


@pytest.mark.parametrize(
    ("delta", "kind"),
    [
        ({"content": "a"}, "content"),
        ({"reasoning_content": "a"}, "reasoning"),
        ({"reasoning": "a"}, "reasoning"),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}, "tool"),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, "tool"),
        ({"role": "assistant", "content": ""}, None),
        ({"role": "assistant"}, None),
        ({"role": "assistant", "content": None, "tool_calls": None}, None),
        ({}, None),
    ],
)
def test_only_deltas_with_text_are_tokens(delta: dict, kind: str | None) -> None:
    chunk = meaning({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    assert chunk.has_text == (kind is not None)
    assert kind is None or getattr(chunk, kind)


def test_usage_is_read_from_a_chunk_without_choices_and_from_the_last_choice_chunk() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    alone = meaning({"choices": [], "usage": usage})
    together = meaning({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage})
    assert alone.usage == together.usage
    assert alone.usage is not None and alone.usage.cached_tokens == 2
    assert together.finish_reason == "stop"
    assert not alone.has_text


def test_running_usage_without_completion_tokens_is_no_usage() -> None:
    assert meaning({"choices": [], "usage": {"prompt_tokens": 7}}).usage is None


def test_an_error_inside_the_stream_is_an_error() -> None:
    assert meaning({"error": {"message": "out of memory", "code": 500}}).error == "out of memory"
    assert parse_event(b"error", b'{"detail":"x"}').error is not None


def test_done_ends_and_garbage_raises() -> None:
    assert parse_event(b"", b"[DONE]").done
    with pytest.raises(ValueError, match="not a completion chunk"):
        parse_event(b"", b"<html>")


def test_text_completions_carry_text() -> None:
    assert meaning({"choices": [{"text": " Paris", "finish_reason": None}]}).content


def test_a_whole_answer_gives_usage_and_finish() -> None:
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    chunk = parse_answer(json.dumps(body).encode())
    assert chunk.finish_reason == "stop"
    assert chunk.usage is not None and chunk.usage.output_tokens == 1
    with pytest.raises(ValueError, match="no choices"):
        parse_answer(b"{}")


def test_engine_fields_are_sent_only_to_engines_that_know_them() -> None:
    vllm = json.loads(OpenAITarget("/v1/chat/completions", "m", "vllm").build(Prompt.of("hello", 8)))
    plain = json.loads(OpenAITarget("/v1/chat/completions", "m", "openai-compatible").build(Prompt.of("hello", 8)))
    assert vllm["ignore_eos"] is True
    assert "ignore_eos" not in plain
    assert plain["messages"] == [{"role": "user", "content": "hello"}]
    assert plain["max_tokens"] == 8
    text = json.loads(OpenAITarget("/v1/completions", "m", "vllm", stream=False).build(Prompt.of("hello", 8)))
    assert text["prompt"] == "hello"
    assert "stream_options" not in text


@pytest.mark.parametrize("body", [b"<!doctype html><p>hello", b"\n <html></html>"])
def test_an_html_page_is_called_one(body: bytes) -> None:
    with pytest.raises(ValueError, match="HTML page"):
        parse_answer(body)
