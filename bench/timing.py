"""How true the load engine's instants are, and what a token costs it, on this host.

    make bench                                  or
    python bench/timing.py --streams 50 400 --tokens 200 --gap-ms 10

Starts the null server, which writes into every token when it was sent, runs a closed loop of so many streams in this
process, and compares. Prints one JSON line per number of streams:

    cpu_us_per_token      user and system time of this process per token, parsing included
    arrival_error_us      kernel stamp minus the server's own send instant, p50 and p99 (includes the kernel's path)
    ttft_error_us         the same for first tokens
    coalesced_ratio       share of tokens that came in one read with a later one
    send_lag_us           sent minus due
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Intent
from pinchpoint.load.null_server import STAMP
from pinchpoint.load.wire import resolve
from pinchpoint.targets.openai import Chunk, parse_answer, parse_event


class StampReader:
    """A target whose tokens say when they were sent; keeps those instants in order per exchange."""

    path = "/v1/chat/completions"

    def __init__(self) -> None:
        self.sent_ns: list[int] = []

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if match := STAMP.search(data):
            self.sent_ns.append(int(match[1]))
        return parse_event(event, data)

    def parse_answer(self, body: bytes) -> Chunk:
        return parse_answer(body)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def microseconds(values_ns: list[int]) -> dict[str, float]:
    array = np.asarray(values_ns) / 1e3
    return {name: round(float(np.percentile(array, q)), 1) for name, q in (("p50", 50), ("p99", 99))}


def measure(url: str, streams: int, tokens: int, requests: int) -> dict:
    reader = StampReader()
    arrival_errors, ttft_errors, lags = [], [], []
    coalesced = events = 0
    failures: dict[str, int] = {}

    def on_done(exchange: Exchange, stage: int) -> None:
        nonlocal coalesced, events
        sent_ns, reader.sent_ns = reader.sent_ns, []
        if exchange.status != "ok":
            failures[exchange.status or "?"] = failures.get(exchange.status or "?", 0) + 1
            return
        stamps = by_exchange.pop(id(exchange), []) + sent_ns
        arrival_errors.extend(a - b for a, b in zip(exchange.chunk_ns, stamps, strict=False))
        coalesced += exchange.coalesced_count
        events += len(exchange.chunk_ns)
        lags.append((exchange.sent_ns or 0) - exchange.scheduled_ns)
        if stamps and exchange.first_token_ns:
            ttft_errors.append(exchange.first_token_ns - stamps[0])

    by_exchange: dict[int, list[int]] = {}
    original = Exchange.advance

    def advance(self: Exchange) -> None:
        """Keeps the instants of each exchange apart: events of several are parsed in one round."""
        before, reader.sent_ns = reader.sent_ns, []
        original(self)
        by_exchange.setdefault(id(self), []).extend(reader.sent_ns)
        reader.sent_ns = before

    Exchange.advance = advance  # type: ignore[method-assign]
    try:
        issuer = Issuer(resolve(url), reader, on_done)
        turns = max(1, requests // streams)
        intents = [
            Intent(user * turns + turn, user, None, 0, 10, tokens, b'{"stream":true,"max_tokens":%d}' % tokens)
            for turn in range(turns)
            for user in range(streams)
        ]
        used_s, started_s = cpu_s(), time.monotonic()
        issuer.start(0, monotonic_ns(), intents)
        while len(lags) + sum(failures.values()) < len(intents) and time.monotonic() - started_s < 120:
            issuer.run_once(monotonic_ns() + NS_PER_S // 20)
        wall_s, used_s = time.monotonic() - started_s, cpu_s() - used_s
        issuer.close()
    finally:
        Exchange.advance = original  # type: ignore[method-assign]
    return {
        "streams": streams,
        "requests": len(lags),
        "failures": failures,
        "tokens_per_s": round(events / wall_s),
        "cpu_ratio": round(used_s / wall_s, 3),
        "cpu_us_per_token": round(used_s / max(events, 1) * 1e6, 1),
        "arrival_error_us": microseconds(arrival_errors),
        "ttft_error_us": microseconds(ttft_errors),
        "coalesced_ratio": round(coalesced / max(events, 1), 4),
        "send_lag_us": microseconds(lags),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="*", default=[50, 200, 400])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3, help="requests per stream")
    arguments = parser.parse_args()
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pinchpoint.load.null_server",
            "--tokens",
            str(arguments.tokens),
            "--gap-ms",
            str(arguments.gap_ms),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        print(json.dumps({"cpus": os.cpu_count(), "python": sys.version.split()[0]}), flush=True)
        for streams in arguments.streams:
            print(json.dumps(measure(url, streams, arguments.tokens, streams * arguments.rounds)), flush=True)
    finally:
        server.terminate()
        server.wait(5)


if __name__ == "__main__":
    main()
