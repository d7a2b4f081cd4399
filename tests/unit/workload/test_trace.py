"""Traces: read as they are, replayed exactly, and refused with the line that is wrong."""

import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.errors import UsageError
from pinchpoint.plan import ReplayStage
from pinchpoint.workload.trace import Trace, read_numbers, replay, trace_of, turns_of

DATA = Path(__file__).parents[2] / "data" / "traces"
AZURE = ReplayStage(
    file=str(DATA / "azure2023_conv_60.csv"),
    time="TIMESTAMP",
    unit="iso",
    input="ContextTokens",
    output="GeneratedTokens",
)
MOONCAKE = ReplayStage(
    file=str(DATA / "mooncake_conversation_60.jsonl.gz"), unit="ms", input="input_length", output="output_length"
)


def trace(*t_ns: int) -> Trace:
    return Trace(np.array(t_ns, np.int64) - t_ns[0], None, None, None)


def stage(**keys: object) -> ReplayStage:
    return ReplayStage(file="trace.csv", **keys)  # pyright: ignore


def test_a_trace_with_dates_is_read_to_its_last_digit() -> None:
    """Oracle: the lines split by hand, the microseconds by datetime, the seventh digit as text."""
    lines = [line.split(",") for line in Path(AZURE.file).read_text().split()[1:]]
    # A date and a time are two words.
    dates, rests = lines[::2], lines[1::2]
    found = trace_of(AZURE)
    assert len(found) == 60 == len(dates)
    instants = []
    for (date,), (time, _, _) in zip(dates, rests, strict=True):
        whole, fraction = time.split(".")
        seconds = int(datetime.fromisoformat(f"{date}T{whole}").replace(tzinfo=UTC).timestamp())
        instants.append(int((seconds + Decimal(f"0.{fraction}")) * 10**9))
    assert found.t_ns.tolist() == [t - instants[0] for t in instants]
    assert found.input_tokens is not None and found.input_tokens.tolist() == [int(tokens) for _, tokens, _ in rests]
    assert found.output_tokens is not None and found.output_tokens.tolist() == [int(tokens) for _, _, tokens in rests]


def test_a_trace_of_zipped_json_lines_is_read() -> None:
    with gzip.open(MOONCAKE.file, "rt") as file:
        rows = [json.loads(line) for line in file]
    found = trace_of(MOONCAKE)
    assert found.t_ns.tolist() == [row["timestamp"] * 1_000_000 for row in rows]
    assert found.input_tokens is not None and found.input_tokens.tolist() == [row["input_length"] for row in rows]


@pytest.mark.parametrize(
    ("unit", "text", "ns"),
    [
        ("s", "1700000000.123456789", 1700000000123456789),
        ("ms", "0.5", 500_000),
        ("us", "7", 7_000),
        ("ns", "9", 9),
        ("iso", "2026-01-01T00:00:00.25Z", 1767225600_250_000_000),
        ("iso", "2026-01-01 02:00:00+02:00", 1767225600_000_000_000),
    ],
)
def test_times_are_exact_in_every_unit(tmp_path: Path, unit: str, text: str, ns: int) -> None:
    file = tmp_path / "t.csv"
    first = "1970-01-01 00:00:00" if unit == "iso" else "0"
    file.write_text(f"timestamp\n{first}\n{text}\n")
    if ns > 10**18:
        with pytest.raises(UsageError, match="thirty years"):
            trace_of(ReplayStage(file=str(file), unit=unit))  # pyright: ignore
        first = "2025-12-31T23:59:59" if unit == "iso" else "1700000000"
        file.write_text(f"timestamp\n{first}\n{text}\n")
        ns -= 1767225599 * 10**9 if unit == "iso" else 1700000000 * 10**9
    assert trace_of(ReplayStage(file=str(file), unit=unit)).t_ns[1] == ns  # pyright: ignore


def test_a_replay_at_scale_one_is_the_trace_itself() -> None:
    for spec in (AZURE, MOONCAKE):
        found = trace_of(spec)
        due = replay(found, spec)
        assert np.array_equal(due.offset_ns, found.t_ns)
        assert due.end_ns == found.t_ns[-1] + 1
        assert np.array_equal(due.row, np.arange(60))


instants = st.lists(st.integers(0, 10**12), min_size=2, max_size=40).map(sorted)


@given(instants, st.floats(0.01, 100), st.floats(0, 800), st.none() | st.floats(0.001, 2000))
def test_scaled_and_cut_replays_are_what_arithmetic_says(
    t_ns: list[int], scale: float, start_s: float, duration_s: float | None
) -> None:
    base = trace(*t_ns)
    kept = [t for t in base.t_ns.tolist() if t >= round(start_s * 1e9)]
    spec = stage(scale=scale, start_s=start_s, duration_s=duration_s)
    if not kept:
        with pytest.raises(UsageError, match="leaves nothing"):
            replay(base, spec)
        return
    wanted = [(t - round(start_s * 1e9)) / scale for t in kept]
    if duration_s is not None:
        wanted = [t for t in wanted if round(t) < round(duration_s * 1e9)]
    due = replay(base, spec)
    assert due.offset_ns.tolist() == pytest.approx(wanted, abs=1, rel=1e-12)
    assert not len(due.offset_ns) or due.offset_ns[-1] < due.end_ns


