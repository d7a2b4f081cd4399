"""How much memory a run takes by the number of its tokens: written, sealed and judged in a process each.

    python bench/memory.py --requests 50000 --tokens 200
    python bench/memory.py --requests 500 --tokens 20000

The writer hands over one request at a time, as a load process does, with the arrivals as a list of Python ints. Prints
one JSON line per process:

    peak_mib           most memory that was resident (VmHWM of /proc/self/status)
    seconds            time of the work, without the start of Python
    ns_per_token       processor time that PartWriter took
    bytes_per_token    of records.parquet
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NS_PER_S = 1_000_000_000
MIB = 1 << 20
T0_NS = 1_000 * NS_PER_S
GAP_NS = 20_000_000
"""Between two tokens: 50 tokens/s, as a busy engine gives to one stream."""
STAGE_NS = 600 * NS_PER_S
SLOS = ("ttft p95 < 500ms", "tpot p95 < 50ms", "itl p99 < 200ms", "errors < 1%")


def peak_bytes() -> int:
    """Most memory that was resident in this process so far. What a parent had before an exec does not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def write(path: Path, requests: int, tokens: int) -> dict[str, float]:
    """An unsealed run of one stage, with `requests` streams of `tokens` tokens."""
    from pinchpoint.model import FORMAT_VERSION, RECORD_COLUMNS, Manifest, Stage, TargetFacts
    from pinchpoint.rundir import RunWriter
    from pinchpoint.slo import parse_slos

    rng = random.Random(1)
    rate_rps = requests / (STAGE_NS / NS_PER_S)
    stage = Stage(0, "load", "load", T0_NS, T0_NS + STAGE_NS, T0_NS + STAGE_NS + tokens * GAP_NS, 0, rate_rps)
    manifest = Manifest(
        FORMAT_VERSION, path.name, "0", "running", None, "", T0_NS, False, 1, {}, TargetFacts("http://127.0.0.1"),
        parse_slos(SLOS), False, [stage], {}, {}, {},
    )  # fmt: skip
    part = RunWriter(path, manifest).part("records", "0")
    writing_s = 0.0
    began_s = time.perf_counter()
    for i in range(requests):
        at_ns = T0_NS + STAGE_NS * i // requests
        now_ns = at_ns + 50_000_000
        chunk_ns: list[int] = []
        for _ in range(tokens):
            now_ns += int(GAP_NS * rng.random() * 2)
            chunk_ns.append(now_ns)
        values = {
            "request_id": i,
            "stage": 0,
            "worker": 0,
            "scheduled_ns": at_ns,
            "sent_ns": at_ns + 50_000,
            "headers_ns": chunk_ns[0],
            "first_byte_ns": chunk_ns[0],
            "first_token_ns": chunk_ns[0],
            "first_content_ns": chunk_ns[0],
            "last_token_ns": chunk_ns[-1],
            "end_ns": chunk_ns[-1],
            "chunk_ns": chunk_ns,
            "coalesced_count": 0,
            "timestamp_source": "kernel",
            "timestamp_error_ns": 10_000,
            "chunk_error_ns": 10_000,
            "input_tokens": 200,
            "output_tokens": tokens,
            "token_source": "usage",
            "requested_input_tokens": 200,
            "requested_output_tokens": tokens,
            "bytes_in": 200 * tokens,
            "http_status": 200,
            "status": "ok",
            "finish_reason": "length",
            "connection_id": i % 100,
            "attempts": 1,
        }
        row = [tuple(values.get(name) for name in RECORD_COLUMNS)]
        before_s = time.process_time()
        part.append(row)
        writing_s += time.process_time() - before_s
    part.close()
    seconds = time.perf_counter() - began_s
    return {"seconds": round(seconds, 2), "ns_per_token": round(writing_s / requests / tokens * 1e9, 1)}


def seal(path: Path, requests: int, tokens: int) -> dict[str, float]:
    from pinchpoint.rundir import seal_unsealed

    began_s = time.perf_counter()
    seal_unsealed(path)
    seconds = time.perf_counter() - began_s
    size = (path / "records.parquet").stat().st_size
    return {"seconds": round(seconds, 2), "bytes_per_token": round(size / requests / tokens, 2)}


def judge(path: Path, requests: int, tokens: int) -> dict[str, float]:
    from pinchpoint.conclude import judge_directory, write_answer

    began_s = time.perf_counter()
    view, verdict = judge_directory(path)
    judged_s = time.perf_counter() - began_s
    write_answer(view, verdict)
    return {"seconds": round(judged_s, 2), "seconds_with_report": round(time.perf_counter() - began_s, 2)}


WORKS = {"write": write, "seal": seal, "judge": judge}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=200, help="per request")
    parser.add_argument("--work", nargs=2, metavar=("WORK", "DIRECTORY"), help="one process's part; for the script")
    given = parser.parse_args()
    if given.work:
        work, directory = given.work
        result = WORKS[work](Path(directory), given.requests, given.tokens)
        print(json.dumps({"work": work, **result, "peak_mib": round(peak_bytes() / MIB)}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for work in WORKS:
            words = ["--requests", str(given.requests), "--tokens", str(given.tokens), "--work", work, f"{folder}/run"]
            ended = subprocess.run([sys.executable, __file__, *words], check=False)
            if ended.returncode:
                return ended.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
