"""Nsight Systems' export, DLProf's database, rocprof and tables in CSV."""

import csv
import gzip
import json
import sqlite3

import pytest
from tests.unit.profiles.captures import DATA, NSYS

from pinchpoint.errors import UsageError
from pinchpoint.profiles import Limits, analyse


def unpacked(folder):
    path = folder / "profile.sqlite"
    path.write_bytes(gzip.decompress(NSYS.read_bytes()))
    return path


def test_an_export_gives_the_totals_that_sql_gives(tmp_path):
    path = unpacked(tmp_path)
    with sqlite3.connect(path) as connection:
        query = (
            "SELECT deviceId, value, COUNT(*), SUM(end - start) FROM CUPTI_ACTIVITY_KIND_KERNEL "
            "JOIN StringIds ON id = demangledName GROUP BY 1, 2"
        )
        theirs = {(device, name): (count, total / 1e9) for device, name, count, total in connection.execute(query)}
    connection.close()
    found = analyse([path])
    ours = {
        (rank.device.index, row.name): (row.calls, pytest.approx(row.total_s))
        for rank in found.ranks for row in rank.kernels if not row.name.startswith("Mem")
    }  # fmt: skip
    assert theirs == ours
    assert found.format == "nsys_sqlite"
    assert [rank.label for rank in found.ranks] == ["GPU 0", "GPU 1"]
    assert analyse([NSYS]).ranks[0].gpu == found.ranks[0].gpu


def test_calls_of_an_export_are_linked_within_their_process(tmp_path):
    rank = analyse([NSYS]).ranks[0]
    assert rank.launch.launches > 50
    assert rank.launch.queue_delay.count > 50
    assert {"aten::copy_", "aten::addmm"} <= {row.name for row in rank.host.ops}
    assert not any("_v" in (gap.host_call or "") for gap in rank.largest_gaps)
    assert rank.origin_unix_ns // 10**9 == 1779782390


