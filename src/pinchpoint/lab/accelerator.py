"""The GPUs of one engine: clocks, power, heat, counters. What slows them, and what an exporter reads off them.

Not here: how long a step takes (cost.py). No clock: instants are given, and never go back.

How it works. Time is cut into intervals of INTERVAL_S. Steps leave their activity in them; when one is over, power
follows from the activity, temperature from power, and the clock from temperature. Power limits act at once, as in
hardware: there is one clock for the time in which the tensor cores are busy and one for the time in which memory is
streamed, each the highest at which such work draws no more than the limit. So a limit that prompts feel may be one that
decoding does not.

All GPUs of an engine do the same work; what is wrong with one alone (its cooler, another process on it, the fullest
experts) is wrong with the one that has index 0.
"""

import random
from collections import deque
from math import exp

import msgspec

from pinchpoint.lab import readings
from pinchpoint.lab.hardware import Gpu
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.readings import GpuReading
from pinchpoint.lab.work import AcceleratorState, StepCost

__all__ = ["AcceleratorModel", "AcceleratorState"]

INTERVAL_S = 0.1
READ_OVER_S = 1.0
"""Ratios are means over this long, as DCGM's are by default."""

TENSOR_UTILISATION = 0.7
"""Share of the peak rate that large products reach (cost.py's default)..."""
TENSOR_POWER_RATIO = 0.95
"""...and of TDP that the GPU then draws. Splitwise's profiles of prompts: 1.0 at the peak."""
TENSOR_DRAM_RATIO = 0.35
"""Share of the memory bandwidth meanwhile."""
PROMPT_TENSOR_RATIO, PROMPT_DRAM_RATIO = 0.88, 0.2
"""Of a step full of prompt tokens: the rest is attention and small kernels. Half of an H100's power made prompts 1.30
times as long and decoding no longer in Splitwise's profiles; 1.31 and 1.03 here."""
STREAM_DRAM_RATIO = 0.65
"""Share of the memory bandwidth while decoding with a full batch."""
CORE_SHARE_OF_MEMORY_POWER = 0.65
"""L2 and load units: the part of the power for memory traffic that falls with the core's voltage."""
CLOCK_MIN_RATIO = 0.15
"""210 of 1410 MHz (A100's lowest)."""

FULL_POWER_KELVIN = 45.0
"""Above ambient, of a healthy cooler at TDP, in equilibrium; 60 to 70 C are usual under full load."""
WARMUP_S = 24.0
"""Time constant of a healthy cooler. A worse one carries off less, so it is hotter and slower."""
THROTTLE_BAND_KELVIN = 6.0
"""The driver lowers the clock in proportion, from none at slowdown_c to all at so many kelvin above."""
HARDWARE_SLOWDOWN_CLOCK_RATIO = 0.5
MEMORY_KELVIN = 4.0
MEMORY_ACTIVE_KELVIN = 10.0
"""Memory above the core, idle and busy."""

SM_OF_COMPUTE_RATIO = 0.9
SM_OF_COLLECTIVE_RATIO = 0.15
"""Share of the SMs that have a warp in computing kernels and in collectives (a few blocks only)."""

NEIGHBOUR_TENSOR_RATIO, NEIGHBOUR_DRAM_RATIO = 0.4, 0.4
NEIGHBOUR_BYTES = 2e9
"""Another process while it has the GPU."""

SENT_OF_INPUT_RATIO = 0.05
"""Over PCIe the host sends inputs and gets back sampled ids: few bytes."""
REPLAYS_PER_BYTE = 2e-9
"""Over a link that lost lanes, for each multiple of the healthy time it takes longer."""
LINK_ERRORS_PER_BYTE = 2e-10

XID_CONTAINED_ECC = 94
UNCORRECTED_ECC_XIDS = frozenset({48, 94, 95})
POWER_REASON_SHARE = 0.02
"""A reason is shown when it held for this share of the last second."""
POWER_NOISE_RATIO = 0.01
GPU_SPREAD_KELVIN = 1.5
"""Between GPUs of one machine that do the same."""


