# Everything runs from .venv in this clone; `make run` and `make test` need nothing but Python 3.11+ and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SPECULATORS := speculators==0.9.0 hs-connectors==0.9.0 datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 dill==0.4.1 \
  multiprocess==0.70.19 xxhash==4.1.0 loguru==0.7.3 pydantic-settings==2.16.3 python-dateutil==4.0.0 pytz==2026.6
PROTOS := $(wildcard proto/paceline/v1/*.proto)

.DEFAULT_GOAL := help
.PHONY: help run install proto check test unit e2e bench interchange clean

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --progress-bar off -q -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP) ## make .venv with everything in it

run: install ## start a cluster with the demo model, generate text, stop it
	$(BIN)/paceline models fetch demo
	$(BIN)/paceline up --demo

proto: install ## regenerate the protobuf stubs
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=services --pyi_out=services \
	  --grpc_python_out=services $(PROTOS)

check: install ## lint, types, boundaries, wire
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd proto && ../$(BIN)/buf lint
	$(BIN)/python -m bench.stub_drift

test: install ## every test, end-to-end ones included
	$(BIN)/paceline models fetch demo
	$(BIN)/python -m pytest

unit: install ## the tests that start no process and load no model
	$(BIN)/python -m pytest -m 'not e2e and not chaos and not model'

e2e: install ## the tests that start real processes
	$(BIN)/paceline models fetch demo
	$(BIN)/python -m pytest -m 'e2e or chaos'

bench: install ## print every figure the README quotes
	$(BIN)/paceline models fetch demo
	$(BIN)/python -m bench.engine --check
	$(BIN)/python -m bench.sampler --check
	$(BIN)/python -m bench.quantised --check
	$(BIN)/python -m bench.distribution --check
	$(BIN)/python -m bench.exact --check
	$(BIN)/python -m bench.quick --check
	$(BIN)/python -m bench.speedup --check
	$(BIN)/python -m bench.from_nothing --check
	$(BIN)/python -m bench.peers --check
	$(BIN)/python -m bench.deterministic --check
	$(BIN)/python -m bench.memory --check
	$(BIN)/python -m bench.training --check

interchange: install ## does vLLM's speculators compute what we compute? (in .venv-speculators, made for it)
	test -x .venv-speculators/bin/python || $(PYTHON) -m venv .venv-speculators
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
	  > "$$(.venv-speculators/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/beside.pth"
	.venv-speculators/bin/python -m pip install --progress-bar off -q --no-deps $(SPECULATORS)
	PYTHONPATH=services:clients/python:. .venv-speculators/bin/python -m bench.interchange

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .venv-speculators .mypy_cache .ruff_cache .pytest_cache .hypothesis
