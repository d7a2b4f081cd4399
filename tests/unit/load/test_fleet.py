"""Orders to the load processes and what comes back: with a worker that the test plays itself, and with real ones."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pinchpoint.clock import monotonic_ns
from pinchpoint.load.counters import COUNTERS_FILE, LiveCounters, quantile_of
from pinchpoint.load.fleet import Fleet, WorkerDiedError
from pinchpoint.load.messages import Command, Habits, Hello, StepOrder, Update, WorkerConfig
from pinchpoint.load.trial import NumberContent, null_service
from pinchpoint.load.wire import resolve
from pinchpoint.schedule import ScheduledRequest, Slots
from pinchpoint.targets.target import TargetSpec
from tests.unit.load.drive import ns, pool, request, schedule_of

PATIENCE_S = 15.0
LEAD_S = 0.3
"""Orders are read at once, but a busy machine may take its time."""
LARGE = 100_000
"""Rows of an order that is more than a pipe holds (net.core.wmem_default is 208 KiB)."""


# -- a worker that the test plays ----------------------------------------------------------------------------------


class Played:
    """Stands for a load process: the test holds its end of the pipe, and it has died when somebody asks."""

    pid = 0
    returncode = -signal.SIGKILL

    def __init__(self, command: list[str], *, pass_fds: tuple[int, ...], **_: Any) -> None:
        self.pipe: Pipe[Any, Any] = Pipe(os.dup(pass_fds[0]))

    def wait(self, timeout_s: float | None = None) -> int:
        return self.returncode

    poll = wait


@contextmanager
def played(workers: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Fleet, list[Any]]]:
    started: list[Played] = []

    def start(*arguments: Any, **options: Any) -> Played:
        started.append(Played(*arguments, **options))
        return started[-1]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", start)
        fleet = Fleet(workers)
    yield fleet, [one.pipe for one in started]


@pytest.fixture
def fleet_of_one(monkeypatch: pytest.MonkeyPatch) -> "Iterator[tuple[Fleet, Pipe[Any, Any]]]":
    with played(1, monkeypatch) as (fleet, pipes):
        yield fleet, pipes[0]


def update(number: int) -> Update:
    return Update(worker=0, t_ns=number, outcomes=[], pending=[], unissued=0, tokens=0, busy_ratio=0.0)


def large_schedule() -> Any:
    return schedule_of([request(0)]).select(np.zeros(LARGE, np.int64))


def in_time(call: Any) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it hangs"


def test_a_large_order_to_a_worker_that_is_itself_sending_does_not_lock_up(
    fleet_of_one: "tuple[Fleet, Pipe[Any, Any]]",
) -> None:
    fleet, worker = fleet_of_one
    count = 2000
    orders: list[object] = []

    def talk_then_listen() -> None:
        for number in range(count):
            worker.send(update(number))
        orders.append(worker.recv())

    thread = threading.Thread(target=talk_then_listen, daemon=True)
    thread.start()
    in_time(lambda: fleet.start_step(0, large_schedule()))
    thread.join(PATIENCE_S)
    assert [type(order) for order in orders] == [StepOrder]
    heard: list[Update] = []
    while len(heard) < count:
        updates = fleet.poll(0.1)
        assert updates
        heard += updates
    assert [one.t_ns for one in heard] == list(range(count))


def test_updates_that_came_early_are_handed_on_at_once(fleet_of_one: "tuple[Fleet, Pipe[Any, Any]]") -> None:
    fleet, worker = fleet_of_one
    worker.send(update(1))
    fleet.command(Command("flush"))
    assert worker.recv() == Command("flush")
    heard: list[Update] = []
    in_time(lambda: heard.extend(fleet.poll(10 * PATIENCE_S)))
    assert [one.t_ns for one in heard] == [1]


def test_a_worker_that_dies_while_an_order_is_sent_is_lost_and_said(
    fleet_of_one: "tuple[Fleet, Pipe[Any, Any]]",
) -> None:
    fleet, worker = fleet_of_one
    threading.Timer(0.05, worker.close).start()
    in_time(lambda: fleet.start_step(0, large_schedule()))
    assert fleet.size == 0
    assert fleet.lost_workers == [0] and len(fleet.lost) == 1 and "exit code -9" in fleet.lost[0]
    with pytest.raises(WorkerDiedError):
        fleet.poll(0.1)


@pytest.mark.filterwarnings("error")
def test_an_order_to_a_fleet_without_workers_is_no_crash(fleet_of_one: "tuple[Fleet, Pipe[Any, Any]]") -> None:
    fleet, worker = fleet_of_one
    worker.close()
    fleet.command(Command("flush"))
    fleet.command(Command("flush"))
    fleet.start_step(0, schedule_of([request(0)]))
    assert fleet.size == 0 and len(fleet.lost) == 1


def test_hellos_are_kept_and_are_no_updates(fleet_of_one: "tuple[Fleet, Pipe[Any, Any]]") -> None:
    fleet, worker = fleet_of_one
    hello = Hello(0, 4711, None, False, ("a note",))
    worker.send(hello)
    in_time(fleet.await_ready)
    assert fleet.hellos == {0: hello}


def test_turns_of_one_user_go_to_one_worker_and_nothing_is_lost_or_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [request(number, session=number % 7, turn=number // 7) for number in range(70)]
    with played(3, monkeypatch) as (fleet, workers):
        fleet.start_step(5, schedule_of(rows), follow=False, duration_ns=9)
        orders: list[StepOrder] = [worker.recv() for worker in workers]
    assert {(order.stage, order.t0_ns, order.follow, order.duration_ns) for order in orders} == {(0, 5, False, 9)}
    shares: list[list[ScheduledRequest]] = [list(order.schedule) for order in orders]
    assert sorted(row.request_id for share in shares for row in share) == list(range(70))
    owners = [{row.session_id for row in share} for share in shares]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 7


@pytest.mark.parametrize("users", [1, 2, 3, 7])
def test_slots_are_dealt_like_cards_and_sessions_only_to_those_who_have_some(
    monkeypatch: pytest.MonkeyPatch, users: int
) -> None:
    slots = Slots(np.arange(users, dtype=np.int64), np.full(users, 1000, np.int64))
    with played(3, monkeypatch) as (fleet, workers):
        fleet.start_step(0, schedule_of(pool(50)), slots)
        fleet.start_step(0, schedule_of(pool(50, first=50)))
        orders: list[list[StepOrder]] = [[worker.recv(), worker.recv()] for worker in workers]
    dealt = [order[0].slots.start_ns.tolist() for order in orders if order[0].slots is not None]
    assert sorted(start for hand in dealt for start in hand) == list(range(users))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(order[1].slots is None for order in orders)
    for first, more in orders:
        has_slots = first.slots is not None and len(first.slots.start_ns) > 0
        assert (len(first.schedule) > 0) == (len(more.schedule) > 0) == has_slots
        users_here = len(first.slots.start_ns) if first.slots is not None else 0
        assert abs(len(first.schedule) - 50 * users_here / users) <= users_here  # in proportion, to within a round
    for step in (0, 1):
        ids = sorted(row.request_id for order in orders for row in order[step].schedule)
        assert ids == list(range(step * 50, step * 50 + 50))


# -- real workers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with null_service() as running:
        yield running


@contextmanager
def fleet_on(url: str, run_path: Path, workers: int, **options: Any) -> Iterator[Fleet]:
    fleet = Fleet(workers)
    (run_path / "parts").mkdir(parents=True, exist_ok=True)
    fleet.configure(
        [
            WorkerConfig(
                index=index,
                workers=workers,
                endpoints=(resolve(url),),
                run_path=str(run_path),
                targets=(TargetSpec("chat", "null"),),
                habits=options.get("habits", Habits()),
                content=NumberContent(),
                secrets=(),
                ca_file=None,
                cpu=options.get("cpu"),
                realtime=options.get("realtime", False),
            )
            for index in range(workers)
        ]
    )
    try:
        fleet.await_ready()
        yield fleet
    finally:
        fleet.close()


def wait_until(fleet: Fleet, done: Any) -> list[Update]:
    updates: list[Update] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline_s, fleet.totals()
        updates += fleet.poll(0.05)
    return updates


def records_of(run_path: Path, worker: int) -> list[dict[str, Any]]:
    """What is in a worker's own file, also when its end is missing."""
    rows: list[dict[str, Any]] = []
    with pa.OSFile(str(run_path / "parts" / f"records-{worker}.arrows")) as file, contextlib.suppress(pa.ArrowInvalid):
        for batch in pa.ipc.open_stream(file):
            rows += batch.to_pylist()
    return rows


