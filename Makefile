# Two commands matter: `make demo` shows the main job, `make test` proves it. Each sets up all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

AIRFLOW := $(VENV)-airflow
TRITON := $(VENV)-triton

.PHONY: help demo test lint check format docs sample-data rehearse-image clean

help:
	@echo "make demo    score the sample log and show the result"
	@echo "make test    run the tests"
	@echo "make check   ruff, mypy and the tests"
	@echo "make format  let ruff format and mend"
	@echo "make docs    fill the pages from results, help texts and docstrings"
	@echo "make rehearse-image  the CPU image's build steps without Docker"
	@echo "make clean   remove what make made"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/genrec-batch demo

# Airflow has an environment of its own: it and the tests of its DAG share nothing with ours but the command line.
$(AIRFLOW)/.ready: jobs/airflow/constraints.txt
	$(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< apache-airflow
	@touch $@

# Triton's server and its Python backend come as a package, of which only the binaries are used: no dependencies.
$(TRITON)/.ready: jobs/triton/constraints.txt pyproject.toml
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< --editable '.[cpu]'
	$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< --no-deps nvidia-pytriton
	@touch $@

# Programs that tests drive: a browser for the report's page, a terminal, a Redis server. Installed by root; a user without that right
# has the tests skipped, with the reason.
APT := apt-get --quiet=2 --yes --no-install-recommends
$(VENV)/.debian: $(BIN)/python
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    { command -v chromium && command -v tmux && command -v redis-server; } >/dev/null || \
	    { $(APT) update && $(APT) install chromium tmux redis-server >/dev/null; } || \
	    echo "chromium, tmux and redis-server cannot be installed: tests that drive them are skipped, or fail where CI=true" >&2; \
	fi
	@touch $@

test: $(VENV)/.dev $(VENV)/.debian $(AIRFLOW)/.ready $(TRITON)/.ready
	GENREC_TEST_AIRFLOW=$(abspath $(AIRFLOW)) GENREC_TEST_TRITON=$(abspath $(TRITON)) $(BIN)/python -m pytest $(PYTEST_ARGS)

rehearse-image:
	jobs/docker/rehearse.sh cpu

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/python docs/render.py

sample-data: $(VENV)/.demo
	$(BIN)/python sample_data/make.py

clean:
	rm -rf $(VENV) $(AIRFLOW) $(TRITON) demo_output build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
