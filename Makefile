# make demo: from nothing to findings.  make test: everything that the tests need, then all tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# one process a core does the tests: threads of linear algebra beside them only wait for each other
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint docs bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[deep,dev]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/skerry detect examples/payments.csv --label fraud --report findings.html

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.dev lint docs
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto --dist worksteal

docs: $(VENV)/.dev
	$(BIN)/python docs/build.py

bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	for name in $$($(BIN)/skerry bench list | cut -d' ' -f1); do $(BIN)/skerry bench run $$name --out benchmarks || exit 1; done

clean:
	rm -rf $(VENV) build dist site findings.html