@pytest.mark.parametrize(
    "table",
    [
        "NVTX_EVENTS", "CUPTI_ACTIVITY_KIND_RUNTIME", "StringIds", "CUPTI_ACTIVITY_KIND_MEMCPY",
        "TARGET_INFO_SESSION_START_TIME", "CUPTI_ACTIVITY_KIND_KERNEL",
    ],
)  # fmt: skip
def test_a_table_that_is_not_there_is_missed_only_where_it_is_needed(tmp_path, table):
    path = unpacked(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()
    found = analyse([path])
    assert found.problems == ()
    assert len(found.ranks) == 2


def test_an_older_schema_with_fewer_columns_is_read(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
        connection.execute("INSERT INTO StringIds VALUES (1, 'nvjet_tst'), (2, 'step 1')")
        connection.execute(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INT, end INT, deviceId INT, streamId INT, "
            "correlationId INT, shortName INT)"
        )
        connection.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (100, 200, 0, 7, 1, 1), ('x', NULL, 0, 7, 2, 9)"
        )
        connection.execute("CREATE TABLE NVTX_EVENTS (start INT, end INT, textId INT, globalTid INT)")
        connection.execute("INSERT INTO NVTX_EVENTS VALUES (50, 300, 2, 1), (1, NULL, 2, 1)")
    connection.close()
    (rank,) = analyse([path]).ranks
    assert rank.kernels[0].name == "nvjet_tst"
    assert [step.name for step in rank.steps] == ["step 1"]


def test_graphs_traced_as_a_whole_are_busy_time_and_the_remedy_is_named(tmp_path):
    path = tmp_path / "graph.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
        connection.execute(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INT, end INT, deviceId INT, streamId INT, "
            "correlationId INT, graphId INT)"
        )
        connection.execute("INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (0, 1000, 0, 7, 1, 3)")
    connection.close()
    (rank,) = analyse([path]).ranks
    assert rank.gpu.busy_s == pytest.approx(1e-6)
    assert any("--cuda-graph-trace=node" in note for note in rank.notes)


def test_an_export_that_was_cut_gives_rows_and_says_what_is_missing(tmp_path):
    path = unpacked(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    try:
        found = analyse([path])
    except UsageError as error:
        assert "damaged" in str(error)
    else:
        assert found.problems
        assert not found.files[0].complete


def test_a_database_is_not_written_to(tmp_path):
    path = unpacked(tmp_path)
    before = path.read_bytes()
    path.chmod(0o400)
    analyse([path])
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["profile.sqlite"]


def test_another_database_is_refused_in_words(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    connection.close()
    with pytest.raises(UsageError, match="neither of Nsight Systems nor of DLProf"):
        analyse([path])


def dlprof(folder, *, kernels):
    """With the columns that DLProf 1.8 documents for its views."""
    path = folder / "dlprof_dldb.sqlite"
    with sqlite3.connect(path) as connection:
        make = {
            "view_op_nodes": "aggr_id, domain_name, gpu_time, cpu_time, op_node_name, direction, op_node_type, "
            "num_calls, tc_eligible, using_tc, kernel_calls",
            "view_resource_usage_breakdown": "aggr_id, domain_name, tc_duration_pct, non_tc_duration_pct, "
            "memory_duration_pct, dataloader_duration_pct, io_duration_pct, cpu_duration_pct, other_duration_pct",
            "view_gpu_devices": "aggr_id, domain_name, device_id, gpu_name, cuda_major, cuda_minor, sm_count",
            "view_iterations_profiled": "aggr_id, domain_name, iter_value, start_time, duration",
        }
        if kernels:
            make["view_iteration_kernels"] = (
                "aggr_id, domain_name, iter_value, op_node_name, kernel_name, device_id, kernel_timestamp, "
                "kernel_duration, uses_tc, grid, block"
            )
        for view, columns in make.items():
            connection.execute(f"CREATE TABLE t_{view} ({columns})")
            connection.execute(f"CREATE VIEW {view} AS SELECT * FROM t_{view}")
        connection.execute("INSERT INTO t_view_op_nodes VALUES (1, 'd', 5000, 10, 'conv', 'fprop', 'Conv', 2, 1, 1, 4)")
        connection.execute("INSERT INTO t_view_resource_usage_breakdown VALUES (1, 'd', 40, 20, 5, 25, 0, 10, 0)")
        connection.execute("INSERT INTO t_view_gpu_devices VALUES (1, 'd', 0, 'A100-SXM4-40GB', 8, 0, 108)")
        connection.execute(
            "INSERT INTO t_view_iterations_profiled VALUES (1, 'd', 1, 0, 1000), (1, 'd', 2, 1000, 1000)"
        )
        if kernels:
            rows = (
                "(1, 'd', 1, 'conv', 'ampere_sgemm_128x64', 0, 100, 300, 1, '', ''), "
                "(1, 'd', 2, 'conv', 'volta_gemm', 0, 1100, 100, 0, '', '')"
            )
            connection.execute(f"INSERT INTO t_view_iteration_kernels VALUES {rows}")
    connection.close()
    return path


def test_dlprofs_kernels_and_iterations_are_read_and_its_word_on_tensor_cores_counts(tmp_path):
    (rank,) = analyse([dlprof(tmp_path, kernels=True)]).ranks
    assert rank.gpu.busy_s == pytest.approx(400e-9)
    assert [(step.name, step.kernels) for step in rank.steps] == [("iteration 1", 1), ("iteration 2", 1)]
    assert (rank.matrix_units.used_share, rank.matrix_units.source) == (pytest.approx(0.75), "dlprof")
    assert rank.device.name == "A100-SXM4-40GB"
    assert any("loading data 25.0 %" in note for note in rank.notes)


def test_a_dlprof_database_without_kernels_gives_the_totals_of_its_operators(tmp_path):
    found = analyse([dlprof(tmp_path, kernels=False)])
    (rank,) = found.ranks
    assert found.format == "dlprof_sqlite"
    assert rank.gpu is None
    assert (rank.kernels[0].name, rank.kernels[0].calls, rank.kernels[0].total_s) == ("conv", 4, pytest.approx(5e-6))


def test_the_kernel_summary_of_nsys_stats_is_read():
    path = DATA / "nsys_kern_sum.csv"
    with path.open() as lines:
        theirs = {row["Name"]: row for row in csv.DictReader(lines)}
    found = analyse([path])
    (rank,) = found.ranks
    assert found.format == "nsys_csv"
    assert {row.name: row.calls for row in rank.kernels} == {
        name: int(row["Instances"]) for name, row in theirs.items()
    }
    for row in rank.kernels:
        assert row.total_s == pytest.approx(float(theirs[row.name]["Total Time (ns)"]) / 1e9)
        assert row.max_s == pytest.approx(float(theirs[row.name]["Max (ns)"]) / 1e9)
    assert rank.gpu is None
    assert "totals only" in rank.notes[0]
    assert {row.busy_s for row in rank.categories} == {None}


def test_several_reports_in_one_file_come_apart(tmp_path):
    path = tmp_path / "stats.csv"
    path.write_text(
        "Generating SQLite file x.sqlite\n ** CUDA API Summary (cuda_api_sum):\n\n"
        "Time (%),Total Time (us),Num Calls,Avg (us),Med (us),Min (us),Max (us),StdDev (us),Name\n"
        "90.0,900,3,300,300,100,500,1,cudaLaunchKernel\n\n"
        "Time (%),Total Time (us),Instances,Avg (us),Med (us),Min (us),Max (us),StdDev (us),Name\n"
        '80.0,"1,800",2,900,900,800,1000,1,"void gemm<a, b>(int)"\nno,numbers,here,at,all,for,this,one,row\n\n'
        "Time (%),Total Time (us),Count,Avg (us),Med (us),Min (us),Max (us),StdDev (us),Operation\n"
        "100.0,50,5,10,10,10,10,0,[CUDA memcpy Host-to-Device]\n"
    )
    found = analyse([path])
    (rank,) = found.ranks
    assert {row.category: (row.kernels, row.total_s) for row in rank.categories} == {
        "gemm": (2, pytest.approx(1.8e-3)), "memcpy_h2d": (5, pytest.approx(50e-6))
    }  # fmt: skip
    assert rank.host.ops[0].name == "cudaLaunchKernel"
    assert rank.host.ops[0].busy_s == pytest.approx(900e-6)
    assert [problem.events_lost for problem in found.problems] == [1]


def test_a_kernel_report_of_dlprof_is_read(tmp_path):
    path = tmp_path / "dlprof_kernel.csv"
    path.write_text(
        "Kernel Name,Using TC,Calls,Total GPU Time (ns),Min (ns),Max (ns)\n"
        "ampere_sgemm,yes,2,3000,1000,2000\nvolta_gemm,no,1,1000,1000,1000\n"
    )
    (rank,) = analyse([path]).ranks
    assert rank.matrix_units.used_share == pytest.approx(0.75)


def test_dispatches_of_rocprof_are_read_with_their_names():
    (rank,) = analyse([DATA / "rocprofv3_excerpt.json.gz"], Limits(kernels=1000)).ranks
    rows = json.loads(gzip.decompress((DATA / "rocprofv3_excerpt.json.gz").read_bytes()))["rocprofiler-sdk-tool"][0]
    records = rows["buffer_records"]["kernel_dispatch"]
    assert sum(row.calls for row in rank.kernels) == len(records)
    total = sum(row["end_timestamp"] - row["start_timestamp"] for row in records) / 1e9
    assert sum(row.total_s for row in rank.kernels) == pytest.approx(total)
    assert rank.device.name == "AMD Instinct MI350X"
    assert all(row.name != "(unnamed)" for row in rank.kernels)


def test_a_cut_rocprof_result_still_names_its_kernels(tmp_path):
    text = gzip.decompress((DATA / "rocprofv3_excerpt.json.gz").read_bytes())
    path = tmp_path / "cut.json"
    path.write_bytes(text[: text.index(b'"kernel_dispatch": [') + 20_000])
    found = analyse([path])
    assert found.problems
    assert found.ranks[0].gpu.kernels > 20
    assert all(row.name != "(unnamed)" for row in found.ranks[0].kernels)


def test_a_table_of_counters_gives_its_dispatches():
    (rank,) = analyse([DATA / "rocprof_pmc.csv.gz"]).ranks
    assert (rank.kernels[0].calls, rank.gpu.kernels) == (3, 3)
    assert rank.kernels[0].name.startswith("vecCopy")
