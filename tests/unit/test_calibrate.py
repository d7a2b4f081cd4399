"""A plan is held against what this host can carry; what it can carry is measured, kept and estimated."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pinchpoint import calibrate as module
from pinchpoint.calibrate import (
    Demand,
    HostLimits,
    cache_path,
    calibrate,
    check_plan,
    quick_limits,
    render_json,
    render_text,
)
from pinchpoint.errors import PinchpointError, UsageError

MEASURED = HostLimits(
    source="calibrated",
    key="host",
    measured_wall="2026-01-01T00:00:00Z",
    cores=2.0,
    connections_max=1000,
    ports=28_000,
    ports_reused=False,
    cpu_s_per_token=10e-6,
    cpu_s_per_request=200e-6,
    cpu_s_per_prompt_token=1e-6,
    timer_late_s=(60e-6, 0.002),
)
MODEST = Demand(rate_rps=10, concurrency=100, tokens_per_s=1000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pinchpoint" / "calibration.json"


def changed(struct: HostLimits | Demand, **changes: object) -> HostLimits | Demand:
    if isinstance(struct, HostLimits):
        return msgspec.structs.replace(struct, **changes)
    return Demand(**{**vars(struct), **changes})


# -- a plan against the limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "demand", "words"),
    [
        ({}, {}, None),
        ({}, {"tokens_per_s": 79_000, "rate_rps": 0}, None),  # 0.79 of 0.8 cores
        ({}, {"tokens_per_s": 81_000, "rate_rps": 0}, "81,000 tokens/s"),
        ({}, {"tokens_per_s": 81_000, "rate_rps": 0, "workers": 2}, None),
        ({"cores": 1.0}, {"tokens_per_s": 81_000, "workers": 2}, "2 process(es) on 1 usable core(s)"),
        ({"source": "estimated"}, {"tokens_per_s": 95_000, "rate_rps": 0}, None),  # an estimate is not that exact
        ({"source": "estimated"}, {"tokens_per_s": 105_000, "rate_rps": 0}, "estimated"),
        ({}, {"rate_rps": 3900, "tokens_per_s": 0}, None),
        ({}, {"rate_rps": 4100, "tokens_per_s": 0}, "4100 req/s"),
        ({}, {"rate_rps": 100, "prompt_tokens": 8000}, "need 0.83 cores"),
        ({}, {"concurrency": 1000}, None),
        ({}, {"concurrency": 1001}, "ulimit -Hn"),
        ({}, {"concurrency": 1001, "workers": 2}, None),
        ({"connections_max": 10**6}, {"concurrency": 28_001}, "ip_local_port_range"),
        ({"connections_max": 10**6}, {"concurrency": 28_001, "addresses": 2}, None),
        ({"connections_max": 10**6, "ports": None}, {"concurrency": 28_001}, None),
        ({}, {"new_connections_rps": 460}, None),
        ({}, {"new_connections_rps": 470}, "tcp_tw_reuse"),
        ({"ports_reused": True}, {"new_connections_rps": 470}, None),
        ({"timer_late_s": (0.006, 0.1)}, {}, "6 ms late"),
        ({"timer_late_s": (0.004, 0.1)}, {}, None),
        ({"timer_late_s": (0.006, 0.1)}, {"rate_rps": 0}, None),  # a closed loop waits for answers, not for timers
    ],
)
def test_each_limit_refuses_what_is_beyond_it_and_nothing_below(limits: dict, demand: dict, words: str | None) -> None:
    problems = check_plan(changed(MEASURED, **limits), changed(MODEST, **demand))  # pyright: ignore
    if words is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert words in problems[0]
        assert ";" in problems[0]  # what was found; what to do


def test_all_that_is_beyond_the_limits_is_told_at_once() -> None:
    demand = Demand(rate_rps=1e4, concurrency=10**6, tokens_per_s=1e6, new_connections_rps=1e4)
    assert len(check_plan(MEASURED, demand)) == 4


# -- measuring -------------------------------------------------------------------------------------------------------


def test_an_estimate_knows_all_that_a_plan_is_held_against() -> None:
    limits = quick_limits(cached=False)
    assert limits.source == "estimated"
    for value in (limits.cpu_s_per_token, limits.cpu_s_per_request, limits.cpu_s_per_prompt_token, limits.cores):
        assert value > 0
    assert limits.connections_max > 0
    assert limits.peak_tokens_per_s is None


BUDGETS_S = (3.0, 10.0, 30.0, 90.0)
"""The first is far too small for true numbers, and enough for each of them to be there unless the host stands still."""


@pytest.fixture
def patiently(monkeypatch: pytest.MonkeyPatch) -> Callable[..., HostLimits]:
    """`calibrate` with the first budget in which it does not call this host overloaded."""
    monkeypatch.setattr(module, "MIN_BUDGET_S", 0.1)

    def measure(on_progress: Callable[[str], None]) -> HostLimits:
        for budget_s in BUDGETS_S[:-1]:
            try:
                return calibrate(budget_s, on_progress=on_progress)
            except PinchpointError as error:
                assert "overloaded" in str(error)
        return calibrate(BUDGETS_S[-1], on_progress=on_progress)

    return measure


def test_a_calibration_measures_everything_and_is_kept_for_this_host(
    cache: Path, patiently: Callable[..., HostLimits]
) -> None:
    told: list[str] = []
    limits = patiently(told.append)
    missing = [name for name, value in msgspec.to_builtins(limits).items() if value is None]
    assert set(missing) <= {"ports", "ports_reused"}  # which only Linux tells
    assert limits.cpu_s_per_token > 0 and limits.cpu_s_per_request > 0
    assert limits.moderate_arrival_error_s is not None and math.isfinite(limits.moderate_arrival_error_s[0])
    assert len(set(told)) == 7
    assert cache == cache_path() and cache.exists()
    assert quick_limits() == limits


def test_an_interrupted_calibration_keeps_nothing(cache: Path, patiently: Callable[..., HostLimits]) -> None:
    def interrupt(step: str) -> None:
        if "streamed" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patiently(interrupt)
    assert not cache.exists()


def test_a_budget_that_shows_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--budget of 4s or more"):
        calibrate(1.0)


def write(cache: Path, data: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(data)


def test_a_kept_calibration_of_another_host_or_version_is_not_used(cache: Path) -> None:
    write(cache, msgspec.json.encode(MEASURED))
    assert quick_limits().source == "estimated"


def test_of_a_kept_calibration_what_the_host_allows_is_read_anew(cache: Path) -> None:
    here = quick_limits(cached=False)
    write(cache, msgspec.json.encode(msgspec.structs.replace(MEASURED, key=here.key, connections_max=3)))
    limits = quick_limits()
    assert limits.source == "calibrated"
    assert limits.cpu_s_per_token == MEASURED.cpu_s_per_token
    assert limits.connections_max == here.connections_max


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"source": 3}'])
def test_a_damaged_cache_is_as_none(cache: Path, data: bytes) -> None:
    write(cache, data)
    assert quick_limits().source == "estimated"


def test_a_cache_that_cannot_be_written_costs_nothing(cache: Path) -> None:
    cache.parent.parent.write_text("a file where the directory should be")
    module.keep(MEASURED)
    assert quick_limits().source == "estimated"


# -- telling -----------------------------------------------------------------------------------------------------------


def test_the_table_says_what_is_known_and_how() -> None:
    estimated = render_text(msgspec.structs.replace(MEASURED, source="estimated"))
    assert "estimated; measure with: pinchpoint calibrate" in estimated
    assert "80,000/s" in estimated and "10 µs CPU each" in estimated
    assert "error of an arrival" not in estimated
    measured = render_text(
        msgspec.structs.replace(
            MEASURED,
            moderate_tokens_per_s=2000.0,
            moderate_arrival_error_s=(4e-6, 40e-6),
            moderate_coalesced_ratio=0.01,
            send_lag_1000_rps_s=(60e-6, 0.001),
        )
    )
    assert "4 µs (p99 40 µs)" in measured and "at 2,000 tokens/s (moderate); 1 % share a read" in measured
    assert "at 1,000 req/s" in measured and "at 100 req/s" not in measured


def test_the_document_holds_every_number_and_the_derived_ones() -> None:
    document = json.loads(render_json(MEASURED))
    assert document["tokens_per_s"] == pytest.approx(80_000)
    assert document["requests_per_s"] == pytest.approx(4_000)
    assert set(msgspec.to_builtins(MEASURED)) <= set(document)


def test_the_document_names_its_schema_first_and_what_is_printed_ends_its_line() -> None:
    assert next(iter(json.loads(render_json(MEASURED)).items())) == ("schema", "pinchpoint.calibrate/1")
    assert render_json(MEASURED).endswith("}\n") and render_text(MEASURED).endswith("\n")
