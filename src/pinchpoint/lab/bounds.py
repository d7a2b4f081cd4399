"""Bucket bounds of the imitated engines' histograms, and what the lab collects so that each can be printed.

Data, taken from pages of the engines and, for SGLang, from what its collector declares. A lab histogram has the union
of the bounds of all dialects, so that one set of counters serves every page, also that of an older version.
"""

from collections.abc import Iterable


def one_two_five(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to the context length, as vLLM buckets token counts."""
    bounds: list[float] = []
    decade = 1
    while decade <= limit:
        bounds.extend(float(step * decade) for step in (1, 2, 5) if step * decade <= limit)
        decade *= 10
    return tuple(bounds)


def hundredths(limit: int) -> tuple[float, ...]:
    """A hundred equal steps up to the limit, as TGI buckets token counts."""
    return tuple(limit / 100.0 * step for step in range(1, 101))


def union(*bounds: Iterable[float]) -> tuple[float, ...]:
    return tuple(sorted({bound for some in bounds for bound in some}))


def _geometric(start: float, factor: float, length: int) -> tuple[float, ...]:
    """start x factor, x factor again ...: multiplied step by step, as TGI does it, for the same last digits."""
    bounds: list[float] = []
    for _ in range(length):
        start *= factor
        bounds.append(start)
    return tuple(bounds)


def _up_to(bounds: tuple[float, ...], limit: float) -> tuple[float, ...]:
    return tuple(bound for bound in bounds if bound <= limit)


# fmt: off
VLLM_REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                  480.0, 960.0, 1920.0, 7680.0)
VLLM_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
               80.0, 160.0, 640.0, 2560.0)
VLLM_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
              80.0)
VLLM_STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
VLLM_PREEMPTIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
VLLM_N = (1.0, 2.0, 5.0, 10.0, 20.0)
VLLM_HTTP_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0,
               30.0, 60.0)
VLLM_HTTP_FEW_S = (0.1, 0.5, 1.0)
VLLM_TRANSFER_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
VLLM_TRANSFER_BYTES = tuple(float(1 << power) for power in range(11, 34, 2))
VLLM_V0_TTFT_S = _up_to(VLLM_TTFT_S, 10.0)
VLLM_V0_ITL_S = _up_to(VLLM_ITL_S, 2.5)
VLLM_V0_E2E_S = (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)

SGLANG_TTFT_S = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0)
SGLANG_E2E_S = (*SGLANG_TTFT_S, 600.0, 1200.0, 1800.0, 2400.0)
SGLANG_ITL_S = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4,
                0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0)
SGLANG_QUEUE_S = (0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
                  50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1000.0,
                  1200.0, 1400.0, 1600.0, 1800.0, 2000.0, 2500.0, 3000.0)
SGLANG_TOKENS = (100.0, 300.0, 500.0, 700.0, 1000.0, 1500.0, 2000.0, 3000.0, 4000.0, 5000.0, 6000.0, 7000.0, 8000.0,
                 9000.0, 10000.0, 12500.0, 15000.0, 17500.0, 20000.0, 22500.0, 25000.0, 27500.0, 30000.0, 35000.0,
                 40000.0, 60000.0, 80000.0, 100000.0, 200000.0, 300000.0, 400000.0, 600000.0, 800000.0, 1000000.0,
                 1100000.0)
SGLANG_GRAMMAR_S = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 240.0)
SGLANG_TRANSFER_S = (1e-3, 2e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0)
SGLANG_TRANSFER_BYTES = (1e6, 5e6, 10e6, 50e6, 100e6, 500e6, 1e9, 5e9, 10e9)
SGLANG_TRANSFER_BYTES_PER_S = (0.1e9, 0.5e9, 1e9, 5e9, 10e9, 25e9, 50e9, 100e9, 200e9, 400e9)
"""Exposed in ms, MB and GB/s."""
SGLANG_OLD_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0,
                     20.0, 25.0, 30.0)
SGLANG_OLD_E2E_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
SGLANG_OLD_ITL_S = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
                    2.5)
# fmt: on
TGI_S = _geometric(1e-4, 1.5, 35)
TGI_BATCH = tuple(float(size) for size in range(1, 1025))

MS_PER_S, MB_BYTES, GB_BYTES = 1e3, 1e6, 1e9
REQUEST_S = union(VLLM_REQUEST_S, SGLANG_E2E_S, SGLANG_QUEUE_S, TGI_S)
"""For every time of a whole request or a phase of it."""
TTFT_S = union(VLLM_TTFT_S, SGLANG_TTFT_S, SGLANG_OLD_TTFT_S)
ITL_S = union(VLLM_ITL_S, SGLANG_ITL_S, SGLANG_OLD_ITL_S)
TPOT_S = union(VLLM_ITL_S, TGI_S)
TRANSFER_S = union(VLLM_TRANSFER_S, SGLANG_TRANSFER_S)
TRANSFER_BYTES = union(VLLM_TRANSFER_BYTES, SGLANG_TRANSFER_BYTES)


def prompt_tokens(limit: int) -> tuple[float, ...]:
    """For tokens of a prompt, of which TGI wants one less than the context has."""
    return union(one_two_five(limit), SGLANG_TOKENS, hundredths(limit - 1), hundredths(limit))
