# Two commands need nothing but Python 3.10 to 3.13:  make demo   make test
# Another Python:  make demo PYTHON=python3.12      another place:  make demo VENV=/tmp/venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := packages/stillmotion-emoji
SOURCES := pyproject.toml $(MODEL)/pyproject.toml constraints.txt

.PHONY: demo test test-all lint format clean

demo: $(VENV)/installed
	rm -f demo.gif
	@echo "stillmotion: drawing 16 frames of a rocket with the bundled model on this machine, under a minute" >&2
	$(BIN)/stillmotion animate "a rocket, 3d render style" -o demo.gif --seed 7 --scale 2
	@echo "stillmotion: it is in demo.gif; another: $(BIN)/stillmotion animate \"a butterfly, flat style\"" >&2

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n auto -m "not slow"

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n auto

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: $(SOURCES)
	@.ci/install $(PYTHON) $(VENV) installed -e . -e $(MODEL)

$(VENV)/installed-dev: $(SOURCES)
	@.ci/install $(PYTHON) $(VENV) installed-dev -e ".[dev]" -e $(MODEL)
	@touch $(VENV)/installed

clean:
	rm -rf $(VENV) build dist
