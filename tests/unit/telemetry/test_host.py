"""What the host source reads of the kernel's files, and that absence is never zero."""

from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import load_catalog
from pinchpoint.telemetry.cgroups import Cgroups
from pinchpoint.telemetry.config import Reading
from pinchpoint.telemetry.host import Host, cpu_readings
from pinchpoint.telemetry.host.cpu import CpuTimes, by_core, by_mode, core_shares, parse_schedstat, parse_stat
from pinchpoint.telemetry.host.disk import parse_diskstats
from pinchpoint.telemetry.host.limits import parse_file_nr
from pinchpoint.telemetry.host.memory import parse_meminfo, parse_vmstat
from pinchpoint.telemetry.host.network import (
    TCP,
    parse_counters,
    parse_dev,
    parse_flows,
    parse_sockstat,
    parse_softnet,
)
from pinchpoint.telemetry.host.pressure import parse_pressure
from pinchpoint.telemetry.host.sockets import Sockets, parse_sockets
from pinchpoint.telemetry.kept_file import KeptFile

Times = namedtuple("Times", "user system idle iowait steal guest guest_nice")


def values(readings: list[Reading]) -> dict[str, float]:
    return {(r.series or "") + (f" {r.labels}" if r.labels else ""): r.value for r in readings}


# -- CPU -----------------------------------------------------------------------------------------------------------


def test_cpu_ratios_count_guest_time_once_and_waiting_as_idle() -> None:
    before = [Times(0, 0, 0, 0, 0, 0, 0), Times(0, 0, 0, 0, 0, 0, 0)]
    after = [Times(60, 20, 10, 5, 5, 30, 0), Times(0, 0, 50, 50, 0, 0, 0)]
    assert values(cpu_readings(before, after)) == pytest.approx(
        {"host.cpu_used_ratio": 0.4, "host.cpu_core_max_ratio": 0.8, "host.cpu_steal_ratio": 0.025}
    )


def test_no_ratio_is_made_up_when_no_tick_went_by_or_a_core_came_or_went() -> None:
    times = [Times(1, 1, 1, 1, 1, 0, 0)]
    assert cpu_readings(times, times) == []
    assert cpu_readings(times, times * 2) == []


core_times = st.builds(CpuTimes, *[st.integers(0, 10**6)] * 8, st.just(0), st.just(0))


@given(st.lists(st.tuples(core_times, core_times), min_size=1, max_size=8))
def test_shares_of_a_machine_lie_between_zero_and_one_and_its_busiest_core_is_above_the_mean(
    pairs: list[tuple[CpuTimes, CpuTimes]],
) -> None:
    shares = core_shares([old for old, _ in pairs], [new for _, new in pairs], range(len(pairs)))
    told = values(cpu_readings([old for old, _ in pairs], [new for _, new in pairs]) + by_mode(shares))
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in told.values())
    if told:
        assert told["host.cpu_core_max_ratio"] >= told["host.cpu_used_ratio"] - 1e-9


def test_a_core_that_does_nothing_but_network_interrupts_stands_out() -> None:
    idle = CpuTimes(0, 0, 0, 100, 0, 0, 0, 0, 0, 0)
    soft = CpuTimes(0, 0, 0, 5, 0, 0, 95, 0, 0, 0)
    shares = core_shares([CpuTimes(*[0] * 10)] * 4, [idle, idle, idle, soft], [0, 1, 2, 3])
    told = values(by_mode(shares))
    assert told["host.cpu_core_softirq_max_ratio"] == pytest.approx(0.95)
    assert told["host.cpu_softirq_ratio"] == pytest.approx(0.95 / 4)


def test_a_machine_of_many_cores_tells_of_its_busiest() -> None:
    after = [CpuTimes(core, 0, 0, 1000 - core, 0, 0, 0, 0, 0, 0) for core in range(500)]
    told = by_core(core_shares([CpuTimes(*[0] * 10)] * 500, after, range(500)))
    assert len(told) == 128
    assert {r.labels for r in told} == {f"cpu={core}" for core in range(372, 500)}


def test_the_machines_counters_come_from_the_stat_file() -> None:
    cores, readings = parse_stat(
        b"cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu3 1 1 1 1\nintr 77 0 1 2\nctxt 5\nbtime 1\n"
        b"processes 6\nprocs_running 2\nprocs_blocked 1\nsoftirq 9 1\n"
    )
    assert cores == {0: CpuTimes(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), 3: CpuTimes(1, 1, 1, 1, 0, 0, 0, 0, 0, 0)}
    assert values(readings) == {
        "host.interrupts_total": 77,
        "host.context_switches_total": 5,
        "host.forks_total": 6,
        "host.runnable": 2,
        "host.blocked": 1,
    }


def test_waiting_for_a_core_is_summed_over_cores() -> None:
    text = b"version 15\ntimestamp 1\ncpu0 0 0 0 0 0 0 2000000000 500000000 9\ndomain0 3 0 0\ncpu1 0 0 0 0 0 0 1 1 1\n"
    assert values(parse_schedstat(text)) == pytest.approx(
        {"host.run_s_total": 2.000000001, "host.run_queue_wait_s_total": 0.500000001}
    )
    assert parse_schedstat(b"") == []


