# make run    builds .venv, prepares the embedded data set, trains 16 layers on 16 ranks
# make run-gnn   builds .venv, trains a graph network on the embedded graph, 4 parts on 4 ranks
# make test   builds .venv, runs the linters and all tests, those under mpirun too
# make docs   adds MkDocs to .venv, builds the documentation into site/; a broken link fails
# make test-torch  adds PyTorch and PyG to .venv, compares graph networks with them
# make wheel  builds .venv, the source distribution and from it a wheel for other machines, in dist/
# make lock   pins the newest releases of what the container images hold, with hashes; asks the package index
# make gpu-check PYTHON=...   tests and measures on this machine's GPU with that Python's packages
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RANKS  ?= 16

.PHONY: run run-gnn test test-torch docs wheel lock gpu-check lint install clean check-tools
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	$(BIN)/python -m pdadmm.prepare synthetic --out data/synthetic.h5
	$(BIN)/mpirun -n $(RANKS) $(BIN)/python -m pdadmm.run data/synthetic.h5

run-gnn: $(VENV)/.installed
	$(BIN)/mpirun -n 4 $(BIN)/python -m pdadmm.gnn.run

test: $(VENV)/.installed-test lint
	@# 3 processes for 2 cores, since some tests wait; by name: by number of tests, the few that train on real
	@# data would come last, on one core
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-torch: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torch]'
	$(BIN)/python -m pytest tests/test_gnn_torch.py

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.installed-test
	PYTHON=$(BIN)/python kernels/build_wheel.sh

lock: $(VENV)/.installed-test
	UV=$(BIN)/uv jobs/containers/lock.sh

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py
	$(BIN)/lint-imports
	$(BIN)/hadolint jobs/containers/Containerfile

install: $(VENV)/.installed

SOURCES := pyproject.toml $(wildcard CMakeLists.txt kernels/*)

$(VENV)/.installed: $(SOURCES) | check-tools
	$(call install,mpich)
	touch $@

$(VENV)/.installed-test: $(SOURCES) | check-tools
	$(call install,mpich$(comma)gnn$(comma)test$(comma)lint$(comma)wheel$(comma)lock)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(SOURCES) | check-tools
	$(call install,mpich$(comma)docs)
	touch $@ $(VENV)/.installed

comma := ,
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(1)]'
endef

check-tools:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; install Python 3.10 or newer (Debian: apt install python3)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is older than 3.10; give a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: the venv module is missing (Debian: apt install python3-venv)" >&2; exit 2; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "make: a C++ compiler is missing (Debian: apt install g++)" >&2; exit 2; }

clean:
	rm -rf $(VENV) build dist site runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
