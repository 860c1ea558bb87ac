# Two commands matter: `make demo` and `make test`. Both set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-all chaos lint types docs bench language scale release-check test-min clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## the virtual environment, with the CPU build of torch that constraints.txt pins

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## train a small net, prune it by seven methods, show the table, the picture and the page
	rm -rf runs/demo
	$(BIN)/woodbury demo --out runs/demo

test: $(READY)  ## the fast tests, under 5 minutes on 2 cores
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: $(READY)  ## the slow ones too, such as ResNet-20, ViT, BERT and GPT-2
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "slow or not slow"

chaos: $(READY)  ## ten minutes of kills, full disks, damaged files and senseless calls; how each ended
	PYTHONPATH=tests $(BIN)/python -m chaos

lint: $(READY)  ## style, and the order of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)  ## static types
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs  ## the site, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html docs build/docs

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

release-check: $(READY)  ## wheel and sdist, built, and installed in an environment of its own
	$(BIN)/python -m pytest -q -m slow tests/test_release.py

test-min: pyproject.toml constraints-min.txt  ## the fast tests, with the oldest releases that are allowed
	$(PYTHON) -m venv $(VENV)-min
	$(VENV)-min/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -c constraints-min.txt -e '.[scipy]' pytest sybil hypothesis
	$(VENV)-min/bin/python -m pytest -q tests/linalg tests/fisher tests/io tests/reporting tests/cli/test_help.py

bench: $(READY)  ## speed against the papers' recursions and the machine; accuracy where ../shared/bench is present
	$(BIN)/python benchmarks/algebra.py
	$(BIN)/python benchmarks/optimizer.py
	$(BIN)/python benchmarks/one_shot.py

language: $(READY)  ## train two language models, 1 and 10 million weights, and prune them by six methods
	$(BIN)/python benchmarks/language.py

scale: $(READY)  ## ordinary networks within a budget, one process each: seconds and peak memory
	$(BIN)/python benchmarks/scale.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-min runs build *.egg-info .pytest_cache .ruff_cache
