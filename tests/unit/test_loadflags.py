"""Flags of a plain load become one stage or complete a plan file; what contradicts itself is told."""

from pathlib import Path
from typing import Any

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.loadflags import load_plan
from pinchpoint.plan import Backend, ClosedStage, OpenStage, Plan

URL = "http://127.0.0.1:8000"
NOTHING: dict[str, Any] = {
    "requested": {},
    "transport": {},
    "headers": (),
    "backends": (),
    "rate": None,
    "concurrency": None,
    "requests": None,
    "duration": None,
    "arrivals": None,
    "think": None,
}


def plan_of(flags: dict[str, Any] | None = None, plan_file: Path | None = None, **given: Any) -> Plan:
    return load_plan(plan_file, {"url": URL, "seed": 1, **(flags or {})}, **{**NOTHING, **given})


def test_a_rate_is_an_open_loop_for_half_a_minute_of_poisson_arrivals() -> None:
    assert plan_of(rate="600rpm").stages == (OpenStage(10.0, duration_s=30.0, arrivals="poisson", name="load"),)


def test_a_rate_with_a_number_of_requests_has_no_duration() -> None:
    (stage,) = plan_of(rate="5", requests=12, arrivals="gamma:2").stages
    assert stage == OpenStage(5.0, requests=12, arrivals="gamma:2", name="load")


def test_a_concurrency_is_a_closed_loop_that_ends_by_time_or_by_requests_or_whichever_is_first() -> None:
    (by_time,) = plan_of(concurrency=4, duration="2m", think="exponential:2s").stages
    assert by_time == ClosedStage(4, duration_s=120.0, think="exponential:2s", name="load")
    (by_requests,) = plan_of(concurrency=4, requests=9).stages
    assert by_requests == ClosedStage(4, requests=9, name="load")
    (by_both,) = plan_of(concurrency=4, requests=9, duration="1s").stages
    assert by_both == ClosedStage(4, duration_s=1.0, requests=9, name="load")


def test_lengths_that_are_given_are_exact() -> None:
    workload = plan_of(
        rate="1", requested={"workload": {"input_tokens": 7, "output_tokens": 3, "exact": True}}
    ).workload
    assert (workload.input_tokens, workload.output_tokens, workload.exact) == (7, 3, True)
    assert not plan_of(rate="1").workload.exact


def test_durations_are_read_and_what_is_not_given_stays_as_it_is() -> None:
    plan = plan_of(
        {"timeout": "2m", "connect_timeout": "500ms", "first_token_timeout": "3s", "token_timeout": None}, rate="1"
    )
    limits = (plan.timeout_s, plan.connect_timeout_s, plan.first_token_timeout_s, plan.token_timeout_s)
    assert limits == (120.0, 0.5, 3.0, None)


def test_headers_and_ways_are_put_together() -> None:
    plan = plan_of(
        rate="1",
        headers=("X-A: b: c", "X-Key:env:KEY"),
        transport={"proxy": "http://p:3128", "session_header": "X-S", "new_connections": True},
    )
    assert plan.transport.headers == {"X-A": "b: c", "X-Key": "env:KEY"}
    assert (plan.transport.proxy, plan.transport.session_header, plan.transport.new_connections) == (
        "http://p:3128",
        "X-S",
        True,
    )


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("http://h:1", Backend("http://h:1")),
        ("http://h:1=2.5", Backend("http://h:1", 2.5)),
        ("http://h:1/a=b/v1", Backend("http://h:1/a=b/v1")),
        ("http://h:1/a=b/v1=3", Backend("http://h:1/a=b/v1", 3.0)),
    ],
)
def test_a_backend_is_a_url_with_or_without_a_weight(text: str, backend: Backend) -> None:
    assert plan_of(rate="1", backends=(text,)).backends == (backend,)


def test_a_plan_file_is_completed_by_flags_and_its_own_keys_come_first(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text('seed = 7\n[[stages]]\nkind = "closed"\nconcurrency = 2\nduration = "3s"\n')
    plan = plan_of({"seed": 3, "workers": 2}, file)
    assert (plan.url, plan.seed, plan.workers) == (URL, 7, 2)
    assert plan.stages == (ClosedStage(2, duration_s=3.0),)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "--rate"),
        ({"rate": "1", "concurrency": 2}, "one of the two"),
        ({"rate": "1", "requests": 2, "duration": "3s"}, "one of the two"),
        ({"rate": "1", "think": "2s"}, "--concurrency"),
        ({"concurrency": 1, "arrivals": "poisson"}, "--rate"),
        ({"rate": "fast"}, "fast"),
        ({"rate": "0"}, "above 0"),
        ({"rate": "1", "duration": "soon"}, "soon"),
        ({"rate": "1", "requests": 0}, "requests"),
        ({"concurrency": 0}, "concurrency"),
        ({"rate": "1", "headers": ("no colon",)}, "Name: value"),
        ({"rate": "1", "backends": ("http://h=much",)}, "weight"),
        ({"rate": "1", "backends": ("http://h=-1",)}, "weight"),
        ({"rate": "1", "backends": ("http://h=inf",)}, "weight"),
        ({"rate": "1", "backends": ("http://h=nan",)}, "weight"),
        ({"rate": "1", "backends": ("http://[::1",)}, "cannot be read"),
        ({"rate": "1", "transport": {"warm_connections": -1}}, "warm_connections"),
    ],
)
def test_flags_that_make_no_sense_are_wrong_usage(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_of(**given)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"url": None}, "URL"),
        ({"url": "http://[::1"}, "cannot be read"),
        ({"url": "http://user:secret@h"}, "api-key"),
        ({"workers": 0}, "workers"),
        ({"workers": 100_000}, "workers"),
        ({"timeout": "0s"}, "timeout"),
        ({"token_timeout": "later"}, "later"),
        ({"retries": -1}, "retries"),
    ],
)
def test_values_that_make_no_sense_are_wrong_usage(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as told:
        plan_of(flags, rate="1")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("given", [{"rate": "1"}, {"concurrency": 1}, {"requests": 3}, {"duration": "3s"}])
def test_a_plan_file_and_flags_of_a_stage_exclude_each_other(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the plan says what to send"):
        plan_of(None, tmp_path / "plan.toml", **given)


def test_a_plan_file_needs_no_url_of_its_own_only_when_one_is_given(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(f'[target]\nurl = "{URL}/x"\n[[stages]]\nkind = "open"\nrate = 2\nrequests = 3\n')
    assert load_plan(file, {"seed": 1}, **NOTHING).url == f"{URL}/x"
