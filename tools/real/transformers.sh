#!/usr/bin/env bash
# `transformers serve` on the CPU, with SmolLM2-135M. 1.5 GB on disk.
set -euo pipefail
source "$(dirname "$0")/common.sh"
real_begin transformers
real_torch_cpu
real_pip 'transformers[serving]==5.23.0' "$TORCH" accelerate gguf
real_model
real_end
