# On a fresh machine with Python 3.11 or later: make demo, make test, make test-fast.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# constraints-cuda12.txt for GPUs before Turing: make install CONSTRAINTS=constraints-cuda12.txt
CONSTRAINTS ?= constraints.txt
CUDA12 := $(VENV)-cuda12
INSTALLED := $(VENV)/installed-$(basename $(CONSTRAINTS))
# Byte code is made afterwards, by every core, where pip would use one.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint $(CONSTRAINTS)
COMPILE := $(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib || true  # some packages bring files of Python 2
# Everything the demo makes stays below the checkout.
export REFSAM_DATA ?= $(CURDIR)/.demo/data

.PHONY: demo test test-fast test-cuda12 check architecture docs install install-dev install-cuda12 slurm-up slurm-down clean

demo: install  ## the sample data, a small sweep on it, its table, figure and report
	$(BIN)/refsam prepare dataset=nuclei
	$(BIN)/python -m refsam.sweep --config-name demo runs=.demo/runs
	$(BIN)/refsam collect demo --runs .demo/runs
	$(BIN)/refsam plot demo --runs .demo/runs
	$(BIN)/refsam report demo --runs .demo/runs

# A worker runs whole files. Three workers on two cores, because tests on Slurm mostly wait. A worker that
# dies ends all tests: pytest-xdist would wait for ever for the rest of its file.
test: install-dev check  ## linters, types, import contracts, all tests
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-fast: install-dev  ## what is tested without Slurm, a browser or whole runs, less the tests marked slow
	$(BIN)/python -m pytest tests/unit tests/engine -m "not slow" --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-cuda12: install-dev install-cuda12  ## the tests of the engine with PyTorch for CUDA 12.6
	$(CUDA12)/bin/python -m pytest tests/engine --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

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
	$(BIN)/python -m tools.test_cluster up --install

slurm-down:
	$(BIN)/python -m tools.test_cluster down

install: $(INSTALLED)
install-dev: $(INSTALLED)-dev
install-cuda12: $(CUDA12)/installed

$(INSTALLED): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) --editable .
	$(COMPILE)
	rm -f $(VENV)/installed*  # of other constraints
	touch $@

$(INSTALLED)-dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	$(COMPILE)
	rm -f $(VENV)/installed*
	touch $(INSTALLED) $@

# PyTorch for CUDA 12.6 and what it brings, in front of what install-dev installs.
$(CUDA12)/installed: constraints-cuda12.txt | $(BIN)/python
	$(PYTHON) -m venv $(CUDA12)
	$(CUDA12)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile \
		--constraint constraints-cuda12.txt torch torchvision
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(CUDA12)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "refsam needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(CUDA12) .demo .docs build dist
