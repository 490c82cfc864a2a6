# make demo   upscale a real photo through the HTTP API, on a server started for it
# make test   check and test everything; some of it with ARGS="-k webhook" or ARGS=tests/wire
# make quick  unit and API tests only
# make check  formatting, lint, types, import rules
# make fix    format, and repair what the linter can
# make fuzz   send thousands of generated requests and compare the answers with the OpenAPI document
# make chaos  break everything around 200 jobs for a few minutes, then look for losses
# make serve  run the service here
# make docs   build the documentation into site/
# The first of them creates .venv and installs into it; later ones find it done.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
JS := tools/js
ARGS ?=

# One thread a process: threads that share a core wait for each other. More processes than cores: many tests wait.
CORES := $(shell nproc 2>/dev/null || echo 4)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal

.PHONY: demo test quick fix fuzz chaos check check-types check-style check-js serve docs install clean
.DEFAULT_GOAL := demo

demo: install
	@$(BIN)/python examples/demo.py --out demo

test: check
	@$(PYTEST) --numprocesses $$(($(CORES) + 2)) $(ARGS)

quick: install
	@$(PYTEST) --numprocesses $$(($(CORES) + 1)) -m "not slow" --ignore tests/journey --ignore tests/browser --ignore tests/chaos --ignore tests/docs \
	    --ignore tests/conformance --ignore tests/training --ignore tests/engine/superres $(ARGS)

fix: install
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .
	@if [ -x $(JS)/node_modules/.bin/biome ]; then npm --prefix $(JS) run --silent fix; fi

# CASES requests to each operation, new ones every time; a failure prints how to repeat it.
fuzz: CASES ?= 350
fuzz: install
	@OMP_NUM_THREADS=1 HIRESFIX_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest tests/conformance/test_fuzz.py \
	    --override-ini timeout=3600 --show-capture=no --numprocesses auto --maxprocesses 8

chaos: SEED ?= 1
chaos: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --seed $(SEED)

check: install
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check-types check-style

check-types:
	@$(BIN)/mypy

check-style: check-js
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports --no-logo

# Needs node; `npm --prefix tools/js install` once. Without it the scripts are checked in CI only.
check-js:
	@if [ -x $(JS)/node_modules/.bin/biome ]; then npm --prefix $(JS) run --silent check; \
	elif [ -n "$${CI:-}" ]; then echo "biome is not installed: npm --prefix $(JS) install"; exit 1; fi

serve: install
	@$(BIN)/hiresfix serve

# MkDocs announces a successor at every build; the variable silences it.
docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "hiresfix needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv \
	    || { rm -rf .venv; echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing hiresfix and its dependencies into .venv (once, about a minute and 1.5 GB) ..."
	@$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]' \
	    | awk '/^Collecting|^Downloading/ { printf "."; fflush() } /^Success/ { print " done" } \
	        /^The conflict is caused by/ { why = 1 } why'
	@$(BIN)/python -c 'import hiresfix'
	@touch $@

clean:
	@rm -rf .venv demo site
