# What a developer runs, and what CI runs. Everything lives in .venv; nothing else is touched.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN := RAY_AUTH_MODE=token $(BIN)/python -m

.PHONY: install serve test test-slow check format load bench bench-scaling bench-gpu

install: .venv/serve.installed

serve: install  ## serve the demo model; ARGS="--expert-hosts 4" passes flags on
	@$(BIN)/mixray serve $(ARGS)

test: .venv/dev.installed
	$(RUN) pytest

test-slow: .venv/dev.installed  ## minutes long; some need root
	$(RUN) pytest -m slow

check: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

load: .venv/dev.installed  ## load a server that `make serve` started in another terminal
	$(BIN)/locust -f loadtest/locustfile.py --headless -u 16 -r 8 -t 30s \
		--host http://127.0.0.1:8000 $(ARGS)

bench: .venv/dev.installed  ## the machine, mixray and the rivals that are here, side by side
	$(BIN)/python -m loadtest.bench $(ARGS)

bench-scaling: .venv/dev.installed  ## step time against batch, context and waiting requests
	GOMP_SPINCOUNT=10000 $(BIN)/python -m loadtest.bench.scaling $(ARGS)

bench-gpu: .venv/dev.installed  ## Mixtral 8x7B's true shapes against the limits of a GPU
	$(BIN)/python -m loadtest.bench.gpu $(ARGS)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/serve.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing mixray into .venv (once; some minutes)"
	$(PIP) -e .
	@touch $@

.venv/dev.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing mixray and its development tools into .venv (once; some minutes)"
	$(PIP) -e '.[dev]'
	@touch $@ .venv/serve.installed
