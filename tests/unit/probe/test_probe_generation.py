"""API, streaming, usage and the fit of words to tokens."""

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import (
    CHAT,
    COMPLETIONS,
    TEMPLATE_TOKENS,
    TOKENS_PER_WORD,
    Answer,
    FakeEngine,
    model_list,
    openai,
    openai_stream,
    openai_whole,
)
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import EXIT_UNREACHABLE, EXIT_USAGE, TargetError, UsageError
from pinchpoint.probe import generation, probe
from pinchpoint.probe.address import parse_address
from pinchpoint.probe.exchange import Exchange
from pinchpoint.probe.generation import WORDS, fit_tokens, probe_words

VALIDATION_ERROR = {"object": "error", "message": "stream_options: extra fields not permitted", "code": 400}


@pytest.fixture(autouse=True)
def _models(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("m")}


def test_the_fit_finds_template_and_tokens_per_word(engine: FakeEngine) -> None:
    facts = probe(engine.url)
    assert facts.tokens_per_word == pytest.approx(TOKENS_PER_WORD)
    assert facts.prompt_overhead_tokens == pytest.approx(TEMPLATE_TOKENS)
    assert len(engine.posts) == 2
    assert all(payload["max_tokens"] == 1 for _, payload in engine.posts)


@given(st.floats(0, 500), st.floats(0.5, 5))
def test_the_fit_inverts_any_template_within_rounding(overhead: float, per_word: float) -> None:
    points = [(words, round(overhead + per_word * words)) for words in generation.FIT_WORDS]
    line = fit_tokens(points)
    assert line is not None
    assert line[1] == pytest.approx(per_word, abs=0.01)
    assert line[0] == pytest.approx(overhead, abs=1.0)


def test_a_service_that_does_not_count_gives_no_fit() -> None:
    assert fit_tokens([(8, 10), (136, 10)]) is None


def test_probe_words_are_counted_and_repeatable() -> None:
    assert len(set(WORDS)) == len(WORDS) == 40
    assert len(probe_words(136, 1).split()) == 136
    assert probe_words(20, 1) == probe_words(20, 1) != probe_words(20, 2)


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_usage_option_is_left_out(engine: FakeEngine, status: int) -> None:
    def generate(path: str, payload: dict[str, Any]) -> Answer | None:
        return Answer(VALIDATION_ERROR, status) if "stream_options" in payload else openai(path, payload)

    engine.generate = generate
    facts = probe(engine.url)
    assert (facts.api, facts.streaming, facts.usage_in_stream) == (CHAT, True, False)
    assert facts.tokens_per_word == pytest.approx(TOKENS_PER_WORD)  # counted in answers in one piece
    assert any(sentence.startswith("usage:") for sentence in facts.unknown)


def test_an_ignored_usage_option_is_noticed(engine: FakeEngine) -> None:
    def generate(path: str, payload: dict[str, Any]) -> Answer | None:
        return openai(path, {key: value for key, value in payload.items() if key != "stream_options"})

    engine.generate = generate
    facts = probe(engine.url)
    assert (facts.streaming, facts.usage_in_stream) == (True, False)


