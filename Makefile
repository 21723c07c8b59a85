# `make demo` and `make test` need nothing but Python >= 3.11, make and git.
# Everything is installed into .venv, from the versions and hashes in requirements.lock.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
CORES  := $(shell getconf _NPROCESSORS_ONLN)
# Flower itself depends on uv, so the lock already says which one.
UV     := $(shell sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements.lock)

# Waiting threads of OpenMP shall sleep, not spin: the cores are shared with Ray and with others.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench test-deploy deploy-demo lint format lock docs clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## make .venv and install the pinned dependencies

# The stamp is written last, so an interrupted installation is taken up again by the next call. Modules are compiled
# now: an account that may not write here, as a service's, would compile PyTorch anew in every process it starts.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, found `$(PYTHON) -V 2>&1`; call make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY) ## the whole method under `flwr run` on Ray: 5 clients, two rounds, a report
	@$(BIN)/fedbicross simulate --config configs/demo.toml

# Side by side, a file at a time and one thread each; then what starts Ray, which wants the cores to itself.
test: $(READY) ## the test suite, but for what `make test-deploy` runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ray and not deploy" --numprocesses $(CORES) --dist loadfile
	@$(BIN)/python -m pytest -m ray

# Two files at a time: a centre that waits for a dead site's silence leaves the cores to the other file's.
test-deploy: $(READY) ## many real processes: sites with TLS, disturbed in every way, and runs on Ray: twenty minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m deploy --numprocesses 2 --dist loadfile

# Alone on the machine, and the reference has several threads: they wait as PyTorch has it.
bench: $(READY) ## speed and memory of every stage beside a plain reference; `make bench ARGS=--quick`
	@env -u OMP_WAIT_POLICY $(BIN)/python -m benchmarks $(ARGS)

deploy-demo: $(READY) ## a centre and three sites with certificates and keys, in folders of their own
	@$(BIN)/python deploy/demo.py

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY) ## let ruff put the code in order
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: $(READY) ## write the generated pages and pictures of docs/ anew
	@$(BIN)/python docs/generate.py

lock: ## resolve pyproject.toml into requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock

clean: ## remove the environment and caches; runs/ stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
