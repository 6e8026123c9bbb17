# Every target works from a fresh clone: the virtual environment is made on first use.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo test test-all lint types layers generate fresh samples bench-self bench-peers bench-train clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/optkit: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[cpu,torch,data]'
	@touch $@

$(VENV)/.dev: $(BIN)/optkit
	$(PIP) install -c constraints.txt -e '.[cpu,torch,hf,data,openvino,dev]'
	@touch $@

demo: $(BIN)/optkit ## install, then optimize a sample model, run it and show what happened
	$(BIN)/optkit optimize sample_models/digits_cnn.pt --recipe int8.yaml -o out/digits_cnn.int8 --force
	$(BIN)/optkit run out/digits_cnn.int8 --input sample_models/data/digits_evaluation.npz

test: $(VENV)/.dev ## all tests but those that download or need gigabytes
	$(BIN)/python -m pytest -n 2 -m "not zoo and not large"

test-all: $(VENV)/.dev ## every test
	$(BIN)/python -m pytest -m "not zoo and not large" -n 2
	$(BIN)/python -m pytest -m "zoo or large"

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

layers: $(VENV)/.dev ## which room may import which
	$(BIN)/lint-imports

generate: $(VENV)/.dev ## write the generated files anew
	$(BIN)/python tests/generate.py

fresh: $(VENV)/.dev ## fail if a generated file is stale
	$(BIN)/python tests/generate.py --check

samples: $(VENV)/.dev ## train the sample models anew
	$(BIN)/python sample_models/make.py

bench-self: $(VENV)/.dev ## time optkit itself against the direct library calls
	$(BIN)/python benchmarks/bench_self.py

bench-peers: $(VENV)/.dev ## optkit and its peers on real models; on a quiet machine, half an hour, the first time two
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/render.py

bench-train: $(VENV)/.dev ## prune and distil real models; on a quiet machine, about an hour
	$(BIN)/python benchmarks/train.py

clean: ## remove what make made
	rm -rf $(VENV) .venv-ci out build dist
