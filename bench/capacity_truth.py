"""The true capacity of a case: long fixed stages in virtual time, and what the idle service answers with.

A stage here is a bare service under a Poisson schedule of the product's own workload, without search, run directory or
judgement. The rate is bisected with short stages; then three rates or more around the crossing get STAGE_REQUESTS
requests with each of SEEDS seeds (the same arrivals but for their scale, and the same lengths, at every rate), the
first SETTLE_RATIO of each left out. The share of misses, made monotone and interpolated in its logit,
crosses what the SLO allows at the capacity; the standard error is that of the seeds.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from capacity_cases import CAPACITY_RANGE_RPS, CASES_PER_FAMILY, FAMILIES, Case, Drift, drawn, service_class

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.service import VirtualService
from pinchpoint.model import Slo
from pinchpoint.slo import error_slo, latency_slo, request_meets, with_errors
from pinchpoint.workload.classes import resolve
from pinchpoint.workload.schedule import Scheduler

CACHE = Path(__file__).with_name("capacity_truth.json")
IDLE_REQUESTS = 12
COARSE_REQUESTS = 400
STAGE_REQUESTS = 2000
SEEDS = (101, 102, 103, 104)
SPREAD = (0.95, 1.0, 1.05)
RECENTRES_MAX = 4
SETTLE_RATIO = 0.15
FINGERPRINT_REQUESTS = 80
STEP_NS = NS_PER_S // 2
DRAIN_MAX_S = 300.0
TTFT_FLOOR_S = 0.2
RAMP_S = 300.0
STEADY = Drift()
ATTEMPTS_MAX = 40
ERROR_MAX_RATIO = 0.025
"""A case whose crossing is known no better after all these requests is drawn again: no method could find it in
minutes."""


class Served(msgspec.Struct):
    """What became of the requests of one stage, in scheduled order. ttft_s, tpot_s: NaN where there is none."""

    status: list[str]
    ttft_s: np.ndarray
    tpot_s: np.ndarray
    e2e_s: np.ndarray
    seconds: float
    """From the first instant to the last answer."""

    def met(self, slo: Slo) -> np.ndarray:
        """1, 0, or NaN where the request does not count for it."""
        rows = zip(self.status, self.ttft_s.tolist(), self.tpot_s.tolist(), self.e2e_s.tolist(), strict=True)
        values = [
            request_meets(
                slo,
                status=status,
                ttft_s=None if math.isnan(ttft_s) else ttft_s,
                tpot_s=None if math.isnan(tpot_s) else tpot_s,
                e2e_s=e2e_s,
                itl_max_s=None,
            )
            for status, ttft_s, tpot_s, e2e_s in rows
        ]
        return np.array([math.nan if value is None else float(value) for value in values])


class Truth(msgspec.Struct, frozen=True):
    """error_rps: one standard error. limiting: the SLO that breaks. idle_*: of the service without load."""

    case: Case
    slos: tuple[str, ...]
    capacity_rps: float
    error_rps: float
    limiting: str
    idle_e2e_s: float
    requests: int
    fingerprint: str


class Bench:
    """A case's service under fixed stages, each on a fresh service. Counts what was asked of it."""

    def __init__(self, case: Case, params: LabParams, *, drift: Drift = STEADY) -> None:
        self.case, self.params = case, params
        self._service = service_class(drift, RAMP_S)
        self.requests = 0
        self.seconds = 0.0

    def open(self, rate_rps: float, requests: int, seed: int) -> Served:
        """Poisson arrivals at one rate on an idle service; waits for every answer."""
        plan = self.case.plan((), seed)
        scheduler = Scheduler.of(plan, resolve(plan, self.params.max_model_len_tokens()))
        asked = scheduler.open_loop(1, rate_rps, requests / rate_rps).schedule
        rows = list(
            zip(asked.offset_ns.tolist(), asked.input_tokens.tolist(), asked.max_output_tokens.tolist(), strict=True)
        )
        return self._serve(rows, seed)

    def one_by_one(self, requests: int, seed: int) -> Served:
        """A single user."""
        plan = self.case.plan((), seed)
        scheduler = Scheduler.of(plan, resolve(plan, self.params.max_model_len_tokens()))
        asked = scheduler.closed_loop(0, 1, requests).schedule
        gap_ns = 60 * NS_PER_S
        sizes = zip(asked.input_tokens.tolist(), asked.max_output_tokens.tolist(), strict=True)
        served = self._serve([(i * gap_ns, *size) for i, size in enumerate(sizes)], seed, step_ns=gap_ns)
        self.seconds += served.e2e_s.sum() - served.seconds
        return served

    def burst(self, requests: int, seed: int) -> Served:
        """All at once: what the service can do at most."""
        plan = self.case.plan((), seed)
        scheduler = Scheduler.of(plan, resolve(plan, self.params.max_model_len_tokens()))
        asked = scheduler.closed_loop(0, 1, requests).schedule
        sizes = zip(asked.input_tokens.tolist(), asked.max_output_tokens.tolist(), strict=True)
        return self._serve([(0, *size) for size in sizes], seed)

    def _serve(self, rows: Sequence[tuple[int, int, int]], seed: int, *, step_ns: int = STEP_NS) -> Served:
        service: VirtualService = self._service(self.params, seed)
        count = len(rows)
        status = ["timeout"] * count
        first_ns, last_ns, end_ns = np.zeros(count), np.zeros(count), np.zeros(count)
        tokens, code = [0] * count, [0] * count
        for i, (at_ns, input_tokens, output_tokens) in enumerate(rows):
            service.submit(at_ns, i, input_tokens, output_tokens)
        ended, now_ns = 0, 0
        give_up_ns = (rows[-1][0] if rows else 0) + round(DRAIN_MAX_S * NS_PER_S)
        while ended < count and now_ns < give_up_ns:
            now_ns += step_ns
            for event in service.advance(now_ns):
                i = event.request_id
                if event.kind == "chunk":
                    if not tokens[i]:
                        first_ns[i] = event.t_ns
                    last_ns[i] = event.t_ns
                    tokens[i] += event.tokens
                elif event.kind == "headers":
                    code[i] = event.status or 0
                elif event.kind == "end":
                    end_ns[i] = event.t_ns
                    status[i] = "ok" if code[i] == 200 else "rejected" if code[i] in (429, 503) else "http_error"
                    ended += 1
        due_ns = np.array([row[0] for row in rows], float)
        end_ns[end_ns == 0] = now_ns
        count_tokens = np.array(tokens, float)
        with np.errstate(invalid="ignore", divide="ignore"):
            ttft_s = np.where(count_tokens > 0, (first_ns - due_ns) / NS_PER_S, np.nan)
            tpot_s = np.where(count_tokens > 1, (last_ns - first_ns) / NS_PER_S / (count_tokens - 1), np.nan)
        self.requests += count
        seconds = float(end_ns.max()) / NS_PER_S if count else 0.0
        self.seconds += seconds
        return Served(status, ttft_s, tpot_s, (end_ns - due_ns) / NS_PER_S, seconds)


