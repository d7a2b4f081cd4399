"""What the kernel knows of our own connections: round-trip time, segments sent again, delivery rate.

`struct tcp_info` of linux/tcp.h has only ever grown at its end, so what a kernel hands over is read as far as it goes,
and fields beyond are absent. Works below TLS as well; a Unix socket has none of it, and neither has another system.

Read once a second between due instants, for at most SAMPLED_MAX connections in turn: a few microseconds each, so that
a host with thousands of connections pays no more than one with a few.
"""

import struct
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple, Protocol

SAMPLED_MAX = 32
"""Connections per reading: a median over so many is good to a tenth of their spread."""
KEPT_MAX = 4096
"""Connections whose last counts are remembered before those that have closed are dropped."""
US_PER_S = 1e6
P95 = 0.95
NO_MINIMUM = 0xFFFFFFFF
"""tcpi_min_rtt before anything was measured (~0U in tcp_min_rtt)."""

_BASE = struct.Struct("=8B24I")
"""Eight bytes of states and options, then tcpi_rto to tcpi_total_retrans: what Linux 2.6 had."""
_PACING = struct.Struct("=4Q")
"""tcpi_pacing_rate, tcpi_max_pacing_rate, tcpi_bytes_acked, tcpi_bytes_received (Linux 4.1)."""
_SEGMENTS = struct.Struct("=6I")
"""tcpi_segs_out, tcpi_segs_in, tcpi_notsent_bytes, tcpi_min_rtt, tcpi_data_segs_in, tcpi_data_segs_out (Linux 4.6)."""
_DELIVERY = struct.Struct("=Q")
"""tcpi_delivery_rate (Linux 4.9)."""
_OUT_OF_ORDER = struct.Struct("=I")
"""tcpi_rcv_ooopack (Linux 5.4)."""
PACING_AT = _BASE.size
SEGMENTS_AT = PACING_AT + _PACING.size
DELIVERY_AT = SEGMENTS_AT + _SEGMENTS.size
OUT_OF_ORDER_AT = 224
"""Behind busy_time, rwnd_limited, sndbuf_limited, delivered, delivered_ce, bytes_sent, bytes_retrans, dsack_dups and
reord_seen."""


class TcpInfo(NamedTuple):
    """One connection at one instant. None: this kernel does not tell, or nothing was measured yet."""

    rtt_s: float
    rtt_var_s: float
    unacked: int
    lost: int
    cwnd: int
    reordering: int
    retransmits: int
    """Since the connection was made."""
    bytes_acked: int | None = None
    bytes_received: int | None = None
    unsent_bytes: int | None = None
    rtt_min_s: float | None = None
    delivery_bytes_per_s: int | None = None
    out_of_order: int | None = None


def parse(data: bytes) -> TcpInfo | None:
    """What a kernel answered to TCP_INFO; None when that is shorter than any Linux makes it."""
    if len(data) < _BASE.size:
        return None
    words = _BASE.unpack_from(data)[8:]
    acked = received = unsent = minimum = rate = out_of_order = None
    if len(data) >= SEGMENTS_AT:
        _, _, acked, received = _PACING.unpack_from(data, PACING_AT)
    if len(data) >= DELIVERY_AT:
        _, _, unsent, minimum, _, _ = _SEGMENTS.unpack_from(data, SEGMENTS_AT)
    if len(data) >= DELIVERY_AT + _DELIVERY.size:
        (rate,) = _DELIVERY.unpack_from(data, DELIVERY_AT)
    if len(data) >= OUT_OF_ORDER_AT + _OUT_OF_ORDER.size:
        (out_of_order,) = _OUT_OF_ORDER.unpack_from(data, OUT_OF_ORDER_AT)
    return TcpInfo(
        rtt_s=words[15] / US_PER_S,
        rtt_var_s=words[16] / US_PER_S,
        unacked=words[4],
        lost=words[6],
        cwnd=words[18],
        reordering=words[20],
        retransmits=words[23],
        bytes_acked=acked,
        bytes_received=received,
        unsent_bytes=unsent,
        rtt_min_s=None if minimum is None or minimum == NO_MINIMUM else minimum / US_PER_S,
        delivery_bytes_per_s=rate or None,
        out_of_order=out_of_order,
    )


