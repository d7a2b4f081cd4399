"""The load generator that a virtual run imagines, with the faults one can have: parameters of lab.params.Client.

One loop, first in first out: sending a request and reading a chunk each take CPU time, and what waits in the loop is
sent late and, without stamps of the kernel, stamped late. In front of it a pool of connections and the local ports. The
defaults cost nothing and limit nothing.
"""

import heapq
from collections import deque

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.params import Client
from pinchpoint.schedule import ScheduledRequest

TIME_WAIT_S = 60.0
"""A closed connection blocks its local port for so long (Linux, TCP_TIMEWAIT_LEN)."""
PORTS = 28_232
"""Linux's default ip_local_port_range, 32768 to 60999."""


class Flight:
    """One request between being due and having ended. Instants in ns.

    chunk_tokens: None while every chunk held one token.
    """

    __slots__ = (
        "chunk_ns",
        "chunk_tokens",
        "coalesced",
        "connected_ns",
        "headers_ns",
        "input_tokens",
        "read_from",
        "read_ns",
        "request",
        "retry_after_s",
        "scheduled_ns",
        "sent_ns",
        "shared_tokens",
        "slot_until_ns",
        "status",
    )

    def __init__(self, request: ScheduledRequest, scheduled_ns: int, slot_until_ns: int) -> None:
        self.request = request
        self.slot_until_ns = slot_until_ns
        self.scheduled_ns = scheduled_ns
        self.sent_ns: int | None = None
        self.input_tokens = request.input_tokens
        """Of the whole prompt, with system prompt and history."""
        self.shared_tokens = 0
        self.status: int | None = None
        self.connected_ns: int | None = None
        self.headers_ns: int | None = None
        self.retry_after_s: float | None = None
        self.chunk_ns: list[int] = []
        self.chunk_tokens: list[int] | None = None
        self.coalesced = 0
        self.read_ns = -1
        """When the loop reads what came last."""
        self.read_from = 0
        """Place of the first chunk of that read."""

    def add_chunk(self, stamp_ns: int, tokens: int) -> None:
        if tokens != 1 and self.chunk_tokens is None:
            self.chunk_tokens = [1] * len(self.chunk_ns)
        if self.chunk_tokens is not None:
            self.chunk_tokens.append(tokens)
        self.chunk_ns.append(stamp_ns)

    @property
    def output_tokens(self) -> int:
        return len(self.chunk_ns) if self.chunk_tokens is None else sum(self.chunk_tokens)


class ClientModel:
    """What the client's own limits do to requests and stamps. Calls come in time order."""

    def __init__(self, params: Client, keep_alive: bool) -> None:
        self._free_ns = 0
        self._busy_ns = 0
        self._stall_ns = 0
        self._chunks = self._coalesced = 0
        self._blocked_ns: list[int] = []
        """Heap of the instants at which ports leave TIME_WAIT."""
        self.waiting: deque[Flight] = deque()
        """What waits for a connection or a user, in order."""
        self.in_flight = 0
        self.busy_ratio = 0.0
        """Of the loop, as it was read last."""
        self.change(params, keep_alive)

    def change(self, params: Client, keep_alive: bool) -> None:
        self.params = params
        self._keep_alive = keep_alive
        self._request_ns = round(params.request_s * NS_PER_S)
        self._chunk_ns = round(params.chunk_s * NS_PER_S)
        limits = [limit for limit in (params.pool_connections, params.users) if limit is not None]
        self._limit = min(limits) if limits else None

    @property
    def loops(self) -> bool:
        """Whether reading costs anything, so that stamps must be asked for."""
        return self._chunk_ns > 0

    @property
    def reacts(self) -> bool:
        """Whether the end of a request lets another one go."""
        return self._limit is not None

    @property
    def full(self) -> bool:
        return self._limit is not None and self.in_flight >= self._limit

    def has_port(self, now_ns: int) -> bool:
        """Whether a connection can be opened. Kept connections use a port only while they are open."""
        if self.params.ports is None:
            return True
        return self.in_flight + self.time_wait(now_ns) < self.params.ports

    def time_wait(self, now_ns: int) -> int:
        while self._blocked_ns and self._blocked_ns[0] <= now_ns:
            heapq.heappop(self._blocked_ns)
        return len(self._blocked_ns)

    def send(self, now_ns: int) -> int:
        """A request is due for sending at now_ns; returns when it leaves."""
        self.in_flight += 1
        if not self._request_ns:
            return now_ns
        begin_ns = max(self._free_ns, now_ns)
        self._stall_ns = max(self._stall_ns, begin_ns - now_ns)
        self._free_ns = begin_ns + self._request_ns
        self._busy_ns += self._request_ns
        return self._free_ns

    def read(self, flight: Flight, t_ns: int) -> int:
        """A chunk arrives at t_ns; returns its stamp. Chunks that wait for one read of the loop share its stamp, as
        the kernel stamps a read with the arrival of its last bytes."""
        self._chunks += 1
        kernel, chunk_ns = self.params.kernel_stamps, flight.chunk_ns
        if flight.read_ns > t_ns:
            self._coalesced += 1
            flight.coalesced += 1
            if kernel:
                for i in range(flight.read_from, len(chunk_ns)):
                    chunk_ns[i] = t_ns
        else:
            flight.read_ns = max(self._free_ns, t_ns)
            flight.read_from = len(chunk_ns)
            self._stall_ns = max(self._stall_ns, flight.read_ns - t_ns)
        self._free_ns = max(self._free_ns, t_ns) + self._chunk_ns
        self._busy_ns += self._chunk_ns
        return t_ns if kernel else flight.read_ns

    def seen_ns(self, flight: Flight, t_ns: int) -> int:
        """The stamp of an answer's end, which comes at t_ns with its last chunk and takes no reading of its own."""
        return t_ns if self.params.kernel_stamps else max(t_ns, flight.read_ns)

    def ended(self, t_ns: int) -> None:
        """A request that was sent is over."""
        self.in_flight -= 1
        if not self._keep_alive:
            heapq.heappush(self._blocked_ns, t_ns + round(TIME_WAIT_S * NS_PER_S))

    def readings(self, now_ns: int, elapsed_s: float) -> dict[str, float]:
        """What load processes tell of themselves, over the time since the last call."""
        still_ns = max(0, self._free_ns - now_ns)
        busy = min(1.0, max(0, self._busy_ns - still_ns) / NS_PER_S / elapsed_s) if elapsed_s > 0 else 0.0
        self.busy_ratio = busy
        values = {
            "client.loop_busy_ratio": busy,
            "client.worker_cpu_cores": busy,
            "client.loop_stall_max_s": self._stall_ns / NS_PER_S,
            "client.in_flight": float(self.in_flight + len(self.waiting)),
            "client.connections": float(self.in_flight),
            "client.tcp_sockets": float(self.in_flight),
            "client.tcp_time_wait_sockets": float(self.time_wait(now_ns)),
            "client.ports_available": float(self.params.ports if self.params.ports is not None else PORTS),
        }
        if self._chunks:
            values["client.coalesced_ratio"] = self._coalesced / self._chunks
        self._busy_ns = still_ns
        self._stall_ns = self._chunks = self._coalesced = 0
        return values
