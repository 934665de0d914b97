# Every verb does its own set-up: a fresh clone needs Python 3.11, a JDK 17 (or newer) and make, nothing else.
# Second runs are quick: the environment is rebuilt when pyproject.toml or constraints.txt change,
# the jar when a Java source does.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The oldest supported Python first: it is the one that constraints.txt was made with.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && exit; done; echo python3)
BIN := .venv/bin
READY := .venv/ready
JAR := src/mizzle/spark/jars/mizzle-bridge.jar
JAVA := $(shell find java/src/main -type f)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Tests start hundreds of JVMs that live for seconds: one compiler less, and no threads for collecting garbage, save 12 %.
BRIEF := JDK_JAVA_OPTIONS="$${JDK_JAVA_OPTIONS:-} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

.PHONY: help setup fmt lint types layers unit test cluster chaos soak jar wheel bench check clean demo

help:     ## list the verbs
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10
setup: $(READY) $(JAR) ## virtual environment .venv with pinned dependencies, and the bridge jar
demo: setup ## train LeNet-5 on handwritten digits, 2 ranks on embedded Spark
	$(BIN)/mizzle demo
test: setup check ## what CI runs: lint, types, layers and every default test
	$(BRIEF) $(BIN)/python -m pytest
check: lint types layers ## what needs no cluster: lint, types, layers
lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
fmt: $(READY) ## rewrite the sources in ruff's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
types: $(READY) ## mypy --strict
	$(BIN)/mypy
layers: $(READY) ## import-linter: rooms import downwards only
	$(BIN)/lint-imports
unit: $(READY) ## the tests that start no JVM
	$(BIN)/python -m pytest tests/unit
cluster: setup ## the tests on Spark
	$(BRIEF) $(BIN)/python -m pytest tests/cluster
chaos: setup ## the tests that kill ranks and executors
	$(BIN)/python -m pytest tests/chaos -m "not gpu"
soak: setup ## minutes of random faults: MIZZLE_SOAK_S=300, one every MIZZLE_SOAK_EVERY_S=15; report in build/soak.json
	$(BIN)/python -m pytest tests/chaos/test_soak.py -m chaos -k minutes
jar: $(READY) ## compile the Java bridge into the package, also when no source changed
	$(BIN)/python hatch_build.py
wheel: $(READY) ## build dist/mizzle-*.whl with the jar inside
	$(BIN)/python -m build --wheel --no-isolation
bench: setup ## measure the all-reduce with 2 and 4 workers
	for n in 2 4; do $(BIN)/mizzle bench allreduce --workers "$$n" --json "build/allreduce-$$n.json"; done
clean:    ## remove what was built, but not .venv
	rm -rf build dist $(JAR) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# torch comes first and alone: asked for by another package, an unpinned one would bring gigabytes of CUDA.
# pyspark comes next: it is built from its sdist, and hatch_build.py compiles against its jars.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no Python: apt-get install python3.11 python3.11-venv" >&2; exit 1; }
	"$(PYTHON)" scripts/check_prerequisites.py
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(PIP) pip
	$(PIP) torch
	$(PIP) --group dev pyspark
	$(PIP) --no-build-isolation --editable .
	touch $@

$(JAR): $(READY) hatch_build.py $(JAVA)
	$(BIN)/python hatch_build.py
