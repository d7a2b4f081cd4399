"""What an engine has beside plain batching: prefix cache, priorities, drafts, adapters, grammars, images, changes."""

import pytest

from pinchpoint.lab.adapters import AdapterSlots
from pinchpoint.lab.engine import Engine, EngineRequest, Sequence, Step
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.timeline import Timeline

TINY = LabParams(kv_blocks=12, max_num_seqs=4, max_num_batched_tokens=48, block_size_tokens=4, step_noise_ratio=0.0)


def step(engine: Engine, now_s: float) -> tuple[float, Step, list[Sequence]]:
    started = engine.start_step(now_s)
    assert started is not None
    now_s += started.duration_s
    return now_s, started, engine.end_step(now_s)


def run_dry(engine: Engine, now_s: float = 0.0) -> tuple[float, list[Step]]:
    steps: list[Step] = []
    while engine.has_work:
        if engine.wake_s is not None:
            now_s = max(now_s, engine.wake_s)
        started = engine.start_step(now_s)
        if started is not None:
            now_s += started.duration_s
            engine.end_step(now_s)
            steps.append(started)
    return now_s, steps


def ids(sequences: list[Sequence]) -> list[int]:
    return [s.request_id for s in sequences]


# Prefix cache.


def test_a_prompt_seen_before_is_computed_from_its_first_unknown_block() -> None:
    engine = Engine(LabParams(), seed=1)
    for request_id in range(2):
        engine.submit(0.0, EngineRequest(request_id, 100, 1, 0.0, block_keys=["a", "b", "c", f"own {request_id}"]))
        _, steps = run_dry(engine)
        assert [s.tokens for s in steps] == [100 if request_id == 0 else 100 - 3 * 16]
    metrics = engine.metrics
    assert (metrics.prefix_queries_tokens, metrics.prefix_hit_tokens) == (200, 48)
    assert (metrics.prompt_tokens, metrics.cached_prompt_tokens) == (200, 48)


def test_of_a_prompt_that_is_cached_whole_the_last_block_is_computed_again() -> None:
    engine = Engine(LabParams(), seed=1)
    for request_id, computed in ((0, 64), (1, 16)):
        engine.submit(0.0, EngineRequest(request_id, 64, 1, 0.0, block_keys=range(4)))
        _, steps = run_dry(engine)
        assert [s.tokens for s in steps] == [computed]


def test_prompts_of_one_burst_share_their_prefix_while_it_is_being_computed() -> None:
    engine = Engine(LabParams(max_num_batched_tokens=512), seed=1)
    for request_id in range(4):
        engine.submit(0.0, EngineRequest(request_id, 161, 8, 0.0, block_keys=range(10)))
    _, started, _ = step(engine, 0.0)
    assert started.tokens == 161 + 3
    assert engine.pool.used == 10 + 4


def test_answers_become_part_of_the_cache_so_the_next_turn_finds_them() -> None:
    engine = Engine(LabParams(), seed=1)
    conversation = range(100)
    engine.submit(0.0, EngineRequest(0, 32, 64, 0.0, block_keys=conversation[:6]))
    run_dry(engine)
    engine.submit(0.0, EngineRequest(1, 120, 8, 0.0, block_keys=conversation[:8]))
    _, started, _ = step(engine, 9.0)
    assert started.tokens == 120 - 5 * 16  # 95 of the 96 tokens were computed: the last is never fed back


def test_without_prefix_caching_every_prompt_is_computed() -> None:
    engine = Engine(LabParams(prefix_caching=False), seed=1)
    for request_id in range(2):
        engine.submit(0.0, EngineRequest(request_id, 64, 1, 0.0, block_keys=range(4)))
        _, steps = run_dry(engine)
        assert [s.tokens for s in steps] == [64]
    assert engine.metrics.prefix_queries_tokens == 0


