#!/usr/bin/env bash
# Real TensorFlow and the real protobufs of TensorFlow Serving. 2.1 GB on disk. The model server itself is on no index
# of Python packages: the tests put a servicer of their own around a real SavedModel.
set -euo pipefail
source "$(dirname "$0")/common.sh"
real_begin tensorflow
real_pip 'tensorflow-cpu==2.21.0' 'tensorflow-serving-api==2.21.0'
real_end
