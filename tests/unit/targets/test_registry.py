"""Targets by name and by path, and what is said of those that there are not."""

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.prompt import Image, Message, Prompt
from pinchpoint.targets.registry import KINDS, TARGETS, kind_of, make_target, split_url
from pinchpoint.targets.target import EMPTY, Target, TargetSpec

NEED_MORE = ("custom", "plugin", "kserve-grpc", "tfserving-grpc")
"""A template, a plug-in, an extra."""
ALONE = [name for name in TARGETS if name not in NEED_MORE]
SHARED_PATH = "/generate"
RICH = Prompt(
    (Message("system", "be brief"), Message("user", "hi"), Message("assistant", "ho"), Message("user", "and now?")),
    input_tokens=20,
    max_output_tokens=9,
    images=(Image("image/png", "iVBORw0KGgo="),),
    tools=({"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},),
    schema={"type": "object", "properties": {}},
    documents=("one", "two"),
)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ALONE)
def test_every_target_is_what_its_kind_says(name: str, stream: bool) -> None:
    target: Target = make_target(TargetSpec(name, "m", stream=stream))
    kind = TARGETS[name]
    assert (target.name, target.transport) == (name, kind.transport)
    assert target.stream == (stream and kind.streams)
    assert target.generates == kind.generates
    assert target.path.startswith("/") and "{" not in target.path
    assert target.path == SHARED_PATH or kind_of(target.path) is kind
    assert target.build(RICH) and target.build(Prompt.of("hi", 4))
    assert target.reader().path == target.path and target.reader().framing == target.framing


@pytest.mark.parametrize("name", ALONE)
def test_a_reader_reads_one_answer_and_the_next_begins_anew(name: str) -> None:
    target = make_target(TargetSpec(name, "m"))
    if target.stream:
        assert target.reader().parse_event(b"", b"  ") == EMPTY
        assert target.reader().stream


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "chat"),
        ("/proxy/v1/chat/completions", "chat"),
        ("/v1/completions", "completions"),
        ("/openai/v1/responses", "responses"),
        ("/v2/models/a/generate", "triton-generate"),
        ("/v2/models/a/versions/3/generate_stream", "triton-generate"),
        ("/v2/models/a/infer", "kserve"),
        ("/v1/models/a:predict", "tfserving"),
        ("/v1/models/a/versions/2:predict", "tfserving"),
        ("/api/generate", "ollama-generate"),
        ("/generate_stream", "tgi"),
        ("/inference/v1/generate", "vllm-tokens"),
        ("/rerank", "rerank"),
        ("/v2/rerank", "rerank"),
        ("/score", "score"),
    ],
)
def test_a_path_picks_the_target_with_the_longest_path_that_it_ends_with(path: str, name: str) -> None:
    assert kind_of(path).name == name
    assert make_target(TargetSpec(path, "m")).path == path


def test_a_path_of_several_apis_asks_which() -> None:
    with pytest.raises(UsageError, match="say which: tgi or vllm-generate or sglang-generate"):
        kind_of("/generate")


@pytest.mark.parametrize("api", ["chatt", "", "/v3/what", "Chat"])
def test_an_unknown_target_is_told_with_the_choices(api: str) -> None:
    with pytest.raises(UsageError, match="choose from chat, completions"):
        kind_of(api)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("chat", {"bodey": {}}, "chat has no option bodey; it has body, length_field"),
        ("chat", {"body": 1}, "option body of chat must be a table, such as {temperature = 1.0}; 1 was given"),
        ("embeddings", {"encoding_format": "int8"}, "must be one of float, base64"),
        ("rerank", {"shape": "cohere"}, "must be one of jina, tei"),
        ("kserve", {"shape": [0]}, "must be a list of whole numbers from 1"),
        ("kserve", {"input": True}, "must be a text"),
        ("tfserving", {"format": "rows"}, "must be one of row, column"),
        ("vllm-tokens", {"token_ids": 0}, "must be a whole number from 1"),
    ],
)
def test_options_that_cannot_be_used_are_told(name: str, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        make_target(TargetSpec(name, "m", options=options))


def test_every_kind_and_option_says_what_it_is() -> None:
    for kind in KINDS:
        assert kind.description
        assert all((kind.options or {}).values())


@pytest.mark.parametrize(
    ("url", "base", "path"),
    [
        ("http://h/v1/chat/completions", "http://h", "/v1/chat/completions"),
        ("http://h/api/generate/", "http://h", "/api/generate"),
        ("http://h:1/x/v1/rerank", "http://h:1/x", "/v1/rerank"),
        ("http://h", "http://h", None),
        ("http://h/v1", "http://h/v1", None),
        ("http://h/v2/models/a/infer", "http://h/v2/models/a/infer", None),
        ("http://score", "http://score", None),
    ],
)
def test_a_url_that_names_an_api_is_split(url: str, base: str, path: str | None) -> None:
    assert split_url(url) == (base, path)
