"""Readers of recorded requests: each reads its file, and tells line and reason of what it cannot read."""

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
from pinchpoint.workload.traces.table import RequestLog, grid_ns

DATA = Path(__file__).parents[2] / "data" / "traces"
AZURE = DATA / "azure2023_conv_1200.csv.gz"
MOONCAKE = DATA / "mooncake_conversation_800.jsonl.gz"
SERVEGEN = DATA / "servegen_2clients.tar.gz"

BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
"""
BURSTGPT_SESSIONS = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,a,1.5,ChatGPT,472,18,490,Conversation log
45,a,2.5,ChatGPT,600,230,830,Conversation log
"""
DYNAMO = """{"timestamp": 0, "session_id": "s", "input_length": 600, "output_length": 10, "hash_ids": [1, 2]}
{"timestamp": 100.5, "input_length": 20, "output_length": 5, "hash_ids": [9]}
{"delay": 500, "session_id": "s", "input_length": 700, "output_length": 30, "hash_ids": [1, 3]}
"""
AIPERF_TEXT = '{"timestamp": 0, "text_input": "What is the capital of France?", "output_length": 20}\n'
VLLM = '{"prompt": "What is the capital of India?", "output_tokens": 10}\n'
SHAREGPT = """[{"id": "a", "conversations": [
  {"from": "human", "value": "Hello there, who are you?"}, {"from": "gpt", "value": "A model."},
  {"from": "human", "value": "Thanks"}, {"from": "gpt", "value": "You are welcome, of course."}]},
 {"id": "b", "conversations": [{"from": "human", "value": "Bye"}]}]
"""
OTLP = json.dumps(
    {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "name": "chat m",
                                "startTimeUnixNano": "1700000000000000000",
                                "attributes": [
                                    {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "26"}},
                                    {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "30"}},
                                    {"key": "gen_ai.conversation.id", "value": {"stringValue": "c1"}},
                                ],
                            },
                            {"name": "execute_tool", "startTimeUnixNano": "1700000000500000000", "attributes": []},
                        ]
                    }
                ]
            }
        ]
    }
)
FLAT_SPAN = json.dumps(
    {
        "start_time_unix_nano": 1700000001000000000,
        "attributes": {"gen_ai.usage.prompt_tokens": 5, "gen_ai.usage.completion_tokens": 7},
    }
)
ACCESS = """{"ts": "2026-03-01T10:00:00.250Z", "usage": {"in": 12, "out": 3}, "user": {"id": 1}}
{"ts": "2026-03-01T10:00:00.000Z", "usage": {"in": 15, "out": 4}, "user": {"id": 1}}
"""
ACCESS_FIELDS = {"time": "ts", "input": "usage.in", "output": "usage.out", "session": "user.id"}


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("azure2023_conv_1200.csv.gz", "azure", 1200),
        ("mooncake_conversation_800.jsonl.gz", "mooncake", 800),
        ("lengths_arxiv_600.csv.gz", "vidur", 600),
        ("llmservingsim_40.jsonl.gz", "llmservingsim", 40),
        ("aiperf_profile_export_10.jsonl", "aiperf", 10),
    ],
)
def test_excerpts_are_known_by_their_content_and_read_whole(name: str, form: str, count: int) -> None:
    log = read_log(DATA / name)
    assert (log.format, len(log), log.left_out) == (form, count, {})
    assert log.input_tokens.min() >= 1 and log.output_tokens.min() >= 1
    if log.t_ns is not None:
        assert log.t_ns[0] == 0 and np.all(np.diff(log.t_ns) >= 0)


def test_the_columns_of_an_excerpt_are_those_of_the_file() -> None:
    """Oracle: the lines, split by hand."""
    with gzip.open(AZURE, "rt") as file:
        rows = [line.strip().split(",") for line in file][1:]
    log = read_log(AZURE)
    assert log.input_tokens.tolist() == [int(row[1]) for row in rows]
    assert log.output_tokens.tolist() == [int(row[2]) for row in rows]
    with gzip.open(MOONCAKE, "rt") as file:
        objects = [json.loads(line) for line in file]
    log = read_log(MOONCAKE)
    assert log.t_ns is not None and log.t_ns.tolist() == [row["timestamp"] * 1_000_000 for row in objects]
    assert log.blocks is not None and [list(one) for one in log.blocks] == [row["hash_ids"] for row in objects]
    assert log.block_tokens == 512


def test_failed_requests_are_left_out_and_counted(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "b.csv", BURSTGPT))
    assert (log.format, len(log)) == ("burstgpt", 2)
    assert log.left_out == {"no answer (0 output tokens)": 1}
    lengths = read_log(DATA / "lengths_sharegpt_600.csv.gz")
    assert lengths.t_ns is None and len(lengths) + sum(lengths.left_out.values()) == 600


