#!/usr/bin/env bash
# Real Triton: the wheel of nvidia-pytriton holds NVIDIA's tritonserver. 369 MB on disk.
set -euo pipefail
source "$(dirname "$0")/common.sh"
real_begin triton
real_pip 'nvidia-pytriton==0.7.0'
real_end
