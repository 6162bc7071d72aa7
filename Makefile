# Two commands: `make demo` shows saga-ray at work, `make test` checks it. Both set up .venv by themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-sweep demo-folder test test-all lint lock clean bench-setup

SAGA := .venv/bin/saga-ray
export RAY_USAGE_STATS_ENABLED ?= 0
# Tests must not depend on a hub or on how many cores a machine has.
TEST_ENV := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2}

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Create or repair .venv from requirements.lock
	@bash .ci/setup.sh

demo: setup ## The whole way once: four methods on the demo world, table, gallery and pages (15 minutes on 2 cores)
	@$(SAGA) study demo --runs runs/demo

demo-sweep: setup ## A search for loss weights with Ray Tune and Optuna on the demo world
	@$(SAGA) sweep sweeps/demo.yaml --runs runs/demo-sweep

demo-folder: setup ## Own pictures: flags as drawn by several icon projects, in folders by country
	@.venv/bin/python -m saga_ray.data.flags runs/flags
	@$(SAGA) study folder --data-root runs/flags --runs runs/demo-folder

test: setup ## Run the tests, without the slow ones (about 20 minutes on 2 cores)
	@$(TEST_ENV) .venv/bin/python -m pytest -m "not slow"

test-all: setup ## Run every test, the slow ones too
	@$(TEST_ENV) .venv/bin/python -m pytest

lint: setup ## Check style and formatting
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

lock: ## Choose versions anew and write requirements.lock
	@uv=$$(command -v uv || echo .venv/bin/uv); \
	$$uv pip compile pyproject.toml --extra dev --constraint .ci/constraints.txt --universal --python-version 3.11 \
		--no-emit-index-url --no-header --no-annotate --quiet --output-file requirements.lock

# TRL beside what .venv holds, torch and transformers among it: equal versions for both, and little to download.
bench-setup: setup ## TRL in an environment of its own, for `saga-ray bench scorer`
	@uv=$$(command -v uv || echo .venv/bin/uv); \
	$$uv venv --quiet --allow-existing --python .venv/bin/python .venv-bench && \
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
		> "$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/saga_ray_bench.pth" && \
	$$uv pip install --quiet --python .venv-bench/bin/python --no-deps trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 \
		dill==0.4.1 multiprocess==0.70.19 xxhash psutil

clean: ## Remove what runs and tools left behind, but not .venv
	@rm -rf runs build dist .pytest_cache .ruff_cache .hypothesis
