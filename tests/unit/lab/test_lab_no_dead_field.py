"""Every parameter of what stands around the engine does something that a client sees."""

import pytest
from lab_traffic import NS_PER_S

from pinchpoint.lab.params import Application, Front, Host, LabParams, Path
from pinchpoint.lab.service import VirtualService

MS = 1_000_000
CLOSING = {"path.keep_alive": False}
STICKY = {"front.replicas": 3, "front.router": "sticky"}
CALLS = {"front.dependency_s": 0.3}
LEAK = {"host.rss_leak_bytes_per_request": 100e6, "host.memory_bytes": 4.5e9}
LOGS = {"front.log_s_per_request": 1e-3}
# field -> (what it needs beside it, its value); one field a row
ROWS: dict[str, tuple[dict[str, object], object]] = {
    "front.replicas": ({"max_num_seqs": 2}, 2),
    "front.router": ({"front.replicas": 3, "max_num_seqs": 1}, "sticky"),
    "front.router_skew_ratio": (STICKY | {"max_num_seqs": 1}, 0.9),
    "front.replica_speed_ratios": ({}, (0.5,)),
    "front.api_processes": ({"api_request_s": 0.05}, 2),
    "front.tokenizer_s_per_token": ({}, 1e-4),
    "front.tokenizer_threads": ({"front.tokenizer_s_per_token": 1e-3}, 2),
    "front.detokenize_s_per_token": ({}, 1e-3),
    "front.log_s_per_request": ({}, 0.01),
    "front.log_s_per_chunk": ({}, 1e-3),
    "front.log_bytes_per_write": (LOGS, 10_000_000),
    "front.thread_pool_threads": ({}, 2),
    "front.dependency_s": ({}, 0.5),
    "front.dependency_cv": (CALLS, 2.0),
    "front.dependency_slots": (CALLS, 1),
    "front.gateway_timeout_s": ({"max_num_seqs": 1}, 0.2),
    "front.gateway_retries": ({"max_num_seqs": 1, "front.gateway_timeout_s": 0.2}, 2),
    "path.rtt_s": ({}, 0.05),
    "path.loss_ratio": ({}, 0.2),
    "path.bandwidth_bytes_per_s": ({}, 100e3),
    "path.keep_alive": ({"path.rtt_s": 0.05}, False),
    "path.tls_s": ({}, 0.05),
    "path.dns_s": ({}, 0.05),
    "host.cores": ({"host.neighbour_cores": 4.0}, 2),
    "host.memory_bytes": ({"host.rss_leak_bytes_per_request": 100e6}, 4.5e9),
    "host.cpu_quota_cores": ({}, 0.02),
    "host.neighbour_cores": ({}, 64.0),
    "host.steal_ratio": ({}, 0.5),
    "host.numa_remote_ratio": ({}, 1.0),
    "host.rss_leak_bytes_per_request": ({"host.memory_bytes": 4.5e9}, 100e6),
    "host.swap": (LEAK, False),
    "host.disk_write_bytes_per_s": (LOGS, 1e5),
    "host.accept_backlog": (CLOSING | {"api_request_s": 0.1}, 1),
    "host.conntrack_max": (CLOSING, 3),
    "host.conntrack_time_wait_s": (CLOSING | {"host.conntrack_max": 3}, 0.1),
    "host.nofile": (CLOSING, 27),
    "host.softirq_s_per_packet": ({}, 2e-3),
    "application.output_factor": ({}, 2.0),
    "application.image_tokens": ({}, 300),
    "api_request_s": ({}, 0.02),
    "api_chunk_s": ({}, 1e-3),
    "api_null_s": ({}, 0.02),
    "rate_limit_rps": ({"rate_limit_burst_requests": 2.0}, 1.0),
    "rate_limit_burst_requests": ({"rate_limit_rps": 1.0}, 3.0),
    "in_flight_limit": ({}, 2),
    "proxy_buffering": ({}, True),
    "accelerator.fault_every_s": ({}, 0.5),
    "accelerator.restart_s": ({"accelerator.fault_every_s": 0.5}, 0.1),
}


def seen(changes: dict[str, object]) -> list:
    service = VirtualService(LabParams().changed(changes), seed=1)
    for request_id in range(12):
        service.submit(request_id * 60 * MS, request_id, 120, 20)
        service.null_request(request_id * 60 * MS)
    return service.advance(300 * NS_PER_S)


def test_the_table_has_a_row_for_every_field() -> None:
    groups = {"front": Front, "path": Path, "host": Host, "application": Application}
    fields = {f"{group}.{field}" for group, kind in groups.items() for field in kind.__struct_fields__}
    assert fields <= ROWS.keys()


@pytest.mark.parametrize("field", ROWS)
def test_a_field_changes_what_clients_see(field: str) -> None:
    beside, value = ROWS[field]
    assert seen(beside) != seen(beside | {field: value})
