"""Between client and service: round trips, lost packets, the server's network card, and what its kernel does with
connections (accept queue, connection tracking, files).

Instants in ns. Packets reach a card in about the order of time. Not here: what a proxy or gateway does with requests.
"""

import random
from collections import deque

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.events import ClientEvent
from pinchpoint.lab.params import LabParams

SEGMENT_BYTES = 1448
"""Payload of a full TCP segment on Ethernet, with time stamps."""
PACKET_OVERHEAD_BYTES = 66
"""Ethernet, IP and TCP with time stamps."""
REQUEST_HEAD_BYTES = 600
BYTES_PER_PROMPT_TOKEN = 4.5
"""English text in JSON."""
HEAD_BYTES = 250
CHUNK_BYTES = 250
"""One server-sent event with one token, as vLLM writes it."""
BYTES_PER_TOKEN = 4.5
IMAGE_BYTES_PER_TOKEN = 500
"""A picture in base64 per token that it becomes: some 280 kB for 576 tokens."""
RTO_MIN_NS = NS_PER_S // 5
"""TCP_RTO_MIN of Linux."""
DUPLICATE_ACKS = 3
"""So many packets behind a lost one make the sender repeat it at once (RFC 5681)."""
SYN_RETRY_NS = (1 * NS_PER_S, 3 * NS_PER_S, 7 * NS_PER_S)
"""A SYN that was not answered comes again so long after the first (time-out of 1 s that doubles, RFC 6298)."""
CONNECT_TIMEOUT_NS = 10 * NS_PER_S
"""After which clients give up connecting."""
KEEP_ALIVE_NS = 5 * NS_PER_S
"""uvicorn closes a connection that has been idle so long."""
TIME_WAIT_NS = 60 * NS_PER_S
"""TCP_TIMEWAIT_LEN of Linux."""
DEFAULT_SPEED_BYTES_PER_S = 3.125e9
"""25 Gb/s: what a card without a limit says of itself."""
SOFTNET_QUEUE_PACKETS = 1000
"""netdev_max_backlog."""
SQUEEZE_NS = 2_000_000
"""netdev_budget_usecs: packets left after so long count as squeezed."""


CLOSED = -1
"""Epoch of a connection that is no more."""


class Connection:
    """One TCP connection of a client, on API process `process` of its replica."""

    __slots__ = ("accepted", "epoch", "idle_until_ns", "process")

    def __init__(self, process: int, epoch: int) -> None:
        self.process = process
        self.epoch = epoch
        """How often the host's processes had died when it was made; CLOSED once it is closed."""
        self.accepted = False
        self.idle_until_ns = 0


