# lambox: `make demo` shows it, `make test` checks it. Both set up what they need (tools/setup).
SHELL := /bin/bash
BIN := .venv/bin

.PHONY: help setup demo test lint unit lock clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1|\2/' | column -t -s '|'

setup: ## install what is missing; leaves .venv/bin/lambox
	@tools/setup

demo: setup ## the main job in under a minute: cold, warm, scale-out, timeout, eviction, OOM, bash
	@$(BIN)/python -m lambox.demo

test: lint ## every check and test (unit, contract, system)
	$(BIN)/python -m pytest tests/unit tests/contract tests/system

unit: setup ## the tests that need no sandbox
	$(BIN)/python -m pytest tests/unit tests/contract

lint: setup ## ruff, flake8-async, mypy, import-linter
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/flake8-async --enable ASYNC101,ASYNC102,ASYNC103 lambox runtimeapi sandbox
	$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-timing > .venv/lint-imports.txt || { cat .venv/lint-imports.txt; exit 1; }

# uv (from PyPI) is needed for this alone, and from nowhere else.
UV := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
lock: ## pin the newest versions pyproject.toml allows (needs uv)
	echo 'setuptools>=77' | $(UV) --upgrade - -o requirements-build.lock
	$(UV) --upgrade pyproject.toml -o requirements.lock
	$(UV) --upgrade --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## remove everything that setup and tests made
	rm -rf .venv *.egg-info build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache rootfs/inside/init
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