class _Activity(msgspec.Struct, gc=False):
    """Seconds, or bytes, within an interval of one GPU."""

    span_s: float = 0.0
    busy_s: float = 0.0
    sm_s: float = 0.0
    tensor_s: float = 0.0
    """At the highest clock and TENSOR_UTILISATION or better."""
    pipe_s: float = 0.0
    """Of the tensor pipe at its peak, at the highest clock."""
    dram_s: float = 0.0
    arithmetic_s: float = 0.0
    """In which the tensor cores set the pace, at the clock there was."""
    link_bytes: float = 0.0
    pcie_bytes: float = 0.0


def voltage_squared(clock_ratio: float) -> float:
    """Relative to the highest clock; voltage falls to half at clock 0."""
    return ((1.0 + clock_ratio) / 2.0) ** 2


def power_ratio(gpu: Gpu, clock_ratio: float, sm: float, tensor: float, dram: float) -> float:
    """Power over TDP. sm, dram: shares of the time; tensor: rate of arithmetic over what large products reach at the
    highest clock. Dynamic power is activity times voltage squared."""
    squared = voltage_squared(clock_ratio)
    memory = gpu.memory_power_ratio * (1.0 - CORE_SHARE_OF_MEMORY_POWER * (1.0 - squared))
    tensor_power = (
        TENSOR_POWER_RATIO
        - gpu.idle_power_ratio
        - gpu.stream_power_ratio * SM_OF_COMPUTE_RATIO
        - gpu.memory_power_ratio * TENSOR_DRAM_RATIO
    )
    return (
        gpu.idle_power_ratio
        + gpu.stream_power_ratio * sm * clock_ratio * squared
        + memory * dram
        + tensor_power * tensor * squared
    )


def clock_within(gpu: Gpu, limit_ratio: float, tensor: bool) -> float:
    """Highest clock ratio at which busy tensor cores (or else streaming memory) draw at most limit_ratio of TDP."""

    def draw(clock: float) -> float:
        if tensor:
            return power_ratio(gpu, clock, SM_OF_COMPUTE_RATIO, PROMPT_TENSOR_RATIO * clock, PROMPT_DRAM_RATIO * clock)
        return power_ratio(gpu, clock, SM_OF_COMPUTE_RATIO, 0.0, STREAM_DRAM_RATIO)

    low, high = CLOCK_MIN_RATIO, 1.0
    if draw(high) <= limit_ratio:
        return high
    for _ in range(30):  # halves the error each time
        middle = (low + high) / 2
        low, high = (middle, high) if draw(middle) <= limit_ratio else (low, middle)
    return low