def test_more_different_prefixes_than_the_pool_holds_leave_nothing_to_hit() -> None:
    def hit_ratio(prefixes: int) -> float:
        engine = Engine(LabParams(kv_blocks=100, max_num_seqs=4), seed=1)
        for request_id in range(100):
            prefix = request_id % prefixes
            engine.submit(
                0.0, EngineRequest(request_id, 161, 4, 0.0, block_keys=range(100 * prefix, 100 * prefix + 10))
            )
            run_dry(engine)
        return engine.metrics.prefix_hit_tokens / engine.metrics.prefix_queries_tokens

    assert hit_ratio(5) > 0.9
    assert hit_ratio(20) == 0.0  # round robin over more than fits is the worst case of least recently used


def test_an_evicted_request_finds_what_is_left_of_its_own_blocks() -> None:
    recomputed = {}
    for caching in (True, False):
        engine = Engine(TINY.changed({"prefix_caching": caching}), seed=1)
        engine.submit(0.0, EngineRequest(1, 20, 20, 0.0))
        engine.submit(0.0, EngineRequest(2, 16, 12, 0.0))
        run_dry(engine)
        assert engine.metrics.preemptions > 0
        assert engine.metrics.generation_tokens == 32
        recomputed[caching] = engine.metrics.recomputed_tokens
    assert 0 < recomputed[True] < recomputed[False]


# Order.


def test_by_priority_the_most_urgent_is_next_and_the_least_urgent_makes_room() -> None:
    engine = Engine(TINY.changed({"scheduling": "priority", "max_num_seqs": 2}), seed=1)
    for request_id, priority in ((1, 5), (2, 3), (3, 0), (4, 0)):
        engine.submit(0.0, EngineRequest(request_id, 4, 8, request_id * 1e-3, priority=priority))
    now_s, _, _ = step(engine, 0.0)
    assert ids(engine.running) == [3, 4]
    assert ids(engine.waiting) == [2, 1]
    while 2 not in ids(engine.running):
        now_s, _, _ = step(engine, now_s)


def test_by_priority_a_request_that_is_already_in_the_batch_may_be_evicted() -> None:
    engine = Engine(TINY.changed({"scheduling": "priority"}), seed=1)
    engine.submit(0.0, EngineRequest(1, 20, 24, 0.0, priority=9))  # first in the batch, least urgent
    engine.submit(0.0, EngineRequest(2, 20, 24, 0.0, priority=0))
    now_s = 0.0
    while engine.metrics.preemptions == 0:
        now_s, started, tokens = step(engine, now_s)
    assert ids(tokens) == ids(engine.running) == [2]
    assert started.tokens == 1
    run_dry(engine, now_s)
    assert engine.metrics.finished["length"] == 2


def test_when_the_first_of_the_batch_makes_room_by_leaving_the_others_go_on_at_once() -> None:
    engine = Engine(TINY.changed({"scheduling": "priority"}), seed=1)
    engine.submit(0.0, EngineRequest(1, 24, 8, 0.0, priority=9))  # its next token needs a seventh block
    engine.submit(0.0, EngineRequest(2, 21, 8, 1e-3, priority=0))  # takes the other six
    now_s, _, tokens = step(engine, 0.0)
    assert sorted(ids(tokens)) == [1, 2]
    engine.running.sort(key=lambda s: s.request_id)
    _, started, tokens = step(engine, now_s)
    assert (ids(tokens), started.preempted) == ([2], 1)


def test_an_eviction_in_front_of_a_request_does_not_cost_the_next_one_its_turn() -> None:
    engine = Engine(TINY.changed({"scheduling": "priority"}), seed=1)
    for request_id, prompt in ((1, 14), (2, 16), (3, 14)):  # all twelve blocks; 2 is the first to need another
        engine.submit(0.0, EngineRequest(request_id, prompt, 8, 0.0, priority=0))
    now_s, _, tokens = step(engine, 0.0)
    engine.running[0].request.priority = 9
    assert ids(tokens) == [1, 2, 3]
    _, started, tokens = step(engine, now_s)
    assert (ids(tokens), started.preempted, started.tokens) == ([2, 3], 1, 2)


