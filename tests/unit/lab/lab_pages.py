"""Engines in a known state, and readings of hardware, for tests of the pages."""

from pinchpoint.lab.metrics import EngineState, Gauges, LabMetrics
from pinchpoint.lab.params import Disaggregation, LabParams, Lora, Speculation
from pinchpoint.lab.readings import GpuReading, HostReading, ProcessReading

BLOCKS_FOR_2048, BLOCKS_FOR_512 = 128, 32
"""KV blocks that make the longest context 2048 and 512 tokens, as in the recorded pages of vLLM and TGI."""
PROCESS = ProcessReading("api-0", 11.25, 9.5, 7.7e8, 58, 20_000, 31, 4.0)


def idle(params: LabParams | None = None, index: int = 0) -> EngineState:
    params = params or LabParams()
    return EngineState(params, LabMetrics(params), Gauges(0, 0, 0.0), index)


def rich(kv_blocks: int | None = None) -> LabParams:
    """Every feature that has families of its own."""
    return LabParams(
        kv_blocks=kv_blocks,
        speculation=Speculation(num_speculative_tokens=3),
        lora=Lora(adapters=8, max_loras=4),
        disaggregation=Disaggregation(),
    )


def busy(params: LabParams | None = None, index: int = 0) -> EngineState:
    """27 requests of 75 prompt and 64 output tokens have ended, 16 run, 8 wait."""
    state = idle(params or rich(), index)
    m = state.metrics
    m.prefix_queries_tokens, m.prefix_hit_tokens, m.cached_prompt_tokens = 4000, 1000, 900
    m.external_prompt_tokens, m.prompt_tokens, m.generation_tokens = 100, 3225, 2000
    m.preemptions, m.recomputed_tokens, m.preempted_prompt_tokens, m.preempted_output_tokens = 3, 400, 225, 90
    m.finished["length"], m.finished["abort"] = 27, 1
    m.drafts, m.draft_tokens, m.accepted_tokens, m.accepted_per_position = 500, 1500, 900, [400, 300, 200]
    m.rejected_requests, m.invalid_requests, m.engine_requests = 2, 1, 54
    for _ in range(27):
        m.request_prompt_tokens.observe(75.0)
        m.request_generation_tokens.observe(64.0)
        m.request_max_num_generation_tokens.observe(64.0)
        m.request_params_max_tokens.observe(64.0)
        m.request_prefill_kv_computed_tokens.observe(40.0)
        m.request_num_preemptions.observe(0.0)
        for histogram, value_s in (
            (m.ttft_s, 0.7), (m.tpot_s, 0.02), (m.mean_token_s, 0.03), (m.e2e_s, 2.1), (m.queue_s, 0.6),
            (m.inference_s, 1.5), (m.prefill_s, 0.1), (m.decode_s, 1.4), (m.validation_s, 0.002),
        ):  # fmt: skip
            histogram.observe(value_s)
        m.count_http("/v1/chat/completions", "POST", 200, 2.2, 230)
        m.prompt_busy_s += 0.1
    m.itl_s.observe(0.0312, 1900)
    m.iteration_tokens.observe(40.0, 100)
    for step in range(90):
        m.count_step(
            1.0 + step * 0.03, 0.03, 16, prefill=step % 9 == 0, graphed=True,
            selection_s=1e-4, host_s=1e-3, joined="backpressure" if step else None,
        )  # fmt: skip
    m.count_transfer(0.02, 3e8)
    m.count_grammar(0.15)
    m.grammar_hits, m.longest_sequence_tokens = 5, 139
    state.gauges = Gauges(
        16, 8, 0.25, waiting_deferred=3, grammar_queue=1, transfer_queue=1, running_adapters=(1, 4), max_loras=4,
        waiting_adapters=(2,), kv_blocks_used=400, kv_tokens_used=6300, kv_tokens_cached=800, batch_max_tokens=9000,
    )  # fmt: skip
    return state


def gpu(index: int = 0, **changes: float) -> GpuReading:
    reading = GpuReading(
        index=index, busy_ratio=0.97, sm_active_ratio=0.83, tensor_active_ratio=0.21, dram_active_ratio=0.66,
        memory_used_bytes=72_000 * 2.0**20, memory_total_bytes=81_920 * 2.0**20, sm_clock_hz=1.41e9,
        sm_clock_max_hz=1.41e9, memory_clock_hz=1.593e9, power_w=312.5, power_limit_w=400.0, energy_j_total=123_456.75,
        temperature_c=61.4, memory_temperature_c=70.2, clock_event_reasons=4, power_violation_s_total=1.5,
        thermal_violation_s_total=0.0, pcie_tx_bytes_total=5e9, pcie_rx_bytes_total=6e9, pcie_replay_total=2,
        link_tx_bytes_total=7e9, link_rx_bytes_total=7e9, link_errors_total=0, ecc_uncorrected_total=0, last_xid=0,
        processes=1, pcie_tx_bytes_per_s=2e8, pcie_rx_bytes_per_s=3e8, link_tx_bytes_per_s=4e9,
        link_rx_bytes_per_s=5e9,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(reading, name, value)
    return reading


def host() -> HostReading:
    return HostReading(
        cores=2,
        cpu_s_total=[{"user": 10.5, "system": 2.0, "softirq": 0.5, "steal": 0.0, "iowait": 0.25, "idle": 87.0}] * 2,
        runnable=3.4, load1=2.25, cpu_pressure_s_total=4.5, io_pressure_s_total=0.5, memory_pressure_s_total=0.125,
        throttled_periods_total=7, throttled_s_total=0.35, periods_total=900, memory_total_bytes=1.28e11,
        memory_available_bytes=9e10, swap_in_pages_total=0, swap_out_pages_total=11, major_faults_total=12,
        oom_kills_total=1, disk_busy_s_total=3.5, disk_written_bytes_total=4_096_000, net_rx_bytes_total=5e6,
        net_tx_bytes_total=9e7, net_speed_bytes_per_s=1.25e9, segments_out_total=70_000, retransmits_total=35,
        listen_overflows_total=5, listen_drops_total=6, connections_established=44, connections_time_wait=9,
        conntrack_entries=120, conntrack_max=262_144, conntrack_dropped_total=0, files_open=2_048,
        softnet_processed_total=99_999, softnet_squeezed_total=1, softnet_dropped_total=2, numa_foreign_total=17,
        processes=[PROCESS, ProcessReading("engine-0", 80.0, 79.0, 9e9, 40, 20_000, 120, 4.0)],
    )  # fmt: skip
