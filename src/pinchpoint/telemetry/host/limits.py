"""Limits of the kernel that decide how many connections and files fit: read rarely, told with every reading."""

import resource
from pathlib import Path

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.host.sockets import port_range
from pinchpoint.telemetry.kept_file import KeptFile, as_number, read_once

PERIOD_S = 60.0
SETTINGS = {
    "net/core/somaxconn": "host.accept_queue_limit",
    "net/core/netdev_max_backlog": "host.receive_queue_limit",
    "net/ipv4/tcp_max_syn_backlog": "host.syn_queue_limit",
    "net/ipv4/tcp_tw_reuse": "host.tcp_tw_reuse",
    "vm/swappiness": "host.swappiness",
}
UNLIMITED = 1 << 62
"""Kernels say "no limit" on open files of the machine with a number near 2^63."""


class Limits:
    def __init__(self, proc: Path) -> None:
        self._settings = proc / "sys"
        self._files = KeptFile(proc / "sys" / "fs" / "file-nr")
        self._read_ns: int | None = None
        self._told: list[Reading] = []

    def read(self, now_ns: int) -> list[Reading]:
        if self._read_ns is None or now_ns - self._read_ns >= PERIOD_S * NS_PER_S:
            self._read_ns = now_ns
            self._told = self._limits()
        return self._told + parse_file_nr(self._files.read())

    def _limits(self) -> list[Reading]:
        told: list[Reading] = []
        for file, series in SETTINGS.items():
            number = as_number(read_once(self._settings / file))
            if number is not None:
                told.append(own(series, number))
        ports = port_range(read_once(self._settings / "net" / "ipv4" / "ip_local_port_range"))
        if ports is not None:
            told.append(own("host.ports_available", float(ports[1] - ports[0] + 1)))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            told.append(own("host.process_open_files_limit", float(soft)))
        return told


def parse_file_nr(text: bytes) -> list[Reading]:
    """Open files of the machine and their limit, of /proc/sys/fs/file-nr; a limit nobody can reach is left out."""
    words = text.split()
    if len(words) != 3:
        return []
    readings = [own("host.open_files", float(words[0]))]
    limit = int(words[2])
    return readings if limit > UNLIMITED else [*readings, own("host.open_files_limit", float(limit))]
