# `make demo` and `make test` need only Python 3.11+ (with venv), a C++ compiler and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test bench lint proto lock clean

demo: $(STAMP) ## Train on MovieLens 100k, convert, compile, serve, and compare with TensorFlow
	$(BIN)/python -m examples.movielens.demo

test: $(STAMP) ## Every check: formatting, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest

bench: $(STAMP) ## Measure again what bench/results/ holds
	$(BIN)/python -m examples.movielens.demo --results bench/results/first_light.json
	$(BIN)/python -m bench convert
	$(BIN)/python -m bench dense

lint: $(STAMP) ## Format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(STAMP) ## Generate every *_pb2.py again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. serving/wire/tensor.proto serving/wire/predict.proto serving/wire/example.proto converters/examples/messages.proto

lock: ## Pin the newest versions that pyproject.toml admits
	rm -rf .cache/lock && $(PYTHON) -m venv .cache/lock
	.cache/lock/bin/pip install --quiet '.[dev]'
	.cache/lock/bin/pip freeze --all --exclude jaxrank --exclude pip | grep -v '@' > requirements.lock

clean: ## Remove everything that make built, keep downloads
	rm -rf $(VENV) build demo

$(STAMP): pyproject.toml requirements.lock CMakeLists.txt $(wildcard serving/native/*.cc)
	@$(PYTHON) -c 'import sys; sys.exit("jaxrank needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock scikit-build-core nanobind
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock --no-build-isolation -e '.[dev]'
	@touch $@
