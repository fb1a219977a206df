# Two commands do everything, set-up included:
#   make demo    train, export, verify and use a model on generated images
#   make test    lint, types, import rules and tests (make test SLOW=1: the slow ones too)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
# In CI every test runs.
SLOW ?= $(if $(CI),1,)

# Simulated devices; the tests look for them there.
DEVICES := $(CURDIR)/.cache/pocketdx

.PHONY: demo test devices lint types format clean

demo: $(READY)
	$(BIN)/pocketdx demo --out $(DEMO) --force

test: lint types devices
	$(BIN)/pytest $(if $(SLOW),--slow,)

# What cannot be set up on this machine is skipped by its tests, with the reason.
devices: $(READY)
	-POCKETDX_CACHE=$(DEVICES) $(BIN)/pocketdx devices setup arm64 node browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An interrupted set-up leaves no $(READY), so the next call finishes it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PocketDx needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

clean:
	rm -rf $(VENV) $(DEVICES) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
