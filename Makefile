# The one door, for people and for CI. `make` alone says what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

DEV := .venv-dev/bin
# What tests may leave behind between runs: the engine's log where they had to start one.
TEST_HOME := $(CURDIR)/.tools/home
PYTEST ?=
COVERAGE ?=
CODE := daemon images starter tests bench
MYPY := daemon/loopd images/agent/src images/toolrunner/src daemon/tests images/agent/tests images/toolrunner/tests images/egress/src images/egress/tests images/browser/src images/browser/tests images/trainer/src images/trainer/tests starter tests bench

.PHONY: help
help: ## Say what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: up
up: ## Bring the appliance up on this host; what is there already is left alone.
	@tools/as-root tools/bootstrap loopd
	@tools/as-root .venv/bin/loopctl up

.PHONY: down
down: ## Stop what `make up` started; models, state and images stay.
	@tools/as-root tools/bootstrap loopd
	@tools/as-root .venv/bin/loopctl down

.PHONY: purge
purge: ## Remove everything `make up` put on this host; asks first (YES=1: does not).
	@tools/as-root tools/bootstrap loopd
	@tools/as-root .venv/bin/loopctl purge $(if $(YES),--yes)

.PHONY: images
images: ## Build the images of this checkout that are not on this host.
	@tools/as-root tools/bootstrap loopd
	@LOOPBOX_HOME='$(TEST_HOME)' tools/as-root .venv/bin/loopctl images build

.PHONY: test
test: lint ## Run every test but the slow ones, on real containers (PYTEST='-k name' for some).
	@tools/as-root tools/test-packages
	@LOOPBOX_HOME='$(TEST_HOME)' tools/as-root $(DEV)/loopctl images build </dev/null
	@tools/as-root env COVERAGE_FILE='$(CURDIR)/.coverage' $(DEV)/python -m pytest -m 'not slow' -p no:cacheprovider \
		$(COVERAGE) $(PYTEST) </dev/null

.PHONY: coverage
coverage: COVERAGE = --cov --cov-report=term
coverage: test ## Run the same tests and say which lines none of them ran; takes twice the processor time.

.PHONY: test-training
test-training: dev ## Build the trainer (6 GB), train on this host, and see that what was learnt takes over: minutes.
	@tools/as-root tools/test-packages
	@LOOPBOX_HOME='$(TEST_HOME)' tools/as-root $(DEV)/loopctl images build </dev/null
	@LOOPBOX_HOME='$(TEST_HOME)' tools/as-root $(DEV)/loopctl images build --only trainer </dev/null
	@tools/as-root $(DEV)/python -m pytest -p no:cacheprovider tests/integration/test_trainer_image.py \
		tests/acceptance/test_learning.py $(PYTEST) </dev/null

.PHONY: lint
lint: dev ## Check style and types.
	@$(DEV)/ruff check $(wildcard $(CODE))
	@$(DEV)/ruff format --check $(wildcard $(CODE))
	@$(DEV)/mypy $(wildcard $(MYPY))

.PHONY: format
format: dev ## Rewrite the code in its one style.
	@$(DEV)/ruff check --fix $(wildcard $(CODE))
	@$(DEV)/ruff format $(wildcard $(CODE))

.PHONY: bench
bench: dev ## Measure: BENCH=routing, BENCH=footprint; the last line is one JSON object.
	@test -f 'bench/$(BENCH).py' || { echo "which? BENCH= one of: $(basename $(notdir $(wildcard bench/*.py)))" >&2; exit 2; }
	@tools/as-root $(DEV)/python bench/$(BENCH).py </dev/null

.PHONY: starter
starter: dev ## Train the starter adapter and measure it in the engine; the last line is one JSON object.
	@LOOPBOX_HOME='$(TEST_HOME)' tools/as-root $(DEV)/loopctl images build --only trainer </dev/null >&2
	@tools/as-root $(DEV)/python starter/make.py </dev/null

FUZZ_RUNS ?= 50000
FUZZ_SALT ?= 1
.PHONY: fuzz
fuzz: dev ## Read FUZZ_RUNS broken model files, within bounds; the last line is one JSON object.
	@LOOPBOX_FUZZ_EXAMPLES=500 $(DEV)/python -m pytest daemon/tests/test_gguf_mutants.py -q -p no:cacheprovider >&2
	@$(DEV)/python tests/fuzz/runner.py --runs $(FUZZ_RUNS) --salt $(FUZZ_SALT)

.PHONY: lock
lock: ## Write the hash-pinned requirement files anew from pyproject.toml.
	@tools/lock

.PHONY: dev
dev:
	@tools/bootstrap dev