def test_in_a_step_that_evicts_nobody_is_admitted() -> None:
    engine = Engine(TINY.changed({"prefix_caching": False, "long_prefill_token_threshold": 4}), seed=1)
    for request_id in (1, 2, 3):
        engine.submit(0.0, EngineRequest(request_id, 15, 12, 0.0))
    now_s = 0.0
    while engine.metrics.preemptions == 0:
        now_s, _, _ = step(engine, now_s)
    assert ids(engine.waiting) == [3]  # though there is room for a first piece of it
    assert engine.pool.free >= 1
    step(engine, now_s)
    assert ids(engine.running) == [1, 2, 3]


def test_of_several_evicted_the_one_evicted_last_is_next() -> None:
    engine = Engine(TINY.changed({"prefix_caching": False}), seed=1)
    for request_id in (1, 2, 3):
        engine.submit(0.0, EngineRequest(request_id, 15, 30, 0.0))
    engine.submit(0.0, EngineRequest(4, 20, 4, 0.0))
    now_s = 0.0
    while engine.metrics.preemptions < 2:
        now_s, _, _ = step(engine, now_s)
    assert ids(engine.waiting) == [2, 3, 4]  # 3 went first, then 2
    run_dry(engine, now_s)
    assert engine.metrics.finished["length"] == 4


def test_without_mixed_batches_a_step_is_all_prompts_or_all_decoding_and_prompts_go_first() -> None:
    engine = Engine(LabParams(mixed_batches=False), seed=1)
    engine.submit(0.0, EngineRequest(1, 100, 30, 0.0))
    now_s, _, _ = step(engine, 0.0)
    now_s, decoding, _ = step(engine, now_s)
    engine.submit(now_s, EngineRequest(2, 3000, 10, now_s))
    now_s, first, _ = step(engine, now_s)
    now_s, second, _ = step(engine, now_s)
    _, third, _ = step(engine, now_s)
    assert [(s.tokens, s.work.prefill_tokens) for s in (decoding, first, second, third)] == [
        (1, 0),
        (2048, 2048),
        (952, 952),
        (2, 0),
    ]


def test_without_chunks_a_prompt_waits_for_a_step_that_has_room_for_all_of_it() -> None:
    whole = Engine(LabParams(chunked_prefill=False, max_num_batched_tokens=256, max_num_seqs=8), seed=1)
    chunked = Engine(LabParams(max_num_batched_tokens=256, max_num_seqs=8), seed=1)
    sizes = {}
    for engine in (whole, chunked):
        for request_id in range(3):
            engine.submit(0.0, EngineRequest(request_id, 5000, 1, 0.0))
        sizes[engine] = [s.tokens for s in run_dry(engine)[1]]
    assert sizes[whole] == [5000, 5000, 5000]
    assert max(sizes[chunked]) == 256


def test_a_threshold_on_long_prompts_leaves_room_for_short_ones_in_the_same_step() -> None:
    engine = Engine(LabParams(max_num_batched_tokens=512, long_prefill_token_threshold=128), seed=1)
    engine.submit(0.0, EngineRequest(1, 4000, 1, 0.0))
    engine.submit(0.0, EngineRequest(2, 300, 1, 0.0))
    engine.submit(0.0, EngineRequest(3, 60, 1, 0.0))
    _, started, tokens = step(engine, 0.0)
    assert started.tokens == 128 + 128 + 60
    assert ids(tokens) == [3]


# Speculation.


