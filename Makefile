# One word for each chore. `make demo` and `make test` need nothing but this: they install what is missing (as root).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
PYTHONS := 3.10 3.13
BIN := $(VENV)/bin
SOURCES := $(shell find runner tools -name '*.py' -o -name '*.html') build_zipapp.py requirements/runtime.txt

.PHONY: check test before-tests unit test-pythons $(PYTHONS:%=test-python-%) docs zipapp release sign audit demo bench chaos fuzz \
	image check-image check-examples check-groups check-aws lock clean

## Run ruff, mypy and the test of import directions.
check: .make/venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

## Run everything: checks, also of the examples, all tests with real servers, other Pythons.
test: before-tests
	RUNNER_TESTS_REQUIRE_SERVERS=1 RUNNER_TESTS_PROGRAM=studio-runner.pyz \
	  $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25 --durations-min=5 tests

# Side by side: each of these leaves a part of the machine unused.
before-tests:
	$(MAKE) -j 3 --output-sync=target .make/servers check check-examples test-pythons studio-runner.pyz

## Run what needs no server and no network.
unit: .make/venv
	$(BIN)/pytest -q -m "not servers" tests

## Run the unit tests on the oldest and the newest CPython that is supported, where pyenv has them.
test-pythons: $(PYTHONS:%=test-python-%)

$(PYTHONS:%=test-python-%): test-python-%: .make/venv
	tools/test_python.sh $*

## Write docs/options.md anew, from the settings.
docs: .make/venv
	$(BIN)/python -m tools.write_options

## Build studio-runner.pyz.
zipapp: studio-runner.pyz

studio-runner.pyz: $(SOURCES) | .make/venv
	$(BIN)/python build_zipapp.py --output $@

## Put what is published into dist/: the file, named by its version, what is in it (SBOM), and their checksums.
release: .make/venv
	rm -rf dist
	mkdir dist
	name=studio-runner-$$($(BIN)/python -c 'import runner; print(runner.__version__)')-linux
	$(BIN)/python build_zipapp.py --output dist/$$name.pyz --sbom dist/$$name.cdx.json
	cd dist
	sha256sum $$name.pyz $$name.cdx.json >SHA256SUMS

## Sign the checksums with cosign: with the key that COSIGN_KEY names, or else as who you are to Sigstore.
sign: dist/SHA256SUMS
	command -v cosign >/dev/null || { echo "sign needs cosign: https://docs.sigstore.dev/cosign" >&2; exit 1; }
	cosign sign-blob --yes $${COSIGN_KEY:+--key "$$COSIGN_KEY"} --bundle $<.sigstore.json $<

dist/SHA256SUMS:
	$(MAKE) release

## Ask whether anything that the file holds is known to be vulnerable.
audit: .make/venv
	$(BIN)/uvx pip-audit --strict --disable-pip --require-hashes -r requirements/runtime.txt

## Run a small experiment from a queue that is a directory, and show what comes back.
demo: studio-runner.pyz
	examples/demo/demo.sh

## Measure, and write docs/benchmarks.md; needs the same servers as the tests.
bench: .make/servers .make/peers studio-runner.pyz
	$(BIN)/python -m benchmarks.report .venv-peers

## Break everything for ten minutes, and see that nothing is lost; needs the same servers.
chaos: .make/servers studio-runner.pyz
	$(BIN)/python -m benchmarks.chaos

## Give millions of damaged inputs to all that reads what strangers write: a quarter of an hour each.
fuzz: .make/venv
	nice -n 10 $(BIN)/python -m tests.fuzz

## Build the container image.
image: studio-runner.pyz
	docker build -t studio-runner .

## Build the image, with podman where there is no docker, and run an experiment in it as in production.
check-image: studio-runner.pyz
	tools/check_image.sh

## Check the Dockerfile and the examples with hadolint, docker compose, kustomize, Kubernetes' schemas and systemd.
check-examples: .make/venv
	tools/check_examples.sh

## Run the tests of control groups in a kernel of its own, whatever this machine has.
check-groups: studio-runner.pyz
	tools/check_groups.sh

## Go through examples/aws against an emulator; needs the aws CLI.
check-aws: studio-runner.pyz
	tools/check_aws.sh

## Pin the newest versions of all dependencies, with hashes.
lock: .make/venv
	$(BIN)/pip install -q uv
	for name in runtime dev; do
	  $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.10 --generate-hashes \
	    --no-header --no-emit-index-url --no-annotate requirements/$$name.in -o requirements/$$name.txt
	done
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-emit-index-url --no-annotate requirements/examples.in -o requirements/examples.txt

clean:
	rm -rf $(VENV) .venv-* .make build dist studio-runner.pyz .mypy_cache .ruff_cache .pytest_cache .hypothesis

.make/venv: requirements/dev.txt | .make/python
	mkdir -p .make
	# Another checkout's environment is not ours to clear.
	[ ! -L $(VENV) ] || rm $(VENV)
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
