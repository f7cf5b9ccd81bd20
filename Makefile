# One venv, pinned by constraints.txt. `make demo` and `make test` each set it up when it is not there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test fast check install lint types imports docs wheel reliability reliability-full clean

demo: $(VENV)/.installed
	$(BIN)/cuvee demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not training" tests/unit tests/property tests/golden

check: lint types imports docs test

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

# The site, in site/. A link that leads nowhere is an error.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# The wheel and the sdist, in dist/.
wheel: $(VENV)/.installed-dev
	$(BIN)/python -m hatchling build

# What cuvee promises, measured, with planted faults: docs/reliability.md.
RELIABILITY := PYTHONPATH=src:benchmarks:tests $(BIN)/python -m reliability

reliability: $(VENV)/.installed-dev
	$(RELIABILITY) $(if $(ONLY),--only $(ONLY))

reliability-full: $(VENV)/.installed-dev
	$(RELIABILITY) --full $(if $(ONLY),--only $(ONLY))

install: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cuvee needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
