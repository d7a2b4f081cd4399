"""Recorded requests of every known format: what is read, and how a spoilt file is told."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pinchpoint.errors import UsageError
from pinchpoint.workload.traces.read import FORMATS, detect, read_log
from pinchpoint.workload.traces.table import grid_ns

DATA = Path(__file__).parents[2] / "data" / "traces"
SPAN = {
    "name": "chat m",
    "startTimeUnixNano": "1700000000000000000",
    "attributes": [
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}},
        {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "5"}},
        {"key": "gen_ai.conversation.id", "value": {"stringValue": "a"}},
    ],
}
TOOL_SPAN = {"name": "tool", "startTimeUnixNano": "1700000001000000000", "attributes": []}
LATER_SPAN = {**SPAN, "startTimeUnixNano": "1700000002500000000"}


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


EXAMPLES: dict[str, tuple[str, str]] = {
    # name of the format -> (name of a file, its text); each holds two requests, 2.5 s apart where there are instants
    "azure": (
        "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,12,5\n2024-05-10 00:00:02.509930+00:00,30,7\n",
    ),
    "burstgpt": (
        "b.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,12,5,17,Conversation log\n6,GPT-4,9,0,9,API log\n7.5,ChatGPT,30,7,37,Conversation log\n",
    ),
    "mooncake": (
        "m.jsonl",
        lines(
            {"timestamp": 100, "input_length": 12, "output_length": 5, "hash_ids": [0]},
            {"timestamp": 2600, "input_length": 30, "output_length": 7, "hash_ids": [1]},
        ),
    ),
    "llmservingsim": (
        "l.jsonl",
        lines(
            {"input_toks": 12, "output_toks": 5, "arrival_time_ns": 1, "input_tok_ids": list(range(12))},
            {"input_toks": 30, "output_toks": 7, "arrival_time_ns": 2500000001, "input_tok_ids": list(range(30))},
        ),
    ),
    "aiperf": (
        "profile_export.jsonl",
        lines(
            *(
                {
                    "metadata": {"request_start_ns": at, "was_cancelled": gone, "conversation_id": None},
                    "metrics": {"input_sequence_length": {"value": a}, "output_sequence_length": {"value": b}},
                }
                for at, gone, a, b in (
                    (10**18, False, 12, 5),
                    (10**18 + 7, True, 1, 1),
                    (10**18 + 25 * 10**8, False, 30, 7),
                )
            )
        ),
    ),
    "vidur": ("v.csv", "num_prefill_tokens,num_decode_tokens,num_total_tokens\n12,5,17\n30,7,37\n"),
    "lengths": ("s.csv", "input_length,output_length\n12,5\n0,9\n30,7\n"),
    "vllm": ("c.jsonl", lines({"prompt": "x" * 48, "output_tokens": 5}, {"prompt": "x" * 120, "output_tokens": 7})),
    "otel": (
        "spans.jsonl",
        lines({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN, TOOL_SPAN]}]}]}, LATER_SPAN)
        .replace('"12"', '"12"', 1)
        .replace("2500000000", "2500000000"),
    ),
    "sharegpt": (
        "g.json",
        json.dumps(
            [
                {
                    "id": "1",
                    "conversations": [{"from": "human", "value": "x" * 48}, {"from": "gpt", "value": "y" * 20}],
                },
                {
                    "id": "2",
                    "conversations": [{"from": "human", "value": "x" * 120}, {"from": "gpt", "value": "y" * 28}],
                },
            ]
        ),
    ),
}
TIMED = ("azure", "burstgpt", "mooncake", "llmservingsim", "aiperf")


def written(tmp_path: Path, name: str, change: Callable[[str], str] = str) -> Path:
    file, text = EXAMPLES[name]
    path = tmp_path / file
    path.write_text(change(text), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "otel"])
def test_each_format_is_known_by_its_content_and_read(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    assert detect(path) == name
    log = read_log(path)
    assert log.format == name
    assert (log.input_tokens.tolist(), log.output_tokens.tolist()) == ([12, 30], [5, 7])
    if name in TIMED:
        assert log.t_ns is not None and log.t_ns.tolist() == [0, 2_500_000_000]
    else:
        assert log.t_ns is None


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_a_packed_file_tells_the_same(name: str, tmp_path: Path) -> None:
    plain = written(tmp_path, name)
    packed = tmp_path / (plain.name + ".gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_log(packed).input_tokens.tolist() == read_log(plain).input_tokens.tolist()


def test_spans_of_models_are_read_and_others_left_out(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "otel"))
    assert log.format == "otel" and log.t_ns is not None and log.session is not None
    assert (log.input_tokens.tolist(), log.t_ns.tolist()) == ([12, 12], [0, 2_500_000_000])
    assert log.session.tolist() == [0, 0]
    assert sum(log.left_out.values()) == 1


def test_what_is_no_request_is_counted_and_told(tmp_path: Path) -> None:
    assert read_log(written(tmp_path, "burstgpt")).left_out == {"no answer (0 output tokens)": 1}
    assert read_log(written(tmp_path, "aiperf")).left_out == {"cancelled": 1}
    assert read_log(written(tmp_path, "lengths")).left_out == {"no prompt (0 input tokens)": 1}


def test_blocks_of_prompts_tell_what_they_share(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "llmservingsim"))
    assert log.blocks is not None and log.block_tokens == 16
    assert [len(one) for one in log.blocks] == [0, 1]
    log = read_log(DATA / "mooncake_conversation_800.jsonl.gz")
    assert log.blocks is not None and log.block_tokens == 512 and len(log) == 800


def test_turns_that_tell_a_delay_come_after_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    turn = {"session_id": "s", "input_length": 10, "output_length": 3}
    path.write_text(lines({**turn, "timestamp": 1000}, {**turn, "delay": 500}, {**turn, "delay": 250}))
    log = read_log(path)
    assert log.t_ns is not None and log.t_ns.tolist() == [0, 500_000_000, 750_000_000]
    assert log.session is not None and log.session.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (["2026-01-31T08:00:00Z", "2026-01-31T08:00:02.5Z"], None),
        ([1769846400.0, 1769846402.5], None),
        ([1769846400000, 1769846402500], None),
        ([1769846400000000000, 1769846402500000000], None),
        ([0, 2500], "ms"),
    ],
)
def test_a_log_of_ones_own_is_read_by_the_names_of_its_fields(
    times: list[object], unit: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "access.jsonl"
    path.write_text(
        lines(
            *({"ts": at, "usage": {"in": n, "out": 4}, "user": "u"} for at, n in zip(times, (12, 30), strict=True)),
        )
    )
    fields = {"time": "ts", "input": "usage.in", "output": "usage.out", "session": "user"}
    log = read_log(path, fields={**fields, **({"unit": unit} if unit else {})})
    assert log.t_ns is not None and log.t_ns.tolist() == [0, 2_500_000_000]
    assert log.input_tokens.tolist() == [12, 30] and log.session is not None


def servegen(tmp_path: Path, trace: str, dataset: dict[str, object]) -> Path:
    path = tmp_path / "sg.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in (("x/chunk-1-trace.csv", trace), ("x/chunk-1-dataset.json", json.dumps(dataset))):
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


LAWS = {"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{3: 1.0}"}}


def test_requests_are_drawn_from_servegens_statistics_at_its_rates(tmp_path: Path) -> None:
    path = servegen(tmp_path, "0,2,1.5,Gamma,0.44,1.1\n600,0,0,,0,0\n1200,4,0.8,Weibull,1.2,0.3\n", LAWS)
    log = read_log(path)
    assert log.format == "servegen" and log.t_ns is not None
    t_s = log.t_ns / 1e9
    assert np.sum(t_s < 600) == pytest.approx(1200, rel=0.15)
    assert np.sum((t_s > 700) & (t_s < 1150)) == 0
    assert np.sum(t_s >= 1150) == pytest.approx(2400, rel=0.15)
    assert set(log.input_tokens.tolist()) == {10, 20} and set(log.output_tokens.tolist()) == {3}


@pytest.mark.parametrize(
    ("trace", "dataset", "words"),
    [
        ("0,2,1.5,Gamma,0.44\n", LAWS, "line 1: six fields"),
        ("0,2,1.5,Gamma,0.44,1\n600,x,1,Gamma,1,1\n", LAWS, "line 2: six fields"),
        ("0,2,1.5,Cauchy,0.44,1\n", LAWS, "neither Gamma nor Weibull"),
        ("0,-2,1.5,Gamma,0.44,1\n", LAWS, "a number that cannot be"),
        ("0,2,1.5,Gamma,0.44,1\n", {"0": {"input_tokens": "__import__('os')"}}, "not ServeGen's tables"),
        ("0,2,1.5,Gamma,0.44,1\n", {"0": {"input_tokens": "{1: -1}", "output_tokens": "{1: 1}"}}, "no probabilities"),
    ],
)
def test_spoilt_statistics_are_told_with_their_place(
    trace: str, dataset: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        read_log(servegen(tmp_path, trace, dataset))


def cut_line(text: str) -> str:
    whole = text.rstrip("\n").split("\n")
    return "\n".join([*whole[:-1], whole[-1][: len(whole[-1]) // 2]]) + "\n"


def swap(text: str) -> str:
    """The last two lines in the wrong order."""
    whole = text.rstrip("\n").split("\n")
    return "\n".join([*whole[:-2], whole[-1], whole[-2]]) + "\n"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("azure", lambda t: t.replace(",30,7", ",30"), "line 3: 2 fields where the header names 3"),
        ("azure", lambda t: t.replace(",30,", ",many,"), "line 3: 'many' is not a number"),
        ("azure", lambda t: t.replace("2024-05-10 00:00:02", "yesterday"), "line 3: .* is not a date"),
        ("azure", swap, "line 3: TIMESTAMP is before that of the line above"),
        ("burstgpt", lambda t: t.replace(",30,7,37", ",-30,7,37"), "line 4: Request tokens is -30"),
        ("mooncake", cut_line, "line 2: not a JSON object"),
        ("mooncake", swap, "line 2: timestamp is before"),
        ("mooncake", lambda t: t.replace("[1]", '["x"]'), "line 2: hash_ids is not a list of whole numbers"),
        ("mooncake", lambda t: t.replace("[1]", "[1, 2, 3]"), "line 2: 3 blocks of 512 tokens are more than 30"),
        ("mooncake", lambda t: t.replace('"input_length": 30, ', ""), "line 2: there is no 'input_length'"),
        ("mooncake", lambda t: t.replace('"output_length": 7', '"output_length": 7.5'), "line 2: output_length is 7.5"),
        (
            "mooncake",
            lambda t: t.replace('"output_length": 7', '"output_length": 1e30'),
            "line 2: '1E.30' is not a number",
        ),
        ("llmservingsim", lambda t: t.replace('"arrival_time_ns": 2500000001, ', ""), "line 2: there is no"),
        ("aiperf", lambda t: t.replace('"input_sequence_length": {"value": 30}, ', ""), "line 3: there is no"),
        ("vidur", lambda t: t.replace("30,7,37", "30,seven,37"), "line 3: 'seven' is not a number"),
        ("lengths", lambda t: t.replace("30,7", "30,7,1"), "line 4: 3 fields"),
        ("vllm", lambda t: t.replace('"prompt": "' + "x" * 120, '"prompt": "'), "line 2: prompt is not a text"),
        ("otel", lambda t: t.replace('"intValue": "12"', '"intValue": "dozen"'), "line 1: 'dozen' is not a number"),
        ("otel", lambda t: t.replace('"scopeSpans": [', '"scopeSpans": [7, '), "line 1: scopeSpans is not a list"),
        ("sharegpt", lambda t: t[:-10], "is not JSON"),
        ("sharegpt", lambda t: t.replace('"from": "gpt"', '"from": 7'), "conversation 1: a turn needs"),
    ],
)
def test_a_spoilt_copy_is_refused_with_line_and_reason(
    name: str, change: Callable[[str], str], words: str, tmp_path: Path
) -> None:
    path = written(tmp_path, name, change)
    with pytest.raises(UsageError, match=words):
        read_log(path, name)


@pytest.mark.parametrize("file", ["azure2023_conv_60.csv", "mooncake_conversation_60.jsonl.gz"])
def test_a_real_excerpt_is_read_and_a_copy_that_is_cut_is_refused(file: str, tmp_path: Path) -> None:
    assert len(read_log(DATA / file)) == 60
    cut = tmp_path / file
    data = (DATA / file).read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UsageError, match=r"line|cannot read"):
        read_log(cut)


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        ("a.csv.gz", b"TIMESTAMP,ContextTokens,GeneratedTokens\n", "cannot read"),
        ("a.csv", b"", "no known format|no requests"),
        ("a.jsonl", b"\n\n", "no requests"),
        ("a.csv", b"one,two\n1,2\n", "no known format; it has one, two"),
        ("a.csv", b"\xff\xfe\x00", "cannot read|no requests|no known"),
        ("a.parquet", b"PAR1", "unknown ending|not a JSON object|cannot"),
        ("a.tar.gz", b"not a tar", "cannot read"),
    ],
)
def test_a_file_that_is_no_trace_is_told(file: str, data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(UsageError, match=words):
        read_log(path)


def test_unknown_formats_and_fields_are_told_with_the_choices(tmp_path: Path) -> None:
    path = written(tmp_path, "azure")
    with pytest.raises(UsageError, match=r"choose from auto, azure"):
        read_log(path, "azur")
    with pytest.raises(UsageError, match="choose from time, unit"):
        read_log(path, fields={"when": "x"})
    with pytest.raises(UsageError, match="No such file"):
        read_log(tmp_path / "none.csv")
    assert set(EXAMPLES) | {"servegen", "access"} == set(FORMATS)


def test_a_grid_of_instants_is_seen_and_a_fine_one_is_none() -> None:
    steps = np.random.default_rng(1).integers(0, 400, 300) * 3_000_000_000
    assert grid_ns(np.sort(steps)) == 3_000_000_000
    assert grid_ns(np.sort(np.random.default_rng(1).integers(0, 10**12, 300))) == 0
