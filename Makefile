# lambox: `make demo` shows it, `make test` checks it. Both set up what they need (tools/setup).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PACKAGES := lambox runtimeapi sandbox rootfs

.PHONY: help setup dev demo test escape unit faults as-user hosts lint bench bench-full soak fuzz lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing; leaves .venv/bin/lambox
	@tools/setup

dev: ## the same, and what tests and linters need
	@tools/setup --dev

demo: setup ## the main job in under a minute: cold, warm, scale-out, timeout, eviction, OOM, bash
	@$(BIN)/python -m lambox.demo

test: dev ## every check and test: linters, unit, contract; beside them, on the other core, system
	@said=$$(mktemp)
	trap 'kill $$(jobs -p) 2>/dev/null || true; rm -f "$$said"' EXIT
	# Half of its time it waits for deadlines and starts; what measures latencies comes after the others are done.
	$(BIN)/python -m pytest tests/system > "$$said" 2>&1 & system=$$!
	passed=true
	$(MAKE) lint || passed=false
	$(BIN)/python -m pytest tests/unit tests/contract || passed=false
	tail --pid=$$system --lines=+1 --follow "$$said"
	wait $$system || passed=false
	$$passed

unit: dev ## the tests that need no sandbox
	@$(BIN)/python -m pytest tests/unit tests/contract

faults: dev ## faults of the host that take seconds each (the quick ones are in `make test`)
	@$(BIN)/python -m pytest tests/faults $(ARGS)
	$(BIN)/python -m pytest tests/system -m slow

as-user: dev ## as root: the system tests once more as an ordinary user, with a range of uids and with one
	@for one in "" --one; do
		tools/as-user $$one -- $(BIN)/python -m sandbox.confine.userns $(BIN)/python -m pytest \
			tests/system -p no:cacheprovider $(ARGS)
	done

hosts: setup ## as root: docs/hosts.md anew, from every kind of host to be had here (ARGS="--guest DIR" for guests)
	@PYTHON=$(BIN)/python tools/host-matrix $(ARGS)

lint: dev ## ruff, mypy, flake8-async, import-linter
	@$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict $(PACKAGES) bench
	find $(PACKAGES) -name '*.py' ! -path lambox/cli.py -exec \
		$(BIN)/flake8-async --enable=ASYNC101,ASYNC102,ASYNC103 {} + # cli.py: not async
	$(BIN)/lint-imports --no-logo

escape: dev ## the escape suite as a table: attempt x kind of sandbox (ARGS=--unfiltered: without seccomp too)
	@$(BIN)/python -m tests.system.escape $(ARGS)

bench: setup ## how fast it is, beside AWS's emulator; under 3 minutes (ARGS="--help" tells more)
	@$(BIN)/python -m bench $(ARGS)

bench-full: setup ## the same with more of everything and 500 environments; some 15 minutes
	@$(BIN)/python -m bench --full $(ARGS)

soak: setup ## random load, kills, reloads, hogs; every request accounted for. 10 min (ARGS="--minutes 1 --seed 7")
	@$(BIN)/python -m bench.soak $(ARGS)

FUZZ := 20
fuzz: dev ## the tests of hypothesis's with FUZZ=20 times as many examples, at random; some 10 minutes
	@LAMBOX_FUZZ=$(FUZZ) $(BIN)/python -m pytest -o faulthandler_timeout=0 $(ARGS) \
		tests/*/test_*_stateful.py tests/*/test_fuzz_*.py

# uv is needed for this alone.
lock: setup ## pin the newest versions that pyproject.toml allows
	@[ -x .venv/uv/bin/uv ] || $(BIN)/python -m venv .venv/uv
	[ -x .venv/uv/bin/uv ] || .venv/uv/bin/python -m pip -qq --disable-pip-version-check install uv
	compile() {
		echo "# $$1 Made by \`make lock\`."
		.venv/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
			--fork-strategy fewest --generate-hashes --no-header --no-annotate \
			--no-emit-index-url "$${@:2}"
	}
	trap 'rm -f requirements*.lock.new' EXIT
	compile "What builds lambox and python-prctl." - <<< 'setuptools>=77' > requirements-build.lock.new
	compile "What lambox runs on." pyproject.toml > requirements.lock.new
	compile "The same, and what tests and linters need." --group dev \
		--constraint requirements.lock.new pyproject.toml > requirements-dev.lock.new
	for new in requirements*.lock.new; do mv "$$new" "$${new%.new}"; done

clean: ## remove everything that setup and the tests made in this folder
	@rm -rf .venv *.egg-info build .*_cache .cache bench/results .hypothesis rootfs/inside/init
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
