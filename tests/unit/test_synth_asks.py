"""What prompts of a virtual run share: equal numbers of blocks mean equal text from the beginning on."""

import msgspec
import numpy as np

from pinchpoint.plan import build_plan
from pinchpoint.schedule import UNSHARED, ScheduledRequest
from pinchpoint.synth.asks import Asks
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.prefixes import PrefixTree

BLOCK = 16


def row(number: int, *, session: int | None = None, turn: int = 0, tokens: int = 160, prefix: int = UNSHARED):
    return ScheduledRequest(number, 0, number if session is None else session, turn, 0, 0, tokens, 64, prefix_id=prefix)


def asks(one: dict[str, object], *, tree: PrefixTree | None = None, repeated: int | None = None, context=None) -> Asks:
    lengths = {"input_tokens": 160, "output_tokens": 64}
    plan = build_plan({"url": "u", "seed": 1, "workload": {"classes": [{**lengths, **one}]}})
    return Asks(resolve(plan, context), tree, BLOCK, repeated_prompts=repeated)


def shared_blocks(a, b) -> int:
    count = 0
    for x, y in zip(a.details.block_keys, b.details.block_keys, strict=False):
        if x != y:
            break
        count += 1
    assert not set(a.details.block_keys[count:]) & set(b.details.block_keys[count:])
    return count


def test_single_requests_share_nothing() -> None:
    made = asks({})
    a, b = made.ask(row(1)), made.ask(row(2))
    assert shared_blocks(a, b) == 0 and a.shared_tokens == 0
    assert len(a.details.block_keys) == (160 + 64) // BLOCK


def test_a_system_prompt_is_shared_by_all() -> None:
    made = asks({"system_tokens": 100})
    a, b = made.ask(row(1)), made.ask(row(2))
    assert a.prompt_tokens == 260 and shared_blocks(a, b) == 100 // BLOCK and a.shared_tokens == 100


def test_those_of_one_pool_share_its_text_and_others_do_not() -> None:
    made = asks({"prefix": {"tokens": 96, "pool": 4}})
    a, b, c = made.ask(row(1, prefix=2)), made.ask(row(2, prefix=2)), made.ask(row(3, prefix=1))
    assert shared_blocks(a, b) == 96 // BLOCK and shared_blocks(a, c) == 0


def test_two_paths_of_a_tree_share_what_is_above_where_they_part() -> None:
    tree = PrefixTree(np.array([-1, 0, 0], np.int32), np.array([48, 32, 32], np.int32))
    made = asks({}, tree=tree)
    a, b = made.ask(row(1, prefix=1)), made.ask(row(2, prefix=2))
    assert shared_blocks(a, b) == 48 // BLOCK and a.shared_tokens == 80


def test_a_later_turn_begins_with_the_whole_conversation_before_it() -> None:
    made = asks({"turns": 3, "system_tokens": 32, "prefix": {"tokens": 64, "pool": 2}})
    first = made.ask(row(1, session=7, prefix=1))
    made.answered(row(1, session=7, prefix=1), 64)
    second = made.ask(row(2, session=7, turn=1))
    assert second.prompt_tokens == 32 + 160 + 64 + 160
    assert shared_blocks(first, second) == len(first.details.block_keys)
    assert second.shared_tokens == 32 + 160 + 64


def test_a_conversation_that_outgrows_the_context_keeps_its_system_prompt_alone() -> None:
    made = asks({"turns": 9, "system_tokens": 32}, context=700)
    for turn in range(2):
        made.ask(row(turn, session=7, turn=turn))
        made.answered(row(turn, session=7, turn=turn), 64)
    before = made.ask(row(2, session=7, turn=2))
    made.answered(row(2, session=7, turn=2), 64)
    after = made.ask(row(3, session=7, turn=3))
    assert after.prompt_tokens + 64 <= 700
    assert shared_blocks(before, after) == 32 // BLOCK


def test_a_failed_turn_is_left_out_of_the_history() -> None:
    made = asks({"turns": 3})
    made.ask(row(1, session=7))
    assert made.ask(row(2, session=7, turn=1)).prompt_tokens == 160


def test_a_client_that_repeats_itself_sends_only_so_many_prompts() -> None:
    made = asks({}, repeated=3)
    asked = [made.ask(row(number, tokens=100 + number)) for number in range(9)]
    assert len({tuple(one.details.block_keys) for one in asked}) == 3
    assert len({one.prompt_tokens for one in asked}) == 3


def test_documents_of_a_ranker_are_read_each_with_the_question() -> None:
    plan = build_plan({"url": "u", "seed": 1, "workload": {"preset": "rerank"}})
    traffic = resolve(plan, None)
    traffic = msgspec.structs.replace(traffic, classes=(msgspec.structs.replace(traffic.classes[0], paired=True),))
    made = Asks(traffic, None, BLOCK)
    asked = made.ask(ScheduledRequest(1, 0, 1, 0, 0, 0, 20, 0))
    assert asked.details.extra_prompts and asked.input_tokens == asked.prompt_tokens + sum(asked.details.extra_prompts)
    assert set(asked.details.extra_prompts) == {asked.prompt_tokens}
