# `make` alone lists the targets. What a target needs is installed into .venv, once, and again when pyproject.toml
# changes: `make demo` needs refseg alone, all other targets everything.
# Another interpreter: make demo PYTHON=python3.12    Some of the tests: make test ARGS="-k words"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
BASE := .venv/.base

.DEFAULT_GOAL := help
.PHONY: help demo test oldest lint types format docs venv clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(BASE) ## segment a real photograph with the shipped model and write the overlays to demo/
	$(BIN)/refseg demo $(ARGS)

test: $(INSTALLED) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

oldest: ## run the tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv build/oldest
	$(PYTHON) benchmarks/oldest.py > build/oldest/constraints.txt
	build/oldest/bin/python -m pip install --quiet --constraint build/oldest/constraints.txt --editable ".[dev]"
	build/oldest/bin/python -m pytest $(ARGS)

lint: $(INSTALLED) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## check the types
	$(BIN)/mypy

format: $(INSTALLED) ## bring the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## build the documentation into build/site; a dead link stops it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

venv: $(INSTALLED) ## make .venv and install refseg with all that its tests need

clean: ## remove what these targets made, .venv included
	rm -rf .venv build demo src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

$(BASE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "refseg needs Python 3.11 or newer and '$(PYTHON)' is not; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(INSTALLED): $(BASE)
	@echo "installing PyTorch and the tools into .venv: a few minutes, once"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