class HostNetwork:
    """Card, kernel and open connections of one replica's host."""

    def __init__(self, params: LabParams, seed: int) -> None:
        self._random = random.Random(seed)
        self.rx_bytes = self.tx_bytes = 0.0
        self.segments_out = self.retransmits = self.packets = 0
        self.listen_overflows = self.listen_drops = self.conntrack_drops = 0
        self.squeezed = self.softnet_drops = 0
        self.accept_queue = 0
        self.open_files: list[int] = []
        """Connections that each API process holds."""
        self._connections = 0
        self._idle: deque[Connection] = deque()
        """Newest last, so also in order of idle_until_ns."""
        self._tracked_until_ns: deque[int] = deque()
        self._time_wait_until_ns: deque[int] = deque()
        self._rx_free_ns = self._tx_free_ns = self._softirq_free_ns = 0
        self._softirq_ns = self._squeezed_until_ns = 0
        self._next_process = 0
        self._epoch = 0
        self.change(params)

    def change(self, params: LabParams) -> None:
        path, host = params.path, params.host
        self._path, self._host = path, host
        self.speed_bytes_per_s = path.bandwidth_bytes_per_s or DEFAULT_SPEED_BYTES_PER_S
        self._ns_per_byte = 0.0 if path.bandwidth_bytes_per_s is None else NS_PER_S / path.bandwidth_bytes_per_s
        self._packet_ns = round(host.softirq_s_per_packet * NS_PER_S)
        self.one_way_ns = round(path.rtt_s / 2 * NS_PER_S)
        self.unhindered = not (self._ns_per_byte or self._packet_ns or path.loss_ratio)
        """What is sent arrives one_way_ns later."""
        self._processes = params.front.api_processes
        while len(self.open_files) < self._processes:
            self.open_files.append(0)

    # Packets

    def passes(self, t_ns: int, size_bytes: float, packets: int, *, outward: bool) -> int:
        """Bytes are handed to the card (outward) or reach it; when the last has left it for the other side."""
        wire_bytes = size_bytes + packets * PACKET_OVERHEAD_BYTES
        if outward:
            self.tx_bytes += wire_bytes
            self.segments_out += packets
        else:
            self.rx_bytes += wire_bytes
        self.packets += packets
        if self._packet_ns:
            t_ns = self._interrupt(t_ns, packets)
        if not self._ns_per_byte:
            return t_ns
        cost_ns = round(wire_bytes * self._ns_per_byte)
        if outward:
            self._tx_free_ns = max(self._tx_free_ns, t_ns) + cost_ns
            return self._tx_free_ns
        self._rx_free_ns = max(self._rx_free_ns, t_ns) + cost_ns
        return self._rx_free_ns

    def _interrupt(self, t_ns: int, packets: int) -> int:
        queue_ns = self._softirq_free_ns - t_ns
        if queue_ns > SOFTNET_QUEUE_PACKETS * self._packet_ns:
            self.softnet_drops += packets
            self.retransmits += packets
            t_ns += max(RTO_MIN_NS, queue_ns)  # it is sent again until there is room
        if queue_ns > SQUEEZE_NS and t_ns >= self._squeezed_until_ns:
            self.squeezed += 1
            self._squeezed_until_ns = t_ns + SQUEEZE_NS
        cost_ns = packets * self._packet_ns
        self._softirq_free_ns = max(self._softirq_free_ns, t_ns) + cost_ns
        self._softirq_ns += cost_ns
        return self._softirq_free_ns

    def softirq_ns(self, t_ns: int) -> int:
        """CPU time of the interrupt core by t_ns."""
        return self._softirq_ns - max(0, min(self._softirq_ns, self._softirq_free_ns - t_ns))

    def lost(self) -> bool:
        return self._path.loss_ratio > 0 and self._random.random() < self._path.loss_ratio

    @property
    def rto_ns(self) -> int:
        return RTO_MIN_NS + 2 * self.one_way_ns

    def backoff_ns(self) -> int:
        """From a lost packet to its arrival after one or more time-outs, each twice as long as the one before."""
        total_ns = timeout_ns = self.rto_ns
        while self.lost():
            timeout_ns *= 2
            total_ns += timeout_ns
        return total_ns

    def burst_delay_ns(self, packets: int, *, outward: bool) -> int:
        """By how much loss delays the end of so many packets sent at once."""
        if not self._path.loss_ratio:
            return 0
        delay_ns = 0
        for index in range(packets):
            if self.lost():
                self.retransmits += outward
                if packets - 1 - index >= DUPLICATE_ACKS and not self.lost():
                    delay_ns = max(delay_ns, 2 * self.one_way_ns)
                else:
                    delay_ns = max(delay_ns, self.backoff_ns())
        return delay_ns

    def count_chunks(self, chunks: int, tokens: int) -> None:
        """Chunks have left that nothing delayed."""
        self.tx_bytes += chunks * (CHUNK_BYTES + PACKET_OVERHEAD_BYTES) + tokens * BYTES_PER_TOKEN
        self.segments_out += chunks
        self.packets += chunks

    # Connections

    def reuse(self, t_ns: int) -> Connection | None:
        """An idle connection; None when there is none."""
        if not self._path.keep_alive:
            return None
        self._expire(t_ns)
        return self._idle.pop() if self._idle else None

    def syn(self, t_ns: int) -> Connection | None:
        """A SYN has arrived; None: it was dropped. The connection then waits in the accept queue."""
        if self.conntrack_entries(t_ns) >= self._host.conntrack_max:
            self.conntrack_drops += 1
            return None
        if self.accept_queue > self._host.accept_backlog:  # the kernel lets one more in than it was told
            self.listen_overflows += 1
            self.listen_drops += 1
            return None
        if self.lost():
            return None
        self.accept_queue += 1
        self._connections += 1
        self._next_process = (self._next_process + 1) % self._processes
        return Connection(self._next_process, self._epoch)

    def accept(self, t_ns: int, connection: Connection, base_files: int) -> bool:
        """The API process takes it from the queue. False: it had no file left for it, and the connection is reset."""
        if connection.epoch != self._epoch:
            return False
        self.accept_queue -= 1
        self._expire(t_ns)
        if base_files + self.open_files[connection.process] >= self._host.nofile:
            self._connections -= 1
            connection.epoch = CLOSED
            self._track(t_ns)
            return False
        connection.accepted = True
        self.open_files[connection.process] += 1
        return True

    def stands(self, connection: Connection) -> bool:
        """It has neither been closed nor lost its process."""
        return connection.epoch == self._epoch

    def done(self, t_ns: int, connection: Connection, *, keep: bool) -> None:
        """Its exchange has ended: it is kept for the next one, or closed."""
        if connection.epoch != self._epoch:
            return
        if keep and self._path.keep_alive and connection.accepted:
            connection.idle_until_ns = t_ns + KEEP_ALIVE_NS
            self._idle.append(connection)
        else:
            self._close(t_ns, connection)

    def reset_all(self, t_ns: int) -> None:
        """The processes that held the connections are gone."""
        self._epoch += 1
        for _ in range(self._connections):
            self._track(t_ns)
        self._connections = self.accept_queue = 0
        self._idle.clear()
        self.open_files = [0] * len(self.open_files)

    def _close(self, t_ns: int, connection: Connection) -> None:
        self._connections -= 1
        if connection.accepted:
            self.open_files[connection.process] -= 1
        else:
            self.accept_queue -= 1
        connection.epoch = CLOSED
        self._track(t_ns)
        self._time_wait_until_ns.append(t_ns + TIME_WAIT_NS)

    def _track(self, t_ns: int) -> None:
        self._tracked_until_ns.append(t_ns + round(self._host.conntrack_time_wait_s * NS_PER_S))

    def _expire(self, t_ns: int) -> None:
        idle = self._idle
        while idle and idle[0].idle_until_ns <= t_ns:
            connection = idle.popleft()
            self._close(connection.idle_until_ns, connection)

    def established(self, t_ns: int) -> int:
        self._expire(t_ns)
        return self._connections

    def time_wait(self, t_ns: int) -> int:
        self._expire(t_ns)
        _drop_until(self._time_wait_until_ns, t_ns)
        return len(self._time_wait_until_ns)

    def conntrack_entries(self, t_ns: int) -> int:
        self._expire(t_ns)
        _drop_until(self._tracked_until_ns, t_ns)
        return self._connections + len(self._tracked_until_ns)


