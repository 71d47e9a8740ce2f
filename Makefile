# `make demo` and `make test` need only Python 3.11+ (with venv), a C++ compiler and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests wait for processes that they started; each process of tests takes up to 3 GB.
PROCESSES ?= $(shell n=$$(($$(nproc) + 1)); echo $$((n < 6 ? n : 6)))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test types tests bench bench-check faults whole-zoo sanitize lint proto lock clean

demo: $(STAMP) ## Train on MovieLens 100k, convert, compile, serve, and compare with TensorFlow
	$(BIN)/python -m examples.movielens.demo

test: $(STAMP) ## Every check: formatting, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types tests

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

tests: $(STAMP)
	$(BIN)/python -m pytest -n $(PROCESSES)

sanitize: $(STAMP) ## The C++ tests and the whole native core under the address, undefined-behaviour and thread sanitizers
	$(BIN)/python -m tests.native.build
	$(BIN)/python -m tests.native.sanitized

bench: $(STAMP) ## Measure again what bench/results/ holds; soak and faults have commands of their own
	$(BIN)/python -m examples.movielens.demo --results bench/results/first_light.json
	-$(BIN)/jaxrank bench all --suites convert,dense,tiers,host,updates,sparse,state,loading,serve
	$(BIN)/jaxrank bench report --page docs/performance.md

bench-check: $(STAMP) ## Measure ratios again, and fail where one is over 10% worse than in bench/results/
	rm -rf .cache/bench/check
	$(BIN)/jaxrank bench all --suites dense,host,updates,sparse,loading,serve --out .cache/bench/check; all=$$?; \
	$(BIN)/jaxrank bench compare --ratios --again .cache/bench/check/again bench/results .cache/bench/check && exit $$all

faults: $(STAMP) ## 50,000 hostile requests and 1,000 damaged bundles; make test sends a few of them
	JAXRANK_FUZZED_RPCS=50000 JAXRANK_FAULTS_RESULTS=bench/results/faults.json JAXRANK_DAMAGED_BUNDLES=1000 $(BIN)/python -m pytest -s --timeout=0 tests/faults

whole-zoo: $(STAMP) ## Compile and serve every model of the zoo; make test serves some of each kind
	JAXRANK_WHOLE_ZOO=1 $(BIN)/python -m pytest -n $(PROCESSES) tests/zoo

lint: $(STAMP) ## Format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(STAMP) ## Generate every *_pb2.py again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. serving/wire/*.proto converters/examples/messages.proto

lock: ## Pin the newest versions that pyproject.toml admits
	rm -rf .cache/lock && $(PYTHON) -m venv .cache/lock
	.cache/lock/bin/pip install --quiet '.[dev]'
	.cache/lock/bin/pip freeze --all --exclude jaxrank --exclude pip | grep -v '@' > requirements.lock

clean: ## Remove everything that make built, keep downloads
	rm -rf $(VENV) build demo

$(STAMP): pyproject.toml requirements.lock CMakeLists.txt $(shell find serving/native -name "*.cc" -o -name "*.h")
	@$(PYTHON) -c 'import sys; sys.exit("jaxrank needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }
	$(PIP) -c requirements.lock scikit-build-core nanobind cmake ninja
	@$(MAKE) --no-print-directory --jobs=2 packages core
	$(BIN)/python -m pip check
	@touch $@

# The core compiles while packages come; Python compiles those modules that it imports. The lock is all that '.[dev]' needs, which `pip check` confirms.
.PHONY: packages core
packages:
	$(PIP) --no-compile --no-deps -r requirements.lock
core:
	$(PIP) --no-deps --no-build-isolation -e .