class _Card:
    """One GPU: heat, and what follows from it. Others that do the same have the same."""

    def __init__(self, gpu: Gpu, params: LabParams, alone: bool) -> None:
        """alone: it has the faults that one GPU alone has."""
        self.gpu = gpu
        self.alone = alone
        self.power_w = gpu.idle_power_ratio * gpu.tdp_w
        self.energy_j = 0.0
        self.power_violation_s = 0.0
        self.thermal_violation_s = 0.0
        self.set(params)
        self.temperature_c = self.ambient_c + self._kelvin_per_w * self.power_w
        self.recent: deque[tuple[float, _Activity, float]] = deque()
        """(end_s, activity, mean clock ratio) of intervals of the last second."""
        self._follow_temperature()

    def set(self, params: LabParams) -> None:
        accelerator, gpu = params.accelerator, self.gpu
        cooling_ratio = accelerator.cooling_ratio if self.alone else 1.0
        self.ambient_c = accelerator.ambient_c
        self._kelvin_per_w = FULL_POWER_KELVIN / gpu.tdp_w / cooling_ratio
        self._tau_s = WARMUP_S / cooling_ratio
        self.limit_w = accelerator.power_limit_ratio * gpu.tdp_w
        self.locked_ratio = accelerator.sm_clock_ratio
        self.tensor_limit_ratio = clock_within(gpu, accelerator.power_limit_ratio, tensor=True)
        self.stream_limit_ratio = clock_within(gpu, accelerator.power_limit_ratio, tensor=False)
        self.neighbour_ratio = accelerator.neighbour_share_ratio if self.alone else 0.0
        count, imbalance = params.tensor_parallel, params.expert_imbalance_ratio
        self.tensor_share = 1.0
        """Arithmetic over the mean of all GPUs."""
        if params.expert_parallel and params.model_shape.experts and count > 1:
            self.tensor_share = imbalance if self.alone else max(0.0, (count - imbalance) / (count - 1))
        self._follow_limits()

    def _follow_temperature(self) -> None:
        over_kelvin = self.temperature_c - self.gpu.slowdown_c
        self.thermal_ratio = 1.0
        if over_kelvin > 0:
            self.thermal_ratio = max(CLOCK_MIN_RATIO, 1.0 - over_kelvin / THROTTLE_BAND_KELVIN)
        self.hardware_slowdown = self.temperature_c >= self.gpu.hardware_slowdown_c
        if self.hardware_slowdown:
            self.thermal_ratio = min(self.thermal_ratio, HARDWARE_SLOWDOWN_CLOCK_RATIO)
        self._follow_limits()

    def _follow_limits(self) -> None:
        cooled = min(self.locked_ratio, getattr(self, "thermal_ratio", 1.0))
        self.stream_ratio = min(cooled, self.stream_limit_ratio)
        self.tensor_ratio = min(cooled, self.tensor_limit_ratio)

    def pass_time(self, end_s: float, done: _Activity) -> None:
        """An interval is over. Its power warms the GPU, and the temperature sets the clock of the next."""
        span_s, neighbour = done.span_s, self.neighbour_ratio
        tensor = min(1.0, done.tensor_s * self.tensor_share / span_s) + neighbour * NEIGHBOUR_TENSOR_RATIO
        dram = min(1.0, done.dram_s / span_s + neighbour * NEIGHBOUR_DRAM_RATIO)
        sm = min(1.0, done.sm_s / span_s + neighbour * SM_OF_COMPUTE_RATIO)
        arithmetic = min(1.0, done.arithmetic_s / span_s)
        clock = arithmetic * self.tensor_ratio + (1.0 - arithmetic) * self.stream_ratio
        drawn = power_ratio(self.gpu, self.stream_ratio, sm, 0.0, dram)
        drawn += power_ratio(self.gpu, self.tensor_ratio, 0.0, tensor, 0.0) - self.gpu.idle_power_ratio
        self.power_w = min(drawn * self.gpu.tdp_w, max(self.limit_w, self.gpu.idle_power_ratio * self.gpu.tdp_w))
        self.energy_j += self.power_w * span_s
        if self.thermal_ratio < min(self.locked_ratio, self.tensor_limit_ratio) and done.busy_s:
            self.thermal_violation_s += span_s
        elif self.tensor_limit_ratio < self.locked_ratio:
            self.power_violation_s += done.arithmetic_s
            if self.stream_limit_ratio < self.locked_ratio:
                self.power_violation_s += max(0.0, done.busy_s - done.arithmetic_s)
        settled_c = self.ambient_c + self._kelvin_per_w * self.power_w
        self.temperature_c = settled_c + (self.temperature_c - settled_c) * exp(-span_s / self._tau_s)
        self._follow_temperature()
        recent = self.recent
        recent.append((end_s, done, clock))
        while recent and recent[0][0] <= end_s - READ_OVER_S:
            recent.popleft()

    def reasons(self, busy: bool, arithmetic_ratio: float) -> int:
        """Bits of NVML's clock-event reasons."""
        bits = 0 if busy else readings.GPU_IDLE
        if self.locked_ratio < 1.0:
            bits |= readings.CLOCK_LOCKED
        if self.hardware_slowdown:
            bits |= readings.HW_SLOWDOWN | readings.HW_THERMAL
        elif self.thermal_ratio < min(self.locked_ratio, self.tensor_limit_ratio):
            bits |= readings.SW_THERMAL
        limited = min(self.locked_ratio, self.thermal_ratio)
        by_arithmetic = self.tensor_limit_ratio < limited and arithmetic_ratio > POWER_REASON_SHARE
        if by_arithmetic or (self.stream_limit_ratio < limited and busy):
            bits |= readings.SW_POWER_CAP
        return bits


