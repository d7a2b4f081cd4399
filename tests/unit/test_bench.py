"""The yardstick of the load engine: a server that writes down what it did, and CPU time by process tree."""

import http.client
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from cpu import Tree, Usage
from server import BenchError, Server, build, read_truth

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="epoll"),
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler"),
]

TOKENS = 20
FAST = {"tokens": TOKENS, "ttft_us": 2_000, "itl_us": 500, "priority": "none"}


def ask(server: Server, body: dict, path: str = "/v1/chat/completions") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", path, json.dumps(body))
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_the_truth_holds_every_request_and_token_that_a_client_counted():
    with Server(**FAST) as server:
        usage = Tree([str(build("sse_client")), str(server.port), "4", "3", str(TOKENS)]).wait(20)
        truth = server.stop()
    said = json.loads(usage.stdout)
    assert (said["requests"], said["tokens"]) == (12, 12 * TOKENS) == (len(truth), truth.token_total)
    assert truth.done.all() and truth.streamed.all() and truth.connections == 4
    assert (truth.ttft_s >= 0.002).all()
    assert len(truth.itl_s()) == 12 * (TOKENS - 1)
    assert (truth.write_lateness_s() >= 0).all()


def test_the_text_of_a_token_is_the_instant_that_the_truth_holds():
    with Server(**FAST) as server:
        text = ask(server, {"stream": True, "max_tokens": TOKENS})
        truth = server.stop()
    assert [int(stamp) for stamp in re.findall(r'"content":"(\d+)"', text)] == truth.tokens_of(0).tolist()
    assert text.endswith("data: [DONE]\n\n")


def test_usage_carries_the_number_of_the_request_when_asked():
    body = {"stream": True, "max_tokens": TOKENS, "stream_options": {"include_usage": True}}
    with Server(serial=True, **FAST) as server:
        texts = [ask(server, body, "/v1/completions") for _ in range(2)]
        truth = server.stop()
    numbers = [int(number) for text in texts for number in re.findall(r'"reasoning_tokens":(\d+)', text)]
    assert numbers == [1, 2] == truth.serial.tolist()


def test_a_probe_is_answered_at_once_and_is_no_part_of_the_truth():
    with Server(tokens=TOKENS, ttft_us=60_000_000) as server:
        text = ask(server, {"stream": True, "max_tokens": 1})
        whole = json.loads(ask(server, {"max_tokens": 3}))
        truth = server.stop()
    assert text.count('"finish_reason":"length"') == 1
    assert whole["usage"]["completion_tokens"] == 3
    assert (len(truth), truth.probes) == (0, 2)


def test_a_freeze_shows_in_the_time_to_the_first_token():
    with Server(freeze_n=1, freeze_s=0.05, **FAST) as server:
        ask(server, {"stream": True, "max_tokens": TOKENS})
        ask(server, {"stream": True, "max_tokens": TOKENS})
        truth = server.stop()
    assert truth.ttft_s[0] >= 0.05


def test_a_file_that_is_no_truth_is_refused(tmp_path):
    (tmp_path / "other").write_bytes(bytes(400))
    with pytest.raises(BenchError, match="not a truth file"):
        read_truth(tmp_path / "other")


def test_cpu_time_of_children_that_are_gone_counts():
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    usage = Tree(["sh", "-c", f"{sys.executable} -c '{burn}'; true"]).wait(30)
    assert usage.exit_code == 0
    assert usage.cpu_s[-1] >= 0.19


def test_a_command_that_takes_too_long_is_killed_with_its_children():
    tree = Tree(["sh", "-c", "sleep 60 & sleep 60"])
    usage = tree.wait(0.1)
    assert usage.exit_code is None


def test_cpu_time_of_a_stretch_lies_between_samples():
    t_ns, zero = np.array([0, 1_000_000_000, 2_000_000_000]), np.zeros(3)
    usage = Usage([], "test", 0, 2_000_000_000, 0, "", "", t_ns, np.array([0.0, 1.0, 1.5]), zero, zero, zero)
    assert usage.cpu_between_s(500_000_000, 2_000_000_000) == pytest.approx(1.0)
    assert usage.cpu_between_s(0, 9_000_000_000) == pytest.approx(1.5)
