"""Which measurements belong together, and what was known of each deployment before any fit."""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from pinchpoint.lab.params import LabParams

from .closed_loop import Loop, kv_share_ratio, run_loop, step_seconds, tpot_estimate_s, ttft_estimate_s
from .fitting import LAUNCH_FIELDS, STEP_FIELDS
from .points import BatchLatency, PromptAndToken, ServingPoint, read
from .replay import batch_estimate_s, batch_latency_s

KV_SHARE_MAX = 0.85
"""Points whose users would together take more of the KV pool are no use for calibrating: users wait there."""


FEW_USERS = 4
"""Times to first token are compared where no more users share the service: with more, they are mostly queueing. Eight
users whose answers are equally long already stay in step and wait for each other's prompts."""


class Case(msgspec.Struct):
    """One measured number. kind: tpot, ttft or latency. estimate_s: the quick formula, None where it does not hold.
    lab_s: what the lab says when its engine runs. stratum: draws of tuning points are even over it (the TP degree)."""

    kind: str
    params: LabParams
    measured_s: float
    lab_s: Callable[[LabParams], float]
    estimate_s: Callable[[LabParams], float] | None
    stratum: object
    loop: Loop | None = None


class Group(msgspec.Struct, frozen=True):
    """engine: constants are shared only inside one engine. what: what is measured."""

    name: str
    title: str
    engine: str
    source: str
    what: str
    base: dict[str, object]
    cases: Callable[[], list[Case]]
    tuned: bool
    """Constants are fitted to a few of its points; else it is only predicted, by those of other groups."""
    fields: tuple[str, ...] = STEP_FIELDS
    """The constants that are fitted; OUTSIDE_FIELD comes with them where times to first token are among the points."""
    predicted_by: str | None = None
    """Name of the group whose constants it is held against, without any fit of its own."""
    excuse: str = ""
    """Why its numbers are not met, found by looking at them. Shown; the limit stays."""


# Limits that the publishers do not state: the engines' defaults on GPUs of 70 GiB and more, the engine's longest step
# being 8192 tokens in all three.
SERVING_LIMITS = {"max_num_batched_tokens": 8192, "max_num_seqs": 1024}
IN_STEP = (("sglang", "0.5.1.post1"),)
"""Their times to first token are those of users who all begin at once: half of all prompts' time, up to 9 seconds."""
AICONFIGURATOR = "ai-dynamo/aiconfigurator, silicon sample (Apache-2.0)"
SPLITWISE = "Splitwise, ISCA 2024 (MIT)"
ARGONNE = "LLM-Inference-Bench, SC24 (BSD-3-Clause)"


def serving_group(
    engine: str,
    version: str,
    gpu: str,
    model: str,
    precision: str,
    *,
    predicted_by: str | None = None,
    excuse: str = "",
) -> Group:
    base = {"gpu": gpu, "model": model, "weight_precision": precision, **SERVING_LIMITS}
    if engine == "sglang":
        base["mixed_batches"] = False
    if model == "deepseek-v3":
        # 512 users of 8192 tokens take three times as long per token as 64: some 2 million tokens are held at once,
        # which only fp8 makes room for.
        base["kv_precision"] = "fp8"

    def cases() -> list[Case]:
        found = [
            point
            for point in read(ServingPoint, "serving_points.csv")
            if (point.engine, point.version, point.gpu, point.model, point.precision)
            == (engine, version, gpu, model, precision)
        ]
        return [case for point in found for case in _serving_cases(base, point)]

    shown = {"vllm": "vLLM", "trtllm": "TensorRT-LLM", "sglang": "SGLang"}[engine]
    return Group(
        name=f"{engine}-{model}-{precision}-{gpu}".lower(),
        title=f"{shown}{' ' + version if version else ''}, {model} {precision}, {gpu}",
        engine=engine,
        source=AICONFIGURATOR,
        what="TPOT in a closed loop",
        base=base,
        cases=cases,
        tuned=True,
        predicted_by=predicted_by,
        excuse=excuse,
    )