def test_usage_in_the_last_chunk_and_no_end_mark_are_accepted(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: openai_stream(payload, end="") if path == CHAT else None
    facts = probe(engine.url)
    assert (facts.streaming, facts.usage_in_stream) == (True, True)


def test_a_service_that_cannot_stream_is_said_to_answer_in_one_piece(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: openai_whole(payload)
    facts = probe(engine.url)
    assert (facts.streaming, facts.usage_in_stream) == (False, None)
    assert facts.tokens_per_word == pytest.approx(TOKENS_PER_WORD)
    assert any(sentence.startswith("streaming:") for sentence in facts.unknown)


@pytest.mark.parametrize("status", [404, 400, 501])
def test_without_chat_the_completions_path_is_taken(engine: FakeEngine, status: int) -> None:
    def generate(path: str, payload: dict[str, Any]) -> Answer | None:
        if path == CHAT:
            return Answer({"message": "no chat template is set"}, status)
        return openai(path, payload)

    engine.generate = generate
    facts = probe(engine.url)
    assert facts.api == COMPLETIONS
    assert facts.prompt_overhead_tokens == pytest.approx(1.0)


def test_a_stream_is_not_waited_for_behind_its_end_mark(raw_server: Callable[..., str]) -> None:
    release = threading.Event()

    def respond(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {}\n\ndata: [DO")
        connection.sendall(b"NE]\n\n")
        release.wait(10)

    page = Exchange(parse_address(raw_server(respond)), None, 5.0).post(CHAT, {})
    release.set()
    assert page.complete
    assert page.body.startswith(b"data: {}\n\ndata: [DONE]")


def test_the_requested_model_is_used(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("a", "b")}
    assert probe(engine.url, model="b").model == "b"
    assert {payload["model"] for _, payload in engine.posts} == {"b"}


def test_a_missing_model_is_wrong_usage_and_names_those_there_are(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("a", "b")}
    with pytest.raises(UsageError, match=r"does not serve model c; choose one of: a, b") as error:
        probe(engine.url, model="c")
    assert error.value.exit_code == EXIT_USAGE
    assert engine.posts == []


def test_of_several_models_the_first_is_taken_and_it_is_said(engine: FakeEngine) -> None:
    engine.pages = {"/v1/models": model_list("a", "b")}
    facts = probe(engine.url)
    assert facts.model == "a"
    assert any("the first was taken" in sentence for sentence in facts.unknown)


def test_a_404_that_names_the_model_is_about_the_model(engine: FakeEngine) -> None:
    engine.pages = {}
    engine.generate = lambda path, payload: Answer({"message": f"The model `{payload['model']}` does not exist."}, 404)
    with pytest.raises(UsageError, match="does not serve model ghost"):
        probe(engine.url, model="ghost")


@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_turns_one_request_away_cannot_be_tested(engine: FakeEngine, status: int) -> None:
    engine.generate = lambda path, payload: Answer({"error": {"message": "slow down"}}, status)
    with pytest.raises(TargetError, match=rf"HTTP {status}: slow down.*wait until it is idle"):
        probe(engine.url)


def test_a_failing_service_is_reported_with_its_own_words(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: Answer({"error": {"message": "CUDA out of memory"}}, 500)
    with pytest.raises(TargetError, match="HTTP 500: CUDA out of memory") as error:
        probe(engine.url)
    assert error.value.exit_code == EXIT_UNREACHABLE


def test_one_failure_in_a_row_of_answers_does_not_end_the_probe(engine: FakeEngine) -> None:
    good, asked = engine.generate, []

    def flaky(path: str, payload: dict) -> Answer:
        asked.append(path)
        return Answer({"error": {"message": "boom"}}, 500) if len(asked) == 1 else good(path, payload)

    engine.generate = flaky
    assert probe(engine.url).api == "/v1/chat/completions"


def test_an_error_inside_the_stream_is_an_error(engine: FakeEngine) -> None:
    body = "data: " + json.dumps({"error": {"message": "engine died"}}) + "\n\n"
    engine.generate = lambda path, payload: Answer(body, content_type="text/event-stream")
    with pytest.raises(TargetError, match="engine died"):
        probe(engine.url)


def test_a_200_that_is_no_completion_is_no_openai_api(engine: FakeEngine) -> None:
    engine.generate = lambda path, payload: Answer({"hello": "world"})
    with pytest.raises(TargetError, match="no OpenAI API"):
        probe(engine.url)


def test_a_service_stuck_in_generation_is_given_up(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "GENERATION_TIMEOUT_S", 0.2)
    release = threading.Event()

    def generate(path: str, payload: dict[str, Any]) -> Answer | None:
        release.wait(5)
        return None

    engine.generate = generate
    with pytest.raises(TargetError, match=r"gave no token within 0\.2 s"):
        probe(engine.url)
    release.set()
