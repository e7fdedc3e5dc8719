# The commands of the repository (README.md, INTERFACE in docs/).  Everything is made below var/ and .venv/.
.DEFAULT_GOAL := help
.PHONY: help serve test test-integration test-engines test-units check bench soak e2e env engine format lock clean

PYTHON := $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
ENV := $(VENV)/.made-gateway
DEV := $(VENV)/.made-dev

help:           ## this list
	@sed -n 's/^\([a-z0-9]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 10

serve: $(ENV)   ## a ready gateway with a small model and two adapters, on http://127.0.0.1:8000
	@exec $(PYTHON) -m deploy.quickstart.serve

test: $(DEV) engine ## every test that needs no GPU, three parts of them at a time
	@$(MAKE) --no-print-directory -k -j3 test-integration test-engines test-units

test-integration:
	$(BIN)/python -m pytest -m "not engine and not soak and not e2e" tests/integration

test-engines:
	$(BIN)/python -m pytest -m "engine and not soak and not e2e"

test-units:  # they never wait, and take what of the processors the others leave
	nice -n 19 $(BIN)/python -m pytest -m "not engine and not soak and not e2e" --ignore tests/integration

check: $(DEV)   ## format, lint, types, import contracts, dead code, images, compose file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy bench/*.py
	$(BIN)/mypy deploy/engine/*.py deploy/quickstart/*.py
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/hadolint Dockerfile deploy/engine/Dockerfile.cpu
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

bench: $(DEV)   ## the gateway beside the bare upstream, nginx and LiteLLM, as ratios
	$(BIN)/python bench/run.py

soak: $(DEV) engine ## the long repetitions of the reliability matrices
	$(BIN)/python -m pytest -m soak --timeout 3600

e2e: $(DEV) engine ## Open WebUI in a real browser against the gateway
	$(BIN)/python -m tests.e2e.prepare
	$(BIN)/python -m pytest tests/e2e -m e2e

env: $(ENV)     ## the gateway's own environment

engine:         ## the engine's environment, the small model and the two sample adapters (var/)
	@$(PYTHON) -m deploy.quickstart.prepare

format: $(DEV)  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(DEV)    ## write the lock files anew
	$(PIP) -q uv==0.13.9
	$(BIN)/uv pip compile -q --generate-hashes --no-header --python-version 3.11 pyproject.toml --extra postgres --extra prices --group build -o requirements.lock
	$(BIN)/uv pip compile -q --generate-hashes --no-header --python-version 3.11 pyproject.toml --extra postgres --extra prices --group dev -o requirements-dev.lock

clean:          ## removes what was made, the models included
	rm -rf $(VENV) var

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(ENV): requirements.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) -q --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements-dev.lock $(ENV) | $(VENV)/bin/python
	$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@