@pytest.mark.parametrize("acceptance_ratio", [0.0, 0.5, 0.8, 1.0])
def test_a_verified_step_yields_one_token_plus_the_sum_of_powers(acceptance_ratio: float) -> None:
    engine = Engine(LabParams().changed({"speculation.acceptance_ratio": acceptance_ratio}), seed=1)
    for request_id in range(20):
        engine.submit(0.0, EngineRequest(request_id, 10, 1000, 0.0))
    run_dry(engine)
    metrics = engine.metrics
    expected = sum(acceptance_ratio**i for i in range(1, 4))
    assert metrics.accepted_tokens / metrics.drafts == pytest.approx(expected, rel=0.03)
    assert metrics.draft_tokens == 3 * metrics.drafts
    assert sum(metrics.accepted_per_position) == metrics.accepted_tokens
    assert metrics.generation_tokens == 20 * 1000
    assert metrics.accepted_per_position == sorted(metrics.accepted_per_position, reverse=True)


def test_every_verified_position_is_computed_and_sampled() -> None:
    engine = Engine(LabParams().changed({"speculation.num_speculative_tokens": 4}), seed=1)
    for request_id in range(3):
        engine.submit(0.0, EngineRequest(request_id, 10, 100, 0.0))
    now_s, first, _ = step(engine, 0.0)
    assert (first.work.prefill_tokens, first.work.sampled_rows, first.work.draft_tokens) == (30, 3, 0)
    _, second, _ = step(engine, now_s)
    assert (second.tokens, second.work.sampled_rows, second.work.draft_tokens) == (15, 15, 12)
    assert second.work.prefill_tokens == 0
    _, steps = run_dry(engine, now_s)
    assert all(s.work.prefill_tokens == 0 for s in steps)


def test_work_is_summed_over_the_batch_whether_it_only_decodes_or_not() -> None:
    engine = Engine(LabParams(max_num_batched_tokens=300), seed=1)
    engine.submit(0.0, EngineRequest(1, 100, 20, 0.0))
    engine.submit(0.0, EngineRequest(2, 500, 20, 0.0))
    works = [s.work for s in run_dry(engine)[1]]
    first, second, third = works[:3]
    assert (first.tokens, first.prefill_tokens, first.sampled_rows, first.kv_tokens) == (300, 300, 1, 100 + 200)
    assert first.attention_pairs == 100 * 50 + 200 * 100
    assert (second.tokens, second.prefill_tokens, second.sampled_rows, second.kv_tokens) == (300, 299, 1, 101 + 499)
    assert (third.tokens, third.prefill_tokens, third.sampled_rows, third.kv_tokens) == (2, 1, 2, 102 + 500)
    fourth = works[3]  # a step that only decodes
    assert (fourth.tokens, fourth.prefill_tokens, fourth.sampled_rows, fourth.kv_tokens) == (2, 0, 2, 103 + 501)
    assert fourth.attention_pairs == 102.5 + 500.5


# Adapters.


def test_a_batch_has_no_more_adapters_than_slots_and_others_pass_those_that_wait() -> None:
    engine = Engine(LabParams().changed({"lora.adapters": 3, "lora.max_loras": 2}), seed=1)
    for request_id, adapter in enumerate((0, 1, 2, 0, None)):
        engine.submit(0.0, EngineRequest(request_id, 10, 5 + request_id, 0.0, adapter=adapter))
    now_s, started, _ = step(engine, 0.0)
    assert ids(engine.running) == [0, 1, 3, 4]
    assert (started.work.adapters, started.work.loaded_adapters) == (2, 2)
    gauges = engine.gauges(now_s)
    assert (gauges.waiting_deferred, gauges.waiting_capacity) == (1, 0)
    assert (gauges.running_adapters, gauges.waiting_adapters, gauges.max_loras) == ((0, 1), (2,), 2)
    while 2 in ids(engine.waiting):
        now_s, started, _ = step(engine, now_s)
    assert started.work.loaded_adapters == 1
    run_dry(engine, now_s)
    assert engine.metrics.adapter_loads == 3


def test_an_adapter_stays_in_its_slot_until_another_needs_it() -> None:
    slots = AdapterSlots(2)
    for adapter, copied in ((1, True), (2, True), (1, False), (3, True), (1, False), (2, True)):
        assert slots.enter(adapter) == copied
        slots.leave(adapter)


