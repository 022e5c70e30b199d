# Everything a fresh clone needs. Environments are made on first use, and again when what they are made from changes.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
# Test processes. Each computes with one thread, or they would fight over the cores.
WORKERS ?= 2

VENV := .venv
AUTO_GPTQ := .venv-auto-gptq
LITGPT := .venv-litgpt
BIN := $(VENV)/bin

ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
OFFLINE := HF_HUB_OFFLINE=1
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test check interop bench wheel clean

help:  ## what there is to make
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/demo.stamp  ## download, quantize and judge the bundled model; no network once installed, no GPU
	$(OFFLINE) $(BIN)/llamaconv demo

test: $(VENV)/dev.stamp  ## the tests
	$(OFFLINE) $(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/dev.stamp  ## style, types, import layers, every command documented
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo
	$(OFFLINE) $(BIN)/python -m pytest -q tests/test_docs.py

# The environment of `make demo` is there to compare with: both transformers must lead to the same bytes.
interop: $(AUTO_GPTQ)/stamp $(LITGPT)/stamp $(VENV)/demo.stamp  ## AutoGPTQ 0.7.1 and litgpt 0.5.13 read our artifacts, each in an environment of its own
	$(OFFLINE) $(ONE_THREAD) $(AUTO_GPTQ)/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/interop/auto_gptq
	$(OFFLINE) $(ONE_THREAD) $(LITGPT)/bin/python -m pytest tests/interop/litgpt

bench: $(VENV)/dev.stamp $(LITGPT)/stamp  ## the measurements of benchmarks/, one after the other
	for name in reproducible quality memory outliers convert_memory convert_speed download_speed download_faults download_killed download_proxies; do echo "== $$name"; $(OFFLINE) $(BIN)/python benchmarks/$$name.py; done

wheel: $(VENV)/dev.stamp  ## dist/: the source archive, and the wheel built from it
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean:  ## remove everything made here, environments included
	rm -rf $(VENV) $(AUTO_GPTQ) $(LITGPT) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find llamaconv tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	@echo "installing llamaconv into $(VENV); this takes a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	@echo "installing llamaconv and what its tests need into $(VENV); this takes a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -e ".[dev,interop,datasets]"
	touch $(VENV)/demo.stamp $@

# AutoGPTQ's build script imports torch, so torch comes first and is not hidden from it. Built from source it is
# plain Python for any Python version; its one binary wheel brings CUDA kernels that need an older torch.
$(AUTO_GPTQ)/stamp: pyproject.toml constraints-auto-gptq.txt
	@echo "installing AutoGPTQ into $(AUTO_GPTQ); this takes a minute or two"
	$(PYTHON) -m venv $(AUTO_GPTQ)
	$(AUTO_GPTQ)/bin/python $(PIP) -c constraints-auto-gptq.txt setuptools wheel torch
	BUILD_CUDA_EXT=0 $(AUTO_GPTQ)/bin/python $(PIP) -c constraints-auto-gptq.txt \
	  --no-build-isolation --no-binary auto-gptq auto-gptq
	$(AUTO_GPTQ)/bin/python $(PIP) -c constraints-auto-gptq.txt -e ".[auto-gptq]" hypothesis pytest pytest-xdist
	touch $@

$(LITGPT)/stamp: pyproject.toml constraints-litgpt.txt
	@echo "installing litgpt into $(LITGPT); this takes a minute or two"
	$(PYTHON) -m venv $(LITGPT)
	$(LITGPT)/bin/python $(PIP) -c constraints-litgpt.txt -e ".[litgpt]" hypothesis pytest
	touch $@
