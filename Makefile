# Each target installs what it needs first: a virtual environment in $(VENV), made once, and brought
# up to date when setup.py changes. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Two processes with two threads each on two cores are many times slower than with one.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/pytest --numprocesses 2 --dist worksteal
FAST := -m "not slow and not gpu"

.PHONY: install demo test-fast test types lint coverage bench clean help

install: $(INSTALLED)  ## virtual environment in .venv with the package and its tools

$(INSTALLED): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,slurm,weights]'
	touch $@

demo: install  ## every stage on built-in street scenes, without files: 4 minutes on two cores
	$(BIN)/diga-hpc demo

test-fast: install  ## the daily tests, without `slow` and `gpu`: about 2 minutes on two cores
	$(PYTEST) $(FAST) tests

test: install  ## every test, as in continuous integration: about 15 minutes on two cores
	# A third process works while others wait for ranks and clusters.
	$(PYTEST) --numprocesses 3 tests

types: install  ## mypy
	$(BIN)/mypy

lint: install  ## ruff (rules and format), and the layers of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

coverage: install  ## lines that the daily tests run; details in build/coverage/html
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(notdir $(PYTEST)) $(FAST) tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet --directory build/coverage/html
	$(BIN)/coverage report

bench: install  ## measures the kernels here: a table and a plot, compared with the recorded rows
	$(BIN)/python benchmarks/bench_kernels.py

clean:  ## removes what was built; keeps the environment and the runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile
