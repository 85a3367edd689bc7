# Wharfinger's commands. `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin
MODEL ?=
IMAGE ?=
DATA ?= data
PORT ?= 8000
SCENARIO ?=
ROUNDS ?= 5
JSON ?=
PUBLISH ?=
SIDE_BY_SIDE ?= --numprocesses 4 --dist loadfile
SECONDS ?= 600
SEED ?=
REQUESTS ?= 1000000
IMAGES ?= broker worker-cpu worker-gpu

.DEFAULT_GOAL := help
.PHONY: help demo test up bench check lint types boundaries generated setup schema manifests test-ultralytics faults soak images test-images

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## Run a real picture through everything: MODEL=file.onnx and IMAGE=picture are yours to set
	@$(BIN)/python -m standalone.demo $(if $(MODEL),--model "$(MODEL)") $(if $(IMAGE),--image "$(IMAGE)")

test: setup ## Run all tests, on the embedded Postgres and on Debian's, with Debian's RabbitMQ
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check
	@.ci/with-rabbitmq $(BIN)/python -m pytest tests $(SIDE_BY_SIDE)
	@.ci/on-oldest-postgres $(BIN)/python -m pytest tests/contract tests/integration -m postgres -k "not amqp" $(SIDE_BY_SIDE)

up: setup ## Run the service on this machine until Ctrl-C: DATA=folder PORT=number
	@$(BIN)/wharf up --data "$(DATA)" --port $(PORT) $(if $(MODEL),--model "$(MODEL)")

bench: setup ## Measure what bench/README.md tells: SCENARIO="a d release" ROUNDS=number JSON=file PUBLISH=yes
	@.ci/with-rabbitmq $(BIN)/python -m bench $(SCENARIO) --rounds $(ROUNDS) $(if $(JSON),--json "$(JSON)") $(if $(PUBLISH),--publish)

faults: setup ## Hurt a whole fleet at random, and hold it to what it promised: SECONDS=600 SEED=number
	@.ci/with-rabbitmq $(BIN)/python -m tests.faults.chaos --seconds $(SECONDS) $(if $(SEED),--seed "$(SEED)")

soak: setup ## Ask a healthy fleet without a pause, and look for what grows: REQUESTS=1000000
	@.ci/with-rabbitmq $(BIN)/python -m tests.faults.soak --requests $(REQUESTS)

check: lint types boundaries generated ## Lint, types, architecture rules, generated contracts

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: setup
	@$(BIN)/mypy

boundaries: setup
	@$(BIN)/lint-imports --no-cache

generated: setup
	@$(BIN)/python -m contracts --check
	@$(BIN)/python -m contracts.manifests --check

schema: setup ## Write the generated contracts anew: OpenAPI, the schema's SQL, the README's table of settings
	@$(BIN)/python -m contracts

manifests: setup ## Render deploy/ anew from the chart: the kustomize base, OpenShift's template
	@$(BIN)/python -m contracts.manifests

setup: .venv/ready ## Make the environment in .venv

.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (about a minute)"
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing: on Debian, apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[standalone,dev]'
	@touch $@

images: ## Build the container images with podman or docker: IMAGES="broker worker-cpu" REGISTRY=host/path TAG=tag BASE=image
	@deploy/images/build $(IMAGES)

test-images: setup ## Build broker and worker-cpu on a stand-in base, and run them as a cluster does (root, podman, debootstrap)
	@WHARF_TEST_IMAGES=1 .ci/with-podman .ci/with-rabbitmq $(BIN)/python -m pytest tests/images -s

# torch takes 6 GB: an environment of its own, which nothing else needs.
test-ultralytics: .venv-ultralytics/ready ## Test the ultralytics engine, and ours against it, box by box (installs torch, 6 GB)
	@.venv-ultralytics/bin/python -m pytest tests/ultralytics tests/contract/test_engine_contract.py

.venv-ultralytics/ready: pyproject.toml constraints.txt constraints-ultralytics.txt
	@echo "Setting up .venv-ultralytics (some minutes: torch has 6 GB)"
	@$(PYTHON) -m venv .venv-ultralytics
	@.venv-ultralytics/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -c constraints-ultralytics.txt -e '.[standalone,dev,ultralytics]'
	@touch $@
