# Everything runs in .venv, which `make setup` creates; the other targets make it on their first run.

VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# Without compiling every module of every package: a module is compiled when it is first imported.
PIP = $(BIN)/python -m pip install -q --no-compile -c constraints.txt

comma := ,

# Each file says when something was last installed.
TOOLS := $(VENV)/.tools-installed
EXTENSION := $(VENV)/.extension-installed
USE := $(VENV)/.use-installed
DEVELOPMENT := $(VENV)/.development-installed

# What `make train` installs: enough for a DeepLabCut project, and DALI where there is a GPU.
GPU_TOOL := $(shell command -v nvidia-smi 2>/dev/null)
USE_EXTRAS := train,dlc$(if $(GPU_TOOL),$(comma)dali)

# What `make gpu` runs by; it needs torch, and no .venv. PYTHON=... names another.
GPU_PYTHON = $(or $(PYTHON),$(if $(wildcard $(BIN)/python),$(BIN)/python,python3))

# One thread for each test worker: oversubscribed cores make short tests slow. A worker more than two
# cores have, as some tests wait for processes of their own.
TEST_WORKERS := 3
TEST_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test lint format cuda-check gpu bench docs performance wheel clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## create .venv and install fasthg in it, with everything to develop
	@$(MAKE) --no-print-directory -j 2 developed

# The first Python that is new enough and can make environments; a bare command name may be a shim
# of a version that is not installed, so each is tried.
$(BIN)/python:
	@for python in python3.13 python3.12 python3.11 python3; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	        >/dev/null 2>&1; then \
	        echo "$$python -m venv $(VENV)"; \
	        exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module; on Debian and Ubuntu:" >&2; \
	echo "    sudo apt-get install python3 python3-venv python3-dev" >&2; \
	exit 3

# The tools that compile the extension, at the versions that are pinned here.
$(TOOLS): constraints.txt | $(BIN)/python
	$(PIP) setuptools pybind11
	@touch $@

# The extension needs no torch, so it is compiled while packages are downloaded. Its CUDA kernels take
# nvcc minutes: a machine without a GPU has none, unless FASTHG_CUDA or FASTHG_CUDA_ARCH is set.
$(EXTENSION): export FASTHG_CUDA := $(or $(FASTHG_CUDA),$(if $(GPU_TOOL)$(FASTHG_CUDA_ARCH),auto,off))
$(EXTENSION): $(TOOLS) setup.py $(wildcard csrc/*)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

$(USE): $(TOOLS) pyproject.toml
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) $(TORCH)
	FASTHG_EXTENSION=off $(PIP) --no-build-isolation -e '.[$(USE_EXTRAS)]'
	@touch $@

$(DEVELOPMENT): $(USE)
	FASTHG_EXTENSION=off $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

# What `setup` and `train` make, two at a time.
.PHONY: developed used
developed: $(DEVELOPMENT) $(EXTENSION)
	@:

used: $(USE) $(EXTENSION)
	@:

train: ## train the demo on synthetic mice, evaluate it, predict a film
	@$(MAKE) --no-print-directory -j 2 used
	@test -f demo-data/test_dataset-00000-of-00001 || $(BIN)/fasthg data synth demo-data --seed 0
	$(BIN)/fasthg train configs/demo.yaml
	@test -f demo-data/film.mp4 || $(BIN)/fasthg data synth demo-data --film 150 --seed 1
	$(BIN)/fasthg predict "$$(ls -td runs/demo* | head -n 1)" demo-data/film.mp4 --overlay

test: setup ## run the tests
	OMP_NUM_THREADS=$(TEST_THREADS) $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist worksteal

lint: setup ## check style and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*

format: setup ## rewrite all sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*

cuda-check: setup ## compile the CUDA sources for every supported GPU, without one
	$(BIN)/python tools/cuda_check.py

gpu: ## build, prove and measure everything on a machine with a GPU; installs nothing
	@$(GPU_PYTHON) tools/gpu.py

bench: setup ## run the benchmarks and hold them against their floors
	$(BIN)/python -m pytest benchmarks

docs: setup ## make the site of the documentation, build/site/index.html
	$(BIN)/python -m sphinx -q -W --keep-going docs build/site

performance: setup ## write docs/performance.md and its pictures from the newest of benchmarks/results
	$(BIN)/python tools/performance_page.py

# Where nvcc is found the CUDA kernels are in it, and with FASTHG_CUDA=on it must be found.
wheel: setup ## build dist/fasthg-*.whl for this platform, compiled kernels in
	rm -rf build/lib build/lib.* build/bdist.*
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	@ls -lh dist/*.whl

clean: ## remove what was built, but not .venv, runs and data
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find fasthg tests benchmarks tools -name __pycache__ -prune -exec rm -rf {} +
	rm -f fasthg/*.so $(EXTENSION)
