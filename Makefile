# Every target does its own set-up: all it needs is python3 (3.11 or newer)
# with venv. Nothing is installed outside .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JETSTREAM := .venv-jetstream
XMANAGER := .venv-xm
SOURCES := qed experiments launch bench tests setup.py
# pytest-xdist workers; each holds jax with 8 simulated devices.
WORKERS ?= 2

.PHONY: demo test test-all test-parity test-jetstream test-xmanager format lint \
  lock clean

$(VENV)/.installed: requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'qed needs Python 3.11 or newer; set PYTHON=python3.x'; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.parity: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[parity]'
	@touch $@

# Its own environment: 3.7 GB, of which half is TensorFlow.
$(JETSTREAM)/.installed: requirements.txt setup.py $(VENV)/.installed
	$(PYTHON) -m venv $(JETSTREAM)
	$(JETSTREAM)/bin/python -m pip install --quiet --no-deps -r requirements.txt
	$(JETSTREAM)/bin/python -m pip install --quiet --editable '.[jetstream]'
	@touch $@

# Its own environment: XManager's protobuf is older than ours. 2 GB in all.
$(XMANAGER)/.installed: requirements.txt setup.py $(VENV)/.installed
	$(PYTHON) -m venv $(XMANAGER)
	$(XMANAGER)/bin/python -m pip install --quiet --no-deps -r requirements.txt
	$(XMANAGER)/bin/python -m pip install --quiet --editable '.[xm]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/qed demo

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not parity'

test-all: $(VENV)/.parity lint
	$(BIN)/python -m pytest -n $(WORKERS)

test-parity: $(VENV)/.parity
	$(BIN)/python -m pytest -n $(WORKERS) -m 'parity and not slow'

test-jetstream: $(JETSTREAM)/.installed
	$(BIN)/python -m pytest tests/rollout/jetstream_test.py

test-xmanager: $(XMANAGER)/.installed
	$(XMANAGER)/bin/python -m pytest tests/launch/xmanager_test.py

lint: $(VENV)/.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile setup.py --extra dev --universal \
	  --python-version 3.11 --no-header --no-annotate --quiet \
	  --output-file requirements.txt

clean:
	rm -rf $(VENV) $(JETSTREAM) $(XMANAGER) .pytest_cache .ruff_cache
