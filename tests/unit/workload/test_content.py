"""What requests ask: exact lengths, nothing shared but what was asked to be, conversations with the real answers."""

import pickle
import re
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.plan import DocumentsSpec, ImagesSpec, LengthSpec, PrefixSpec
from pinchpoint.prompt import Prompt
from pinchpoint.schedule import UNSHARED, ScheduledRequest
from pinchpoint.workload.classes import Traffic, TrafficClass
from pinchpoint.workload.content import LONG_TEXT_PIECES, OWN_TOKENS_MIN, ContentWriter
from pinchpoint.workload.prefixes import PrefixTree, PrefixTreeBuilder
from pinchpoint.workload.tokens import TokenTable, estimated, measured

LAW = LengthSpec(100, 0.0, 100, 100)
BLOCK_TOKENS = 16
"""Of a prefix cache."""
PREFIX_TOKENS, SYSTEM_TOKENS, DOCUMENTS = 200, 60, DocumentsSpec(4, 90)
OVERHEAD, MESSAGE, SYSTEM_OVERHEAD = 9, 4, 12
TOKEN = re.compile(r"[^\r\nA-Za-z0-9]?[A-Za-z]{1,7}|[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
"""A tokenizer of today's kind, in which longer words are two tokens."""


def tokens_of(text: str) -> list[str]:
    return TOKEN.findall(text)


def count(text: str) -> int:
    return len(tokens_of(text))


TABLE: TokenTable = msgspec.structs.replace(
    measured(count, ["prose", "code"], source="file", told_by="the test"),
    overhead_tokens=OVERHEAD,
    message_tokens=MESSAGE,
    system_overhead_tokens=SYSTEM_OVERHEAD,
)


def traffic(*classes: dict) -> Traffic:
    made = tuple(TrafficClass(f"class {i}", 1.0, LAW, LAW, **one) for i, one in enumerate(classes))
    return Traffic(made, {"": tuple(range(len(made)))})


EVERY = traffic(
    {},
    {"content": "code"},
    {"prefix": PrefixSpec(PREFIX_TOKENS, 3), "system_tokens": SYSTEM_TOKENS},
    {"prefix": PrefixSpec(PREFIX_TOKENS, 3), "content": "code"},
    {"documents": DOCUMENTS},
)
CHAT = traffic({"turns": "4", "system_tokens": SYSTEM_TOKENS, "prefix": PrefixSpec(PREFIX_TOKENS)})
WRITER = ContentWriter(5, EVERY, TABLE)
rows = st.builds(
    ScheduledRequest,
    request_id=st.integers(0, 2**40),
    stage=st.just(0),
    session_id=st.integers(0, 2**32 - 1),
    turn=st.just(0),
    offset_ns=st.just(0),
    think_ns=st.just(0),
    input_tokens=st.integers(30, 3000),
    max_output_tokens=st.just(8),
    class_id=st.integers(0, 4),
    prefix_id=st.integers(0, 2),
)


def row(number: int, tokens: int, *, class_id: int = 0, prefix_id: int = UNSHARED, **more: int) -> ScheduledRequest:
    values = {"session_id": number, "turn": 0, "max_output_tokens": 8, **more}
    return ScheduledRequest(
        number, 0, offset_ns=0, think_ns=0, input_tokens=tokens, class_id=class_id, prefix_id=prefix_id, **values
    )


def counted(prompt: Prompt) -> int:
    """As a service with a chat template counts it."""
    system = prompt.messages[0].role == "system"
    others = len(prompt.messages) - 1 - system
    added = (SYSTEM_OVERHEAD if system else OVERHEAD) + others * MESSAGE
    return added + sum(count(message.text) for message in prompt.messages)


@given(rows)
def test_a_prompt_has_exactly_the_tokens_that_were_planned(one: ScheduledRequest) -> None:
    prompt = WRITER.write(one)
    assert counted(prompt) == prompt.input_tokens
    extra = SYSTEM_TOKENS if one.class_id == 2 else DOCUMENTS.count * DOCUMENTS.tokens if one.class_id == 4 else 0
    assert prompt.input_tokens == one.input_tokens + extra
    assert all(message.text == message.text.strip() for message in prompt.messages)


def test_a_prompt_longer_than_the_long_text_is_exact_too() -> None:
    for class_id in (0, 1):
        for tokens in (LONG_TEXT_PIECES + 7, 3 * LONG_TEXT_PIECES + 1):
            assert counted(WRITER.write(row(tokens, tokens, class_id=class_id))) == tokens


@given(st.integers(1, 40), st.integers(0, 4))
def test_a_length_below_what_is_added_still_gives_a_message(tokens: int, class_id: int) -> None:
    prompt = WRITER.write(row(1, tokens, class_id=class_id, prefix_id=0))
    assert prompt.messages[-1].text
    assert counted(prompt) == prompt.input_tokens


@given(rows, st.integers(0, 2**20))
@settings(max_examples=20)
def test_a_writer_travels_light_and_writes_the_same_elsewhere(one: ScheduledRequest, seed: int) -> None:
    writer = ContentWriter(seed % 3, EVERY, TABLE)
    written = writer.write(one)
    data = pickle.dumps(writer)
    assert len(data) < 120_000
    assert pickle.loads(data).write(one) == written == ContentWriter(seed % 3, EVERY, TABLE).write(one)


def blocks(tokens: list[str]) -> list[tuple[str, ...]]:
    return [tuple(tokens[: end + BLOCK_TOKENS]) for end in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS)]


