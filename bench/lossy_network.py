"""What the network series say of a way whose delay and loss are known: a check of the measurement, as root.

    sudo python bench/lossy_network.py [--delay-ms 25] [--loss-ratio 0.05] [--seconds 20]

Two network namespaces are joined by a pair of TUN devices, and this program carries every packet from one to the
other: late by the delay, and not at all with the given probability, in each direction. TCP at both ends is the
kernel's. A null server answers in one namespace, `pinchpoint load` runs in the other. It is what tc netem does, on
kernels that lack it.
"""

import argparse
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pinchpoint.rundir import read_run
from pinchpoint.series import RunView

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
MTU_BYTES = 1500
SIDES = (("pp-client", "ppc0", "10.78.0.1"), ("pp-server", "pps0", "10.78.0.2"))
SHOWN = (
    ("network.rtt_s", 1e3, "ms"),
    ("network.rtt_p95_s", 1e3, "ms"),
    ("network.rtt_min_s", 1e3, "ms"),
    ("network.rtt_var_s", 1e3, "ms"),
    ("network.delivery_rate_bytes_per_s", 1e-3, "kB/s"),
)
COUNTED = ("network.retransmits_total", "network.out_of_order_total", "client.tcp_retransmits_total")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def carry(fds: tuple[int, int], delay_s: float, loss_ratio: float, stop: threading.Event, counts: list[int]) -> None:
    """Packets of each device to the other. counts: carried, lost."""
    chance, waiting, number = random.Random(1), [], 0
    while not stop.is_set():
        wait_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
        for fd in select.select(fds, [], [], wait_s)[0]:
            packet = os.read(fd, MTU_BYTES + 100)
            if chance.random() < loss_ratio:
                counts[1] += 1
                continue
            counts[0] += 1
            number += 1
            heapq.heappush(waiting, (time.monotonic() + delay_s, number, fds[1 - fds.index(fd)], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(waiting)
            try:
                os.write(to, packet)
            except BlockingIOError:
                counts[1] += 1


def run(seconds: int, out: Path) -> None:
    client, server = SIDES
    python = [sys.executable, "-m"]
    command = ["ip", "netns", "exec", server[0], *python, "pinchpoint.load.null_server", "--host", server[2]]
    with subprocess.Popen(
        [*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None and service.stdin is not None
        url = f"http://{server[2]}:{service.stdout.readline().split()[-1]}"
        load = ["pinchpoint", "load", url, "--model", "null", "--api", "chat", "--rate", "20", "--force"]
        words = ["--duration", f"{seconds}s", "--input-tokens", "500", "--output-tokens", "50", "--out", str(out)]
        subprocess.run(
            ["ip", "netns", "exec", client[0], *python, *load, *words, "--workers", "1"],
            check=False,
            stdout=subprocess.DEVNULL,
        )
        service.stdin.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay-ms", type=float, default=25.0, help="of each direction")
    parser.add_argument("--loss-ratio", type=float, default=0.05, help="of each direction")
    parser.add_argument("--seconds", type=int, default=20)
    asked = parser.parse_args()
    stop, counts = threading.Event(), [0, 0]
    way: threading.Thread | None = None
    fds = (tun(SIDES[0][1]), tun(SIDES[1][1]))
    try:
        for namespace, device, address in SIDES:
            ip("netns", "add", namespace)
            ip("link", "set", device, "netns", namespace)
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        way = threading.Thread(target=carry, args=(fds, asked.delay_ms / 1e3, asked.loss_ratio, stop, counts))
        way.start()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            run(asked.seconds, out)
            view = RunView(read_run(out))
            print(f"way: {2 * asked.delay_ms:g} ms and back, {asked.loss_ratio:.0%} lost each way")
            print(f"carried {counts[0]} packets, lost {counts[1]}")
            for name, factor, unit in SHOWN:
                value = sorted(view.series(name).value)
                print(f"{name:36} {value[len(value) // 2] * factor:8.1f} {unit} (median of {len(value)} readings)")
            for name in COUNTED:
                value = view.series(name).value
                print(f"{name:36} {value[-1] - (0 if name.startswith('network') else value[0]):8.0f}")
    finally:
        stop.set()
        if way is not None:
            way.join()
        for fd in fds:
            os.close(fd)
        for namespace, _, _ in SIDES:
            subprocess.run(["ip", "netns", "del", namespace], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
