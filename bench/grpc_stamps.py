"""How late the user-space stamps of gRPC messages are: a server writes its send time into each of them.

    python bench/grpc_stamps.py [--messages N]

The server is a process of its own, grpcio's own for asyncio. The distance from its write to our stamp holds its way
out, the loopback and our way in, so it bounds the error of the stamp from above. Nothing else should run meanwhile.
"""

import argparse
import asyncio
import select
import struct
import subprocess
import sys
import time
from typing import Any

import grpc
import grpc.aio
import numpy as np

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.rpc import CallEnd, Rpc
from pinchpoint.load.wire import resolve

ASK = struct.Struct("<id")
"""Messages, and seconds between them."""
WRITTEN = struct.Struct("<q")
STREAMS = ((1, 0.02), (10, 0.02), (50, 0.05), (100, 0.05))
"""Streams at one time, and seconds between the messages of each."""
CALLS, CALLS_AT_ONCE = 4000, 50
PATIENCE_S = 60.0
NS_PER_US = 1000


class _Server(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        async def one(body: bytes, _: Any) -> bytes:
            return WRITTEN.pack(monotonic_ns())

        async def many(body: bytes, _: Any) -> Any:
            count, gap_s = ASK.unpack(body)
            for _ in range(count):
                yield WRITTEN.pack(monotonic_ns())
                await asyncio.sleep(gap_s)

        if handler_call_details.method.endswith("/one"):
            return grpc.unary_unary_rpc_method_handler(one)
        return grpc.unary_stream_rpc_method_handler(many)


async def serve() -> None:
    server = grpc.aio.server(handlers=[_Server()])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


def late_ns(rpc: Rpc, streams: int, messages: int, gap_s: float) -> np.ndarray:
    """Stamp less write, of every message."""
    late: list[int] = []
    for _ in range(streams):  # spread over one gap
        rpc.send("/bench/many", ASK.pack(messages, gap_s), streaming=True, timeout_s=PATIENCE_S)
        time.sleep(gap_s / streams)
    ended = 0
    while ended < streams:
        select.select([rpc.fd], [], [], 1.0)
        for event in rpc.take():
            if event.kind == "message":
                late.append(event.stamp_ns - WRITTEN.unpack(event.payload)[0])
            elif isinstance(event.payload, CallEnd):
                assert event.payload.code == "OK", event.payload
                ended += 1
    return np.asarray(late)


def calls_per_s(rpc: Rpc) -> float:
    begun_ns, sent, ended = monotonic_ns(), 0, 0
    while ended < CALLS:
        while sent < CALLS and sent - ended < CALLS_AT_ONCE:
            rpc.send("/bench/one", b"", timeout_s=PATIENCE_S)
            sent += 1
        select.select([rpc.fd], [], [], 1.0)
        ended += sum(event.kind == "end" for event in rpc.take())
    return CALLS * NS_PER_S / (monotonic_ns() - begun_ns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200, help="of each stream")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        rpc = Rpc([resolve(f"grpc://127.0.0.1:{int(server.stdout.readline())}")])
        print(f"unary: {calls_per_s(rpc):.0f} calls/s, {CALLS_AT_ONCE} at a time")
        print("streams  messages/s  write to stamp: p50      p99      max")
        for streams, gap_s in STREAMS:
            late = late_ns(rpc, streams, args.messages, gap_s) / NS_PER_US
            p50, p99 = np.quantile(late, (0.5, 0.99))
            print(f"{streams:7}  {streams / gap_s:10.0f}  {p50:17.0f} µs {p99:5.0f} µs {late.max():5.0f} µs")
        rpc.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
