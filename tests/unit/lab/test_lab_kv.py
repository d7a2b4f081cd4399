"""The block pool: nothing leaks, cached text survives as long as there is room, oldest goes first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.lab.kv import BlockPool


def hold(pool: BlockPool, keys: list[str]) -> None:
    """A sequence that has computed these blocks."""
    assert pool.take(len(keys))
    assert all(pool.register(key) for key in keys)


def test_what_was_given_back_is_found_again_until_its_block_is_needed() -> None:
    pool = BlockPool(4, 16)
    hold(pool, ["a", "ab"])
    assert pool.cached(["a", "ab", "abc"], 3) == 2
    pool.give(0, ["a", "ab"])
    assert pool.free == 4
    assert pool.cached(["a", "ab"], 2) == 2  # free, but not yet forgotten
    assert pool.take(2)  # the two that never held text
    assert pool.cached(["a", "ab"], 2) == 2
    assert pool.take(1)
    assert pool.cached(["a", "ab"], 2) == 1  # a sequence's last block goes before its first
    assert pool.evicted == 1


def test_the_least_recently_used_text_is_forgotten_first() -> None:
    pool = BlockPool(3, 16)
    for key in ("a", "b", "c"):
        hold(pool, [key])
        pool.give(0, [key])
    assert pool.claim(["a"], 0)  # used again
    pool.give(0, ["a"])
    assert pool.take(2)
    assert [pool.cached([key], 1) for key in ("a", "b", "c")] == [1, 0, 0]


def test_text_that_nobody_will_ask_for_pushes_cached_text_out_in_its_turn() -> None:
    pool = BlockPool(4, 16)
    hold(pool, ["a", "ab"])
    pool.give(0, ["a", "ab"])
    assert pool.take(2)
    pool.give(2)  # came back after the keyed ones
    assert pool.take(2)
    assert pool.cached(["a"], 1) == 0


def test_a_shared_block_counts_once_and_stays_until_its_last_holder_goes() -> None:
    pool = BlockPool(4, 16)
    hold(pool, ["a"])
    assert pool.claim(["a"], 1)
    assert pool.used == 2
    pool.give(0, ["a"])
    assert pool.used == 2
    pool.give(1, ["a"])
    assert pool.used == 0


def test_a_claim_that_does_not_fit_changes_nothing() -> None:
    pool = BlockPool(2, 16)
    hold(pool, ["a"])
    pool.give(0, ["a"])
    assert not pool.claim(["a"], 2)  # the cached block is one of the two free ones
    assert pool.free == 2
    assert pool.claim(["a"], 1)
    assert pool.free == 0


def test_a_smaller_pool_takes_held_blocks_as_they_come_free() -> None:
    pool = BlockPool(10, 16)
    assert pool.take(8)
    pool.resize(5)
    assert (pool.free, pool.used, pool.used_ratio) == (0, 8, 1.0)
    pool.give(3)
    assert pool.free == 0
    pool.give(2)
    assert (pool.free, pool.used) == (2, 3)
    pool.resize(10)
    assert (pool.free, pool.used) == (7, 3)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 5), st.integers(1, 5)),
        st.tuples(st.just("end"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("resize"), st.integers(1, 14), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(operations=operations)
def test_blocks_are_held_free_or_withdrawn_and_nothing_else(operations: list) -> None:
    pool = BlockPool(8, 16)
    holders: list[tuple[int, list[str]]] = []

    def check() -> None:
        assert 0 <= pool.free <= pool.total
        held = sum(blocks for blocks, _ in holders) + len({key for _, keys in holders for key in keys})
        assert pool.used == held
        assert pool.shared_keys == len({key for _, keys in holders for key in keys})

    for kind, a, b in operations:
        if kind == "start":  # a text of family a, b blocks long
            text = [f"{a}/{i}" for i in range(b)]
            found = text[: pool.cached(text, b)]
            if pool.claim(found, b - len(found)):
                own = [key for key in text[len(found) :] if pool.register(key)]
                holders.append((b - len(found) - len(own), found + own))
        elif kind == "end" and holders:
            blocks, keys = holders.pop(a % len(holders))
            pool.give(blocks, keys)
        elif kind == "resize":
            pool.resize(a)
        check()
    while holders:
        pool.give(*holders.pop())
        check()
    assert pool.free == pool.total
