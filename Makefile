# Everything a fresh machine needs is made in .venv; a change of constraints.txt or pyproject.toml makes it anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow bench lint format clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("survey needs Python >= 3.11; set PYTHON=python3.12, say" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,roman]'
	touch $@

demo: $(STAMP)  ## simulated field through the whole pipeline; opens nothing, writes demo/field/report.html
	$(BIN)/survey demo -o demo

# In the order of their names: by number of tests, files of one long test would come last, and one core idle.
test: $(STAMP)  ## the default tests: under ten minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test-slow: $(STAMP)  ## the long ones
	$(BIN)/python -m pytest -m slow --timeout 3600

bench: $(STAMP)  ## the speeds of the README's table
	$(BIN)/python -m pytest -m benchmark -s --timeout 3600 tests/benchmarks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
