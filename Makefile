# `make` lists what can be done. Everything is installed into .venv here, on the first use.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# Threads that wait for work sleep, and leave the cores to those that have some.
export OMP_WAIT_POLICY := PASSIVE

# The core: tests that need neither the built book nor a browser, and take two seconds at most.
CORE := not slow and not book and not browser

.PHONY: help book check test lab bench lint clean
.DEFAULT_GOAL := help

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-7s %s\n", $$1, $$2}' Makefile

book: $(VENV)/installed ## execute the notebooks and build the book into _build/html
	$(PY) book/build.py

check: lint ## style, types and the core tests of the library, in two minutes
	$(PY) -m pytest -n 2 --dist worksteal -m '$(CORE)' --durations 5 --durations-min 2 tests

test: $(VENV)/installed ## run and test the notebooks, build the book from that, then test library and book
	$(PY) -m pytest -p book.keep_outputs --nbval-lax --nbval-current-env --nbval-cell-timeout 300 \
	  -n 2 --dist loadfile notebooks
	$(PY) book/build.py
	$(PY) -m pytest -n 2 --dist worksteal tests

lab: $(VENV)/installed ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab --ContentsManager.preferred_dir=notebooks

bench: $(VENV)/installed ## measure on this machine what training steps and measures cost, as ratios
	$(PY) -m benchmarks

lint: $(VENV)/installed ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean: ## remove what was built; .venv and downloaded data stay
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache
	find nb_lib benchmarks tests book -name __pycache__ -prune -exec rm -rf {} +

# One thread per process: notebooks and tests already run side by side.
book check test: export OMP_NUM_THREADS := 1

# The stamp is written last, so that an installation that was cut short starts over; a working .venv is kept.
$(VENV)/installed: pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "This needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }; \
	  echo "Creating $(VENV)" && $(PYTHON) -m venv --clear $(VENV); } >&2
	$(PY) -m pip install --editable '.[book,cluster,test]'
	@touch $@
