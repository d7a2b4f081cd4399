"""What virtual collectors read: the words of the live ones, for every replica and every GPU."""

import math

import msgspec
import pytest

from pinchpoint.lab.events import ServiceState
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.readings import GpuReading, HostReading
from pinchpoint.lab.service import VirtualService
from pinchpoint.model import SAMPLE_COLUMNS
from pinchpoint.parts import PartWriter, arrow_schema, part_batches
from pinchpoint.synth.degrade import Degrader
from pinchpoint.synth.telemetry import Telemetry, host_readings, server_readings


def gpu(index: int) -> GpuReading:
    values = {field.name: 0.0 if field.type is float else 0 for field in msgspec.structs.fields(GpuReading)}
    return GpuReading(**{**values, "index": index, "power_w": 300.0, "memory_total_bytes": 64e9})  # pyright: ignore


def rows_of(tmp_path, params: LabParams, *, gpus: int = 0) -> list[dict]:
    """Two rounds of scrapes of an idle service, half a second apart."""
    service = VirtualService(params, 1)
    path = tmp_path / "telemetry.arrows"
    writer = PartWriter(path, SAMPLE_COLUMNS, math.inf)
    telemetry = Telemetry(writer, params, Degrader((), 1))
    for t_ns in (0, 500_000_000):
        state = service.state(t_ns)
        for replica in state.replicas:
            replica.gpus = [gpu(index) for index in range(gpus)]
        telemetry.take(t_ns, ServiceState(state.replicas))
    writer.close()
    return [row for batch in part_batches(path, arrow_schema(SAMPLE_COLUMNS)) for row in batch.to_pylist()]


@pytest.mark.parametrize(("name", "raw"), [("A100", "DCGM_FI_DEV_POWER_USAGE"), ("910B2", "npu_chip_info_power")])
def test_every_gpu_is_told_by_the_exporter_of_its_vendor(tmp_path, name: str, raw: str) -> None:
    rows = rows_of(tmp_path, LabParams(gpu=name), gpus=2)
    power = [row for row in rows if row["raw"] == raw and row["source"] == "gpu"]
    assert [row["value"] for row in power] == [300.0, 300.0]
    assert len({row["labels"] for row in power}) == 2


def test_replicas_are_told_apart_and_one_alone_is_not_numbered(tmp_path) -> None:
    one = rows_of(tmp_path, LabParams())
    assert not any("replica=" in row["labels"] for row in one)
    two = rows_of(tmp_path, LabParams().changed({"front.replicas": 2}))
    running = [row["labels"] for row in two if row["series"] == "engine.requests_running"]
    assert len(running) == 4 and {"replica=0" in text for text in running} == {True, False}
    assert all(",".join(sorted(row["labels"].split(","))) == row["labels"] for row in two if row["source"] == "server")


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "tgi", "llama.cpp"])
def test_every_dialect_tells_how_many_requests_run(tmp_path, dialect: str) -> None:
    rows = rows_of(tmp_path, LabParams(dialect=dialect))  # pyright: ignore
    assert "engine.requests_running" in {row["series"] for row in rows}


def host_of(params: LabParams, t_ns: int) -> HostReading:
    return VirtualService(params, 1).state(t_ns).replicas[0].host


def test_shares_of_cpu_need_a_reading_before() -> None:
    first, later = host_of(LabParams(), 0), host_of(LabParams(), 10**9)
    assert not any(reading.series == "host.cpu_used_ratio" for reading in host_readings(None, first))
    used = [reading.value for reading in host_readings(first, later) if reading.series == "host.cpu_used_ratio"]
    assert len(used) == 1 and 0 <= used[0] <= 1


def test_a_process_that_began_anew_adds_no_cpu() -> None:
    processes = host_of(LabParams(), 10**9).processes
    again = [msgspec.structs.replace(one, started_s=one.started_s + 5) for one in processes]
    names = {reading.series for reading in server_readings(processes, again, 0.5)}
    assert "server.cpu_cores" not in names and "server.rss_bytes" in names
    assert "server.cpu_cores" in {reading.series for reading in server_readings(processes, processes, 0.5)}
