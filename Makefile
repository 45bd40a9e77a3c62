# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo
# More options of the demo, such as DEMO="--roles 40" for a first look in less time.
DEMO ?=

.PHONY: setup demo test check format unit bench docs clean

setup: $(READY)

# torch comes first and pinned: its exact version has a CPU build, while an open range may fetch gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,drift,docs,plots,eval,inspect,api,ray]'
	# The control vectors' tests read them with repeng too. It asks for NumPy 1 in its metadata only.
	$(BIN)/python -m pip install --quiet --no-deps repeng==0.4.0
	touch $(READY)

demo: setup
	$(BIN)/assistant-axis demo --out $(OUT) $(DEMO)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs --skip "*.png,*.js"
	$(BIN)/basedpyright --warnings

unit: setup
	$(BIN)/python -m pytest -m "not real"

test: check
	$(BIN)/python -m pytest

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python benchmarks/persona_space.py

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo site dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