# -- the other files -----------------------------------------------------------------------------------------------


def test_kernel_counters_are_found_by_name_whatever_their_place() -> None:
    text = b"Ip: A B\nIp: 1 2\nTcp: X RetransSegs Y\nTcp: -1 42 7\n"
    assert values(parse_counters(text, b"Tcp:", TCP)) == {"host.tcp_retransmits_total": 42.0}
    assert parse_counters(b"Tcp: RetransSegs\n", b"Tcp:", TCP) == []
    assert parse_counters(b"", b"Tcp:", TCP) == []


def test_pressure_is_seconds_of_stall() -> None:
    text = b"some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
    assert parse_pressure(text) == {"some": 2.5, "full": 9e-6}
    assert parse_pressure(b"") == {}


def test_memory_is_told_in_bytes_and_huge_pages_in_pages() -> None:
    told = values(
        parse_meminfo(b"MemTotal: 100 kB\nMemAvailable: 25 kB\nDirty: 1 kB\nHugePages_Total: 3\nOther: 1 kB\n")
    )
    assert told == {
        "host.memory_total_bytes": 102400,
        "host.memory_available_bytes": 25600,
        "host.memory_dirty_bytes": 1024,
        "host.hugepages": 3,
        "host.memory_used_ratio": 0.75,
    }
    assert values(parse_vmstat(b"nr_free 1\npswpin 2\npgmajfault 3\n")) == {
        "host.swap_in_pages_total": 2,
        "host.major_faults_total": 3,
    }


def test_disks_that_were_used_are_told_and_partitions_are_not() -> None:
    text = (
        b" 8 0 sda 10 0 100 1000 20 0 200 2000 0 3000 4000 0 0 0 0\n"
        b" 8 1 sda1 10 0 100 1000 20 0 200 2000 0 3000 4000 0 0 0 0\n"
        b" 7 0 loop0 0 0 0 0 0 0 0 0 0 0 0\n"
    )
    told = values(parse_diskstats(text, frozenset({"sda", "loop0"})))
    assert told["host.disk_read_bytes_total disk=sda"] == 51200
    assert told["host.disk_written_bytes_total disk=sda"] == 102400
    assert told["host.disk_write_s_total disk=sda"] == 2.0
    assert told["host.disk_busy_s_total disk=sda"] == 3.0
    assert told["host.disk_queue_s_total disk=sda"] == 4.0
    assert {name.rpartition(" ")[2] for name in told} == {"disk=sda"}


