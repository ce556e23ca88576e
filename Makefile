# Each target sets up what it needs: python3 and make are enough to begin with.
#   make lab     the lessons, in JupyterLab          make test       every check and test
#   make demo    training in the terminal            make notebooks  build the lessons from their sources
#   make book    the lessons as web pages            make test-browser  lessons in a real browser, chromium
#   make bench   how fast a cycle is
# Options for JupyterLab: make lab ARGS="--no-browser --port 9000". Another Python: make lab PYTHON=python3.12.

PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
FIRST_LESSON := /lab/tree/notebooks/00_start_here.ipynb
# Jupyter refuses to run as root (in a container, say) unless told.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# Without the question whether to fetch news from the web, which would be the first thing a learner sees.
QUIET_LAB = $(PY) -m jupyter labextension disable --level sys_prefix "@jupyterlab/apputils-extension:announcements"

export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: lab demo book test test-browser lint bench notebooks clean

lab: $(VENV)/kit
	-$(PY) -m rso_lab doctor
	$(PY) -m jupyterlab $(ROOT) --LabApp.default_url=$(FIRST_LESSON) $(ARGS)

demo: $(VENV)/kit
	$(PY) -m rso_lab demo

book: $(VENV)/dev
	rm -rf book $(VENV)/book
	$(PY) -m sphinx -W --keep-going -q -E -d $(VENV)/doctrees -c docs . $(VENV)/book/pages
	mv $(VENV)/book/pages book
	@echo "book/index.html is the first page; the folder works from a USB stick, too"

test: $(VENV)/dev lint
	$(PY) -m pytest -n auto --maxprocesses 4 tests $(ARGS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 2 --dist loadscope notebooks/complete

test-browser: $(VENV)/browser
	$(PY) -m pytest -rs tests/browser.py $(ARGS)

bench: $(VENV)/kit
	$(PY) benchmarks/evaluators.py --models paper_cnn one_conv

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy

notebooks: $(VENV)/dev
	$(PY) notebooks/build.py
	$(PY) docs/lists.py

clean:
	rm -rf $(VENV)

# Stamps: written when an installation is complete, redone when the requirements change.
$(VENV)/kit: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable .
	$(QUIET_LAB)
	-$(PY) -m rso_lab doctor
	@touch $@

$(VENV)/dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[dev]"
	$(QUIET_LAB)
	-$(PY) -m rso_lab doctor
	@touch $@ $(VENV)/kit

$(VENV)/browser: $(VENV)/dev
	$(PY) -m pip install --quiet --editable ".[dev,browser]"
	@touch $@