class AcceleratorModel:
    """The tensor_parallel x pipeline_parallel GPUs of one engine. Same seed and calls give the same readings.

    first_index: of its GPUs among those of the replica.
    """

    def __init__(self, params: LabParams, seed: int, first_index: int = 0) -> None:
        self.params = params
        self.first_index = first_index
        self._random = random.Random(seed)
        self._at_s = 0.0
        self._interval_end_s = INTERVAL_S
        self._now = _Activity()
        self._step_end_s = 0.0
        self._link_bytes = self._pcie_bytes = 0.0
        self._pcie_replays = self._link_errors = 0.0
        self._leak_from_s = 0.0
        self._leaked_bytes = 0.0
        self._last_xid = 0
        self._uncorrected = 0
        self._cards: list[_Card] = []
        self._set(params)
        self._rest_between_steps()
        self._spread_kelvin = [self._random.uniform(-1, 1) * GPU_SPREAD_KELVIN for _ in range(self._count)]

    def _set(self, params: LabParams) -> None:
        gpu = params.gpu_spec
        self._gpu = gpu
        self._count = params.tensor_parallel * params.pipeline_parallel
        peak = gpu.flops_per_s(params.weight_precision) * self._count
        self._peak_flops_per_s = peak
        self._reached_flops_per_s = peak * params.compute_efficiency_ratio
        self._powered_flops_per_s = peak * max(params.compute_efficiency_ratio, TENSOR_UTILISATION)
        self._bandwidth = gpu.bandwidth_bytes_per_s
        accelerator = params.accelerator
        self._replays_per_byte = REPLAYS_PER_BYTE * (1.0 / accelerator.pcie_ratio - 1.0)
        self._errors_per_byte = LINK_ERRORS_PER_BYTE * (1.0 / accelerator.link_ratio - 1.0)
        self._over_pcie = gpu.peer_link == "pcie" or not accelerator.peer_links
        leaking = self.first_index == 0
        self._leak_bytes_per_s = accelerator.memory_leak_bytes_per_s if leaking else 0.0
        used = params.model_shape.weights_bytes(params.weight_precision) / self._count
        used += params.num_kv_blocks() * params.kv_block_bytes + params.non_kv_bytes
        self._used_bytes = used
        if not self._cards or self._cards[0].gpu is not gpu:
            self._cards = [_Card(gpu, params, alone=self.first_index == 0)]
        if self._count > 1 and len(self._cards) == 1:
            self._cards.append(_Card(gpu, params, alone=False))
        del self._cards[self._count :]
        for card in self._cards:
            card.set(params)
        self._follow_cards()

    def _follow_cards(self) -> None:
        accelerator = self.params.accelerator
        self._tensor_clock = min(card.tensor_ratio for card in self._cards)
        self._state = AcceleratorState(
            clock_ratio=min(card.stream_ratio for card in self._cards),
            tensor_clock_ratio=self._tensor_clock,
            memory_clock_ratio=accelerator.memory_clock_ratio,
            link_ratio=accelerator.link_ratio,
            pcie_ratio=accelerator.pcie_ratio,
            available_ratio=1.0 - max(card.neighbour_ratio for card in self._cards),
        )

    def change(self, now_s: float, params: LabParams) -> None:
        """Other parameters from now on; heat and counters stay."""
        self._advance(now_s)
        self._leaked_bytes = self._leaked_now(now_s)
        self._leak_from_s = now_s
        self.params = params
        self._set(params)
        self._spread_kelvin += [0.0] * (self._count - len(self._spread_kelvin))

    def clock_state(self, now_s: float) -> AcceleratorState:
        """Of the slowest of the GPUs."""
        if now_s >= self._interval_end_s:
            self._advance(now_s)
        return self._state

    def on_step(self, start_s: float, duration_s: float, cost: StepCost) -> None:
        """A step has begun. Steps follow each other. duration_s is not cost.total_s where there is noise or the host is
        slow; the GPU does no more for it."""
        self._advance(start_s)
        self._step_end_s = start_s + duration_s
        per_s = 1.0 / duration_s
        occupied = cost.occupied_ratio * per_s
        compute_s = cost.gemm_s + cost.attention_s + cost.small_s + cost.sampling_s + cost.encoder_s
        self._busy = min(1.0, (compute_s + cost.communication_s + cost.copy_s) * occupied)
        self._sm = (SM_OF_COMPUTE_RATIO * compute_s + SM_OF_COLLECTIVE_RATIO * cost.communication_s) * occupied
        flops_per_s = cost.flops * per_s
        self._tensor = flops_per_s / self._powered_flops_per_s
        self._pipe = flops_per_s / self._peak_flops_per_s
        self._arithmetic = flops_per_s / (self._reached_flops_per_s * self._tensor_clock)
        self._dram = cost.dram_bytes * per_s / (self._bandwidth * self._state.memory_clock_ratio)
        self._link_rate = cost.link_bytes * per_s
        self._pcie_rate = cost.pcie_bytes * per_s

    def _rest_between_steps(self) -> None:
        self._busy = self._sm = self._tensor = self._pipe = self._arithmetic = self._dram = 0.0
        self._link_rate = self._pcie_rate = 0.0

    def _advance(self, to_s: float) -> None:
        while self._at_s < to_s:
            until_s = min(to_s, self._interval_end_s)
            stepping = self._at_s < self._step_end_s
            if stepping:
                until_s = min(until_s, self._step_end_s)
            elif self._now.span_s == 0.0 and to_s - self._at_s > INTERVAL_S:
                # Nothing happens for long: all whole intervals at once, as if one.
                until_s = self._interval_end_s = self._at_s + int((to_s - self._at_s) / INTERVAL_S) * INTERVAL_S
            span_s = until_s - self._at_s
            done = self._now
            done.span_s += span_s
            if stepping:
                done.busy_s += self._busy * span_s
                done.sm_s += self._sm * span_s
                done.tensor_s += self._tensor * span_s
                done.pipe_s += self._pipe * span_s
                done.arithmetic_s += self._arithmetic * span_s
                done.dram_s += self._dram * span_s
                done.link_bytes += self._link_rate * span_s
                done.pcie_bytes += self._pcie_rate * span_s
                self._link_bytes += self._link_rate * span_s
                self._pcie_bytes += self._pcie_rate * span_s
                self._pcie_replays += self._pcie_rate * span_s * self._replays_per_byte
                self._link_errors += self._link_rate * span_s * self._errors_per_byte
            self._at_s = until_s
            if until_s >= self._interval_end_s:
                self._close_interval(until_s)

    def _close_interval(self, end_s: float) -> None:
        done = self._now
        for card in self._cards:
            card.pass_time(end_s, done)
        self._now = _Activity()
        self._interval_end_s = end_s + INTERVAL_S
        self._follow_cards()

    def note_failure(self, now_s: float, xid: int = XID_CONTAINED_ECC) -> None:
        """The driver reports an Xid on the GPU with index 0; the process and what it leaked are gone."""
        self._advance(now_s)
        self._last_xid = xid
        self._uncorrected += xid in UNCORRECTED_ECC_XIDS
        self.note_restart(now_s)

    def note_restart(self, now_s: float) -> None:
        """The engine's process begins anew: leaked memory is free again, and a step under way is not finished."""
        self._advance(now_s)
        self._step_end_s = min(self._step_end_s, now_s)
        self._leak_from_s, self._leaked_bytes = now_s, 0.0

    def _leaked_now(self, now_s: float) -> float:
        return self._leaked_bytes + self._leak_bytes_per_s * max(0.0, now_s - self._leak_from_s)

    def reading(self, now_s: float) -> list[GpuReading]:
        """One per GPU, by index."""
        self._advance(now_s)
        return [self._read(i, self._cards[min(i, len(self._cards) - 1)], now_s) for i in range(self._count)]

    def _read(self, place: int, card: _Card, now_s: float) -> GpuReading:
        gpu, accelerator = self._gpu, self.params.accelerator
        spoiled = card.alone
        recent = [(min(done.span_s, READ_OVER_S) / done.span_s, done, clock) for _, done, clock in card.recent]
        span_s = sum(share * done.span_s for share, done, _ in recent) or INTERVAL_S
        clock = sum(share * done.span_s * clock for share, done, clock in recent) / span_s if recent else 1.0
        busy, sm, pipe, dram, arithmetic, link_rate, pcie_rate = (
            sum(share * getattr(done, name) for share, done, _ in recent) / span_s
            for name in ("busy_s", "sm_s", "pipe_s", "dram_s", "arithmetic_s", "link_bytes", "pcie_bytes")
        )
        neighbour = card.neighbour_ratio
        dram = min(1.0, dram + neighbour * NEIGHBOUR_DRAM_RATIO)
        noise = 1.0 + self._random.gauss(0.0, POWER_NOISE_RATIO)
        temperature_c = card.temperature_c + self._spread_kelvin[place]
        used_bytes = self._used_bytes + (self._leaked_now(now_s) if spoiled else 0.0)
        if neighbour:
            used_bytes += NEIGHBOUR_BYTES
        sent_ratio = 1.0 if self._over_pcie and self._count > 1 else SENT_OF_INPUT_RATIO
        return GpuReading(
            index=self.first_index + place,
            busy_ratio=min(1.0, busy + neighbour),
            sm_active_ratio=min(1.0, sm + neighbour * SM_OF_COMPUTE_RATIO),
            tensor_active_ratio=min(1.0, (pipe * card.tensor_share + neighbour * NEIGHBOUR_TENSOR_RATIO) / clock),
            dram_active_ratio=dram,
            memory_used_bytes=min(used_bytes, gpu.memory_bytes),
            memory_total_bytes=gpu.memory_bytes,
            sm_clock_hz=clock * gpu.sm_clock_max_hz,
            sm_clock_max_hz=gpu.sm_clock_max_hz,
            memory_clock_hz=accelerator.memory_clock_ratio * gpu.memory_clock_hz,
            power_w=min(card.power_w * noise, max(card.limit_w, card.power_w)),
            power_limit_w=card.limit_w,
            energy_j_total=card.energy_j,
            temperature_c=temperature_c,
            memory_temperature_c=temperature_c + MEMORY_KELVIN + MEMORY_ACTIVE_KELVIN * dram,
            clock_event_reasons=card.reasons(busy + neighbour > 0, arithmetic),
            power_violation_s_total=card.power_violation_s,
            thermal_violation_s_total=card.thermal_violation_s,
            pcie_tx_bytes_total=self._pcie_bytes * sent_ratio,
            pcie_rx_bytes_total=self._pcie_bytes,
            pcie_replay_total=int(self._pcie_replays),
            link_tx_bytes_total=self._link_bytes,
            link_rx_bytes_total=self._link_bytes,
            link_errors_total=int(self._link_errors),
            ecc_uncorrected_total=self._uncorrected if spoiled else 0,
            last_xid=self._last_xid if spoiled else 0,
            processes=1 + (neighbour > 0),
            pcie_tx_bytes_per_s=pcie_rate * sent_ratio,
            pcie_rx_bytes_per_s=pcie_rate,
            link_tx_bytes_per_s=link_rate,
            link_rx_bytes_per_s=link_rate,
        )