@given(instants, st.integers(1, 200), st.sampled_from([1.0, 2.0]))
def test_a_loop_repeats_the_trace_one_mean_gap_after_its_last_request(
    t_ns: list[int], requests: int, scale: float
) -> None:
    base = trace(*t_ns)
    if t_ns[0] == t_ns[-1]:
        with pytest.raises(UsageError, match="two instants"):
            replay(base, stage(loop=True, requests=requests))
        return
    n, span = len(t_ns), t_ns[-1] - t_ns[0]
    lap_ns = span + round(span / (n - 1))
    due = replay(base, stage(loop=True, requests=requests, scale=scale))
    wanted = [(int(base.t_ns[k % n]) + k // n * lap_ns) / scale for k in range(requests)]
    assert due.offset_ns.tolist() == pytest.approx(wanted, abs=0.5)
    assert due.lap.tolist() == [k // n for k in range(requests)]
    assert due.row.tolist() == [k % n for k in range(requests)]


@given(instants, st.floats(0.1, 5000))
def test_a_loop_fills_its_duration(t_ns: list[int], duration_s: float) -> None:
    base = trace(*t_ns)
    span_ns = t_ns[-1] - t_ns[0]
    if span_ns < 10**9:
        return
    due = replay(base, stage(loop=True, duration_s=duration_s))
    lap_ns = span_ns + round(span_ns / (len(t_ns) - 1))
    longest_gap_ns = max([lap_ns - span_ns, *np.diff(base.t_ns).tolist()])
    assert due.end_ns == round(duration_s * 1e9)
    assert np.all(due.offset_ns < due.end_ns) and np.all(np.diff(due.offset_ns) >= 0)
    assert due.end_ns - due.offset_ns[-1] <= longest_gap_ns


def test_a_trace_that_is_too_short_is_told_to_loop() -> None:
    with pytest.raises(UsageError, match="loop = true"):
        replay(trace(0, 5), stage(requests=3))


@given(st.lists(st.integers(0, 5), max_size=60))
def test_turns_count_how_often_a_session_was_there_before(session: list[int]) -> None:
    assert turns_of(np.array(session, int)).tolist() == [session[:i].count(s) for i, s in enumerate(session)]


@pytest.mark.parametrize(
    ("name", "text", "keys", "says"),
    [
        ("t.csv", "timestamp\n1\n3\n2\n", {}, "line 4: timestamp is before"),
        ("t.csv", "timestamp\n1\nsoon\n", {}, "line 3: 'soon' is not a number"),
        ("t.csv", "timestamp\n2026-01-01 10:00:00\n", {}, 'unit = "iso"'),
        ("t.csv", "timestamp\n1\nnan\n", {}, "line 3: 'nan'"),
        ("t.csv", "timestamp\n1e999999999\n", {}, "line 2"),
        ("t.csv", "timestamp\n1\n", {"unit": "iso"}, "line 2: '1' is not a date"),
        ("t.csv", "timestamp\n2026-02-30 10:00:00\n", {"unit": "iso"}, "line 2"),
        ("t.csv", "when,n\n1,2\n", {}, "line 2: there is no 'timestamp'; choose from when, n"),
        ("t.csv", "timestamp,n\n1,2\n\n2\n", {}, "line 4: 1 fields where the header names 2"),
        ("t.csv", "timestamp,n\n1,0\n", {"input": "n"}, "line 2: n is 0"),
        ("t.csv", "timestamp,n\n1,2.5\n", {"output": "n"}, "line 2: n is 2.5"),
        ("t.csv", "timestamp\n", {}, "holds no requests"),
        ("t.csv", "", {}, "holds no requests"),
        ("t.jsonl", '{"timestamp": 1}\n{"timestamp": \n', {}, "line 2: not a JSON object"),
        ("t.jsonl", "[1]\n", {}, "line 1: not a JSON object"),
        ("t.jsonl", '{"timestamp": true}\n', {}, "line 1: 'True'"),
        ("t.jsonl", '{"timestamp": null}\n', {}, "line 1: 'None'"),
        ("t.parquet", "x", {}, "unknown ending"),
        ("t.csv.gz", "timestamp\n1\n", {}, "cannot read the trace"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_line(
    tmp_path: Path, name: str, text: str, keys: dict[str, str], says: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        trace_of(ReplayStage(file=str(tmp_path / name), **keys))  # pyright: ignore
    assert name in str(caught.value)


def test_a_missing_and_a_cut_off_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        trace_of(ReplayStage(file=str(tmp_path / "none.csv")))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(Path(MOONCAKE.file).read_bytes()[:200])
    with pytest.raises(UsageError, match="cannot read the trace"):
        trace_of(ReplayStage(file=str(cut), unit="ms"))


@settings(max_examples=20)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_numbers_are_read_from_plain_lines_and_from_columns(tmp_path_factory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "plain.txt").write_text("\n".join(map(repr, values)))
    (folder / "table.csv").write_text("a,b\n" + "".join(f"x,{v!r}\n" for v in values))
    assert read_numbers(folder / "plain.txt", None).tolist() == values
    assert read_numbers(folder / "table.csv", "b").tolist() == values