def test_sessions_are_told_by_their_column(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "b.csv", BURSTGPT_SESSIONS))
    assert log.session is not None and log.session.tolist() == [0, 0]


def test_a_delay_counts_from_the_turn_before_and_a_request_of_no_session_stands_alone(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "d.jsonl", DYNAMO))
    assert log.t_ns is not None and log.t_ns.tolist() == [0, 100_500_000, 500_000_000]
    assert log.session is not None and log.session[0] == log.session[2] != log.session[1]


@pytest.mark.parametrize(("name", "text", "form"), [("a", AIPERF_TEXT, "mooncake"), ("v", VLLM, "vllm")])
def test_texts_without_counts_are_estimated_and_it_is_said(tmp_path: Path, name: str, text: str, form: str) -> None:
    log = read_log(written(tmp_path, f"{name}.jsonl", text))
    assert log.format == form
    assert 5 <= log.input_tokens[0] <= 10
    assert any("characters" in note for note in log.notes)


def test_conversations_as_texts_are_requests_per_answer(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "s.json", SHAREGPT))
    assert (log.format, len(log)) == ("sharegpt", 2)
    assert log.session is not None and log.session.tolist() == [0, 0]


def test_spans_are_read_as_collectors_and_scripts_write_them(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "o.jsonl", f"{OTLP}\n{FLAT_SPAN}\n"))
    assert log.format == "otel"
    assert log.t_ns is not None and log.t_ns.tolist() == [0, 10**9]
    assert log.input_tokens.tolist() == [26, 5] and log.output_tokens.tolist() == [30, 7]
    assert sum(log.left_out.values()) == 1


def test_an_access_log_is_read_by_the_fields_that_are_named_and_sorted(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "access.log", ACCESS), fields=ACCESS_FIELDS)
    assert log.t_ns is not None and log.t_ns.tolist() == [0, 250_000_000]
    assert log.input_tokens.tolist() == [15, 12]
    assert log.session is not None and log.session.tolist() == [0, 0]
    assert any("sorted" in note for note in log.notes)


def test_statistics_of_clients_become_the_same_requests_each_time() -> None:
    a, b = read_log(SERVEGEN), read_log(SERVEGEN)
    assert a.format == "servegen" and len(a) > 1000
    assert np.array_equal(a.input_tokens, b.input_tokens)
    assert any("drawn" in note for note in a.notes)


def test_a_directory_of_statistics_is_read_as_the_archive_is(tmp_path: Path) -> None:
    with tarfile.open(SERVEGEN) as tar:
        tar.extractall(tmp_path, filter="data")
    assert np.array_equal(read_log(tmp_path).output_tokens, read_log(SERVEGEN).output_tokens)


def test_a_recorder_that_wakes_up_every_three_seconds_is_seen() -> None:
    log = read_log(MOONCAKE)
    assert abs(log.resolution_ns - 3_000_000_000) < 30_000_000
    assert read_log(AZURE).resolution_ns < 10_000_000
    assert grid_ns(np.arange(5)) == 0


# -- what cannot be read -----------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return file.read().splitlines()


def broken(rows: list[str], line: int, change: Callable[[str], str]) -> str:
    """The file with one line changed; lines count from 1."""
    return "\n".join([*rows[: line - 1], change(rows[line - 1]), *rows[line:]]) + "\n"


TABLES = [
    ("azure2023_conv_1200.csv.gz", ".csv", "ContextTokens"),
    ("lengths_arxiv_600.csv.gz", ".csv", "num_prefill_tokens"),
    ("lengths_sharegpt_600.csv.gz", ".csv", "input_length"),
    ("mooncake_conversation_800.jsonl.gz", ".jsonl", "input_length"),
    ("llmservingsim_40.jsonl.gz", ".jsonl", "input_toks"),
    ("aiperf_profile_export_10.jsonl", ".jsonl", "input_sequence_length"),
]


