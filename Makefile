# Two commands do all the set-up: `make demo` runs the whole method, `make test` passes the tests.
# PYTHON=python3.12 make test  chooses another interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
INSTALLED := $(VENV)/installed-$(VERSION)
TEST_READY := $(VENV)/test-ready-$(VERSION)
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-peers check clean

demo: $(INSTALLED)
	@echo "== Running the whole method on the built-in problems (workdir runs/tiny)"
	$(VENV)/bin/python -m prm_jax.train --workdir runs/tiny

test: $(TEST_READY)
	@echo "== Running the tests"
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not peers"

test-slow: $(TEST_READY)
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest -m "not peers"

# Needs some gigabytes of disk for torch.
test-peers: $(TEST_READY)
	$(PIP) -e '.[test,peers]'
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m pytest -m peers

check: $(TEST_READY)
	$(PIP) -e '.[dev]'
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# A stamp is written last, so an interrupted installation is done again.
$(INSTALLED): setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "PYTHON=$(PYTHON) is missing or older than 3.11; try: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	@echo "== Making $(VENV) with Python $(VERSION) and installing prm_jax and what it needs (a minute or two)"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(TEST_READY): $(INSTALLED)
	@echo "== Installing what the tests need"
	$(PIP) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