def test_two_workers_share_a_schedule_without_loss_or_double_from_one_instant(url: str, tmp_path: Path) -> None:
    rows = [request(number, number * 0.01) for number in range(40)]
    with fleet_on(url, tmp_path, 2) as fleet:
        assert sorted(fleet.hellos) == [0, 1] and fleet.size == 2
        assert {hello.pid for hello in fleet.hellos.values()} == set(fleet.pids)
        t0_ns = monotonic_ns() + ns(LEAD_S)
        fleet.start_step(t0_ns, schedule_of(rows), follow=False)
        wait_until(fleet, lambda: fleet.totals().orders == 2)
        assert fleet.totals().unissued + fleet.totals().issued == 40
        wait_until(fleet, lambda: fleet.totals().ok == 40)
        totals = fleet.totals()
        assert (totals.issued, totals.in_flight, totals.unissued, totals.failed) == (40, 0, 0, 0)
        assert totals.tokens >= 40
        ttft_s = quantile_of(totals.ttft_counts, 0.5)
        assert ttft_s is not None and 0.04 < ttft_s < 5.0  # the server waits 50 ms
        assert totals.heartbeat_ns > t0_ns
    shares = [records_of(tmp_path, worker) for worker in (0, 1)]
    assert [len(share) for share in shares] == [20, 20]
    found = {record["request_id"]: record for share in shares for record in share}
    assert sorted(found) == list(range(40))
    assert all(found[row.request_id]["scheduled_ns"] == t0_ns + row.offset_ns for row in rows)
    assert all({record["worker"] for record in share} == {worker} for worker, share in enumerate(shares))
    assert not (tmp_path / "parts" / COUNTERS_FILE).exists()