@given(st.sets(st.integers(0, 2**40), min_size=2, max_size=60), st.sampled_from([0, 1, 4]), st.integers(60, 400))
def test_no_block_of_a_prefix_cache_fits_two_requests(numbers: set[int], class_id: int, tokens: int) -> None:
    seen: set[tuple[str, ...]] = set()
    for number in numbers:
        found = blocks(tokens_of(WRITER.write(row(number, tokens, class_id=class_id)).messages[-1].text))
        assert found and seen.isdisjoint(found)
        seen.update(found)


def test_neighbouring_requests_differ_from_the_first_words_on() -> None:
    texts = [WRITER.write(row(number, 60)).text for number in range(5000)]
    assert len({" ".join(text.split()[:5]) for text in texts}) > 4900
    assert len({text[40:] for text in texts}) == 5000


def test_requests_of_one_prefix_share_it_and_nothing_more() -> None:
    def shared(one: ScheduledRequest, other: ScheduledRequest) -> int:
        first, second = (tokens_of(WRITER.write(each).messages[-1].text) for each in (one, other))
        same = 0
        while first[same] == second[same]:
            same += 1
        return same

    for class_id in (2, 3):
        together = [row(number, 600, class_id=class_id, prefix_id=1) for number in range(30)]
        apart = [row(100 + number, 600, class_id=class_id, prefix_id=number) for number in range(30)]
        assert all(PREFIX_TOKENS <= shared(*pair) < PREFIX_TOKENS + BLOCK_TOKENS for pair in pairwise(together))
        assert all(shared(*pair) < BLOCK_TOKENS for pair in pairwise(apart))
        unshared = WRITER.write(row(900, 600, class_id=class_id)).messages[-1].text
        assert not unshared.startswith(WRITER.write(together[0]).messages[-1].text[:40])


def test_a_prefix_leaves_room_for_what_is_a_requests_own() -> None:
    for tokens in (40, 100, PREFIX_TOKENS + 20):
        one, other = (WRITER.write(row(number, tokens, class_id=3, prefix_id=0)).text for number in (1, 2))
        assert one != other
        assert count(one) == tokens - OVERHEAD
        assert tokens < OVERHEAD + OWN_TOKENS_MIN + 8 or one[:8] == other[:8]


