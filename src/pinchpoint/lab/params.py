"""Everything that describes one simulated service: GPU, model, engine limits and the queues in front of it.

Not for faults (faults.py) and not for formulas (cost.py). A fault is nothing but another LabParams.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.hardware import GIB_BYTES, GPUS, Gpu
from pinchpoint.lab.ranges import check_ranges
from pinchpoint.lab.shapes import MODELS, ModelShape

NON_KV_BYTES = 3.5e9
"""Activations, CUDA context and graphs per GPU. Published vLLM token counts on H100 imply 3.0 to 3.6 GB, on RTX 6000
Ada 1.7 to 3.0, on RTX 4090 with 2048 batched tokens 1.2."""


class Speculation(msgspec.Struct, frozen=True, kw_only=True):
    """Draft and verify: tokens are accepted one by one, each with acceptance_ratio, until the first refusal."""

    num_speculative_tokens: int = 3
    acceptance_ratio: float = 0.7
    draft_cost_ratio: float = 0.05
    """Time of one draft token over the time that the model needs for one decode step (EAGLE-like heads: a few %)."""


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    """Adapters. adapters 0: requests without one. The service spreads requests evenly over `adapters` unless they name
    theirs."""

    adapters: int = 0
    max_loras: int = 4
    """Slots on the GPU; requests whose adapter has none wait."""
    load_s: float = 0.05
    """Copy of one adapter into a slot; the engine stands still meanwhile."""
    slowdown_ratio: float = 1.1
    """Step time with adapter kernels over step time without."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """Structured output. share_ratio: of the requests that are held to a schema beside those that bring one."""

    share_ratio: float = 0.0
    schemas: int = 4
    compile_s: float = 0.15
    """Once per schema, on the CPU; the request waits, others do not."""
    mask_s_per_sequence: float = 50e-6
    """Per step and constrained sequence, on the CPU, while the GPU waits."""


class Disaggregation(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts on engines of their own; their KV travels to the engine that decodes."""

    prefill_engines: int = 1
    transfer_bytes_per_s: float = 25e9
    """25 GB/s: a 200 Gb/s network card."""
    transfer_latency_s: float = 2e-3


