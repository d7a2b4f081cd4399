"""The main job against a real engine: llama.cpp's own server with a real small model, both from PyPI (`make real`)."""

import json
from pathlib import Path

import pytest
from tests.support.real_engines import LLAMA, llama, needs, pinchpoint
from tests.support.relay import Relay

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


def records_of(run: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(run / "records.parquet").to_pylist()


def test_a_conversation_with_a_real_model_holds_the_answers_that_it_gave(tmp_path: Path) -> None:
    workload = tmp_path / "talk.toml"
    workload.write_text(
        """
        [[classes]]
        preset = "dialogue"
        input_tokens = { mean = 30, sigma = 0.2, min = 12, max = 60 }
        output_tokens = { mean = 14, sigma = 0.2, min = 8, max = 20 }
        turns = 3
        think = "100ms"
        """
    )
    with llama(2) as service, Relay(service) as relay:
        words = ("--workload", workload, "--concurrency", 2, "--requests", 6, "--seed", 4, "--api", "chat")
        pinchpoint("load", relay.url, *words, "--out", tmp_path / "run")
    chats = relay.chats()
    assert len(chats) == 6
    answers = {json.dumps(body["messages"]): text for body, text in chats}
    later = [body["messages"] for body, _ in chats if len(body["messages"]) > 2]
    assert sorted(len(messages) for messages in later) == [4, 4, 6, 6]
    for messages in later:
        for place in range(2, len(messages), 2):
            assert messages[place] == {"role": "assistant", "content": answers[json.dumps(messages[:place])]}
    for row in records_of(tmp_path / "run"):
        assert row["input_tokens"] == pytest.approx(row["requested_input_tokens"], abs=3)


def test_prompts_and_answers_have_the_lengths_that_were_asked_for(tmp_path: Path) -> None:
    with llama(2) as url:
        answer = pinchpoint(
            *("load", url, "--workload", "chat-short", "--concurrency", 2, "--requests", 16, "--seed", 5),
            *("--out", tmp_path / "run"),
        )
    for lengths in (answer["delivered"]["prompt_lengths"], answer["delivered"]["output_lengths"]):
        assert lengths["counted_mean"] == pytest.approx(lengths["asked_mean"], rel=0.02)
        assert lengths["off_ratio"] == 0
    assert all(row["input_tokens"] == row["requested_input_tokens"] for row in records_of(tmp_path / "run"))


def test_long_prompts_are_cut_to_the_context_of_a_slot_and_that_is_told(tmp_path: Path) -> None:
    with llama(2) as url:
        answer = pinchpoint(
            *("load", url, "--workload", "long-context", "--concurrency", 1, "--requests", 2, "--seed", 5),
            *("--out", tmp_path / "run"),
        )
    assert answer["completed"] == 2
    assert any("2048 tokens" in note for note in answer["delivered"]["notes"])
