# Every target brings its own environment: a fresh clone needs python3 (3.11 or newer) and nothing else.
#   make demo       convert a real ImageNet checkpoint, and compare what it says before and after
#   make test       the test suite      make test-slow  what takes longer      make bench  speed, as ratios
#   make test-wording   the same with every reason in other words: no behaviour may change
#   make fuzz       readers against what hypothesis makes of their formats, a minute each
#   make lint       ruff, and the stack of folders      make types  mypy       make clean  everything made here
#   make docs       tables and drawings in docs/, from the code                make pictures  the README's, from a run
#   make site       the documentation as a site, in site/, with the references of the API and of the command line
#   make wheel      wheel and sdist in dist/, each installed into an empty environment and tried
#   make matrix     the fast tests with the oldest torch that setup.cfg promises, and on every Python 3.11 or newer here
#   make zoo        docs/coverage.md: every architecture of timm and torchvision, in about half an hour
#   make evidence   docs/evidence.md: what blocks add to further training; FASHION=FILE.npz for Fashion-MNIST as well

PYTHON ?= python3
# The versions the suite is known to pass with. Another build of torch: make test TORCH="torch torchvision"
TORCH ?= torch==2.14.1 torchvision==0.29.1
JOBS ?= 2

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=10

.PHONY: setup demo test test-slow test-wording bench fuzz zoo evidence lint types docs pictures site wheel matrix clean
.DEFAULT_GOAL := test

setup: $(STAMP)

# torch and its dependents go into one resolution, so that no other build of torch is fetched first
$(STAMP): setup.cfg pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): several GB the first time, some minutes"
	$(BIN)/python -m pip install -qq $(TORCH) --editable ".[test,docs,demo]"
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-wording: $(STAMP)
	SE_INJECT_TEST_REASONS=1 $(PYTEST) -m "not slow"

# pytest exits with 5 when it selects no test
test-slow: $(STAMP)
	$(PYTEST) -m slow || { status=$$?; [ $$status -eq 5 ] && echo "no slow tests"; }

bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run

# goes on where it was stopped: the rows are kept in zoo-rows.jsonl
zoo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo --jobs $(JOBS) -o docs/coverage.md

# goes on where it was stopped: the rows are kept in evidence-rows.jsonl
evidence: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evidence $(if $(FASHION),--fashion-mnist "$(FASHION)") --out docs/evidence.md

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

types: $(STAMP)
	$(BIN)/python -m mypy

docs: $(STAMP)
	$(BIN)/python -m docs.generate

# the page is photographed by a chromium that is installed already
pictures: $(STAMP)
	$(BIN)/python -m docs.pictures

# every warning is an error, a link that leads nowhere among them
site: $(STAMP)
	$(BIN)/python -m sphinx -q -n -W --keep-going -c docs . site

# TAG=v1.2.3 has to be that of the version
wheel: $(STAMP)
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	[ -z "$(TAG)" ] || ls dist/se_inject-$(TAG:v%=%).tar.gz
	$(BIN)/python -m tests.smoke dist/*

# each with an environment of its own in .matrix/, of several GB
matrix:
	$(PYTHON) tests/matrix.py "$(MAKE)" JOBS=$(JOBS)

clean:
	rm -rf $(VENV) .matrix build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
