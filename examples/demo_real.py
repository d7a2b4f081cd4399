"""The main job against a real engine, twice: llama.cpp with one sequence slot, then with eight.

    make demo-real

With one slot the answer is the slot cap, and the remedy names llama.cpp's flag. With eight slots on the same few cores
the slots are no longer what gives way first: each further stream slows the others.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

SERVER = Path(__file__).with_name("llama_server.py")
STOP_TIMEOUT_S = 5.0


def run_against(slots: int, budget: str) -> int:
    """Starts the server, runs `pinchpoint run` against it, stops it. Returns the exit code of the run."""
    server = subprocess.Popen(
        [sys.executable, str(SERVER), "--slots", str(slots), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = next((line for line in server.stdout if line.startswith('{"url"')), None)
        if line is None:
            sys.exit(
                f"llama.cpp ended before it listened (exit code {server.wait()}); examples/llama_server.py tells why"
            )
        url = json.loads(line)["url"]
        print(f"llama.cpp serves at {url} with {slots} sequence slot{'s' if slots > 1 else ''}.", flush=True)
        print(f"Running: pinchpoint run {url} --workload chat-short --budget {budget}\n", flush=True)
        command = [sys.executable, "-m", "pinchpoint", "run", url, "--workload", "chat-short", "--budget", budget]
        return subprocess.run(command, check=False).returncode
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--budget", default="2m")
    arguments = parser.parse_args()
    for slots in arguments.slots:
        code = run_against(slots, arguments.budget)
        if code != 0:
            sys.exit(code)
        print(flush=True)


if __name__ == "__main__":
    main()
