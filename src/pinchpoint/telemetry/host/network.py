"""Network of the machine: interfaces, soft interrupts' queues, TCP, connection tracking.

Counters are those of the network namespace the reader is in (Documentation/networking/snmp_counter.rst).
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.kept_file import KeptFile, as_number, label, read_once

BYTES_PER_S_PER_MBIT = 125_000
"""/sys/class/net/NIC/speed is in Mbit/s."""
LOOK_AGAIN_S = 60.0
"""How often the speed of interfaces is read; it may take a lock of the driver."""
NIC_FIELDS = (
    (0, "host.net_rx_bytes_total"),
    (1, "host.net_rx_packets_total"),
    (2, "host.net_rx_errors_total"),
    (3, "host.net_rx_drops_total"),
    (8, "host.net_tx_bytes_total"),
    (9, "host.net_tx_packets_total"),
    (10, "host.net_tx_errors_total"),
    (11, "host.net_tx_drops_total"),
)
"""Place behind the name in a line of /proc/net/dev."""
RX_BYTES, TX_BYTES = 0, 8
TCP = {
    b"ActiveOpens": "host.tcp_opens_active_total",
    b"PassiveOpens": "host.tcp_opens_passive_total",
    b"CurrEstab": "host.tcp_connections",
    b"InSegs": "host.tcp_segments_received_total",
    b"OutSegs": "host.tcp_segments_sent_total",
    b"RetransSegs": "host.tcp_retransmits_total",
    b"OutRsts": "host.tcp_resets_sent_total",
}
TCP_EXTENDED = {
    b"SyncookiesSent": "host.syncookies_sent_total",
    b"ListenOverflows": "host.listen_overflows_total",
    b"ListenDrops": "host.listen_drops_total",
    b"TCPTimeouts": "host.tcp_timeouts_total",
    b"TCPRcvQDrop": "host.tcp_receive_dropped_total",
    b"TCPMemoryPressures": "host.tcp_memory_pressures_total",
    b"TCPTimeWaitOverflow": "host.tcp_time_wait_overflows_total",
}
SOFTNET = (
    (0, "host.softnet_processed_total"),
    (1, "host.softnet_dropped_total"),
    (2, "host.softnet_squeezed_total"),
)
"""Place in a line of /proc/net/softnet_stat, one line a core, numbers in hexadecimal."""
FLOWS = {
    b"drop": "host.conntrack_drops_total",
    b"early_drop": "host.conntrack_early_drops_total",
    b"insert_failed": "host.conntrack_insert_failures_total",
}
SOCKETS = {
    (b"TCP:", b"inuse"): "host.tcp_sockets",
    (b"TCP6:", b"inuse"): "host.tcp_sockets",
    (b"TCP:", b"orphan"): "host.tcp_orphan_sockets",
    (b"TCP:", b"tw"): "host.tcp_time_wait_sockets",
    (b"TCP:", b"alloc"): "host.tcp_allocated_sockets",
}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Network:
    def __init__(self, proc: Path, sys: Path) -> None:
        net, netfilter = proc / "net", proc / "sys" / "net" / "netfilter"
        self._dev = KeptFile(net / "dev")
        self._snmp = KeptFile(net / "snmp")
        self._netstat = KeptFile(net / "netstat")
        self._softnet = KeptFile(net / "softnet_stat")
        self._sockstat = (KeptFile(net / "sockstat"), KeptFile(net / "sockstat6"))
        self._flows = KeptFile(net / "stat" / "nf_conntrack")
        self._flow_count = KeptFile(netfilter / "nf_conntrack_count")
        self._flow_limit = KeptFile(netfilter / "nf_conntrack_max")
        self._speeds = _Speeds(sys / "class" / "net")

    def read(self, now_ns: int) -> list[Reading]:
        readings = parse_dev(self._dev.read())
        readings += self._speeds.read(now_ns)
        readings += parse_counters(self._snmp.read(), b"Tcp:", TCP)
        readings += parse_counters(self._netstat.read(), b"TcpExt:", TCP_EXTENDED)
        readings += parse_softnet(self._softnet.read())
        readings += parse_sockstat(b"\n".join(file.read() for file in self._sockstat))
        readings += parse_flows(self._flows.read())
        for file, series in ((self._flow_count, "host.conntrack_entries"), (self._flow_limit, "host.conntrack_limit")):
            number = file.number()
            if number is not None:
                readings.append(own(series, number))
        return readings


class _Speeds:
    """Line speed of interfaces that have one, read rarely and told with every reading."""

    def __init__(self, interfaces: Path) -> None:
        self._interfaces = interfaces
        self._looked_ns: int | None = None
        self._told: list[Reading] = []

    def read(self, now_ns: int) -> list[Reading]:
        if self._looked_ns is None or now_ns - self._looked_ns >= LOOK_AGAIN_S * NS_PER_S:
            self._looked_ns = now_ns
            self._told = []
            try:
                names = sorted(os.listdir(self._interfaces))  # noqa: PTH208 - names are wanted
            except OSError:
                names = []
            for name in names:
                speed = as_number(read_once(self._interfaces / name / "speed"))
                if speed is not None and speed > 0:  # -1: unknown, as virtual machines have it
                    value = speed * BYTES_PER_S_PER_MBIT
                    self._told.append(own("host.nic_speed_bytes_per_s", value, label("nic", name)))
        return self._told


def parse_dev(text: bytes) -> list[Reading]:
    """Counters of interfaces that were ever used, of /proc/net/dev."""
    readings: list[Reading] = []
    for line in text.splitlines():
        name, colon, rest = line.rpartition(b":")
        words = rest.split()
        if not colon or len(words) <= NIC_FIELDS[-1][0] or words[RX_BYTES] == b"0" == words[TX_BYTES]:
            continue
        nic = label("nic", name.strip().decode("utf-8", "replace"))
        readings += [own(series, float(words[place]), nic) for place, series in NIC_FIELDS]
    return readings


def parse_counters(text: bytes, protocol: bytes, wanted: Mapping[bytes, str]) -> list[Reading]:
    """Named counters of /proc/net/snmp or netstat: a line of names, then a line of values, both with the protocol."""
    lines = [line.split() for line in text.splitlines() if line.startswith(protocol)]
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if len(names) == len(values):
            return [own(wanted[n], float(v)) for n, v in zip(names, values, strict=True) if n in wanted]
    return []


def parse_softnet(text: bytes) -> list[Reading]:
    """Sums over cores."""
    lines = [line.split() for line in text.splitlines()]
    lines = [words for words in lines if len(words) > SOFTNET[-1][0]]
    return [own(series, float(sum(int(words[n], 16) for words in lines))) for n, series in SOFTNET] if lines else []


def parse_sockstat(text: bytes) -> list[Reading]:
    """Of /proc/net/sockstat and sockstat6 together: the kernel counts sockets of IPv6 apart."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        protocol, *words = line.split() or [b""]
        for name, value in zip(words[::2], words[1::2], strict=False):
            if (protocol, name) == (b"TCP:", b"mem"):
                found["host.tcp_memory_bytes"] = int(value) * float(PAGE_BYTES)
            elif series := SOCKETS.get((protocol, name)):
                found[series] = found.get(series, 0.0) + int(value)
    return [own(series, value) for series, value in found.items()]


def parse_flows(text: bytes) -> list[Reading]:
    """Troubles of connection tracking, summed over cores, of /proc/net/stat/nf_conntrack (hexadecimal)."""
    header, *lines = [line.split() for line in text.splitlines()] or [[]]
    rows = [words for words in lines if len(words) == len(header)]
    if not rows:
        return []
    places = [(n, FLOWS[name]) for n, name in enumerate(header) if name in FLOWS]
    return [own(series, float(sum(int(words[place], 16) for words in rows))) for place, series in places]
