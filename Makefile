# Two commands need nothing but Python 3.10+:  make demo   make test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

.PHONY: demo test test-all lint format clean

demo: $(VENV)/installed
	rm -f demo.gif
	$(BIN)/stillmotion animate "a rocket, 3d render style" -o demo.gif --seed 7 --scale 2

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n auto -m "not slow"

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n auto

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(if $(UV),uv venv --seed --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --quiet) -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --quiet) -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist
