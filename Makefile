# make demo   set up, then the whole sequence on the embedded model, to its verdict
# make test   set up, then all tests
# make docs   writes the pages that are made from the code: docs/config.md, docs/cli.md, docs/campaign.schema.json
# make check  format, lint, types, of Python, JavaScript and CSS: what CI asks before it tests
# make lock   writes constraints.txt anew: the newest versions that pyproject.toml admits; then run the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Formats and lints JavaScript and CSS, by biome.jsonc; on the Node.js of .venv, and got from npm at its first use.
BIOME := PATH="$(CURDIR)/$(BIN):$$PATH" npx --yes @biomejs/biome@2.6.8

.PHONY: demo test test-pages test-stages test-slow test-demo test-other-slow check check-pages docs fix lock setup clean
.DEFAULT_GOAL := setup

demo: .venv/ready
	$(BIN)/trueup run configs/demo.yaml

# Side by side: the pages' tests wait for a browser half of their time, the others reckon.
test: .venv/ready
	$(MAKE) --jobs 2 test-pages test-stages

test-pages: .venv/ready
	$(BIN)/python -m pytest -m "not slow" tests/ui

test-stages: .venv/ready
	$(BIN)/python -m pytest -m "not slow" --ignore tests/ui tests

# In two parts, so that with --jobs each takes the place of whatever ends first; and the files that have slow tests are
# named, so that nothing else is read to find them.
SLOW := $(filter-out tests/test_demo.py,$(shell grep -rl --include "test_*.py" "@pytest.mark.slow" tests))
test-slow: test-demo test-other-slow

test-demo: .venv/ready
	$(BIN)/python -m pytest -m slow --timeout 3000 tests/test_demo.py

test-other-slow: .venv/ready
	$(BIN)/python -m pytest -m slow --timeout 3000 $(SLOW)

check: .venv/ready check-pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check-pages: .venv/ready
	$(BIOME) ci

docs: .venv/ready
	$(BIN)/python docs/generate.py

fix: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIOME) check --write

# Without torch, and what only torch wants: which build of it is right depends on the machine.
lock: .venv/ready
	@echo torch | $(BIN)/uv pip compile --quiet --upgrade --all-extras --python-version 3.11 --excludes /dev/stdin \
	    --no-annotate --custom-compile-command "make lock" --output-file constraints.txt pyproject.toml

setup: .venv/ready

# A machine that has torch keeps it (GPU images do). Else torch comes first and by version: asked for by a range, as a
# dependency, it may bring gigabytes of CUDA to a machine without a GPU.
.venv/ready: pyproject.toml constraints.txt
	@if $(PYTHON) -c "import torch" 2>/dev/null; then \
	    echo "using the torch that is installed"; $(PYTHON) -m venv --system-site-packages .venv; \
	else \
	    $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	@touch $@

clean:
	rm -rf .venv build *.egg-info
