# Two commands for a fresh machine with python3 (3.11 or newer), pip and make; each sets up what it needs:
#
#   make demo     GPT-2 tuned on real text, about 3 minutes on 2 cores
#   make test     lint, types and tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Tiny operations: a second thread gains little on an idle machine and waits for seconds on a busy one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint types setup clean

demo: setup
	$(BIN)/python examples/gpt2_cls.py

test: lint types
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

setup: $(VENV)/installed

# Redone when the dependencies change; a second call of any target starts at once.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info llamatune_output runs
