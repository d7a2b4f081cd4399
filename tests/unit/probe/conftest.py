"""Fixtures of the probe tests."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from fake_engine import FakeEngine

RawAnswer = Callable[[socket.socket], None]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def raw_server() -> Iterator[Callable[[RawAnswer], str]]:
    """Starts a TCP server that does what the test says with each connection; returns its URL."""
    listeners: list[socket.socket] = []

    def start(respond: RawAnswer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        respond(connection)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
