"""A closed loop of non-streaming requests with aiohttp and uvloop: what a plain Python client can do.

    python bench/aiohttp_client.py URL CONNECTIONS REQUESTS

Needs `pip install aiohttp uvloop`. Prints one JSON line: requests, wall_s, latency p50_s and p99_s.
"""

import asyncio
import json
import sys
import time

import aiohttp
import uvloop

BODY = {"model": "m", "max_tokens": 200, "messages": [{"role": "user", "content": " the" * 100}]}


async def main(url: str, connections: int, requests: int) -> None:
    left = requests
    latencies_s: list[float] = []

    async def user(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began_s = time.perf_counter()
            async with session.post(f"{url}/v1/chat/completions", json=BODY) as response:
                answer = await response.json()
            latencies_s.append(time.perf_counter() - began_s)
            assert answer["usage"]["completion_tokens"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began_s = time.perf_counter()
        await asyncio.gather(*(user(session) for _ in range(connections)))
        wall_s = time.perf_counter() - began_s
    latencies_s.sort()
    at = {name: latencies_s[int(share * (len(latencies_s) - 1))] for name, share in (("p50_s", 0.5), ("p99_s", 0.99))}
    print(json.dumps({"requests": len(latencies_s), "wall_s": wall_s, **at}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