def test_a_search_that_follows_hears_of_each_request_once(url: str, tmp_path: Path) -> None:
    with fleet_on(url, tmp_path, 2) as fleet:
        fleet.start_step(monotonic_ns(), schedule_of([request(number) for number in range(10)]), follow=True)
        heard: list[Update] = []
        deadline_s = time.monotonic() + PATIENCE_S
        while sum(len(one.outcomes) for one in heard) < 10 and time.monotonic() < deadline_s:
            heard += fleet.poll(0.05)
        more = fleet.poll(0.3)
    outcomes = [outcome for one in [*heard, *more] for outcome in one.outcomes]
    assert sorted(outcome.request_id for outcome in outcomes) == list(range(10))
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert {one.worker for one in heard} == {0, 1}


def test_a_killed_worker_is_noticed_the_other_goes_on_and_its_file_keeps_what_it_had(url: str, tmp_path: Path) -> None:
    with fleet_on(url, tmp_path, 2) as fleet:
        fleet.start_step(monotonic_ns(), schedule_of([request(number) for number in range(10)]), follow=False)
        wait_until(fleet, lambda: fleet.totals().ok == 10)
        fleet.command(Command("flush"))
        wait_until(fleet, lambda: all(len(records_of(tmp_path, worker)) == 5 for worker in (0, 1)))
        later = [request(number, 0.5, stage=1) for number in range(10, 20)]
        fleet.start_step(monotonic_ns(), schedule_of(later), follow=False)
        wait_until(fleet, lambda: fleet.totals().orders == 4)
        victim = fleet.hellos[0].pid
        os.kill(victim, signal.SIGKILL)
        wait_until(fleet, lambda: fleet.size == 1)
        assert fleet.lost_workers == [0]
        assert "load process 0 died" in fleet.lost[0] and "-9" in fleet.lost[0]
        wait_until(fleet, lambda: fleet.totals().ok == 10)  # five and five of the one that is left
        fleet.start_step(monotonic_ns(), schedule_of([request(n, stage=2) for n in range(20, 24)]), follow=False)
        wait_until(fleet, lambda: fleet.totals().ok == 14)
    kept = [{record["request_id"] for record in records_of(tmp_path, worker)} for worker in (0, 1)]
    assert kept[0] == {0, 2, 4, 6, 8}
    assert kept[1] == {1, 3, 5, 7, 9, *range(11, 20, 2), *range(20, 24)}


