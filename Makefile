# Two commands for a fresh machine with python3 (3.11 or newer), pip and make; each sets up what it needs:
#
#   make demo     GPT-2 tuned on real text, about 3 minutes on 2 cores
#   make test     lint, types and tests, about 15 minutes on 2 cores
#   make test-all the slow tests as well
#   make docs     the documents as a site, in build/site

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Tiny operations: a second thread gains little on an idle machine and waits for seconds on a busy one.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

# Two processes: more would want more memory than a small machine has.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo test test-all test-slow docs lint types setup clean

demo: setup
	$(BIN)/python examples/gpt2_cls.py --strategy full

test: lint types
	$(PYTEST)

test-all: lint types
	$(PYTEST) -m ""

# Only those; MINUTES=15 skips what has not begun by then.
test-slow: setup
	$(PYTEST) -m slow $(if $(MINUTES),--minutes $(MINUTES))

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

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
