"""The HTTP face: what it says of itself, what it reads out of requests, and that it is the service in real time."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from test_lab_server import CHAT, FAST, Lab, against, running

from pinchpoint.errors import UsageError
from pinchpoint.lab.answers import answer_to
from pinchpoint.lab.api import Api, Dialect
from pinchpoint.lab.lateness import BOUNDS_NS, Lateness
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.scenario import Scenario
from pinchpoint.lab.server import Serving, serve
from pinchpoint.lab.settings import parse_settings
from pinchpoint.lab.timer import Timer
from pinchpoint.lab.tokens import Talk, block_keys, strings_of_talk, tokens_of_talk, words_of_talk
from pinchpoint.probe import probe

MODEL = "llama-3-8b"


# -- it looks like the engine that it imitates -----------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "tgi", "llama.cpp"])
def test_the_probe_takes_the_lab_for_the_engine_that_it_imitates_and_reads_its_limits(dialect: Any) -> None:
    params = LabParams(gpu="H100", dialect=dialect, max_num_seqs=8, kv_blocks=4096)

    async def scenario(lab: Lab) -> None:
        facts = await asyncio.to_thread(probe, lab.base)
        assert facts.engine == dialect
        assert facts.models == (MODEL,)
        assert facts.metrics_url is not None
        limits = facts.limits
        if dialect != "vllm":  # which tells it to nobody
            assert limits.max_sequences == 8
        if dialect != "llama.cpp":  # where each slot has a share of the context
            assert limits.context_tokens == params.max_model_len_tokens()
        if dialect != "tgi":  # whose page and info leave open what the pool is for
            assert limits.kv_tokens == 4096 * 16

    against(params, scenario)


def test_the_metrics_page_speaks_the_chosen_dialect_and_the_lab_tells_its_lateness_apart_from_it() -> None:
    async def scenario(lab: Lab) -> None:
        assert (await lab.post("/v1/chat/completions", CHAT))[0] == 200
        assert await lab.metric("sglang:generation_tokens_total") == 4
        _, engine_page, _ = await lab.get("/metrics")
        assert "lab_" not in engine_page
        _, page, _ = await lab.get("/lab/metrics")
        families = {family.name: family for family in text_string_to_metric_families(page)}
        (count,) = [s.value for s in families["lab_lateness_seconds"].samples if s.name.endswith("_count")]
        assert count >= 2

    against(LabParams(gpu="H100", dialect="sglang"), scenario)


def test_every_answer_is_counted_under_its_path_and_status() -> None:
    async def scenario(lab: Lab) -> None:
        assert (await lab.post("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 2}))[0] == 200
        assert (await lab.post("/v1/embeddings", {"model": MODEL, "input": ["a", "b c"]}))[0] == 200
        assert (await lab.post("/v1/chat/completions", {**CHAT, "max_tokens": 0}))[0] == 400
        assert (await lab.get("/v1/models"))[0] == 200
        assert (await lab.get("/nothing"))[0] == 404
        assert (await lab.get("/health"))[0] == 200
        _, page, _ = await lab.get("/metrics")
        counted = {
            (s.labels["handler"], s.labels["method"], s.labels["status"]): s.value
            for family in text_string_to_metric_families(page)
            for s in family.samples
            if s.name == "http_requests_total"
        }
        families = {family.name: family.samples for family in text_string_to_metric_families(page)}
        timed = [s.value for s in families["http_request_duration_seconds"] if s.name.endswith("_count")]
        assert sum(timed) == sum(counted.values())
        for name, least in (("http_request_size_bytes", 40), ("http_response_size_bytes", 100)):
            sums = {s.labels["handler"]: s.value for s in families[name] if s.name.endswith("_sum")}
            counts = {s.labels["handler"]: s.value for s in families[name] if s.name.endswith("_count")}
            assert sum(counts.values()) == sum(counted.values())
            assert sums["/v1/completions"] > least and sums["/v1/embeddings"] > least
        assert counted == {
            ("/v1/completions", "POST", "2xx"): 1,
            ("/v1/embeddings", "POST", "2xx"): 1,
            ("/v1/chat/completions", "POST", "4xx"): 1,
            ("/v1/models", "GET", "2xx"): 1,
            ("none", "GET", "4xx"): 1,
        }

    against(FAST, scenario)


def test_the_bodies_of_streams_have_no_length_to_count() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.events("/v1/chat/completions", CHAT)
        assert await lab.metric("http_response_size_bytes_sum") == 0
        assert await lab.metric("http_request_size_bytes_sum") > 80

    against(FAST, scenario)


@pytest.mark.parametrize(("dialect", "status"), [("vllm", 405), ("sglang", 405), ("tgi", 200), ("llama.cpp", 200)])
def test_head_is_answered_where_the_imitated_server_answers_it(dialect: Any, status: int) -> None:
    async def scenario(lab: Lab) -> None:
        async with lab.session.head(lab.base + "/health") as answer:
            assert answer.status == status
        async with lab.session.head(lab.base + "/metrics") as answer:
            assert answer.status == 200

    against(LabParams(gpu="H100", dialect=dialect), scenario)


@pytest.mark.parametrize(
    "gpu, exporter, name", [("H100", "dcgm", "DCGM_FI_DEV_GPU_UTIL"), ("910B2", "npu", "machine_npu_nums")]
)
def test_exporters_have_ports_of_their_own(gpu: str, exporter: str, name: str) -> None:
    async def scenario(lab: Lab) -> None:
        for of, metric in ((exporter, name), ("node", "node_cpu_seconds_total")):
            port = getattr(lab.ports, f"{of}_port")
            async with lab.session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                assert answer.status == 200
                page = await answer.text()
            assert metric in page
            list(text_string_to_metric_families(page))
            async with lab.session.get(f"http://127.0.0.1:{port}/v1/models") as answer:
                assert answer.status == 404

    against(FAST.changed({"gpu": gpu}), scenario, Serving(port=0, node_port=0, **{f"{exporter}_port": 0}))


@pytest.mark.parametrize("gpu, exporter, says", [("H100", "npu", "--dcgm-port"), ("910B2", "dcgm", "--npu-port")])
def test_an_exporter_tells_of_its_own_makers_accelerators_only(gpu: str, exporter: str, says: str) -> None:
    serving = Serving(port=0, **{f"{exporter}_port": 0})
    with pytest.raises(UsageError, match=says):
        asyncio.run(serve(LabParams(gpu=gpu), serving))


def test_a_directory_that_cannot_hold_traces_is_told_at_the_start() -> None:
    with pytest.raises(UsageError, match="/proc/traces"):
        asyncio.run(serve(LabParams(), Serving(port=0, profile_dir=Path("/proc/traces"))))


def test_the_process_began_when_the_lab_did() -> None:
    async def scenario(lab: Lab) -> None:
        page = (await lab.get("/metrics"))[1]
        (line,) = [line for line in page.splitlines() if line.startswith("process_start_time_seconds")]
        assert abs(float(line.split()[1]) - time.time()) < 600

    against(FAST, scenario)


def test_adapters_are_models_beside_their_base() -> None:
    async def scenario(lab: Lab) -> None:
        models = json.loads((await lab.get("/v1/models"))[1])["data"]
        assert [one["id"] for one in models] == [MODEL, f"{MODEL}-lora-0", f"{MODEL}-lora-1"]
        status, _, _ = await lab.post("/v1/chat/completions", {**CHAT, "model": f"{MODEL}-lora-1"})
        assert status == 200
        status, _, _ = await lab.post("/v1/chat/completions", {**CHAT, "model": f"{MODEL}-lora-2"})
        assert status == 404

    against(LabParams(gpu="H100").changed({"lora.adapters": 2}), scenario)


# -- what a request says of itself -----------------------------------------------------------------------------------


def asked(dialect: Dialect = "chat", **members: Any) -> Any:
    body = {"model": MODEL, "messages": CHAT["messages"], "max_tokens": 4, **members}
    return Api(LabParams(), 1).generation(json.dumps(body).encode(), dialect)


def test_a_request_says_session_schema_and_priority_in_any_of_the_usual_ways() -> None:
    assert (asked().session, asked().schema, asked().priority) == (None, None, 0)
    assert asked(user="ann").session == asked(prompt_cache_key="ann").session == asked(session_id="ann").session
    assert asked(user="ann").session not in (None, asked(user="bob").session)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    strict = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert asked(response_format=strict).schema is not None
    assert asked(response_format=strict).schema == asked(response_format=strict).schema
    assert asked(response_format={"type": "text"}).schema is None
    assert asked(response_format={"type": "json_object"}).schema not in (None, asked(response_format=strict).schema)
    assert asked(guided_json=schema).schema is not None
    responses = {"input": "one", "max_output_tokens": 3, "text": {"format": {"type": "json_schema", "schema": schema}}}
    assert asked("responses", **responses).schema == asked(guided_json=schema).schema
    assert asked(priority=-3).priority == -3


TEXTS = st.lists(st.sampled_from(["one", "two", "three four", "five six seven", ""]), min_size=1, max_size=5)


@given(TEXTS, st.integers(1, 5))
def test_requests_share_blocks_exactly_as_far_as_their_tokens_agree(texts: list[str], size: int) -> None:
    talk = Talk(texts)
    words = words_of_talk(talk)
    assert len(words) == tokens_of_talk(talk) == len(strings_of_talk(talk))
    keys = block_keys(words, size)
    assert len(keys) == len(words) // size
    for place in range(len(words)):
        changed = [*words[:place], "other", *words[place + 1 :]]
        same = [a == b for a, b in zip(keys, block_keys(changed, size), strict=True)]
        assert same == [index < place // size for index in range(len(keys))]


@given(TEXTS, st.text("abc ", max_size=20))
def test_a_turn_begins_with_the_turn_before_it_and_its_answer(texts: list[str], said: str) -> None:
    before = words_of_talk(Talk(texts)) + said.split()
    assert words_of_talk(Talk([*texts, said, "and now"]))[: len(before)] == before


def test_what_a_conversation_repeats_is_found_in_the_prefix_cache() -> None:
    async def scenario(lab: Lab) -> None:
        talk = [{"role": "user", "content": "word " * 200}]
        for _ in range(3):
            _, answer, _ = await lab.post("/v1/chat/completions", {**CHAT, "messages": talk, "max_tokens": 100})
            said = answer["choices"][0]["message"]["content"]
            talk = [*talk, {"role": "assistant", "content": said}, {"role": "user", "content": "and again"}]
        hits = await lab.metric("vllm:prefix_cache_hits_total")
        assert hits >= 300 + 400 - 2 * 2 * 16  # all of the turns before, but for a block or two each

    against(FAST, scenario)


# -- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["chat", "completions", "responses", "messages"])
def test_the_short_way_of_writing_a_token_gives_the_same_bytes(dialect: Dialect) -> None:
    members: dict[str, Any] = {"prompt": "one", "input": "one", "max_output_tokens": 4, "stream": True}
    generation = asked(dialect, **members)
    for index in range(1, 140):
        long, short = (answer_to(generation, MODEL, 7, 0) for _ in range(2))
        event = long.token(index)
        assert short.framed(index) == b"%x\r\n" % len(event) + event + b"\r\n"


def test_tokens_that_are_accepted_together_come_in_one_event_and_none_is_lost() -> None:
    async def scenario(lab: Lab) -> None:
        body = {**CHAT, "max_tokens": 60, "stream_options": {"include_usage": True}}
        events = await lab.events("/v1/chat/completions", body)
        deltas = [e["choices"][0]["delta"]["content"] for e in events[:-1]]
        assert len("".join(deltas).split()) == events[-1]["usage"]["completion_tokens"] == 60
        assert len(deltas) < 50

    against(LabParams(gpu="H100").changed({"speculation.acceptance_ratio": 0.8}), scenario)


# -- real time -------------------------------------------------------------------------------------------------------


def test_everything_works_on_uvloop_too() -> None:
    async def main() -> None:
        async with running(FAST) as lab:
            events = await lab.events("/v1/chat/completions", CHAT)
            assert len("".join(e["choices"][0]["delta"]["content"] for e in events).split()) == 4
            assert (await lab.get("/health"))[0] == 200
            assert (await lab.post("/v1/chat/completions", CHAT))[0] == 200

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_busy_api_process_keeps_a_health_check_waiting() -> None:
    async def scenario(lab: Lab) -> None:
        began_s = time.monotonic()
        post = asyncio.create_task(lab.post("/v1/chat/completions", {**CHAT, "max_tokens": 1}))
        await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as other, other.get(lab.base + "/health") as answer:
            assert answer.status == 200
        assert time.monotonic() - began_s >= 0.3
        assert (await post)[0] == 200

    against(LabParams(gpu="H100", api_request_s=0.3), scenario)


def test_a_fault_sets_in_while_the_service_runs() -> None:
    before = FAST
    after = before.changed({"in_flight_limit": 1, "rate_limit_rps": 0.001, "rate_limit_burst_requests": 1})
    later = Scenario(faults=(), severity="moderate", onset_s=0.4, before=before, after=after, seed=0)

    async def scenario(lab: Lab) -> None:
        seen = set()
        for _ in range(8):
            seen.add((await lab.post("/v1/chat/completions", CHAT))[0])
        assert seen == {200}
        while (await lab.post("/v1/chat/completions", CHAT))[0] == 200:
            await asyncio.sleep(0.05)
        assert (await lab.post("/v1/chat/completions", CHAT))[0] == 429

    against(later, scenario)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_service_that_dies_resets_its_connections(factory: Callable[[], Any]) -> None:
    params = FAST.changed({"accelerator.fault_every_s": 0.2})
    body = json.dumps({**CHAT, "max_tokens": 8000, "stream": True}).encode()

    async def main() -> None:
        async with running(params) as lab:
            for _ in range(40):  # some may come while it is down
                reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                try:
                    while await reader.read(1 << 16):
                        pass
                except ConnectionResetError:
                    return
                finally:
                    writer.close()
            raise AssertionError("no connection was reset")

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 20))


# -- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_shows_the_steps_that_were_made_between_start_and_stop(tmp_path: Path) -> None:
    directory = tmp_path / "traces"

    async def scenario(lab: Lab) -> None:
        async def post(path: str) -> tuple[int, str]:
            async with lab.session.post(lab.base + path) as answer:
                return answer.status, await answer.text()

        assert (await lab.post("/v1/chat/completions", CHAT))[0] == 200
        assert (await post("/stop_profile"))[0] == 400
        assert await post("/start_profile") == (200, "")
        assert (await post("/start_profile"))[0] == 400
        assert (await lab.post("/v1/chat/completions", {**CHAT, "max_tokens": 6}))[0] == 200
        assert await post("/stop_profile") == (200, "")
        (file,) = directory.iterdir()
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        steps = [e["name"] for e in events if e.get("cat") == "user_annotation"]
        assert steps == ["execute_context_1(15)_generation_0(0)"] + ["execute_context_0(0)_generation_1(1)"] * 5

    against(FAST, scenario, Serving(port=0, profile_dir=directory))


@pytest.mark.parametrize(("dialect", "directory"), [("tgi", "x"), ("llama.cpp", "x"), ("vllm", None)])
def test_there_are_no_profiling_routes_where_the_engine_has_none(
    dialect: Any, directory: str | None, tmp_path: Path
) -> None:
    async def scenario(lab: Lab) -> None:
        async with lab.session.post(lab.base + "/start_profile") as answer:
            assert answer.status == 404

    profile_dir = None if directory is None else tmp_path / directory
    against(LabParams(gpu="H100", dialect=dialect), scenario, Serving(port=0, profile_dir=profile_dir))


# -- small parts -----------------------------------------------------------------------------------------------------


def test_settings_from_text_have_the_types_of_their_parameters() -> None:
    words = ["max_num_seqs=64", "host.cores=2", "kv_blocks=none", "cuda_graphs=false", "gpu=H100"]
    words += ["host.neighbour_cores=1.5", "front.replica_speed_ratios=[1, 0.5]", "speculation.acceptance_ratio=0.5"]
    params = LabParams().changed(parse_settings(words))
    assert (params.max_num_seqs, params.host.cores, params.kv_blocks) == (64, 2, None)
    assert (params.cuda_graphs, params.gpu, params.host.neighbour_cores) == (False, "H100", 1.5)
    assert params.front.replica_speed_ratios == (1.0, 0.5)
    assert params.speculation is not None and params.speculation.acceptance_ratio == 0.5


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("max_num_seqs", "KEY=VALUE"),
        ("max_num_seqs=many", "max_num_seqs cannot be 'many'"),
        ("dialect=ollama", "dialect cannot be 'ollama'"),
        ("hots.cores=2", "no group of parameters 'hots'"),
        ("host.kernels=2", "no parameter host.kernels"),
        ("speed=2", "no parameter speed"),
        ("speculation.tokens=4", "choose one of speculation.num_speculative_tokens, speculation."),
    ],
)
def test_a_setting_that_means_nothing_is_told(word: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings([word])
    assert says in str(caught.value)


@given(st.lists(st.integers(0, 20_000_000_000), min_size=1, max_size=50))
def test_lateness_is_told_no_smaller_and_at_most_a_quarter_larger_than_it_was(late_ns: list[int]) -> None:
    lateness = Lateness()
    for one in late_ns:
        lateness.note(one)
    told = lateness.summary()
    assert told.events == len(late_ns)
    assert told.max_s == max(late_ns) / 1e9
    ordered = sorted(late_ns)
    true_ns = ordered[-(-len(ordered) * 99 // 100) - 1]
    assert told.p99_s is not None
    assert true_ns <= round(told.p99_s * 1e9) <= max(BOUNDS_NS[0], true_ns * 1.2501)
    (family,) = text_string_to_metric_families(lateness.page())
    values = {s.labels.get("le", s.name): s.value for s in family.samples}
    assert values["+Inf"] == values["lab_lateness_seconds_count"] == len(late_ns)


def test_nothing_written_is_no_lateness() -> None:
    assert Lateness().summary().p99_s is None


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_timer_calls_once_for_its_latest_instant_and_never_early(factory: Callable[[], Any]) -> None:
    async def main() -> None:
        called_ns: list[int] = []
        timer = Timer(asyncio.get_running_loop(), lambda: called_ns.append(time.monotonic_ns()))
        now_ns = time.monotonic_ns()
        timer.arm(now_ns + 1_000_000)
        timer.arm(now_ns + 20_000_000)
        await asyncio.sleep(0.06)
        assert len(called_ns) == 1
        assert called_ns[0] >= now_ns + 20_000_000
        timer.arm(time.monotonic_ns() + 1_000_000)
        timer.disarm()
        await asyncio.sleep(0.02)
        assert len(called_ns) == 1
        timer.arm(1)  # long past
        await asyncio.sleep(0.02)
        assert len(called_ns) == 2
        timer.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
