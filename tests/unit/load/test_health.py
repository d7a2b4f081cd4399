"""The load process watches its own host: counters of the kernel, control groups, pauses of the interpreter."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pinchpoint.catalog import load_catalog
from pinchpoint.cgroup import cpu_groups, quota_cores, read_throttling, usable_cores
from pinchpoint.load.health import ClientHealth

NETSTAT = (
    "TcpExt: SyncookiesSent PruneCalled RcvPruned TCPRcvQDrop TCPToZeroWindowAdv\n"
    "TcpExt: 9 1 2 3 4\n"
    "IpExt: InNoRoutes\n"
    "IpExt: 77\n"
)
SNMP = "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm OutSegs RetransSegs\nTcp: 1 1000 5\n"
SOCKSTAT = "sockets: used 17\nTCP: inuse 3 orphan 0 tw 2 alloc 3 mem 369\nUDP: inuse 0 mem 0\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "net").mkdir(parents=True)
    (proc / "net/netstat").write_text(NETSTAT)
    (proc / "net/snmp").write_text(SNMP)
    (proc / "net/sockstat").write_text(SOCKSTAT)
    (proc / "schedstat").write_text("100 5000 7\n")
    (proc / "cgroup").write_text("0::/app/worker\n")
    return proc


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    mount = tmp_path / "cgroup"
    group = mount / "app/worker"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 5\nnr_periods 10\nnr_throttled 2\nthrottled_usec 1500000\n")
    (group / "cpu.max").write_text("max 100000\n")
    (mount / "app/cpu.stat").write_text("nr_periods 20\nnr_throttled 1\nthrottled_usec 500000\n")
    (mount / "app/cpu.max").write_text("150000 100000\n")
    (mount / "cpu.stat").write_text("usage_usec 99\n")
    return mount


@pytest.fixture
def health(proc: Path, mount: Path) -> Iterator[ClientHealth]:
    health = ClientHealth(proc, mount)
    yield health
    health.close()


def test_counters_of_the_network_are_read_by_name_wherever_they_stand(health: ClientHealth) -> None:
    readings = health.read()
    assert readings["client.tcp_prune_calls_total"] == 1
    assert readings["client.tcp_receive_pruned_total"] == 2
    assert readings["client.tcp_receive_dropped_total"] == 3
    assert readings["client.tcp_zero_window_total"] == 4
    assert readings["client.tcp_retransmits_total"] == 5
    assert readings["client.tcp_segments_sent_total"] == 1000
    assert readings["client.tcp_sockets"] == 3
    assert readings["client.tcp_time_wait_sockets"] == 2


def test_a_counter_that_the_kernel_does_not_have_is_left_out_and_not_zero(health: ClientHealth) -> None:
    assert "client.tcp_timeouts_total" not in health.read()


def test_counters_are_read_anew_each_time(health: ClientHealth, proc: Path) -> None:
    health.read()
    (proc / "net/snmp").write_text(SNMP.replace("1000 5", "2000 6"))
    assert health.read()["client.tcp_retransmits_total"] == 6


def test_throttling_is_counted_on_every_level_of_the_groups(health: ClientHealth) -> None:
    readings = health.read()
    assert readings["client.cgroup_periods_total"] == 30
    assert readings["client.cgroup_throttled_periods_total"] == 3
    assert readings["client.cgroup_throttled_s_total"] == pytest.approx(2.0)


def test_the_wait_for_a_core_counts_since_the_reading_before(health: ClientHealth, proc: Path) -> None:
    (proc / "schedstat").write_text("100 250005000 9\n")
    assert health.read()["client.run_queue_wait_s"] == pytest.approx(0.25)
    assert health.read()["client.run_queue_wait_s"] == 0


def test_collections_and_their_pauses_are_counted_since_the_reading_before(health: ClientHealth) -> None:
    gc.collect()
    first, second = health.read(), health.read()
    assert first["client.gc_runs"] >= 1
    assert 0 < first["client.gc_pause_max_s"] <= first["client.gc_pause_s"]
    assert second["client.gc_runs"] == second["client.gc_pause_s"] == 0


def test_after_close_nothing_listens_to_the_collector_and_no_file_is_left_open(proc: Path, mount: Path) -> None:
    listeners, files = len(gc.callbacks), len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts, no paths
    health = ClientHealth(proc, mount)
    health.close()
    health.close()
    assert len(gc.callbacks) == listeners
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_a_system_without_these_files_yields_what_the_interpreter_knows(tmp_path: Path) -> None:
    health = ClientHealth(tmp_path / "nothing", tmp_path / "nothing")
    readings = health.read()
    health.close()
    assert "client.tcp_retransmits_total" not in readings
    assert "client.cgroup_periods_total" not in readings
    assert readings["client.worker_cpu_s"] >= 0


def test_every_reading_of_this_system_is_in_the_catalogue() -> None:
    health = ClientHealth()
    names = set(health.read())
    health.close()
    assert names and {name for name in names if load_catalog().entry(name) is None} == set()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_open_files_grow_with_each_descriptor() -> None:
    health = ClientHealth()
    before = health.read()["client.open_files"]
    pipes = [os.pipe() for _ in range(10)]
    after = health.read()["client.open_files"]
    for ends in pipes:
        for fd in ends:
            os.close(fd)
    health.close()
    assert after == before + 20


# -- control groups ----------------------------------------------------------------------------------------------------


def test_the_tightest_quota_of_all_levels_counts(proc: Path, mount: Path) -> None:
    groups = cpu_groups(proc, mount)
    assert groups[0] == mount / "app/worker"
    assert quota_cores(groups) == pytest.approx(1.5)
    assert usable_cores(groups) <= 1.5


def test_version_1_of_the_groups_is_read_too(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    group = mount / "cpu,cpuacct/docker/abc"
    group.mkdir(parents=True)
    (mount / "cpu").symlink_to("cpu,cpuacct")
    proc.mkdir()
    (proc / "cgroup").write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n")
    (group / "cpu.stat").write_text("nr_periods 4\nnr_throttled 1\nthrottled_time 2000000000\n")
    (group / "cpu.cfs_quota_us").write_text("50000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    groups = cpu_groups(proc, mount)
    assert len(groups) == 1
    assert quota_cores(groups) == 0.5
    assert read_throttling((group / "cpu.stat").read_bytes()) == (4, 1, 2_000_000_000)


def test_in_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    mount.mkdir()
    (proc / "cgroup").write_text("0::/not/visible/here\n")
    (mount / "cpu.stat").write_text("nr_periods 1\nnr_throttled 0\nthrottled_usec 0\n")
    assert cpu_groups(proc, mount) == [mount]


@pytest.mark.parametrize("quota", ["max 100000\n", "", "nonsense\n"])
def test_no_readable_quota_is_no_quota(tmp_path: Path, quota: str) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert quota_cores([tmp_path]) is None


def test_version_1_without_a_quota_says_minus_one(tmp_path: Path) -> None:
    (tmp_path / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert quota_cores([tmp_path]) is None


def test_a_group_that_counts_no_throttling_says_nothing() -> None:
    assert read_throttling(b"usage_usec 5\n") is None
