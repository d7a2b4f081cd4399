"""From a plan to load processes: secrets stay where they belong, headers that break HTTP are refused."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pinchpoint import launch
from pinchpoint.calibrate import HostLimits
from pinchpoint.errors import UnsupportedMeasurementError, UsageError
from pinchpoint.launch import (
    DEFAULT_KEY_ENV,
    check_host,
    fitted,
    open_access,
    peak_rps,
    read_api_key,
    users_of,
    worker_configs,
    worker_count,
)
from pinchpoint.load.messages import Timeouts, WorkerConfig
from pinchpoint.load.trial import NumberContent
from pinchpoint.model import TargetFacts
from pinchpoint.plan import Plan, build_plan
from pinchpoint.targets.target import TargetSpec
from pinchpoint.workload.classes import resolve

URL = "http://127.0.0.1:8000"
SECRET = "sk-0123456789abcdef"
FACTS = TargetFacts(URL, api="/v1/chat/completions", model="m")


def plan_of(transport: dict[str, Any] | None = None, **values: Any) -> Plan:
    stage = {"kind": "open", "rate_rps": 5.0, "duration_s": 1.0}
    return build_plan({"url": URL, "seed": 1, "stages": [stage], "transport": transport or {}, **values})


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEFAULT_KEY_ENV, raising=False)


# -- headers -------------------------------------------------------------------------------------------------------


def test_a_key_is_a_bearer_token_and_a_secret() -> None:
    access = open_access(plan_of(), SECRET)
    assert access.headers == (("Authorization", f"Bearer {SECRET}"),)
    assert access.secrets == (SECRET,)


def test_a_plain_header_is_sent_as_written() -> None:
    access = open_access(plan_of({"headers": {"X-Team": "blue: 1"}}), None)
    assert (access.headers, access.secrets) == ((("X-Team", "blue: 1"),), ())


def test_a_secret_header_comes_from_the_environment_and_is_no_part_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", f" {SECRET}\n")
    plan = plan_of({"headers": {"X-API-Key": "env:GATEWAY"}})
    access = open_access(plan, None)
    assert access.headers == (("X-API-Key", SECRET),)
    assert access.secrets == (SECRET,)
    assert SECRET.encode() not in msgspec.json.encode(plan)


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "x-api-key", "X-Auth-Token", "my-secret", "X-ApiKey"])
def test_a_header_that_usually_holds_a_secret_is_not_taken_in_the_open(name: str) -> None:
    with pytest.raises(UsageError, match="env:VARIABLE") as told:
        open_access(plan_of({"headers": {name: SECRET}}), None)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "value",
    [
        "sk-proj-abc123",
        "hf_abcdefGHIJ",
        "ghp_0123456789",
        "xoxb-12345-abcde",
        "AKIAIOSFODNN7EXAMPLE",
        "Bearer x",
        "bearer abc",
        "Basic dXNlcjpwYXNz",
        "0123456789abcdef0123456789abcdef",
        "key=0123456789abcdef0123456789ABCDEFGH; v=2",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_a_value_that_looks_like_a_key_is_not_taken_in_the_open_under_any_name(value: str) -> None:
    with pytest.raises(UsageError, match=r"X-Team.*env:VARIABLE") as told:
        open_access(plan_of({"headers": {"X-Team": value}}), None)
    assert value not in str(told.value)


@pytest.mark.parametrize(
    "value",
    [
        "red",
        "sk-SK,sk;q=0.9",
        "550e8400-e29b-41d4-a716-446655440000",
        "basically harmless",
        "the-quick-brown-fox-jumps-over-the-lazy-dog-1",
        "internationalizationinternationalization",
        "https://team.example.com/reports/2026/load",
    ],
)
def test_a_long_or_odd_value_that_is_no_key_is_sent_as_written(value: str) -> None:
    assert open_access(plan_of({"headers": {"X-Team": value}}), None).headers == (("X-Team", value),)


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "CONNECTION", "Accept-Encoding"])
def test_headers_of_the_engine_itself_cannot_be_set(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        open_access(plan_of({"headers": {name: "x"}}), None)
    with pytest.raises(UsageError, match=name):
        open_access(plan_of({"session_header": name}), None)


@pytest.mark.parametrize("name", ["", "two words", "a:b", "a\r\nb", "näme"])
def test_what_is_no_header_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name of an HTTP header"):
        open_access(plan_of({"headers": {name: "x"}}), None)
    with pytest.raises(UsageError, match="name of an HTTP header"):
        open_access(plan_of({"session_header": name}), None)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "tab\tinside", "ünïcode", "nul\x00"])
def test_what_cannot_stand_in_a_header_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="X-A"):
        open_access(plan_of({"headers": {"X-A": value}}), None)
    if "\x00" not in value:
        monkeypatch.setenv("VALUE", value)
        with pytest.raises(UsageError, match="VALUE"):
            open_access(plan_of({"headers": {"X-A": "env:VALUE"}}), None)


def test_a_variable_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="NOT_SET_ANYWHERE"):
        open_access(plan_of({"headers": {"X-A": "env:NOT_SET_ANYWHERE"}}), None)


def test_a_header_that_is_given_replaces_the_key_and_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", f"Basic {SECRET}")
    access = open_access(plan_of({"headers": {"authorization": "env:GATEWAY"}}), "sk-another-0123456789")
    assert access.headers == (("authorization", f"Basic {SECRET}"),)


# -- keys ----------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_place_that_the_plan_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_api_key(plan_of()) is None
    monkeypatch.setenv(DEFAULT_KEY_ENV, "default-key")
    monkeypatch.setenv("OTHER", "other-key")
    (tmp_path / "key").write_text("file-key\n")
    assert read_api_key(plan_of()) == "default-key"
    assert read_api_key(plan_of(api_key_env="OTHER")) == "other-key"
    assert read_api_key(plan_of(api_key_file=str(tmp_path / "key"))) == "file-key"


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff\xfe", "schlüssel".encode()])
def test_a_file_that_holds_no_key_is_told_without_its_content(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match="key"):
        read_api_key(plan_of(api_key_file=str(tmp_path / "key")))
    with pytest.raises(UsageError, match="none"):
        read_api_key(plan_of(api_key_file=str(tmp_path / "none")))


def test_a_proxy_with_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="env:") as told:
        open_access(plan_of({"proxy": "http://user:hunter2hunter2@127.0.0.1:3128"}), None)
    assert "hunter2" not in str(told.value)
    monkeypatch.setenv("PROXY", "http://user:hunter2hunter2@127.0.0.1:3128")
    access = open_access(plan_of({"proxy": "env:PROXY"}), None)
    assert access.endpoints[0].sockaddr == ("127.0.0.1", 3128)
    assert access.endpoints[0].extra_head.startswith("Proxy-Authorization: Basic ")
    assert access.secrets == ("http://user:hunter2hunter2@127.0.0.1:3128",)


@pytest.mark.parametrize("proxy", ["https://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_other_proxies_are_refused_before_anything_is_sent(proxy: str) -> None:
    with pytest.raises(UsageError):
        open_access(plan_of({"proxy": proxy}), None)


@pytest.mark.parametrize("url", [URL, "https://127.0.0.1:8443"])
def test_an_authority_that_cannot_be_read_is_told_also_when_no_connection_is_encrypted(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    for name, says in (("none.pem", "cannot read the CA file .*none.pem"), ("empty.pem", "holds no certificate")):
        with pytest.raises(UsageError, match=says):
            open_access(plan_of(url=url, ca_file=str(tmp_path / name)), None)


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "shared", "asked", "workers"),
    [(1, False, None, 1), (4, False, None, 4), (4, True, None, 2), (1, True, None, 1), (4, True, 7, 7)],
)
def test_there_is_one_process_for_each_core_and_half_of_them_beside_the_service(
    cores: int, shared: bool, asked: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "usable_cpus", lambda: list(range(cores)))
    assert worker_count(plan_of(workers=asked), shared_host=shared) == workers


def configs_of(plan: Plan, workers: int, *, shared: bool = False, warm: int = 0) -> list[WorkerConfig]:
    return worker_configs(
        plan,
        open_access(plan, SECRET),
        Path("run"),
        (TargetSpec("chat", "m"),),
        NumberContent(),
        workers=workers,
        shared_host=shared,
        warm_connections=warm,
    )


@pytest.mark.parametrize(
    ("workers", "shared", "cpus"),
    [
        (3, False, [2, 5, 7]),
        (2, False, [2, 5]),
        (1, False, [None]),
        (3, True, [None] * 3),
        (4, False, [None] * 4),
    ],
)
def test_processes_keep_to_cores_of_their_own_where_nobody_else_needs_them(
    workers: int, shared: bool, cpus: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "usable_cpus", lambda: [2, 5, 7])
    assert [config.cpu for config in configs_of(plan_of(), workers, shared=shared)] == cpus


def test_habits_are_those_of_the_plan_and_warm_connections_are_shared_out() -> None:
    plan = plan_of(
        {"new_connections": True, "session_header": "X-Session"},
        timeout_s=9.0,
        connect_timeout_s=2.0,
        first_token_timeout_s=3.0,
        token_timeout_s=4.0,
        retries=2,
    )
    configs = configs_of(plan, 3, warm=7)
    assert [config.index for config in configs] == [0, 1, 2]
    habits = configs[0].habits
    assert habits.timeouts == Timeouts(2.0, 3.0, 4.0, 9.0)
    assert (habits.retries, habits.new_connections, habits.session_header) == (2, True, "X-Session")
    assert habits.warm_connections == 3
    assert habits.headers == (("Authorization", f"Bearer {SECRET}"),)
    assert configs[0].secrets == (SECRET,)


def test_backends_are_resolved_with_their_weights_and_this_host_is_known() -> None:
    plan = plan_of(backends=[{"url": "http://127.0.0.2:9", "weight": 2.0}])
    access = open_access(plan, None)
    assert [(one.sockaddr, one.weight) for one in access.endpoints] == [
        (("127.0.0.1", 8000), 1.0),
        (("127.0.0.2", 9), 2.0),
    ]
    assert access.local
    assert open_access(plan_of({"unix_socket": "/tmp/none"}), None).local
    assert not open_access(plan_of(url="http://192.0.2.1:9"), None).local


@pytest.mark.parametrize(
    ("stage", "rps"),
    [
        ({"kind": "open", "rate_rps": 5.0, "duration_s": 1.0}, 5.0),
        ({"kind": "ramp", "from_rps": 1.0, "to_rps": 9.0, "duration_s": 1.0}, 9.0),
        ({"kind": "ramp", "from_rps": 9.0, "to_rps": 1.0, "duration_s": 1.0}, 9.0),
        ({"kind": "steps", "rates_rps": [2.0, 8.0, 4.0], "each_s": 1.0}, 8.0),
        ({"kind": "closed", "concurrency": 3, "duration_s": 1.0}, 0.0),
    ],
)
def test_the_peak_of_a_stage_is_its_highest_rate(stage: dict[str, Any], rps: float) -> None:
    (spec,) = plan_of(stages=[stage]).stages
    assert peak_rps(spec) == rps


def test_users_of_a_stage_are_the_most_it_ever_has() -> None:
    up = {"kind": "closed", "concurrency": 3, "to_concurrency": 8, "duration_s": 1.0}
    down = {"kind": "closed", "concurrency": 9, "to_concurrency": 2, "duration_s": 1.0}
    assert [users_of(spec) for spec in plan_of(stages=[up, down]).stages] == [8, 9]
    assert [users_of(spec) for spec in plan_of().stages] == [0]


@pytest.mark.parametrize(
    ("transport", "refused"),
    [
        ({}, False),
        ({"warm_connections": 100}, False),
        ({"warm_connections": 101}, True),
        ({"warm_connections": 101, "new_connections": True}, False),  # none is opened ahead then
    ],
)
@pytest.mark.parametrize("stage", ["open", "closed"])
def test_connections_that_are_opened_ahead_count_against_what_the_host_allows(
    transport: dict[str, Any], refused: bool, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = HostLimits("calibrated", "host", "", 2.0, 50, None, None, 1e-9, 1e-9, 0.0, (0.0, 0.0))
    monkeypatch.setattr(launch, "quick_limits", lambda: roomy)
    closed = {"kind": "closed", "concurrency": 3, "duration_s": 1.0}
    plan = plan_of(transport, **({"stages": [closed]} if stage == "closed" else {}))
    traffic = resolve(plan, None)
    if refused:
        with pytest.raises(UnsupportedMeasurementError, match=r"101 connections .* 100"):
            check_host(plan, traffic, 2, 1, force=False)
    _, problems = check_host(plan, traffic, 2, 1, force=True)
    assert len(problems) == refused


def test_a_class_without_a_length_of_answers_is_refused_where_the_target_generates() -> None:
    plan = build_plan({"url": URL, "seed": 1, "workload": {"classes": [{"name": "mine", "input_tokens": 100}]}})
    traffic = resolve(plan, None)
    with pytest.raises(UsageError, match="class mine: chat generates"):
        fitted(traffic, (TargetSpec("chat", "m"),))
    (one,) = fitted(traffic, (TargetSpec("embeddings", "m"),)).classes
    assert not one.generates
