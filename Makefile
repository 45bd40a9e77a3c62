# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo
# Two workers of one thread each; a worker takes over tests of another that is behind.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist worksteal
# More options of the demo, such as DEMO="--roles 40" for a first look in less time.
DEMO ?=

.PHONY: setup demo test check format unit figures bench bench-peers docs clean

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
	$(BIN)/python -m pytest $(PARALLEL) -m "not real"

test: check
	$(BIN)/python -m pytest $(PARALLEL)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

figures: setup
	$(BIN)/python benchmarks/persona_space.py

# Alone on the machine, please. The whole of it takes hours; PARTS="start memory" and SIZE=0.1 take less.
SIZE ?= 1
PARTS ?= capture rollouts onepass cap compile space linear memory start
bench: setup
	$(BIN)/python benchmarks/speed.py --parts $(PARTS) --size $(SIZE) --out benchmarks/results/speed.json
	$(BIN)/python benchmarks/side_by_side.py benchmarks/results/speed.json

# Other libraries, in an environment that all of them accept. OFFICIAL=DIR, a clone of the paper's code, adds its extraction.
PEERS := .venv-peers
bench-peers: $(PEERS)/.ready
	$(PEERS)/bin/python benchmarks/peers.py $(if $(OFFICIAL),--official $(OFFICIAL)) --out benchmarks/results/peers.json
	$(PEERS)/bin/python benchmarks/side_by_side.py benchmarks/results/peers.json

$(PEERS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt -e . jsonlines nnsight==0.8.1
	# Their metadata ask for older releases than they run with.
	$(PEERS)/bin/python -m pip install --quiet --no-deps repeng==0.4.0 steering-vectors==0.12.2
	touch $(PEERS)/.ready

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(PEERS) demo site dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
