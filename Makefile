# On a fresh machine with Python 3.11 or later: make demo, make test, make test-fast.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Byte code is made afterwards, by every core, where pip would use one.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
COMPILE := $(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib || true  # some packages bring files of Python 2
# Everything the demo makes stays below the checkout.
export REFSAM_DATA ?= $(CURDIR)/.demo/data

.PHONY: demo test test-fast check architecture docs install install-dev slurm-up slurm-down clean

demo: install  ## the sample data, a small sweep on it, its table, figure and report
	$(BIN)/refsam prepare dataset=nuclei
	$(BIN)/python -m refsam.sweep --config-name demo runs=.demo/runs
	$(BIN)/refsam collect demo --runs .demo/runs
	$(BIN)/refsam plot demo --runs .demo/runs
	$(BIN)/refsam report demo --runs .demo/runs

# A worker runs whole files. Three workers on two cores, because tests on Slurm mostly wait.
test: install-dev check  ## linters, types, import contracts, all tests
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-fast: install-dev  ## what is tested without Slurm, a browser or whole runs, less the tests marked slow
	$(BIN)/python -m pytest tests/unit tests/engine -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

architecture: install-dev  ## docs/packages.svg and the table of endings, from the code
	$(BIN)/python -m tools.architecture

docs: install-dev  ## the documents as a site, in .docs
	$(BIN)/python -m mkdocs build --strict --site-dir .docs

slurm-up: install  ## a real Slurm on this machine, to try sweeps on (root)
	$(BIN)/python -m refsam.test_cluster up --install

slurm-down:
	$(BIN)/python -m refsam.test_cluster down

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	$(COMPILE)
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	$(COMPILE)
	touch $(VENV)/installed $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "refsam needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .demo .docs build dist
