# Everything runs inside .venv, which `make install` creates; no other set-up is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
JOBS ?= 2

.PHONY: install demo test lint format bench-install bench clean

install: $(STAMP)

# torch by exact version first: an open range would fetch the builds with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt examples/panda-fusion-example/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable examples/panda-fusion-example
	touch $(STAMP)

demo: install
	$(BIN)/panda-fusion demo --out runs/demo

test: lint
	$(BIN)/python -m pytest --numprocesses $(JOBS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The benchmarks' pretrained backbone and peers.
bench-install: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'

bench: bench-install
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
