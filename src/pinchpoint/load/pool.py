"""The connections of one load loop: which are free, which are kept for a session, which are still opening.

Knows no requests: what a connection carries, and what comes of it, is the loop's business.
"""

import contextlib
import resource
import select
import ssl
from collections.abc import Sequence

from pinchpoint.load.wire import Connection, Endpoint

RESERVED_FILES = 64
"""Descriptors left for everything that is not a load connection."""
READS = select.EPOLLIN
BOTH = select.EPOLLIN | select.EPOLLOUT


class Pool:
    """by_fd: every connection. opening: fds of those that are not open yet."""

    def __init__(self, endpoints: Sequence[Endpoint], tls: ssl.SSLContext | None, epoll: select.epoll) -> None:
        self._endpoints = tuple(endpoints)
        self._tls = tls
        self._epoll = epoll
        self._turns = _WeightedTurns([endpoint.weight for endpoint in endpoints])
        self.by_fd: dict[int, Connection] = {}
        self.opening: set[int] = set()
        self._idle: list[dict[Connection, None]] = [{} for _ in endpoints]
        """Per backend those that are free, the one used last at the end: it is taken first."""
        self._kept: dict[int, Connection] = {}
        """session_id -> the connection that waits for its next turn."""
        self._backend_of: dict[int, int] = {}
        """session_id -> backend, while the session lasts."""
        self._numbers = 0
        self.limit = raise_file_limit() - RESERVED_FILES

    def __len__(self) -> int:
        return len(self.by_fd)

    def backend_of(self, session_id: int) -> int:
        """The base URL of a session: the next in turn when it begins, then always the same."""
        if len(self._endpoints) == 1:
            return 0
        backend = self._backend_of.get(session_id)
        if backend is None:
            backend = self._backend_of[session_id] = self._turns.next()
        return backend

    def take(self, session_id: int, backend: int) -> Connection | None:
        """A connection that is open: the session's own, else a free one; None when there is none."""
        connection = self._kept.pop(session_id, None)
        if connection is None and self._idle[backend]:
            connection, _ = self._idle[backend].popitem()
        if connection is not None:
            connection.session = None
        return connection

    def open(self, backend: int) -> Connection:
        """Begins to connect. Raises OSError when that fails at once."""
        self._numbers += 1
        endpoint = self._endpoints[backend]
        connection = Connection(endpoint, self._numbers, self._tls if endpoint.tls else None, backend)
        self.by_fd[connection.fd] = connection
        self.opening.add(connection.fd)
        self._epoll.register(connection.fd, BOTH)
        return connection

    def warm_up(self, wanted: int) -> None:
        """Opens connections until there are so many, so that the first requests do not pay for it."""
        for _ in range(min(wanted, self.limit) - len(self.by_fd)):
            try:
                self.open(self._turns.next())
            except OSError:
                return  # the first request finds out, and says so

    def free(self, connection: Connection) -> None:
        """Nobody needs it at the moment."""
        self._idle[connection.backend][connection] = None

    def keep(self, connection: Connection, session_id: int) -> None:
        """It waits for the next turn of a session."""
        connection.session = session_id
        self._kept[session_id] = connection

    def end_session(self, session_id: int) -> None:
        self._backend_of.pop(session_id, None)

    def end_all_sessions(self) -> None:
        """None of them goes on: what was kept for them is free."""
        for connection in self._kept.values():
            connection.session = None
            self.free(connection)
        self._kept.clear()
        self._backend_of.clear()

    def watch(self, connection: Connection) -> None:
        """Asks epoll for what the connection waits for, when that has changed."""
        wants = connection.wants_write
        if wants != connection.wants_write_events and connection.state != "closed":
            connection.wants_write_events = wants
            self._epoll.modify(connection.fd, BOTH if wants else READS)

    def drop(self, connection: Connection) -> None:
        self.by_fd.pop(connection.fd, None)
        self.opening.discard(connection.fd)
        self._idle[connection.backend].pop(connection, None)
        if connection.session is not None:
            self._kept.pop(connection.session, None)
        if connection.state != "closed":
            with contextlib.suppress(OSError, ValueError):  # already gone from the set
                self._epoll.unregister(connection.fd)
            connection.close()


class _WeightedTurns:
    """Smooth weighted round robin: in any stretch each backend has had its share, to within one request."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = list(weights)
        self._credit = [0.0] * len(self._weights)

    def next(self) -> int:
        if len(self._weights) == 1:
            return 0
        for i, weight in enumerate(self._weights):
            self._credit[i] += weight
        chosen = max(range(len(self._weights)), key=self._credit.__getitem__)
        self._credit[chosen] -= sum(self._weights)
        return chosen


def raise_file_limit() -> int:
    """Lifts the soft limit of open files to the hard one and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20)
    if soft < ceiling:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        except (ValueError, OSError):
            return soft
    return ceiling