def _serving_cases(base: dict[str, object], point: ServingPoint) -> Iterator[Case]:
    params = LabParams().changed(
        {**base, "tensor_parallel": point.tensor_parallel, "expert_parallel": point.expert_parallel > 1}
    )
    loop = Loop(point.concurrency, point.prompt_tokens, point.output_tokens, (point.engine, point.version) in IN_STEP)
    roomy = kv_share_ratio(params, loop) < KV_SHARE_MAX
    yield Case(
        kind="tpot",
        params=params,
        measured_s=point.tpot_ms / 1e3,
        lab_s=lambda tuned: run_loop(tuned, loop).tpot_s,
        estimate_s=(lambda tuned: tpot_estimate_s(tuned, loop)) if roomy else None,
        stratum=point.tensor_parallel,
        loop=loop,
    )
    if roomy and point.concurrency <= FEW_USERS:
        yield Case(
            kind="ttft",
            params=params,
            measured_s=point.ttft_ms / 1e3,
            lab_s=lambda tuned: run_loop(tuned, loop, burst=True).ttft_s,
            estimate_s=lambda tuned: ttft_estimate_s(tuned, loop),
            stratum=(point.tensor_parallel, point.prompt_tokens),
            loop=loop,
        )


def prompt_and_token_group(gpu: str) -> Group:
    """Every batch alone on the GPUs, so a step is measured as it is. Prompts of more than one request are left out:
    they were computed one after the other."""
    base = {"gpu": gpu, "model": "llama-2-70b", "max_num_batched_tokens": 65_536, "max_num_seqs": 256}
    base["cuda_graphs"] = False  # vLLM had none then; the time per token is the same on 4 and on 8 GPUs

    def cases() -> list[Case]:
        found: list[Case] = []
        for point in read(PromptAndToken, "prompt_and_token_times.csv"):
            if point.gpu != gpu:
                continue
            params = LabParams().changed({**base, "tensor_parallel": point.tensor_parallel})
            held = point.batch * (point.prompt_tokens + point.output_tokens / 2)
            ways = point.tensor_parallel
            found.append(_step_case(params, point.token_ms / 1e3, "tpot", ways, decoding=point.batch, held=held))
            if point.batch == 1:
                prompt = float(point.prompt_tokens)
                found.append(_step_case(params, point.prompt_ms / 1e3, "ttft", prompt, prompt=prompt, of=prompt))
        return found

    return Group(
        name=f"splitwise-llama-2-70b-{gpu}".lower(),
        title=f"Splitwise's vLLM of 2023, llama-2-70b bf16, {gpu}",
        engine="splitwise",
        source=SPLITWISE,
        what="time per token and of single prompts",
        base=base,
        cases=cases,
        tuned=True,
        fields=LAUNCH_FIELDS,
    )


def _step_case(params: LabParams, measured_s: float, kind: str, stratum: object, **work: float) -> Case:
    def step_s(tuned: LabParams) -> float:
        return step_seconds(tuned)(**work)  # pyright: ignore[reportArgumentType]

    return Case(kind, params, measured_s, step_s, step_s, stratum)


def batch_group(
    engine: str, gpu: str, models: Sequence[str], name: str, predicted_by: str | None = None, excuse: str = ""
) -> Group:
    """Without predicted_by it is tuned."""
    base = {"gpu": gpu, "max_num_batched_tokens": 8192, "max_num_seqs": 256}

    def cases() -> list[Case]:
        return [
            _batch_case(base, point)
            for point in read(BatchLatency, "batch_latencies.csv")
            if (point.engine, point.gpu) == (engine, gpu) and point.model in models
        ]

    return Group(
        name=f"argonne-{engine}-{name}-{gpu}".lower(),
        title=f"{engine} of 2024, {', '.join(models)} bf16, {gpu}",
        engine=f"{engine} 2024",
        source=ARGONNE,
        what="latency of a batch",
        base=base,
        cases=cases,
        tuned=predicted_by is None,
        predicted_by=predicted_by,
        excuse=excuse,
    )


