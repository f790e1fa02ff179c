# The entry point for every task. Targets first install what they need, again only after pyproject.toml has changed.

PYTHON ?= python3
VENV   ?= .venv
BIND   ?= 127.0.0.1:8000
# The app of `make run`; `make run APP=examples/flask_app.py:app` serves a single example.
APP    ?= examples/all.py:app
ARGS   ?=
# How many tests run at once (pytest-xdist). Most wait for processes, so this may exceed the number of cores.
JOBS   ?= 3

FUZZ = .fuzz
# A copy of the tree that contains the compiled modules.
COMPILED = .compiled
BIN = $(VENV)/bin
# The sdist and its compiled wheel, for this interpreter.
DIST = $(VENV)/dist
BUILT_FROM := build_backend.py setup.py setup.cfg pyproject.toml README.md $(shell find servo -name '*.py')
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help run test test-all test-compiled wheel check format bench bench-against bench-memory bench-messages bench-autoscale soak fuzz properties conformance pictures docs clean

help:
	@echo "make run          serve the example apps on $(BIND)"
	@echo "make test         run the tests"
	@echo "make test-all     run them on each Python that is found (PYTHONS=\"python3.10 python3.13\" for some)"
	@echo "make test-compiled  run them with the hot modules compiled (ARGS=\"tests/unit/http\" for some)"
	@echo "make wheel        build the sdist and its wheel, with the hot modules compiled, into dist/"
	@echo "make check        check formatting, lint, types, import contracts, architecture"
	@echo "make format       let ruff format the code and fix what it can"
	@echo "make bench        measure Servo and its peers (docs/benchmarks/; ARGS=\"--list\" lists the parts, PYTHON=… is measured)"
	@echo "make bench-against REV=…  CPU per request compared with an earlier revision"
	@echo "make bench-memory the memory of 4 workers of a large app, with and without --preload"
	@echo "make bench-messages  measure messages between workers per second"
	@echo "make bench-autoscale measure how -w MIN:MAX follows a load (ARGS=\"--uwsgi PATH\" adds uWSGI)"
	@echo "make soak         run the long tests (docs/soak.md)"
	@echo "make fuzz         run the fuzz targets, a minute each (ARGS=\"--seconds 600\" for longer)"
	@echo "make properties   run the property tests with many more examples"
	@echo "make conformance  run the protocol conformance suite, write docs/reference/conformance.md"
	@echo "make pictures     take the pictures of the documentation (needs chromium and tmux)"
	@echo "make docs         build the documentation into docs/_build/html"
	@echo "make clean        remove what these commands created, including the environments"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Servo needs Python 3.10 or later; say which with PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[standard,examples]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[standard,docs]'
	@touch $@

# Two workers, so that the chat across workers has something to show.
run: $(VENV)/.run
	$(BIN)/servo $(APP) --bind $(BIND) --workers 2 $(ARGS)

# The tests of the installation use a wheel that is there if it was built from this very source.
test test-compiled: export SERVO_TEST_DIST = $(abspath $(DIST))
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# Each interpreter has an environment of its own. All run, even if the tests fail on one.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13 python3.14 python3.15
test-all:
	@failed=; ran=; \
	for python in $(PYTHONS); do \
	    "$$python" -c '' 2>/dev/null || { echo "== $$python: not here, skipped"; continue; }; \
	    echo "== $$python"; ran="$$ran $$python"; \
	    $(MAKE) --no-print-directory test PYTHON="$$python" VENV=".venv-$${python##*/}" || failed="$$failed $$python"; \
	done; \
	echo "== ran on:$${ran:- none}; failed on:$${failed:- none}"; \
	test -n "$$ran" && test -z "$$failed"

# As `pip install` builds it, and only again after a change: compiling takes a minute or two.
$(DIST)/.built: $(BUILT_FROM) | $(VENV)/.dev
	rm -rf $(DIST)
	SERVO_COMPILE=1 $(BIN)/python -m build --outdir $(DIST) .
	@touch $@

wheel: $(DIST)/.built
	mkdir -p dist
	cp $(DIST)/*.whl $(DIST)/*.tar.gz dist

test-compiled: $(DIST)/.built
	rm -rf $(COMPILED)
	mkdir $(COMPILED)
	cp -r $(wildcard *) $(COMPILED)
	$(BIN)/python -m zipfile -e $(DIST)/*.whl $(COMPILED)
	cd $(COMPILED) && $(abspath $(BIN))/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Without PYTHON=…, the benchmark chooses the interpreter that runs the servers.
BENCHED = $(if $(filter file,$(origin PYTHON)),,--python $(PYTHON))

bench:
	$(PYTHON) bench/run.py $(BENCHED) $(ARGS)

bench-against:
	$(PYTHON) bench/against.py $(REV) $(BENCHED) $(ARGS)

bench-memory:
	$(PYTHON) bench/run.py --workloads memory,respawn $(BENCHED) $(ARGS)

bench-messages: $(VENV)/.run
	$(BIN)/python bench/messages.py $(ARGS)

bench-autoscale: $(VENV)/.run
	$(BIN)/python bench/autoscale.py $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python tests/soak/run.py $(ARGS)

# A separate environment, because atheris is not available for every Python.
$(FUZZ)/.ready: pyproject.toml
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check atheris httptools h11
	@touch $@

fuzz: $(FUZZ)/.ready
	$(FUZZ)/bin/python tests/fuzz/run.py $(ARGS)

properties: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit/http tests/simulation --hypothesis-profile=fuzz $(ARGS)

conformance: $(VENV)/.dev
	$(BIN)/python tests/conformance/combinations.py
	$(BIN)/python tests/conformance/autobahn.py
	$(BIN)/python tests/conformance/h2spec.py --page
	$(BIN)/python -m pytest tests/conformance $(ARGS)

pictures: $(VENV)/.dev
	$(BIN)/python tests/pictures/run.py $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W -n --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) $(FUZZ) $(COMPILED) .bench build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find servo tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
