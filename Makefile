# `make sweep` and `make test` are all a fresh machine needs; each sets up .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SCALE ?= $(or $(FABRIC_SCALE),laptop)
OUT ?= runs

# Tests start hundreds of processes: none should have to compile our code again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: sweep test drills check clean

sweep: $(READY)
	$(BIN)/fabric sweep jobs/ablation.yaml --scale $(SCALE) --out $(OUT)

test: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope

# Signals, clusters that die, grow or ask for a token: whole sweeps, some minutes, best on an idle machine.
drills: $(READY)
	$(BIN)/python -m pytest -m drill tests/runtime

check: $(READY)
	$(BIN)/fabric doctor

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch ninja setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs build *.egg-info