def slos_of(case: Case, params: LabParams) -> tuple[tuple[Slo, ...], float]:
    """The SLOs of a case, and the median end-to-end latency of the idle service."""
    idle = Bench(case, params).one_by_one(IDLE_REQUESTS, case.seed)
    if "ok" not in idle.status:
        raise UsageError(f"{case.name} answers no request")
    found: list[Slo] = []
    if case.ttft_factor is not None:
        limit_s = max(TTFT_FLOOR_S, case.ttft_factor * float(np.nanmedian(idle.ttft_s)))
        found.append(latency_slo("ttft", case.percentile, _neat(limit_s)))
    if case.tpot_factor is not None:
        found.append(latency_slo("tpot", case.percentile, _neat(case.tpot_factor * float(np.nanmedian(idle.tpot_s)))))
    if case.e2e_factor is not None:
        # Above the longest answer, not the median one: else the idle service misses its SLO.
        found.append(latency_slo("e2e", case.percentile, _neat(case.e2e_factor * float(np.nanmax(idle.e2e_s)))))
    if case.family in ("token-bucket", "in-flight-limit"):
        found.append(error_slo(0.05 if case.percentile <= 95 else 0.01))
    return with_errors(tuple(found)), float(np.median(idle.e2e_s))


def miss_shares(served: Served, slos: Sequence[Slo], settle_ratio: float = SETTLE_RATIO) -> list[tuple[float, float]]:
    """(misses, counted) for each SLO, the first requests left out."""
    first = int(len(served.status) * settle_ratio)
    result = []
    for slo in slos:
        met = served.met(slo)[first:]
        met = met[~np.isnan(met)]
        result.append((float((met == 0).sum()), float(len(met))))
    return result


def crossing(rates: Sequence[float], counts: Sequence[tuple[float, float]], allowed: float) -> float:
    """Where the share of misses, made monotone in the rate, crosses what is allowed: interpolated in its logit against
    the logarithm of the rate. The ends are extended by nothing: beyond them it is -inf or inf."""
    blocks: list[list[float]] = []
    for rate_rps, (misses, counted) in sorted(zip(rates, counts, strict=True)):
        if counted:
            blocks.append([misses, counted, math.log(rate_rps) * counted])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    logits = [math.log((m + 0.5) / (n - m + 0.5)) for m, n, _ in blocks]
    places = [x / n for _, n, x in blocks]
    wanted = math.log(allowed / (1 - allowed))
    if not logits or logits[0] >= wanted:
        return -math.inf
    if logits[-1] < wanted:
        return math.inf
    return math.exp(float(np.interp(wanted, logits, places)))


def capacity_at(
    rates: Sequence[float], counts: Sequence[list[tuple[float, float]]], slos: Sequence[Slo]
) -> tuple[float, str]:
    """The lowest crossing, and of which SLO."""
    each = [
        (crossing(rates, [row[k] for row in counts], 1 - slo.attainment_ratio), slo.text) for k, slo in enumerate(slos)
    ]
    return min(each)


