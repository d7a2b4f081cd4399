"""What screens and pages say of profiles: names of categories and idle time, and where the time went in a sentence."""

import re
from collections.abc import Sequence

from pinchpoint.profiles.kernels import OTHER, catalogue
from pinchpoint.profiles.model import Analysis, IdleClass, RankAnalysis, Step, StepSummary
from pinchpoint.units import MISSING, counted, format_duration, significant

FAMILIES: dict[str, tuple[str, ...]] = {
    "matrix": ("gemm", "convolution"),
    "attention": ("attention_prefill", "attention_decode", "attention", "kv_write", "state_space"),
    "experts": ("moe_experts", "moe_routing"),
    "small": (
        "norm", "activation", "rope", "softmax", "embedding", "quantisation", "elementwise", "reduction",
        "data_movement", "optimizer",
    ),
    "sampling": ("sampling",),
    "copy": ("memcpy_h2d", "memcpy_d2h", "memcpy_d2d", "memcpy_p2p", "memcpy_other", "memset"),
    "communication": tuple(catalogue().groups["communication"]),
    "other": (OTHER,),
}  # fmt: skip
"""Categories that share a colour: more colours than this cannot be told apart."""
FAMILY_TITLES = {
    "matrix": "matrix products",
    "attention": "attention and KV cache",
    "experts": "MoE",
    "small": "norms, elementwise and other small work",
    "sampling": "sampling",
    "copy": "copies and fills",
    "communication": "communication",
    "other": "not classified",
}
_FAMILY_OF = {category: family for family, categories in FAMILIES.items() for category in categories}

IDLE_TITLES = {
    "launch_bound": "launch-bound",
    "host_bound": "host-bound",
    "communication_wait": "communication wait",
    "data_copy": "data copy",
    "queued": "queued already",
    "unknown": "cause not told",
}
FORMAT_TITLES = {
    "kineto": "PyTorch profiler",
    "nsys_sqlite": "Nsight Systems",
    "nsys_csv": "Nsight Systems, totals",
    "dlprof_sqlite": "DLProf",
    "dlprof_csv": "DLProf, totals",
    "rocprofv3_json": "rocprofv3",
    "rocprof_csv": "rocprof",
    "mixed": "several profilers",
}
IDLE_TELLING_SHARE = 0.2
"""From here on the idle time is the answer, whatever the GPU does when it works."""
WAITING_TELLING_SHARE = 0.15
IDLE_ADVICE = {
    "launch_bound": "Launching takes longer than computing: use graphs (CUDA graphs, HIP graphs) or larger batches.",
    "host_bound": "The host is behind: look at scheduling, tokenisation and sampling on the CPU between the steps.",
    "communication_wait": "The host waits inside collectives: look for the slowest rank and for the links.",
    "data_copy": "The host copies data while the GPU waits: pin the memory, copy less, or copy beside the computing.",
}

COMMUNICATION_ADVICE = "Communication is not hidden behind computing: look at links, at the slowest rank, at overlap."
SHOWN_SHARE_MIN = 5e-4
"""What would be printed as 0.0 % is left out of the bar."""


def title_of(category: str) -> str:
    """Of a category of kernels or of idle time; an unknown one is its own title."""
    if category == "idle":
        return "idle"
    return IDLE_TITLES.get(category) or catalogue().categories.get(category, category)


def family_of(category: str | None) -> str:
    return _FAMILY_OF.get(category or OTHER, "other")


def format_title(name: str) -> str:
    return FORMAT_TITLES.get(name, name)


def most_telling(ranks: Sequence[RankAnalysis]) -> RankAnalysis | None:
    """The device that was busy least, for that is where to look first; without devices the first part."""
    devices = [one for one in ranks if one.gpu is not None]
    if devices:
        return min(devices, key=lambda one: one.gpu.busy_share if one.gpu is not None else 1.0)
    return next((one for one in ranks if one.categories), ranks[0] if ranks else None)


def headline(analysis: Analysis) -> str:
    """Where the time went, in one sentence without a full stop."""
    rank = most_telling(analysis.ranks)
    if rank is None:
        return "Nothing in these files could be analysed"
    name = rank.label if len(analysis.ranks) > 1 else "the GPU"
    said = rank_headline(rank, name)
    return said[:1].upper() + said[1:]