class _Numbered(Protocol):
    """What the sampler needs of a connection."""

    number: int
    state: str

    def tcp_info(self) -> bytes | None: ...


class TcpSampler:
    """Reads some connections at a time and adds up what they counted."""

    def __init__(self) -> None:
        self._turn = 0
        self._seen: dict[int, TcpInfo] = {}
        """Number of a connection -> what it said last."""
        self._totals: dict[str, float] = {}

    def read(self, connections: Mapping[int, _Numbered]) -> dict[str, float]:
        """Readings by canonical series; empty where there is nothing to read."""
        found: list[TcpInfo] = []
        for connection in self._chosen(connections):
            data = connection.tcp_info() if connection.state == "open" else None
            info = parse(data) if data is not None else None
            if info is not None:
                self._count(connection.number, info)
                found.append(info)
        if len(self._seen) > KEPT_MAX:
            alive = {connection.number for connection in connections.values()}
            self._seen = {number: info for number, info in self._seen.items() if number in alive}
        return {**_summary(found), **self._totals} if found else {}

    def _chosen(self, connections: Mapping[int, _Numbered]) -> Iterable[_Numbered]:
        if len(connections) <= SAMPLED_MAX:
            return connections.values()
        start = self._turn % len(connections)
        self._turn = start + SAMPLED_MAX
        chosen = list(islice(connections.values(), start, start + SAMPLED_MAX))
        return [*chosen, *islice(connections.values(), SAMPLED_MAX - len(chosen))]

    def _count(self, number: int, info: TcpInfo) -> None:
        before = self._seen.get(number)
        self._seen[number] = info
        for series, field in COUNTED.items():
            value = getattr(info, field)
            if value is not None:
                grown = value - (getattr(before, field) or 0 if before is not None else 0)
                self._totals[series] = self._totals.get(series, 0.0) + max(0, grown)


COUNTED = {
    "network.retransmits_total": "retransmits",
    "network.out_of_order_total": "out_of_order",
    "network.sent_bytes_total": "bytes_acked",
    "network.received_bytes_total": "bytes_received",
}


def _summary(found: list[TcpInfo]) -> dict[str, float]:
    rtt_s = sorted(info.rtt_s for info in found)
    readings = {
        "network.sampled_connections": float(len(found)),
        "network.rtt_s": _quantile(rtt_s, 0.5),
        "network.rtt_p95_s": _quantile(rtt_s, P95),
        "network.rtt_max_s": rtt_s[-1],
        "network.rtt_var_s": _quantile(sorted(info.rtt_var_s for info in found), 0.5),
        "network.lost_segments": float(sum(info.lost for info in found)),
        "network.unacked_segments": float(max(info.unacked for info in found)),
        "network.cwnd_segments": _quantile(sorted(float(info.cwnd) for info in found), 0.5),
        "network.reordering_segments": float(max(info.reordering for info in found)),
    }
    unsent = [info.unsent_bytes for info in found if info.unsent_bytes is not None]
    if unsent:
        readings["network.unsent_bytes"] = float(max(unsent))
    shortest = [info.rtt_min_s for info in found if info.rtt_min_s is not None]
    if shortest:
        readings["network.rtt_min_s"] = min(shortest)
    rates = sorted(float(info.delivery_bytes_per_s) for info in found if info.delivery_bytes_per_s is not None)
    if rates:
        readings["network.delivery_rate_bytes_per_s"] = _quantile(rates, 0.5)
    return readings


def _quantile(ordered: list[float], q: float) -> float:
    """The value that so large a share lies at or below; no library call, since this runs inside the loop."""
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)]
