"""Who counts tokens: services with a tokenizer of their own, in each of the forms in use, and those without."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.launch import open_access
from pinchpoint.model import TargetFacts
from pinchpoint.plan import Plan, build_plan
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.tokenizing import token_table
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.content import ContentWriter
from pinchpoint.workload.tokens import TokenTable
from tests.support.scripted_server import Piece, ScriptedServer

TEMPLATE_TOKENS, MESSAGE_TOKENS, OWN_SYSTEM_TOKENS = 9, 4, 13


def tokens_of(text: str) -> int:
    """A tokenizer for which some words are two tokens, and each mark and line break one."""
    pieces = re.findall(r" ?\w+|[^\w\s]|\s+", text)
    return sum(2 if "b" in piece else 1 for piece in pieces)


def tokens_of_chat(messages: list[dict[str, str]]) -> int:
    """A template that puts in a system prompt of its own where there is none."""
    own = 0 if messages[0]["role"] == "system" else OWN_SYSTEM_TOKENS
    return own + TEMPLATE_TOKENS + sum(MESSAGE_TOKENS + tokens_of(message["content"]) for message in messages)


def vllm(path: str, asked: dict[str, Any]) -> Any:
    if "messages" in asked:
        offered = sum(tokens_of(json.dumps(tool)) for tool in asked.get("tools", ()))
        return {"count": tokens_of_chat(asked["messages"]) + offered, "max_model_len": 4096}
    return {"count": tokens_of(asked["prompt"]), "tokens": []} if "prompt" in asked else None


def llama_cpp(path: str, asked: dict[str, Any]) -> Any:
    if path == "/apply-template":
        marks = "! " * (tokens_of_chat(asked["messages"]))  # so many tokens in all
        return {"prompt": marks.strip()}
    return (
        {"tokens": [0] * (asked["content"].count("!") or tokens_of(asked["content"]))} if "content" in asked else None
    )


def tgi(path: str, asked: dict[str, Any]) -> Any:
    return [{"id": 1}] * tokens_of(asked["inputs"]) if "inputs" in asked else None


Answerer = Callable[[str, dict[str, Any]], Any]


def serving(answer: Answerer) -> ScriptedServer:
    def script(number: int, body: bytes) -> list[Piece]:
        path = server.requests[number].split(b" ", 2)[1].decode()
        found = answer(path, json.loads(body))
        data = json.dumps(found).encode()
        status = b"200 OK" if found is not None else b"422 No"
        return [b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data), "close"]

    server = ScriptedServer(script)
    return server


def asked_of(server: ScriptedServer, **more: Any) -> tuple[Plan, TokenTable]:
    plan = build_plan({"url": server.url, "seed": 1, **more})
    facts = TargetFacts(url=server.url, model="m", models=("m",))
    return plan, token_table(plan, facts, resolve(plan, None), open_access(plan, None))


@pytest.mark.parametrize("answer", [vllm, llama_cpp, tgi])
def test_prompts_have_exactly_the_tokens_that_were_asked_for(answer: Answerer) -> None:
    with serving(answer) as server:
        plan, table = asked_of(server)
    assert table.source == "service" and "counted by the service" in table.note
    writer = ContentWriter(1, resolve(plan, None), table)
    for number, wanted in enumerate([40, 41, 100, 333, 2000, 9000]):
        prompt = writer.write(ScheduledRequest(number, 0, number, 0, 0, 0, wanted, 8))
        added = 0 if answer is tgi else TEMPLATE_TOKENS + MESSAGE_TOKENS + OWN_SYSTEM_TOKENS
        assert tokens_of(prompt.messages[0].text) + added == wanted == prompt.input_tokens


@pytest.mark.parametrize("answer", [vllm, llama_cpp])
def test_a_system_prompt_and_history_are_counted_as_the_template_counts_them(answer: Answerer) -> None:
    workload = {"classes": [{"preset": "dialogue", "system_tokens": 50, "turns": 3}]}
    with serving(answer) as server:
        plan, table = asked_of(server, workload=workload)
    writer = ContentWriter(1, resolve(plan, None), table)
    row = ScheduledRequest(1, 0, 7, 0, 0, 0, 40, 8)
    first = writer.write(row)
    answered = "Well said"
    writer.remember(row, answered, tokens_of(answered))
    second = writer.write(ScheduledRequest(2, 0, 7, 1, 0, 0, 60, 8))
    for prompt in (first, second):
        said = [{"role": message.role, "content": message.text} for message in prompt.messages]
        assert tokens_of_chat(said) == prompt.input_tokens
    assert len(second.messages) == 4


def vllm_that_shows(path: str, asked: dict[str, Any]) -> Any:
    answer = vllm(path, asked)
    if asked.get("return_token_strs"):
        shown = re.findall(r" ?\w+|[^\w\s]|\s+", asked["prompt"])
        shown = [part for piece in shown for part in ((piece[:1], piece[1:]) if "b" in piece else (piece,))]
        answer["token_strs"] = [part.replace(" ", "\u0120").replace("\n", "\u010a") for part in shown]
    return answer


def llama_cpp_that_shows(path: str, asked: dict[str, Any]) -> Any:
    answer = llama_cpp(path, asked)
    if asked.get("with_pieces"):
        shown = vllm_that_shows("", {"prompt": asked["content"], "return_token_strs": True})["token_strs"]
        plain = [part.replace("\u0120", " ").replace("\u010a", "\n") for part in shown]
        answer["tokens"] = [{"id": 1, "piece": part} for part in plain]
    return answer


@pytest.mark.parametrize(("answer", "shows"), [(vllm, vllm_that_shows), (llama_cpp, llama_cpp_that_shows)])
def test_a_service_that_shows_its_tokens_is_asked_a_few_dozen_times_for_the_same(
    answer: Answerer, shows: Answerer
) -> None:
    with serving(answer) as server:
        _, table = asked_of(server)
        long = len(server.requests)
    with serving(shows) as server:
        _, same = asked_of(server)
        short = len(server.requests)
    assert same == table
    assert short < 100 < long


def test_the_functions_of_a_class_are_counted_where_the_template_shows_them() -> None:
    workload = {"classes": [{"preset": "chat"}, {"preset": "chat", "name": "agent", "tools": 4}]}
    with serving(vllm) as server:
        plan, table = asked_of(server, workload=workload)
    writer = ContentWriter(1, resolve(plan, None), table)
    row = ScheduledRequest(1, 0, 7, 0, 0, 0, 40, 8, class_id=1)
    prompt = writer.write(row)
    offered = [{"type": "function", "function": tool} for tool in prompt.tools]
    assert prompt.input_tokens == 40 + sum(tokens_of(json.dumps(tool)) for tool in offered)


def test_a_service_that_does_not_count_leaves_an_estimate_unless_it_was_named() -> None:
    with serving(lambda path, asked: None) as server:
        _, table = asked_of(server)
        assert table.source == "estimate"
        with pytest.raises(UsageError, match="does not count tokens"):
            asked_of(server, tokenizer={"source": "service"})


@pytest.mark.parametrize("rubbish", [{"count": "many"}, {"tokens": 7}, "no", {"count": 0}, {"count": 5}])
def test_rubbish_from_a_service_is_no_count(rubbish: Any) -> None:
    with serving(lambda path, asked: rubbish) as server:
        assert asked_of(server)[1].source == "estimate"


def test_nobody_is_asked_for_an_estimate() -> None:
    with serving(vllm) as server:
        _, table = asked_of(server, tokenizer={"source": "estimate"})
        assert (table.source, server.requests) == ("estimate", [])


def test_a_tokenizer_that_does_not_add_up_is_told_as_an_estimate() -> None:
    def by_length(path: str, asked: dict[str, Any]) -> Any:
        return {"count": len(asked["prompt"]) // 3} if "prompt" in asked else None

    with serving(by_length) as server:
        _, table = asked_of(server)
    assert table.source == "estimate" and "do not add up" in table.note
