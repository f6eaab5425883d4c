# `make serve` serves, `make test` tests; everything else hangs on `trident --help`.
#
#   .venv         Trident itself: what serving needs (`make serve`), or everything (`make test`)
#   .venv-triton  what runs inside the embedded Triton server, with a numpy of its own (docs/decisions/0001)
#   .bench        what Trident is compared with (`make bench`), an environment each
#
# The first two are made again only when pyproject.toml or this file changes.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help serve test lint bench clean

HOST ?= 127.0.0.1
PORT ?= 8000
PYTEST ?=
# Processes that run test files side by side: many tests wait more than they compute.
WORKERS ?= 2
# Further arguments of `trident bench peers`.
BENCH ?=
QUICK ?=
PYTHON ?=

VENV := .venv/bin/python
PIP := -m pip --quiet --disable-pip-version-check install
SERVE := .venv/.serve
COMPARE := .venv/.compare
DEV := .venv/.dev
TRITON := .venv-triton/.complete

help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

serve: $(SERVE) triton  ## install what serving needs, start Triton and the gateway (HOST=127.0.0.1 PORT=8000)
	@exec $(VENV) -m deploy serve --host $(HOST) --port $(PORT)

test: $(DEV) triton  ## install everything, run the tests (PYTEST="-k name" for arguments)
	$(VENV) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

lint: $(DEV)  ## ruff, mypy, and who may import whom
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy
	.venv/bin/lint-imports --no-cache --no-logo

bench: $(COMPARE) triton  ## compare Trident with other servers and decoders: hours; QUICK=1: ten minutes (BENCH="--only …")
	$(VENV) -m deploy bench peers $(if $(QUICK),--quick,--document docs/benchmarks.md --plot docs/plots/peers.svg) $(BENCH)

clean:  ## remove environments, caches and whatever was generated
	rm -rf .venv .venv-triton .bench model_repository-* build dist artifacts *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find model_repository -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/pip:
	@python=$$(deploy/server/find_python.sh $(PYTHON)) && echo "Creating .venv with $$($$python --version)" \
	  && $$python -m venv --clear .venv

$(SERVE): pyproject.toml Makefile | .venv/bin/pip
	@echo "Installing what serving needs into .venv"
	@$(VENV) $(PIP) -e '.[serve]'
	@touch $@

$(COMPARE): pyproject.toml Makefile | .venv/bin/pip
	@echo "Installing what serving and comparing need into .venv"
	@$(VENV) $(PIP) -e '.[serve,compare]'
	@touch $@ $(SERVE)

$(DEV): pyproject.toml Makefile | .venv/bin/pip
	@echo "Installing what development needs into .venv (PyTorch among it: several minutes the first time)"
	@$(VENV) $(PIP) -e '.[dev]'
	@touch $@ $(SERVE) $(COMPARE)

# The wheel comes without its dependencies: they belong to its Python library, and only its server is used.
$(TRITON): pyproject.toml Makefile | .venv/bin/pip
	@echo "Installing the embedded Triton into .venv-triton"
	@$(VENV) -m venv --clear .venv-triton
	@.venv-triton/bin/python $(PIP) 'numpy==1.26.*' 'onnxruntime>=1.31,<2'
	@.venv-triton/bin/python $(PIP) --no-deps 'nvidia-pytriton==0.7.0'
	@touch $@

# Where that server cannot run, `trident serve` says so and serves without it.
.PHONY: triton
triton: | .venv/bin/pip
	@if $(VENV) -m deploy.server.installation 2>/dev/null; then $(MAKE) --silent --no-print-directory $(TRITON); fi
