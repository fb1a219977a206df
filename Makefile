# Two commands do everything, set-up included:
#   make demo    train, export, verify and use a model on generated images
#   make test    lint, types, import rules and tests (make test SLOW=1: the slow ones too)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
# The page is built in the repository; Node is needed only to change it, to test it, and for the engine in a wheel.
NPM := $(shell command -v npm)
WEB := runtime/web
WEB_READY := $(WEB)/node_modules/.ready
# In CI every test runs.
SLOW ?= $(if $(CI),1,)

# Files of tests that run at a time.
JOBS ?= 2

# Simulated devices; the tests look for them there.
DEVICES := $(CURDIR)/.cache/pocketdx

.PHONY: demo test devices lint types format web wheel clean

demo: $(READY)
	$(BIN)/pocketdx demo --out $(DEMO) --force

test: lint types devices $(if $(NPM),$(WEB_READY))
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile $(if $(SLOW),--slow,)

# What cannot be set up on this machine is skipped by its tests, with the reason.
devices: $(READY)
	-POCKETDX_CACHE=$(DEVICES) $(BIN)/pocketdx devices setup arm64 node browser task_library

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) $(if $(NPM),$(WEB_READY))
	$(BIN)/mypy
	$(if $(NPM),cd $(WEB) && npm run --silent check)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The page from its source, and the engine that runs models in it.
web: $(WEB_READY)
	cd $(WEB) && npm run --silent build

# With the engine inside: whoever installs it needs no Node.
wheel: $(READY) web
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

$(WEB_READY): $(WEB)/package-lock.json
	cd $(WEB) && npm ci --silent && node scripts/engine.mjs
	touch $@

# An interrupted set-up leaves no $(READY), so the next call finishes it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PocketDx needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	# Its metadata half only: the rest asks for a protobuf that onnx cannot live with (docs/formats.md).
	-$(BIN)/pip install --quiet --no-deps tflite-support==0.4.4
	touch $@

clean:
	rm -rf $(VENV) $(DEVICES) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
		$(WEB)/node_modules $(WEB)/dist serve/pocketdx_serve/web/engine
