"""Laws of the engine with everything switched on: conservation, no leaks, Little's law, monotone limits."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pinchpoint.lab.engine import Engine, EngineRequest, Sequence
from pinchpoint.lab.params import Grammar, LabParams, Lora, Speculation

BLOCK_TOKENS = 4


def check(engine: Engine) -> None:
    pool = engine.pool
    inside = [*engine.running, *engine.waiting, *engine._held.values()]
    inside = list({id(s): s for s in inside}.values())
    anonymous = sum(s.blocks - len(s.held_keys) for s in inside)
    keyed = {key for s in inside for key in s.held_keys}
    assert 0 <= pool.free <= pool.total
    assert pool.used == anonymous + len(keyed)
    assert pool.shared_keys == len(keyed)
    for s in engine.running:
        assert s.computed_tokens <= s.capacity_tokens == s.blocks * BLOCK_TOKENS
        if s.scheduled_tokens == 0 and s.last_token_s == engine._last_end_s:
            assert s.computed_tokens == s.known_tokens - 1, "after a token, that token alone is left to compute"
        assert s.keys_seen * BLOCK_TOKENS <= s.computed_tokens + s.scheduled_tokens


params = st.builds(
    LabParams,
    kv_blocks=st.integers(12, 30),
    max_num_seqs=st.integers(1, 5),
    max_num_batched_tokens=st.integers(5, 40),
    block_size_tokens=st.just(BLOCK_TOKENS),
    admission=st.sampled_from(["optimistic", "reserve_full"]),
    scheduling=st.sampled_from(["fcfs", "priority"]),
    chunked_prefill=st.booleans(),
    prefix_caching=st.booleans(),
    mixed_batches=st.sampled_from([True, True, False]),
    long_prefill_token_threshold=st.sampled_from([0, 7]),
    speculation=st.none()
    | st.builds(Speculation, num_speculative_tokens=st.integers(1, 4), acceptance_ratio=st.floats(0, 1)),
    lora=st.builds(Lora, adapters=st.just(4), max_loras=st.integers(1, 3)),
    grammar=st.builds(Grammar, compile_s=st.sampled_from([0.0, 0.05])),
)
requests = st.tuples(
    st.integers(1, 20),  # prompt
    st.integers(1, 20),  # output
    st.none() | st.integers(0, 2),  # family of texts
    st.integers(0, 2),  # priority
    st.none() | st.integers(0, 3),  # adapter
    st.none() | st.integers(0, 2),  # schema
    st.sampled_from([0, 0, 1]),  # image tokens
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), requests),
        st.tuples(st.just("submit"), requests),
        st.tuples(st.just("abort"), st.integers(0, 20)),
        st.tuples(st.just("abort in a step"), st.integers(0, 20)),
        st.tuples(st.just("steps"), st.integers(1, 12)),
        st.tuples(st.just("change"), params),
        st.tuples(st.just("fail"), st.just(0)),
    ),
    max_size=40,
)


def keys(family: int | None, prompt: int, output: int) -> tuple[str, ...]:
    """Texts of one family agree in all blocks."""
    return () if family is None else tuple(f"{family}/{i}" for i in range((prompt + output) // BLOCK_TOKENS))


@settings(max_examples=300, deadline=None)
@given(first=params, operations=operations)
@example(  # prompts first, and blocks for all but the last of them
    first=LabParams(
        kv_blocks=12, max_num_seqs=2, max_num_batched_tokens=5, block_size_tokens=4, chunked_prefill=False,
        prefix_caching=False, mixed_batches=False, long_prefill_token_threshold=7,
    ),
    operations=[("submit", (7, 20, None, 0, None, None, 0)), ("submit", (3, 19, None, 0, None, None, 0))],
)  # fmt: skip
def test_every_request_ends_once_with_all_its_tokens_and_no_block_leaks(first: LabParams, operations: list) -> None:
    engine = Engine(first, seed=1)
    now_s, next_id = 0.0, 0
    got: dict[int, int] = {}
    wanted: dict[int, int] = {}
    ended: dict[int, str] = {}

    def end(request_id: int, how: str) -> None:
        assert request_id not in ended
        ended[request_id] = how

    def step(abort_id: int | None = None) -> None:
        nonlocal now_s
        started = engine.start_step(now_s)
        if started is None:
            assert engine.wake_s is not None and engine.wake_s > now_s, "there is work, and nothing will ever happen"
            now_s = engine.wake_s
            return
        check(engine)
        budget = engine.params.max_num_batched_tokens
        assert 0 < started.tokens <= (budget if engine.params.chunked_prefill else max(budget, 120))
        assert started.work.adapters <= 3
        if abort_id is not None and engine.abort(abort_id):
            end(abort_id, "abort")
        now_s += started.duration_s
        for sequence in engine.end_step(now_s):
            assert sequence.request_id not in ended
            got[sequence.request_id] = got.get(sequence.request_id, 0) + sequence.new_tokens
            if sequence.finished:
                end(sequence.request_id, "done")
        check(engine)

    for kind, value in operations:
        if kind == "submit":
            prompt, output, family, priority, adapter, schema, image = value
            request = EngineRequest(
                next_id, prompt, output, now_s, block_keys=keys(family, prompt, output), priority=priority,
                adapter=adapter, schema=schema, image_tokens=image,
            )  # fmt: skip
            engine.submit(now_s, request)
            wanted[next_id] = output
            next_id += 1
        elif kind == "abort":
            if engine.abort(value):
                end(value, "abort")
        elif kind == "abort in a step":
            if engine.has_work:
                step(value)
        elif kind == "steps":
            for _ in range(value):
                if engine.has_work:
                    step()
        elif kind == "change":
            for sequence in engine.change(now_s, value):
                end(sequence.request_id, "error")
        else:
            for sequence in engine.fail(now_s):
                assert sequence.failed
                end(sequence.request_id, "error")
        check(engine)
    steps = 0
    while engine.has_work:
        step()
        steps += 1
        assert steps < 20_000, "it never ends"
    assert sorted(ended) == sorted(wanted)
    for request_id, how in ended.items():
        if how == "done":
            assert got[request_id] == wanted[request_id]
        else:
            assert got.get(request_id, 0) < wanted[request_id]
    assert engine.pool.used == 0
    assert engine.pool.free == engine.pool.total


def replay(params: LabParams, gaps_s: list[float], lengths: list[tuple[int, int]]) -> tuple[float, float, float, float]:
    """Runs an open arrival process through an engine until all is done; returns (mean requests inside by the clock,
    arrivals per second, mean time inside, makespan)."""
    engine = Engine(params, seed=3)
    arrivals: list[float] = []
    now_s = 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        arrivals.append(now_s)
    area = inside_s = now_s = 0.0
    submitted = inside = 0
    step_ends_s: float | None = None
    while submitted < len(arrivals) or engine.has_work:
        event_s = arrivals[submitted] if submitted < len(arrivals) else float("inf")
        if step_ends_s is not None and step_ends_s <= event_s:
            event_s = step_ends_s
        area += inside * (event_s - now_s)
        now_s = event_s
        if step_ends_s == now_s:
            for sequence in engine.end_step(now_s):
                if sequence.finished:
                    inside -= 1
                    inside_s += now_s - sequence.arrival_s
            step_ends_s = None
        else:
            prompt, output = lengths[submitted]
            engine.submit(now_s, EngineRequest(submitted, prompt, output, now_s))
            submitted += 1
            inside += 1
        if step_ends_s is None and engine.has_work:
            step = engine.start_step(now_s)
            assert step is not None
            step_ends_s = now_s + step.duration_s
    return area / now_s, len(arrivals) / now_s, inside_s / len(arrivals), now_s


traffic = st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 300), st.integers(1, 40)), min_size=5, max_size=40)


@settings(max_examples=40, deadline=None)
@given(traffic=traffic)
def test_requests_inside_are_arrival_rate_times_time_inside(traffic: list[tuple[float, int, int]]) -> None:
    params = LabParams(max_num_seqs=8, kv_blocks=60)
    mean_inside, rate_rps, mean_s, _ = replay(params, [t[0] for t in traffic], [t[1:] for t in traffic])
    assert abs(mean_inside - rate_rps * mean_s) <= 0.01 * mean_inside


BURST = [(400, 60)] * 40
QUIET = LabParams(step_noise_ratio=0.0)


def makespan_s(params: LabParams) -> float:
    return replay(params, [0.0] * len(BURST), BURST)[3]


def test_a_burst_is_served_the_sooner_the_more_requests_may_run() -> None:
    spans_s = [makespan_s(QUIET.changed({"max_num_seqs": n})) for n in (1, 2, 4, 8, 16, 32)]
    assert spans_s == sorted(spans_s, reverse=True)
    assert spans_s[0] > 5 * spans_s[-1]


def test_a_burst_is_served_the_sooner_the_larger_the_pool() -> None:
    for admission in ("optimistic", "reserve_full"):
        base = QUIET.changed({"admission": admission, "prefix_caching": False})
        spans_s = [makespan_s(base.changed({"kv_blocks": n})) for n in (60, 120, 240, 480, 960)]
        assert spans_s == sorted(spans_s, reverse=True)


def test_a_long_prompt_is_through_the_sooner_the_larger_the_token_budget() -> None:
    # One prompt alone: with many, how their chunks happen to fall into steps decides between close budgets.
    budgets = (32, 64, 128, 256, 512, 1024)
    spans_s = [
        replay(QUIET.changed({"max_num_seqs": 32, "max_num_batched_tokens": n}), [0.0], [(4096, 1)])[3] for n in budgets
    ]
    assert spans_s == sorted(spans_s, reverse=True)


def test_a_burst_is_served_the_sooner_the_more_of_a_draft_is_accepted() -> None:
    def span_s(acceptance_ratio: float) -> float:
        return makespan_s(QUIET.changed({"max_num_seqs": 4, "speculation.acceptance_ratio": acceptance_ratio}))

    spans_s = [span_s(ratio) for ratio in (0.0, 0.3, 0.6, 0.9)]
    assert spans_s == sorted(spans_s, reverse=True)


@settings(max_examples=60, deadline=None)
@given(params=params, loads=st.lists(requests, min_size=1, max_size=12))
def test_same_seed_and_calls_give_the_same_tokens_at_the_same_instants(params: LabParams, loads: list) -> None:
    def log() -> list[tuple[float, int, int]]:
        engine = Engine(params, seed=5)
        for request_id, (prompt, output, family, priority, adapter, schema, image) in enumerate(loads):
            engine.submit(
                0.0,
                EngineRequest(
                    request_id, prompt, output, 0.0, "length", keys(family, prompt, output), priority, adapter, schema,
                    image,
                ),
            )  # fmt: skip
        now_s, seen = 0.0, []
        while engine.has_work:
            step = engine.start_step(now_s)
            if step is None:
                assert engine.wake_s is not None
                now_s = engine.wake_s
                continue
            now_s += step.duration_s
            tokens: list[Sequence] = engine.end_step(now_s)
            seen.extend((now_s, s.request_id, s.new_tokens) for s in tokens)
        return seen

    assert log() == log()