class Autoscaler(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas are added up to `replicas_max` while requests in flight per replica exceed the target."""

    replicas_max: int = 2
    target_in_flight_per_replica: float = 32
    look_every_s: float = 15.0
    start_s: float = 60.0
    """Pod, image, weights, warm-up: until a new replica takes requests."""


class Front(msgspec.Struct, frozen=True, kw_only=True):
    """What stands between the network and the engines, beside the API process's own costs (api_* of LabParams)."""

    replicas: int = 1
    router: Literal["round_robin", "least_loaded", "sticky"] = "least_loaded"
    """sticky: by session or, without one, by a skewed hash of the request (router_skew)."""
    router_skew_ratio: float = 0.0
    """Share of the sticky requests that all land on replica 0 beside its fair share."""
    replica_speed_ratios: tuple[float, ...] = ()
    """Speed of replica i relative to a healthy one; those not named have 1."""
    api_processes: int = 1
    """Per replica; connections are spread evenly."""
    tokenizer_s_per_token: float = 1.2e-6
    """CPU time; fast tokenizers do about a million tokens a second on a core."""
    tokenizer_threads: int = 0
    """0: in the API process itself. N: a pool of N threads before the engine."""
    detokenize_s_per_token: float = 0.0
    """In the API process, beside api_chunk_s."""
    log_s_per_request: float = 0.0
    log_s_per_chunk: float = 0.0
    """Synchronous log or trace writes in the API process; they wait for the disk (host.disk_write_bytes_per_s)."""
    log_bytes_per_write: int = 2_000
    thread_pool_threads: int | None = None
    """A synchronous endpoint holds one of so many threads from parsing to the last chunk; None: asynchronous."""
    dependency_s: float = 0.0
    """Mean service time of a call before inference (retrieval, guardrail, auth); 0: there is none."""
    dependency_cv: float = 0.5
    dependency_slots: int = 64
    """Calls that the dependency serves at once; others wait in its line."""
    gateway_timeout_s: float | None = None
    """The gateway gives up on an attempt that has sent nothing yet, and tries again."""
    gateway_retries: int = 0


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """Between client and service. Defaults: loopback."""

    rtt_s: float = 0.0
    loss_ratio: float = 0.0
    """Of the packets in each direction; a lost one comes again after a retransmission time-out of at least 200 ms
    (Linux TCP_RTO_MIN), with fast retransmit where more packets follow."""
    bandwidth_bytes_per_s: float | None = None
    """Of the server's network card, both directions each; None: no limit."""
    keep_alive: bool = True
    """False: every request makes a connection."""
    tls_s: float = 0.0
    """CPU time of the handshake in the proxy, one core; 0: plain TCP. TLS 1.3 also costs one round trip."""
    dns_s: float = 0.0
    """Look-up per new connection."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of one replica."""

    cores: int = 16
    memory_bytes: float = 128 * GIB_BYTES
    cpu_quota_cores: float | None = None
    """cgroup quota of all processes of the replica together, in periods of 100 ms (kernel default)."""
    neighbour_cores: float = 0.0
    """Runnable threads of others, which take their fair share of the cores."""
    steal_ratio: float = 0.0
    numa_remote_ratio: float = 0.0
    """Share of memory accesses that go to the far socket; each takes about 1.7 times as long (two-socket Xeon)."""
    rss_leak_bytes_per_request: float = 0.0
    swap: bool = True
    """Without, the kernel kills the replica when memory is full."""
    disk_write_bytes_per_s: float = 500e6
    accept_backlog: int = 2048
    """min(listen backlog, somaxconn). A SYN that finds the queue full is dropped and comes again after 1, 3, 7 s."""
    conntrack_max: int = 262_144
    conntrack_time_wait_s: float = 120.0
    nofile: int = 65_536
    softirq_s_per_packet: float = 0.0
    """CPU time on the one core that takes the card's interrupts; 0: spread and negligible."""


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """State of the GPUs. All ratios are relative to a healthy one; GPU index 0 is meant where one alone is."""

    sm_clock_ratio: float = 1.0
    """Locked clock over the highest."""
    memory_clock_ratio: float = 1.0
    power_limit_ratio: float = 1.0
    """Power limit over the TDP."""
    cooling_ratio: float = 1.0
    """Heat carried off per kelvin, relative to a healthy cooler."""
    ambient_c: float = 28.0
    link_ratio: float = 1.0
    """Bandwidth between the GPUs of one engine over the healthy one."""
    peer_links: bool = True
    """False: GPUs with NVLink or HCCS exchange their results over PCIe all the same."""
    pcie_ratio: float = 1.0
    neighbour_share_ratio: float = 0.0
    """Share of the GPU's time that another process takes, in slices."""
    neighbour_slice_s: float = 2e-3
    memory_leak_bytes_per_s: float = 0.0
    """Taken from the KV pool while it has free blocks; out of memory ends the replica."""
    fault_every_s: float | None = None
    """Mean time between Xid errors, each of which ends the engine's requests and restarts the replica."""
    restart_s: float = 45.0


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """What the application does to requests before inference, unknown to the client."""

    output_factor: float = 1.0
    """The answer's length over the one asked for; above 1 the application has lifted max_tokens, below 1 the model
    ends early."""
    image_tokens: int = 0
    """Added to every request's prompt through the vision encoder."""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The load generator that virtual runs imagine. Served over HTTP, the lab has no say in its clients."""

    request_s: float = 0.0
    chunk_s: float = 0.0
    """CPU time of its one loop per request sent and per chunk read; what waits in the loop is stamped late."""
    kernel_stamps: bool = True
    """Arrivals are stamped by the kernel, not by the late loop."""
    pool_connections: int | None = None
    """Requests beyond wait inside the client."""
    ports: int | None = None
    """Ephemeral ports; with connections closed after each request, each is blocked for 60 s (TIME_WAIT)."""
    users: int | None = None
    """A closed loop in disguise: a request is sent only when one of so many users is free, and its time counts from
    there."""
    repeated_prompts: int | None = None
    """It sends only so many different prompts."""


class LabParams(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated service. The defaults are healthy: Llama-3-8B in bf16 on one A100-80G, vLLM's defaults for it.

    None switches a limit off. Efficiencies are achieved/peak ratios. Groups are addressed with a dot: `host.cores`.
    """

    gpu: str = "A100"
    model: str = "llama-3-8b"
    dialect: Literal["vllm", "sglang", "tgi", "llama.cpp"] = "vllm"
    """Whose metric names the service speaks."""
    weight_precision: Literal["bf16", "fp8"] = "bf16"
    kv_precision: Literal["bf16", "fp8"] = "bf16"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    """Engines behind one API server, requests spread by least load. Their weights are copies."""
    expert_parallel: bool = False
    """Experts are spread over the tensor-parallel GPUs whole, not in slices."""
    expert_imbalance_ratio: float = 1.0
    """Load of the fullest GPU over the mean."""

    # Engine. 256 and 2048 are vLLM's API-server defaults on A100; 16 its block size; 0.9 its memory share.
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size_tokens: int = 16
    gpu_memory_utilization_ratio: float = 0.9
    non_kv_bytes: float = NON_KV_BYTES
    """Per GPU."""
    kv_blocks: int | None = None
    """None: what is left of GPU memory."""
    admission: Literal["optimistic", "reserve_full"] = "optimistic"
    """optimistic: blocks are taken as tokens come, a full pool preempts. reserve_full: prompt and whole output are
    taken at admission, so nothing is ever preempted."""
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    chunked_prefill: bool = True
    mixed_batches: bool = True
    """False: prompts have steps of their own, before anything is decoded (SGLang unless told otherwise)."""
    long_prefill_token_threshold: int = 0
    """0: no limit on the tokens of one prompt in one step."""
    prefix_caching: bool = True
    cuda_graphs: bool = True
    cudagraph_max_sequences: int = 512
    """Largest captured batch; beyond it, kernels are launched one by one. vLLM's default."""
    first_shape_s: float = 0.0
    """Compilation at the first step of each padded batch size and of each power of two of prompt tokens; 0: warm."""
    sampling_s_per_sequence: float = 0.0
    """On the GPU per sampled row, beside the usual: sorting for top-p, penalties, log-probabilities."""
    speculation: Speculation | None = None
    lora: Lora = Lora()
    grammar: Grammar = Grammar()
    disaggregation: Disaggregation | None = None

    # Step time. 0.7 and 0.8 are what published A100 GEMM profiles reach (73 % of FLOPs, 77 % of bandwidth).
    compute_efficiency_ratio: float = 0.7
    weight_bandwidth_efficiency_ratio: float = 0.8
    kv_bandwidth_efficiency_ratio: float = 0.8
    kv_reads_per_token: float = 1.0
    """How often attention reads each cached byte; 1 is a kernel that shares it between the query heads of a group."""
    encoder_efficiency_ratio: float = 0.5
    """Of the vision encoder's matrix products."""
    cast_passes: float = 0.0
    """Times that all weights are read and written once more per step, by kernels that convert them on the fly."""
    step_overhead_s: float = 0.8e-3
    """Scheduling, launch and sampling per step; fits of serving data give 1 to 6 ms, profiles of the kernels 0.8."""
    layer_overhead_s: float = 0.0
    """Per layer and step, beside step_overhead_s: every kernel begins and ends with an idle GPU, and a layer has about
    ten. Fits of serving data give 40 to 60 us for models of 32, 64 and 80 layers alike (lab-validation)."""
    all_reduce_latency_s: float = 10e-6
    """Per call; fits of serving data give 1 to 20 us."""
    link_efficiency_ratio: float = 0.67
    """Of the link's peak in a large all-reduce; fits of serving data give 0.4 to 0.88."""
    sequence_overhead_s: float = 25e-6
    """Per sequence in a step; fits of serving data give 16 to 55 us."""
    kernel_launch_s: float = 7e-6
    """CPU time per kernel launched outside a captured graph by compiled code; 5 to 10 us. Without `cuda_graphs` nothing
    is compiled either, and it is at least cost.EAGER_LAUNCH_S."""
    step_noise_ratio: float = 0.03
    """Standard deviation of the step time over its mean."""

    # API process: one event loop, first in first out.
    api_request_s: float = 0.3e-3
    api_chunk_s: float = 15e-6
    """Per chunk written to a client; an answer that is not streamed is one chunk."""
    api_null_s: float = 50e-6
    """For an answer that does not touch the model, such as /health, or a refusal."""

    # In front of it.
    rate_limit_rps: float | None = None
    rate_limit_burst_requests: float = 10
    in_flight_limit: int | None = None
    proxy_buffering: bool = False
    """The proxy hands an answer on only when it is complete."""

    front: Front = Front()
    autoscaler: Autoscaler | None = None
    path: Path = Path()
    host: Host = Host()
    accelerator: Accelerator = Accelerator()
    application: Application = Application()
    client: Client = Client()

    def changed(self, values: Mapping[str, object]) -> "LabParams":
        """A copy with these fields; keys such as `max_num_seqs` or `host.cores`. Checked by `validate`.

        A group that is None (`speculation.acceptance_ratio`) begins with its defaults. Raises UsageError for a field
        that does not exist.
        """
        plain: dict[str, object] = {}
        groups: dict[str, dict[str, object]] = {}
        for key, value in values.items():
            group, dot, field = key.partition(".")
            if dot:
                groups.setdefault(group, {})[field] = value
            else:
                plain[key] = value
        for group, fields in groups.items():
            if group not in GROUPS:
                raise UsageError(f"the lab has no group of parameters {group!r}; choose one of {', '.join(GROUPS)}")
            current = getattr(self, group)
            kind = GROUPS[group]
            _check_fields(kind, fields, f"{group}.")
            plain[group] = msgspec.structs.replace(current if current is not None else kind(), **fields)
        _check_fields(LabParams, plain, "")
        made = msgspec.structs.replace(self, **plain)
        made.validate()
        return made

    def value(self, key: str) -> object:
        """The field called `key`, as in `changed`; None inside a group that is None."""
        group, dot, field = key.partition(".")
        found = getattr(self, group)
        return getattr(found, field) if dot and found is not None else found

    @property
    def gpu_spec(self) -> Gpu:
        if self.gpu not in GPUS:
            raise UsageError(f"the lab knows no GPU {self.gpu!r}; choose one of {', '.join(GPUS)}")
        return GPUS[self.gpu]

    @property
    def model_shape(self) -> ModelShape:
        if self.model not in MODELS:
            raise UsageError(f"the lab knows no model {self.model!r}; choose one of {', '.join(MODELS)}")
        return MODELS[self.model]

    def num_kv_blocks(self) -> int:
        """Blocks in the pool: kv_blocks, or what weights and overhead leave of the GPU's memory.

        Raises UsageError when the weights do not fit.
        """
        if self.kv_blocks is not None:
            return self.kv_blocks
        gpus = self.tensor_parallel * self.pipeline_parallel
        usable_bytes = self.gpu_memory_utilization_ratio * self.gpu_spec.memory_bytes
        weight_bytes = self.model_shape.weights_bytes(self.weight_precision) / gpus
        left_bytes = usable_bytes - weight_bytes - self.non_kv_bytes
        block_bytes = self.kv_block_bytes
        if left_bytes < block_bytes:
            raise UsageError(
                f"{self.model} does not fit on {gpus} x {self.gpu}: "
                f"weights need {weight_bytes / 1e9:.0f} GB per GPU; raise tensor_parallel"
            )
        return int(left_bytes // block_bytes)

    @property
    def kv_bytes_per_token(self) -> int:
        """Of the whole model, at kv_precision."""
        return self.model_shape.kv_bytes_per_token(self.kv_precision)

    @property
    def kv_block_bytes(self) -> float:
        """One block's share on one GPU. Tensor parallelism cuts the cache between key-value heads, no further."""
        shards = min(self.tensor_parallel, self.model_shape.kv_shards) * self.pipeline_parallel
        return self.kv_bytes_per_token * self.block_size_tokens / shards

    def max_model_len_tokens(self) -> int:
        """Longest prompt plus output: one request must always fit into the KV pool, or it could never finish."""
        return min(self.model_shape.context_tokens, self.num_kv_blocks() * self.block_size_tokens)

    def flat(self) -> dict[str, object]:
        """Every parameter by the name that `changed` takes. A group that is None has none."""
        found: dict[str, object] = {}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, msgspec.Struct):
                found.update((f"{name}.{field}", getattr(value, field)) for field in value.__struct_fields__)
            else:
                found[name] = value
        return found

    def validate(self) -> None:
        """Raises UsageError for values no service could have."""
        check_ranges(self.flat())
        check_ranges({"kv_blocks": self.num_kv_blocks()})
        if self.model_shape.heads % self.tensor_parallel:
            raise UsageError(
                f"tensor_parallel is {self.tensor_parallel}, which does not divide the {self.model_shape.heads} heads "
                f"of {self.model}; choose a divisor"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs {self.max_num_seqs}; "
                "every running sequence needs one token per step"
            )


GROUPS: dict[str, type[msgspec.Struct]] = {
    "speculation": Speculation,
    "lora": Lora,
    "grammar": Grammar,
    "disaggregation": Disaggregation,
    "front": Front,
    "autoscaler": Autoscaler,
    "path": Path,
    "host": Host,
    "accelerator": Accelerator,
    "application": Application,
    "client": Client,
}


def _check_fields(kind: type[msgspec.Struct], fields: Iterable[str], prefix: str) -> None:
    unknown = [f"{prefix}{field}" for field in fields if field not in kind.__struct_fields__]
    if unknown:
        raise UsageError(
            f"the lab has no parameter {', '.join(unknown)}; choose one of "
            f"{', '.join(prefix + field for field in kind.__struct_fields__)}"
        )
