# Everything from a fresh clone: `make quickstart`, `make test`. `make help` lists the rest.
# An existing .venv is used as it is found, with what is missing installed into it.

SHELL := bash
VENV ?= .venv
# What the test suite needs besides the core.
EXTRAS ?= dev,llm,mlflow,tabular,wandb
WORKERS ?= 2
ARGS ?=

# The first Python that is new enough; `make PYTHON=…` overrides.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
endif

BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt Makefile

# One line for each thing that pip downloads or installs; everything it said is in install.log.
define install
	@echo "Installing $(1) into $(VENV) (minutes the first time: PyTorch is large)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e "$(1)" 2>&1 \
	| tee $(VENV)/install.log \
	| awk '/^ *(Downloading|Installing collected|Successfully installed)/ { \
		sub(/^ */, "  "); sub(/-(cp|py)[0-9.py]+-[^ ]*/, ""); print substr($$0, 1, 90); fflush() }' \
	|| { tail -n 15 $(VENV)/install.log >&2; echo "Installing failed; $(VENV)/install.log has all of it." >&2; exit 1; }
endef

.PHONY: help quickstart test lint format clean

help:
	@echo "make quickstart   set up $(VENV), then forget a class of handwritten digits and report on it"
	@echo "make test         set up $(VENV) with what tests need, then run them all"
	@echo "                  (ARGS='-m \"not slow\"' leaves out the slow ones, WORKERS=0 runs in one process)"
	@echo "make lint         what must be clean: ruff, its formatter, mypy"
	@echo "make format       let ruff put right what it can"
	@echo "make clean        remove $(VENV) and caches, keep runs/"
	@echo "PYTHON=python3.12 chooses the interpreter that $(VENV) is made with"

quickstart: $(VENV)/.core
	$(BIN)/python -m erasus_pl fit --config conf/quickstart.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || { \
		echo "Python 3.11 or newer is needed, found: $$($(or $(PYTHON),python3) --version 2>&1)." >&2; \
		echo "Install one, then name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments." >&2; \
		echo "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/.core: $(INPUTS) | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(BIN)/python
	$(call install,.[$(EXTRAS)])
	@touch $@ $(VENV)/.core
