# Everything from a fresh clone: each target makes its own set-up in .venv, and does so again only when
# pyproject.toml, constraints.txt or peers.txt change. Needed beforehand: Python >= 3.11 with venv, and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt

# Nothing here reports home, asks for updates or waits for a window.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help demo test test-paths lint docs build constraints clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; \
		do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(VENV)/ready  ## train on real digits while clients lie; print and draw what survives (DEMO="--f 2 ...")
	$(BIN)/byzflow demo $(DEMO)

# Two files at a time: much of the suite waits for processes and clocks. A file's tests stay together, in their order.
# One thread for each process: threads of torch that wait for each other on few cores made small models 20 times slower.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/ready-dev  ## run the whole test suite (TEST="-m 'not slow' tests/core ...")
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TEST)

# What every path must agree on: the definitions, their properties, and the passes themselves.
NUMBERS := tests/operators/test_golden.py tests/operators/test_golden_search.py tests/operators/test_properties.py tests/core

test-paths: $(VENV)/ready-dev  ## run the numbers' tests on each path alone: compiled kernels, torch, a GPU if there is one
	BYZFLOW_KERNELS=c $(BIN)/python -m pytest -q $(NUMBERS)
	BYZFLOW_KERNELS=torch $(BIN)/python -m pytest -q $(NUMBERS)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		BYZFLOW_TEST_DEVICE=cuda $(BIN)/python -m pytest -q $(NUMBERS); else echo "no GPU here: its path is not tested"; fi

lint: $(VENV)/ready-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/ready-dev  ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

build: $(VENV)/ready-dev  ## build the wheel and the source archive into dist/
	$(BIN)/hatchling build

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) build dist docs/_build demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# What torch built for CUDA brings in versions of its own is not pinned.
constraints:  ## write constraints.txt anew from the newest versions that work together
	$(PYTHON) -m venv --clear build/pins
	build/pins/bin/pip install --upgrade pip
	build/pins/bin/pip install torch==2.13.0
	build/pins/bin/pip install -e ".[flower,plots]" --group dev
	{ echo "# Exact versions of everything that 'make demo' and 'make test' install; 'make constraints' writes this."; \
		build/pins/bin/pip freeze --all --exclude byzflow | sed -e 's/+[^ ]*$$//' -e '/^cuda-/d' -e '/^nvidia-/d'; } > constraints.txt
	rm -rf build/pins

# torch goes first and alone: whatever wants it afterwards is content, and no other build of it is looked for.
$(VENV)/ready: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "byzflow needs Python >= 3.11: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade -c constraints.txt pip
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	$(PIP) install --quiet -c constraints.txt --build-constraint constraints.txt -e ".[flower,plots]"
	@touch $@

# The libraries that the tests compare with get a folder of their own, without what they depend on.
$(VENV)/ready-dev: $(VENV)/ready tests/operators/peers.txt
	$(PIP) install --quiet -c constraints.txt --group dev
	$(PIP) install --quiet --upgrade --no-deps --target $(VENV)/peers -r tests/operators/peers.txt
	@touch $@