def _batch_case(base: dict[str, object], point: BatchLatency) -> Case:
    params = LabParams().changed({**base, "model": point.model, "tensor_parallel": point.tensor_parallel})
    lengths = (point.batch, point.prompt_and_output_tokens, point.prompt_and_output_tokens)
    whole = Loop(*lengths)
    return Case(
        kind="latency",
        params=params,
        measured_s=point.latency_s,
        lab_s=lambda tuned: batch_latency_s(tuned, *lengths),
        estimate_s=(lambda tuned: batch_estimate_s(tuned, *lengths))
        if kv_share_ratio(params, whole) < KV_SHARE_MAX
        else None,
        stratum=(point.tensor_parallel, point.model),
    )


SMALL = ("llama-2-7b", "llama-3-8b")
LARGE = ("llama-2-70b", "llama-3-70b")
SAME_EXPERTS = (
    "16 sequences take less time than reading all experts of Mixtral takes at the full memory bandwidth (11.4 ms per "
    "step on 4 A100; measured 11.0). If the benchmark's sequences were equal they would go to the same experts, which "
    "would explain it, but the source does not say so. The lab routes evenly and independently."
)
CONTRADICTION = (
    "the published times to first token contradict each other: the same prompts, users and GPUs give 383 ms before "
    "answers of 1024 tokens and 104 ms before answers of 8192."
)
VLLM, TRT = "vllm-qwen3-32b-bf16-h100", "trtllm-llama-3.1-8b-bf16-h100"
GROUPS = [
    serving_group("vllm", "0.12.0", "H100", "qwen3-32b", "bf16"),
    serving_group("vllm", "", "H100", "llama-3.1-70b", "fp8", predicted_by=VLLM),
    serving_group("vllm", "", "B200", "llama-3.1-70b", "fp8", predicted_by=VLLM),
    serving_group("trtllm", "1.0.0rc3", "H100", "llama-3.1-8b", "bf16"),
    serving_group("trtllm", "1.0.0rc3", "H100", "qwen3-32b", "fp8", predicted_by=TRT),
    serving_group("trtllm", "1.0.0rc3", "H100", "qwen3-235b-a22b", "fp8", predicted_by=TRT),
    serving_group("trtllm", "", "B200", "llama-3.1-70b", "fp8", predicted_by=TRT, excuse=CONTRADICTION),
    serving_group("sglang", "0.5.1.post1", "H100", "qwen3-32b", "bf16"),
    serving_group("sglang", "0.5.9", "B200", "deepseek-v3", "fp8"),
    prompt_and_token_group("A100"),
    prompt_and_token_group("H100"),
    batch_group("vLLM", "A100", SMALL, "small"),
    batch_group("vLLM", "A100", ("mistral-7b",), "mistral-7b", "argonne-vllm-small-a100"),
    batch_group("vLLM", "A100", ("llama-2-70b",), "llama-2-70b", "argonne-vllm-small-a100"),
    batch_group("vLLM", "A100", ("mixtral-8x7b",), "mixtral-8x7b", "argonne-vllm-small-a100"),
    batch_group("vLLM", "H100", SMALL, "small"),
    batch_group("vLLM", "H100", ("mistral-7b",), "mistral-7b", "argonne-vllm-small-h100"),
    batch_group("vLLM", "H100", LARGE, "70b", "argonne-vllm-small-h100"),
    batch_group("TensorRT-LLM", "A100", SMALL, "small"),
    batch_group("TensorRT-LLM", "A100", LARGE, "70b", "argonne-tensorrt-llm-small-a100"),
    batch_group(
        "TensorRT-LLM", "A100", ("mixtral-8x7b",), "mixtral-8x7b", "argonne-tensorrt-llm-small-a100", SAME_EXPERTS
    ),
    batch_group("TensorRT-LLM", "H100", SMALL, "small"),
    batch_group("TensorRT-LLM", "H100", LARGE, "70b", "argonne-tensorrt-llm-small-h100"),
    batch_group(
        "TensorRT-LLM", "H100", ("mixtral-8x7b",), "mixtral-8x7b", "argonne-tensorrt-llm-small-h100", SAME_EXPERTS
    ),
]