def test_cancelling_ends_what_is_in_flight_and_what_is_not_yet_due(url: str, tmp_path: Path) -> None:
    rows = [request(0), request(1, 60.0)]
    with fleet_on(url, tmp_path, 1, habits=Habits()) as fleet:
        long = schedule_of([rows[0]])
        long.max_output_tokens[:] = 2000  # twenty seconds at the null server's pace
        fleet.start_step(monotonic_ns(), long, follow=False)
        fleet.start_step(monotonic_ns(), schedule_of([request(1, 60.0, stage=1)]), follow=False)
        wait_until(fleet, lambda: fleet.totals().tokens > 0 and fleet.totals().orders == 2)
        assert (fleet.totals().in_flight, fleet.totals().unissued) == (1, 1)
        fleet.command(Command("cancel", "enough"))
        wait_until(fleet, lambda: fleet.totals().in_flight == 0)
        assert (fleet.totals().unissued, fleet.totals().withdrawn) == (0, 1)
    (record,) = records_of(tmp_path, 0)
    assert (record["status"], record["error"]) == ("cancelled", "enough")


def test_what_the_system_refuses_is_noted_in_the_hello(url: str, tmp_path: Path) -> None:
    nowhere = 4095
    with fleet_on(url, tmp_path, 1, cpu=nowhere, realtime=True) as fleet:
        hello = fleet.hellos[0]
        assert hello.cpu is None
        assert any(f"core {nowhere}" in note for note in hello.notes)
        if not hello.realtime:  # depends on the rights of whoever runs the tests
            assert any("real-time priority" in note for note in hello.notes)
        fleet.start_step(monotonic_ns(), schedule_of([request(0)]), follow=False)
        wait_until(fleet, lambda: fleet.totals().ok == 1)


def test_workers_end_when_their_controller_is_gone(url: str, tmp_path: Path) -> None:
    with fleet_on(url, tmp_path, 1) as fleet:
        process = fleet._processes[0]
        fleet._pipes.pop(0).close()
        assert process.wait(PATIENCE_S) == 0


def test_counters_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = LiveCounters(tmp_path / "c", 3, create=True)
    read = LiveCounters(tmp_path / "c", 3, create=False)
    for worker in range(3):
        written.rows[worker, :11] = [100 + worker, 1, 2, 3, 4, 5, 6, 7, 8, 250_000 * worker, 1]
        written.rows[worker, 11 + worker] = 1
    totals = read.totals([0, 2])
    assert (totals.heartbeat_ns, totals.issued, totals.in_flight, totals.unissued, totals.pool_left) == (
        100,
        2,
        4,
        6,
        8,
    )
    assert (totals.ok, totals.failed, totals.withdrawn, totals.tokens, totals.orders) == (10, 12, 14, 16, 2)
    assert totals.busy_ratio == 0.5
    assert totals.ttft_counts.sum() == 2 and totals.tpot_counts.sum() == 0
    assert read.totals([]).busy_ratio == 0.0


def test_quantiles_of_counters_are_within_a_bucket() -> None:
    from pinchpoint.load.counters import BUCKETS, bucket_of

    values_s = np.geomspace(0.001, 10.0, 1001)
    counts = np.bincount(bucket_of(values_s), minlength=BUCKETS)
    for q in (0.1, 0.5, 0.9):
        found = quantile_of(counts, q)
        assert found is not None and abs(np.log(found / np.quantile(values_s, q))) < np.log(1.08)
    assert quantile_of(np.zeros(BUCKETS, np.int64), 0.5) is None
    assert bucket_of(np.array([0.0, 1e-9, 1e9])).tolist() == [0, 0, BUCKETS - 1]
