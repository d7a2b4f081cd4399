"""Laws of the scheduler: conservation, order, limits, preemption."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.lab.engine import Engine, EngineRequest, Sequence
from pinchpoint.lab.params import LabParams

SMALL = LabParams(kv_blocks=12, max_num_seqs=4, max_num_batched_tokens=48, block_size_tokens=4)


def run_step(engine: Engine, now_s: float) -> tuple[float, list[Sequence]]:
    step = engine.start_step(now_s)
    assert step is not None
    end_s = now_s + step.duration_s
    return end_s, engine.end_step(end_s)


def run_dry(engine: Engine, now_s: float = 0.0) -> float:
    while engine.has_work:
        now_s, _ = run_step(engine, now_s)
    return now_s


def check_pool(engine: Engine) -> None:
    assert 0 <= engine.pool.free <= engine.pool.total
    assert engine.pool.total - engine.pool.free == sum(s.blocks for s in engine.running)
    assert all(s.blocks == 0 for s in engine.waiting)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 20), st.integers(1, 20)),
        st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("abort mid-step"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(operations=operations, admission=st.sampled_from(["optimistic", "reserve_full"]))
def test_blocks_tokens_and_limits_are_kept_whatever_happens(operations: list, admission: str) -> None:
    params = LabParams(
        kv_blocks=12, max_num_seqs=4, max_num_batched_tokens=24, block_size_tokens=4, admission=admission
    )
    engine = Engine(params, seed=1)
    now_s, next_id = 0.0, 0
    got: dict[int, int] = {}
    wanted: dict[int, int] = {}
    aborted: set[int] = set()

    def step(abort_id: int | None = None) -> None:
        nonlocal now_s
        started = engine.start_step(now_s)
        assert started is not None, "there is work and nothing can be computed"
        check_pool(engine)
        assert len(engine.running) <= params.max_num_seqs
        assert started.tokens <= params.max_num_batched_tokens
        if admission == "reserve_full":
            assert started.preempted == 0
        if abort_id is not None and engine.abort(abort_id):
            aborted.add(abort_id)
        now_s += started.duration_s
        for sequence in engine.end_step(now_s):
            assert sequence.request_id not in aborted
            got[sequence.request_id] = got.get(sequence.request_id, 0) + 1
        check_pool(engine)

    for kind, a, b in operations:
        if kind == "submit":
            engine.submit(now_s, EngineRequest(next_id, a, b, now_s))
            wanted[next_id] = b
            next_id += 1
        elif kind == "abort":
            if engine.abort(a):
                aborted.add(a)
        elif engine.has_work:
            step(a if kind == "abort mid-step" else None)
        check_pool(engine)
    while engine.has_work:
        step()
    assert engine.pool.free == engine.pool.total
    finished = {request_id: n for request_id, n in wanted.items() if request_id not in aborted}
    assert {request_id: n for request_id, n in got.items() if request_id not in aborted} == finished
    assert engine.metrics.finished["length"] == len(finished)
    assert engine.metrics.finished["abort"] == len(aborted)
    assert engine.metrics.generation_tokens == sum(got.values())


@given(lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=20))
def test_without_preemption_every_token_is_computed_exactly_once(lengths: list[tuple[int, int]]) -> None:
    engine = Engine(LabParams(), seed=1)
    for request_id, (prompt, output) in enumerate(lengths):
        engine.submit(0.0, EngineRequest(request_id, prompt, output, 0.0))
    computed, now_s = 0, 0.0
    while engine.has_work:
        step = engine.start_step(now_s)
        assert step is not None and step.preempted == 0
        computed += step.tokens
        now_s += step.duration_s
        engine.end_step(now_s)
    assert computed == sum(prompt + output - 1 for prompt, output in lengths)  # the last token is never fed back
    assert engine.metrics.prompt_tokens == sum(prompt for prompt, _ in lengths)


@given(lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 18)), min_size=2, max_size=25))
def test_requests_are_first_scheduled_in_the_order_they_came(lengths: list[tuple[int, int]]) -> None:
    engine = Engine(SMALL, seed=1)
    sequences = []
    for request_id, (prompt, output) in enumerate(lengths):
        engine.submit(0.0, EngineRequest(request_id, prompt, output, 0.0))
        sequences.append(engine.waiting[-1])
    now_s = 0.0
    while engine.has_work:
        now_s, _ = run_step(engine, now_s)
        started = [s.scheduled_s is not None for s in sequences]
        assert started == sorted(started, reverse=True)
    starts = [s.scheduled_s for s in sequences]
    assert starts == sorted(starts)


@given(lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 18)), min_size=2, max_size=25))
def test_nobody_is_evicted_while_the_pool_has_room(lengths: list[tuple[int, int]]) -> None:
    engine = Engine(SMALL, seed=1)
    for request_id, (prompt, output) in enumerate(lengths):
        engine.submit(0.0, EngineRequest(request_id, prompt, output, 0.0))
    now_s = 0.0
    while engine.has_work:
        free = engine.pool.free
        need = sum(max(0, engine.pool.blocks_for(s.known_tokens) - s.blocks) for s in engine.running)
        step = engine.start_step(now_s)
        assert step is not None
        if need <= free:
            assert step.preempted == 0
        now_s += step.duration_s
        engine.end_step(now_s)


def test_an_evicted_request_returns_to_the_head_of_the_line_and_is_computed_again() -> None:
    # 12 blocks of 4 tokens. Both prompts fit (5 + 6 blocks), both with their outputs do not (10 + 9).
    engine = Engine(LabParams(kv_blocks=12, max_num_seqs=2, block_size_tokens=4), seed=1)
    engine.submit(0.0, EngineRequest(1, 20, 20, 0.0))
    engine.submit(0.0, EngineRequest(2, 24, 12, 0.0))
    engine.submit(0.0, EngineRequest(3, 4, 4, 0.0))
    now_s = 0.0
    while engine.metrics.preemptions == 0:
        now_s, _ = run_step(engine, now_s)
    assert [s.request_id for s in engine.running] == [1]  # the last of the running ones went
    victim, behind = engine.waiting
    assert (victim.request_id, behind.request_id) == (2, 3)
    assert victim.computed_tokens == 0
    assert victim.output_tokens > 0  # what it has said stays said
    run_dry(engine, now_s)
    assert engine.metrics.finished["length"] == 3
    assert engine.metrics.request_num_preemptions.sum == engine.metrics.preemptions


def test_a_long_request_at_the_head_blocks_a_short_one_behind_it() -> None:
    engine = Engine(SMALL, seed=1)
    engine.submit(0.0, EngineRequest(1, 30, 6, 0.0))  # 8 of 12 blocks
    engine.submit(0.0, EngineRequest(2, 20, 4, 0.0))  # needs 5
    engine.submit(0.0, EngineRequest(3, 2, 2, 0.0))  # would fit
    run_step(engine, 0.0)
    assert [s.request_id for s in engine.running] == [1]
    assert [s.request_id for s in engine.waiting] == [2, 3]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    engine = Engine(LabParams(max_num_batched_tokens=256), seed=1)
    engine.submit(0.0, EngineRequest(1, 600, 1, 0.0))
    tokens = []
    now_s = 0.0
    while engine.has_work:
        step = engine.start_step(now_s)
        assert step is not None
        tokens.append(step.tokens)
        now_s += step.duration_s
        engine.end_step(now_s)
    assert tokens == [256, 256, 88]


def test_reserving_the_whole_length_admits_fewer_and_evicts_nobody() -> None:
    running = {}
    for admission in ("optimistic", "reserve_full"):
        engine = Engine(LabParams(kv_blocks=12, block_size_tokens=4, admission=admission), seed=1)
        for request_id in range(6):
            engine.submit(0.0, EngineRequest(request_id, 8, 12, 0.0))
        run_step(engine, 0.0)
        running[admission] = len(engine.running)
        run_dry(engine)
        assert (engine.metrics.preemptions == 0) == (admission == "reserve_full")
    assert running == {"optimistic": 6, "reserve_full": 2}


def test_same_seed_same_times_other_seed_other_times() -> None:
    def makespan_s(seed: int) -> float:
        engine = Engine(LabParams(), seed)
        for request_id in range(5):
            engine.submit(0.0, EngineRequest(request_id, 100, 20, 0.0))
        return run_dry(engine)

    assert makespan_s(1) == makespan_s(1)
    assert makespan_s(1) != makespan_s(2)
