# Every target sets up what it needs; `make install` is quick when nothing has changed.
#   PYTHON=python3.12 make install    choose the interpreter (3.11 to 3.13) for a new .venv
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
KERNELS := $(shell find vecdb/kernels vecdb/ann -name '*.py' 2>/dev/null)
# Nodes under chaos and in containers want the machine for themselves: .ci/run has steps for them.
CHAOS := tests/chaos/test_cluster.py tests/chaos/test_killed_snapshots.py tests/chaos/test_killed_bulk.py
# Half as many again as cores, for tests of nodes wait a third of their time; files in the order of tests/conftest.py.
CORES := $(shell getconf _NPROCESSORS_ONLN)
WORKERS ?= $(shell echo $$(( $(CORES) > 5 ? 8 : $(CORES) + ($(CORES) + 1) / 2 )))
PYTEST_ARGS ?= -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	$(addprefix --ignore ,$(CHAOS)) --ignore tests/cluster
IMAGE ?= vecdb
DATA ?= glove-100 fashion-mnist
SOAK ?= 300

.PHONY: help install test sim scale chaos test-chaos quickstart lint types contracts proto proto-baseline data bench soak lock image cluster cluster-down manifests charts test-cluster clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed $(VENV)/.warm  ## .venv with the locked dependencies, vecdb editable, kernels compiled

$(VENV)/.installed: pyproject.toml requirements.lock .ci/install
	@.ci/install $(VENV) dev
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	@.ci/install $(VENV) dev,bench
	@touch $@

$(VENV)/.deploy: $(VENV)/.installed
	@.ci/install $(VENV) dev,deploy
	@touch $@

# Compiled kernels are cached, by what they are made of; this spends the time once, so that no first command does.
$(VENV)/.warm: $(VENV)/.installed $(KERNELS)
	@echo "install: compiling kernels, once (about a minute on two cores)"
	@$(BIN)/python -m vecdb.ann.warmup
	@touch $@

test: install  ## the whole test suite
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

SEEDS ?= 300
FIRST ?= 1
sim: $(VENV)/.installed  ## simulated clusters under faults: make sim SEEDS=300 FIRST=1
	@$(BIN)/python -m vecdb.testing.sim --seeds $(SEEDS) --first $(FIRST)

scale: $(VENV)/.installed  ## a cluster of 100 nodes and 10,000 shards on paper: placement, map, moves, heartbeats, failover
	@$(BIN)/python -m vecdb.testing.scale

ROUNDS ?= 200
SEED ?=
chaos: install  ## real nodes under real faults: make chaos ROUNDS=200 SEED=1 ATTACKS=kill_leader,power_of_all
	@$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(ATTACKS),--attacks $(ATTACKS))

test-chaos: install  ## the short form of it: a few rounds of each kind, and nodes killed while snapshots and bulk loads run
	@$(BIN)/python -m pytest -q -s $(CHAOS)

image:  ## the container image: make image IMAGE=vecdb BASE_IMAGE=python:3.11-slim-bookworm
	@.ci/image $(IMAGE)

cluster:  ## a cluster in containers with sample data in it, and its status
	@.ci/cluster up $(IMAGE)

cluster-down:  ## stop that cluster and delete its data
	@.ci/cluster down $(IMAGE)

manifests: $(VENV)/.deploy  ## deploy/kubernetes from the Helm chart
	@$(BIN)/python .ci/manifests

charts: $(VENV)/.deploy  ## the Helm chart by Helm's library and Kubernetes' schemas, and the files of Compose
	@$(BIN)/python -m pytest -q tests/unit/deploy

test-cluster: install  ## clusters of containers, hurt in every way there is
	@.ci/image vecdb:tests
	@VECDB_TEST_IMAGE=vecdb:tests $(BIN)/python -m pytest -q $(CLUSTER_ARGS) tests/cluster

quickstart: install  ## a real data set, queries with and without filters, recall and latency
	@$(BIN)/vecdb quickstart

lint: $(VENV)/.installed  ## ruff
	@$(BIN)/ruff check .

types: $(VENV)/.installed  ## mypy --strict
	@$(BIN)/mypy

contracts: $(VENV)/.installed  ## the layers of the house
	@$(BIN)/lint-imports --no-logo

proto: $(VENV)/.installed  ## generate vecdb/v1 and vecdb/internal from proto/
	@.ci/proto $(VENV)

proto-baseline: $(VENV)/.installed  ## accept proto/ as released: later changes are held against it
	@$(BIN)/python .ci/proto-breaking --accept

data: $(VENV)/.installed  ## benchmark sets: make data DATA="glove-100 fashion-mnist wordnet"
	@$(BIN)/python -m bench.data $(DATA)

bench: $(VENV)/.bench $(VENV)/.warm  ## recall and queries per second against hnswlib, faiss and usearch
	@$(BIN)/python -m bench.data fashion-mnist
	@$(BIN)/python -m bench.ann --data fashion-mnist --out build/ann.json --plot build/ann.png

soak: $(VENV)/.bench $(VENV)/.warm  ## a node under floods and idle connections: make soak SOAK=600 (seconds)
	@$(BIN)/python -m bench.flood --soak $(SOAK) --idle 4000 --out build/soak.json

lock: $(VENV)/.installed  ## write requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
		--no-header --no-annotate pyproject.toml --output-file requirements.lock

clean:  ## everything that can be made again
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find vecdb tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
