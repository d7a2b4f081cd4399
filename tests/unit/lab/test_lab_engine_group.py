"""Several engines behind one interface: shared, in lock-step, prefill and decode apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.lab.disaggregation import KvLink
from pinchpoint.lab.engine import EngineRequest, Sequence
from pinchpoint.lab.group import EngineGroup, engine_count
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.work import AcceleratorState, StepCost

QUIET = LabParams(step_noise_ratio=0.0)
SPLIT = QUIET.changed({"disaggregation.prefill_engines": 1})
END_NS = 1_000 * NS_PER_S


class Client:
    """Sees what a group emits."""

    def __init__(self) -> None:
        self.tokens: dict[int, int] = {}
        self.first_ns: dict[int, int] = {}
        self.ended: dict[int, str] = {}
        self.gaps_ns: dict[int, list[int]] = {}
        self._last_ns: dict[int, int] = {}
        self.now_ns = 0

    def __call__(self, t_ns: int, sequences: list[Sequence]) -> None:
        assert t_ns >= self.now_ns, "time goes back"
        self.now_ns = t_ns
        for s in sequences:
            assert s.request_id not in self.ended
            self.tokens[s.request_id] = self.tokens.get(s.request_id, 0) + s.new_tokens
            if s.new_tokens:
                self.first_ns.setdefault(s.request_id, t_ns)
                self.gaps_ns.setdefault(s.request_id, []).append(t_ns - self._last_ns.get(s.request_id, t_ns))
                self._last_ns[s.request_id] = t_ns
            if s.finished:
                self.ended[s.request_id] = s.finish_reason


def request(request_id: int, prompt: int = 100, output: int = 10, t_ns: int = 0) -> EngineRequest:
    return EngineRequest(request_id, prompt, output, t_ns / NS_PER_S)


def burst(params: LabParams, requests: list[EngineRequest]) -> tuple[EngineGroup, Client]:
    client = Client()
    group = EngineGroup(params, 1, client)
    for each in requests:
        group.submit(0, each)
    group.advance(END_NS)
    return group, client


# Data parallel.


def test_requests_go_to_the_engine_with_the_least_to_do() -> None:
    group = EngineGroup(QUIET.changed({"data_parallel": 3}), 1, Client())
    for request_id in range(9):
        group.submit(0, request(request_id))
    assert [engine.load for engine in group.engines] == [group.engines[0].load] * 3
    assert [state.gauges.requests_running + state.gauges.requests_waiting for state in group.states(0.0)] == [3, 3, 3]
    assert [state.index for state in group.states(0.0)] == [0, 1, 2]


def test_two_engines_serve_a_burst_sooner_than_one() -> None:
    ends_ns = [
        burst(QUIET.changed({"data_parallel": n, "max_num_seqs": 4}), [request(i) for i in range(16)])[1].now_ns
        for n in (1, 2, 4)
    ]
    assert ends_ns[0] > 1.7 * ends_ns[1] > 2.5 * ends_ns[2]


def test_ranks_that_share_their_experts_step_together_at_the_pace_of_the_slowest() -> None:
    def gaps_ns(expert_parallel: bool) -> list[int]:
        params = QUIET.changed({"data_parallel": 2, "expert_parallel": expert_parallel})
        # The long prompt keeps one rank busy for many steps while the other only decodes.
        _, client = burst(params, [request(0, 7000, 5), request(1, 10, 30)])
        return client.gaps_ns[1][1:]

    free, bound = gaps_ns(False), gaps_ns(True)
    assert max(bound) > 5 * max(free)
    assert min(bound) == pytest.approx(min(free), rel=0.3)


def test_ranks_in_lock_step_start_and_end_their_steps_together() -> None:
    starts: dict[int, set[float]] = {0: set(), 1: set()}
    group = EngineGroup(QUIET.changed({"data_parallel": 2, "expert_parallel": True}), 1, Client())
    for engine in group.engines:
        engine.observer = lambda step, i=engine.index: starts[i].add(step.started_s)
    for i in range(6):
        group.submit(0, request(i, 50 + 100 * i, 20))
    group.advance(END_NS)
    shorter, longer = sorted(starts.values(), key=len)
    assert shorter <= longer


# Prefill and decode apart.


def test_a_prompt_is_computed_on_one_engine_and_its_answer_on_another() -> None:
    group, client = burst(SPLIT, [request(i, 200, 20) for i in range(5)])
    prefill, decode = group.engines
    assert client.tokens == dict.fromkeys(range(5), 20)
    assert client.ended == dict.fromkeys(range(5), "length")
    assert prefill.metrics.prefill_step_s.count > 0 and prefill.metrics.decode_steps == 0
    assert decode.metrics.prompt_tokens == decode.metrics.external_prompt_tokens + 5 == 1000
    assert decode.metrics.kv_transfers == 5
    assert decode.metrics.kv_transfer_bytes == 1000 * QUIET.kv_bytes_per_token
    assert prefill.pool.used == decode.pool.used == group.requests == 0
    assert group.next_ns is None


def test_the_first_token_waits_for_the_transfer() -> None:
    def first_s(changes: dict[str, object]) -> float:
        return burst(SPLIT.changed(changes), [request(1, 4000, 5)])[1].first_ns[1] / NS_PER_S

    fast, late = first_s({}), first_s({"disaggregation.transfer_latency_s": 0.502})
    assert late - fast == pytest.approx(0.5, abs=1e-6)
    slow = first_s({"disaggregation.transfer_bytes_per_s": 1e9})
    assert slow - fast == pytest.approx(4000 * QUIET.kv_bytes_per_token * (1 / 1e9 - 1 / 25e9), rel=1e-6)


def test_answers_are_not_disturbed_by_prompts_of_others_when_these_have_engines_of_their_own() -> None:
    def worst_gap_ns(params: LabParams) -> int:
        client = Client()
        group = EngineGroup(params, 1, client)
        group.submit(0, request(0, 50, 200))
        for i in range(1, 6):
            group.submit(i * NS_PER_S // 5, request(i, 4000, 2))
        group.advance(END_NS)
        return max(client.gaps_ns[0])

    assert worst_gap_ns(QUIET) > 5 * worst_gap_ns(SPLIT)


def test_a_full_decode_engine_keeps_prompts_on_the_prefill_engine() -> None:
    params = SPLIT.changed({"kv_blocks": 100, "max_num_seqs": 2})
    client = Client()
    group = EngineGroup(params, 1, client)
    for i in range(8):
        group.submit(0, request(i, 400, 200))
    prefill, decode = group.engines
    group.advance(NS_PER_S)
    assert len(decode.running) == 2
    assert prefill.pool.used >= 3 * 25  # kept until fetched
    group.advance(END_NS)
    assert client.tokens == dict.fromkeys(range(8), 200)
    assert prefill.pool.used == decode.pool.used == 0


def test_a_prompt_leaves_the_prefill_engine_as_soon_as_its_kv_has_arrived() -> None:
    group = EngineGroup(SPLIT, 1, Client())
    group.submit(0, request(1, 400, 2000))
    group.advance(NS_PER_S)
    prefill, decode = group.engines
    assert decode.running and decode.running[0].output_tokens < 500
    assert prefill.pool.used == 0


def test_a_link_sends_one_thing_after_the_other() -> None:
    link = KvLink(100.0, 0.5)
    assert link.send(0.0, 100) == 1.5
    assert link.send(0.0, 100) == 2.5
    assert link.send(9.0, 100) == 10.5


# All of them.

TOPOLOGIES = {
    "one engine": {},
    "data parallel": {"data_parallel": 2},
    "lock-step": {"data_parallel": 2, "expert_parallel": True},
    "split": {"disaggregation.prefill_engines": 1},
    "split, several of each": {"disaggregation.prefill_engines": 2, "data_parallel": 2},
}
traffic = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 150), st.integers(1, 60)),
        st.tuples(st.just("submit"), st.integers(1, 150), st.integers(1, 60)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 500), st.just(0)),  # ms
        st.tuples(st.just("change"), st.integers(15, 40), st.integers(1, 4)),
        st.tuples(st.just("fail"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


def test_an_evicted_request_is_not_kept_out_for_ever_by_the_fetched_prompts_behind_it() -> None:
    """They hold blocks while they wait for the only slot, and it needs more blocks than are left."""
    base = LabParams(kv_blocks=24, max_num_seqs=3).changed({"disaggregation.prefill_engines": 1})
    client = Client()
    group = EngineGroup(base, 1, client)
    for request_id, (prompt, output) in enumerate([(1, 22), (1, 49), (81, 1), (81, 1)]):
        group.submit(0, request(request_id, prompt, output))
    group.change(0, base.changed({"kv_blocks": 15, "max_num_seqs": 1}))
    group.advance(END_NS)
    assert sorted(client.ended) == [0, 1, 2, 3]
    assert all(engine.pool.free == engine.pool.total for engine in group.engines)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@settings(max_examples=60, deadline=None)
@given(traffic=traffic)
def test_in_every_topology_each_request_ends_once_and_no_block_leaks(topology: str, traffic: list) -> None:
    base = LabParams(kv_blocks=24, max_num_seqs=3).changed(
        {**TOPOLOGIES[topology], "grammar.share_ratio": 0.3, "lora.adapters": 3, "lora.max_loras": 2}
    )
    client = Client()
    group = EngineGroup(base, 1, client)
    params, now_ns, wanted, gone = base, 0, {}, set()
    for kind, a, b in traffic:
        if kind == "submit" and a + b <= params.max_model_len_tokens():
            request_id = len(wanted)
            group.submit(now_ns, request(request_id, a, b, now_ns))
            wanted[request_id] = b
        elif kind == "abort":
            if group.abort(now_ns, a):
                gone.add(a)
        elif kind == "wait":
            now_ns += a * 1_000_000
            group.advance(now_ns)
        elif kind == "change":
            params = base.changed({"kv_blocks": a, "max_num_seqs": b})
            group.change(now_ns, params)
        elif kind == "fail":
            gone.update(s.request_id for s in group.fail(now_ns))
    group.advance(now_ns + END_NS)
    assert group.next_ns is None
    assert group.requests == 0
    assert sorted([*client.ended, *gone]) == sorted(wanted)
    for request_id, how in client.ended.items():
        assert (client.tokens[request_id] == wanted[request_id]) == (how == "length")
    assert all(engine.pool.used == 0 for engine in group.engines)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_same_seed_and_calls_give_the_same_instants(topology: str) -> None:
    def firsts() -> dict[int, int]:
        params = LabParams().changed({**TOPOLOGIES[topology], "grammar.share_ratio": 0.5})
        return burst(params, [request(i, 50 + i, 20) for i in range(20)])[1].first_ns

    assert firsts() == firsts()


@pytest.mark.parametrize(
    "change", [{"data_parallel": 2}, {"disaggregation.prefill_engines": 1}, {"block_size_tokens": 32}]
)
def test_what_a_running_group_is_built_on_cannot_change(change: dict[str, object]) -> None:
    group = EngineGroup(QUIET, 1, Client())
    with pytest.raises(UsageError, match="from the start"):
        group.change(0, QUIET.changed(change))


def test_a_group_has_its_decode_engines_and_beside_them_those_for_prompts() -> None:
    assert [engine_count(params) for params in (QUIET, QUIET.changed({"data_parallel": 3}), SPLIT)] == [1, 3, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"lora.max_loras": 0},
        {"grammar.schemas": 0},
        {"speculation.num_speculative_tokens": 0},
        {"disaggregation.prefill_engines": 0},
        {"disaggregation.transfer_bytes_per_s": 0},
    ],
)
def test_limits_with_which_nothing_would_ever_move_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="must be greater than 0"):
        QUIET.changed(change)


def test_a_request_that_is_too_long_or_here_already_is_refused() -> None:
    for params in (QUIET, SPLIT):
        group = EngineGroup(params, 1, Client())
        with pytest.raises(ValueError, match="longer"):
            group.submit(0, request(1, 8000, 1000))
        group.submit(0, request(1))
        with pytest.raises(ValueError, match="already"):
            group.submit(0, request(1))


def test_adapters_and_schemas_are_spread_over_requests_that_name_none() -> None:
    params = QUIET.changed({"lora.adapters": 4, "lora.max_loras": 4, "grammar.share_ratio": 0.5})
    group = EngineGroup(params, 1, Client())
    for i in range(200):
        group.submit(0, request(i, 10, 5))
    requests = [s.request for s in [*group.engines[0].running, *group.engines[0].waiting]]
    per_adapter = [sum(r.adapter == a for r in requests) for a in range(4)]
    assert min(per_adapter) > 30
    assert 70 < sum(r.schema is not None for r in requests) < 130


class SlowGpus:
    """At half their memory's speed; remembers the steps."""

    def __init__(self) -> None:
        self.seen_s: list[float] = []

    def clock_state(self, now_s: float) -> AcceleratorState:
        return AcceleratorState(memory_clock_ratio=0.5)

    def on_step(self, start_s: float, duration_s: float, cost: StepCost) -> None:
        self.seen_s.append(duration_s)


def test_the_state_of_the_gpus_slows_steps_and_they_are_told_of_each() -> None:
    gpus = SlowGpus()
    slow = EngineGroup(QUIET, 1, Client(), [gpus])
    healthy = EngineGroup(QUIET, 1, Client())
    for group in (slow, healthy):
        group.submit(0, request(1))
    assert slow.next_ns is not None and healthy.next_ns is not None
    assert slow.next_ns > 1.3 * healthy.next_ns
    slow.advance(END_NS)
    assert len(gpus.seen_s) == slow.engines[0].metrics.steps == 10
    with pytest.raises(ValueError, match="1 engines were given 2"):
        EngineGroup(QUIET, 1, Client(), [gpus, gpus])
