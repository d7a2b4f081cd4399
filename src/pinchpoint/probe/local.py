"""Which processes of this host listen on the target's port, so that they can be watched under load."""

import ipaddress
import socket
from collections.abc import Iterable

import psutil

from pinchpoint.probe.address import Address

CONTAINER_PROXIES = ("docker-proxy", "rootlessport", "slirp4netns", "pasta")
ANY_ADDRESS = ("0.0.0.0", "::")


def listening_pids(address: Address) -> tuple[tuple[int, ...], str | None]:
    """Pids, ascending, and a sentence when there is something to know; no pids means not local or not visible."""
    targets = _addresses(address)
    if not _any_own(targets):
        return (), f"server processes: {address.host} is another machine; run a collector there to watch them"
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.Error:
        return (), "server processes: this system does not let your user list sockets; run as root to watch them"
    accepting = {str(target) for target in targets} | set(ANY_ADDRESS)
    pids: set[int] = set()
    hidden = False
    for entry in sockets:
        if entry.status != psutil.CONN_LISTEN or not entry.laddr or entry.laddr.port != address.port:
            continue
        if entry.laddr.ip.removeprefix("::ffff:") not in accepting:
            continue
        if entry.pid is None:
            hidden = True
        else:
            pids.add(entry.pid)
    if not pids:
        who = "a process of another user or container" if hidden else "no process that can be seen from here"
        return (), f"server processes: {who} listens on port {address.port}; run as its user or as root to watch it"
    if any(_name(pid) in CONTAINER_PROXIES for pid in pids):
        return tuple(sorted(pids)), (
            f"server processes: what listens on port {address.port} is a container's port forwarder, so CPU readings "
            "are of it and not of the service"
        )
    return tuple(sorted(pids)), None


def is_this_machine(address: Address) -> bool:
    """Whether the address leads to this machine, by loopback or by one of its own addresses."""
    return _any_own(_addresses(address))


def _any_own(targets: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    own = _own_addresses()
    return any(target.is_loopback or target in own for target in targets)


def _addresses(address: Address) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found}


def _own_addresses() -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        ipaddress.ip_address(entry.address.partition("%")[0])
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in families
    }


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return ""
