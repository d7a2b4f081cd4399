"""Damaged, odd and hostile trace files: what can be read is read, and what was lost is said."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.profiles.captures import BERT, DATA, launch, span, work, written

from pinchpoint.errors import UsageError
from pinchpoint.profiles import Limits, analyse, kineto
from pinchpoint.profiles import json_stream as stream


def kernels(count):
    return [work(f"kernel {number}", 10.0 * number, 5.0) for number in range(count)]


def read(path, limits=None):
    return kineto.read(path, limits or Limits(), 0)


def count(path):
    return len(read(path).traces[0].gpu.start)


def test_a_file_that_ends_early_gives_the_events_before_the_cut(tmp_path):
    whole = written(tmp_path, kernels(100))
    text = whole.read_bytes()
    whole.write_bytes(text[: len(text) * 2 // 3])
    reading = read(whole)
    assert 60 < len(reading.traces[0].gpu.start) < 70
    assert any("cut off" in problem.what for problem in reading.problems)
    inside = [problem for problem in reading.problems if "has no end" in problem.what]
    assert len(inside) == 1
    assert text[inside[0].byte_offset : inside[0].byte_offset + 1] == b"{"
    assert not analyse([whole]).files[0].complete


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_wherever_a_file_is_cut_the_whole_events_before_it_are_read(tmp_path, data):
    whole = written(tmp_path, kernels(12))
    text = whole.read_bytes()
    begin = text.index(b'"traceEvents"') + 16
    cut = data.draw(st.integers(begin, len(text)))
    whole.write_bytes(text[:cut])
    complete = text[:cut].count(b'"stream": 7}}')
    assert count(whole) == complete


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_event_costs_itself_and_no_other(tmp_path, data):
    whole = written(tmp_path, kernels(12))
    text = bytearray(whole.read_bytes())
    event = data.draw(st.integers(1, 10))
    start = text.index(b'{"ph": "X", "cat": "kernel", "name": "kernel %d"' % event)
    at = start + data.draw(st.integers(0, 20))
    text[at : at + 1] = data.draw(st.sampled_from([b"", b'"', b"{", b"}", b"[", b"\\", b"\x00", b"\xff"]))
    whole.write_bytes(text)
    names = read(whole).traces[0].names
    for number in range(12):
        assert number == event or f"kernel {number}" in names


def test_a_name_that_is_no_text_costs_its_event_and_no_other(tmp_path):
    whole = written(tmp_path, kernels(12))
    for name in (b"kernel 7", b'"cat'):  # in a value; in the name of a field
        whole.write_bytes(whole.read_bytes().replace(name, name[:3] + b"\xff" + name[4:], 1))
    names = read(whole).traces[0].names
    assert sum(f"kernel {number}" in names for number in range(12)) >= 10


def test_batches_are_cut_where_events_end_whatever_their_names_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BATCH_BYTES", 300)
    monkeypatch.setattr("pinchpoint.profiles.source.PIECE_BYTES", 64)
    tricky = ["lambda() {}, {", '"},{"ph": "X"', "}\n,\n{", "\\", "ünïcode ❤", "]}", "a" * 1000]
    events = [work(name, 10.0 * number, 5.0) for number, name in enumerate(tricky * 20)]
    reading = read(written(tmp_path, events))
    assert len(reading.traces[0].gpu.start) == len(events)
    assert set(tricky) <= set(reading.traces[0].names)
    assert reading.problems == []


def test_what_stands_behind_the_events_is_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BATCH_BYTES", 200)
    monkeypatch.setattr("pinchpoint.profiles.source.PIECE_BYTES", 50)
    path = tmp_path / "trace.json"
    around = {"deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3"}, {"id": 1, "name": "other"}],
              "distributedInfo": {"rank": 3, "world_size": 8}, "baseTimeNanoseconds": 5}  # fmt: skip
    path.write_text(json.dumps({"traceEvents": kernels(30), **around}))
    rank = analyse([path]).ranks[0]
    assert (rank.rank, rank.world_size, rank.device.name) == (3, 8, "NVIDIA H100 80GB HBM3")
    assert rank.gpu.kernels == 30


def test_a_bare_array_of_events_is_a_trace(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(kernels(3)))
    assert analyse([path]).ranks[0].gpu.kernels == 3


def test_a_gzip_file_that_was_cut_gives_what_was_in_it(tmp_path):
    packed = BERT.read_bytes()
    path = tmp_path / "cut.json.gz"
    path.write_bytes(packed[: len(packed) // 2])
    reading = read(path)
    assert 100 < reading.events_read < 2551
    assert any("gzip file ends before" in problem.what for problem in reading.problems)


def test_a_gzip_file_that_is_damaged_gives_what_was_before_the_damage(tmp_path):
    packed = bytearray(BERT.read_bytes())
    packed[len(packed) // 2 : len(packed) // 2 + 200] = b"\x00" * 200
    path = tmp_path / "bad.json.gz"
    path.write_bytes(packed)
    reading = read(path)
    assert reading.events_read > 100
    assert reading.problems


def test_a_small_file_that_unpacks_without_end_is_stopped(tmp_path):
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b'{"traceEvents": [' + b" " * 50_000_000))
    reading = read(path, Limits(file_bytes=1_000_000))
    assert reading.bytes_read == 1_000_000
    assert any("only the first 1,000,000 bytes" in problem.what for problem in reading.problems)


def test_events_with_fields_missing_or_of_another_type_cost_themselves_only(tmp_path):
    odd = [
        {}, {"ph": "X"}, {"ph": "X", "cat": "kernel", "name": "no time"}, {"ph": "X", "cat": "kernel", "ts": "soon"},
        {"ph": "X", "cat": "kernel", "ts": 1e300, "dur": 1}, {"ph": 7, "cat": [], "name": {}}, {"args": "text"},
        {"ph": "X", "cat": "kernel", "ts": "12.5", "dur": "2", "args": {"stream": "7", "device": "0"}},
        {"ph": "X", "cat": "kernel", "ts": 30, "args": None}, {"ph": "X", "cat": "kernel", "ts": 40, "dur": -5},
    ]  # fmt: skip
    reading = read(written(tmp_path, odd + kernels(5)))
    assert len(reading.traces[0].gpu.start) == 5 + 2
    lost = [problem for problem in reading.problems if problem.events_lost]
    assert lost[0].events_lost == 4
    analyse([written(tmp_path, odd + kernels(5))])


def test_numbers_that_json_does_not_know_do_not_cost_the_event(tmp_path):
    path = written(tmp_path, [work("k", 1.0, 2.0, **{"est. achieved occupancy %": "@"})] * 3)
    path.write_text(path.read_text().replace('"@"', "-nan", 1).replace('"@"', "Infinity", 1).replace('"@"', "NaN"))
    reading = read(path)
    assert (len(reading.traces[0].gpu.start), reading.problems) == (3, [])


def test_depth_without_end_is_no_harm(tmp_path):
    path = tmp_path / "deep.json"
    deep = '{"ph": "X", "cat": "cpu_op", "ts": 1, "args": {"Input Dims": ' + "[" * 100_000 + "]" * 100_000 + "}}"
    path.write_text('{"traceEvents": [' + ",".join([json.dumps(kernels(1)[0]), deep, json.dumps(kernels(2)[1])]) + "]}")
    assert count(path) == 2


def test_a_name_of_a_megabyte_is_cut(tmp_path):
    path = written(tmp_path, [work("k" * 1_000_000, 1.0, 2.0), *kernels(2)])
    trace = read(path).traces[0]
    assert max(map(len, trace.names)) == 2000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, this is no profile\n", "no profile of a known format"),
        (b'{"some": "json"}', "no profile of a known format"),
        (b'{"schemaVersion": 1, "deviceProperties": []}', "without traceEvents"),
        (b"\x1f\x8b\x08\x00broken", "no profile of a known format"),
        (b"\x00" * 5000, "no profile of a known format"),
    ],
)
def test_what_is_no_trace_is_refused_in_words(tmp_path, content, said):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        analyse([path])


def test_no_file_and_no_such_file_are_refused_in_words(tmp_path):
    with pytest.raises(UsageError, match="no profile was named"):
        analyse([])
    with pytest.raises(UsageError, match="cannot be read"):
        analyse([tmp_path / "absent.json"])
    with pytest.raises(UsageError, match="is a directory"):
        analyse([DATA])


def test_hip_spellings_are_understood(tmp_path):
    events = [
        launch(0, 5, 1, "hipExtModuleLaunchKernel"), work("Cijk_Alik_Bljk_BBS_MI16x16x1", 10, 20, call=1),
        launch(6, 5, 2, "hipMemcpyWithStream"),
        work("Memcpy HtoD (Host -> Device)", 40, 5, call=2, category="gpu_memcpy"),
    ]  # fmt: skip
    rank = analyse([written(tmp_path, events)]).ranks[0]
    assert {row.category for row in rank.categories} == {"gemm", "memcpy_h2d"}
    assert rank.launch.launches == 1
    assert rank.matrix_units.used_share == 1.0


def test_several_ranks_come_in_order_and_are_compared(tmp_path):
    def rank_file(rank, wait_us):
        events = [work("gemm", 0, 100), work("ncclDevKernel_AllReduce_Sum_bf16", 100, wait_us, stream=9)]
        return written(tmp_path, events, f"trace_{rank}.json", distributedInfo={"rank": rank, "world_size": 2})

    found = analyse([rank_file(1, 50), rank_file(0, 10)])
    assert [one.label for one in found.ranks] == ["rank 0", "rank 1"]
    assert found.across_ranks.waiting_s == pytest.approx({"rank 0": 0.0, "rank 1": 40e-6})
    assert found.across_ranks.compute_imbalance == pytest.approx(1.0)


def test_a_rank_that_only_the_files_name_tells_is_taken_from_there(tmp_path):
    path = written(tmp_path, kernels(1), "worker_rank-5.pt.trace.json")
    assert analyse([path]).ranks[0].rank == 5


def test_the_same_rank_twice_is_told_apart_by_its_file(tmp_path):
    first, second = (written(tmp_path, kernels(1), f"{n}.json", distributedInfo={"rank": 0}) for n in "ab")
    assert [one.label for one in analyse([first, second]).ranks] == ["rank 0 (file 1)", "rank 0 (file 2)"]


def test_one_process_id_on_two_devices_is_two_devices(tmp_path):
    events = [work("gemm", 0, 10, device=0), work("gemm", 0, 20, device=1)]
    for event in events:
        event["pid"] = 4
    found = analyse([written(tmp_path, events)])
    assert [(one.label, one.gpu.busy_s) for one in found.ranks] == [
        ("GPU 0", pytest.approx(10e-6)), ("GPU 1", pytest.approx(20e-6))
    ]  # fmt: skip


def test_devices_without_end_are_bounded_and_it_is_said(tmp_path):
    events = [work("gemm", 0, 10, device=number) for number in range(500)]
    found = analyse([written(tmp_path, events)], Limits(devices=4))
    assert len(found.ranks) == 4
    assert "names 500 devices" in found.ranks[0].notes[0]


def test_instants_since_1970_name_the_wall_clock(tmp_path):
    now_us = 1_760_000_000_000_000
    path = written(tmp_path, [span("step", now_us, 10), work("gemm", now_us + 5, 10)])
    assert analyse([path]).ranks[0].origin_unix_ns == now_us * 1000