class LossyStream:
    """Order on one connection that loses packets: what comes behind a lost one waits for it.

    A lost packet is repeated after the retransmission time-out, or as soon as three packets behind it have arrived and
    been acknowledged; packets lost behind it are repeated with it.
    """

    __slots__ = ("_behind", "_held", "_last_ns", "release_ns")

    def __init__(self, floor_ns: int) -> None:
        """floor_ns: nothing is seen earlier."""
        self.release_ns: int | None = None
        """When the repeated packet arrives; None: nothing is missing."""
        self._held: list[tuple[int, list[ClientEvent]]] = []
        self._behind = 0
        self._last_ns = floor_ns

    def send(
        self, left_ns: int, packets: int, events: list[ClientEvent], network: HostNetwork
    ) -> list[ClientEvent] | None:
        """Packets leave the card. Returns what the client sees of it, or None: ask `release` at release_ns."""
        delay_ns = network.burst_delay_ns(packets, outward=True)
        arrival_ns = left_ns + network.one_way_ns
        if self.release_ns is None:
            if not delay_ns:
                return self._seen(arrival_ns, events)
            self.release_ns, self._behind = arrival_ns + delay_ns, 0
        elif not delay_ns:
            self._behind += packets
            if self._behind >= DUPLICATE_ACKS > self._behind - packets:
                repeated_ns = arrival_ns + 2 * network.one_way_ns + (network.backoff_ns() if network.lost() else 0)
                self.release_ns = max(left_ns, min(self.release_ns, repeated_ns))
        self._held.append((arrival_ns, events))
        return None

    def release(self, t_ns: int) -> list[ClientEvent]:
        """What waited and is seen from t_ns on; nothing if the repeated packet is not due now."""
        if t_ns != self.release_ns:
            return []
        self.release_ns = None
        held, self._held = self._held, []
        return [event for arrival_ns, events in held for event in self._seen(max(arrival_ns, t_ns), events)]

    def _seen(self, t_ns: int, events: list[ClientEvent]) -> list[ClientEvent]:
        self._last_ns = max(self._last_ns, t_ns)
        for event in events:
            event.t_ns = self._last_ns
        return events


def _drop_until(instants_ns: deque[int], t_ns: int) -> None:
    while instants_ns and instants_ns[0] <= t_ns:
        instants_ns.popleft()


def packets_of(size_bytes: float) -> int:
    return max(1, -int(-size_bytes // SEGMENT_BYTES))
