"""The main job against a real engine: llama.cpp's own server with a real small model, both from PyPI (`make real`)."""

from pathlib import Path

import pytest

from tests.support.real_engines import LLAMA, llama, needs, pinchpoint

pytestmark = needs(LLAMA)


def test_the_probe_knows_llama_cpp_and_its_limits() -> None:
    with llama(2) as url:
        facts = pinchpoint("probe", url)
    assert facts["engine"] == "llama.cpp"
    assert facts["api"] == "/v1/chat/completions"
    assert (facts["streaming"], facts["usage_in_stream"]) == (True, True)
    assert (facts["limits"]["max_sequences"], facts["limits"]["context_tokens"]) == (2, 2048)
    assert facts["metrics_url"] == f"{url}/metrics"
    assert facts["server_pids"]


def test_one_slot_is_found_to_be_the_cap_and_the_remedy_names_the_flag(tmp_path: Path) -> None:
    with llama(1) as url:
        verdict = pinchpoint(
            "run", url, "--workload", "chat-short", "--budget", "60s", "--seed", 3, "--out", tmp_path / "run"
        )
    top = verdict["findings"][0]
    assert top["rule"] == "SEQ001", [(f["rule"], f["probability"]) for f in verdict["findings"]]
    assert "-np 2" in top["remedies"][0]["flag"]
    import pyarrow.parquet as pq

    records = pq.read_table(tmp_path / "run" / "records.parquet")
    ok = [row for row in records.to_pylist() if row["status"] == "ok"]
    assert ok
    assert all(row["token_source"] == "usage" and row["timestamp_source"] == "kernel" for row in ok)
    assert all(row["output_tokens"] == row["requested_output_tokens"] for row in ok)
    asked = sum(row["requested_input_tokens"] for row in ok)
    assert sum(row["input_tokens"] for row in ok) == pytest.approx(asked, rel=0.15)
