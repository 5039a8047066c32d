# From a fresh clone, with nothing but Python 3.11 or newer and a network:
#
#   make demo    install into .venv, convert a network, check it on a clip made on the spot
#   make test    linters, tests, and the built wheel tried outside this folder
#
# Also: make lint, make bench, make coverage, make fuzz (ten minutes), make soak (an hour), make
# clean. On a machine with a GPU, with any Python that has torch and CuPy: make test-gpu, make
# bench-gpu (GPU_PYTHON=python3). Another interpreter: make demo PYTHON=python3.12
# More for pytest: make test PYTEST_ARGS="-k conv"

PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

GPU_PYTHON ?= python3

.PHONY: help demo test lint bench coverage fuzz soak clean test-gpu bench-gpu

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: .venv/installed
	$(BIN)/deltaconvert demo

# One thread a process, because two processes share the tests.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)
	@rm -rf dist
	@echo "building the wheel"
	@$(BIN)/python -m build --outdir dist . > build/build.log 2>&1 || { cat build/build.log; exit 1; }
	$(BIN)/python tests/wheel_check.py dist/*.whl

# mypy does not follow `__path__`: it gets a folder of links, laid out as it installs.
lint: .venv/installed-dev
	$(BIN)/ruff check .
	@rm -rf build/types && mkdir -p build/types/deltaconvert
	@ln -s "$(CURDIR)"/deltaconvert/* "$(CURDIR)/passes" "$(CURDIR)/cuda" build/types/deltaconvert
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
	    --cache-dir ../../.mypy_cache -p deltaconvert

# Figures and pictures go to build/bench/. FastestDet needs clip and weights: DELTACONVERT_DATA.
bench: .venv/installed-bench
	@mkdir -p build/bench
	$(BIN)/python benchmarks/layers.py --json build/bench/layers.json \
	    --plot build/bench/layers.png
	$(BIN)/python benchmarks/networks.py --json build/bench/networks.json --plots build/bench

# From the tree, with nothing installed: such a machine may have no network.
test-gpu:
	PYTHONPATH="$(CURDIR)" $(GPU_PYTHON) -m pytest tests/gpu -rs
	@if command -v compute-sanitizer > /dev/null; then \
	    PYTHONPATH="$(CURDIR)" compute-sanitizer --error-exitcode 9 $(GPU_PYTHON) -m pytest -q \
	        tests/gpu -k "sanitizer"; \
	else echo "compute-sanitizer is not there: memory accesses were not checked"; fi

bench-gpu:
	@mkdir -p build
	PYTHONPATH="$(CURDIR)" $(GPU_PYTHON) benchmarks/gpu.py --out build/bench-gpu.json

# Most of an hour: about 170 models, two at a time.
coverage: .venv/installed-timm
	$(BIN)/python -m benchmarks.coverage_table

SECONDS_OF_FUZZ ?= 600
SECONDS_OF_SOAK ?= 3600

fuzz: .venv/installed-dev
	$(BIN)/python -m tests.fuzzing --seconds $(SECONDS_OF_FUZZ)

soak: .venv/installed-dev
	$(BIN)/python -m tests.soak --seconds $(SECONDS_OF_SOAK)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed in place, so that only a change of pyproject.toml asks for another install.
.venv/installed: pyproject.toml | $(BIN)/activate
	@echo "installing deltaconvert and what it needs into .venv (PyTorch is large: minutes)"
	@$(PIP) install --editable .
	@touch $@

.venv/installed-%: pyproject.toml | $(BIN)/activate
	@echo "installing deltaconvert[$*] and what it needs into .venv (PyTorch is large: minutes)"
	@$(PIP) install --editable '.[$*]'
	@touch $@ .venv/installed

# `activate` is the last file that venv writes, so it stands for a whole environment.
$(BIN)/activate:
	@for python in $(PYTHON); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then \
	        echo "making .venv with $$($$python --version)"; \
	        exec $$python -m venv --clear .venv; \
	    fi; \
	done; \
	echo "deltaconvert needs Python 3.11 or newer, and none of these is:" $(PYTHON) >&2; \
	echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
	exit 1
