# Everything is set up in .venv; stamps in it remember which extras are installed.
#   make demo | test [PYTEST="-k fuse"] | lint | bench [BENCH="-w mlp"] | standing | peers | clean

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST ?=
# Processes that share the tests, file by file: one for each core, a few at most; 0 for none.
WORKERS ?= logical
BENCH ?=
PEERS := benchmarks/.venvs
# What the device that is asked for needs.
DEVICE := $(if $(filter opencl%,$(TINYC_DEVICE)),$(VENV)/opencl.stamp)

.PHONY: demo test lint bench standing peers clean

demo: $(VENV)/examples.stamp $(DEVICE)
	$(BIN)/tinyc demo

test: $(VENV)/test.stamp $(DEVICE)
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile $(PYTEST)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/test.stamp
	$(BIN)/python benchmarks/run.py $(BENCH)
	$(BIN)/python benchmarks/micro.py

standing: $(VENV)/test.stamp
	$(BIN)/python benchmarks/standing.py $(BENCH)

peers: $(PEERS)/torch.stamp $(PEERS)/jax.stamp $(PEERS)/tinygrad.stamp $(PEERS)/numpy.stamp

clean:
	rm -rf $(VENV) $(PEERS) benchmarks/.work dist build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "tinyc needs Python 3.10 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	@echo "installing tinyc[$*] into $(VENV)"
	@$(PIP) install --editable '.[$*]'
	@touch $@

$(PEERS)/torch.stamp: PACKAGES := torch==2.13.0 numpy
$(PEERS)/jax.stamp: PACKAGES := jax==0.10.2 numpy
$(PEERS)/tinygrad.stamp: PACKAGES := tinygrad==0.14.0 numpy
$(PEERS)/numpy.stamp: PACKAGES := numpy numexpr numba

$(PEERS)/%.stamp:
	@test -n "$(PYTHON)" || { echo "no Python 3.10 or newer found; set PYTHON=..."; exit 1; }
	@echo "setting up the peer $*: $(PACKAGES)"
	@$(PYTHON) -m venv $(PEERS)/$*
	@$(PEERS)/$*/bin/python -m pip --disable-pip-version-check --quiet install $(PACKAGES)
	@touch $@