def rank_headline(rank: RankAnalysis, name: str) -> str:
    gpu = rank.gpu
    if gpu is None:
        if rank.categories:
            first = rank.categories[0]
            return f"{title_of(first.category)} took {share(first.share)} of the GPU's work"
        if rank.host is not None and rank.host.ops:
            op = max(rank.host.ops, key=lambda one: one.self_s)
            took = op.self_s / rank.host.span_s if rank.host.span_s else 0.0
            return f"no work on a GPU; on the CPU {op.name} took most, {share(took)} of the time"
        return "no work on a GPU was recorded"
    worst = longest_idle(rank)
    if gpu.span_s and gpu.idle_s / gpu.span_s >= IDLE_TELLING_SHARE and worst is not None:
        return f"{name} was idle {share(gpu.idle_s / gpu.span_s)} of the time, most of it {idle_clause(worst)}"
    if gpu.span_s and gpu.exposed_copy_s / gpu.span_s >= WAITING_TELLING_SHARE:
        return f"{name} did nothing but copy for {share(gpu.exposed_copy_s / gpu.span_s)} of the time"
    if gpu.span_s and gpu.exposed_communication_s / gpu.span_s >= WAITING_TELLING_SHARE:
        alone = share(gpu.exposed_communication_s / gpu.span_s)
        return f"{name} did nothing but communicate for {alone} of the time"
    busy = f"{name} was busy {share(gpu.busy_share)} of the time"
    if not rank.categories:
        return busy
    first = rank.categories[0]
    return f"{busy}; most of that is {title_of(first.category)}, {share(first.share)}"


def longest_idle(rank: RankAnalysis) -> IdleClass | None:
    return max(rank.idle, key=lambda one: one.total_s, default=None)


def idle_clause(idle: IdleClass) -> str:
    clauses = {
        "launch_bound": "waiting for the next launch within a step",
        "host_bound": "waiting for the host between steps",
        "communication_wait": "while the host was inside a collective",
        "data_copy": "while the host copied data",
        "queued": "between work that was queued already",
        "unknown": "in gaps whose cause the file does not tell",
    }
    return clauses[idle.kind]


def idle_words(idle: IdleClass) -> str:
    return (
        f"{format_duration(idle.total_s)} in {counted(idle.gaps, 'gap')}, the largest {format_duration(idle.largest_s)}"
    )


def step_words(summary: StepSummary) -> str:
    """A line about the steps of one kind."""
    d = summary.duration
    parts = [f"{counted(summary.steps, 'step')}: {format_duration(d.p50_s)}"]
    if summary.steps > 1:
        parts[0] += f" (median), {format_duration(d.p99_s)} (p99)"
    if summary.period_s is not None:
        parts.append(f"one every {format_duration(summary.period_s)}")
    if summary.gpu_busy_share is not None:
        parts.append(f"GPU busy {share(summary.gpu_busy_share)}")
    return ", ".join(parts)


def step_kind_title(kind: str) -> str:
    return {"unknown": "kind not told"}.get(kind, kind)


def tokens_of(step: Step) -> str:
    """Prompt and generated tokens of a step as its range named them."""
    parts = [
        f"{count:,} {noun}"
        for count, noun in ((step.prefill_tokens, "prompt"), (step.decode_tokens, "decode"))
        if count is not None
    ]
    return " + ".join(parts) or MISSING


def share(value: float | None) -> str:
    """A part of a whole with one decimal, so that shares stand under each other."""
    return MISSING if value is None else f"{value * 100:.1f} %"


def scaled(value: float | None, unit: str) -> str:
    """With a decimal prefix: 1.2e12 -> "1.2 TB/s"."""
    if value is None:
        return MISSING
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{significant(value / factor)} {prefix}{unit}"
    return f"{significant(value)} {unit}"


_NOISE = re.compile(
    r"\(anonymous namespace\)::|<unnamed>::|\b(?:at::native|at|c10|std|cub|thrust|internal)::|^void |\(int\)"
)


def short_name(kernel: str) -> str:
    """A kernel's name without the namespaces that all of them share: what is left differs early on."""
    return _NOISE.sub("", kernel) or kernel


def split_of(rank: RankAnalysis) -> list[tuple[str, str, float, float]]:
    """(class, title, seconds, share of the span) of what fills the span of a device."""
    gpu = rank.gpu
    if gpu is None or not gpu.span_s:
        return []
    parts = [
        ("f-matrix", "computing", gpu.compute_s),
        ("f-communication", "communication alone", gpu.exposed_communication_s),
        ("f-copy", "copies alone", gpu.exposed_copy_s),
        *((f"i-{one.kind}", f"idle, {IDLE_TITLES[one.kind]}", one.total_s) for one in rank.idle),
    ]
    return [
        (css, title, seconds, seconds / gpu.span_s)
        for css, title, seconds in parts
        if seconds / gpu.span_s >= SHOWN_SHARE_MIN
    ]


def advice_of(rank: RankAnalysis) -> str | None:
    """What to look at, where a part of the span is large enough to be worth it."""
    gpu = rank.gpu
    if gpu is None or not gpu.span_s:
        return None
    worst = longest_idle(rank)
    if worst is not None and worst.share > 0.1 and worst.kind in IDLE_ADVICE:
        return IDLE_ADVICE[worst.kind]
    return COMMUNICATION_ADVICE if gpu.exposed_communication_s / gpu.span_s > 0.1 else None
