# Two commands do everything on a machine that has Python 3.11 and make:
#   make demo    install, then run the whole line on real cells
#   make test    install, then run every check and test
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo-run

.DEFAULT_GOAL := help
.PHONY: help demo test soak lint format clean

help:  ## Show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

# The product and the development tools are installed apart, so that the demo needs only what a user needs.
$(VENV)/.product: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.product
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.product  ## Ingest, pretrain, fine-tune, serve and query real cells (a few minutes)
	$(BIN)/cellmill demo --output $(DEMO_DIR)

lint: $(VENV)/.dev  ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## Run every check and test (below 12 minutes on 2 cores)
	$(BIN)/python -m pip check
	$(BIN)/python -c "from ray import serve"
	$(BIN)/python -m pytest -n 2 -m 'not soak'

soak: $(VENV)/.dev  ## Run what takes long: counts and loads, written to benchmarks/results
	$(BIN)/python -m pytest -m soak

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and the demo's output
	rm -rf $(VENV) $(DEMO_DIR)
