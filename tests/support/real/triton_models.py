"""Three models in a real tritonserver, bound by PyTriton: run by the python of .real/triton.

    python triton_models.py HTTP_PORT GRPC_PORT METRICS_PORT

Prints "ready" when all of them can be asked. `double` doubles numbers after 5 ms; `text` answers with max_tokens words
at once; `text_stream` answers with one word at a time (decoupled), for gRPC streams and generate_stream.
"""

import signal
import sys
import time
from collections.abc import Iterator

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

WORDS = "pinch point queue batch token cache slot worker stage limit".split()
PER_WORD_S = 0.002
PER_DOUBLE_S = 0.005


def word(index: int) -> str:
    return WORDS[index % len(WORDS)]


@batch
def double(INPUT_1: np.ndarray) -> dict[str, np.ndarray]:
    time.sleep(PER_DOUBLE_S)
    return {"OUTPUT_1": INPUT_1 * 2}


@batch
def text(text_input: np.ndarray, max_tokens: np.ndarray) -> dict[str, np.ndarray]:
    counts = [int(count) for count in max_tokens.reshape(-1)]
    time.sleep(PER_WORD_S * max(counts))
    answers = [[" ".join(map(word, range(count))).encode()] for count in counts]
    return {"text_output": np.array(answers, dtype=object)}


def text_stream(requests: list) -> Iterator[list[dict[str, np.ndarray]]]:
    """One request at a time: the model is bound without batching."""
    for index in range(int(requests[0].data["max_tokens"].reshape(-1)[0])):
        time.sleep(PER_WORD_S)
        yield [{"text_output": np.array([f"{word(index)} ".encode()], dtype=object)}]


def main() -> None:
    http_port, grpc_port, metrics_port = map(int, sys.argv[1:4])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=http_port,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        metrics_address="127.0.0.1",
        metrics_port=metrics_port,
        allow_gpu_metrics=False,
    )
    numbers = {
        "inputs": [Tensor(dtype=np.float32, shape=(-1,))],
        "outputs": [Tensor(dtype=np.float32, shape=(-1,))],
    }
    texts = {
        "inputs": [
            Tensor(name="text_input", dtype=bytes, shape=(1,)),
            Tensor(name="max_tokens", dtype=np.int32, shape=(1,)),
        ],
        "outputs": [Tensor(name="text_output", dtype=bytes, shape=(1,))],
    }
    batched = ModelConfig(max_batch_size=16, batcher=DynamicBatcher(max_queue_delay_microseconds=1000))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Triton(config=config) as triton:
        triton.bind("double", double, **numbers, config=batched)
        triton.bind("text", text, **texts, config=ModelConfig(max_batch_size=8))
        triton.bind("text_stream", text_stream, **texts, config=ModelConfig(batching=False, decoupled=True))
        print("ready", flush=True)
        triton.serve()


if __name__ == "__main__":
    main()