def test_what_is_shared_is_told() -> None:
    assert WRITER.write(row(1, 500)).shared_tokens == OVERHEAD
    told = WRITER.write(row(1, 500, class_id=2, prefix_id=0)).shared_tokens
    assert told == SYSTEM_OVERHEAD + SYSTEM_TOKENS + PREFIX_TOKENS


def test_the_system_prompt_comes_first_and_is_the_same_in_a_class() -> None:
    first, second = (WRITER.write(row(number, 300, class_id=2)) for number in (1, 2))
    assert [message.role for message in first.messages] == ["system", "user"]
    assert first.messages[0] == second.messages[0]
    assert count(first.messages[0].text) == SYSTEM_TOKENS


# -- trees -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=20))
def test_a_tree_holds_each_path_once(paths: list[list[int]]) -> None:
    builder = PrefixTreeBuilder()
    ends = [builder.add(path, 32) for path in paths]
    tree = builder.tree()
    assert len(tree.parent) == len({tuple(path[: i + 1]) for path in paths for i in range(len(path))})
    for path, end in zip(paths, ends, strict=True):
        assert tree.tokens_to(end) == 32 * len(path)
        assert all(tree.parent[node] < node for node in tree.path(end))
    assert [ends[i] == ends[j] for i in range(len(ends)) for j in range(i)] == [
        paths[i] == paths[j] for i in range(len(ends)) for j in range(i)
    ]


def test_requests_share_as_much_as_their_nodes_do() -> None:
    tree = PrefixTree(np.array([-1, 0, 0, 1], np.int32), np.array([64, 64, 64, 64], np.int32))
    writer = ContentWriter(1, traffic({}), TABLE, tree)
    texts = {node: tokens_of(writer.write(row(node, 400, prefix_id=node)).text) for node in range(4)}
    assert all(len(text) == 400 - OVERHEAD for text in texts.values())
    assert texts[1][:64] == texts[2][:64] == texts[0][:64]
    assert texts[3][:128] == texts[1][:128] and texts[1][:80] != texts[2][:80]
    assert texts[3][192 : 192 + BLOCK_TOKENS] != texts[1][128 : 128 + BLOCK_TOKENS]
    assert writer.write(row(9, 400, prefix_id=3)).shared_tokens == OVERHEAD + 192


# -- conversations -----------------------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=5))
def test_a_conversation_holds_every_answer_as_it_was_given(answers: list[str]) -> None:
    writer = ContentWriter(1, CHAT, TABLE)
    asked: list[str] = []
    for turn, answer in enumerate(answers):
        one = row(turn, 300, session_id=7, turn=turn, prefix_id=0)
        prompt = writer.write(one)
        asked.append(prompt.messages[-1].text)
        roles = [message.role for message in prompt.messages]
        assert roles == ["system", *["user", "assistant"] * turn, "user"]
        assert [message.text for message in prompt.messages if message.role == "user"] == asked
        assert [message.text for message in prompt.messages if message.role == "assistant"] == answers[:turn]
        assert prompt.input_tokens == counted(prompt)
        writer.remember(one, answer, count(answer))
    shared = asked[0][:100]
    assert not any(
        text.startswith(shared) for text in asked[1:]
    )  # a shared beginning stands once, in the first message


def test_a_turn_that_failed_is_left_out_and_its_prefix_moves_to_the_next() -> None:
    writer = ContentWriter(1, CHAT, TABLE)
    failed = writer.write(row(0, 300, session_id=7, prefix_id=0)).messages[-1].text
    second = writer.write(row(1, 300, session_id=7, turn=1, prefix_id=0))
    assert len(second.messages) == 2 and second.messages[-1].text[:100] == failed[:100]
    assert second.messages[-1].text != failed


def test_conversations_are_apart_and_end() -> None:
    writer = ContentWriter(1, CHAT, TABLE)
    for session in (1, 2):
        one = row(session, 100, session_id=session)
        writer.write(one)
        writer.remember(one, f"answer {session}")
    assert "answer 1" not in str(writer.write(row(3, 100, session_id=2, turn=1)))
    writer.forget(1)
    assert len(writer.write(row(4, 100, session_id=1, turn=1)).messages) == 2


