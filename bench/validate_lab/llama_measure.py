"""Closed-loop curves of llama.cpp's server on this machine, measured with `pinchpoint load`.

Needs the real engine (`make real`). Takes about eight minutes on two quiet cores. Writes data/llama_cpp.csv, one row per
request, which the page is made from where the engine is not installed.
"""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.real_engines import llama

RECORDED = Path(__file__).parent / "data" / "llama_cpp.csv"
FIELDS = (
    "slots", "concurrency", "prompt_tokens", "cached_tokens", "output_tokens", "sent_s", "ttft_s", "tpot_s", "latency_s"
)  # fmt: skip
LEVELS = {1: (1, 2, 4), 2: (1, 2, 4, 8), 4: (1, 2, 4, 8)}
"""Concurrencies for each number of slots: below it, at it and above it."""
CHAT, LONG_ANSWER, LONG_PROMPT = (128, 64), (32, 128), (512, 32)
"""Prompt and answer tokens. Only CHAT is used to calibrate."""
OTHER_LEVELS = ((2, 1, LONG_ANSWER), (2, 2, LONG_ANSWER), (4, 4, LONG_ANSWER), (1, 1, LONG_PROMPT), (2, 2, LONG_PROMPT))
ROUNDS = 4
"""Requests per user of the closed loop; at least MIN_REQUESTS in a level."""
MIN_REQUESTS = 8
LOAD_LIMIT_S = 300
NS_PER_S = 1e9


def measure() -> None:
    """Starts the server once for each number of slots and writes RECORDED."""
    rows: list[dict[str, float]] = []
    for slots, concurrencies in LEVELS.items():
        with llama(slots) as url:
            _level(url, 1, CHAT, requests=2)  # the first requests load pages of the weights
            levels = [(c, CHAT) for c in concurrencies]
            levels += [(c, lengths) for of, c, lengths in OTHER_LEVELS if of == slots]
            for concurrency, lengths in levels:
                load = os.getloadavg()[0]
                for row in _level(url, concurrency, lengths, requests=max(MIN_REQUESTS, ROUNDS * concurrency)):
                    rows.append({"slots": slots, "concurrency": concurrency, **row})
                print(f"slots {slots}, {concurrency} users, {lengths}: load average before {load:.2f}", flush=True)
    with RECORDED.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _level(url: str, concurrency: int, lengths: tuple[int, int], requests: int) -> Iterator[dict[str, float]]:
    prompt_tokens, output_tokens = lengths
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        command = [
            sys.executable, "-m", "pinchpoint", "load", url, "--json", "--force", "--out", out, "--workers", 1,
            "--concurrency", concurrency, "--requests", requests, "--seed", 100 * prompt_tokens + concurrency,
            "--input-tokens", prompt_tokens, "--output-tokens", output_tokens,
        ]  # fmt: skip
        subprocess.run(list(map(str, command)), capture_output=True, check=True, timeout=LOAD_LIMIT_S)
        records = pq.read_table(out / "records.parquet").to_pylist()
    records.sort(key=lambda record: record["sent_ns"])
    origin_ns = records[0]["sent_ns"]
    for record in records:
        if record["status"] != "ok" or record["output_tokens"] < 2:
            continue
        first_ns, last_ns, sent_ns = record["first_token_ns"], record["last_token_ns"], record["sent_ns"]
        yield {
            "prompt_tokens": record["input_tokens"],
            "cached_tokens": record["cached_tokens"] or 0,
            "output_tokens": record["output_tokens"],
            "sent_s": round((sent_ns - origin_ns) / NS_PER_S, 4),
            "ttft_s": round((first_ns - sent_ns) / NS_PER_S, 4),
            "tpot_s": round((last_ns - first_ns) / NS_PER_S / (record["output_tokens"] - 1), 5),
            "latency_s": round((record["end_ns"] - sent_ns) / NS_PER_S, 4),
        }