def test_interfaces_that_were_used_are_told() -> None:
    text = (
        b"Inter-|   Receive  |  Transmit\n face |bytes packets\n"
        b"  eth0:1 2 3 4 0 0 0 0 9 10 11 12 0 0 0 0\n  tun0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    )
    told = values(parse_dev(text))
    assert told["host.net_rx_bytes_total nic=eth0"] == 1
    assert told["host.net_rx_drops_total nic=eth0"] == 4
    assert told["host.net_tx_errors_total nic=eth0"] == 11
    assert not any("tun0" in name for name in told)


def test_numbers_of_cores_are_hexadecimal_and_summed() -> None:
    assert values(parse_softnet(b"0000000a 00000001 00000010 0\n00000001 00000000 00000001 0\n")) == {
        "host.softnet_processed_total": 11,
        "host.softnet_dropped_total": 1,
        "host.softnet_squeezed_total": 17,
    }
    assert values(parse_flows(b"entries drop insert_failed\n00000001 0000000f 00000002\n00000001 00000001 0\n")) == {
        "host.conntrack_drops_total": 16,
        "host.conntrack_insert_failures_total": 2,
    }
    assert parse_flows(b"") == parse_softnet(b"") == []


def test_sockets_of_both_families_are_added_up() -> None:
    told = values(parse_sockstat(b"sockets: used 9\nTCP: inuse 2 orphan 1 tw 4 alloc 3 mem 2\nTCP6: inuse 5\n"))
    assert told["host.tcp_sockets"] == 7
    assert told["host.tcp_time_wait_sockets"] == 4
    assert told["host.tcp_memory_bytes"] > 0


def test_a_limit_that_nobody_can_reach_is_left_out() -> None:
    assert values(parse_file_nr(b"10\t0\t1000\n")) == {"host.open_files": 10, "host.open_files_limit": 1000}
    assert values(parse_file_nr(b"10\t0\t9223372036854775807\n")) == {"host.open_files": 10}


HEAD = b"  sl  local_address rem_address   st tx_queue\n"


def test_ports_are_those_that_the_busiest_destination_has_taken() -> None:
    table = HEAD + (
        b"   0: 0100007F:1F90 00000000:0000 0A 0:0\n"  # listens on 8000
        b"   1: 0100007F:1F90 0100007F:8001 01 0:0\n"  # accepted: its local port is the service's
        b"   2: 0100007F:8001 0100007F:1F90 01 0:0\n"
        b"   3: 0100007F:8002 0100007F:1F90 06 0:0\n"
        b"   4: 0100007F:8003 0200007F:1F90 01 0:0\n"  # another destination: its ports do not compete
    )
    told = values(parse_sockets([table, b""], (0x8000, 0xFFFF)))
    assert told["host.ports_used"] == 2
    assert told["host.tcp_state_sockets state=listen"] == 1
    assert told["host.tcp_state_sockets state=time_wait"] == 1
    assert told["host.tcp_state_sockets state=established"] == 3
    assert parse_sockets([b"", b""], (1, 2)) == []


def test_sockets_are_counted_now_and_then_and_told_every_time(tmp_path: Path) -> None:
    line = b"   0: 0100007F:1F90 00000000:0000 0A 0:0\n"
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_bytes(HEAD + line)
    sockets = Sockets(tmp_path)
    assert values(sockets.read(0)) == {"host.tcp_state_sockets state=listen": 1}
    (tmp_path / "net" / "tcp").write_bytes(HEAD + line + line)
    assert values(sockets.read(4_000_000_000)) == {"host.tcp_state_sockets state=listen": 1}
    assert values(sockets.read(3_600_000_000_000)) == {"host.tcp_state_sockets state=listen": 2}


# -- control groups ------------------------------------------------------------------------------------------------


def test_a_group_of_version_two_tells_quota_throttling_and_memory(tmp_path: Path) -> None:
    process, group = tmp_path / "proc", tmp_path / "mount" / "pod"
    process.mkdir()
    group.mkdir(parents=True)
    (process / "cgroup").write_text("0::/pod\n")
    (group / "cpu.stat").write_text("usage_usec 9\nnr_periods 100\nnr_throttled 40\nthrottled_usec 2500000\n")
    (group / "cpu.max").write_text("150000 100000\n")
    (group / "memory.current").write_text("1000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    (group / "memory.max").write_text("max\n")
    groups = Cgroups("server", process, tmp_path / "mount")
    assert values(groups.read(0)) == {
        "server.cgroup_periods_total": 100,
        "server.cgroup_throttled_periods_total": 40,
        "server.cgroup_throttled_s_total": 2.5,
        "server.cgroup_quota_cores": 1.5,
        "server.cgroup_memory_bytes": 700,
    }


def test_a_group_of_version_one_tells_the_same(tmp_path: Path) -> None:
    process, cpu, memory = tmp_path / "proc", tmp_path / "mount" / "cpu" / "pod", tmp_path / "mount" / "memory" / "pod"
    for directory in (process, cpu, memory):
        directory.mkdir(parents=True)
    (process / "cgroup").write_text("4:memory:/pod\n1:cpu,cpuacct:/pod\n")
    (cpu / "cpu.stat").write_text("nr_periods 10\nnr_throttled 4\nthrottled_time 500000000\n")
    (cpu / "cpu.cfs_quota_us").write_text("50000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    (memory / "memory.usage_in_bytes").write_text("1000\n")
    (memory / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 400\n")
    (memory / "memory.limit_in_bytes").write_text("2000\n")
    told = values(Cgroups("host", process, tmp_path / "mount").read(0))
    assert told["host.cgroup_throttled_s_total"] == 0.5
    assert told["host.cgroup_quota_cores"] == 0.5
    assert told["host.cgroup_memory_bytes"] == 600
    assert told["host.cgroup_memory_limit_bytes"] == 2000


# -- the whole -----------------------------------------------------------------------------------------------------


def test_a_machine_that_tells_nothing_has_no_readings_but_our_own_limit(tmp_path: Path) -> None:
    host = Host(tmp_path / "proc", tmp_path / "sys")
    for _ in range(2):
        assert {r.series for r in host.read()[1]} <= {"host.process_open_files_limit"}


def test_ratios_begin_with_the_second_reading_at_the_earliest_and_counters_with_the_first(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu0 10 0 0 90 0 0 0 0 0 0\nctxt 7\n")
    host = Host(tmp_path, tmp_path / "sys")
    assert values(host.read()[1]).keys() >= {"host.context_switches_total", "host.cpu_cores"}
    assert "host.cpu_used_ratio" not in values(host.read()[1])
    stat.write_text("cpu0 60 0 0 140 0 0 0 0 0 0\nctxt 9\n")
    assert values(host.read()[1])["host.cpu_used_ratio"] == 0.5


def test_this_machine_is_read_and_every_series_is_in_the_catalogue() -> None:
    host = Host()
    host.read()
    told = values(host.read()[1])
    assert 0 < told["host.memory_used_ratio"] < 1
    assert told["host.open_files"] > 0
    assert all(load_catalog().entry(reading.series or "") is not None for reading in host.read()[1])


def test_a_file_that_comes_later_is_read_and_one_that_goes_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "nf_conntrack_count"
    file = KeptFile(path)
    assert file.number() is None
    path.write_text("5\n")
    assert file.number() == 5
    path.write_text("max\n")
    assert file.number() is None


def test_a_long_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 200_001)
    assert len(KeptFile(path).read()) == 200_001
