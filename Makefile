# make demo   upscale a real picture through the HTTP API, on a server started for it
# make test   check and test everything
# make fuzz   send thousands of generated requests and hold the answers against the OpenAPI document
# make chaos  break everything around 200 jobs, for a few minutes, and look whether anything was lost
# make serve  run the service here
# make docs   build the documentation into site/
# The first of them creates .venv and installs into it; later ones find it done.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test fuzz chaos check serve docs install clean
.DEFAULT_GOAL := demo

demo: install
	@$(BIN)/python examples/demo.py --out demo

# One test process a core, one thread a process: two threads that share a core wait for each other.
test: check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# So many requests to each operation, new ones every time; a failure prints how to repeat it.
fuzz: CASES ?= 350
fuzz: install
	@OMP_NUM_THREADS=1 HIRESFIX_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest tests/conformance/test_fuzz.py \
	    --override-ini timeout=3600 --show-capture=no --numprocesses auto --maxprocesses 8

chaos: SEED ?= 1
chaos: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --seed $(SEED)

check: install
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

serve: install
	@$(BIN)/hiresfix serve

# MkDocs tells of a successor of its own at every build; the variable spares us that.
docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "hiresfix needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv \
	    || { rm -rf .venv; echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing hiresfix and what it needs into .venv (once, about a minute and 1.5 GB) ..."
	@$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]' \
	    | awk '/^Collecting|^Downloading/ { printf "."; fflush() } /^Success/ { print " done" } \
	        /^The conflict is caused by/ { why = 1 } why'
	@$(BIN)/python -c 'import hiresfix'
	@touch $@

clean:
	@rm -rf .venv demo site
