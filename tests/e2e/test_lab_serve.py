"""`pinchpoint lab serve` as a user runs it: a process, its ports, its flags, its last words."""

import gzip
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PINCHPOINT = (sys.executable, "-m", "pinchpoint")
LIMIT_S = 60.0


def fetch(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=LIMIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Serve:
    def __init__(self, *words: object) -> None:
        command = [*PINCHPOINT, "lab", "serve", "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = self.process.stdout

    def document(self) -> dict[str, Any]:
        text = ""
        for line in self.lines:
            text += line
            if line.startswith("}"):
                return json.loads(text)
        raise AssertionError(f"the lab did not start: {self.process.communicate()}")

    def stop(self) -> str:
        """What it said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0
        return errors


CHAT = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 3, "stream": True}


def test_every_flag_of_the_server_changes_what_it_says(tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    traces = tmp_path / "traces"
    lab = Serve(
        "--json",
        *("--fault", "slot-cap", "--severity", "severe", "--onset", "300s", "--seed", 4, "--truth-file", truth),
        *("--gpu", "H200", "--model", "qwen2.5-7b", "--dialect", "sglang", "--set", "max_num_batched_tokens=4096"),
        *("--dcgm-port", 0, "--node-port", 0, "--profile-dir", traces),
    )
    told = lab.document()
    try:
        assert set(told) == {"schema", "url", "dcgm_url", "node_url"}
        url = told["url"]
        status, info = fetch(url + "/get_server_info")
        assert status == 200
        assert (json.loads(info)["model_path"], json.loads(info)["chunked_prefill_size"]) == ("qwen2.5-7b", 4096)
        assert fetch(url + "/start_profile", {}) == (200, "Start profiling.\n")
        status, stream = fetch(url + "/v1/chat/completions", {"model": "qwen2.5-7b", **CHAT})
        assert status == 200 and stream.endswith("data: [DONE]\n\n")
        assert fetch(url + "/stop_profile", {})[0] == 200
        (file,) = traces.iterdir()
        trace = json.loads(gzip.decompress(file.read_bytes()))
        assert trace["deviceProperties"][0]["name"] == "NVIDIA H200"
        assert "sglang:" in fetch(url + "/metrics")[1]
        assert "node_cpu_seconds_total" in fetch(told["node_url"])[1]
        assert "DCGM_FI_DEV_GPU_UTIL" in fetch(told["dcgm_url"])[1]
        truly = json.loads(truth.read_text())
        assert (truly["fault"], truly["severity"], truly["onset_s"], truly["seed"]) == ("slot-cap", "severe", 300, 4)
    finally:
        assert lab.stop() == ""


def test_at_its_end_the_server_says_how_late_it_was() -> None:
    lab = Serve()
    url = lab.lines.readline().split(" at ")[1].split()[0]
    assert fetch(url + "/v1/chat/completions", {"model": "llama-3-8b", **CHAT})[0] == 200
    said = lab.stop()
    assert said.startswith("the lab wrote ") and "(p99)" in said


def test_a_setting_that_cannot_be_is_one_sentence() -> None:
    for words, says in (
        (("--set", "max_num_seqs=lots"), "max_num_seqs cannot be 'lots'"),
        (("--gpu", "H900"), "H900"),
        (("--severity", "gruesome"), "gruesome"),
        (("--dialect", "ollama"), "ollama"),
        (("--dcgm-port", "99999"), "99999"),
        (("--npu-port", "0"), "--dcgm-port"),
        (("--onset", "-5s"), "--onset=-5s"),
    ):
        done = subprocess.run(
            [*PINCHPOINT, "lab", "serve", "--port", "0", *words], capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 2, words
        assert says in done.stderr and "Traceback" not in done.stderr
