# One word for each chore. `make demo` and `make test` need nothing but this: they install what is missing (as root).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find runner -name '*.py' -o -name '*.html') build_zipapp.py requirements/runtime.txt

.PHONY: check test unit test-pythons zipapp demo bench chaos image lock clean

## Run ruff, mypy and the test of import directions.
check: .make/venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

## Run everything: checks, all tests with real servers, other Pythons.
test: .make/servers check test-pythons
	RUNNER_TESTS_REQUIRE_SERVERS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests

## Run what needs no server and no network.
unit: .make/venv
	$(BIN)/pytest -q -m "not servers" tests

## Run the unit tests on every other Python that is installed.
test-pythons: .make/venv
	tools/test_pythons.sh

## Build studio-runner.pyz.
zipapp: studio-runner.pyz

studio-runner.pyz: $(SOURCES) | .make/venv
	$(BIN)/python build_zipapp.py --output $@

## Run a small experiment from a queue that is a directory, and show what comes back.
demo: studio-runner.pyz
	examples/demo/demo.sh

## Measure; needs the same servers as the tests.
bench: .make/servers .make/peers studio-runner.pyz
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.queues
	$(BIN)/python -m benchmarks.storage .venv-peers

## Break everything for ten minutes, and see that nothing is lost; needs the same servers.
chaos: .make/servers studio-runner.pyz
	$(BIN)/python -m benchmarks.chaos

## Build the container image.
image: studio-runner.pyz
	docker build -t studio-runner .

## Pin the newest versions of all dependencies, with hashes.
lock: .make/venv
	$(BIN)/pip install -q uv
	for name in runtime dev; do
	  $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.10 --generate-hashes \
	    --no-header --no-emit-index-url --no-annotate requirements/$$name.in -o requirements/$$name.txt
	done

clean:
	rm -rf $(VENV) .venv-* .make build studio-runner.pyz .mypy_cache .ruff_cache .pytest_cache

.make/venv: requirements/dev.txt | .make/python
	mkdir -p .make
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	touch $@

# Those that the benchmarks compare with.
.make/peers: requirements/bench.in | .make/venv
	$(BIN)/uv venv -q --clear .venv-peers
	$(BIN)/uv pip install -q --python .venv-peers/bin/python -r $<
	touch $@

# Python and its venv module, on a machine that may have neither.
.make/python:
	mkdir -p .make
	tools/install.sh python
	touch $@

# The servers that the tests talk to.
.make/servers: | .make/python
	mkdir -p .make
	tools/install.sh servers
	tools/install_apptainer.sh || echo "Apptainer cannot be installed here: tests of containers are skipped"
	touch $@