def test_the_oldest_turns_are_left_out_when_the_context_is_full() -> None:
    one = msgspec.structs.replace(CHAT.classes[0], context_tokens=700, turns="20", prefix=None)
    writer = ContentWriter(1, Traffic((one,), {"": (0,)}), TABLE)
    for turn in range(12):
        asked = row(turn, 100, session_id=1, turn=turn)
        prompt = writer.write(asked)
        assert counted(prompt) == prompt.input_tokens <= 700 - asked.max_output_tokens
        assert prompt.messages[0].role == "system"
        writer.remember(asked, "word " * 20, count("word " * 20))
    assert len(prompt.messages) > 4


def test_a_class_without_turns_remembers_nothing() -> None:
    writer = ContentWriter(1, EVERY, TABLE)
    one = row(1, 100)
    assert not writer.remembers(one)
    writer.write(one)
    writer.remember(one, "an answer")
    assert len(writer.write(row(2, 100, session_id=1, turn=1)).messages) == 1


# -- what else goes with a request -------------------------------------------------------------------------------------


def test_documents_are_read_by_what_generates_and_handed_to_what_ranks() -> None:
    reading = WRITER.write(row(1, 100, class_id=4))
    assert not reading.documents and reading.messages[0].text.count("Report") + reading.text.count("The story") >= 4
    ranking = WRITER.write(row(1, 100, class_id=4, max_output_tokens=0))
    assert [count(document) for document in ranking.documents] == [DOCUMENTS.tokens] * DOCUMENTS.count
    assert count(ranking.text) == 100 - OVERHEAD
    assert ranking.input_tokens == reading.input_tokens == 100 + DOCUMENTS.count * DOCUMENTS.tokens
    assert len({document[:60] for document in ranking.documents}) == DOCUMENTS.count


def test_images_tools_and_schemas_go_with_the_request() -> None:
    one = {"images": ImagesSpec(2, 16, 16), "tools": 5, "schema": "person"}
    writer = ContentWriter(1, traffic(one), TABLE)
    first, second = writer.write(row(1, 100)), writer.write(row(2, 100))
    assert len({image.base64 for prompt in (first, second) for image in prompt.images}) == 4
    assert first.tools == second.tools and len({tool["name"] for tool in first.tools}) == 5
    assert first.schema is not None and first.schema["title"] == "person"


def test_an_api_without_roles_has_no_template() -> None:
    writer = ContentWriter(1, traffic({}, {}), TABLE, roles=(True, False))
    assert count(writer.write(row(1, 100, class_id=0)).text) == 100 - OVERHEAD
    assert count(writer.write(row(1, 100, class_id=1)).text) == 100


# -- estimates ---------------------------------------------------------------------------------------------------------


@given(st.integers(40, 4000), st.floats(0.6, 3.0))
def test_an_estimate_follows_the_tokens_per_word(tokens: int, per_word: float) -> None:
    table = estimated(1.0, 10.0)
    writer = ContentWriter(5, traffic({}), table)
    writer.calibrate(per_word, 10.0)
    pieces = re.findall(r" ?[A-Za-z]+|[.,?]+\n*", writer.write(row(3, tokens)).text)
    assert len(pieces) == pytest.approx((tokens - 10) / per_word, abs=1)


def test_exact_counts_are_not_calibrated() -> None:
    writer = ContentWriter(5, EVERY, TABLE)
    writer.calibrate(3.0, 77.0)
    assert writer.table == TABLE


def test_prepared_content_writes_the_same() -> None:
    one, other = ContentWriter(5, EVERY, TABLE), ContentWriter(5, EVERY, TABLE)
    one.prepare()
    assert one.write(row(8, 500, class_id=2)) == other.write(row(8, 500, class_id=2))
