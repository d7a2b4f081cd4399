"""Orders to the load processes and their updates, with a worker that the test plays itself."""

import multiprocessing
import threading
from multiprocessing.connection import Connection as Pipe
from typing import Any

import pytest

from pinchpoint.load.fleet import Fleet, WorkerDiedError
from pinchpoint.load.messages import Command, Intent, StepOrder, Update

PATIENCE_S = 10.0
LARGE_BODY = b"x" * (1 << 20)
"""More than a pipe holds (net.core.wmem_default is 208 KiB)."""


class Ended:
    """Stands for a process that has died."""

    exitcode = -9

    def join(self, timeout_s: float) -> None:
        pass


@pytest.fixture
def fleet_of_one() -> "tuple[Fleet, Pipe[Any, Any]]":
    fleet = Fleet([])
    ours, theirs = multiprocessing.Pipe()
    fleet._pipes[0] = ours
    fleet._processes[0] = Ended()  # pyright: ignore[reportArgumentType]
    return fleet, theirs


def update(number: int) -> Update:
    return Update(worker=0, t_ns=number, outcomes=[], pending=[], unissued=0, tokens=0, busy_ratio=0.0)


def intent(number: int, body: bytes = b"{}") -> Intent:
    return Intent(number, number, 0, 0, 5, 5, body)


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
    in_time(lambda: fleet.start_step(3, 0, [intent(0, LARGE_BODY)]))
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
    in_time(lambda: fleet.start_step(0, 0, [intent(0, LARGE_BODY)]))
    assert fleet.size == 0
    assert len(fleet.lost) == 1 and "exit code -9" in fleet.lost[0]
    with pytest.raises(WorkerDiedError):
        fleet.poll(0.1)


def test_an_order_to_a_fleet_without_workers_is_no_crash(fleet_of_one: "tuple[Fleet, Pipe[Any, Any]]") -> None:
    fleet, worker = fleet_of_one
    worker.close()
    fleet.command(Command("flush"))
    fleet.command(Command("flush"))
    fleet.start_step(0, 0, [intent(0)])
    assert fleet.size == 0 and len(fleet.lost) == 1


def test_turns_of_one_user_go_to_one_worker() -> None:
    fleet = Fleet([])
    workers = []
    for index in range(3):
        ours, theirs = multiprocessing.Pipe()
        fleet._pipes[index] = ours
        workers.append(theirs)
    wanted = [Intent(number, number % 7, None, 0, 5, 5, b"{}") for number in range(70)]
    fleet.start_step(0, 5, wanted)
    shares = [worker.recv().intents for worker in workers]
    assert sorted(i.request_id for share in shares for i in share) == list(range(70))
    owners = [{i.session_id for i in share} for share in shares]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 7
