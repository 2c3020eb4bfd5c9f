# minilora: `make lab` opens the course, `make test` proves it. GNU make 3.81 or newer, Linux and macOS; docs/install.md has the Windows route.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
TORCH := torch==2.13.0
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
# Before any test: mistakes, the form, and the types of the rooms that pyproject.toml names.
FORM := $(BIN)/ruff check -q . && $(BIN)/ruff format -q --check . && $(BIN)/mypy --no-error-summary
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout 300
AXE := axe-core@4.14.1

.PHONY: help lab test check bench results notebooks parts readme wheel floors axe clean

help:
	@echo "make lab        makes the environment (.venv) if needed and opens lesson 00 in JupyterLab"
	@echo "make test       everything: units, parity with the libraries, lessons, browser"
	@echo "make check      the quick part of it, under four minutes"
	@echo "make bench      runs the benchmarks, writes benchmarks/results"
	@echo "make results    trains what stored results are missing, says before how long, goes on after a break"
	@echo "make notebooks  executes the lessons and saves them with their outputs"
	@echo "make parts      rewrites badges and setup cells after the repository's address or the version has changed"
	@echo "make readme     fills the README's tables from benchmarks/results"
	@echo "make wheel      builds dist/minilora-*.whl, which carries data and lessons"
	@echo "make floors     runs lessons on the oldest libraries that pyproject.toml allows"
	@echo "make clean      removes the environment and what tests and runs left"

# The environment, made once and again when its inputs change. torch comes first and by exact pin: a range would
# fetch gigabytes for graphics cards. PYTHON=... chooses another interpreter.
$(STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; for candidate in $${python:-python3 python3.11 python3.12 python3.13 python}; do \
	    if $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
	done; \
	if [ -x $(BIN)/python ]; then exit 0; fi; \
	if [ -z "$$chosen" ]; then echo "minilora needs Python 3.11, 3.12 or 3.13; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	$$chosen -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks,hub,test]"
	@touch $@

lab: $(STAMP)
	$(BIN)/jupyter lab $$([ "$$(id -u)" -ne 0 ] || echo --allow-root) $(LAB_FLAGS) notebooks/00-start-here.ipynb

# The accessibility checker of the browser tests; without npm or a network those checks are skipped.
axe: $(STAMP)
	@if [ ! -e $(VENV)/axe ] && command -v npm >/dev/null 2>&1; then \
	    npm install --silent --no-save --no-audit --no-fund --prefix $(VENV)/axe $(AXE) >/dev/null 2>&1 || rm -rf $(VENV)/axe; fi

# One pytest over everything, so that its closing line is the last thing printed.
test: $(STAMP) axe
	@$(FORM)
	@$(PYTEST) $(PARALLEL) $(NBVAL) -rs tests notebooks

check: $(STAMP)
	@$(FORM)
	@$(PYTEST) $(PARALLEL) -m "not slow and not browser" tests

# In order: what others are built on comes first. The card's runs where there is a card.
BENCHMARKS := memory.memory memory.peers memory.on_cpu memory.budget_example speed.cpu tasks.example real.speed
bench: $(STAMP)
	@$(BIN)/python -m benchmarks.make_results
	@for name in $(BENCHMARKS); do echo "benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	    $(BIN)/python -m benchmarks.gpu.gpu; else echo "benchmarks.gpu.gpu needs a graphics card: left out"; fi
	MINILORA_LATENCY=benchmarks/results/slider-latency.json MINILORA_RENDER_TIMES=benchmarks/results/slider-render.json \
	    $(PYTEST) -k "latency or per_move" tests/browser tests/notebooks
	@$(MAKE) --no-print-directory readme

results: $(STAMP)
	@$(BIN)/python -m benchmarks.make_results
	@$(MAKE) --no-print-directory readme

notebooks: $(STAMP)
	$(BIN)/python -m tools.run_notebooks

parts: $(STAMP)
	$(BIN)/python -m tools.run_notebooks --parts
	$(BIN)/python -m tools.readme

readme: $(STAMP)
	$(BIN)/python -m tools.readme

wheel: $(STAMP)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

floors: $(STAMP)
	$(BIN)/python -m tools.floors

environment.yml: pyproject.toml $(STAMP)
	$(BIN)/python -m tools.environment

clean:
	rm -rf $(VENV) $(VENV)-floors runs build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