# Grammars.


def test_a_request_waits_for_its_grammar_and_others_pass_it() -> None:
    engine = Engine(TINY.changed({"grammar.compile_s": 1.0}), seed=1)
    engine.submit(0.0, EngineRequest(1, 4, 4, 0.0, schema=7))
    assert engine.start_step(0.0) is None
    assert engine.wake_s == 1.0
    engine.submit(0.5, EngineRequest(2, 4, 4, 0.5))
    engine.submit(0.5, EngineRequest(3, 4, 4, 0.5, schema=7))
    now_s, started, tokens = step(engine, 0.5)
    assert ids(tokens) == [2]
    assert started.work.masked_sequences == 0
    assert engine.gauges(now_s).grammar_queue == 2
    now_s, started, _ = step(engine, 1.0)
    assert ids(engine.running) == [2, 1, 3]  # back in its old place, before 3
    assert started.work.masked_sequences == 2
    engine.submit(now_s, EngineRequest(4, 4, 4, now_s, schema=7))  # compiled by now
    now_s, started, _ = step(engine, now_s)
    assert started.work.masked_sequences == 3
    run_dry(engine, now_s)
    assert (engine.metrics.grammar_compiles, engine.metrics.grammar_compile_s, engine.metrics.grammar_hits) == (1, 1, 2)


def test_a_slow_host_takes_longer_to_compile_a_grammar() -> None:
    engine = Engine(TINY.changed({"grammar.compile_s": 1.0}), seed=1, cpu=lambda _, cpu_s: 3 * cpu_s)
    engine.submit(0.0, EngineRequest(1, 4, 4, 0.0, schema=7))
    assert engine.start_step(0.0) is None
    assert engine.wake_s == 3.0


def test_a_slow_host_makes_every_step_longer() -> None:
    def makespan_s(slow: float) -> float:
        engine = Engine(TINY, seed=1, cpu=lambda _, cpu_s: slow * cpu_s)
        engine.submit(0.0, EngineRequest(1, 4, 20, 0.0))
        return run_dry(engine)[0]

    # A little more is due for each sequence of a step and its token.
    assert makespan_s(2) - makespan_s(1) == pytest.approx(
        20 * (TINY.step_overhead_s + TINY.sequence_overhead_s), rel=0.5
    )


def test_the_timeline_wakes_an_engine_whose_grammar_is_ready() -> None:
    emitted: list[int] = []
    timeline = Timeline(Engine(TINY.changed({"grammar.compile_s": 1.0}), seed=1), lambda t_ns, _: emitted.append(t_ns))
    timeline.submit_request(0, EngineRequest(1, 4, 1, 0.0, schema=7))
    assert timeline.next_ns == 1_000_000_000
    timeline.advance(2_000_000_000)
    assert len(emitted) == 1 and 1_000_000_000 < emitted[0] < 1_100_000_000
    assert timeline.next_ns is None


# Images.


def test_images_go_through_the_encoder_once_and_only_as_many_per_step_as_it_takes() -> None:
    engine = Engine(LabParams(max_num_batched_tokens=2048), seed=1)
    for request_id in range(3):
        engine.submit(0.0, EngineRequest(request_id, 900, 3, 0.0, image_tokens=800))
    now_s, first, _ = step(engine, 0.0)
    assert first.work.image_tokens == 1600
    _, second, _ = step(engine, now_s)
    assert second.work.image_tokens == 800
    run_dry(engine, now_s)
    assert engine.metrics.encoder_tokens == 2400


# Changes at run time.


def test_a_smaller_pool_evicts_as_blocks_are_needed_and_loses_no_request() -> None:
    engine = Engine(LabParams(kv_blocks=200), seed=1)
    for request_id in range(10):
        engine.submit(0.0, EngineRequest(request_id, 160, 100, 0.0))
    now_s, _, _ = step(engine, 0.0)
    assert engine.change(now_s, LabParams(kv_blocks=60)) == []
    run_dry(engine, now_s)
    assert engine.metrics.preemptions > 0
    assert engine.metrics.finished["length"] == 10
    assert engine.pool.free == engine.pool.total == 60


