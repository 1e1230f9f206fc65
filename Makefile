# Every target sets up what it needs first (deploy/setup), so each of them works in a fresh clone.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench guard crash crash-kafka simulate vectors lock clean run-ready test-ready bench-ready
BIN := .venv/bin

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

demo: run-ready ## watch an answer survive a killed broker and a dropped reader
	@$(BIN)/streamfold demo tests/data/ai_sdk_generated.jsonl

test: check guard ## check, then run all tests
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The libraries run on desktops: what they take from the system has to be there on each of them. A cache of its own for each,
# or they would throw away one another's.
check: test-ready ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 producer consumer
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin producer consumer

vectors: test-ready ## fold every vector file found in DIR and compare
	@test -n "$(DIR)" || { echo 'usage: make vectors DIR=folder-of-vectors' >&2; exit 2; }
	@$(BIN)/python -m tests.vectors $(DIR)

bench: bench-ready ## measure everything beside its peers: about 25 minutes; QUICK=1: about 12; REPORT=folder
	@$(BIN)/streamfold bench all $(if $(QUICK),--quick) $(if $(REPORT),--report $(REPORT))

guard: test-ready ## fail when appends have become much slower, beside a bare ASGI application on this machine
	@$(BIN)/python -m benchmarks.guard

crash: test-ready ## kill the broker KILLS times (default 1000) and audit what is left
	$(BIN)/pytest tests/faults --kills $(or $(KILLS),1000)

crash-kafka: test-ready ## break three nodes on three nodes of Kafka in all ways, and audit what is left
	$(BIN)/pytest tests/faults/cluster --faults all

simulate: test-ready ## run SEEDS schedules (default 10000) of a cluster on a clock of its own, from seed FROM (default 0) on
	@$(BIN)/python -m tests.simulator --seeds $(or $(SEEDS),10000) --from $(or $(FROM),0) --jobs $(or $(JOBS),2)

# The newest versions that pyproject.toml allows, with their hashes; the second lock agrees with the first.
UV := .cache/uv/bin/uv
COMPILE = $(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --all-extras \
	--generate-hashes --no-header --no-annotate --no-emit-index-url
lock: run-ready ## renew both locks from pyproject.toml
	@test -x $(UV) || { $(BIN)/python -m venv .cache/uv && .cache/uv/bin/pip install --quiet uv==0.13.8; }
	$(COMPILE) --group build --output-file requirements.lock
	$(COMPILE) --group dev --constraints requirements.lock --output-file requirements-dev.lock

clean: ## remove everything that was made here
	rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	rm -rf tests/conformance/node_modules tests/e2e/clients/node_modules tests/e2e/chat/node_modules benchmarks/peers/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

run-ready:
	@deploy/setup

test-ready:
	@deploy/setup --test

bench-ready:
	@deploy/setup --bench
