# make demo   sets up, then boxes, crops, classifies and screens real sample films
# make test   sets up, then runs all tests
# make lint   ruff and mypy
# make docs   docs/files.md from the files themselves
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo

.PHONY: demo test lint docs install clean

install: $(VENV)/.installed

# uv installs in parallel and from a cache; pip is enough to fetch uv itself
define fill
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "lungfirst needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --editable '.[$(1)]'
endef

$(VENV)/.installed: pyproject.toml
	$(call fill,dev)
	touch $@ $(VENV)/.runs

# what a run needs: no torch
$(VENV)/.runs: pyproject.toml
	$(call fill,samples)
	touch $@

demo: $(VENV)/.runs
	$(BIN)/python tools/demo.py --out $(RUN)

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs:
	$(PYTHON) .ci/list_files > docs/files.tmp && mv docs/files.tmp docs/files.md

clean:
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache
