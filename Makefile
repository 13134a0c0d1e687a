# predet. Each target works on a fresh machine with Python >= 3.10 and a package index.
#   make demo       set up, then a small comparison on scenes drawn by predet
#   make test       set up, lint, core tests          make test-all   the same and the slow tests
#   make sanitize   native operators under address and undefined-behaviour checks (of test-all)
#   make fmt        format and fix                    make clean      remove what make built
# Variables: PYTHON (interpreter that makes the environment), VENV, JOBS (test processes).

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

.PHONY: setup demo lint fmt test test-all sanitize clean

setup: $(VENV)/.installed

$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "predet needs Python >= 3.10; got $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python tools/demo.py --output output/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(PYTEST) -m "not slow"

test-all: test sanitize
	$(PYTEST) -m slow

sanitize: setup
	$(BIN)/python tests/sanitize.py

clean:
	rm -rf $(VENV) build dist output/demo *.egg-info predet/*.so
