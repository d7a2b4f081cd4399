"""TCP sockets one by one: how many are in which state, and how many local ports the busiest destination has taken.

This is the one reading whose cost grows with the machine's connections, so it paces itself: what a walk has cost
decides when the next one may be. Source: /proc/net/tcp and tcp6 (proc(5)); the states are those of
include/net/tcp_states.h.
"""

import time
from collections import Counter
from pathlib import Path

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.kept_file import KeptFile, label

PERIOD_S = 5.0
"""Between two walks, when they are cheap."""
MAX_SHARE = 1 / 500
"""Of one core: what walks may cost."""
LISTEN = b"0A"
STATES = {
    b"01": "established",
    b"02": "syn_sent",
    b"03": "syn_recv",
    b"04": "fin_wait1",
    b"05": "fin_wait2",
    b"06": "time_wait",
    b"07": "close",
    b"08": "close_wait",
    b"09": "last_ack",
    LISTEN: "listen",
    b"0B": "closing",
    b"0C": "new_syn_recv",
}


class Sockets:
    def __init__(self, proc: Path) -> None:
        self._files = (KeptFile(proc / "net" / "tcp"), KeptFile(proc / "net" / "tcp6"))
        self._range = KeptFile(proc / "sys" / "net" / "ipv4" / "ip_local_port_range")
        self._due_ns = 0
        self._told: list[Reading] = []

    def read(self, now_ns: int) -> list[Reading]:
        """Between two walks the same again, so that a series does not come and go."""
        if now_ns < self._due_ns:
            return self._told
        began_ns = time.thread_time_ns()
        self._told = parse_sockets([file.read() for file in self._files], port_range(self._range.read()))
        cost_ns = time.thread_time_ns() - began_ns
        self._due_ns = now_ns + int(max(PERIOD_S * NS_PER_S, cost_ns / MAX_SHARE))
        return self._told


def port_range(text: bytes) -> tuple[int, int] | None:
    """First and last local port for outgoing connections."""
    words = text.split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else None


def parse_sockets(tables: list[bytes], ports: tuple[int, int] | None) -> list[Reading]:
    """Empty when the system shows no table at all."""
    states: Counter[bytes] = Counter()
    local_ports: dict[bytes, set[bytes]] = {}
    shown = False
    for table in tables:
        lines = table.splitlines()
        shown = shown or bool(lines)
        for line in lines[1:]:
            words = line.split(maxsplit=4)
            if len(words) < 4:
                continue
            _, local, remote, state = words[:4]
            states[state] += 1
            if state != LISTEN:
                local_ports.setdefault(remote, set()).add(local[-4:])
    if not shown:
        return []
    readings = [
        own("host.tcp_state_sockets", float(count), label("state", STATES.get(state, state.decode("ascii", "replace"))))
        for state, count in sorted(states.items())
    ]
    if ports is not None:
        first, last = ports
        used = (sum(first <= int(port, 16) <= last for port in taken) for taken in local_ports.values())
        readings.append(own("host.ports_used", float(max(used, default=0))))
    return readings