def test_a_request_that_a_smaller_pool_can_never_hold_fails_at_once() -> None:
    engine = Engine(TINY, seed=1)
    engine.submit(0.0, EngineRequest(1, 20, 20, 0.0))
    engine.submit(0.0, EngineRequest(2, 4, 4, 0.0))
    now_s, _, _ = step(engine, 0.0)
    failed = engine.change(now_s, TINY.changed({"kv_blocks": 4}))
    assert ids(failed) == [1]
    assert (failed[0].finished, failed[0].failed, failed[0].finish_reason, failed[0].new_tokens) == (
        True, True, "error", 0,
    )  # fmt: skip
    run_dry(engine, now_s)
    assert engine.metrics.finished == {**dict.fromkeys(engine.metrics.finished, 0), "length": 1, "error": 1}


def test_a_change_in_a_step_counts_from_the_next_one() -> None:
    slow = TINY.changed({"step_overhead_s": 1.0})
    engine = Engine(TINY, seed=1)
    engine.submit(0.0, EngineRequest(1, 4, 4, 0.0))
    started = engine.start_step(0.0)
    assert started is not None and started.duration_s < 0.1
    engine.change(0.0, slow)
    engine.end_step(started.duration_s)
    _, started, _ = step(engine, started.duration_s)
    assert started.duration_s > 1.0


def test_a_restart_drops_every_request_and_begins_with_empty_counters_and_cache() -> None:
    engine = Engine(LabParams(), seed=1)
    for request_id in range(3):
        engine.submit(0.0, EngineRequest(request_id, 64, 8, 0.0, block_keys=range(4)))
    now_s, _, _ = step(engine, 0.0)
    assert engine.start_step(now_s) is not None
    lost = engine.fail(now_s)
    assert ids(lost) == [0, 1, 2] and all(s.failed for s in lost)
    assert not engine.has_work
    assert engine.metrics.steps == 0
    engine.submit(now_s, EngineRequest(0, 64, 1, now_s, block_keys=range(4)))
    _, started, _ = step(engine, now_s)
    assert started.tokens == 64


def test_a_memory_leak_takes_free_blocks_until_the_process_dies_of_it() -> None:
    params = LabParams(kv_blocks=100).changed({"accelerator.memory_leak_bytes_per_s": 20 * 16 * 131_072.0})
    engine = Engine(params, seed=1)
    engine.submit(0.0, EngineRequest(1, 160, 1000, 0.0))
    step(engine, 0.0)
    step(engine, 2.0)
    assert engine.pool.total == 100 - 40
    assert not engine.out_of_memory
    step(engine, 5.5)
    assert engine.out_of_memory
    engine.fail(6.0)
    assert not engine.out_of_memory
    assert engine.pool.total == 100


# Counters.


def test_steps_are_counted_by_what_they_compute() -> None:
    engine = Engine(LabParams(), seed=1)
    engine.submit(0.0, EngineRequest(1, 3000, 10, 0.0))
    run_dry(engine)
    metrics = engine.metrics
    assert (metrics.steps, metrics.decode_steps, metrics.graphed_decode_steps) == (11, 9, 9)
    assert metrics.itl_s.count == 9
    assert metrics.ttft_s.count == 1


def test_gaps_between_tokens_are_observed_for_every_token_but_the_first() -> None:
    engine = Engine(TINY, seed=1)
    for request_id in range(8):
        engine.submit(0.0, EngineRequest(request_id, 5 + request_id, 20 - request_id, 0.0))
    now_s, _ = run_dry(engine)
    metrics = engine.metrics
    assert metrics.itl_s.count == metrics.generation_tokens - 8
    assert metrics.itl_s.sum == pytest.approx(metrics.decode_s.sum)
    assert now_s > 0