@pytest.mark.parametrize(("name", "ending", "column"), TABLES)
def test_a_cut_line_is_told_by_its_number(tmp_path: Path, name: str, ending: str, column: str) -> None:
    text = broken(
        lines_of(DATA / name), 7, lambda line: line[: len(line) // 4] if ending == ".jsonl" else line.split(",")[0]
    )
    with pytest.raises(UsageError, match="line 7"):
        read_log(written(tmp_path, "cut" + ending, text))


@pytest.mark.parametrize(("name", "ending", "column"), TABLES)
def test_words_where_a_number_belongs_are_told_by_their_line(
    tmp_path: Path, name: str, ending: str, column: str
) -> None:
    rows = lines_of(DATA / name)

    def worded(line: str) -> str:
        if ending == ".jsonl":
            row = json.loads(line)
            if column in row:
                return json.dumps({**row, column: "many"})
            row["metrics"][column]["value"] = "many"
            return json.dumps(row)
        fields = line.split(",")
        fields[rows[0].split(",").index(column)] = "many"
        return ",".join(fields)

    with pytest.raises(UsageError, match=r"line 5: 'many' is not a number"):
        read_log(written(tmp_path, "words" + ending, broken(rows, 5, worded)))


@pytest.mark.parametrize(("name", "ending", "column"), TABLES)
def test_a_missing_column_is_told_with_what_there_is(tmp_path: Path, name: str, ending: str, column: str) -> None:
    text = "\n".join(lines_of(DATA / name)).replace(column, "something") + "\n"
    path = written(tmp_path, "missing" + ending, text)
    form = read_log(DATA / name).format
    with pytest.raises(UsageError, match=rf"line \d: there is no '.*{column}"):
        read_log(path, form)


@pytest.mark.parametrize("name", ["azure2023_conv_1200.csv.gz", "mooncake_conversation_800.jsonl.gz"])
def test_time_that_goes_back_is_told_by_its_line(tmp_path: Path, name: str) -> None:
    rows = lines_of(DATA / name)
    rows[40], rows[700] = rows[700], rows[40]
    ending = "".join(Path(name).suffixes[:1])
    with pytest.raises(UsageError, match=r"line 42: .* before"):
        read_log(written(tmp_path, "back" + ending, "\n".join(rows) + "\n"))


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.gz")))
def test_what_is_no_archive_or_only_half_of_one_is_told(tmp_path: Path, name: str) -> None:
    plain = tmp_path / name
    plain.write_text("no archive")
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_log(plain)
    whole = (DATA / name).read_bytes()
    plain.write_bytes(whole[: len(whole) // 2])
    # A read of half a file must not pass for the whole: neither by detection nor with the format named.
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_log(plain, read_log(DATA / name).format if "60." not in name else "auto")


def archive(path: Path, change: Callable[[str, str], str]) -> Path:
    with tarfile.open(SERVEGEN) as source, tarfile.open(path, "w:gz") as target:
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            data = change(member.name, file.read().decode()).encode()
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, text: text.replace(",", ";") if "trace" in name else text, r"trace.csv, line 1: six fields"),
        (lambda name, text: text.replace("Gamma", "Beta").replace("Weibull", "Beta"), "'Beta' is neither"),
        (lambda name, text: text[:50] if "dataset" in name else text, "dataset.json: not ServeGen's tables"),
        (lambda name, text: "-1,-1,1,Gamma,1,1\n" if "trace" in name else text, "line 1: .* cannot be"),
    ],
)
def test_broken_statistics_are_told_with_their_file(
    tmp_path: Path, change: Callable[[str, str], str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        read_log(archive(tmp_path / "s.tar.gz", change))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("o.jsonl", '{"resourceSpans": 5}', "line 1: resourceSpans is not a list"),
        ("o.jsonl", OTLP.replace('"26"', '"x"'), "line 1: 'x' is not a number"),
        ("o.jsonl", OTLP + "\n{}\n", "line 2: neither resourceSpans nor a span"),
        ("s.json", SHAREGPT.replace('"from": "gpt"', '"form": "gpt"'), "conversation 1: a turn needs"),
        ("s.json", SHAREGPT[:40], "not JSON"),
        ("d.jsonl", DYNAMO.replace("[1, 2]", "[1, 2, 3, 4]"), "line 1: 4 blocks of 512 tokens are more than 600"),
        ("d.jsonl", DYNAMO.replace("[9]", '["a"]'), "line 2: hash_ids is not a list of whole numbers"),
        ("x.csv", "a,b\n1,2\n", "of no known format; it has a, b"),
        ("x.csv", "", "holds no requests"),
        ("x.parquet", "PAR1", "line 1: not a JSON object"),
    ],
)
def test_what_is_not_in_the_format_is_told(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_log(written(tmp_path, name, text))


def test_a_format_and_fields_that_do_not_exist_are_told_with_the_choices(tmp_path: Path) -> None:
    path = written(tmp_path, "b.csv", BURSTGPT)
    with pytest.raises(UsageError, match="choose from auto, azure"):
        read_log(path, "asure")
    with pytest.raises(UsageError, match="choose from time, unit"):
        read_log(path, fields={"tiem": "x"})
    with pytest.raises(UsageError, match="No such file"):
        read_log(tmp_path / "none.csv")


def test_every_format_says_what_it_is() -> None:
    assert all(one.description for one in FORMATS.values())
    assert detect(AZURE) == "azure"
    assert isinstance(read_log(AZURE), RequestLog)
