"""The captures under tests/data/profiles, and small traces made by hand."""

import json
from pathlib import Path

DATA = Path(__file__).parents[2] / "data" / "profiles"
GRAPH_DECODE = DATA / "mi300x_vllm_decode_cudagraph.json.gz"
BERT = DATA / "h100_bert-small.json.gz"
ALEXNET = DATA / "a100_alexnet_cuda_sync.json.gz"
CPU_ONLY = DATA / "cpu_only_rank-34.json.gz"
VLLM_CPU = DATA / "vllm_cpu_tiny_llama.json.gz"
NSYS = DATA / "nsys_2gpu_excerpt.sqlite.gz"


def work(name, start_us, duration_us, *, call=None, stream=7, device=0, category="kernel", **args):
    """A kernel, copy or fill. call: the number it shares with its launch."""
    place = {"device": device, "stream": stream} | ({} if call is None else {"correlation": call}) | args
    return {"ph": "X", "cat": category, "name": name, "pid": device, "tid": stream, "ts": start_us, "dur": duration_us,
            "args": place}  # fmt: skip


def launch(start_us, duration_us, call, name="cudaLaunchKernel", thread=1):
    return {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 100, "tid": thread, "ts": start_us,
            "dur": duration_us, "args": {"correlation": call}}  # fmt: skip


def span(name, start_us, duration_us, category="user_annotation", thread=1, **args):
    return {"ph": "X", "cat": category, "name": name, "pid": 100, "tid": thread, "ts": start_us, "dur": duration_us,
            "args": args}  # fmt: skip


def written(folder, events, name="trace.json", **around):
    """A trace file with these events."""
    path = folder / name
    path.write_text(json.dumps({"schemaVersion": 1, **around, "traceEvents": events}))
    return path