def find_truth(case: Case, fingerprint: str) -> Truth | None:
    """None where the case has no capacity within CAPACITY_RANGE_RPS."""
    params = case.lab()
    slos, idle_e2e_s = slos_of(case, params)
    # A ramp is at its nominal value in the middle of the search; a wave belongs to the long run.
    drift = msgspec.structs.replace(case.drift, ramp_ratio=0.0)
    bench = Bench(case, params, drift=drift)
    low_rps, high_rps = CAPACITY_RANGE_RPS

    def holds(rate_rps: float) -> bool:
        counts = miss_shares(bench.open(rate_rps, COARSE_REQUESTS, SEEDS[0]), slos)
        return all(m <= (1 - slo.attainment_ratio) * n for slo, (m, n) in zip(slos, counts, strict=True))

    if not holds(low_rps) or holds(high_rps):
        return None
    while high_rps / low_rps > 1.08:
        middle_rps = math.sqrt(low_rps * high_rps)
        low_rps, high_rps = (middle_rps, high_rps) if holds(middle_rps) else (low_rps, middle_rps)
    centre_rps = math.sqrt(low_rps * high_rps)
    counts: dict[float, list[list[tuple[float, float]]]] = {}
    for _ in range(RECENTRES_MAX):
        for factor in SPREAD:
            rate_rps = float(f"{centre_rps * factor:.4g}")
            if rate_rps not in counts:
                counts[rate_rps] = [miss_shares(bench.open(rate_rps, STAGE_REQUESTS, seed), slos) for seed in SEEDS]
        rates = sorted(counts)
        capacity_rps, limiting = capacity_at(rates, [_sum(counts[r]) for r in rates], slos)
        if math.isinf(capacity_rps):
            centre_rps *= SPREAD[0] / SPREAD[-1] if capacity_rps < 0 else SPREAD[-1] / SPREAD[0]
            continue
        if rates[0] * 1.02 <= capacity_rps <= rates[-1] / 1.02:
            break
        centre_rps = capacity_rps
    else:
        return None
    # Jackknife over the seeds: every seed left out in turn.
    without = []
    for left_out in range(len(SEEDS)):
        kept = [_sum([c for i, c in enumerate(counts[r]) if i != left_out]) for r in rates]
        value_rps, _ = capacity_at(rates, kept, slos)
        without.append(capacity_rps if math.isinf(value_rps) else value_rps)
    n = len(SEEDS)
    error_rps = math.sqrt((n - 1) / n * sum((v - sum(without) / n) ** 2 for v in without))
    if error_rps > ERROR_MAX_RATIO * capacity_rps:
        return None
    texts = tuple(slo.text for slo in slos)
    return Truth(case, texts, capacity_rps, error_rps, limiting, idle_e2e_s, bench.requests, fingerprint)


def _sum(counts: Sequence[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    return [(sum(m for m, _ in row), sum(n for _, n in row)) for row in zip(*counts, strict=True)]


def fingerprint_of(case: Case) -> str:
    """Changes whenever the case, this file's constants, or anything in how its service answers does."""
    constants = [STAGE_REQUESTS, COARSE_REQUESTS, SEEDS, SPREAD, SETTLE_RATIO, TTFT_FLOOR_S]
    constants += [ERROR_MAX_RATIO, CAPACITY_RANGE_RPS]
    try:
        served = Bench(case, case.lab(), drift=case.drift).open(6.0, FINGERPRINT_REQUESTS, 1)
        seen = [served.status, np.round(served.e2e_s, 6).tolist(), np.round(served.ttft_s, 6).tolist()]
    except UsageError as error:
        seen = [str(error)]
    text = json.dumps([msgspec.to_builtins(case), constants, seen])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def truths(count: int | None = None, *, say: bool = True) -> list[Truth]:
    """The truth of all cases (of the first `count`), from the cache beside this file where nothing has changed."""
    cache: dict[str, Truth | None] = {}
    if CACHE.exists():
        cache = msgspec.json.decode(CACHE.read_bytes(), type=dict[str, Truth | None])
    found: list[Truth] = []
    used: dict[str, Truth | None] = {}
    for index in range(CASES_PER_FAMILY):
        for family in FAMILIES:
            if count is not None and len(found) >= count:
                break
            for attempt in range(ATTEMPTS_MAX):
                case = drawn(family, index, attempt)
                key = fingerprint_of(case)
                if key not in cache:
                    try:
                        cache[key] = find_truth(case, key)
                    except UsageError:
                        cache[key] = None
                    CACHE.write_bytes(msgspec.json.format(msgspec.json.encode(cache)) + b"\n")
                used[key] = truth = cache[key]
                if truth is not None:
                    found.append(truth)
                    if say:
                        ratio = truth.error_rps / truth.capacity_rps
                        print(
                            f"truth {case.name}: {truth.capacity_rps:.3g} req/s +- {ratio:.1%}, {truth.limiting}",
                            flush=True,
                        )
                    break
    if count is None:
        CACHE.write_bytes(msgspec.json.format(msgspec.json.encode(used)) + b"\n")
    return found


def _neat(value: float) -> float:
    return float(f"{value:.3g}")


def median_error(truths_: Sequence[Truth]) -> float:
    return median(t.error_rps / t.capacity_rps for t in truths_)
